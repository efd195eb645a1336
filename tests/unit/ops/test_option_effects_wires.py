"""What options of the wires and of TLS do."""

import asyncio
import socket
import ssl
import struct
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import trustme

import tidewire
from support import websocket
from support.proofs import proves
from support.server import Running, running
from tidewire import errors
from tidewire.transport import TlsConfig
from tidewire.wire.bodies import Hello, decode_hello, encode_hello
from tidewire.wire.limits import WireLimits

LIMIT_S: Final = 15
LONG_S: Final = 60.0
HEADER: Final = struct.Struct(">IBBHI")


async def dial(it: Running, wire: str = "tcp") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(it.url(wire))
    return await asyncio.open_connection(parts.hostname, parts.port)


def frame(kind: int, body: bytes) -> bytes:
    return HEADER.pack(8 + len(body), kind, 0, 0, 0) + body


async def greet(it: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Hello]:
    """Open a raw connection by hand and read what the server says of itself."""
    reader, writer = await dial(it)
    writer.write(frame(1, encode_hello(Hello(), WireLimits())))
    length, kind, *_ = HEADER.unpack(await reader.readexactly(HEADER.size))
    assert 1 == kind
    return reader, writer, decode_hello(await reader.readexactly(length - 8))


@proves(
    "wire.frame_bytes_max",
    "wire.message_bytes_max",
    "wire.call_credit_bytes",
    "wire.connection_credit_bytes",
    "wire.calls_max",
)
async def test_clients_are_told_the_wires_bounds(tmp_path: Path) -> None:
    """HELLO has the figures of the configuration, and they are not the defaults."""
    wire = {
        "frame_bytes_max": 100_008,
        "message_bytes_max": 12_000_000,
        "call_credit_bytes": 500_000,
        "connection_credit_bytes": 5_000_000,
        "calls_max": 77,
    }
    async with running(tmp_path, ("tcp",), wire=wire) as it:
        _, writer, hello = await greet(it)
        writer.close()

    assert wire == {name: getattr(hello.limits, name) for name in wire}
    assert all(value != getattr(WireLimits(), name) for name, value in wire.items())


