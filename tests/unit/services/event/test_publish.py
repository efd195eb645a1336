"""Publishing, one batch or pipelined, over gRPC on the real engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.events import Events, event_service, payloads
from tidewire import errors
from tidewire.errors import from_status
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import encode_payloads
from tidewire_server.core import ServiceLimits
from tidewire_server.services.event.publish import CommitPool


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[Events]:
    async with event_service(tmp_path) as running:
        await running.create_stream("ORDERS", "orders.>")
        yield running


async def test_sequences_are_dense(events: Events) -> None:
    """Every stored message has the next sequence of its stream."""
    ranges = [(await events.publish("orders.eu", [b"x"] * n)).stored for n in (1, 3, 2)]

    assert [(1, 1), (2, 4), (5, 6)] == [(stored.first, stored.last) for stored in ranges]


async def test_a_message_id_is_stored_once(events: Events) -> None:
    """A repeated batch gives the first copy's sequences; a part that is new is stored."""
    first = await events.publish("orders.eu", [b"a", b"b"], batch_message_ids=["1", "2"])
    again = await events.publish("orders.eu", [b"a", b"b"], batch_message_ids=["1", "2"])
    part = await events.publish("orders.eu", [b"b", b"c"], batch_message_ids=["2", "3"])

    assert (0, 2, 1) == (first.duplicates, again.duplicates, part.duplicates)
    assert first.stored == again.stored
    assert (3, 3) == (part.stored.first, part.stored.last)
    ordered = await events.ordered("ORDERS", start=event_pb2.StartPosition(sequence=3))
    assert [b"c"] == payloads(await ordered.delivery())


async def test_the_last_sequence_may_be_demanded(events: Events) -> None:
    """Who expects another last sequence stores nothing and is told."""
    await events.publish("orders.eu", [b"a"], expected_last_sequence=0)
    with pytest.raises(errors.WrongLastSequence):
        await events.publish("orders.eu", [b"b"], expected_last_sequence=0)
    stored = (await events.publish("orders.eu", [b"b"], expected_last_sequence=1)).stored

    assert 2 == stored.first


async def test_bad_batches_are_refused(events: Events) -> None:
    """What does not fit its header, or the limits, is refused before anything is done with it."""
    with pytest.raises(errors.ChecksumMismatch):
        await events.publish("orders.eu", [b"a"], batch_crc32c=1)
    with pytest.raises(errors.InvalidSubject):
        await events.publish("orders.*", [b"a"])
    with pytest.raises(errors.InvalidArgument):
        await events.publish("orders.eu", [b"a"], durability=17)
    with pytest.raises(errors.CodecUnsupported):
        await events.publish("orders.eu", [b"a"], batch_codec=9)


async def test_a_paused_stream_takes_nothing(events: Events) -> None:
    """A pause refuses publishes, and ends."""
    config = event_pb2.StreamConfig(name="ORDERS", subjects=["orders.>"], paused=True)
    await events.stub.UpdateStream(event_pb2.UpdateStreamRequest(config=config))
    with pytest.raises(errors.StreamPaused):
        await events.publish("orders.eu", [b"a"])
    config.paused = False
    await events.stub.UpdateStream(event_pb2.UpdateStreamRequest(config=config))

    assert 1 == (await events.publish("orders.eu", [b"a"])).stored.first


async def test_pipelined_publishes_keep_their_order(events: Events) -> None:
    """
    Stored and live batches, and refused ones, each get their outcome; the order is the publisher's.
    """
    publication = await events.publisher()
    for i in range(1, 101):
        await publication.publish(i, encode_payloads("orders.eu", [b"%d" % i]))
    await publication.publish(101, encode_payloads("nobody.listens", [b"x"]))
    broken = encode_payloads("orders.eu", [b"x"])
    broken.crc32c += 1
    await publication.publish(102, broken)
    await publication.publish(103, encode_payloads("orders.eu", [b"103"]))

    results = await publication.results(103)

    assert [*range(1, 101), 101] == [
        results[i].response.stored.first for i in [*range(1, 101), 103]
    ]
    assert common_pb2.DURABILITY_MEMORY == results[101].response.durability
    assert isinstance(from_status(results[102].error), errors.ChecksumMismatch)
    await publication.call.done_writing()
    with pytest.raises(EOFError):
        await publication.next()


