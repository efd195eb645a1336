"""
How a client of a wire of datagrams introduces itself, and again when its address changes.

``proto/WIRE.md`` section 9.2, without I/O: time goes in, bodies of HELLO come out.
"""

from collections.abc import Callable

from tidewire.wire.bodies import Hello
from tidewire.wire.cookie import Commitment
from tidewire.wire.datagram import HELLO, MOVE, NO_PROOF, Greeting, encode_datagram, encode_greeting
from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.deadlines import FOREVER
from tidewire.wire.limits import WireLimits


class Introduction:
    """
    Sends HELLO until it is answered.

    Attributes:
        due_s: When HELLO must be sent again.
        attempt: Number of the last HELLO.
    """

    def __init__(
        self,
        session: int,
        hello: Hello,
        wire: WireLimits,
        limits: DatagramLimits,
        jittered: Callable[[float], float],
    ) -> None:
        self.due_s = FOREVER
        self.attempt = 0
        self._session = session
        self._hello = hello
        self._wire = wire
        self._limits = limits
        self._jittered = jittered
        self._commitment = Commitment()
        self._next: Commitment | None = None
        """Commitment that a MOVE under way announces."""
        self._cookie = b""
        self._cookie_s = -FOREVER
        self._sends = 0

    @property
    def moving(self) -> bool:
        """Whether a MOVE is under way."""
        return self._next is not None

    def datagram(self, now_s: float) -> bytes:
        """Return HELLO to send now."""
        self.attempt += 1
        self._sends += 1
        greeting = Greeting(
            self._cookie,
            NO_PROOF if self._next is None else self._commitment.proof,
            (self._next or self._commitment).value,
            self._hello,
        )
        limits = self._limits
        wait_s = min(limits.retry_first_s * 2 ** min(self._sends - 1, 8), limits.retry_most_s)
        self.due_s = now_s + self._jittered(wait_s)
        flags = 0 if self._next is None else MOVE
        body = encode_greeting(greeting, self._wire)
        return encode_datagram(HELLO, self._session, self.attempt, body, flags=flags)

    def take_cookie(self, cookie: bytes, now_s: float, *, move: bool) -> bool:
        """
        Take a cookie; return whether HELLO is to be sent with it.

        Many requests on their way bring many cookies at once: one is enough.
        """
        if now_s - self._cookie_s < self._limits.retry_first_s:
            return False
        self._cookie = cookie
        self._cookie_s = now_s
        if move and self._next is None:
            self._next = Commitment()
        self._sends = 0
        return True

    def welcomed(self, number: int, *, moved: bool) -> bool:
        """Whether this WELCOME answers a HELLO of ours that is not answered yet."""
        if number > self.attempt or self.due_s == FOREVER or moved != self.moving:
            return False
        self.due_s = FOREVER
        if self._next is not None:
            self._commitment, self._next = self._next, None
        return True
