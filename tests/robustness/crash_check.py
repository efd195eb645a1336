"""
The check of the crash test: what is in the store against what the ledger says.

Faults are returned as sentences; a store that kept its promises gives none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from robustness.crash_load import Known, open_for_load, payload_of, split, state_of
from tidewire.v1 import common_pb2
from tidewire_server.engine.embedded import EmbeddedEngine, ranges

MESSAGES_KEPT = 8_000
"""Messages after which what was checked is purged, so that long runs stay quick."""


@dataclass
class Seen:
    """What earlier checks read: it must never change."""

    messages: dict[int, str] = field(default_factory=dict)
    purged_through: int = 0
    epoch: int = 0


async def check(store: Path, known: Known, seen: Seen) -> list[str]:
    """Open the store, compare everything, and return the faults."""
    engine = await open_for_load(store)
    try:
        messages = await _read(engine)
        faults = [
            *_check_messages(messages, known, seen),
            *await _check_values(engine, known),
            *await _check_checkpoint(engine, known, messages),
            *await _check_consumer(engine, known),
        ]
        if engine.epoch <= seen.epoch:
            faults.append(f"the epoch went from {seen.epoch} to {engine.epoch}")
        if engine.damaged or engine.groups_lost:
            faults.append(f"damaged: {engine.damaged_rows}, groups lost: {engine.groups_lost}")
        seen.epoch = engine.epoch
        seen.messages = messages
        if len(messages) > MESSAGES_KEPT:
            seen.purged_through = max(messages) - MESSAGES_KEPT // 4
            await engine.purge_stream("events", seen.purged_through)
            seen.purged_through = (await engine.get_stream("events")).state.first_sequence - 1
    finally:
        await engine.close()
    return faults


async def _read(engine: EmbeddedEngine) -> dict[int, str]:
    """Every message by sequence: its name, or what it is instead."""
    messages: dict[int, str] = {}
    first = 1
    while first <= engine.last_sequence("events"):
        part = await engine.read_stream("events", first, messages_max=5000, bytes_max=4_000_000)
        for stored in part.batches:
            payloads = common_pb2.PayloadList.FromString(stored.batch.body).payload
            indexes = [
                i for item in stored.batch.selected for i in range(item.first, item.last + 1)
            ] or range(stored.batch.count)
            for place, index in enumerate(indexes):
                name = payloads[index].partition(b" ")[0].decode("ascii", "replace")
                whole = payloads[index] == payload_of(name)
                messages[stored.first_sequence + place] = name if whole else f"damaged {name}"
        first = part.next_sequence
    return messages


def _check_messages(messages: dict[int, str], known: Known, seen: Seen) -> Iterator[str]:
    sequences = list(messages)
    if sequences and sequences != list(range(sequences[0], sequences[0] + len(sequences))):
        yield "the sequences have holes"
    if sequences and sequences[0] > seen.purged_through + 1:
        yield f"messages {seen.purged_through + 1} to {sequences[0] - 1} are gone"
    for name, sequence in known.acknowledged.items():
        if sequence > seen.purged_through and messages.get(sequence) != name:
            found = messages.get(sequence)
            yield f"acknowledged message {name} is not at {sequence} but {found}"
    for sequence, name in seen.messages.items():
        if sequence > seen.purged_through and messages.get(sequence) != name:
            yield f"sequence {sequence} was {name} and is {messages.get(sequence)}"
    last: dict[str, int] = {}
    for sequence, name in messages.items():
        publisher, number = split(name)
        if not 1 <= number <= known.tried.get(publisher, 0):
            yield f"message {name} at {sequence} was never tried"
        if number <= last.get(publisher, 0):
            yield f"message {name} at {sequence} is a copy or out of order"
        last[publisher] = number


async def _check_values(engine: EmbeddedEngine, known: Known) -> list[str]:
    faults: list[str] = []
    for key, tried in known.values_tried.items():
        entry = (await engine.get_state(key)).entry
        twin = (await engine.get_state(f"twin-{key}")).entry
        value = entry.value.data.decode()
        revision, acknowledged = known.values.get(key, (0, ""))
        if entry.revision < revision:
            faults.append(f"{key} is at revision {entry.revision}, acknowledged was {revision}")
        elif entry.revision == revision and revision and value != acknowledged:
            faults.append(f"{key} is {value!r} at revision {revision}, not {acknowledged!r}")
        elif value and value not in tried:
            faults.append(f"{key} has the value {value!r} that nobody wrote")
        if (entry.revision, value) != (twin.revision, twin.value.data.decode()):
            faults.append(f"{key} and its twin of the same transaction differ")
    return faults


async def _check_checkpoint(
    engine: EmbeddedEngine, known: Known, messages: dict[int, str]
) -> list[str]:
    found = await engine.load_checkpoint("operator", 0, with_state=True)
    revision, number = known.state
    if found is None:
        return [f"checkpoint {revision} is gone"] if revision else []
    faults = []
    count = int(found.note)
    if found.revision < revision or count < number or count > known.states_tried:
        faults.append(
            f"checkpoint {found.revision} ({count}), acknowledged was {revision} ({number})"
        )
    if found.inline != state_of(count):
        faults.append(f"checkpoint {found.revision} has another state than {count}")
    value = (await engine.get_state("outputs")).entry.value.data.decode()
    if value != str(count):
        faults.append(f"checkpoint {count} came with the key at {value!r}")
    outputs = [
        int(name.partition("/")[2]) for name in messages.values() if name.startswith("output/")
    ]
    if max(outputs, default=count) != count:
        faults.append(f"checkpoint {count} came with output {max(outputs)}")
    return faults


async def _check_consumer(engine: EmbeddedEngine, known: Known) -> list[str]:
    state = (await engine.get_consumer("events", "consumer")).state
    settled = [(item.first, item.last) for item in state.settled]
    ranges.add(settled, 0, state.ack_floor)
    faults = []
    for first, last in known.settled:
        if not any(low <= first and last <= high for low, high in sorted(settled)):
            faults.append(f"{first} to {last} was settled and is not")
    return faults
