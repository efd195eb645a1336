"""What udp:// and dtls:// have in common with peers they cannot work with."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import pytest

from support.authority import Authority
from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echoing import echoing, serving_echo
from support.impairment import Impairment, impaired
from tidewire.client.translate import translate
from tidewire.errors import ConnectionLost
from tidewire.transport import TransportOptions, channel
from tidewire.wire import datagram_hello
from tidewire.wire.datagram import encode_greeting
from tidewire.wire.datagram_limits import DatagramLimits

LIMIT_S: Final = 30.0
Say = echo_pb2.SayRequest


@pytest.mark.parametrize("wire", ["udp", "dtls"])
async def test_another_version_is_told(
    wire: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of other versions is told which there are, and gets no session."""

    def foreign(greeting: Any, limits: Any) -> bytes:
        hello = replace(greeting.hello, version_min=98, version_max=99)
        return encode_greeting(greeting._replace(hello=hello), limits)

    monkeypatch.setattr(datagram_hello, "encode_greeting", foreign)
    async with echoing(wire, tmp_path) as it:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await it.stub.Say(Say(text="x"), timeout=LIMIT_S)

        assert isinstance(translate(caught.value), ConnectionLost)
        assert "speaks versions 98 to 99; this server speaks 1" in str(caught.value.details())
        assert 0 == it.server.counters.connections_active
        assert [] == it.service.order


async def test_a_path_that_carries_less_is_named(tmp_path: Path) -> None:
    """Records longer than the path end their call with a typed error; short ones get through."""
    limits = DatagramLimits(datagram_bytes=9_000, retry_first_s=0.05, retry_most_s=0.1)
    options = TransportOptions(datagrams=limits)
    authority = Authority(tmp_path)
    server_tls = authority.config(authority.issue("server"))
    tls = authority.config(authority.issue("client"))
    async with (
        serving_echo("dtls", server_tls=server_tls, options=options) as (url, _, service),
        impaired(("127.0.0.1", int(url.rpartition(":")[2]))) as proxy,
        channel(f"dtls://127.0.0.1:{proxy.address[1]}", tls=tls, options=options) as connected,
    ):
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        assert "before" == (await stub.Say(Say(text="before"), timeout=LIMIT_S)).text
        proxy.up = Impairment(mtu_bytes=1_400)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Say(Say(text="long", body=bytes(5_000)), timeout=LIMIT_S)
        assert grpc.StatusCode.FAILED_PRECONDITION == caught.value.code()
        assert "the path carries less" in str(caught.value.details())
        assert "short" == (await stub.Say(Say(text="short"), timeout=LIMIT_S)).text
    assert ["before", "short"] == service.order
