"""
Who gets in over TLS and who does not, alike on tls:// and grpcs://, each with a control that gets
in.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import serving_echo
from support.wires import ENCRYPTED
from tidewire.client.translate import translate, was_never_sent
from tidewire.errors import ConnectionLost, InvalidArgument, TlsFailed, WireUnsuitable
from tidewire.transport import (
    RawServer,
    ServerCredentials,
    ServerTls,
    TlsConfig,
    TransportOptions,
    channel,
)

LIMIT_S = 10.0
FAST = TransportOptions(connect_timeout_s=2.0, backoff_first_s=0.05)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority both sides trust."""
    return Authority(tmp_path)


@pytest.fixture(params=ENCRYPTED)
async def secured(request: pytest.FixtureRequest, authority: Authority) -> AsyncIterator[str]:
    """URL of an echo server with a certificate for localhost and 127.0.0.1."""
    tls = authority.config(authority.issue("server"))
    async with serving_echo(request.param, server_tls=tls) as (url, _, _):
        yield url


async def say(url: str, tls: TlsConfig | None, options: TransportOptions = FAST) -> str:
    """Say hello once; return what came back."""
    async with channel(url, tls=tls, options=options) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        answer = await stub.Say(echo_pb2.SayRequest(text="hello"), timeout=LIMIT_S)
        return str(answer.text)


