"""Small batches that travel together: on the way out, on the way in, and to who knows none."""

import asyncio
from collections.abc import Iterable

import pytest

from support.scripted import Conversation, ScriptedEvents, client_of, events_of, eventually, idle
from tidewire.client.message import Message
from tidewire.client.together import SMALL_BYTES, TOGETHER_BYTES_MAX, TOGETHER_MAX, together
from tidewire.v1 import event_pb2
from tidewire.wire.batch import encode_payloads


def request(number: int) -> event_pb2.PublishStreamRequest:
    return event_pb2.PublishStreamRequest(publish=event_pb2.PublishItem(publish_id=number))


async def succeed(conversation: Conversation, items: Iterable[event_pb2.PublishItem]) -> None:
    """Answer that each was published, to one."""
    results = [
        event_pb2.PublishResult(
            publish_id=item.publish_id, response=event_pb2.PublishResponse(receivers=1)
        )
        for item in items
    ]
    await conversation.write(results=event_pb2.PublishResults(result=results))


def shape(sizes: list[int]) -> list[list[int]]:
    """Numbers of the publishes of each request."""
    requests = together((size, request(number)) for number, size in enumerate(sizes))
    return [
        [item.publish_id for item in one.several.item] or [one.publish.publish_id]
        for one in requests
    ]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1], [[0]]),
        ([1, 1, 1], [[0, 1, 2]]),
        ([1, SMALL_BYTES + 1, 1, 1], [[0], [1], [2, 3]]),
        ([SMALL_BYTES + 1, 1], [[0], [1]]),
    ],
)
def test_small_ones_that_follow_each_other(sizes: list[int], expected: list[list[int]]) -> None:
    """The order stays; a large one travels alone."""
    assert expected == shape(sizes)


def test_a_request_is_bounded() -> None:
    """Neither more batches nor more bytes than a request may have."""
    assert [TOGETHER_MAX, TOGETHER_MAX, 1] == [
        len(one) for one in shape([1] * (2 * TOGETHER_MAX + 1))
    ]
    per_request = TOGETHER_BYTES_MAX // SMALL_BYTES
    assert [per_request, 1] == [len(one) for one in shape([SMALL_BYTES] * (per_request + 1))]


@pytest.mark.parametrize("takes_several", [True, False])
@pytest.mark.usefixtures("one_turn")
async def test_publishes_on_many_subjects(takes_several: bool) -> None:
    """A server that takes several gets few requests; another one gets each by itself."""
    kinds: list[str] = []
    subjects: list[str] = []

    async def serve(conversation: Conversation) -> None:
        opened = {"takes_several": True} if takes_several else {}
        await conversation.greet(**opened)
        while (request := await conversation.read()) is not None:
            kinds.append(request.WhichOneof("kind"))
            items = request.several.item if kinds[-1] == "several" else [request.publish]
            subjects.extend(item.request.batch.subject for item in items)
            await succeed(conversation, items)

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events)) as client, client.events.publisher() as publisher:
        for number in range(100):
            await publisher.publish(f"s{number}", b"x")
        await publisher.flush()
        published = publisher.published

    assert 100 == published
    assert [f"s{number}" for number in range(100)] == subjects
    assert (["several"] * 2 if takes_several else ["publish"] * 100) == kinds


async def test_batches_with_many_ids_travel_alone() -> None:
    """Each id is a field: many such batches in a request would pass a server's limit of fields."""
    kinds: list[str] = []

    async def serve(conversation: Conversation) -> None:
        await conversation.greet(takes_several=True)
        while (request := await conversation.read()) is not None:
            kinds.append(request.WhichOneof("kind"))
            items = request.several.item or [request.publish]
            await succeed(conversation, items)

    events = ScriptedEvents(publish=[serve])
    async with client_of(events_of(events)) as client:
        for ids in (None, ["a", "b"]):
            await asyncio.gather(
                *(
                    client.events.publish_many(f"s{n}", [b"", b""], message_ids=ids)
                    for n in range(3)
                )
            )
            kinds.append("next")

    assert "several" in kinds[: kinds.index("next")]
    assert ["publish"] * 3 + ["next"] == kinds[kinds.index("next") + 1 :]


@pytest.mark.usefixtures("one_turn")
async def test_what_travelled_together_is_sent_again_after_a_break() -> None:
    """Every batch of a request that was not answered comes again, once, in its order."""
    subjects: list[str] = []

    async def cut(conversation: Conversation) -> None:
        await conversation.greet(takes_several=True)
        await conversation.read()
        await conversation.cut()

    async def serve(conversation: Conversation) -> None:
        await conversation.greet(takes_several=True)
        while (request := await conversation.read()) is not None:
            subjects.extend(item.request.batch.subject for item in request.several.item)
            await succeed(conversation, request.several.item)

    events = ScriptedEvents(publish=[cut, serve])
    async with client_of(events_of(events)) as client, client.events.publisher() as publisher:
        for number in range(10):
            await publisher.publish(f"s{number}", b"x")
        await publisher.flush()

    assert [f"s{number}" for number in range(10)] == subjects


@pytest.mark.parametrize("style", ["function", "coroutine", "iterator"])
async def test_deliveries_that_come_together(style: str) -> None:
    """Each message is handed over once, in order, however the subscription is read."""
    total = 40
    got: list[bytes] = []

    async def serve(conversation: Conversation) -> None:
        opened = await conversation.greet()
        assert opened.takes_several
        several = event_pb2.Deliveries(
            delivery=[
                event_pb2.Delivery(batch=encode_payloads(f"s{n}", [b"%d" % n]))
                for n in range(total)
            ]
        )
        await conversation.write(several=several)
        await idle(conversation)

    def handle(message: Message) -> None:
        got.append(message.payload)

    async def handle_later(message: Message) -> None:
        await asyncio.sleep(0)
        got.append(message.payload)

    handler = {"function": handle, "coroutine": handle_later, "iterator": None}[style]
    events = ScriptedEvents(subscribe=[serve])
    async with (
        client_of(events_of(events)) as client,
        client.events.subscribe(">", handler=handler) as subscription,
    ):
        if style == "iterator":
            got += [(await subscription.next(timeout_s=20)).payload for _ in range(total)]
        await eventually(lambda: len(got) == total)

    assert [b"%d" % n for n in range(total)] == got
