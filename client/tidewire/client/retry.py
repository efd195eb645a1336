"""When to try again, and how soon: one policy for requests and for streams."""

import random
from dataclasses import dataclass
from typing import Final

from google.rpc import code_pb2

from tidewire.errors import (
    MessageTooLarge,
    NoResponders,
    Overloaded,
    ProtocolViolation,
    TidewireError,
    TlsFailed,
    TooManyCalls,
    TooManyConnections,
)

DOUBLINGS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    Exponential back-off with full jitter, within a budget.

    A request is tried at most `attempts_max` times and never beyond its own deadline. Streams are
    opened again until their owner closes them; their waits are bounded by `delay_s_max`.
    """

    attempts_max: int = 3
    """Tries of one request, the first included."""
    delay_first_s: float = 0.1
    """Upper bound of the first wait; each further one doubles it."""
    delay_s_max: float = 5.0
    """Upper bound of every wait."""
    budget_ratio: float = 0.1
    """Retries allowed for each request made."""
    budget_burst: int = 10
    """Retries that may be saved up."""

    def delay_s(self, attempt: int, source: random.Random) -> float:
        """Wait before try number `attempt` + 1: anything up to the bound of this attempt."""
        doublings = min(max(attempt - 1, 0), DOUBLINGS_MAX)
        return source.uniform(0.0, min(self.delay_s_max, self.delay_first_s * 2.0**doublings))


class RetryBudget:
    """Keeps retries to a share of all requests, so that a broken server is not buried."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._ratio = policy.budget_ratio
        self._burst = float(policy.budget_burst)
        self._tokens = self._burst

    def request_made(self) -> None:
        """Count a request."""
        self._tokens = min(self._burst, self._tokens + self._ratio)

    def take(self) -> bool:
        """Take the right to one retry, when there is one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def may_repeat(error: TidewireError, *, repeatable: bool) -> bool:
    """
    Whether a request that failed like this may be sent again.

    Args:
        error: How it failed.
        repeatable: The request only reads, or carries an id by which the server knows it again.
    """
    if isinstance(error, NoResponders | TlsFailed):
        return False  # the caller is to hear of these at once
    if isinstance(error, Overloaded | TooManyCalls | TooManyConnections):
        return True  # refused before anything was done
    return error.code == code_pb2.UNAVAILABLE and (repeatable or error.retry_safe)


def may_reopen(error: TidewireError) -> bool:
    """Whether a stream that ended like this is opened again by itself."""
    if isinstance(error, TlsFailed | MessageTooLarge | ProtocolViolation):
        return False
    return error.code in _REOPENING


_REOPENING: Final = frozenset(
    (
        code_pb2.UNAVAILABLE,
        code_pb2.CANCELLED,
        code_pb2.RESOURCE_EXHAUSTED,
        code_pb2.INTERNAL,
        code_pb2.DEADLINE_EXCEEDED,
    )
)
