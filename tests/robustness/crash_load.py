"""
The load of the crash test: what the process that is killed does.

Publishers, compare-and-set writers, an operator with checkpoints and a consumer work against one
engine. Each writes a line to a ledger outside of the store before it tries something and after it
was acknowledged. After a restart they go on from the ledger: publishers with ids or sequences
repeat what has no answer, as a client would.
"""

import asyncio
import itertools
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidewire import errors
from tidewire.v1 import common_pb2, event_pb2, state_pb2
from tidewire_server.engine.base import Append, CheckpointWrite, Settle, Transaction
from tidewire_server.engine.embedded import EmbeddedEngine, EngineOptions, open_engine

PUBLISHERS = {"plain": 3, "ids": 2, "sequence": 3}
KEYS = 4
OPTIONS: dict[str, Any] = {
    # Small bounds, so that copying the log, sweeping and compacting happen while it is killed.
    "wal_pages_max": 64,
    "sweep_interval_s": 0.05,
    "history_changes_max": 500,
    "ballast_bytes": 0,
}


@dataclass
class Known:
    """
    What the ledger says. Messages are named ``publisher/number``.

    Attributes:
        tried: Highest number each publisher tried; it tried all before.
        answered: Highest number that was acknowledged.
        acknowledged: Sequences of acknowledged messages that are still compared.
    """

    tried: dict[str, int] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    values_tried: dict[str, set[str]] = field(default_factory=dict)
    values: dict[str, tuple[int, str]] = field(default_factory=dict)
    states_tried: int = 0
    state: tuple[int, int] = (0, 0)
    settled: list[tuple[int, int]] = field(default_factory=list)
    acknowledgements: int = 0

    def next_number(self, publisher: str, *, repeat: bool) -> int:
        """
        Number a publisher goes on with: after what it tried, or, when it repeats, after what is
        certain.
        """
        known = self.answered if repeat else self.tried
        return known.get(publisher, 0) + 1


def split(name: str) -> tuple[str, int]:
    """Publisher and number of a message."""
    publisher, _, number = name.rpartition("/")
    return publisher, int(number) if number.isdigit() else 0


