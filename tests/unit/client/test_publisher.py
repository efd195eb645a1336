"""The publisher: one batch a turn, within credit and memory, and again after a break."""

import asyncio

import pytest

from support.scripted import (
    Conversation,
    Scripted,
    ScriptedEvents,
    client_of,
    events_of,
    eventually,
    idle,
)
from tidewire.errors import (
    CodecUnsupported,
    ConnectionLost,
    DeadlineExceeded,
    InvalidSubject,
    MessageTooLarge,
    ProducerGap,
    StreamFull,
    TidewireError,
)
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import decode_payloads


class Store:
    """A stream as a server keeps it: producer sequences are looked at, what is stored is listed."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.batches: list[common_pb2.Batch] = []
        self.duplicates = 0
        self.refuse: dict[bytes, TidewireError] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def take(self, item: event_pb2.PublishItem) -> event_pb2.PublishResult:
        batch = item.request.batch
        self.batches.append(batch)
        payloads = decode_payloads(batch)
        epoch, following = self._seen.get(batch.producer_id, (0, 1))
        if batch.producer_epoch > epoch:
            epoch, following = batch.producer_epoch, 1
        if batch.producer_sequence > following:
            error: TidewireError = ProducerGap("a sequence is missing")
            return event_pb2.PublishResult(publish_id=item.publish_id, error=error.to_status())
        if batch.producer_sequence < following:
            self.duplicates += batch.count
            return self._stored(item, 1, batch.count)
        refused = self.refuse.pop(payloads[0], None)
        if refused is not None:
            return event_pb2.PublishResult(publish_id=item.publish_id, error=refused.to_status())
        self._seen[batch.producer_id] = (epoch, following + batch.count)
        first = len(self.payloads) + 1
        self.payloads.extend(payloads)
        return self._stored(item, first, 0)

    def _stored(
        self, item: event_pb2.PublishItem, first: int, duplicates: int
    ) -> event_pb2.PublishResult:
        stored = common_pb2.SequenceRange(first=first, last=first + item.request.batch.count - 1)
        response = event_pb2.PublishResponse(stream="s", stored=stored, duplicates=duplicates)
        return event_pb2.PublishResult(publish_id=item.publish_id, response=response)

    async def serve(self, conversation: Conversation) -> None:
        """Take and answer everything."""
        await conversation.greet()
        while (request := await conversation.read()) is not None:
            await answer(conversation, self.take(request.publish))


async def answer(conversation: Conversation, *results: event_pb2.PublishResult) -> None:
    await conversation.write(results=event_pb2.PublishResults(result=results))


def publishes(scripted: Scripted, call: int = 0) -> list[event_pb2.PublishItem]:
    return [
        request.publish
        for request in scripted.calls[call].requests
        if request.WhichOneof("kind") == "publish"
    ]


@pytest.mark.usefixtures("one_turn")
async def test_publishes_of_one_turn_share_a_batch() -> None:
    """Many publishes at once are one request for each subject, acknowledged one by one."""
    store = Store()
    events = ScriptedEvents(publish=[store.serve])
    async with client_of(events_of(events)) as client:
        publish = client.events.publish
        await publish("a", b"first")
        acks = await asyncio.gather(
            *(publish("a", str(number)) for number in range(50)),
            *(publish("b.c", str(number)) for number in range(50)),
        )

    assert [1, 50, 50] == [item.request.batch.count for item in publishes(events.publishing)]
    assert list(range(2, 102)) == sorted(ack.sequence for ack in acks)
    assert [str(number).encode() for number in range(50)] == store.payloads[1:51]


@pytest.mark.usefixtures("one_turn")
async def test_messages_gather_while_credit_is_used_up() -> None:
    """Without credit nothing is sent; what came meanwhile travels in one batch, within credit."""
    store = Store()
    granted = asyncio.Event()

    async def serve(conversation: Conversation) -> None:
        await conversation.greet(credit=common_pb2.Credit(messages_until=1, bytes_until=1 << 20))
        first = await conversation.read()
        await answer(conversation, store.take(first.publish))
        await granted.wait()
        await conversation.write(
            credit=common_pb2.Credit(messages_until=1_001, bytes_until=1 << 20)
        )
        while (request := await conversation.read()) is not None:
            await answer(conversation, store.take(request.publish))

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events)) as client, client.events.publisher() as publisher:
        await publisher.publish("a", b"first")
        await publisher.flush()
        for number in range(1_000):
            await publisher.publish("a", str(number).encode())
            if number % 100 == 0:
                await asyncio.sleep(0)
        before = len(publishes(events.publishing))
        granted.set()
        await publisher.flush()

        assert 1 == before
        assert [1, 1_000] == [item.request.batch.count for item in publishes(events.publishing)]
        assert 1_001 == publisher.published


async def test_a_publisher_waits_when_too_much_is_pending() -> None:
    """Memory is bounded: beyond the limit publish waits, and says so when nothing moves."""
    release = asyncio.Event()
    store = Store()

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        first = await conversation.read()
        await release.wait()
        await answer(conversation, store.take(first.publish))
        while (request := await conversation.read()) is not None:
            await answer(conversation, store.take(request.publish))

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events), timeout_s=1.0) as client:
        opening = client.events.publisher(pending_bytes_max=100_000)
        async with opening as publisher:
            with pytest.raises(DeadlineExceeded, match="not answered"):
                for _ in range(100):
                    await publisher.publish("a", bytes(5_000))
            pending = publisher.pending_bytes
            release.set()
            await publisher.flush()

            assert 50_000 < pending <= 100_000
            assert 0 == publisher.pending_bytes


async def test_batches_are_cut_to_the_credit() -> None:
    """A batch larger than all of the server's credit is cut, and every message is acknowledged."""
    store = Store()

    async def serve(conversation: Conversation) -> None:
        await conversation.greet(credit=common_pb2.Credit(messages_until=3, bytes_until=1 << 20))
        taken = 0
        while (request := await conversation.read()) is not None:
            taken += request.publish.request.batch.count
            await answer(conversation, store.take(request.publish))
            await conversation.write(
                credit=common_pb2.Credit(messages_until=taken + 3, bytes_until=1 << 20)
            )

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events)) as client:
        publish = client.events.publish
        acks = await asyncio.gather(
            *(publish("a", str(n), headers=[("n", str(n).encode())]) for n in range(10))
        )

    assert list(range(1, 11)) == [ack.sequence for ack in acks]
    assert [3, 3, 3, 1] == [batch.count for batch in store.batches]


