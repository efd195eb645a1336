"""The server as a process: how it starts, what it says, and how it goes."""

import asyncio
import json
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import status_pb2

import tidewire.transport
from support.process import ServerProcess
from support.server import running
from tidewire import errors
from tidewire.v1 import common_pb2, server_pb2, server_pb2_grpc, state_pb2, state_pb2_grpc
from tidewire_server.ops.config import ConfigError

KEY = state_pb2.GetRequest(key="a")


async def put(url: str) -> state_pb2.PutResponse:
    """Write one key over this wire."""
    async with tidewire.transport.channel(url) as channel:
        stub = state_pb2_grpc.StateServiceStub(channel)
        value = common_pb2.Payload(data=b"1")
        answer: state_pb2.PutResponse = await stub.Put(
            state_pb2.PutRequest(key="a", value=value), timeout=10
        )
        return answer


def get(url: str) -> tuple[int, str]:
    """Status and body of an HTTP GET."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_it_serves_on_every_wire_with_ports_it_picked(tmp_path: Path) -> None:
    """The ready line names the listeners, and the same State is behind each of them."""
    with ServerProcess(tmp_path, ("grpc", "tcp")) as process:
        revisions = [(await put(process.url(wire))).revision for wire in ("grpc", "tcp")]

    assert revisions == [1, 2]


async def test_sigterm_ends_it_with_0_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """What was acknowledged is there for the next process on the store, which has a new epoch."""
    with ServerProcess(tmp_path, ("tcp",)) as process:
        await put(process.url("tcp"))
        assert process.end(signal.SIGTERM) == 0
    with ServerProcess(tmp_path, ("tcp",)) as process:
        async with tidewire.transport.channel(process.url("tcp")) as channel:
            answer = await state_pb2_grpc.StateServiceStub(channel).Get(KEY, timeout=10)
            info = await server_pb2_grpc.ServerServiceStub(channel).GetInfo(
                server_pb2.GetInfoRequest(), timeout=10
            )

    assert answer.entry.value.data == b"1"
    assert info.epoch == 2


def test_a_second_server_on_the_store_is_refused_with_75(tmp_path: Path) -> None:
    """The refusal names the process that holds the store; that one goes on."""
    with ServerProcess(tmp_path, ("tcp",)) as first:
        second = ServerProcess(tmp_path, ("tcp",))
        assert second.wait() == 75
        assert f"{first.pid}" in second.log()
        assert first.end() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--listen", "gopher://127.0.0.1:0"], "gopher://"),
        (["--listen", "tcp://0.0.0.0:0"], "not encrypted"),
        (["--listen", "tls://127.0.0.1:0"], "tls.certificate"),
    ],
)
def test_a_configuration_that_cannot_be_used_ends_it_with_2(
    tmp_path: Path, flags: list[str], says: str
) -> None:
    """One line says what is wrong, and nothing is listened on."""
    process = ServerProcess(tmp_path, (), flags=flags)

    assert process.wait() == 2
    assert says in process.log()
    assert "Traceback" not in process.log()


def test_an_address_in_use_ends_it_with_2(tmp_path: Path) -> None:
    """Two servers never share a port by accident."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for wire in ("grpc", "tcp"):
            process = ServerProcess(tmp_path, (), flags=["--listen", f"{wire}://127.0.0.1:{port}"])
            assert process.wait() == 2
            assert str(port) in process.log()


def test_probes_and_metrics_are_served(tmp_path: Path) -> None:
    """Live, ready, and figures that count what was done."""
    with ServerProcess(tmp_path, ("tcp",)) as process:
        asyncio.run(put(process.url("tcp")))
        admin = process.ready["admin"]
        live, ready = get(f"{admin}/livez"), get(f"{admin}/readyz")
        _, metrics = get(f"{admin}/metrics")

    assert live[0] == 200
    assert ready[0] == 200
    put_line = 'tidewire_calls_total{code="OK",method="/tidewire.v1.StateService/Put"} 1.0'
    assert put_line in metrics
    assert 'tidewire_wire_connections_opened_total{wire="tcp"} 1.0' in metrics


async def test_a_draining_server_is_not_ready_and_says_so_everywhere(tmp_path: Path) -> None:
    """Readiness, health and info change before anything is refused."""
    async with running(tmp_path, ("tcp",), drain={"wait_s": 5.0}) as it:
        assert it.server.admin is not None
        admin = it.server.admin.url
        it.server.begin_stop()
        ready = await asyncio.to_thread(get, f"{admin}/readyz")
        live = await asyncio.to_thread(get, f"{admin}/livez")

    assert ready[0] == 503
    assert "shutting down" in json.loads(ready[1])["reasons"]["drain"]
    assert live[0] == 200


async def test_a_failed_store_is_not_live(tmp_path: Path) -> None:
    """After a write that could not be made durable the process says that it must go."""
    async with running(tmp_path, ("tcp",)) as it:
        admin = it.server.admin
        assert admin is not None
        before = await asyncio.to_thread(get, f"{admin.url}/livez")
        engine = it.server.core.engine
        broken = FailedEngine()
        it.server.core.engine = broken  # type: ignore[assignment]  # only its failure is asked for
        try:
            after = await asyncio.to_thread(get, f"{admin.url}/livez")
        finally:
            it.server.core.engine = engine

    assert before[0] == 200
    assert after[0] == 503
    assert "engine" in json.loads(after[1])["reasons"]


class FailedEngine:
    """An engine whose last flush failed."""

    failure = OSError("input/output error")


def test_who_may_call_is_the_same_on_every_wire(tmp_path: Path) -> None:
    """Rules of [access] are judged by the router: no wire is forgotten."""

    async def denied(url: str) -> errors.TidewireError:
        async with tidewire.transport.channel(url) as channel:
            try:
                await state_pb2_grpc.StateServiceStub(channel).Get(KEY, timeout=10)
            except grpc.aio.AioRpcError as error:
                raw: Any = dict(error.trailing_metadata())[errors.STATUS_TRAILER]
                return errors.from_status(status_pb2.Status.FromString(raw))
        raise AssertionError("it was allowed")

    async def all_of_them() -> list[type[errors.TidewireError]]:
        rules = [{"principals": ["*"], "methods": ["ServerService/*"], "effect": "allow"}]
        async with running(tmp_path, ("grpc", "tcp"), access={"rules": rules}) as it:
            return [type(await denied(it.url(wire))) for wire in ("grpc", "tcp")]

    assert [errors.PermissionDenied] * 2 == asyncio.run(all_of_them())


async def test_a_wire_that_is_missing_says_why(tmp_path: Path) -> None:
    """Listening on a scheme that is known and cannot be used gives the reason a client gets."""
    with pytest.raises(ConfigError, match="rdma:// is missing: no Python binding"):
        async with running(tmp_path, ("rdma",)):
            pass