def read_ledger(path: Path, known: Known, offset: int = 0) -> int:
    """Take over the lines after an offset; return the new one."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            _take(known, json.loads(line))
    return offset


def _take(known: Known, line: list[Any]) -> None:
    match line:
        case ["try", names]:
            _raise(known.tried, names)
        case ["ack", names, first]:
            known.acknowledged.update(zip(names, itertools.count(first), strict=False))
            _raise(known.answered, names)
            known.acknowledgements += 1
        case ["try value", key, value]:
            known.values_tried.setdefault(key, set()).add(value)
        case ["ack value", key, value, revision]:
            if revision > known.values.get(key, (0, ""))[0]:
                known.values[key] = (revision, value)
            known.acknowledgements += 1
        case ["try state", count]:
            known.states_tried = max(known.states_tried, count)
        case ["ack state", count, revision]:
            known.state = max(known.state, (revision, count))
            known.acknowledgements += 1
        case ["settled", first, last]:
            known.settled.append((first, last))
            known.acknowledgements += 1
        case _:
            raise ValueError(f"the ledger has a line of no kind: {line}")


def _raise(highest: dict[str, int], names: list[str]) -> None:
    publisher, number = split(names[-1])
    highest[publisher] = max(number, highest.get(publisher, 0))


class Load:
    """Everything that works against the engine until the process is killed."""

    def __init__(self, engine: EmbeddedEngine, ledger: int, known: Known, seed: int) -> None:
        self._engine = engine
        self._ledger = ledger
        self._known = known
        self._chance = random.Random(seed)
        self._position = asyncio.Event()

    async def run(self) -> None:
        """Work for ever."""
        epoch, last = await self._engine.acquire_operator("operator", 2)
        count = int(last.note) if last is not None else 0
        async with asyncio.TaskGroup() as tasks:
            for kind, publishers in PUBLISHERS.items():
                for index in range(publishers):
                    tasks.create_task(self._publish(kind, f"{kind}-{index}"))
            for writer in range(3):
                tasks.create_task(self._write_values(writer))
            tasks.create_task(self._commit_states(epoch, count))
            tasks.create_task(self._consume())

    def _note(self, *line: object) -> None:
        os.write(self._ledger, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    async def _publish(self, kind: str, publisher: str) -> None:
        number = self._known.next_number(publisher, repeat=kind != "plain")
        while True:
            count = self._chance.randint(1, 20)
            names = [f"{publisher}/{n}" for n in range(number, number + count)]
            batch = batch_of(names)
            if kind == "ids":
                batch.message_ids.extend(names)
            elif kind == "sequence":
                batch.producer_id = publisher
                batch.producer_epoch = 1
                batch.producer_sequence = number
            self._note("try", names)
            append = Append(event_pb2.PublishRequest(batch=batch))
            done = await self._engine.commit(Transaction(appends=[append]))
            response = done.appends[0]
            fresh = names[response.duplicates :]
            if fresh:
                # What is repeated is found at the beginning of a batch: it was cut anew.
                self._note("ack", fresh, response.stored.first)
            number += count

    async def _write_values(self, writer: int) -> None:
        for step in itertools.count():
            key = f"key-{self._chance.randrange(KEYS)}"
            found = await self._engine.get_state(key)
            value = f"{os.getpid()}-{writer}-{step}"
            self._note("try value", key, value)
            try:
                done = await self._engine.commit(
                    Transaction(
                        compare=[state_pb2.Compare(key=key, revision=found.entry.revision)],
                        compare_required=True,
                        then=[put_of(key, value), put_of(f"twin-{key}", value)],
                    )
                )
            except errors.RevisionMismatch:
                continue
            self._note("ack value", key, value, done.state_revision)

    async def _commit_states(self, epoch: int, count: int) -> None:
        for number in itertools.count(count + 1):
            self._note("try state", number)
            name = f"output/{number}"
            self._note("try", [name])
            write = CheckpointWrite(
                "operator", epoch, None, state_of(number), (), b"", (), note=str(number)
            )
            done = await self._engine.commit(
                Transaction(
                    checkpoint=write,
                    appends=[Append(event_pb2.PublishRequest(batch=batch_of([name])))],
                    then=[put_of("outputs", str(number))],
                )
            )
            self._note("ack state", number, done.checkpoint_revision)
            self._note("ack", [name], done.appends[0].stored.first)

    async def _consume(self) -> None:
        engine = self._engine
        position = (await engine.get_consumer("events", "consumer")).state.ack_floor
        while True:
            last = engine.last_sequence("events")
            if last <= position:
                await asyncio.sleep(0.001)
                continue
            # Settled in pieces and out of order, so that there are ranges above the floor.
            half = (position + last) // 2
            for first, end in ((half + 1, last), (position + 1, half)):
                if first <= end:
                    settle = Settle("events", "consumer", settled=[(first, end)])
                    await engine.commit(Transaction(settles=[settle]))
                    self._note("settled", first, end)
            position = last


def batch_of(names: list[str]) -> common_pb2.Batch:
    """Messages that say who they are."""
    body = common_pb2.PayloadList(payload=[payload_of(name) for name in names])
    return common_pb2.Batch(subject="events.all", count=len(names), body=body.SerializeToString())


def payload_of(name: str) -> bytes:
    """The bytes of a message, which follow from its name."""
    return name.encode() + b" " + b"." * (hash_of(name) % 200)


def state_of(number: int) -> bytes:
    """The state of a checkpoint, which follows from its number."""
    return f"state {number} ".encode() * 500


def hash_of(name: str) -> int:
    """A number that is the same in every process."""
    return sum(name.encode()) * 7919


def put_of(key: str, value: str) -> state_pb2.StateOperation:
    """A write of a key."""
    payload = common_pb2.Payload(data=value.encode())
    return state_pb2.StateOperation(put=state_pb2.PutRequest(key=key, value=payload))


async def open_for_load(store: Path, options: dict[str, Any] | None = None) -> EmbeddedEngine:
    """The engine with what the load needs."""
    engine = await open_engine(store, options=EngineOptions(**(OPTIONS | (options or {}))))
    config = event_pb2.StreamConfig(name="events", subjects=["events.>"])
    config.dedup_window.FromSeconds(3600)
    await engine.create_stream(config)
    start = event_pb2.StartPosition(all=True)
    await engine.create_consumer("events", event_pb2.ConsumerConfig(name="consumer", start=start))
    return engine


def work(
    store: Path, ledger: Path, known: Known, seed: int, ready: int, options: dict[str, Any]
) -> None:
    """Open the store, say so on a descriptor, and work until killed."""

    async def main() -> None:
        if options:
            # An early answer comes before the stream is there: it is made by an engine as usual.
            await (await open_for_load(store)).close()
        engine = await open_for_load(store, options)
        descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(ready, b"r")
        await Load(engine, descriptor, known, seed).run()

    asyncio.run(main())
