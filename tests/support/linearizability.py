"""
Whether what concurrent clients saw could have happened one operation after the other.

Every answer of State carries a version, so nothing has to be searched: the versions say the order,
and a history is linearizable exactly when no operation returned before one was called that the
versions put in front of it. That is one sort and one pass, O(n log n); a search over all orders
(Wing and Gong) agrees with it and is exponential.

Why that is exact. The versions order the operations by classes: the write of version v, then the
reads of v, then the write of the next one. Real time orders operations that do not overlap. Both
can be kept iff their union has no cycle, and as the classes are in one line, any cycle has a step
of real time from a later class to an earlier one: a pair, and pairs are what is looked for.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """
    What one client did and saw.

    Attributes:
        subject: What has the versions: a key; or the whole store, with its revisions as versions.
        version: The version this made or saw; ``None`` for a write whose outcome is unknown.
        wrote: True for what made the version.
        called: When the client began, on a clock all clients share.
        returned: When it had the answer; infinite when it never had one.
        value: What was written or read; ``None`` for nothing there.
    """

    subject: str
    version: int | None
    wrote: bool
    called: float
    returned: float = math.inf
    value: bytes | None = None


def find_violations(history: Iterable[Operation], *, complete: bool = True) -> list[str]:
    """
    Say what cannot have happened; an empty list means the history is linearizable.

    Args:
        history: Operations in any order. Values of writes whose outcome is unknown must be unique.
        complete: False: versions may have been made by others than the history's clients, and
            values belong to parts of the subject, so that only the order is judged.
    """
    by_subject: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_subject[operation.subject].append(operation)
    found: list[str] = []
    for operations in by_subject.values():
        known = _settle_unknown(operations)
        if complete:
            found.extend(_wrong_values(known))
        found.extend(_wrong_order(known))
    return found


def find_wrong_reads(
    writes: Iterable[tuple[str, int, bytes | None]], reads: Iterable[tuple[str, int, bytes | None]]
) -> list[str]:
    """
    Say which reads of a key at a store revision saw another value than the last write up to it.

    Args:
        writes: Key, revision, value (``None`` for a delete) of every write.
        reads: Key, revision and value of every read.
    """
    versions: dict[str, list[tuple[int, bytes | None]]] = defaultdict(list)
    for key, revision, value in writes:
        versions[key].append((revision, value))
    revisions = {}
    for key, written in versions.items():
        written.sort(key=lambda version: version[0])
        revisions[key] = [revision for revision, _ in written]
    found = []
    for key, revision, value in reads:
        index = bisect_right(revisions.get(key, ()), revision)
        expected = versions[key][index - 1][1] if index else None
        if value != expected:
            found.append(f"{key!r} at {revision} was read as {value!r}, written as {expected!r}")
    return found


def _settle_unknown(operations: Sequence[Operation]) -> list[Operation]:
    """
    Give writes of unknown outcome the version at which their value was seen; leave out the others,
    which may as well never have happened.
    """
    seen = {op.value: op.version for op in operations if not op.wrote and op.version}
    settled = []
    for operation in operations:
        version = operation.version
        if version is None:
            version = seen.get(operation.value)
            if version is None:
                continue
            operation = Operation(
                operation.subject, version, True, operation.called, math.inf, operation.value
            )
        settled.append(operation)
    return settled


def _wrong_values(operations: Sequence[Operation]) -> Iterable[str]:
    """Find versions made twice, seen but never made, or seen with another value."""
    made: dict[int | None, Operation] = {}
    for operation in operations:
        if operation.wrote:
            if operation.version in made:
                yield f"two writes made version {operation.version}: {operation}"
            made[operation.version] = operation
    for operation in operations:
        if operation.wrote:
            continue
        write = made.get(operation.version)
        if write is None and (operation.version or operation.value is not None):
            yield f"nothing made what was read: {operation}"
        elif write is not None and write.value != operation.value:
            yield f"read another value than was written: {operation} of {write}"


def _wrong_order(operations: Sequence[Operation]) -> Iterable[str]:
    """Find operations that returned before one was called that is in front of them."""
    ordered = sorted(operations, key=lambda op: (op.version or 0, not op.wrote))
    before: Operation | None = None  # of all classes passed, the operation that was called last
    started: Operation | None = None  # of the class we are in
    place: tuple[int, bool] | None = None
    for operation in ordered:
        if place != (operation.version or 0, operation.wrote):
            place = (operation.version or 0, operation.wrote)
            before = _later(before, started)
            started = None
        if before is not None and operation.returned < before.called:
            yield f"{operation} returned before {before} was called"
        started = _later(started, operation)


def _later(left: Operation | None, right: Operation | None) -> Operation | None:
    if left is None or (right is not None and right.called > left.called):
        return right
    return left
