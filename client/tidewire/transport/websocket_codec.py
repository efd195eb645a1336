"""
The codec of WebSockets: picows, and what it is given. RFC 6455's framing, without our protocol.

picows makes and reads frames, masks and unmasks. It is given a transport that keeps what it writes,
so that what a turn of the event loop queues still leaves in one write: by itself it makes one call
to the kernel for each message. Only this file and the shells know picows.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # left out of its stubs

from tidewire.wire.frame import PREFIX_BYTES
from tidewire.wire.upgrade import SUBPROTOCOL

READ_BYTES_FIRST: Final = 2 * 1024
"""Read buffer of a connection at first; it doubles up to what the largest frame needs."""
BINARY: Final = WSMsgType.BINARY

_LOGGER = logging.getLogger(__name__)


class Quiet(logging.LoggerAdapter[logging.Logger]):
    """Takes what picows logs as errors: a peer that breaks the rules is counted, not reported."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log for debugging, whatever the level."""
        kwargs.pop("exc_info", None)
        self.logger.debug("picows: " + str(msg), *args)  # noqa: G003 (a format string)


_QUIET: Final = Quiet(_LOGGER)


class Cork:
    """
    The transport picows writes to: keeps it for the shell.

    It says that bytes wait already, so that picows does not go to the socket by itself. What picows
    calls for every message is a method of C.
    """

    def __init__(self, transport: asyncio.Transport, closed: Callable[[], None]) -> None:
        self.out: list[bytes | bytearray | memoryview] = []
        """What was written; emptied and never replaced."""
        self.write = self.out.append
        self.get_write_buffer_size = (1).__int__
        self.get_extra_info = transport.get_extra_info
        self.close = closed
        self.abort = transport.abort

    def writelines(self, parts: list[memoryview | bytes]) -> None:
        """Keep a header, whose memory picows uses again, and a body."""
        header, body = parts
        self.out.append(bytes(header))
        self.out.append(body)


class Inbox(WSListener):
    """
    Takes the frames picows has read, judges them, and keeps their payloads until the read is over.
    """

    def __init__(self, message_bytes_max: int) -> None:
        self.message_bytes_max = message_bytes_max
        self.connected = False
        self.special = False
        """There was something else than whole messages: one of those below is set."""
        self.messages: list[bytes] = []
        self.pings: bytes | None = None
        self.closed: str | None = None
        """What the peer gave as its reason to close."""
        self.violation: tuple[WSCloseCode, str] | None = None
        self.tail_bytes = 0
        """Bytes of an incomplete frame after the last whole one of this read."""
        self.parts: bytearray | None = None
        """A message that comes in fragments."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The upgrade is done."""
        self.connected = True

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Keep one frame of the peer."""
        self.tail_bytes = frame.tail_size
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._refuse(WSCloseCode.PROTOCOL_ERROR, "no extension was agreed, nor compression")
        elif kind == BINARY and frame.fin and not self.special:
            self._keep(frame.get_payload_as_bytes())
        elif self.violation is None:
            self.special = True
            self._take_other(kind, frame)

    def _keep(self, message: bytes) -> None:
        if int.from_bytes(message[:PREFIX_BYTES], "big") + PREFIX_BYTES != len(message):
            self._refuse(WSCloseCode.PROTOCOL_ERROR, "a message must be one whole frame")
            return
        self.messages.append(message)

    def _take_other(self, kind: WSMsgType, frame: WSFrame) -> None:
        if kind == WSMsgType.PING:
            self.pings = frame.get_payload_as_bytes()
        elif kind == WSMsgType.CLOSE:
            code = int.from_bytes(frame.get_payload_as_bytes()[:2], "big")
            self.closed = f"{code or 'no code'} {frame.get_close_reason() or ''}".strip()
        elif kind == WSMsgType.TEXT:
            self._refuse(WSCloseCode.UNSUPPORTED_DATA, "messages must be binary")
        elif kind in (BINARY, WSMsgType.CONTINUATION):
            self._assemble(kind, frame)

    def _assemble(self, kind: WSMsgType, frame: WSFrame) -> None:
        """
        Put a message together that was cut: a browser's network process and proxies may do that.
        """
        if (kind == BINARY) is (self.parts is not None):
            self._refuse(WSCloseCode.PROTOCOL_ERROR, "fragments of two messages are mixed")
            return
        if self.parts is None:
            self.parts = bytearray()
        if len(self.parts) + frame.payload_size > self.message_bytes_max:
            self._refuse(
                WSCloseCode.MESSAGE_TOO_BIG, f"a message has at most {self.message_bytes_max} bytes"
            )
            return
        self.parts += frame.get_payload_as_memoryview()
        if frame.fin:
            whole, self.parts = bytes(self.parts), None
            self._keep(whole)

    def settled(self) -> None:
        """What was special is dealt with."""
        self.special = self.parts is not None or self.violation is not None

    def _refuse(self, code: WSCloseCode, text: str) -> None:
        self.special = True
        if self.violation is None:
            self.violation = (code, text)


def make_codec(
    factory: Any, *, host: str, path: str, is_client: bool, message_bytes_max: int
) -> Any:
    """
    Return picows' protocol, which is driven as a transport drives one.

    Args:
        factory: Makes the inbox when the upgrade is done, as picows wants it for each side.
        host: ``Host`` of a client's request.
        path: Path of a client's request.
        is_client: Which side this is.
        message_bytes_max: Largest frame that is read.
    """
    return WSProtocol(
        host,
        path,
        is_client,
        factory,
        _QUIET,
        True,  # disconnect_on_exception
        None,  # websocket_handshake_timeout: whoever dials or listens has one
        False,  # enable_auto_ping: our own PING frames do that
        0.0,
        0.0,
        1,
        False,  # enable_auto_pong: not while the peer does not read
        message_bytes_max,
        {"Sec-WebSocket-Protocol": SUBPROTOCOL} if is_client else None,
        READ_BYTES_FIRST,
    )


def whole_frames(pieces: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Put frames together whose header and body are separate pieces."""
    parts: list[bytes | memoryview] = []
    missing = 0
    for piece in pieces:
        if not missing:
            size = len(piece)
            missing = int.from_bytes(piece[:PREFIX_BYTES], "big") + PREFIX_BYTES - size
            if not missing:
                yield piece
            else:
                parts = [piece]
        else:
            parts.append(piece)
            missing -= len(piece)
            if not missing:
                yield b"".join(parts)
