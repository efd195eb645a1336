"""The shells of a connection in a WebSocket: one frame per binary message, both ends."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from picows import (
    WSCloseCode,
    WSHandshakeError,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)

from tidewire.errors import (
    Cancelled,
    ConnectionLost,
    CreditExceeded,
    PeerTooSlow,
    PermissionDenied,
    ProtocolViolation,
    ResourceExhausted,
    TidewireError,
)
from tidewire.transport.counters import WireCounters
from tidewire.transport.options import CLOSE_TIMEOUT_S
from tidewire.transport.stream import JOIN_BYTES_MAX, ConnectionT, WireProtocol
from tidewire.transport.websocket_codec import BINARY, Cork, Inbox, make_codec, whole_frames
from tidewire.wire.frame import PREFIX_BYTES
from tidewire.wire.limits import WireLimits
from tidewire.wire.upgrade import SUBPROTOCOL, Refusal, Upgrade, UpgradePolicy, UpgradeReader

CLOSE_REASON_BYTES_MAX: Final = 123
"""RFC 6455: a control frame has at most 125 bytes, two of them are the code."""
READ_BYTES_MAX: Final = 128 * 1024
"""
What one read takes from the kernel at most.

picows doubles its buffer whenever a read fills it: 64 KiB frames leave it at 256 KiB, the largest
frames at 512 KiB. Without a bound it follows the kernel's buffer, 1 MiB and more.
"""
REFUSAL_TEXT_MAX: Final = 200
"""Of what a server says when it refuses the upgrade, so much is shown."""


class WebSocketProtocol(WireProtocol[ConnectionT]):
    """What the shells of both ends share, from the upgrade on."""

    def __init__(
        self,
        make: Callable[[WireProtocol[ConnectionT], float], ConnectionT],
        counters: WireCounters,
        limits: WireLimits,
    ) -> None:
        super().__init__(make, counters)
        self._inbox = Inbox(limits.frame_bytes_max + PREFIX_BYTES)
        self._frame_timeout_s = limits.frame_timeout_s
        self._codec: Any = None
        self._codec_buffer: Callable[[int], memoryview] | None = None
        self._cork: Cork
        self._begun = False
        self._deaf_for_ever = False
        self._lost_by: Exception | None = None
        self._frame_begun_s: float | None = None
        self._frame_timer: asyncio.TimerHandle | None = None

    def _open_codec(self, factory: Any, *, host: str, path: str, is_client: bool) -> None:
        """Let picows begin its side of the upgrade."""
        self._cork = Cork(self.transport, self._codec_closes)
        self._codec = make_codec(
            factory,
            host=host,
            path=path,
            is_client=is_client,
            message_bytes_max=self._inbox.message_bytes_max,
        )
        self._codec.connection_made(self._cork)
        self._codec_buffer = self._codec.get_buffer
        self._uncork()

    def get_buffer(self, sizehint: int) -> memoryview:
        """
        Where the next bytes go: into picows' own buffer, from the upgrade on.

        A method of the class, because event loops keep it from the start.
        """
        if self._codec_buffer is None:
            return self._scratch
        buffer = self._codec_buffer(sizehint)
        return buffer if len(buffer) <= READ_BYTES_MAX else buffer[:READ_BYTES_MAX]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the peer sent, out of the buffer."""
        if self._deaf_for_ever:
            return
        inbox = self._inbox
        inbox.tail_bytes = -1
        self._codec.buffer_updated(nbytes)
        if self._cork.out:
            self._uncork()
        if not self._begun:
            if not inbox.connected:
                return
            self._begin()
        messages = inbox.messages
        if messages:
            data = messages[0] if len(messages) == 1 else b"".join(messages)
            messages.clear()
            self._counters.bytes_in += nbytes - len(data)
            self.take(data)
        else:
            self._counters.bytes_in += nbytes
        if inbox.tail_bytes or inbox.special or self._frame_begun_s is not None:
            self._take_unusual()

    def _take_unusual(self) -> None:
        """See to what is neither a whole message nor the end of one."""
        inbox = self._inbox
        if inbox.tail_bytes or inbox.parts is not None:
            self._watch_frame()
        else:
            self._frame_begun_s = None
        if inbox.pings is not None:
            self._pong()
        if inbox.violation is not None or inbox.closed is not None:
            self._obey()
        inbox.settled()

    def _begin(self) -> None:
        self._begun = True
        WireProtocol.connection_made(self, self.transport)

    def _pong(self) -> None:
        """Answer the last PING; none while the peer does not read, or answers would heap up."""
        payload, self._inbox.pings = self._inbox.pings, None
        if not self._paused:
            self._codec.transport.send_pong(payload)
            self._uncork()

    def _obey(self) -> None:
        """End for what the inbox found."""
        self._deaf_for_ever = True
        if self._inbox.violation is not None:
            self._fail(self._inbox.violation[1])
        else:
            why = f"the peer closed the WebSocket: {self._inbox.closed}"
            self.connection.connection_lost(ConnectionLost(why))
        self.flush()

    def _codec_closes(self) -> None:
        """End for what picows found; it has sent CLOSE already."""
        if not self._begun:
            self.transport.close()
        elif not self._deaf_for_ever:
            self._deaf_for_ever = True
            sent = self._codec.transport.close_handshake
            self._fail(sent.sent.reason if sent is not None and sent.sent is not None else "")
            self.flush()

    def _fail(self, why: str) -> None:
        self.connection.fail(ProtocolViolation(f"not as a WebSocket must be: {why}"))

    def _watch_frame(self) -> None:
        if self._frame_begun_s is None or self._inbox.tail_bytes > 0:
            self._frame_begun_s = self._loop.time()
            if self._frame_timer is None:
                self._frame_timer = self._loop.call_later(self._frame_timeout_s, self._judge_frame)

    def _judge_frame(self) -> None:
        self._frame_timer = None
        if self._frame_begun_s is None or self.connection.closed:
            return
        left_s = self._frame_begun_s + self._frame_timeout_s - self._loop.time()
        if left_s > 0:
            self._frame_timer = self._loop.call_later(left_s, self._judge_frame)
            return
        self._deaf_for_ever = True
        wait_s = self._frame_timeout_s
        self.connection.fail(PeerTooSlow(f"a frame did not come within {wait_s:g} s"))
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the calls of a WebSocket that has ended."""
        if self._frame_timer is not None:
            self._frame_timer.cancel()
        if self._codec is not None:
            self._codec.connection_lost(exc)
        if self._begun:
            super().connection_lost(exc)
        elif not self.lost.done():
            self._lost_by = exc
            self.lost.set_result(None)

    # Out --------------------------------------------------------------------------------------

    def _write(self, pieces: list[bytes | memoryview]) -> None:
        send = self._codec.transport.send
        if len(pieces) == 1:
            send(BINARY, pieces[0])
        else:
            for frame in whole_frames(pieces):
                send(BINARY, frame)
        self._uncork()

    def _uncork(self) -> None:
        out = self._cork.out
        if not out or self.transport.is_closing():
            out.clear()
            return
        size = sum(map(len, out))
        self._counters.bytes_out += size
        if size <= JOIN_BYTES_MAX:
            self.transport.write(b"".join(out) if len(out) > 1 else out[0])
        else:
            self.transport.writelines(out)
        out.clear()

    def _end(self) -> None:
        """Say CLOSE, then close as any stream."""
        violation = self._inbox.violation
        error = self.connection.error
        code, text = violation or (_close_code(error), error.message if error is not None else "")
        reason = text.encode("ascii", "replace")[:CLOSE_REASON_BYTES_MAX]
        if not self._codec.transport.is_close_frame_sent:
            self._codec.transport.send_close(code, reason)
            self._uncork()
        super()._end()


def _close_code(error: TidewireError | None) -> WSCloseCode:
    if error is None or isinstance(error, (Cancelled, ConnectionLost)):
        return WSCloseCode.OK
    if isinstance(error, (ProtocolViolation, CreditExceeded)):
        return WSCloseCode.PROTOCOL_ERROR
    if isinstance(error, ResourceExhausted):
        return WSCloseCode.POLICY_VIOLATION
    return WSCloseCode.INTERNAL_ERROR


class ClientWebSocket(WebSocketProtocol[ConnectionT]):
    """The client's end."""

    def __init__(
        self,
        make: Callable[[WireProtocol[ConnectionT], float], ConnectionT],
        counters: WireCounters,
        limits: WireLimits,
        *,
        host: str,
        path: str,
    ) -> None:
        super().__init__(make, counters, limits)
        self._host = host
        self._path = path

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self.transport = transport  # type: ignore[assignment]  # by shape: see WireProtocol
        self._open_codec(self._granted, host=self._host, path=self._path, is_client=True)

    def _granted(self, request: WSUpgradeRequest, response: WSUpgradeResponse) -> Inbox:
        agreed = response.headers.get("Sec-WebSocket-Protocol")
        if agreed != SUBPROTOCOL or "Sec-WebSocket-Extensions" in response.headers:
            raise WSHandshakeError(f"it speaks {agreed!r}, not {SUBPROTOCOL}")
        return self._inbox

    async def upgraded(self, url: str) -> None:
        """
        Wait for the server's answer.

        Raises:
            PermissionDenied: The server says 401 or 403.
            ConnectionLost: It says something else, or nothing.
            OSError: The connection broke; with ``ssl.SSLError`` the server refused in TLS.
        """
        try:
            await self._codec.wait_until_handshake_complete()
        except WSHandshakeError as error:
            raise _refused(url, error) from error
        if self._lost_by is not None:
            raise self._lost_by
        if not self._begun:
            raise ConnectionLost(f"{url} closed the connection before the upgrade")