async def _closed_by_server(reader: asyncio.StreamReader, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            while await reader.read(4_096):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


SLOW: Final = {
    "hello_timeout_s": LONG_S,
    "frame_timeout_s": LONG_S,
    "keepalive_s": LONG_S,
    "ping_timeout_s": LONG_S,
    "handshake_timeout_s": LONG_S,
}
TIMES: Final = [
    ("hello_timeout_s", {"hello_timeout_s": 0.2}),
    ("frame_timeout_s", {"frame_timeout_s": 0.2}),
    ("keepalive_s", {"keepalive_s": 0.2, "ping_timeout_s": 0.2}),
    ("ping_timeout_s", {"keepalive_s": 0.1, "ping_timeout_s": 0.3}),
    ("handshake_timeout_s", {"handshake_timeout_s": 0.2}),
]


@proves(
    "wire.hello_timeout_s",
    "wire.frame_timeout_s",
    "wire.keepalive_s",
    "wire.ping_timeout_s",
    "wire.handshake_timeout_s",
)
@pytest.mark.parametrize(("name", "short"), TIMES, ids=[name for name, _ in TIMES])
async def test_silent_peers_are_cut_off(tmp_path: Path, name: str, short: dict[str, float]) -> None:
    """Each kind of silence ends a connection in its own time; control: with long ones it stays."""
    tls = name == "handshake_timeout_s"
    for times, is_cut in ((SLOW | short, True), (SLOW, False)):
        wires = ("tls",) if tls else ("tcp",)
        async with running(tmp_path / str(is_cut), wires, wire=times) as it:
            if name in ("hello_timeout_s", "handshake_timeout_s"):
                reader, writer = await dial(it, wires[0])
            else:
                reader, writer, _ = await greet(it)
                if name == "frame_timeout_s":
                    writer.write(b"\x00\x00")  # the beginning of a frame, and no more

            assert is_cut == await _closed_by_server(reader, LIMIT_S if is_cut else 0.8)
            writer.close()


@proves("wire.connections_max")
async def test_connections_are_counted(tmp_path: Path) -> None:
    """One more than allowed is closed at once; control: the first one goes on."""
    async with running(tmp_path, ("tcp",), wire={"connections_max": 1}) as it:
        reader, writer, _ = await greet(it)
        second, other = await dial(it)
        assert await _closed_by_server(second, LIMIT_S)
        assert not await _closed_by_server(reader, 0.2)
        for one in (writer, other):
            one.close()


@proves("wire.unsent_bytes_max")
async def test_bounds_reach_what_they_bind(tmp_path: Path) -> None:
    """Those whose effect is shown lower down arrive there."""
    options: dict[str, dict[str, Any]] = {
        "wire": {"unread_bytes_max": 1_234_567, "unsent_bytes_max": 234_567},
        "engine": {"history_changes_max": 345, "state_cache_bytes": 6_789},
    }
    async with running(tmp_path, ("tcp",), None, **options) as it:
        server: Any = it.server.listeners.raw["tcp"]
        limits = server.options.limits
        engine: Any = it.server.core.engine

        assert (1_234_567, 234_567) == (limits.unread_bytes_max, limits.unsent_bytes_max)
        assert 345 == engine.options.history_changes_max
        assert 6_789 == engine.state_cache.bytes_max


async def _is_let_in(it: Running, wire: str, tls: TlsConfig) -> bool:
    try:
        async with tidewire.connect(it.url(wire), tls=tls, connect_timeout_s=2) as client:
            await client.info()
    except errors.TidewireError:
        return False
    return True


@proves("tls.ca", "tls.certificate", "tls.key", "tls.require_client_certificate")
@pytest.mark.parametrize("wire", ["tls", "grpcs"])
async def test_clients_need_a_certificate_unless_told_otherwise(tmp_path: Path, wire: str) -> None:
    """The files are in use: a client of the authority gets in, one without does not, or may."""
    for required in (True, False):
        options = {"require_client_certificate": required}
        async with running(tmp_path / str(required), (wire,), tls=options) as it:
            known = it.certificates.client()

            assert await _is_let_in(it, wire, known)
            assert required != await _is_let_in(it, wire, TlsConfig(ca=known.ca))


@proves("tls.reload_interval_s")
async def test_new_certificates_are_taken_up(tmp_path: Path) -> None:
    """GRPC has a replaced certificate soon after; control: a long interval keeps the old one."""
    for interval_s, is_new in ((0.05, True), (LONG_S, False)):
        options = {"reload_interval_s": interval_s}
        async with running(tmp_path / str(is_new), ("grpcs",), tls=options) as it:
            port = urlsplit(it.url("grpcs")).port
            before = await _certificate(port, it)
            leaf = it.certificates.authority.issue_cert("localhost", "127.0.0.1")
            _replace(it, leaf)
            if is_new:
                async with asyncio.timeout(LIMIT_S):
                    while await _certificate(port, it) == before:
                        pass  # each try is a handshake, which waits by itself
            else:
                assert before == await _certificate(port, it)


def _replace(it: Running, leaf: trustme.LeafCert) -> None:
    it.certificates.server_certificate.write_bytes(
        b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    )
    leaf.private_key_pem.write_to_path(str(it.certificates.server_key))


async def _certificate(port: int | None, it: Running) -> bytes | None:
    """The certificate a new connection is shown."""
    context = ssl.create_default_context(cafile=str(it.certificates.ca))
    context.set_alpn_protocols(["h2"])
    tls = it.certificates.client()
    context.load_cert_chain(str(tls.certificate), str(tls.key))
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return bytes(shown)


@proves("websocket.origins", "websocket.hosts")
async def test_pages_need_their_origin_and_names_their_place(tmp_path: Path) -> None:
    """By default no page gets in and every name of the server does; the lists say otherwise."""

    async def status(it: Running, **headers: str) -> int:
        return (await websocket.ask(it.url("ws"), websocket.request(**headers)))[0]

    page = {"origin": "https://app.example"}
    async with running(tmp_path / "default", ("ws",)) as it:
        assert 403 == await status(it, **page)
        assert 101 == await status(it, host="any.example")
    lists = {"origins": ["https://app.example"], "hosts": ["app.example"]}
    async with running(tmp_path / "lists", ("ws",), websocket=lists) as it:
        assert 101 == await status(it, host="app.example", **page)
        assert 403 == await status(it, host="app.example", origin="https://evil.example")
        assert 421 == await status(it, host="any.example", **page)


@proves("websocket.client_certificates")
async def test_browsers_are_not_asked_for_certificates(tmp_path: Path) -> None:
    """
    With it off a client without a certificate is served on wss, and on no other wire; nor is it
    asked for one, which makes browsers give up.
    """
    async with running(tmp_path, ("tls", "wss"), websocket={"client_certificates": False}) as it:
        anonymous = TlsConfig(ca=it.certificates.ca)
        async with tidewire.connect(it.url("wss"), tls=anonymous) as client:
            info = await client.info()
        with pytest.raises(errors.Unavailable):
            async with tidewire.connect(it.url("tls"), tls=anonymous) as client:
                await client.info()

    assert {"tls": True, "wss": False} == {
        each.url.partition(":")[0]: each.client_certificate_required for each in info.listeners
    }


STREAMS: Final = ("tcp", "tls", "ws", "unix")
"""Wires whose connections are sockets of the kernel's streams."""
SOCKETS: Final = {
    "backlog": 77,
    "tcp_keepalive_s": 17,
    "write_timeout_s": 12.5,
    "send_buffer_bytes": 40_000,
    "receive_buffer_bytes": 50_000,
}
BACKLOG_AT: Final = 28
"""Where ``TCP_INFO`` has the length of a listening socket's queue."""


@proves(
    "wire.backlog",
    "wire.tcp_keepalive_s",
    "wire.write_timeout_s",
    "wire.send_buffer_bytes",
    "wire.receive_buffer_bytes",
)
async def test_options_reach_the_sockets(tmp_path: Path) -> None:
    """The kernel says so of each listener and accepted connection; control: it has its own."""
    for options, is_set in ((SOCKETS, True), ({}, False)):
        async with running(tmp_path / str(is_set), STREAMS, wire=options) as it:
            for wire in STREAMS:
                raw: Any = it.server.listeners.raw[wire]
                async with tidewire.connect(it.url(wire), tls=it.tls(wire)):
                    (link,) = raw._links.values()
                    sock = link.protocol.transport.get_extra_info("socket")
                    sizes = [
                        sock.getsockopt(socket.SOL_SOCKET, name)
                        for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)
                    ]
                    # The kernel doubles them, for its own books.
                    assert is_set == (sizes == [80_000, 100_000])
                    if wire != "unix":
                        assert _tcp_options(sock) == ((17, 12_500) if is_set else (30, 30_000))
                        info = raw._listeners[0].sock.getsockopt(
                            socket.IPPROTO_TCP, socket.TCP_INFO, 104
                        )
                        (backlog,) = struct.unpack_from("I", info, BACKLOG_AT)
                        assert backlog == (77 if is_set else 1_024)


def _tcp_options(sock: Any) -> tuple[int, int]:
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return (
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    )


@proves("wire.datagram_bytes")
async def test_datagrams_have_the_size_the_server_says(tmp_path: Path) -> None:
    """A request over it is refused before it is sent; control: with the default it goes."""
    told: list[str] = []
    for options in ({"datagram_bytes": 600}, {}):
        async with (
            running(tmp_path / str(len(told)), ("udp",), wire=options) as it,
            tidewire.connect(it.url("udp")) as client,
        ):
            try:
                await client.state.put("a", b"x" * 900)
                told.append("taken")
            except errors.MessageTooLarge:
                told.append("too large")

    assert ["too large", "taken"] == told