@pytest.mark.usefixtures("one_turn")
async def test_large_batches_are_cut() -> None:
    """No batch passes the limit of a batch, unless it is one large message."""
    store = Store()
    events = ScriptedEvents(publish=[store.serve])
    async with client_of(events_of(events)) as client, client.events.publisher() as publisher:
        sizes = [100_000, 100_000, 100_000, 1_000_000, 10]
        for size in sizes:
            await publisher.publish("a", bytes(size))
        await publisher.flush()

    counts = [item.request.batch.count for item in publishes(events.publishing)]
    assert [2, 1, 1, 1] == counts
    assert sizes == [len(payload) for payload in store.payloads]


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("answered", [False, True])
async def test_a_break_neither_loses_nor_repeats(taken: int, answered: bool) -> None:
    """Batches a server had taken, answered or not, are stored once and in order after a break."""
    store = Store()

    async def break_off(conversation: Conversation) -> None:
        await conversation.greet()
        for _ in range(taken):
            request = await conversation.read()
            result = store.take(request.publish)
            if answered:
                await answer(conversation, result)
        await conversation.read()
        await conversation.cut()

    events = ScriptedEvents(publish=[break_off, break_off, store.serve])
    sent = [f"{number}".encode() for number in range(20)]
    async with client_of(events_of(events)) as client, client.events.publisher() as publisher:
        for payload in sent:
            await publisher.publish("a", payload)
            await eventually(lambda: not publisher.gathering)
        await publisher.flush()

        assert sent == store.payloads
        assert 20 == publisher.published
        assert 2 == publisher.reopened
        assert 0 == publisher.failed
    if taken and not answered:
        assert store.duplicates > 0  # control: something was sent twice


async def test_a_refused_batch_does_not_take_others_with_it() -> None:
    """What is refused is told; what followed it in its lane is stored, in order, exactly once."""
    store = Store()
    store.refuse[b"bad"] = StreamFull("the stream is full")
    release = asyncio.Event()

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        items = [(await conversation.read()).publish for _ in range(5)]
        await release.wait()
        # All are under way when the first answer comes.
        await answer(conversation, *map(store.take, items))
        while (request := await conversation.read()) is not None:
            await answer(conversation, store.take(request.publish))

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events)) as client, client.events.publisher() as publisher:
        for payload in (b"1", b"bad", b"2", b"3", b"4"):
            await publisher.publish("a", payload)
            await eventually(lambda: not publisher.gathering)
        await eventually(lambda: len(publishes(events.publishing)) == 5)
        release.set()
        with pytest.raises(StreamFull):
            await publisher.flush()
        await publisher.publish("a", b"5")
        await publisher.flush()

        assert [b"1", b"2", b"3", b"4", b"5"] == store.payloads
        assert 1 == publisher.failed
        assert {1, 2} == {batch.producer_epoch for batch in store.batches}


