"""
Who answers what, and whose turn it is. No I/O and no time.

Responders of one pattern and group stand in a `Pool`, in rows by the queries they have in hand.
Taking the least busy one, and moving one a row up or down, cost the same with one responder as with
thousands.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

from tidewire import errors
from tidewire.wire.subject import SubjectIndex

BUSY_RETRY_S: Final = 0.1


class Seat:
    """
    A responder as routing sees it.

    Attributes:
        name: Node id it gave, or its client id.
        in_flight_max: Queries it takes at the same time.
        in_hand: Queries it has.
        serving: False: it takes no new queries and does not count as a responder (draining, member
            gone).
        clogged: True: it counts, but takes none now (too much waits to be written to it).
    """

    def __init__(
        self,
        name: str,
        subjects: Sequence[str],
        *,
        node_id: str = "",
        group: str = "",
        in_flight_max: int = 100,
    ) -> None:
        self.name = name
        self.node_id = node_id
        self.subjects = tuple(dict.fromkeys(subjects))
        self.group = group
        self.in_flight_max = in_flight_max
        self.in_hand = 0
        self.serving = True
        self.clogged = False
        self.pools: list[Pool[Any]] = []
        self.row: int | None = None
        """Row it stands in, in every pool of its own; ``None`` while it takes nothing."""
        self.counted = False
        """Whether its pools count it as serving."""

    @property
    def ready(self) -> bool:
        """Whether it takes a query now."""
        return self.serving and not self.clogged and self.in_hand < self.in_flight_max

    def take(self, count: int = 1) -> None:
        """So many more queries in hand."""
        self.in_hand += count
        self.place()

    def give_back(self, count: int = 1) -> None:
        """So many queries less in hand."""
        self.in_hand -= count
        self.place()

    def place(self) -> None:
        """Stand where one belongs; called after anything changed that matters for it."""
        if self.serving is not self.counted:
            self.counted = self.serving
            for pool in self.pools:
                pool.serving += 1 if self.serving else -1
        row = self.in_hand if self.ready else None
        if row == self.row:
            return
        for pool in self.pools:
            pool.move(self, self.row, row)
        self.row = row


Member = TypeVar("Member", bound=Seat)


class Pool(Generic[Member]):
    """Responders of one pattern and group."""

    __slots__ = ("_least", "_rows", "key", "members", "serving", "turn")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.members: dict[Member, None] = {}
        self.serving = 0
        """Members that serve, busy or not."""
        self.turn = 0
        """When it was last taken from; breaks ties between pools."""
        self._rows: dict[int, dict[Member, None]] = {}
        self._least = 0

    def least_busy(self) -> Member | None:
        """
        The ready responder with the fewest queries in hand, the longest unused first; ``None``: all
        are busy.
        """
        row = self._rows.get(self._least)
        return next(iter(row)) if row else None

    def ready(self) -> Iterator[Member]:
        """All that take a query now; those with equally many in hand the longest unused first."""
        for row in self._rows.values():
            yield from row

    def move(self, seat: Member, before: int | None, after: int | None) -> None:
        """Move a responder from one row to the end of another."""
        rows = self._rows
        if before is not None:
            row = rows[before]
            del row[seat]
            if not row:
                del rows[before]
        if after is not None:
            row = rows.setdefault(after, {})
            row[seat] = None
            if len(rows) == 1 or after < self._least:
                self._least = after
                return
        if self._least not in rows:
            # One step up is the usual case: the responder itself went there.
            up = self._least + 1
            self._least = up if up in rows else min(rows, default=0)


class Directory(Generic[Member]):
    """All responders, found by subject."""

    def __init__(self) -> None:
        self.seats: dict[Member, None] = {}
        self._index: SubjectIndex[Pool[Member]] = SubjectIndex()
        self._pools: dict[tuple[str, str], Pool[Member]] = {}
        self._turns = 0

    def __len__(self) -> int:
        return len(self.seats)

    def add(self, seat: Member) -> None:
        """Let a responder take part."""
        self.seats[seat] = None
        for pattern in seat.subjects:
            key = (pattern, seat.group)
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = Pool(key)
                self._index.add(pattern, pool)
            pool.members[seat] = None
            seat.pools.append(pool)
        seat.row = None
        seat.counted = False
        seat.place()

    def remove(self, seat: Member) -> None:
        """Take a responder out; may be repeated."""
        if self.seats.pop(seat, self) is self:
            return
        seat.serving = False
        seat.place()
        for pool in seat.pools:
            del pool.members[seat]
            if not pool.members:
                del self._pools[pool.key]
                self._index.remove(pool.key[0], pool)
        seat.pools.clear()

    def choose(self, subject: str) -> Member:
        """
        Choose who gets a query: the least busy responder; between groups that are equally busy in
        turn.

        Raises:
            NoResponders: Nobody serves the subject.
            RespondersBusy: All that do have their hands full.
        """
        pools = self._index.find(subject)
        best: Member | None = None
        best_pool: Pool[Member] | None = None
        for pool in pools:
            seat = pool.least_busy()
            if seat is not None and (
                best is None
                or best_pool is None
                or (seat.in_hand, pool.turn) < (best.in_hand, best_pool.turn)
            ):
                best, best_pool = seat, pool
        if best is None or best_pool is None:
            raise self._nobody(subject, pools)
        self._turns += 1
        best_pool.turn = self._turns
        return best

    def share(self, subject: str, count: int) -> list[tuple[Member, int]]:
        """
        Choose who gets how many of several queries, as if each were given to the least busy one.

        Returns:
            At least one responder and the number for each; together less than ``count`` when
            nobody has room for the rest.

        Raises:
            NoResponders: Nobody serves the subject.
            RespondersBusy: All that do have their hands full.
        """
        pools = self._index.find(subject)
        if count == 1:
            return [(self.choose(subject), 1)]
        seats = list(dict.fromkeys(seat for pool in pools for seat in pool.ready()))
        if not seats:
            raise self._nobody(subject, pools)
        if len(seats) == 1:
            (seat,) = seats
            return [(seat, min(count, seat.in_flight_max - seat.in_hand))]
        seats.sort(key=_in_hand)
        return [(seat, number) for seat, number in _level(seats, count) if number]

    def refusal(self, subject: str) -> errors.TidewireError:
        """Say why those that serve a subject have no room for more."""
        return self._nobody(subject, self._index.find(subject))

    def everyone(self, subject: str) -> list[Member]:
        """
        All that serve the subject now, each once, the least busy first and those with full hands
        last.
        """
        seats = {seat: None for pool in self._index.find(subject) for seat in pool.members}
        serving = [seat for seat in seats if seat.serving]
        serving.sort(key=lambda seat: (not seat.ready, seat.in_hand))
        return serving

    def _nobody(self, subject: str, pools: Sequence[Pool[Member]]) -> errors.TidewireError:
        if not any(pool.serving for pool in pools):
            return errors.NoResponders(
                f"nobody serves {subject!r} now; start a responder, or check the subject",
                metadata={"subject": subject},
            )
        return errors.RespondersBusy(
            f"all responders of {subject!r} have their hands full; try again later, or start more",
            metadata={"subject": subject},
            retry_after_s=BUSY_RETRY_S,
        )


def _in_hand(seat: Seat) -> int:
    return seat.in_hand


def _level(seats: Sequence[Member], count: int) -> list[tuple[Member, int]]:
    """Fill up those with the fewest in hand until all have equally many, or as many as they may."""
    low = seats[0].in_hand
    high = seats[-1].in_hand + count
    while low < high:
        level = (low + high + 1) // 2
        if sum(_below(seat, level) for seat in seats) <= count:
            low = level
        else:
            high = level - 1
    left = count - sum(_below(seat, low) for seat in seats)
    shares: list[tuple[Member, int]] = []
    for seat in seats:
        number = _below(seat, low)
        if left and number < seat.in_flight_max - seat.in_hand and seat.in_hand + number == low:
            number += 1
            left -= 1
        shares.append((seat, number))
    return shares


def _below(seat: Seat, level: int) -> int:
    """How many more a responder takes until it has ``level`` in hand."""
    return max(0, min(level, seat.in_flight_max) - seat.in_hand)
