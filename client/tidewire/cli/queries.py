"""``tidewire ask`` and ``tidewire answer``: request and reply."""

from typing import TYPE_CHECKING, Any

import click

from tidewire.cli.input import read_value
from tidewire.cli.output import Output, payload_fields
from tidewire.cli.settings import Settings, connection_options, pass_settings

if TYPE_CHECKING:
    import tidewire


@click.command(
    epilog="""\b
Examples:
  tidewire ask double 21
  tidewire ask report.daily - < parameters.json > report.pdf
  tidewire ask temperature '' --all --json
"""
)
@click.argument("subject")
@click.argument("data", default="")
@click.option("--stream", is_flag=True, help="Print a stream of answers as they come.")
@click.option("--all", "everybody", is_flag=True, help="Ask all responders; print every answer.")
@click.option("--first", type=click.IntRange(1), help="Ask all; print this many good answers.")
@connection_options
@pass_settings
def ask(settings: Settings, /, subject: str, data: str, **options: Any) -> int:
    """Send DATA, or standard input when it is "-", to SUBJECT and print the answer."""
    from tidewire.cli.session import run

    chosen = [name for name in ("stream", "everybody", "first") if options[name]]
    if len(chosen) > 1:
        raise click.UsageError("Choose one of --stream, --all and --first.")
    payload = read_value(data)
    out = Output()

    async def work(client: "tidewire.Client") -> int:
        if options["everybody"] or options["first"]:
            return await _gather(settings, out, client, subject, payload, options["first"])
        if options["stream"]:
            async for reply in client.queries.ask_stream(subject, payload):
                _write(settings, out, reply)
        else:
            _write(settings, out, await client.queries.ask(subject, payload))
        return 0

    return run(settings, work)


@click.command(
    epilog="""\b
A program gets the query on standard input and its subject in TIDEWIRE_SUBJECT; what it writes is
the answer, and an exit code other than 0 an error with what it wrote to standard error.

\b
Examples:
  tidewire answer ping --reply pong
  tidewire answer 'echo.*' --echo
  tidewire answer upper -- tr a-z A-Z
"""
)
@click.argument("subject")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--reply", help="Answer every query with this text.")
@click.option("--echo", is_flag=True, help="Answer with the query itself.")
@click.option("--group", default="", help="Group; each query goes to one of it.")
@click.option("--at-once", type=click.IntRange(1, 1_024), default=8, show_default=True)
@click.option("--count", type=click.IntRange(1), help="End after this many queries.")
@connection_options
@pass_settings
def answer(settings: Settings, /, subject: str, command: tuple[str, ...], **options: Any) -> None:
    """Answer queries on SUBJECT with a text, with themselves, or by a COMMAND."""
    import asyncio

    from tidewire.cli.program import run_program
    from tidewire.cli.session import first_of, run

    if sum((bool(command), options["reply"] is not None, options["echo"])) != 1:
        raise click.UsageError("Choose one of --reply TEXT, --echo and -- COMMAND.")
    answered = 0

    async def work(client: "tidewire.Client") -> None:
        enough = asyncio.Event()

        async def handle(query: Any) -> bytes:
            nonlocal answered
            try:
                if command:
                    variables = {"TIDEWIRE_SUBJECT": query.subject}
                    return await run_program(command, query.payload, variables, None)
                return bytes(query.payload) if options["echo"] else str(options["reply"]).encode()
            finally:
                answered += 1
                if options["count"] and answered >= options["count"]:
                    enough.set()

        async with client.queries.serve(
            subject, handle, group=options["group"], in_flight_max=options["at_once"]
        ) as responder:
            settings.note(f"answering {subject}")
            await first_of(enough.wait(), responder.join())
        settings.note(f"answered {answered} queries")

    run(settings, work)


async def _gather(
    settings: Settings,
    out: Output,
    client: "tidewire.Client",
    subject: str,
    payload: bytes,
    first: int | None,
) -> int:
    gathered = await client.queries.gather(
        subject, payload, first=first, on_reply=lambda reply: _write(settings, out, reply)
    )
    for responder, error in gathered.errors.items():
        settings.note(f"{responder}: {error}")
    if gathered.missing:
        settings.note(f"no answer from {', '.join(gathered.missing)}")
    return 0 if gathered.complete else 1


def _write(settings: Settings, out: Output, reply: Any) -> None:
    if settings.json:
        out.record({"responder": reply.responder, **payload_fields(reply.payload)})
    else:
        out.payload(reply.payload)