async def test_only_who_published_it_hears_of_a_refusal() -> None:
    """Of publishes that share the connection one fails, the others are acknowledged."""
    store = Store()
    store.refuse[b"bad"] = StreamFull("the stream is full")
    events = ScriptedEvents(publish=[store.serve])
    async with client_of(events_of(events)) as client:
        publish = client.events.publish
        good, bad = await asyncio.gather(
            publish("a", b"good"), publish("b", b"bad"), return_exceptions=True
        )
        after = await publish("b", b"after")

    assert not isinstance(good, BaseException)
    assert isinstance(bad, StreamFull)
    assert 2 == after.sequence


async def test_a_quiet_publisher_asks_for_no_results() -> None:
    """Without acknowledgements flushed means sent; refusals are told all the same."""
    got = asyncio.Event()

    async def serve(conversation: Conversation) -> None:
        opened = await conversation.greet()
        assert opened.quiet
        request = await conversation.read()
        assert "" == request.publish.request.batch.producer_id
        got.set()
        failed = StreamFull("the stream is full").to_status()
        result = event_pb2.PublishResult(publish_id=1, error=failed)
        await answer(conversation, result)
        await idle(conversation)

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events)) as client:
        publisher = await client.events.publisher(acknowledge=False)
        await publisher.publish("a", b"x")
        await publisher.flush()
        await got.wait()
        await eventually(lambda: publisher.failed == 1)
        with pytest.raises(StreamFull):
            await publisher.publish("b", b"y")


async def test_what_cannot_be_sent_is_refused_at_once() -> None:
    """Subjects, sizes and codecs are judged before anything travels."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet(
            codecs=[common_pb2.CODEC_NONE], limits=common_pb2.Limits(payload_bytes_max=100)
        )
        await idle(conversation)

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events)) as client:
        async with client.events.publisher() as publisher:
            with pytest.raises(InvalidSubject):
                await publisher.publish("a.*", b"x")
            with pytest.raises(MessageTooLarge):
                await publisher.publish("a", bytes(101))
        with pytest.raises(CodecUnsupported):
            await client.events.publisher(compression="zstd")


async def test_compressed_batches_say_so() -> None:
    """The codec of a publisher is used, and named in the batch."""
    store = Store()
    events = ScriptedEvents(publish=[store.serve])
    async with client_of(events_of(events), compression="lz4") as client:
        await client.events.publish("a", b"tide " * 1_000)
        async with client.events.publisher(compression="zstd") as publisher:
            await publisher.publish("a", b"tide " * 1_000)
            await publisher.publish("b", b"x" * 1_000, headers=[("k", b"v")])

    assert [common_pb2.CODEC_LZ4, common_pb2.CODEC_ZSTD, common_pb2.CODEC_ZSTD] == [
        batch.codec for batch in store.batches
    ]
    assert [b"tide " * 1_000, b"tide " * 1_000, b"x" * 1_000] == store.payloads


async def test_closing_gives_up_what_cannot_be_sent() -> None:
    """A publisher that never gets an answer fails its messages when it is closed."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        await idle(conversation)

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events), timeout_s=0.5) as client:
        publisher = await client.events.publisher()
        future = await publisher.submit("a", b"x")
        await publisher.close()

        assert isinstance(future.exception(), ConnectionLost)
        assert 1 == publisher.failed
        with pytest.raises(TidewireError):
            await publisher.publish("b", b"x")


async def test_many_are_published_in_order_with_their_ids() -> None:
    """publish_many cuts batches, keeps order and gives an acknowledgement for each message."""
    store = Store()
    events = ScriptedEvents(publish=[store.serve])
    data = [str(number) for number in range(10_000)]
    async with client_of(events_of(events)) as client:
        acks = await client.events.publish_many("a", data, message_ids=data)

    assert list(range(1, 10_001)) == [ack.sequence for ack in acks]
    assert [value.encode() for value in data] == store.payloads
    assert data == [name for batch in store.batches for name in batch.message_ids]


async def test_a_draining_server_gets_nothing_new() -> None:
    """After `draining` what is answered counts, and the rest goes to the next call."""
    store = Store()

    async def drain(conversation: Conversation) -> None:
        await conversation.greet()
        request = await conversation.read()
        draining = common_pb2.Draining()
        draining.grace.FromSeconds(10)
        await conversation.write(draining=draining)
        await answer(conversation, store.take(request.publish))
        assert await conversation.read() is None

    events = ScriptedEvents(publish=[drain, store.serve])
    async with client_of(events_of(events)) as client, client.events.publisher() as publisher:
        await publisher.publish("a", b"1")
        await eventually(lambda: publisher.published == 1)
        await publisher.publish("a", b"2")
        await publisher.flush()

        assert [b"1", b"2"] == store.payloads
        assert 1 == len(publishes(events.publishing, 0))
        assert 0 == publisher.resent
