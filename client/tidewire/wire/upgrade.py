"""
The HTTP request that opens a WebSocket, judged without I/O: RFC 6455 section 4, as a server.

Bytes go in until the head is complete; out comes either what is needed to say 101, or a refusal
with its status. Every refusal says what was expected, because people with ``curl`` read it.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

SUBPROTOCOL: Final = "tidewire.v1"
"""What both sides must name in ``Sec-WebSocket-Protocol``."""
VERSION: Final = "13"
HEAD_BYTES_MAX: Final = 8 * 1024
"""Request line and headers, with the empty line after them."""
ANY_ORIGIN: Final = "*"
KEY_BYTES: Final = 16

_END: Final = b"\r\n\r\n"
_BEGINS_LIKE_HTTP: Final = re.compile(rb"[A-Z]{1,16}(?: |\Z)")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9._~:\[\]-]+\Z")
_ONCE: Final = frozenset(
    {"host", "origin", "upgrade", "sec-websocket-key", "sec-websocket-version", "content-length"}
)


@dataclass(frozen=True, slots=True)
class UpgradePolicy:
    """
    What a listener takes.

    Attributes:
        path: The only path that is served.
        origins: Origins of pages that may connect, such as ``https://app.example``; ``*`` is every
            page. A request without ``Origin`` is not from a browser and is not judged by this.
        hosts: Values of ``Host`` that are served, as the client writes them; none means any.
    """

    path: str = "/"
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    Why there is no WebSocket.

    Attributes:
        status: HTTP status.
        reason: One word of a bounded set, for counters.
        text: What was expected, for people.
        headers: More of the answer.
    """

    status: HTTPStatus
    reason: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the whole answer; the connection is closed after it."""
        body = self.text.encode("ascii", "replace") + b"\n"
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "Content-Type: text/plain",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join(lines).encode("ascii") + _END + body


@dataclass(frozen=True, slots=True)
class Upgrade:
    """
    A request that is granted.

    Attributes:
        key: Value of ``Sec-WebSocket-Key``.
        origin: Page it comes from; empty when it is not from a browser.
        rest: Bytes after the head.
    """

    key: str
    origin: str
    rest: bytes


TIMEOUT: Final = Refusal(
    HTTPStatus.REQUEST_TIMEOUT, "timeout", "the upgrade request did not come in time"
)


class UpgradeReader:
    """Takes bytes until they are a request, and judges it. Keeps ``HEAD_BYTES_MAX`` at most."""

    def __init__(self, policy: UpgradePolicy) -> None:
        self._policy = policy
        self._head = bytearray()

    def feed(self, data: bytes) -> Upgrade | Refusal | None:
        """Take bytes; return what they come to, ``None`` while the head is incomplete."""
        head = self._head
        head += data
        if not _BEGINS_LIKE_HTTP.match(head):
            return _bad("not_http", "this port speaks WebSocket; the first bytes are not HTTP")
        end = head.find(_END, 0, HEAD_BYTES_MAX)
        if end < 0:
            if len(head) >= HEAD_BYTES_MAX:
                return Refusal(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "head_too_large",
                    f"request line and headers may have {HEAD_BYTES_MAX} bytes",
                )
            return None
        rest = bytes(head[end + len(_END) :])
        try:
            lines = bytes(head[:end]).decode("ascii").split("\r\n")
        except UnicodeDecodeError:
            return _bad("malformed", "the request is not ASCII")
        return self._judge(lines, rest)

    def _judge(self, lines: list[str], rest: bytes) -> Upgrade | Refusal:
        headers = _headers(lines[1:])
        if isinstance(headers, Refusal):
            return headers
        refusal = (
            self._judge_line(lines[0])
            or self._judge_source(headers)
            or _judge_upgrade(headers)
            or _judge_subprotocol(headers)
        )
        return refusal or Upgrade(headers["sec-websocket-key"], headers.get("origin", ""), rest)

    def _judge_line(self, line: str) -> Refusal | None:
        parts = line.split(" ")
        if len(parts) != 3 or not parts[1].startswith("/"):
            return _bad("malformed", "the request line is not METHOD /path HTTP/1.1")
        method, path, version = parts
        if version != "HTTP/1.1":
            return Refusal(
                HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "wrong_http", "a WebSocket needs HTTP/1.1"
            )
        if method != "GET":
            return Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "wrong_method",
                "a WebSocket is opened by GET",
                {"Allow": "GET"},
            )
        if path != self._policy.path:
            return Refusal(HTTPStatus.NOT_FOUND, "wrong_path", f"the path is {self._policy.path}")
        return None

    def _judge_source(self, headers: Mapping[str, str]) -> Refusal | None:
        policy = self._policy
        host = headers.get("host", "")
        if not _HOST.match(host):
            return _bad("wrong_host", "the request needs one valid Host")
        if policy.hosts and host.lower() not in policy.hosts:
            return Refusal(
                HTTPStatus.MISDIRECTED_REQUEST, "wrong_host", "this server has other names"
            )
        origin = headers.get("origin")
        if origin is None or ANY_ORIGIN in policy.origins or origin.lower() in policy.origins:
            return None
        return Refusal(
            HTTPStatus.FORBIDDEN,
            "origin_refused",
            "pages of this origin may not connect; the server's option is websocket.origins",
        )


def _bad(reason: str, text: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, reason, text)


def _headers(lines: list[str]) -> dict[str, str] | Refusal:
    """Return headers by lower-case name, lists joined; refuse what is not a header."""
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not _TOKEN.match(name) or any(c < " " and c != "\t" for c in value):
            return _bad("malformed", "a header is not 'Name: value'")
        name = name.lower()
        if name in found:
            if name in _ONCE:
                return _bad("malformed", f"{name} may be there once")
            value = f"{found[name]},{value}"
        found[name] = value
    if found.get("content-length", "0").strip("0") or "transfer-encoding" in found:
        return _bad("malformed", "the request may not have a body")
    return found


def _items(headers: Mapping[str, str], name: str) -> list[str]:
    return [item.strip(" \t") for item in headers.get(name, "").split(",")]


def _judge_upgrade(headers: Mapping[str, str]) -> Refusal | None:
    # Firefox sends "keep-alive, Upgrade": it is a list.
    connection = [item.lower() for item in _items(headers, "connection")]
    upgrade = [item.lower() for item in _items(headers, "upgrade")]
    if "upgrade" not in connection or "websocket" not in upgrade:
        return Refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            "no_upgrade",
            "this port speaks WebSocket only",
            {"Upgrade": "websocket"},
        )
    if headers.get("sec-websocket-version") != VERSION:
        return Refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            "wrong_version",
            f"Sec-WebSocket-Version must be {VERSION}",
            {"Upgrade": "websocket", "Sec-WebSocket-Version": VERSION},
        )
    try:
        key = base64.b64decode(headers.get("sec-websocket-key", ""), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        return _bad("wrong_key", f"Sec-WebSocket-Key must be {KEY_BYTES} bytes in base64")
    return None


def _judge_subprotocol(headers: Mapping[str, str]) -> Refusal | None:
    if SUBPROTOCOL in _items(headers, "sec-websocket-protocol"):
        return None
    return _bad("wrong_subprotocol", f"Sec-WebSocket-Protocol must offer {SUBPROTOCOL}")
