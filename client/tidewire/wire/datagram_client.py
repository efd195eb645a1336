"""
The client's side of a session of datagrams: it sends again what is not answered. Without I/O.

Datagrams and the time go in; datagrams to send are in :attr:`ClientSession.out`; news go to methods
of the :class:`Listener` it is given. The rules are those of ``proto/WIRE.md`` section 9.
"""

import random
import secrets
from collections import Counter
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Final

from tidewire.errors import (
    MessageTooLarge,
    ProtocolViolation,
    ResourceExhausted,
    TidewireError,
    WireVersionUnsupported,
)
from tidewire.wire.bodies import (
    ENDING_OK,
    STATUS_OK,
    Goaway,
    Hello,
    decode_goaway,
    decode_hello,
    encode_goaway,
)
from tidewire.wire.datagram import (
    CANCEL,
    DELIVER,
    GOAWAY,
    HEADER,
    HEADER_BYTES,
    LOSSY,
    MAGIC,
    MOVE,
    ONEWAY,
    OPENED,
    PADDING,
    PING,
    POLL,
    PONG,
    PONG_BODY,
    POSITION,
    REQUEST,
    REQUEST_PREFIX,
    RESPONSE,
    RETRY,
    VERSION,
    WELCOME,
    WORKING,
    Datagram,
    decode_answer,
    decode_delivery,
    decode_opened,
    encode_datagram,
    encode_oneway,
    parse_datagram,
)
from tidewire.wire.datagram_asking import Asking, Listener, error_of_ending, silent
from tidewire.wire.datagram_cancels import Cancels
from tidewire.wire.datagram_hello import Introduction
from tidewire.wire.datagram_limits import DATAGRAM_BYTES, DatagramLimits
from tidewire.wire.datagram_rtt import RoundTrip
from tidewire.wire.datagram_window import Window
from tidewire.wire.deadlines import FOREVER, Deadlines
from tidewire.wire.limits import WireLimits

_POLL_GROWTH: Final = 1.5


