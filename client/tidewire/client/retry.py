"""
When to try again, and how soon: one policy for requests and for streams.

A request is sent again only when that does no harm. Which those are:

- Reads, and `Range`, `Fetch` of a position, `Changes`, `FindMissingChunks`: they change nothing.
- What the server knows again by an id in it: `Publish` (``message_id``; within the stream's dedup
  window, so a live-only subject may see it twice), `State.Put`, `Delete`, `Transact` and
  `Checkpoint.Commit` (``request_id``), `Control.Send` (``command_id``).
- What is the same done twice: making the same stream or consumer, `UpdateStream`, `Touch`,
  `Compact`, `PutChunk` (named by its digest), `Acquire` (a later epoch), `Beat` and `Leave` (of one
  incarnation), `Join` that takes over.

All else (`Ask`, `Fetch` of a consumer, `Join`, deleting and purging, which would hit what came
after) is sent again only when no server has seen it.
"""

import random
from dataclasses import dataclass
from typing import Final

from google.rpc import code_pb2

from tidewire.errors import (
    ConnectionLost,
    MessageTooLarge,
    NoResponders,
    Overloaded,
    PeerVanished,
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
    Exponential back-off with jitter, within a budget.

    By default: at once, after 100 ms and up to 50 more, after 200 ms and up to 100 more.

    A request is tried at most `attempts_max` times and never beyond its own deadline. Streams are
    opened again until their owner closes them; their waits are bounded by `delay_s_max`.
    """

    attempts_max: int = 3
    """Tries of one request, the first included."""
    delay_first_s: float = 0.1
    """First wait; each further one doubles it."""
    jitter: float = 0.5
    """Each wait is longer by a random part of itself, up to this."""
    delay_s_max: float = 5.0
    """Upper bound of every wait, jitter included."""
    budget_ratio: float = 0.1
    """Retries allowed for each request made."""
    budget_burst: int = 10
    """Retries that may be saved up."""

    def delay_s(self, attempt: int, source: random.Random) -> float:
        """Wait before try number `attempt` + 1."""
        doublings = min(max(attempt - 1, 0), DOUBLINGS_MAX)
        wait_s = self.delay_first_s * 2.0**doublings
        # Waits at the upper bound keep their jitter: clients of a dead server must not meet.
        wait_s = min(wait_s, self.delay_s_max / (1.0 + self.jitter))
        return wait_s * (1.0 + self.jitter * source.random())


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
    if error.code == code_pb2.CANCELLED:
        return repeatable  # by a server that stops: gRPC's own word for calls it cuts
    if error.code != code_pb2.UNAVAILABLE:
        return False
    return repeatable or error.retry_safe or error.metadata.get("sent") == "no"


def is_out_of_reach(error: TidewireError) -> bool:
    """Whether an error says that nobody is there, not that somebody refuses."""
    return isinstance(error, ConnectionLost | PeerVanished) and not isinstance(error, TlsFailed)


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
