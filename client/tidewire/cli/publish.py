"""``tidewire pub``: publish events."""

import time
from typing import TYPE_CHECKING, Any, Final

import click

from tidewire.cli.input import lines, read_value
from tidewire.cli.output import Output
from tidewire.cli.parameters import DURABILITIES, HEADER
from tidewire.cli.settings import Settings, connection_options, pass_settings
from tidewire.cli.signing import signer_of, signing_options

if TYPE_CHECKING:
    import tidewire

PROGRESS_S: Final = 0.2


@click.command(
    epilog="""\b
Each line of standard input is one message when DATA is "-" or left out; `--whole -` makes all of
it one. It ends when everything is acknowledged.

\b
Examples:
  tidewire pub weather.oslo '{"temperature": -3}'
  tidewire pub orders.new - < orders.jsonl
  tidewire pub images.new --whole - --header type=image/png < sun.png
  tidewire pub orders.new '{}' --id order-17 --stream orders --durability fsync
  tidewire pub orders.new '{}' --sign keys/orders.key
"""
)
@click.argument("subject")
@click.argument("data", default="-")
@click.option("--whole", is_flag=True, help="Take standard input as one message, not as lines.")
@click.option("--header", "headers", type=HEADER, multiple=True, help="Header; may be repeated.")
@click.option("--id", "message_id", help="A stream stores a message of this id once.")
@click.option("--stream", help="Name of the stream that must take it.")
@click.option("--durability", type=click.Choice(DURABILITIES), help="Level to be reached.")
@click.option(
    "--expect-last-sequence", "expected", type=click.IntRange(0), help="Only if it is the last."
)
@click.option("--count", type=click.IntRange(1), help="Publish DATA this many times.")
@click.option("--compression", type=click.Choice(["lz4", "snappy", "zstd"]), help="Codec.")
@signing_options
@connection_options
@pass_settings
def pub(settings: Settings, /, subject: str, data: str, whole: bool, **options: Any) -> None:
    """Publish DATA, or each line of standard input, on SUBJECT."""
    from tidewire.cli.session import run

    as_lines = data == "-" and not whole
    once = options["message_id"] is not None or options["expected"] is not None
    if once and (as_lines or options["count"]):
        raise click.UsageError("--id and --expect-last-sequence are for one message.")
    if as_lines and options["count"]:
        raise click.UsageError("--count repeats DATA; it does not go with standard input.")
    signer = signer_of(options)
    payload = b"" if as_lines else read_value(data)

    async def work(client: "tidewire.Client") -> None:
        if as_lines or options["count"]:
            await _publish_many(settings, client, subject, payload, as_lines, options)
        else:
            ack = await client.events.publish(
                subject,
                payload,
                headers=options["headers"] or None,
                message_id=options["message_id"],
                durability=options["durability"],
                expected_last_sequence=options["expected"],
                stream=options["stream"],
            )
            _tell(settings, ack)

    run(settings, work, compression=options["compression"], signer=signer)


async def _publish_many(
    settings: Settings,
    client: "tidewire.Client",
    subject: str,
    payload: bytes,
    as_lines: bool,
    options: dict[str, Any],
) -> None:
    """Publish through one pipelined stream, showing how far it is."""
    began = shown = time.monotonic()
    headers = options["headers"] or None
    published = 0
    async with client.events.publisher(
        durability=options["durability"], stream=options["stream"] or ""
    ) as publisher:
        if as_lines:
            async for some in lines():
                for line in some:
                    await publisher.publish(subject, line, headers=headers)
                published += len(some)
                if time.monotonic() - shown > PROGRESS_S:
                    shown = time.monotonic()
                    settings.progress(f"{published} messages")
        else:
            for published in range(1, options["count"] + 1):
                await publisher.publish(subject, payload, headers=headers)
                if published % 4_096 == 0 and time.monotonic() - shown > PROGRESS_S:
                    shown = time.monotonic()
                    settings.progress(f"{published} of {options['count']} messages")
        await publisher.flush()
    settings.end_progress()
    took_s = time.monotonic() - began
    if settings.json:
        Output().record({"published": published, "seconds": round(took_s, 6)})
    else:
        settings.note(f"published {published} messages in {took_s:.3f} s")


def _tell(settings: Settings, ack: Any) -> None:
    from tidewire.cli.parameters import enum_name
    from tidewire.v1 import common_pb2

    level = enum_name(common_pb2.Durability, ack.durability, "DURABILITY_")
    if settings.json:
        fields = ("stream", "sequence", "duplicate", "receivers")
        Output().record({name: getattr(ack, name) for name in fields} | {"durability": level})
    elif ack.stream:
        again = ", was there already" if ack.duplicate else ""
        settings.note(f"stored in {ack.stream} as {ack.sequence} ({level}){again}")
    else:
        settings.note(f"handed to {ack.receivers} subscriptions; no stream keeps it")
