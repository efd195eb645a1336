"""What only quic:// has: tickets, tokens, clients that move, streams that do not wait."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import serving_echo
from support.quic import FAST, LIMIT_S, Quic, client, say, serving, shell_of, until
from tidewire.errors import TlsFailed
from tidewire.transport import RawServer, channel
from tidewire.transport.quic import tokens
from tidewire.transport.quic.over_aioquic.handshake import Handshaking
from tidewire.transport.quic.shell import QuicShell
from tidewire.transport.quic.tokens import Bounded, Memory


@pytest.fixture(autouse=True)
def memories(monkeypatch: pytest.MonkeyPatch) -> Bounded[Memory]:
    """Let each test's clients begin without memories."""
    kept: Bounded[Memory] = Bounded(4)
    monkeypatch.setattr(tokens, "_MEMORIES", kept)
    return kept


@pytest.fixture
async def quic(tmp_path: Path) -> AsyncIterator[Quic]:
    """A server over QUIC."""
    async with serving(tmp_path) as served:
        yield served


# Tickets ------------------------------------------------------------------------------------------


async def test_second_connection_resumes_with_early_hello(quic: Quic) -> None:
    """
    It needs no certificate exchange and no Retry, its HELLO comes with the first datagrams, and the
    server knows who it is all the same. The first connection is the control.
    """
    seen = []
    for _ in range(2):
        async with client(quic) as (connected, stub):
            answer = await stub.Say(echo_pb2.SayRequest(fault="who"), timeout=LIMIT_S)
            assert "alice.test" in answer.text
            shell = shell_of(connected)
            await until(lambda shell=shell: shell.handshake is not None)  # type: ignore[misc]
            assert shell.handshake is not None
            await until(lambda: len(quic.shells()) == 1)  # the one before has gone
            (there,) = quic.shells()
            assert there.handshake is not None
            seen.append(tuple(shell.handshake[1:]) + tuple(there.handshake[1:]))

    assert [(False,) * 4, (True,) * 4] == seen
    assert 1 == quic.server.counters.cookies_sent


async def test_tickets_are_for_one_use(quic: Quic, memories: Bounded[Memory]) -> None:
    """A ticket that was used is not taken again: its client shows its certificate, and gets in."""
    async with client(quic) as (_, stub):
        await say(stub)
    (memory,) = memories._entries.values()
    await until(lambda: memory.ticket is not None)
    copy = memory.ticket
    for resumed in (True, False):
        memory.ticket = copy
        async with client(quic) as (connected, stub):
            assert "hello" == await say(stub)
            done = shell_of(connected).handshake
            assert done is not None
            assert resumed == done.resumed == done.early


