"""Signing and verifying at the seams: what is sent again, and what a server may say of a batch."""

import asyncio
import time
from collections.abc import Callable

import pytest

from support.scripted import Conversation, ScriptedEvents, client_of, events_of, eventually, idle
from support.signing import private_pem, public_pem
from tidewire import errors
from tidewire.signing import ReplayMemory, Signer, Verifier
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import decode_payloads, encode_payloads

KEY = private_pem()
WAIT_S = 20.0


def verifier() -> Verifier:
    return Verifier({"k": public_pem(KEY)})


def delivery(first: int, *payloads: bytes, signer: Signer | None = None) -> event_pb2.Delivery:
    """A signed delivery from a stream."""
    batch = encode_payloads("a", list(payloads))
    (signer or Signer("k", KEY)).sign(batch)
    made = event_pb2.Delivery(batch=batch, stream="s", first_sequence=first)
    made.time.GetCurrentTime()
    return made


class Taker:
    """Takes batches; refuses the first try of one, and cuts where it is told to."""

    def __init__(self, cut_after: int | None = None, refuse: bytes = b"") -> None:
        self.batches: list[common_pb2.Batch] = []
        self._cut_after = cut_after
        self._refuse = refuse

    async def serve(self, conversation: Conversation) -> None:
        """Answer every batch."""
        await conversation.greet()
        while (request := await conversation.read()) is not None:
            item = request.publish
            self.batches.append(item.request.batch)
            if len(self.batches) == self._cut_after:
                await conversation.cut()
            result = event_pb2.PublishResult(publish_id=item.publish_id)
            if self._refuse and self._refuse in decode_payloads(item.request.batch):
                self._refuse = b""
                problem = errors.Overloaded("later", retry_after_s=0.001)
                result.error.CopyFrom(problem.to_status())
            else:
                result.response.SetInParent()
            await conversation.write(results=event_pb2.PublishResults(result=[result]))


async def published(taker: Taker) -> Signer:
    """Publish five batches of two messages through one publisher that signs."""
    signer = Signer("k", KEY)
    events = ScriptedEvents(publish=[taker.serve])
    async with (
        client_of(events_of(events), signer=signer) as client,
        client.events.publisher() as publisher,
    ):
        for number in range(5):
            for part in b"xy":
                await publisher.publish("a", b"%d%c" % (number, part))
            await publisher.flush()
    return signer


async def test_a_batch_is_signed_once_however_many_messages() -> None:
    """Ten messages in five batches are five signatures, all good."""
    taker = Taker()
    signer = await published(taker)
    check = verifier()

    assert ["k"] * 5 == [check.check(batch, check.memory("r")) for batch in taker.batches]
    assert (5, 10) == (signer.signed, sum(batch.count for batch in taker.batches))


async def test_what_is_sent_again_is_the_same_publish() -> None:
    """After a break a batch is signed anew and still counts as one that was seen."""
    taker = Taker(cut_after=3)
    await published(taker)
    first, second = taker.batches[2], taker.batches[3]
    check = verifier()
    memory = check.memory()

    assert first.body == second.body
    assert "k" == check.check(first, memory)
    with pytest.raises(errors.Replayed):
        check.check(second, memory)


async def test_a_batch_with_new_numbers_is_signed_for_them() -> None:
    """What is put back into its lane gets another epoch, and a signature that fits it."""
    taker = Taker(refuse=b"2x")
    await published(taker)
    check = verifier()

    assert {1, 2} == {batch.producer_epoch for batch in taker.batches}
    assert ["k"] * 6 == [check.check(batch) for batch in taker.batches]


def reordered(made: event_pb2.Delivery) -> None:
    """Messages of the body in another order."""
    made.batch.selected.add(first=2, last=2)
    made.batch.selected.add(first=0, last=1)


def repeated(made: event_pb2.Delivery) -> None:
    """A message twice."""
    made.batch.selected.add(first=0, last=1)
    made.batch.selected.add(first=1, last=2)


def invented(made: event_pb2.Delivery) -> None:
    """A message that is not in the body."""
    made.batch.selected.add(first=1, last=3)


def backwards(made: event_pb2.Delivery) -> None:
    """Sequences of a stream backwards."""
    made.included.add(first=9, last=9)
    made.included.add(first=7, last=8)


@pytest.mark.parametrize("lie", [reordered, repeated, invented, backwards])
async def test_a_server_cannot_reorder_what_was_signed(
    lie: Callable[[event_pb2.Delivery], None],
) -> None:
    """It can leave messages out; anything else is refused, and reading goes on behind it."""
    lied = delivery(7, b"1", b"2", b"3")
    lie(lied)
    honest = delivery(20, b"4", b"5", b"6")
    honest.batch.selected.add(first=0, last=0)
    honest.batch.selected.add(first=2, last=2)
    starts: list[int] = []

    async def serve(conversation: Conversation) -> None:
        opened = await conversation.greet()
        starts.append(opened.ordered.start.sequence)
        if len(starts) == 1:
            await conversation.write(delivery=lied)
            await conversation.write(delivery=honest)
            await conversation.read()
            await conversation.cut()
        await idle(conversation)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events), verifier=verifier()) as client,
        client.events.read("s", window_messages=4) as subscription,
    ):
        got = [(await subscription.next(timeout_s=WAIT_S)).payload for _ in range(2)]
        refused, why = subscription.refused, subscription.last_refusal
        await eventually(lambda: len(starts) == 2)

    assert [b"4", b"6"] == got
    assert refused >= 3
    assert isinstance(why, errors.SignatureInvalid)
    assert [0, 22] == starts


async def test_nothing_of_a_refused_body_is_read() -> None:
    """A body that claims to be huge is refused for its signature, before it is decompressed."""
    bomb = delivery(1, b"x")
    bomb.batch.codec = common_pb2.CODEC_ZSTD
    bomb.batch.raw_size = 1 << 31

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(delivery=bomb)
        await conversation.write(delivery=delivery(2, b"y"))
        await idle(conversation)

    async def open_(check: Verifier | None) -> tuple[int, int]:
        events = ScriptedEvents(subscribe=[serve])
        async with (
            client_of(events_of(events), verifier=check) as client,
            client.events.read("s") as subscription,
        ):
            assert b"y" == (await subscription.next(timeout_s=WAIT_S)).payload
            return subscription.refused, subscription.corrupt

    assert (1, 0) == await open_(verifier())
    assert (0, 1) == await open_(None)  # control: it was tried


async def test_a_slow_reader_refuses_nothing_that_waited() -> None:
    """The time of a batch is when the server took it, not when the application comes to it."""
    now_s = time.time()
    check = Verifier({"k": public_pem(KEY)}, clock=lambda: now_s)
    arrived = asyncio.Event()

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(delivery=delivery(0, b"x"))
        arrived.set()
        await idle(conversation)

    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events), verifier=check) as client,
        client.events.subscribe("a") as subscription,
    ):
        await arrived.wait()
        await eventually(lambda: subscription.waiting == 1)
        now_s += 3_600.0
        message = await subscription.next(timeout_s=WAIT_S)

    assert (b"x", "k") == (message.payload, message.signed_by)


async def test_what_is_refused_by_its_age_does_not_depend_on_the_reader() -> None:
    """The control of the test above: an hour between signing and taking is a replay."""
    memory = ReplayMemory(30.0, 10, 0.0)
    with pytest.raises(errors.Replayed):
        memory.admit("a", None, signed_s=1_000.0, taken_s=4_600.0)