async def test_quiet_tells_failures_only(events: Events) -> None:
    """A quiet stream says nothing of what succeeds."""
    publication = await events.publisher(quiet=True)
    await publication.publish(1, encode_payloads("orders.eu", [b"a"]))
    await publication.publish(2, encode_payloads("other", [b"a"]), durability=3)
    await publication.publish(3, encode_payloads("orders.eu", [b"a"]))
    await publication.call.done_writing()

    results = await publication.results(1)

    assert [2] == list(results)
    assert isinstance(from_status(results[2].error), errors.NoStream)
    with pytest.raises(EOFError):
        await publication.next()
    assert 2 == events.core.engine.last_sequence("ORDERS")


async def test_publish_ids_increase(events: Events) -> None:
    """A number that does not increase ends the stream."""
    publication = await events.publisher(quiet=True)
    for publish_id in (2, 2):
        await publication.publish(publish_id, encode_payloads("s", [b"a"]))
    with pytest.raises(errors.InvalidArgument) as caught:
        await publication.next()

    assert "publish.publish_id" in caught.value.fields


async def test_credit_grows_with_what_is_settled_and_is_enforced(tmp_path: Path) -> None:
    """The credit is a total: it grows as publishes are settled, and to pass it ends the stream."""
    limits = ServiceLimits(publish_pending_messages_max=10)
    async with event_service(tmp_path, limits=limits) as events:
        publication = await events.publisher(quiet=True)
        until = publication.opened.credit.messages_until
        assert 10 == until
        for publish_id in range(1, 51):
            while publish_id > until:
                until = (await publication.next()).credit.messages_until
            await publication.publish(publish_id, encode_payloads("s", [b"a"]))
        assert until <= 50 + 10


async def test_to_pass_the_credit_ends_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is settled there is no more credit, and to publish without ends the stream."""
    limits = ServiceLimits(publish_pending_messages_max=10)
    async with event_service(tmp_path, limits=limits) as events:
        await events.create_stream("S", "s")
        monkeypatch.setattr(CommitPool, "submit", lambda *_: None)
        publication = await events.publisher()
        for publish_id in range(1, 4):
            await publication.publish(publish_id, encode_payloads("s", [b"a"] * 9))
        with pytest.raises(errors.CreditExceeded):
            await publication.results(3)


async def test_publishes_that_travel_together_have_an_outcome_each(events: Events) -> None:
    """A refused one in the middle stops none; the server says that it takes them so."""
    publication = await events.publisher()
    batches = [encode_payloads("orders.eu", [b"%d" % i]) for i in range(1, 6)]
    batches[2].crc32c += 1
    batches[3].subject = "nobody.listens"
    items = [
        event_pb2.PublishItem(publish_id=i, request=event_pb2.PublishRequest(batch=batch))
        for i, batch in enumerate(batches, 1)
    ]
    several = event_pb2.PublishItems(item=items)
    await publication.call.write(event_pb2.PublishStreamRequest(several=several))

    results = await publication.results(5)

    assert [1, 2, 3] == [results[i].response.stored.first for i in (1, 2, 5)]
    assert isinstance(from_status(results[3].error), errors.ChecksumMismatch)
    assert common_pb2.DURABILITY_MEMORY == results[4].response.durability


async def test_publish_ids_increase_within_a_request(events: Events) -> None:
    """What travels together obeys the same rules."""
    publication = await events.publisher()
    request = event_pb2.PublishRequest(batch=encode_payloads("orders.eu", [b"x"]))
    items = [event_pb2.PublishItem(publish_id=i, request=request) for i in (1, 1)]
    several = event_pb2.PublishItems(item=items)
    await publication.call.write(event_pb2.PublishStreamRequest(several=several))

    with pytest.raises(errors.InvalidArgument):
        while True:
            await publication.next()