class ClientSession:
    """
    One session, from its first HELLO to its end.

    Attributes:
        out: Datagrams to send, oldest first; whoever sends them clears it.
        wake_s: When :meth:`handle_timeout` must run, at the latest.
        bytes_max: Largest datagram the server takes and we may send.
        retransmissions: What was sent again.
        refused: Datagrams that were dropped, by reason.
        oneway_sent: ONEWAYs sent; of them ``oneway_taken`` had come as of the last PONG.
    """

    def __init__(
        self,
        listener: Listener,
        hello: Hello,
        wire: WireLimits,
        limits: DatagramLimits,
        now_s: float,
        seed: int | None = None,
    ) -> None:
        self.out: list[bytes] = []
        self.wake_s = FOREVER
        self.session = secrets.randbits(64) or 1
        self.bytes_max = limits.datagram_bytes
        self.ready = False
        self._over = False
        self.retransmissions = 0
        self.refused: Counter[str] = Counter()
        self.oneway_sent = self.oneway_taken = 0
        self.asking: dict[int, Asking] = {}
        """Requests on their way, by id."""
        self.window = Window(limits, wire.calls_max)
        self._listener = listener
        self._wire = wire
        self._limits = limits
        self._random = random.Random(seed)
        self._rtt = RoundTrip(limits.retry_first_s, limits.retry_least_s, limits.retry_most_s)
        self._working_now = 0
        """Requests the server works on: they take no place in the window."""
        self._queue: list[tuple[int, int, Asking]] = []
        self._order = count()
        self._timers: Deadlines[Asking] = Deadlines()
        self._number = 0
        self._cancels = Cancels(limits, self._rtt, self._jittered)
        self._header = partial(HEADER.pack, MAGIC, VERSION)
        self._introduction = Introduction(self.session, hello, wire, limits, self._jittered)
        self._heard_s, self._pinged_s, self._ping = now_s, FOREVER, 0
        self._send_hello(now_s)

    @property
    def closed(self) -> bool:
        """Whether nothing more is sent or taken."""
        return self._over

    # Requests ---------------------------------------------------------------------------------

    def request(self, asking: Asking, now_s: float) -> None:
        """
        Send a request, now or when the window has a place.

        Raises:
            MessageTooLarge: It does not fit a datagram; nothing was sent.
            ResourceExhausted: Too many wait.
        """
        self._judge_size(asking.size_bytes)
        if self._queue or not self._has_place():
            if asking.deadline_s is not None:
                self._due(asking, asking.deadline_s)
            if len(self._queue) >= self._wire.calls_waiting_max:
                raise ResourceExhausted(f"{len(self._queue)} calls wait for their turn")
            heappush(self._queue, (asking.priority, next(self._order), asking))
            return
        self._begin(asking, now_s)

    def oneway(self, head: bytes, message: bytes, priority: int) -> None:
        """Send a message that nobody answers; raise :class:`MessageTooLarge`."""
        body = encode_oneway(head, message)
        self._judge_size(HEADER_BYTES + len(body))
        self.oneway_sent += 1
        self.out.append(
            encode_datagram(ONEWAY, self.session, self.oneway_sent, body, priority=priority)
        )

    def cancel(self, asking: Asking, now_s: float) -> None:
        """Want a request no more."""
        if asking.over:
            return
        self._forget(asking)
        if asking.number:
            self._cancels.add(asking.number, now_s)
            self._send_cancels(now_s)
            self._pump(now_s)

    def refuse(self, number: int, size_bytes: int, path_bytes: int) -> None:
        """Fail a request whose datagram the path does not carry, as the kernel says."""
        asking = self.asking.get(number)
        if asking is not None:
            self._forget(asking)
            self._listener.failed(
                asking,
                MessageTooLarge(
                    f"the request is a datagram of {size_bytes} bytes; the path carries "
                    f"{path_bytes}: use tcp:// or quic://",
                    metadata={"size_bytes": size_bytes, "limit_bytes": path_bytes},
                ),
            )

    def waiting(self) -> list[Asking]:
        """Take out the requests that were not sent yet."""
        taken = [entry[2] for entry in self._queue if not entry[2].over]
        self._queue.clear()
        return taken

    def close(self) -> None:
        """Tell the server that the client is done."""
        if not self.closed:
            self._over = True
            body = encode_goaway(Goaway(0, ENDING_OK, 0.0))
            self.out.append(encode_datagram(GOAWAY, self.session, self._number, body))

    def _judge_size(self, size: int) -> None:
        if size > self.bytes_max:
            raise MessageTooLarge(
                f"the request is a datagram of {size} bytes; at most {self.bytes_max} are sent: "
                "use tcp:// or quic://, or a larger datagram_bytes at both ends",
                metadata={"size_bytes": size, "limit_bytes": self.bytes_max},
            )

    def _begin(self, asking: Asking, now_s: float) -> None:
        self._number = asking.number = self._number + 1
        asking.first_s = now_s
        self.asking[asking.number] = asking
        self._send_request(asking, now_s)

    def _send_request(self, asking: Asking, now_s: float) -> None:
        timeout_us = 0
        if asking.deadline_s is not None:
            timeout_us = max(1, int((asking.deadline_s - now_s) * 1e6))
        head = asking.head
        self.out.append(
            self._header(REQUEST, asking.flags, asking.priority, 0, self.session, asking.number)
            + REQUEST_PREFIX.pack(timeout_us, next(iter(self.asking)), len(head))
            + head
            + asking.message
        )
        asking.sends += 1
        wait_s = self._rtt.timeout_s
        if asking.sends > 1:
            wait_s = self._jittered(self._rtt.backed_off_s(asking.sends))
        self._due(asking, now_s + wait_s)

    def _due(self, asking: Asking, due_s: float) -> None:
        if asking.deadline_s is not None and asking.deadline_s < due_s:
            due_s = asking.deadline_s
        asking.due_s = due_s
        self._timers.add(due_s, asking)
        self._wake_at(due_s)

    def _jittered(self, wait_s: float) -> float:
        return wait_s * (1 + self._limits.retry_jitter * (2 * self._random.random() - 1))

    def _has_place(self) -> bool:
        asked = len(self.asking)
        window = self.window
        on_their_way = asked - self._working_now
        return self.ready and on_their_way < int(window.size) and asked < window.calls_max

    def _pump(self, now_s: float) -> None:
        while self._queue and self._has_place():
            asking = heappop(self._queue)[2]
            if not asking.over:
                self._begin(asking, now_s)

    def _forget(self, asking: Asking) -> None:
        """Take a request out."""
        asking.over = True
        if self.asking.pop(asking.number, None) is not None and asking.working:
            self._working_now -= 1

    # In ---------------------------------------------------------------------------------------

    def receive(self, data: bytes, now_s: float) -> None:
        """Take a datagram. What is wrong with it is counted, and otherwise without effect."""
        if self.closed:
            return
        try:
            datagram = parse_datagram(data, from_client=False)
            if datagram[3] != self.session:
                raise ProtocolViolation("it is of another session")
            if datagram[0] == RESPONSE:
                self._response(datagram, now_s)
            else:
                self._other(datagram, now_s)
        except ProtocolViolation:
            self.refused["malformed"] += 1
            return
        self._heard_s = now_s

    def _other(self, datagram: Datagram, now_s: float) -> None:
        kind, flags, _, _, number, body = datagram
        if kind == DELIVER:
            self._delivery(number, body)
        elif kind == WORKING:
            self._working(number, body, now_s)
        elif kind == PONG:
            self._pinged_s = FOREVER
            self.oneway_taken = PONG_BODY.unpack(body)[1]
            self._listener.ponged()
        elif kind == RETRY:
            self._retry(body, now_s)
        elif kind == WELCOME:
            self._welcome(bool(flags & MOVE), number, decode_hello(body), now_s)
        elif kind == GOAWAY:
            self._goaway(decode_goaway(body))

    def _response(self, datagram: Datagram, now_s: float) -> None:
        _, flags, _, _, number, body = datagram
        asking = self.asking.get(number)
        if asking is None:
            self._cancels.answered(number)
            return
        if flags & OPENED:
            self._opened(asking, body, now_s)
            return
        answer = decode_answer(flags, body)
        if asking.sends == 1 and not asking.working:
            self._rtt.sample(now_s - asking.first_s)
        self._forget(asking)
        self.window.grow()
        self._listener.answered(asking, answer)
        if self._queue:
            self._pump(now_s)

    def _working(self, number: int, body: bytes, now_s: float) -> None:
        asking = self.asking.get(number)
        if asking is None:
            return
        asking.sends = 0
        asking.answered_s = now_s
        if asking.flags & LOSSY:
            if asking.opened:
                self._expect(asking, POSITION.unpack(body)[0])
            return
        if not asking.working:
            asking.working = True
            self._working_now += 1
            asking.poll_s = self._limits.poll_first_s
            self._due(asking, now_s + self._jittered(asking.poll_s))

    def _opened(self, asking: Asking, body: bytes, now_s: float) -> None:
        position, message = decode_opened(body)
        if not asking.flags & LOSSY:
            raise ProtocolViolation("OPENED answers a request that is no lossy stream")
        asking.answered_s = now_s
        asking.sends = 0
        if asking.opened:
            self._expect(asking, position)
            return
        asking.opened = asking.working = True
        self._working_now += 1
        self._listener.delivered(asking, message, 0)
        self._expect(asking, position)
        self._due(asking, now_s + self._limits.renew_s)

    def _delivery(self, number: int, body: bytes) -> None:
        asking = self.asking.get(number)
        position, weight, message = decode_delivery(body)
        if asking is None or not asking.flags & LOSSY or not asking.opened:
            return
        if position < asking.expected:
            self.refused["late"] += 1
            return
        self._expect(asking, position)
        asking.expected = position + weight
        self._listener.delivered(asking, message, weight)

    def _expect(self, asking: Asking, position: int) -> None:
        """Count what was sent before ``position`` and has not come."""
        missed = position - asking.expected
        if missed > 0:
            asking.expected = position
            self._listener.missed(asking, missed)

    def _goaway(self, goaway: Goaway) -> None:
        if goaway.reason.code == STATUS_OK:
            self._listener.going(goaway)
        else:
            self._end(error_of_ending(goaway.reason))

    # Session ----------------------------------------------------------------------------------

    def _send_hello(self, now_s: float) -> None:
        self.out.append(self._introduction.datagram(now_s))
        self._wake_at(self._introduction.due_s)

    def _retry(self, cookie: bytes, now_s: float) -> None:
        """Prove the address: at the beginning, or after it has changed."""
        if self._introduction.take_cookie(cookie, now_s, move=self.ready):
            self._send_hello(now_s)

    def _welcome(self, moved: bool, number: int, hello: Hello, now_s: float) -> None:
        if not self._introduction.welcomed(number, moved=moved):
            return
        if moved:
            for asking in list(self.asking.values()):
                asking.sends = 1
                self._again(asking, now_s)
            return
        if hello.version_min != VERSION or hello.version_max != VERSION:
            self._end(WireVersionUnsupported(f"the server chose version {hello.version_max}"))
            return
        self.ready = True
        self.bytes_max = min(self.bytes_max, hello.limits.frame_bytes_max)
        self.window.calls_max = hello.limits.calls_max
        self._listener.welcomed(hello)
        self._pump(now_s)

    def _end(self, error: TidewireError) -> None:
        if not self.closed:
            self._over = True
            self.wake_s = FOREVER
            self._listener.ended(error)

    # Time -------------------------------------------------------------------------------------

    def _wake_at(self, due_s: float) -> None:
        if due_s < self.wake_s:
            self.wake_s = due_s

    def handle_timeout(self, now_s: float) -> None:
        """Do what is due at ``now_s`` and set :attr:`wake_s` anew."""
        self.wake_s = FOREVER
        if self._introduction.due_s <= now_s:
            self.retransmissions += 1
            self._send_hello(now_s)
        self._judge_requests(now_s)
        self._send_cancels(now_s)
        self._judge_silence(now_s)
        if self._over:
            self.wake_s = FOREVER
            return
        self._wake_at(self._introduction.due_s)
        self._wake_at(self._timers.next_s())

    def _judge_requests(self, now_s: float) -> None:
        for asking in self._timers.expired(now_s):
            if self._over:
                return
            if asking.over:
                continue
            if asking.deadline_s is not None and asking.deadline_s <= now_s:
                self._listener.expired(asking)
            elif asking.due_s <= now_s and asking.number:
                self._overdue(asking, now_s)

    def _overdue(self, asking: Asking, now_s: float) -> None:
        """Send again what was not answered, or give it up."""
        limits = self._limits
        if asking.opened:
            if now_s - asking.answered_s > limits.lease_s:
                self._give_up(asking, silent(limits.lease_s))
                return
            self._poll(asking)
            self._due(asking, now_s + self._jittered(limits.renew_s))
            return
        sends = asking.sends
        if sends >= limits.silent_sends_max and now_s - self._heard_s > limits.silence_s:
            self._end(silent(now_s - self._heard_s))
            return
        large = asking.size_bytes > DATAGRAM_BYTES and self._heard_s > asking.first_s
        if sends >= (limits.sends_large_max if large else limits.sends_max):
            self._give_up(asking, asking.unanswered(large=large))
            return
        self.window.shrink(self._rtt, now_s)
        self._again(asking, now_s)

    def _again(self, asking: Asking, now_s: float) -> None:
        self.retransmissions += 1
        if asking.working:
            self._poll(asking)
            asking.sends += 1
            asking.poll_s = min(asking.poll_s * _POLL_GROWTH, self._limits.poll_most_s)
            self._due(asking, now_s + self._jittered(asking.poll_s))
            return
        self._send_request(asking, now_s)
        if asking.size_bytes > DATAGRAM_BYTES and asking.sends > 1:
            self.ping()  # whether the server is there at all

    def _poll(self, asking: Asking) -> None:
        self.out.append(encode_datagram(POLL, self.session, asking.number, PADDING))

    def _give_up(self, asking: Asking, error: TidewireError) -> None:
        self._forget(asking)
        self._listener.failed(asking, error)

    def _send_cancels(self, now_s: float) -> None:
        for number in self._cancels.due(now_s):
            self.out.append(encode_datagram(CANCEL, self.session, number, PADDING))
        self._wake_at(self._cancels.next_s)

    def _judge_silence(self, now_s: float) -> None:
        """Ask whether a silent server is still there, and end when it is not."""
        if not self.ready or self._over:
            return
        wire = self._wire
        if self._pinged_s < FOREVER:
            if now_s - self._pinged_s >= wire.ping_timeout_s:
                self._end(silent(now_s - self._heard_s))
                return
            self.ping()
            self._wake_at(now_s + self._limits.retry_most_s)
        elif now_s - self._heard_s >= wire.keepalive_s:
            self._pinged_s = now_s
            self.ping()
            self._wake_at(now_s + self._limits.retry_first_s)
        else:
            self._wake_at(self._heard_s + wire.keepalive_s)

    def ping(self) -> None:
        """Ask whether the server is there, and what of our ONEWAYs it has taken."""
        self._ping += 1
        self.out.append(encode_datagram(PING, self.session, self._ping, PADDING))
