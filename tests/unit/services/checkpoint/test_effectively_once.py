"""
Processing is effectively once: an operator that dies at any moment, and its successors, count every
event exactly once, because state, position and output are one commit.

The control is the same operator with two commits in the place of one.
"""

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest

from support.checkpoints import OPERATOR, acquire, commit, output
from support.store import Store, open_store, put_operation, refused, stream_config
from tidewire import errors
from tidewire.v1 import checkpoint_pb2, event_pb2, state_pb2
from tidewire.wire.batch import decode

EVENTS = 60
BATCH = 5
LIVES_MAX = 400


@dataclass
class Incarnation:
    """One life of the operator: where it is, and what it has added up."""

    store: Store
    epoch: int
    through: int
    total: int

    @classmethod
    async def begin(cls, store: Store) -> "Incarnation":
        """Acquire, and go on from the last checkpoint."""
        epoch = await acquire(store)
        answer = await store.checkpoints.Load(checkpoint_pb2.LoadRequest(operator=OPERATOR))
        if not answer.HasField("checkpoint"):
            return cls(store, epoch, 0, 0)
        last = answer.checkpoint
        return cls(store, epoch, last.positions[0].through, int(last.inline))

    async def next_commit(self) -> checkpoint_pb2.CommitRequest | None:
        """Process the next events; what to commit, or ``None`` at the end."""
        part = await self.store.engine.read_stream(
            "IN", self.through + 1, messages_max=BATCH, bytes_max=1 << 20
        )
        events = await numbers(self.store, "IN", self.through, part.next_sequence - 1)
        if not events:
            return None
        self.through += len(events)
        self.total += sum(events)
        position = checkpoint_pb2.Position(stream="IN", consumer="worker", through=self.through)
        return commit(
            self.epoch,
            b"%d" % self.total,
            positions=[position],
            outputs=[output("out.sum", b"%d" % sum(events))],
            state_operations=[put_operation("total", b"%d" % self.total)],
        )


async def numbers(store: Store, stream: str, after: int, through: int) -> list[int]:
    """Numbers of a stream in a range of sequences, one a message."""
    found: list[int] = []
    position = after + 1
    while position <= through:
        part = await store.engine.read_stream(
            stream, position, messages_max=1000, bytes_max=1 << 20
        )
        for stored in part.batches:
            for sequence, payload in enumerate(decode(stored.batch), stored.first_sequence):
                assert isinstance(payload, bytes)
                if position <= sequence <= through:
                    found.append(int(payload))
        position = part.next_sequence
    return found


async def make_input(store: Store) -> None:
    await store.engine.create_stream(stream_config("IN", "in.>"))
    await store.engine.create_stream(stream_config("OUT", "out.>"))
    await store.engine.create_consumer("IN", event_pb2.ConsumerConfig(name="worker"))
    epoch = await acquire(store, "source")
    for first in range(1, EVENTS + 1, BATCH):
        payloads = [b"%d" % number for number in range(first, first + BATCH)]
        request = commit(epoch, operator="source", outputs=[output("in.a", *payloads)])
        await store.checkpoints.Commit(request)


async def give_up_on(store: Store, request: checkpoint_pb2.CommitRequest, delay_s: float) -> bool:
    """Commit, but die after this time (0: in any case); True when the answer came before."""
    if not delay_s:  # a deadline this short may be rounded up until the answer is there
        dying = store.checkpoints.Commit(request)
        await asyncio.sleep(0.0005)
        dying.cancel()
        return False
    call = store.checkpoints.Commit(request, timeout=delay_s)
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        return False
    return True


@pytest.mark.parametrize("wire", ["grpc", "tcp"])
async def test_every_event_counts_once_however_often_the_operator_dies(
    tmp_path: Path, wire: str
) -> None:
    """
    Each life ends within a commit whose outcome it never learns; the next one goes on from what is
    durable. What a dead one still tries is fenced.
    """
    rng = random.Random(wire)
    deaths = fenced = 0
    async with open_store(tmp_path, wire=wire) as store:
        await make_input(store)
        for _ in range(LIVES_MAX):
            life = await Incarnation.begin(store)
            while (request := await life.next_commit()) is not None:
                delay_s = 0.0 if deaths < 2 else rng.choice([0.0005, 0.001, 0.002, 5.0])
                if not await give_up_on(store, request, delay_s):
                    break
            else:
                break
            deaths += 1
            if deaths % 2:
                await acquire(store)
                late = await refused(store.checkpoints.Commit(request))
                assert isinstance(late, errors.OperatorFenced)
                fenced += 1
        sums = await numbers(store, "OUT", 0, store.engine.last_sequence("OUT"))
        total = await store.state.Get(state_pb2.GetRequest(key="total"))
        consumer = await store.engine.get_consumer("IN", "worker")

    expected = [sum(range(first, first + BATCH)) for first in range(1, EVENTS + 1, BATCH)]
    assert expected == sums
    assert sum(range(1, EVENTS + 1)) == int(total.entry.value.data)
    assert EVENTS == consumer.state.ack_floor
    assert deaths > 0
    assert fenced > 0


async def test_outputs_beside_the_commit_are_doubled(tmp_path: Path) -> None:
    """Control: output first, then state and position; a death between the two counts twice."""
    async with open_store(tmp_path) as store:
        await make_input(store)
        for dies in (True, False):
            life = await Incarnation.begin(store)
            while (request := await life.next_commit()) is not None:
                sink = await acquire(store, "sink")
                apart = commit(sink, operator="sink", outputs=request.outputs)
                await store.checkpoints.Commit(apart)
                if dies:
                    break
                del request.outputs[:]
                await store.checkpoints.Commit(request)
        sums = await numbers(store, "OUT", 0, store.engine.last_sequence("OUT"))

    assert sum(range(1, EVENTS + 1)) < sum(sums)


async def test_concurrent_commits_of_one_revision_have_one_winner(tmp_path: Path) -> None:
    """Two instances that both believe they hold the operator: one commit of each revision."""
    async with open_store(tmp_path) as store:
        epoch = await acquire(store)
        calls = [
            store.checkpoints.Commit(commit(epoch, b"%d" % n, expected_revision=0))
            for n in range(10)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)

    won = [answer for answer in answers if isinstance(answer, checkpoint_pb2.CommitResponse)]
    assert [1] == [answer.revision for answer in won]
