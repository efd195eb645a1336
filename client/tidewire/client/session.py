"""What all parts of a client share: the channel, the options, the retries, what is open."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import grpc.aio
from google.rpc import code_pb2

from tidewire.client.retry import RetryBudget, RetryPolicy, may_repeat
from tidewire.client.translate import (
    NOT_SENT,
    RPC_ERRORS,
    SENT,
    is_own_cancellation,
    translate,
)
from tidewire.errors import CodecUnsupported, ConnectionLost, TidewireError
from tidewire.v1 import common_pb2
from tidewire.wire.codec import CodecName, codec_of, codecs_installed, name_of

if TYPE_CHECKING:
    from tidewire.signing import Signer, Verifier

log = logging.getLogger("tidewire.client")

DOUBTFUL: Final = (code_pb2.UNAVAILABLE, code_pb2.DEADLINE_EXCEEDED)
"""Codes of an error after which the server is doubted; see `Session.suspect`."""

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

Metadata = tuple[tuple[str, str], ...]


def priority(level: int) -> Metadata:
    """Metadata that gives a call its place on raw wires: 0 first, 9 last."""
    return (("tidewire-priority", str(level)),)


PRIORITY_HEARTBEAT: Final = priority(0)
PRIORITY_CONTROL: Final = priority(1)
PRIORITY_QUERY: Final = priority(3)
PRIORITY_DEFAULT: Final[Metadata] = ()
PRIORITY_EVENTS: Final = priority(6)
PRIORITY_BULK: Final = priority(8)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Options of a client; times in seconds."""

    name: str = ""
    """Name of this client in the server's logs and lists, at most 64 bytes."""
    node_id: str = ""
    """Member whose life deliveries and responders of this client hang on; empty: none."""
    timeout_s: float = 30.0
    """Time a request may take, retries included, when the call does not say."""
    connect_timeout_s: float = 10.0
    """Time to reach the server: at first, and again before those who wait for it are told."""
    compression: str | None = None
    """Codec of what this client sends: "zstd", "lz4", "snappy" or ``None``."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    """When to try again."""
    signer: "Signer | None" = None
    """Signs every batch of events that is published."""
    verifier: "Verifier | None" = None
    """Verifies every batch of events that is received; what it refuses reaches nobody."""


def notify(listener: Callable[..., object], *news: object) -> None:
    """Tell a listener of the application; what it raises is its own, and told to the log."""
    try:
        listener(*news)
    except Exception:
        log.exception("a listener failed on %r", news)


class Closable(Protocol):
    """Something that is open as long as its client."""

    async def close(self) -> None:
        """End it in order, within the client's timeout."""


class Session:
    """
    Shared by the parts of one client, within one event loop.

    Attributes:
        loop: The event loop.
        channel: Carries the calls; any ``grpc.aio.Channel``.
        codec: Codec of what is sent when nothing else is said.
        sleep: How to wait; a test may give its own.
    """

    def __init__(self, channel: grpc.aio.Channel, options: ClientOptions) -> None:
        self.channel = channel
        self.options = options
        self.codec: CodecName = codec_of(options.compression)
        self.codecs_readable = codecs_installed()
        self.random = random.Random()
        self.budget = RetryBudget(options.retry)
        # Asking for the running loop costs a system call on Python 3.11.
        self.loop = asyncio.get_running_loop()
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self.clock: Callable[[], float] = time.monotonic
        self.closed = False
        self._open: set[Closable] = set()

    def track(self, part: Closable) -> None:
        """Close this with the client."""
        self.check_open()
        self._open.add(part)

    def untrack(self, part: Closable) -> None:
        """Forget what has been closed."""
        self._open.discard(part)

    async def close(self) -> None:
        """Close what is open, in any order, then take no more calls."""
        parts = list(self._open)
        results = await asyncio.gather(*(part.close() for part in parts), return_exceptions=True)
        self.closed = True
        for part, result in zip(parts, results, strict=True):
            if isinstance(result, Exception):
                log.warning("closing %s failed: %s", type(part).__name__, result)

    def codec_for(self, compression: str | bool | None) -> CodecName:
        """Codec of an option that may be left out (``False``): then the client's."""
        if isinstance(compression, bool):
            return self.codec
        return codec_of(compression)

    def sign(self, batch: common_pb2.Batch) -> None:
        """Sign a batch that is about to be published, when this client signs."""
        if self.options.signer is not None:
            self.options.signer.sign(batch)

    async def unary(
        self,
        method: Callable[..., Any],
        request: Any,
        *,
        timeout_s: float | None = None,
        metadata: Metadata = PRIORITY_DEFAULT,
        repeatable: bool = True,
    ) -> Any:
        """
        Make a unary call; try again what may be tried again, within the deadline.

        Args:
            method: A method of a generated stub.
            request: Its request.
            timeout_s: Time for all tries together; ``None`` means the client's.
            metadata: See `priority`.
            repeatable: Sending the request twice does no harm.

        Raises:
            TidewireError: The call failed; ConnectionLost also when the client is closed.
        """
        self.check_open()
        limit_s = self.options.timeout_s if timeout_s is None else timeout_s
        ends_s = self.clock() + limit_s
        self.budget.request_made()
        attempt = 0
        while True:
            left_s = max(ends_s - self.clock(), 0.001)
            try:
                return await method(request, timeout=left_s, metadata=metadata)
            except asyncio.CancelledError as error:
                if is_own_cancellation():
                    raise
                raise translate(error) from error
            except RPC_ERRORS as error:
                attempt += 1
                problem = translate(error)
                delay_s = self.retry_delay_s(problem, attempt, repeatable)
                if delay_s is None or self.clock() + delay_s >= ends_s:
                    if problem.code in DOUBTFUL:
                        self.suspect()
                    raise problem from error
                log.info("try %d failed, the next in %.3f s: %s", attempt, delay_s, problem)
            await self.sleep(delay_s)

    def suspect(self) -> None:
        """
        Doubt the server, whose tries are used up: what carries the calls asks it whether it is
        there, and where several servers are to choose from, prefers others.
        """
        suspect = getattr(self.channel, "suspect", None)
        if suspect is not None:
            suspect()

    def retry_delay_s(self, problem: TidewireError, attempt: int, repeatable: bool) -> float | None:
        """Wait before a request that failed so goes again; ``None``: it may not."""
        policy = self.options.retry
        if attempt >= policy.attempts_max or not may_repeat(problem, repeatable=repeatable):
            return None
        if not self.budget.take():
            return None
        return max(policy.delay_s(attempt, self.random), problem.retry_after_s or 0.0)

    def check_open(self) -> None:
        """Raise `ConnectionLost` once the client is closed."""
        if self.closed:
            raise ConnectionLost("this client is closed; connect again", metadata={SENT: NOT_SENT})


def check_codec(codec: CodecName, offered: common_pb2.Opened | None) -> None:
    """Raise `CodecUnsupported` when the server takes no bodies of this codec."""
    if offered is None or codec == common_pb2.CODEC_NONE or codec in offered.codecs:
        return
    raise CodecUnsupported(
        f"the server takes no bodies compressed with {name_of(codec)}; it takes "
        f"{', '.join(map(name_of, offered.codecs)) or 'none'}"
    )
