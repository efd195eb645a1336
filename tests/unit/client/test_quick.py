"""The short way of publishing: same messages, same order, same bounds as the long way."""

import asyncio
from collections.abc import Awaitable

from hypothesis import given
from hypothesis import strategies as st

from tidewire.client.gathering import MESSAGE_COST_BYTES, Group
from tidewire.client.quick import quick_publish
from tidewire.wire.batch import Headers
from tidewire.wire.payload import Value

ROOM_BYTES = 400
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(0, 120),
        st.sampled_from(["bytes", "text", "headers", "close", "look"]),
    ),
    max_size=60,
)


class Batches:
    """Open batches with a fixed room each; what finds none is noted, and opens a new one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.groups: dict[str, Group] = {}
        self.closed: list[Group] = []
        self.slow = 0
        self.done = loop.create_future()
        self.done.set_result(None)
        self.publish, self.let_go = quick_publish(self.groups, self.done, self.slowly)

    def slowly(self, subject: str, data: Value, headers: Headers | None) -> Awaitable[None]:
        """Close the batch and open another."""
        self.slow += 1
        self.close(subject)
        group = self.groups[subject] = Group(subject, with_headers=headers is not None)
        group.granted = group.left = ROOM_BYTES
        payload = data if isinstance(data, bytes) else str(data).encode()
        group.append(payload)
        group.left -= len(payload) + MESSAGE_COST_BYTES
        return self.done

    def close(self, subject: str) -> None:
        """As the writer does."""
        self.let_go()
        group = self.groups.pop(subject, None)
        if group is not None:
            self.closed.append(group)


@given(steps=STEPS)
async def test_every_message_is_in_a_batch_that_has_room_for_it(
    steps: list[tuple[str, int, str]],
) -> None:
    """Whatever is mixed: nothing is lost, doubled or out of order, and no batch is overfull."""
    batches = Batches(asyncio.get_running_loop())
    expected: dict[str, list[bytes]] = {"a": [], "b": []}
    for number, (subject, size, kind) in enumerate(steps):
        data = f"{number}:".encode() + b"x" * size
        if kind == "close":
            batches.close(subject)
            continue
        if kind == "look":
            batches.let_go()
            continue
        expected[subject].append(data)
        if kind == "bytes":
            await batches.publish(subject, data)
        elif kind == "text":
            await batches.publish(subject, data.decode())
        else:
            await batches.publish(subject, data, headers=[("k", b"v")])
    for subject in list(batches.groups):
        batches.close(subject)

    actual: dict[str, list[bytes]] = {"a": [], "b": []}
    for group in batches.closed:
        actual[group.subject] += group.payloads
        cost = sum(len(payload) + MESSAGE_COST_BYTES for payload in group.payloads)
        assert cost == group.used
        assert group.used <= ROOM_BYTES
    assert expected == actual


async def test_the_short_way_is_taken() -> None:
    """Of ten messages of one subject that fit one batch only the first goes the long way."""
    batches = Batches(asyncio.get_running_loop())

    for _ in range(10):
        await batches.publish("a", b"x")

    assert batches.slow == 1
    assert len(batches.groups["a"].payloads) == 10


async def test_a_batch_that_was_let_go_takes_nothing() -> None:
    """After the batch was closed the next message goes the long way, though it had room."""
    batches = Batches(asyncio.get_running_loop())
    for _ in range(3):
        await batches.publish("a", b"x")
    batches.close("a")

    await batches.publish("a", b"y")

    assert batches.slow == 2
    assert [[b"x"] * 3] == [group.payloads for group in batches.closed]
    assert [b"y"] == batches.groups["a"].payloads
