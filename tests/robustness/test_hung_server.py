"""
A server whose process hangs: the kernel still answers, nobody else does. Clients must notice by
themselves, within the time of their profile, under a call that is open.
"""

import asyncio
import signal
from pathlib import Path
from typing import Any, Final

import pytest

import tidewire
from support.certificates import Certificates
from support.process import ServerProcess
from support.wires import ENCRYPTED, WIRES
from tidewire.client.timeouts import TimeoutProfile
from tidewire.errors import ConnectionLost, PeerVanished

LIMIT_S: Final = 30.0
PATIENT_S: Final = 120.0
QUICK: Final = TimeoutProfile(
    name="quick",
    connect_s=2.0,
    hello_s=2.0,
    request_s=PATIENT_S,
    probe_s=0.25,
    keepalive_s=11.0,  # a gRPC server takes PINGs every 10 s and no faster
    ping_s=1.0,
    read_s=5.0,
    write_s=5.0,
)
RAW: Final = tuple(wire for wire in WIRES if not wire.startswith("grpc") and wire != "memory")
REMOTE: Final = (*RAW, "grpc")


@pytest.mark.parametrize("wire", REMOTE)
def test_a_server_that_hangs_is_noticed(wire: str, tmp_path: Path) -> None:
    """
    A call under way ends with UNAVAILABLE, long before its deadline; when the server goes on, so
    does the client.
    """
    flags = ["--log-level", "error"]
    tls = None
    if wire in ENCRYPTED:
        certificates = Certificates.make(tmp_path / "certificates")
        tls = certificates.client()
        flags += ["--tls-ca", str(certificates.ca)]
        flags += ["--tls-certificate", str(certificates.server_certificate)]
        flags += ["--tls-key", str(certificates.server_key)]
    with ServerProcess(tmp_path, (wire,), flags=flags) as process:
        try:
            asyncio.run(_notice(process, wire, tls))
        finally:
            process.send(signal.SIGCONT)


async def _notice(process: ServerProcess, wire: str, tls: Any) -> None:
    once = tidewire.RetryPolicy(attempts_max=1)
    async with tidewire.connect(process.url(wire), tls=tls, profile=QUICK, retry=once) as client:
        await client.state.put("k", b"before")
        process.send(signal.SIGSTOP)
        with pytest.raises((ConnectionLost, PeerVanished)):
            await asyncio.wait_for(client.state.get("k"), LIMIT_S)
        process.send(signal.SIGCONT)
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    await client.info(timeout_s=2.0)
                    break
                except tidewire.TidewireError:
                    await asyncio.sleep(0.05)
        entry = await client.state.get("k")
        assert entry is not None
        assert b"before" == entry.value
