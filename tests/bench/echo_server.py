"""
A handler that answers at once, on one wire, in a process of its own.

    python tests/bench/echo_server.py URL [CERTIFICATES]

Prints the URL with its port as JSON and serves until standard input ends. The URL ``bare://...`` is
``grpc.aio`` as it comes, for comparison.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tidewire.transport import (
    RawServer,
    ServerCredentials,
    TlsConfig,
    grpc_server,
    parse_url,
)
from tidewire.v1 import state_pb2, state_pb2_grpc


class EchoState(state_pb2_grpc.StateServiceServicer):
    """Answers each key with itself."""

    async def Get(self, request: state_pb2.GetRequest, context: Any) -> state_pb2.GetResponse:
        """Echo the key."""
        return state_pb2.GetResponse(entry=state_pb2.Entry(key=request.key))


async def serve(url: str, folder: Path | None) -> None:
    """Serve until standard input ends."""
    parsed = parse_url(url)
    tls = None
    if folder is not None:
        tls = TlsConfig(
            ca=folder / "ca.pem", certificate=folder / "server.pem", key=folder / "server.key"
        )
    server: grpc.aio.Server
    shown = url
    if parsed.scheme == "bare":
        server = grpc.aio.server()
        shown = f"bare://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    elif parsed.scheme == "grpc+unix":
        server = grpc_server()
        server.add_insecure_port(f"unix:{parsed.path}")
    elif parsed.scheme.startswith("grpc"):
        server = grpc_server()
        if tls is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", ServerCredentials(tls).credentials)
        shown = f"{parsed.scheme}://127.0.0.1:{port}"
    else:
        raw = RawServer()
        shown = raw.listen(url, tls=tls).url.text
        server = raw
    echo = EchoState()  # type: ignore[abstract]  # one method is enough
    state_pb2_grpc.add_StateServiceServicer_to_server(echo, server)
    await server.start()
    print(json.dumps(shown), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None))