async def refused(url: str, tls: TlsConfig | None) -> str:
    """Say hello once; it must not get through. Return the message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(url, tls)
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    return caught.value.details() or ""


async def test_good_certificate(secured: str, authority: Authority) -> None:
    """The control: a client with a good certificate gets in, by address and by name."""
    tls = authority.config(authority.issue("client"))

    assert "hello" == await say(secured, tls)
    assert "hello" == await say(secured.replace("127.0.0.1", "localhost"), tls)


async def test_no_client_certificate(secured: str, authority: Authority) -> None:
    """A client without a certificate is refused."""
    await refused(secured, authority.config(None))


async def test_client_certificate_of_another_authority(
    secured: str, authority: Authority, tmp_path: Path
) -> None:
    """A client whose certificate another authority signed is refused."""
    rogue = Authority(tmp_path, "rogue").issue("rogue-client")

    await refused(secured, authority.config(rogue))


async def test_expired_client_certificate(secured: str, authority: Authority) -> None:
    """A client whose certificate has expired is refused."""
    await refused(secured, authority.config(authority.issue("old", expired=True)))


async def test_server_of_another_authority(
    secured: str, authority: Authority, tmp_path: Path
) -> None:
    """A client does not talk to a server its authority did not sign."""
    client = authority.issue("client")
    other = Authority(tmp_path, "other")

    await refused(secured, other.config(client))


@pytest.mark.parametrize("wire", ENCRYPTED)
async def test_server_with_another_name(wire: str, authority: Authority) -> None:
    """
    A client does not talk to a server whose certificate is for another name, unless told that
    name.
    """
    server = authority.config(authority.issue("server", names=("elsewhere",), addresses=()))
    client = authority.config(authority.issue("client"))
    async with serving_echo(wire, server_tls=server) as (url, _, _):
        await refused(url, client)
        assert "hello" == await say(url, replace(client, server_name="elsewhere"))


@pytest.mark.parametrize("wire", [wire for wire in ENCRYPTED if wire != "grpcs"])
async def test_a_client_is_told_who_refused(
    wire: str, authority: Authority, tmp_path: Path
) -> None:
    """What it refuses itself is TlsFailed; what the server refuses ConnectionLost, never sent."""
    client = authority.issue("client")
    cases = (
        (Authority(tmp_path, "other").config(client), TlsFailed),
        (replace(authority.config(client), server_name="elsewhere"), TlsFailed),
        (authority.config(None), ConnectionLost),
    )
    tls = authority.config(authority.issue("server"))
    async with serving_echo(wire, server_tls=tls) as (url, _, _):
        for mine, expected in cases:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await say(url, mine)
            error = translate(caught.value)
            assert expected is type(error)
            assert was_never_sent(error) is (expected is ConnectionLost)


@pytest.mark.parametrize("wire", ENCRYPTED)
async def test_expired_server(wire: str, authority: Authority) -> None:
    """A client does not talk to a server whose certificate has expired."""
    server = authority.config(authority.issue("server", expired=True))
    client = authority.config(authority.issue("client"))
    async with serving_echo(wire, server_tls=server) as (url, _, _):
        await refused(url, client)


@pytest.mark.parametrize("wire", [wire for wire in ENCRYPTED if wire != "grpcs"])
def test_a_key_with_a_password(wire: str, authority: Authority) -> None:
    """It is refused with the reason when a channel is made; nobody is asked at the terminal."""
    config = authority.config(authority.issue("client"))
    assert config.key is not None
    key = Path(config.key)
    plain = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )

    with pytest.raises(TlsFailed, match="without a password"):
        channel(f"{wire}://127.0.0.1:1", tls=config)


async def test_plain_client_at_an_encrypted_port(secured: str) -> None:
    """A client without TLS gets nothing from an encrypted port."""
    plain = secured.replace("dtls://", "udp://").replace("quic://", "udp://")
    await refused(plain.replace("tls://", "tcp://").replace("grpcs://", "grpc://"), None)


@pytest.mark.parametrize("wire", ["grpc", "tcp"])
async def test_encrypted_client_at_a_plain_port(wire: str, authority: Authority) -> None:
    """A client of TLS does not fall back to plain."""
    client = authority.config(authority.issue("client"))
    async with serving_echo(wire) as (url, _, service):
        await refused(url.replace("tcp://", "tls://").replace("grpc://", "grpcs://"), client)
        assert [] == service.order


async def test_no_older_tls(authority: Authority) -> None:
    """TLS 1.2 is refused."""
    tls = authority.config(authority.issue("server"))
    async with serving_echo("tls", server_tls=tls) as (url, server, _):
        port = int(url.rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(authority.file))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):  # SSLError, or a reset that came first
            await asyncio.open_connection("127.0.0.1", port, ssl=context)
        await _until(lambda: server.counters.connections_refused == 1)
        assert 0 == server.counters.connections_active


async def _until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (a counter has no event)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("silent", [b"", b"\x16\x03\x01"])
async def test_handshake_has_a_time_limit(authority: Authority, silent: bytes) -> None:
    """A client that begins a handshake and stops is cut off."""
    tls = authority.config(authority.issue("server"))
    options = TransportOptions(handshake_timeout_s=0.3)
    async with serving_echo("tls", server_tls=tls, options=options) as (url, server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(silent)
        async with asyncio.timeout(LIMIT_S):
            await reader.read()
        writer.close()
        await _until(lambda: server.counters.connections_refused == 1)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"])
async def test_who_leaves_in_the_handshake_is_counted_and_no_error(
    authority: Authority, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Scanners and probes of ports come and go all day: that is no news for the log."""
    tls = authority.config(authority.issue("server"))
    async with serving_echo("tls", server_tls=tls) as (url, server, _):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(said)
        await writer.drain()
        writer.close()
        await _until(lambda: server.counters.connections_refused == 1)
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_handshakes_are_limited(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond so many handshakes in flight connections wait in the kernel; then they are served."""
    monkeypatch.setattr("tidewire.transport.listener.HANDSHAKES_MAX", 2)
    tls = authority.config(authority.issue("server"))
    options = TransportOptions(handshake_timeout_s=0.5)
    async with serving_echo("tls", server_tls=tls, options=options) as (url, server, _):
        port = int(url.rpartition(":")[2])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        (listener,) = server._listeners
        await _until(lambda: len(listener._adopting) == 2)
        said = asyncio.create_task(say(url, authority.config(authority.issue("client"))))
        most = 0
        while not said.done():
            most = max(most, len(listener._adopting))
            await asyncio.sleep(0.01)

        assert "hello" == await said
        assert most <= 2
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("wire", ENCRYPTED)
async def test_reload_without_restart(wire: str, authority: Authority, tmp_path: Path) -> None:
    """
    New files serve the next connection; the old connection lives on; bad files change nothing.
    """
    config = authority.config(authority.issue("server"))
    client = authority.issue("client")
    after = Authority(tmp_path, "after")
    both = tmp_path / "both.pem"
    both.write_bytes(authority.file.read_bytes() + after.file.read_bytes())
    config = replace(config, ca=both)
    service_tls: ServerTls | ServerCredentials
    raw = wire != "grpcs"
    if raw:
        service_tls = ServerTls(config)
        server = RawServer()
        port = server.add_listener(f"{wire}://127.0.0.1:0", tls=service_tls)
    else:
        service_tls = ServerCredentials(config)
        from tidewire.transport import grpc_server

        server = grpc_server()  # type: ignore[assignment]
        port = server.add_secure_port("127.0.0.1:0", service_tls.credentials)
    from support.echo_service import EchoService

    echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), server)
    await server.start()
    url = f"{wire}://127.0.0.1:{port}"
    try:
        before = channel(url, tls=authority.config(client), options=FAST)
        stub = echo_pb2_grpc.EchoServiceStub(before)
        await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)

        after.issue("server")  # the same file names, another authority
        assert service_tls.refresh() or raw
        assert "hello" == await say(url, after.config(client))
        await refused(url, authority.config(client))
        await stub.Say(echo_pb2.SayRequest(), timeout=LIMIT_S)

        (tmp_path / "server.pem").write_text("not a certificate")
        assert not service_tls.refresh()
        assert "hello" == await say(url, after.config(client))
        assert isinstance(service_tls.failure, TlsFailed)
        assert not service_tls.reload()
        await before.close()
    finally:
        await server.stop(None)


async def test_reload_of_all_listeners(authority: Authority, tmp_path: Path) -> None:
    """``reload_tls`` says whether every listener has its new certificates."""
    server = RawServer()
    server.add_listener("tls://127.0.0.1:0", tls=authority.config(authority.issue("server")))
    await server.start()

    assert server.reload_tls()
    (tmp_path / "server.key").write_text("not a key")
    assert not server.reload_tls()
    await server.stop(None)


def test_half_a_configuration(authority: Authority) -> None:
    """What cannot work is refused before anything listens or connects."""
    issued = authority.issue("server")
    server = RawServer()
    for wrong in (
        TlsConfig(certificate=issued.certificate),
        TlsConfig(ca=authority.file),
        TlsConfig(certificate=issued.certificate, key=issued.key),
    ):
        with pytest.raises(InvalidArgument):
            server.add_listener("tls://127.0.0.1:0", tls=wrong)
    with pytest.raises(InvalidArgument):
        server.add_listener("tls://127.0.0.1:0")
    with pytest.raises(InvalidArgument):
        server.add_listener("tcp://127.0.0.1:0", tls=authority.config(issued))
    for plain in ("tcp", "grpc"):
        with pytest.raises(InvalidArgument):
            channel(f"{plain}://127.0.0.1:1", tls=authority.config(issued))
    with pytest.raises(TlsFailed):
        channel("tls://127.0.0.1:1?ca=/nowhere/ca.pem")


@pytest.mark.parametrize("wire", ["tcp", "grpc"])
async def test_tokens_stay_off_plain_wires(wire: str) -> None:
    """A token, or call credentials, are never sent without encryption."""
    with pytest.raises(WireUnsuitable):
        channel(f"{wire}://127.0.0.1:1", options=TransportOptions(token="secret"))
    async with channel("tcp://127.0.0.1:1") as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        with pytest.raises(WireUnsuitable):
            stub.Say(
                echo_pb2.SayRequest(), credentials=grpc.access_token_call_credentials("secret")
            )


@pytest.mark.parametrize("by_call", [True, False])
async def test_tokens_on_encrypted_wires(secured: str, authority: Authority, by_call: bool) -> None:
    """
    A token arrives as the same metadata on every encrypted wire, given per call or per channel.
    """
    tls = authority.config(authority.issue("client"))
    options = FAST if by_call else replace(FAST, token="secret")
    credentials = grpc.access_token_call_credentials("secret") if by_call else None
    async with channel(secured, tls=tls, options=options) as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        answer = await stub.Say(
            echo_pb2.SayRequest(fault="token"), timeout=LIMIT_S, credentials=credentials
        )

    assert "Bearer secret" == answer.text
    assert "secret" not in repr(options)
