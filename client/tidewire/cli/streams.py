"""``tidewire stream`` and ``tidewire consumer``: durable streams and those who read them."""

from typing import Any

import click

from tidewire.cli.groups import Group
from tidewire.cli.output import Output
from tidewire.cli.parameters import (
    DURABILITIES,
    SECONDS,
    SIZE,
    START,
    confirm,
    duration,
    joined,
    long,
    when,
)
from tidewire.cli.settings import Settings, connection_options, pass_settings

PAGE: int = 100


@click.group(cls=Group)
def stream() -> None:
    """Make, list and delete durable streams."""


@stream.command(
    epilog="""\b
Examples:
  tidewire stream add weather 'weather.>'
  tidewire stream add orders 'orders.*' 'returns.*' --age 7d --bytes 10g
"""
)
@click.argument("name")
@click.argument("subjects", nargs=-1, required=True)
@click.option("--messages", type=click.IntRange(0), default=0, help="Most messages kept.")
@click.option("--bytes", "bytes_max", type=SIZE, default=0, help="Most bytes kept, such as 10g.")
@click.option("--age", type=SECONDS, help="Oldest age kept, such as 7d.")
@click.option("--refuse-new", is_flag=True, help="At a limit refuse new messages, drop none.")
@click.option("--dedup-window", type=SECONDS, help="Time a message id is stored once.")
@click.option("--durability", type=click.Choice(DURABILITIES), help="Level of acknowledgements.")
@click.option("--description", default="", help="For people.")
@connection_options
@pass_settings
def add(settings: Settings, /, name: str, subjects: tuple[str, ...], **options: Any) -> None:
    """Make stream NAME that keeps what is published on SUBJECTS (wildcards * and >)."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import common_pb2, event_pb2

    config = event_pb2.StreamConfig(
        name=name,
        subjects=subjects,
        messages_max=options["messages"],
        bytes_max=options["bytes_max"],
        description=options["description"],
        discard=event_pb2.DISCARD_NEW if options["refuse_new"] else event_pb2.DISCARD_OLD,
    )
    if options["age"] is not None:
        config.age_max.CopyFrom(duration(options["age"]))
    if options["dedup_window"] is not None:
        config.dedup_window.CopyFrom(duration(options["dedup_window"]))
    if options["durability"]:
        name_of_level = f"DURABILITY_{options['durability'].upper()}"
        config.durability = common_pb2.Durability.Value(name_of_level)

    async def work(caller: Caller) -> Any:
        request = event_pb2.CreateStreamRequest(config=config)
        return await caller.call(_events(caller).CreateStream, request)

    _show_stream(settings, run_calls(settings, work).stream)


@stream.command(
    "list", epilog="\b\nExamples:\n  tidewire stream list\n  tidewire stream list --json"
)
@connection_options
@pass_settings
def list_streams(settings: Settings) -> None:
    """List the streams."""
    from tidewire.cli.session import run_calls

    streams = run_calls(settings, fetch_streams)
    out = Output()
    if settings.json:
        for one in streams:
            out.record(one)
        return
    out.table(
        ("name", "subjects", "messages", "bytes", "first", "last", "consumers"),
        [
            (
                one.config.name,
                joined(one.config.subjects),
                one.state.messages,
                one.state.bytes,
                one.state.first_sequence,
                one.state.last_sequence,
                one.state.consumers,
            )
            for one in streams
        ],
    )


@stream.command(epilog="\b\nExamples:\n  tidewire stream info weather")
@click.argument("name")
@connection_options
@pass_settings
def info(settings: Settings, name: str) -> None:
    """Show the configuration and the state of stream NAME."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import event_pb2

    async def work(caller: Caller) -> Any:
        return await caller.call(_events(caller).GetStream, event_pb2.GetStreamRequest(name=name))

    _show_stream(settings, run_calls(settings, work).stream)


