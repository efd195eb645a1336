"""Live subscriptions over gRPC, on the real engine."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.events import Events, Subscription, event_service, payloads
from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import encode_payloads
from tidewire_server.services.event.allowance import Allowance
from tidewire_server.services.event.delivery import Response, live_response
from tidewire_server.services.event.live import SMALL_BYTES, TOGETHER_MAX, LiveBuffer


@pytest.fixture
async def events(tmp_path: Path) -> AsyncIterator[Events]:
    async with event_service(tmp_path) as running:
        yield running


async def test_what_is_published_reaches_who_listens(events: Events) -> None:
    """A batch without a stream is handed to every matching subscription, and the answer says so."""
    one = await events.live("orders.*")
    two = await events.live("orders.>", "orders.eu")
    other = await events.live("bills.>")

    response = await events.publish("orders.eu", [b"a", b"b"])

    assert 2 == response.receivers
    assert common_pb2.DURABILITY_MEMORY == response.durability
    assert not response.HasField("stored")
    for subscription in (one, two):
        delivery = await subscription.delivery()
        assert [b"a", b"b"] == payloads(delivery)
        assert 0 == delivery.first_sequence
    await events.publish("bills.eu", [b"c"])
    assert [b"c"] == payloads(await other.delivery())


async def test_a_group_shares_the_batches(events: Events) -> None:
    """Each batch goes to one member of a queue group, and to everybody outside of it."""
    members = [await events.live("jobs", group="workers") for _ in range(3)]
    outside = await events.live("jobs")

    responses = [await events.publish("jobs", [b"%d" % i]) for i in range(30)]

    assert {2} == {response.receivers for response in responses}
    for i in range(30):
        assert [b"%d" % i] == payloads(await outside.delivery())
    got = [payloads(await member.delivery())[0] for member in members for _ in range(10)]
    assert {b"%d" % i for i in range(30)} == set(got)


async def test_a_stored_batch_is_seen_live_only_when_durable(events: Events) -> None:
    """A subject that a stream takes reaches live subscriptions too, with the stream's name."""
    await events.create_stream("ORDERS", "orders.>")
    live = await events.live("orders.>")

    response = await events.publish("orders.eu", [b"a"])

    delivery = await live.delivery()
    assert "ORDERS" == delivery.stream == response.stream
    assert common_pb2.DURABILITY_FSYNC == response.durability
    assert (1, 1) == (response.stored.first, response.stored.last)


async def test_more_than_can_be_reached_is_refused(events: Events) -> None:
    """A level that no stream can give is an error, and nobody hears of the batch."""
    live = await events.live(">")
    for level in (common_pb2.DURABILITY_OS, common_pb2.DURABILITY_FSYNC):
        with pytest.raises(errors.NoStream):
            await events.publish("orders", [b"x"], durability=level)
    with pytest.raises(errors.DurabilityUnavailable):
        await events.publish("orders", [b"x"], durability=common_pb2.DURABILITY_QUORUM)
    with pytest.raises(errors.NoStream):
        await events.publish("orders", [b"x"], expected_last_sequence=0)
    with pytest.raises(errors.StreamNotFound):
        await events.publish("orders", [b"x"], expected_stream="ORDERS")
    await events.create_stream("ORDERS", "orders")
    with pytest.raises(errors.NoStream):
        await events.publish("bills", [b"x"], expected_stream="ORDERS")

    await events.publish("bills", [b"this one"])

    assert [b"this one"] == payloads(await live.delivery())


async def test_credit_is_respected(events: Events) -> None:
    """Without credit nothing is sent; a batch may go over, the next one waits."""
    live = await events.live("s", credit=None)
    for i in range(3):
        await events.publish("s", [b"%d" % i] * 2)
    await live.grant(1)
    assert [b"0"] * 2 == payloads(await live.delivery())
    await live.grant(2)  # two were sent: nothing more
    await live.grant(3)
    assert [b"1"] * 2 == payloads(await live.delivery())


async def test_bookmarks_when_idle(events: Events) -> None:
    """A subscription on which nothing happens shows that it lives."""
    live = await events.live("s", idle_bookmark={"nanos": 100_000_000})

    bookmark = (await live.of_kind("bookmark")).bookmark

    assert events.core.engine.epoch == bookmark.epoch


@pytest.mark.parametrize(
    ("open_", "error"),
    [
        ({}, errors.InvalidArgument),
        ({"live": {"subjects": []}}, errors.InvalidArgument),
        ({"live": {"subjects": ["a..b"]}}, errors.InvalidSubject),
        ({"live": {"subjects": ["a"], "group": "x.y"}}, errors.InvalidSubject),
        ({"live": {"subjects": ["a"]}, "client_id": "x" * 65}, errors.InvalidArgument),
        ({"live": {"subjects": ["a"]}, "idle_bookmark": {"nanos": 1}}, errors.InvalidArgument),
        ({"ordered": {"stream": "NONE"}}, errors.StreamNotFound),
        ({"consumer": {"stream": "NONE", "consumer": "c"}}, errors.StreamNotFound),
    ],
)
async def test_a_bad_open_is_refused(
    events: Events, open_: dict[str, Any], error: type[errors.TidewireError]
) -> None:
    """What cannot be opened is refused with a typed error."""
    with pytest.raises(error):
        await events.subscribe(**open_)