def _refused(url: str, error: WSHandshakeError) -> TidewireError:
    response = error.response
    if response is None or response.status == HTTPStatus.SWITCHING_PROTOCOLS:
        return ConnectionLost(f"{url} does not speak WebSocket as tidewire does: {error}")
    said = (error.raw_body or b"")[:REFUSAL_TEXT_MAX].decode("ascii", "replace").strip()
    status = response.status
    text = f"{url} refused the upgrade with {status.value} {status.phrase}: {said}"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return PermissionDenied(text)
    return ConnectionLost(text)


class ServerWebSocket(WebSocketProtocol[ConnectionT]):
    """The server's end. It is a connection from the upgrade on; whoever listens waits for that."""

    def __init__(
        self,
        make: Callable[[WireProtocol[ConnectionT], float], ConnectionT],
        counters: WireCounters,
        limits: WireLimits,
        policy: UpgradePolicy,
    ) -> None:
        super().__init__(make, counters, limits)
        self._reader: UpgradeReader | None = UpgradeReader(policy)
        self.upgraded: asyncio.Future[Refusal | None] = self._loop.create_future()
        """Done when the upgrade is: ``None``, or why there is none."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the request."""
        self.transport = transport  # type: ignore[assignment]  # by shape: see WireProtocol

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the peer sent, out of the buffer."""
        if self._reader is None:
            super().buffer_updated(nbytes)
            return
        self._counters.bytes_in += nbytes
        found = self._reader.feed(self._scratch[:nbytes].tobytes())
        if isinstance(found, Refusal):
            self.refuse(found)
        elif found is not None:
            self._reader = None
            self._grant(found)

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an HTTP status and close."""
        self._reader = None
        self._deaf_for_ever = True
        if not self.transport.is_closing():
            self.transport.write(refusal.encode())
            self.transport.close()
            # TLS waits for the peer to say goodbye too; it may not.
            self._loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)
        if not self.upgraded.done():
            self.upgraded.set_result(refusal)

    def _grant(self, upgrade: Upgrade) -> None:
        self._open_codec(self._answer, host="", path="", is_client=False)
        request = (
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {upgrade.key}\r\n\r\n"
        ).encode("ascii")
        # Only what was judged reaches picows; what came after the head follows as it is.
        # The peer's own bytes are counted already.
        self._counters.bytes_in -= len(request) + len(upgrade.rest)
        self._feed(request)
        self.upgraded.set_result(None)
        self._feed(upgrade.rest)

    def _feed(self, data: bytes) -> None:
        while data and not self._deaf_for_ever:
            buffer = self.get_buffer(-1)
            taken = min(len(data), len(buffer))
            buffer[:taken] = data[:taken]
            data = data[taken:]
            super().buffer_updated(taken)

    def _answer(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        response = WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": SUBPROTOCOL})
        return WSUpgradeResponseWithListener(response, self._inbox)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the calls of a WebSocket that has ended."""
        super().connection_lost(exc)
        if not self.upgraded.done():
            self.upgraded.set_exception(
                ConnectionResetError("the connection ended before the upgrade")
            )
            self.upgraded.exception()  # whoever waited may be gone