@stream.command(epilog="\b\nExamples:\n  tidewire stream delete weather --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@pass_settings
def delete(settings: Settings, name: str, yes: bool) -> None:
    """Delete stream NAME with its messages and consumers."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import event_pb2

    confirm(f"Delete stream {name} with all its messages and consumers?", yes)

    async def work(caller: Caller) -> Any:
        return await caller.call(
            _events(caller).DeleteStream, event_pb2.DeleteStreamRequest(name=name)
        )

    _tell_deleted(settings, run_calls(settings, work).messages)


@stream.command(epilog="\b\nExamples:\n  tidewire stream purge weather --through 500")
@click.argument("name")
@click.option("--through", type=click.IntRange(1), help="Last sequence to delete; else all.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@pass_settings
def purge(settings: Settings, name: str, through: int | None, yes: bool) -> None:
    """Delete messages of stream NAME; its sequences go on."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import event_pb2

    which = f"the messages up to sequence {through}" if through else "all messages"
    confirm(f"Delete {which} of stream {name}?", yes)

    async def work(caller: Caller) -> Any:
        request = event_pb2.PurgeStreamRequest(name=name, through=through or 0)
        return await caller.call(_events(caller).PurgeStream, request)

    _tell_deleted(settings, run_calls(settings, work).messages)


@click.group(cls=Group)
def consumer() -> None:
    """Make, list and delete durable consumers of a stream."""


@consumer.command(
    "add",
    epilog="""\b
Examples:
  tidewire consumer add weather reports
  tidewire consumer add orders billing --subject 'orders.*' --deliveries 5 --dead-letters failed
""",
)
@click.argument("stream_name", metavar="STREAM")
@click.argument("name")
@click.option("--subject", "subjects", multiple=True, help="Only these subjects; may be repeated.")
@click.option("--from", "start", type=START, default="all", show_default=True, help="First one.")
@click.option("--ack-wait", type=SECONDS, default=30.0, show_default=True, help="Time to settle.")
@click.option("--backoff", type=SECONDS, multiple=True, help="Wait before the next delivery.")
@click.option("--deliveries", type=click.IntRange(0), default=0, help="Most deliveries of one.")
@click.option("--dead-letters", default="", metavar="STREAM", help="Stream for those given up.")
@click.option("--ack-pending", type=click.IntRange(0), default=0, help="Most unsettled messages.")
@connection_options
@pass_settings
def add_consumer(settings: Settings, /, stream_name: str, name: str, **options: Any) -> None:
    """Make consumer NAME of STREAM: it remembers what was settled."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import event_pb2

    config = event_pb2.ConsumerConfig(
        name=name,
        subjects=options["subjects"],
        start=start_position(options["start"]),
        ack_wait=duration(options["ack_wait"]),
        backoff=[duration(wait) for wait in options["backoff"]],
        deliveries_max=options["deliveries"],
        dead_letter_stream=options["dead_letters"],
        ack_pending_max=options["ack_pending"],
    )

    async def work(caller: Caller) -> Any:
        request = event_pb2.CreateConsumerRequest(stream=stream_name, config=config)
        return await caller.call(_events(caller).CreateConsumer, request)

    _show_consumer(settings, run_calls(settings, work).consumer)


@consumer.command("list", epilog="\b\nExamples:\n  tidewire consumer list weather")
@click.argument("stream_name", metavar="STREAM")
@connection_options
@pass_settings
def list_consumers(settings: Settings, stream_name: str) -> None:
    """List the consumers of STREAM."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import event_pb2

    async def work(caller: Caller) -> list[event_pb2.Consumer]:
        found: list[event_pb2.Consumer] = []
        request = event_pb2.ListConsumersRequest(stream=stream_name, page_size=PAGE)
        while True:
            page = await caller.call(_events(caller).ListConsumers, request)
            found.extend(page.consumers)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    consumers = run_calls(settings, work)
    out = Output()
    if settings.json:
        for one in consumers:
            out.record(one)
        return
    out.table(
        ("name", "settled through", "unsettled", "pending", "given up", "subscriptions"),
        [
            (
                one.config.name,
                one.state.ack_floor,
                one.ack_pending,
                one.pending,
                one.state.given_up,
                one.subscriptions,
            )
            for one in consumers
        ],
    )


@consumer.command("info", epilog="\b\nExamples:\n  tidewire consumer info weather reports")
@click.argument("stream_name", metavar="STREAM")
@click.argument("name")
@connection_options
@pass_settings
def consumer_info(settings: Settings, stream_name: str, name: str) -> None:
    """Show the configuration and the state of consumer NAME of STREAM."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import event_pb2

    async def work(caller: Caller) -> Any:
        request = event_pb2.GetConsumerRequest(stream=stream_name, consumer=name)
        return await caller.call(_events(caller).GetConsumer, request)

    _show_consumer(settings, run_calls(settings, work).consumer)


@consumer.command(
    "delete", epilog="\b\nExamples:\n  tidewire consumer delete weather reports --yes"
)
@click.argument("stream_name", metavar="STREAM")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@pass_settings
def delete_consumer(settings: Settings, stream_name: str, name: str, yes: bool) -> None:
    """Delete consumer NAME of STREAM; the messages stay."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import event_pb2

    confirm(f"Delete consumer {name} of {stream_name}, and what it remembers?", yes)

    async def work(caller: Caller) -> Any:
        request = event_pb2.DeleteConsumerRequest(stream=stream_name, consumer=name)
        return await caller.call(_events(caller).DeleteConsumer, request)

    run_calls(settings, work)
    settings.note("deleted")


async def fetch_streams(caller: Any) -> list[Any]:
    """All streams, page by page."""
    from tidewire.v1 import event_pb2

    found: list[Any] = []
    request = event_pb2.ListStreamsRequest(page_size=PAGE)
    while True:
        page = await caller.call(_events(caller).ListStreams, request)
        found.extend(page.streams)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


def start_position(start: Any) -> Any:
    """A start as it travels; see `tidewire.cli.parameters.Start`."""
    from google.protobuf.timestamp_pb2 import Timestamp

    from tidewire.v1.event_pb2 import StartPosition

    if start == "all":
        return StartPosition(all=True)
    if start == "new":
        return StartPosition(next=True)
    if start == "last":
        return StartPosition(last=True)
    if isinstance(start, int):
        return StartPosition(sequence=start)
    time = Timestamp()
    time.FromDatetime(start)
    return StartPosition(time=time)


def _events(caller: Any) -> Any:
    from tidewire.v1.event_pb2_grpc import EventServiceStub

    return EventServiceStub(caller.channel)


def _show_stream(settings: Settings, one: Any) -> None:
    if settings.json:
        Output().record(one)
        return
    config, state = one.config, one.state
    listing: dict[str, object] = {
        "name": config.name,
        "subjects": joined(config.subjects),
        "messages": state.messages,
        "bytes": state.bytes,
        "sequences": f"{state.first_sequence} to {state.last_sequence}",
        "consumers": state.consumers,
        "created": when(one.created),
    }
    if config.messages_max:
        listing["messages kept"] = config.messages_max
    if config.bytes_max:
        listing["bytes kept"] = config.bytes_max
    if config.HasField("age_max"):
        listing["age kept"] = long(config.age_max.ToNanoseconds() / 1e9)
    if config.paused:
        listing["paused"] = "yes"
    for damaged in state.quarantined:
        listing["damaged"] = f"{damaged.first} to {damaged.last}"
    Output().listing(listing)


def _show_consumer(settings: Settings, one: Any) -> None:
    if settings.json:
        Output().record(one)
        return
    Output().listing(
        {
            "stream": one.stream,
            "name": one.config.name,
            "subjects": joined(one.config.subjects) or "all",
            "ack wait": long(one.config.ack_wait.ToNanoseconds() / 1e9),
            "settled through": one.state.ack_floor,
            "unsettled": one.ack_pending,
            "pending": one.pending,
            "given up": one.state.given_up,
            "subscriptions": one.subscriptions,
            "created": when(one.created),
        }
    )


def _tell_deleted(settings: Settings, messages: int) -> None:
    if settings.json:
        Output().record({"deleted_messages": messages})
    else:
        settings.note(f"deleted {messages} messages")