async def test_a_client_must_read_the_codecs_in_use(events: Events) -> None:
    """A client that cannot read every codec is told at once, not by a body it cannot read."""
    call = events.stub.Subscribe()
    open_ = event_pb2.SubscribeOpen(
        live=event_pb2.LiveSource(subjects=["s"]), codecs=[common_pb2.CODEC_LZ4]
    )
    await call.write(event_pb2.SubscribeRequest(open=open_))

    with pytest.raises(errors.CodecUnsupported):
        await Subscription(call).next()


async def test_open_comes_first_and_once(events: Events) -> None:
    """The order of requests is held."""
    call = events.stub.Subscribe()
    await call.write(event_pb2.SubscribeRequest(credit=common_pb2.Credit()))
    with pytest.raises(errors.ProtocolOrder):
        await Subscription(call).next()
    live = await events.live("s")
    await live.call.write(event_pb2.SubscribeRequest(open=event_pb2.SubscribeOpen()))
    with pytest.raises(errors.ProtocolOrder):
        await live.next()


async def test_a_cancelled_subscription_is_forgotten(events: Events) -> None:
    """When a client goes away, nothing of its subscription stays."""
    live = await events.live("s")
    assert 1 == (await events.publish("s", [b"x"])).receivers
    live.close()

    receivers = 1
    for _ in range(1000):  # the server hears of it when it gets to it
        receivers = (await events.publish("s", [b"x"])).receivers
        if not receivers:
            break
    assert 0 == receivers


def small(number: int, size: int = 1) -> Response:
    """A live delivery of one message."""
    return live_response(encode_payloads(f"s{number}", [b"x" * size]), time_ns=number)


def buffer_with(credit: int, messages_max: int = 1_000) -> LiveBuffer:
    """An empty buffer of a subscriber with credit for so many messages."""
    allowance = Allowance(common_pb2.Credit(messages_until=credit, bytes_until=1 << 40))
    return LiveBuffer(allowance, messages_max=messages_max, bytes_max=1 << 30)


def subjects(response: Response | None) -> list[str]:
    """Subjects of a response of one or of several deliveries."""
    assert isinstance(response, event_pb2.SubscribeResponse)
    if response.WhichOneof("kind") == "delivery":
        return [response.delivery.batch.subject]
    return [delivery.batch.subject for delivery in response.several.delivery]


def test_small_batches_leave_together_within_their_bounds() -> None:
    """In order, as many as one response may have; a large one leaves alone."""
    buffer = buffer_with(credit=1_000)
    for number in range(TOGETHER_MAX + 3):
        buffer.put(small(number), 1, 3)
    buffer.put(small(900, SMALL_BYTES + 1), 1, SMALL_BYTES + 4)
    buffer.put(small(901), 1, 3)

    taken = [subjects(buffer.pop_several(0.0)) for _ in range(4)]

    assert [TOGETHER_MAX, 3, 1, 1] == [len(each) for each in taken]
    assert [f"s{n}" for n in range(TOGETHER_MAX + 3)] == taken[0] + taken[1]
    assert [["s900"], ["s901"]] == taken[2:]
    assert buffer.pop_several(0.0) is None
    assert (0, 0) == (buffer.messages, buffer.bytes)


def test_what_is_long_beside_its_body_leaves_alone() -> None:
    """Message ids count: together they would be more than a subscriber takes in one response."""
    buffer = buffer_with(credit=1_000)
    for number in range(3):
        response = small(number)
        assert isinstance(response, event_pb2.SubscribeResponse)
        if number == 1:
            response.delivery.batch.message_ids.append("i" * 2 * SMALL_BYTES)
        buffer.put(response, 1, 3)

    assert [["s0"], ["s1"], ["s2"]] == [subjects(buffer.pop_several(0.0)) for _ in range(3)]


def test_together_they_cost_their_credit_each() -> None:
    """No more leaves than there is credit for, and the rest when there is more."""
    buffer = buffer_with(credit=5)
    for number in range(8):
        buffer.put(small(number), 1, 3)

    assert [f"s{n}" for n in range(5)] == subjects(buffer.pop_several(0.0))
    assert buffer.pop_several(0.0) is None
    buffer.allowance.grow(common_pb2.Credit(messages_until=100, bytes_until=1 << 40))
    assert ["s5", "s6", "s7"] == subjects(buffer.pop_several(0.0))


def test_what_was_lost_is_told_before_what_leaves_together() -> None:
    """The news of a gap comes by itself, then what is behind it."""
    buffer = buffer_with(credit=100, messages_max=3)
    for number in range(5):
        buffer.put(small(number), 1, 3)

    first = buffer.pop_several(0.0)
    assert isinstance(first, event_pb2.SubscribeResponse)
    assert 2 == first.lost.messages
    assert ["s2", "s3", "s4"] == subjects(buffer.pop_several(0.0))


async def test_only_who_takes_several_gets_them(events: Events) -> None:
    """Of two subscribers to many subjects, one that did not say so gets each by itself."""
    plain = await events.live("s.*")
    modern = await events.live("s.*", takes_several=True)
    publication = await events.publisher()
    items = [
        event_pb2.PublishItem(
            publish_id=n,
            request=event_pb2.PublishRequest(batch=encode_payloads(f"s.{n}", [b"%d" % n])),
        )
        for n in range(1, 21)
    ]
    several = event_pb2.PublishItems(item=items)
    await publication.call.write(event_pb2.PublishStreamRequest(several=several))

    assert [f"s.{n}" for n in range(1, 21)] == [
        (await plain.delivery()).batch.subject for _ in range(20)
    ]
    got: list[str] = []
    responses = 0
    while len(got) < 20:
        got += subjects(await modern.next())
        responses += 1
    assert [f"s.{n}" for n in range(1, 21)] == got
    assert responses < 20