async def test_tickets_are_bound_to_the_certificate(
    quic: Quic, memories: Bounded[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A session is not resumed when its client's certificate would not get in today: then the client
    has to show one that does, and one that has none is refused. Ticket of the right client: control
    above.
    """
    async with client(quic) as (_, stub):
        await say(stub)
    (memory,) = memories._entries.values()
    await until(lambda: memory.ticket is not None)
    (listener,) = quic.server._listeners
    judge: Any = listener._judge  # type: ignore[attr-defined]
    (kept,) = judge._sessions._entries
    judge._sessions.put(kept, replace(judge._sessions.get(kept), chain=()))
    ticket = memory.ticket
    async with client(quic) as (connected, stub):
        assert "hello" == await say(stub)
        done = shell_of(connected).handshake
        assert done is not None
        assert not done.resumed

    memory.ticket = ticket
    monkeypatch.setattr(tokens, "memory_of", lambda *_: memory)
    monkeypatch.setattr("tidewire.transport.quic.dial.memory_of", lambda *_: memory)
    async with client(quic, tls=quic.authority.config(None)) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError):
            await say(stub)
    assert {"certificate_required": 1} == dict(quic.server.counters.handshake_failures)


async def test_another_client_has_no_memory_of_this_one(quic: Quic) -> None:
    """A client with other files begins with a whole handshake."""
    async with client(quic) as (_, stub):
        await say(stub)
    other = quic.authority.config(quic.authority.issue("other", names=("other.test",)))
    async with client(quic, tls=other) as (connected, stub):
        answer = await stub.Say(echo_pb2.SayRequest(fault="who"), timeout=LIMIT_S)
        done = shell_of(connected).handshake

    assert "other.test" in answer.text
    assert done is not None
    assert not done.resumed


async def test_nothing_but_hello_comes_early(quic: Quic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a call before the handshake is done is cut off; it is not served."""
    async with client(quic) as (_, stub):
        await say(stub)
    flush = QuicShell.flush

    def eager(shell: QuicShell) -> None:
        link = shell.connection
        if link is not None and not link.is_server and shell.handshake is None:
            shell.session.send(4, b"a call that does not wait", last=True)
        flush(shell)

    monkeypatch.setattr(QuicShell, "flush", eager)
    async with client(quic) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError):
            await say(stub)
    assert quic.server.counters.refusals["early_data"] >= 1
    assert ["hello"] == quic.service.order


# Who gets in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", ["accepts nobody's", "asks for none"])
async def test_a_listener_that_lets_strangers_in_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weak: str
) -> None:
    """The self-test finds it at the start; with the handshake as it is the listener starts."""
    authority = Authority(tmp_path)
    tls = authority.config(authority.issue("server"))
    if weak == "accepts nobody's":
        stock: Any = Handshaking.__base__

        def accept(self: Any, input_buf: Any) -> None:
            stock._server_handle_certificate(self, input_buf)
            self.judged = True

        monkeypatch.setattr(Handshaking, "_server_handle_certificate", accept)
    else:
        monkeypatch.setattr(
            Handshaking,
            "_request_client_certificate",
            property(lambda _: False, lambda *_: None),
            raising=False,
        )
    server = RawServer()
    with pytest.raises(TlsFailed, match="self-test"):
        server.listen("quic://127.0.0.1:0", tls=tls)
    monkeypatch.undo()
    assert server.listen("quic://127.0.0.1:0", tls=tls).url.port
    await server.stop(None)


async def test_nobody_gets_in_unjudged(
    quic: Quic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Should aioquic not call what judges the certificate any more, no stream is looked at."""
    monkeypatch.delattr(Handshaking, "_server_handle_certificate")
    async with client(quic) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError):
            await say(stub)

    assert [] == quic.service.order
    assert "nobody judged" in caplog.text


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("nobody", "certificate_required"),
        ("stranger", "unknown_ca"),
        ("expired", "certificate_expired"),
    ],
)
async def test_refusals_are_counted_by_reason(
    quic: Quic, tmp_path: Path, who: str, reason: str
) -> None:
    """A client without a certificate, of a stranger, or expired: refused, and said why."""
    issued = None
    if who == "stranger":
        issued = Authority(tmp_path, "rogue").issue("rogue")
    elif who == "expired":
        issued = quic.authority.issue("old", expired=True)
    async with client(quic, tls=quic.authority.config(issued)) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(stub)

    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    assert reason in (caught.value.details() or "")
    assert {reason: 1} == dict(quic.server.counters.handshake_failures)
    assert 0 == quic.server.counters.connections_opened
    assert [] == quic.service.order


async def test_without_required_certificates(tmp_path: Path) -> None:
    """A server that requires none takes a client without one, which then has no identity."""
    authority = Authority(tmp_path)
    tls = replace(authority.config(authority.issue("server")), require_client_certificate=False)
    async with (
        serving_echo("quic", server_tls=tls) as (url, _, _),
        channel(url, tls=authority.config(None), options=FAST) as connected,
    ):
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        answer = await stub.Say(echo_pb2.SayRequest(fault="who"), timeout=LIMIT_S)

    assert "identities=[]" in answer.text
