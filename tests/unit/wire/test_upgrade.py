"""The request that opens a WebSocket, judged without I/O."""

from http import HTTPStatus

import pytest

from support.websocket import KEY, request
from tidewire.wire.upgrade import (
    HEAD_BYTES_MAX,
    Refusal,
    Upgrade,
    UpgradePolicy,
    UpgradeReader,
)


def judge(data: bytes, policy: UpgradePolicy | None = None) -> Upgrade | Refusal | None:
    """Feed everything at once."""
    return UpgradeReader(policy or UpgradePolicy()).feed(data)


@pytest.mark.parametrize(
    "sent",
    [
        request(),
        request(connection="keep-alive, Upgrade"),
        request(upgrade="WebSocket", connection="upgrade"),
        request(sec_websocket_protocol="chat, tidewire.v1"),
        request(sec_websocket_extensions="permessage-deflate"),
        request(content_length="0"),
    ],
)
def test_what_is_granted(sent: bytes) -> None:
    """What browsers and clients send is granted, whatever the case of words in lists."""
    assert Upgrade(KEY, "", b"") == judge(sent)


@pytest.mark.parametrize("step", [1, 7, 100])
def test_any_cut(step: int) -> None:
    """However the request is cut, it is granted once, with the bytes that follow it."""
    sent = request()
    reader = UpgradeReader(UpgradePolicy())
    for start in range(0, len(sent) - step, step):
        assert reader.feed(sent[start : start + step]) is None
    rest = sent[len(range(0, len(sent) - step, step)) * step :]

    assert Upgrade(KEY, "", b"junk") == reader.feed(rest + b"junk")


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400, "not_http"),
        (b"\x00\x00\x00\x08\x01\x00\x00\x00", 400, "not_http"),
        (b"get / http/1.1\r\n\r\n", 400, "not_http"),
        (b"G" * 20, 400, "not_http"),
        (b"GET\r\n\r\n", 400, "not_http"),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: \x01\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: \xff\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "malformed"),
        (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", 505, "wrong_http"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "wrong_method"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426, "no_upgrade"),
        (request(content_length="5"), 400, "malformed"),
        (request(transfer_encoding="chunked"), 400, "malformed"),
        (request("/elsewhere"), 404, "wrong_path"),
        (request("/?token=secret"), 404, "wrong_path"),
        (request(drop="host"), 400, "wrong_host"),
        (request(host="a b"), 400, "wrong_host"),
        (request(drop="upgrade"), 426, "no_upgrade"),
        (request(drop="connection"), 426, "no_upgrade"),
        (request(upgrade="h2c"), 426, "no_upgrade"),
        (request(sec_websocket_version="8"), 426, "wrong_version"),
        (request(drop="sec-websocket-version"), 426, "wrong_version"),
        (request(sec_websocket_key="short"), 400, "wrong_key"),
        (request(sec_websocket_key="AAAA"), 400, "wrong_key"),
        (request(drop="sec-websocket-key"), 400, "wrong_key"),
        (request(drop="sec-websocket-protocol"), 400, "wrong_subprotocol"),
        (request(sec_websocket_protocol="tidewire.v2"), 400, "wrong_subprotocol"),
    ],
)
def test_what_is_refused(sent: bytes, status: int, reason: str) -> None:
    """Each has its status, and a word for the counters."""
    refusal = judge(sent)

    assert isinstance(refusal, Refusal)
    assert (status, reason) == (refusal.status, refusal.reason)
    assert refusal.encode().startswith(f"HTTP/1.1 {status} ".encode())


def test_a_head_that_does_not_end() -> None:
    """Kept are the bytes of the limit, then it is refused; also when the end is just beyond it."""
    reader = UpgradeReader(UpgradePolicy())
    assert reader.feed(b"GET / HTTP/1.1\r\nX: ") is None
    refusal = reader.feed(b"x" * HEAD_BYTES_MAX)
    assert isinstance(refusal, Refusal)
    assert HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE == refusal.status

    late = judge(request(x="x" * HEAD_BYTES_MAX))
    assert isinstance(late, Refusal)
    assert "head_too_large" == late.reason


def test_versions_are_told() -> None:
    """Who speaks another version is told ours, as RFC 6455 4.2.2 wants."""
    refusal = judge(request(sec_websocket_version="8"))

    assert isinstance(refusal, Refusal)
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in refusal.encode()


@pytest.mark.parametrize(
    ("origins", "origin", "granted"),
    [
        ((), None, True),
        ((), "https://app.example", False),
        ((), "null", False),
        (("https://app.example",), "https://app.example", True),
        (("https://app.example",), "HTTPS://APP.example", True),
        (("https://app.example",), "https://app.example:8443", False),
        (("https://app.example",), "http://app.example", False),
        (("https://app.example",), "https://app.example.evil", False),
        (("https://app.example",), "", False),
        (("https://app.example",), None, True),
        (("*",), "https://evil.example", True),
        (("null",), "null", True),
    ],
)
def test_origins(origins: tuple[str, ...], origin: str | None, granted: bool) -> None:
    """A page needs its very origin in the list; who is no browser has none and is not judged."""
    sent = request() if origin is None else request(origin=origin)
    found = judge(sent, UpgradePolicy(origins=origins))

    assert granted == isinstance(found, Upgrade)
    if isinstance(found, Refusal):
        assert (HTTPStatus.FORBIDDEN, "origin_refused") == (found.status, found.reason)


def test_hosts() -> None:
    """With a list of hosts others are refused."""
    policy = UpgradePolicy(hosts=("app.example:7406",))

    assert isinstance(judge(request(host="App.example:7406"), policy), Upgrade)
    refused = judge(request(host="rebound.example"), policy)
    assert isinstance(refused, Refusal)
    assert HTTPStatus.MISDIRECTED_REQUEST == refused.status
