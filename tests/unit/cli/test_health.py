"""``tidewire health`` against a real server, with grpc_health_probe's exit codes."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidewire.cli.health import decode_status, encode_request
from tidewire.transport import RawServer
from tidewire_server.ops.health import HealthService
from tidewire_server.router import Router

LIMIT_S = 30


@asynccontextmanager
async def serving(scheme: str) -> AsyncIterator[tuple[str, HealthService]]:
    service = HealthService(["a.Service"])
    router = Router()
    health_pb2_grpc.add_HealthServicer_to_server(service, router)
    if scheme == "grpc":
        server: grpc.aio.Server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((router,))
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        server = RawServer([router])
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"{scheme}://127.0.0.1:{port}", service
    finally:
        await server.stop(0)


async def health(*words: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tidewire.cli",
        "health",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("scheme", ["grpc", "tcp"])
async def test_codes_are_those_of_the_probe(scheme: str) -> None:
    """Serving is 0, not serving 4, an unknown service 3, on every wire."""
    async with serving(scheme) as (url, service):
        assert (0, "SERVING\n", "") == await health("--url", url)
        assert (0, "SERVING\n", "") == await health("--url", url, "a.Service")
        code, _, err = await health("--url", url, "b.Service")
        assert (3, True) == (code, "NOT_FOUND" in err)
        service.shut_down()
        code, out, _ = await health("--url", url, "--json")
        assert (4, "NOT_SERVING") == (code, json.loads(out)["status"])


@pytest.mark.parametrize("scheme", ["grpc", "tcp"])
async def test_what_cannot_be_reached_is_two(scheme: str) -> None:
    """Nobody listens there, and it says what to do next."""
    code, _, err = await health("--url", f"{scheme}://127.0.0.1:1", "--timeout", "3")

    assert (2, True) == (code, f"{scheme}://127.0.0.1:1" in err)
    assert "`tidewire serve` starts one" in err


async def test_wrong_arguments_are_one() -> None:
    """A URL that is none, as the probe has it; not the 2 of other commands' usage errors."""
    assert 1 == (await health("--url", "nothing://127.0.0.1:1"))[0]
    code, _, err = await health("tcp://127.0.0.1:1")
    assert (1, True) == (code, "--url tcp://127.0.0.1:1" in err)


@pytest.mark.parametrize("service", ["", "a.Service", "x" * 200])
def test_requests_are_what_protobuf_makes(service: str) -> None:
    """The hand-written encoding is the package's, byte for byte."""
    expected = health_pb2.HealthCheckRequest(service=service).SerializeToString()

    assert expected == encode_request(service)


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_responses_are_what_protobuf_reads(status: int) -> None:
    """Each status has the name it has there; what is no response is UNKNOWN."""
    data = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)

    assert name == decode_status(data)
    assert "UNKNOWN" == decode_status(b"\x08\x7f")
