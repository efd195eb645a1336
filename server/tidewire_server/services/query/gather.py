"""
When a gather is complete, and whom it asks next. No I/O and no time.

Responders are numbered by their place in the list that the gather started with.
"""

from enum import Enum

from tidewire import errors


class Until(Enum):
    """When the answer is complete."""

    FIRST = "first"
    ALL = "all"
    QUORUM = "quorum"


class Gathering:
    """
    The course of one gather.

    Attributes:
        replies: Good replies so far.
        failures: Responders that failed, died or could not be asked.
    """

    def __init__(self, until: Until, wanted: int, responders: int) -> None:
        """
        Begin; ask those of `start`.

        Args:
            until: The rule.
            wanted: Good replies that FIRST and QUORUM need, at least 1; not used for ALL.
            responders: How many there are.

        Raises:
            TooFewResponders: There are fewer than are wanted.
        """
        if until is not Until.ALL and responders < wanted:
            raise errors.TooFewResponders(
                f"{wanted} replies are wanted and only {responders} responders are there",
                metadata={"wanted": wanted, "responders": responders},
            )
        self._until = until
        self._wanted = wanted
        self._count = responders
        self._asked = 0
        self._open: set[int] = set()
        self.replies = 0
        self.failures = 0

    @property
    def complete(self) -> bool:
        """Whether the rule is met."""
        if self._until is Until.ALL:
            return self.replies + self.failures == self._count
        return self.replies >= self._wanted

    @property
    def over(self) -> bool:
        """Whether nothing more can come of it: complete, or no longer to be met."""
        reachable = self.replies + len(self._open) + self._count - self._asked
        return self.complete or (self._until is not Until.ALL and reachable < self._wanted)

    @property
    def missing(self) -> list[int]:
        """Responders that were asked and have not answered, in order."""
        return sorted(self._open)

    def start(self) -> list[int]:
        """Whom to ask at first."""
        return self._ask(self._wanted if self._until is Until.QUORUM else self._count)

    def succeed(self, responder: int) -> bool:
        """Take a good reply; False when it does not count any more."""
        if responder not in self._open or self.over:
            return False
        self._open.remove(responder)
        self.replies += 1
        return True

    def fail(self, responder: int) -> list[int]:
        """Take a failure and return whom to ask instead."""
        if responder not in self._open or self.over:
            return []
        self._open.remove(responder)
        self.failures += 1
        if self._until is not Until.QUORUM or self.over:
            return []
        return self._ask(self._wanted - self.replies - len(self._open))

    def _ask(self, number: int) -> list[int]:
        first = self._asked
        self._asked = min(self._count, first + number)
        asked = list(range(first, self._asked))
        self._open.update(asked)
        return asked
