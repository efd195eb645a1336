"""Streams and consumers: what may be said of them, and how they are listed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.events import Events, event_service
from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[Events]:
    async with event_service(tmp_path) as running:
        yield running


async def test_defaults_are_filled_in_and_shown(events: Events) -> None:
    """What is not said is what the contract says, and to make the same again succeeds."""
    stream = await events.create_stream("S", "s.>")
    consumer = await events.create_consumer("S", "c", start=None)

    config = stream.config
    assert common_pb2.DURABILITY_FSYNC == config.durability
    assert (120, event_pb2.DISCARD_OLD) == (config.dedup_window.seconds, config.discard)
    assert (30, 1000) == (consumer.config.ack_wait.seconds, consumer.config.ack_pending_max)
    assert "next" == consumer.config.start.WhichOneof("position")
    assert stream.config == (await events.create_stream("S", "s.>")).config
    await events.create_consumer("S", "c", start=None)
    with pytest.raises(errors.StreamExists):
        await events.create_stream("S", "t.>")
    with pytest.raises(errors.ConsumerExists):
        await events.create_consumer("S", "c")
    with pytest.raises(errors.SubjectOverlap):
        await events.create_stream("T", "s.x")


@pytest.mark.parametrize(
    ("config", "error", "field"),
    [
        ({"name": "a.b"}, errors.InvalidSubject, "config.name"),
        ({"subjects": []}, errors.InvalidArgument, "config.subjects"),
        ({"subjects": ["x"] * 65}, errors.InvalidArgument, "config.subjects"),
        ({"subjects": ["ok", ">.x"]}, errors.InvalidSubject, "config.subjects[1]"),
        ({"age_max": {"seconds": -1}}, errors.InvalidArgument, "config.age_max"),
        ({"dedup_window": {"seconds": 90_000}}, errors.InvalidArgument, "config.dedup_window"),
        ({"discard": 9}, errors.InvalidArgument, "config.discard"),
        ({"durability": 9}, errors.InvalidArgument, "config.durability"),
        ({"durability": 4}, errors.DurabilityUnavailable, None),
        ({"description": "x" * 1025}, errors.InvalidArgument, "config.description"),
    ],
)
async def test_bad_streams_are_refused(
    events: Events, config: dict[str, Any], error: type[errors.TidewireError], field: str | None
) -> None:
    """Each field has its bounds, and the error names it."""
    made = event_pb2.StreamConfig(**{"name": "S", "subjects": ["s"], **config})
    with pytest.raises(error) as caught:
        await events.call("CreateStream", event_pb2.CreateStreamRequest(config=made))

    assert field is None or field in caught.value.fields


@pytest.mark.parametrize(
    ("config", "error", "field"),
    [
        ({"name": ""}, errors.InvalidSubject, "config.name"),
        ({"subjects": ["x."]}, errors.InvalidSubject, "config.subjects[0]"),
        ({"start": {"sequence": 0}}, errors.InvalidArgument, "config.start.sequence"),
        ({"ack_wait": {"nanos": 1}}, errors.InvalidArgument, "config.ack_wait"),
        ({"backoff": [{}] * 65}, errors.InvalidArgument, "config.backoff"),
        ({"backoff": [{"seconds": -1}]}, errors.InvalidArgument, "config.backoff[0]"),
        ({"ack_pending_max": 65_537}, errors.InvalidArgument, "config.ack_pending_max"),
        ({"dead_letter_stream": "S"}, errors.InvalidArgument, "config.dead_letter_stream"),
        ({"dead_letter_stream": "NONE"}, errors.StreamNotFound, "config.dead_letter_stream"),
    ],
)
async def test_bad_consumers_are_refused(
    events: Events, config: dict[str, Any], error: type[errors.TidewireError], field: str
) -> None:
    """Each field has its bounds, and the error names it."""
    await events.create_stream("S", "s")
    with pytest.raises(error) as caught:
        await events.create_consumer("S", **{"name": "c", **config})

    assert field in caught.value.fields


async def test_lists_come_by_pages(events: Events) -> None:
    """Every stream and consumer is listed once, by name, however small the pages."""
    names = [f"S{i}" for i in (3, 1, 4, 0, 2)]
    for name in names:
        await events.create_stream(name, f"{name}.>")
        await events.create_consumer("S3", f"c{name}")
    streams, consumers, token = [], [], ""
    while True:
        request: Any = event_pb2.ListStreamsRequest(page_size=2, page_token=token)
        page = await events.call("ListStreams", request)
        streams += [stream.config.name for stream in page.streams]
        token = page.next_page_token
        if not token:
            break
    while True:
        request = event_pb2.ListConsumersRequest(stream="S3", page_size=3, page_token=token)
        page = await events.call("ListConsumers", request)
        consumers += [consumer.config.name for consumer in page.consumers]
        token = page.next_page_token
        if not token:
            break

    assert sorted(names) == streams
    assert [f"c{name}" for name in sorted(names)] == consumers
    with pytest.raises(errors.InvalidArgument):
        await events.call("ListStreams", event_pb2.ListStreamsRequest(page_size=1001))


async def test_what_is_not_there(events: Events) -> None:
    """Names that nobody made are told apart."""
    with pytest.raises(errors.StreamNotFound):
        await events.call("GetStream", event_pb2.GetStreamRequest(name="S"))
    with pytest.raises(errors.StreamNotFound):
        await events.call("PurgeStream", event_pb2.PurgeStreamRequest(name="S"))
    await events.create_stream("S", "s")
    for method in ("GetConsumer", "DeleteConsumer"):
        request = getattr(event_pb2, f"{method}Request")(stream="S", consumer="c")
        with pytest.raises(errors.ConsumerNotFound):
            await events.call(method, request)


async def test_figures_of_a_consumer_nobody_uses(events: Events) -> None:
    """What is pending is counted from what is stored, also without subscriptions."""
    await events.create_stream("S", "s.>")
    await events.create_consumer("S", "c", subjects=["s.a"])
    for i in range(5):
        await events.publish("s.a" if i % 2 else "s.b", [b"x"] * 3)

    consumer = await events.consumer("S", "c")

    assert (6, 0, 0) == (consumer.pending, consumer.ack_pending, consumer.subscriptions)
