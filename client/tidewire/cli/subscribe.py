"""``tidewire sub``: receive events."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from tidewire.cli.output import Output, payload_fields
from tidewire.cli.parameters import START
from tidewire.cli.settings import Settings, connection_options, pass_settings
from tidewire.cli.signing import verifier_of, verifying_options

if TYPE_CHECKING:
    import tidewire

FETCH_MESSAGES: Final = 1_000
WINDOW_MAX: Final = 1_000
"""Messages of a consumer that wait here at most: what is not written goes to others."""


@click.command(
    epilog="""\b
Live events are those published from now on. With --from, or --stream, what a stream has kept
comes first, in order. With --consumer each message is acknowledged when it is written.

\b
Examples:
  tidewire sub 'weather.>'
  tidewire sub 'orders.*' --from all --end --json
  tidewire sub --stream orders --from @1h
  tidewire sub --stream orders --consumer billing --count 10
  tidewire sub 'orders.>' --verify keys
"""
)
@click.argument("subjects", nargs=-1)
@click.option("--stream", help="Read this stream; SUBJECTS then choose from it.")
@click.option("--from", "start", type=START, help="Where to start in the stream.")
@click.option("--consumer", help="Take a share of this durable consumer of the stream.")
@click.option("--group", default="", help="Live: each batch goes to one subscriber of the group.")
@click.option("--count", type=click.IntRange(1), help="End after this many messages.")
@click.option("--end", is_flag=True, help="End when all that is stored has been read.")
@click.option("--with-subject", is_flag=True, help="Put the subject and a tab before each payload.")
@verifying_options
@connection_options
@pass_settings
def sub(settings: Settings, /, subjects: tuple[str, ...], **options: Any) -> None:
    """Receive what is published on SUBJECTS (wildcards * and >), one payload on each line."""
    from tidewire.cli.session import run

    _check(subjects, options)
    verifier = verifier_of(options)

    async def work(client: "tidewire.Client") -> None:
        stream: str | None = options["stream"]
        if stream is None and (options["start"] is not None or options["end"]):
            stream = await _stream_of(client, subjects)
        printer = _Printer(settings, options["count"], options["with_subject"])
        if options["end"] and stream is not None:
            await _read_to_end(client, stream, subjects, options, printer)
        else:
            await _follow(settings, client, stream, subjects, options, printer)

    try:
        run(settings, work, verifier=verifier)
    finally:
        if verifier is not None and verifier.refused:
            reasons = ", ".join(f"{count} {name}" for name, count in verifier.refused.items())
            settings.note(f"refused messages: {reasons}")


def _check(subjects: Sequence[str], options: dict[str, Any]) -> None:
    if not subjects and options["stream"] is None:
        raise click.UsageError("Name a SUBJECT, such as 'weather.>', or a --stream.")
    if options["consumer"] is None:
        reads = options["stream"] or options["start"] is not None or options["end"]
        if options["group"] and reads:
            raise click.UsageError("--group is for live events; make a consumer to share a stream.")
        return
    if options["stream"] is None:
        raise click.UsageError("--consumer needs its --stream.")
    if subjects or options["start"] is not None or options["group"]:
        raise click.UsageError(
            "A consumer has its own subjects and start; `tidewire consumer add` sets them."
        )


class _Printer:
    """Writes messages until there are enough."""

    def __init__(self, settings: Settings, count: int | None, with_subject: bool) -> None:
        self._out = Output()
        self._json = settings.json
        self._with_subject = with_subject
        self._left = count

    def is_done(self) -> bool:
        """Say whether as many as wanted were written."""
        return self._left == 0

    @property
    def wanted(self) -> int | None:
        """Messages that are still to be written; ``None`` for any number."""
        return self._left

    async def write(self, messages: Iterable[Any], *, acknowledge: bool) -> None:
        """
        Write messages, as many as are wanted, and settle those once they are handed on. What is
        over stays for the next reader.
        """
        written = []
        for message in messages:
            if self.is_done():
                break
            self._write(message)
            written.append(message)
        self._out.flush()
        if acknowledge:
            for message in written:
                await message.ack()

    def _write(self, message: Any) -> None:
        if self._json:
            self._out.record(message_fields(message), flush=False)
        elif self._with_subject:
            self._out.payload(message.subject.encode() + b"\t" + message.payload, flush=False)
        else:
            self._out.payload(message.payload, flush=False)
        if self._left is not None:
            self._left -= 1


async def _follow(
    settings: Settings,
    client: "tidewire.Client",
    stream: str | None,
    subjects: Sequence[str],
    options: dict[str, Any],
    printer: _Printer,
) -> None:
    """Receive until interrupted, or until there are enough."""
    events = client.events
    acknowledged = options["consumer"] is not None
    # No more than is wanted, so that nothing of a consumer's waits here in vain.
    window = min(printer.wanted or WINDOW_MAX, WINDOW_MAX)
    if acknowledged:
        assert stream is not None
        opening = events.consume(stream, options["consumer"], window_messages=window)
        what = f"consumer {options['consumer']} of {stream}"
    elif stream is not None:
        start = options["start"] if options["start"] is not None else "new"
        opening = events.read(stream, start=start, subjects=list(subjects))
        what = f"stream {stream} from {start}"
    else:
        opening = events.subscribe(
            list(subjects),
            group=options["group"],
            on_lost=lambda lost: settings.note(f"lost {lost} messages: this reader is too slow"),
        )
        what = " ".join(subjects)
    async with opening as subscription:
        settings.note(f"receiving {what}")
        async for batch in subscription.batches():
            await printer.write(batch, acknowledge=acknowledged)
            if printer.is_done():
                return


async def _read_to_end(
    client: "tidewire.Client",
    stream: str,
    subjects: Sequence[str],
    options: dict[str, Any],
    printer: _Printer,
) -> None:
    """Read what is stored, by single calls: an empty answer is the end."""
    following: Any = options["start"] if options["start"] is not None else "all"
    while not printer.is_done():
        wanted = min(printer.wanted or FETCH_MESSAGES, FETCH_MESSAGES)
        if options["consumer"] is not None:
            messages = await client.events.fetch(stream, options["consumer"], messages_max=wanted)
        else:
            messages, following = await client.events.fetch_from(
                stream, start=following, subjects=list(subjects), messages_max=wanted
            )
        if not messages:
            return
        await printer.write(messages, acknowledge=options["consumer"] is not None)


async def _stream_of(client: "tidewire.Client", subjects: Sequence[str]) -> str:
    """The one stream that keeps these subjects."""
    from tidewire.wire.subject import overlaps

    found = [
        stream.config.name
        async for stream in client.events.streams()
        if any(overlaps(kept, asked) for kept in stream.config.subjects for asked in subjects)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise click.ClickException(
            f"no stream keeps {' '.join(subjects)}; "
            f"`tidewire stream add NAME {subjects[0]!r}` makes one."
        )
    raise click.ClickException(f"several streams keep it; choose by --stream: {', '.join(found)}.")


def message_fields(message: Any) -> dict[str, object]:
    """A message in JSON."""
    fields: dict[str, object] = {"subject": message.subject, **payload_fields(message.payload)}
    if message.headers:
        fields["headers"] = [
            {"key": key, **payload_fields(value, "value")} for key, value in message.headers
        ]
    if message.stream:
        fields |= {"stream": message.stream, "sequence": message.sequence}
    if message.attempt:
        fields["attempt"] = message.attempt
    if message.time is not None:
        fields["time"] = message.time
    if message.signed_by:
        fields["signed_by"] = message.signed_by
    if message.dead_letter is not None:
        fields["dead_letter"] = message.dead_letter
    return fields
