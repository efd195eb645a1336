"""TLS and identity on a whole server: who is refused, who one is, and what a sniffer sees."""

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

import tidewire
from support.impairment import impaired
from support.process import ServerProcess
from support.server import Running, running
from support.wires import ENCRYPTED, LACKS
from tidewire import errors
from tidewire.transport import TlsConfig

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMEOUT_S = 6.0
DATAGRAMS = ("quic", "udp", "dtls")


async def refused(url: str, tls: TlsConfig | None) -> None:
    """Hold that a client gets nowhere, in bounded time, with a typed error."""
    async with asyncio.timeout(4 * TIMEOUT_S):
        with pytest.raises(errors.TidewireError):
            async with tidewire.connect(url, tls=tls, timeout_s=TIMEOUT_S) as client:
                await client.info()


def written(folder: Path, name: str, leaf: trustme.LeafCert) -> tuple[Path, Path]:
    """Write a certificate and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    return certificate, key


@pytest.mark.parametrize("wire", ENCRYPTED)
async def test_a_good_certificate_is_let_in_and_known_by_its_name(
    server: Running, wire: str
) -> None:
    """The control of all refusals; the principal is the certificate's name, never its CN."""
    async with tidewire.connect(server.url(wire), tls=server.tls(wire)) as client:
        assert "client.test" == (await client.info()).principal


@pytest.mark.parametrize("wire", ENCRYPTED)
@pytest.mark.parametrize("why", ["no certificate", "wrong authority", "expired", "wrong name"])
async def test_a_bad_certificate_is_refused(
    server: Running, wire: str, why: str, tmp_path: Path
) -> None:
    """Each of them, on each encrypted wire."""
    good = server.certificates.client()
    tls = TlsConfig(ca=good.ca)
    if why == "wrong authority":
        certificate, key = written(tmp_path, "rogue", trustme.CA().issue_cert("client.test"))
        tls = TlsConfig(ca=good.ca, certificate=certificate, key=key)
    elif why == "expired":
        leaf = server.certificates.authority.issue_cert(
            "client.test", not_after=datetime.now(UTC) - timedelta(days=1)
        )
        certificate, key = written(tmp_path, "expired", leaf)
        tls = TlsConfig(ca=good.ca, certificate=certificate, key=key)
    elif why == "wrong name":
        tls = TlsConfig(
            ca=good.ca, certificate=good.certificate, key=good.key, server_name="other.test"
        )
    await refused(server.url(wire), tls)


@pytest.mark.parametrize(
    ("plain", "encrypted"), [("grpc", "grpcs"), ("tcp", "tls")], ids=["grpc", "raw"]
)
async def test_plain_and_encrypted_do_not_meet(server: Running, plain: str, encrypted: str) -> None:
    """Neither side falls back to what the other speaks."""
    await refused(server.url(encrypted).replace(f"{encrypted}://", f"{plain}://"), None)
    await refused(
        server.url(plain).replace(f"{plain}://", f"{encrypted}://"), server.certificates.client()
    )


@contextlib.asynccontextmanager
async def sniffing(url: str) -> AsyncIterator[tuple[str, bytearray]]:
    """A proxy before a server that keeps everything both sides say; of datagrams, the client."""
    target, seen = urlsplit(url), bytearray()
    if target.scheme in DATAGRAMS:
        async with impaired((str(target.hostname), target.port or 0)) as between:
            between.capture = True
            yield f"{target.scheme}://127.0.0.1:{between.address[1]}", seen
            seen.extend(b"".join(between.captured))
        return

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(1 << 16):
                seen.extend(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if target.path:
            there = await asyncio.open_unix_connection(target.path)
        else:
            there = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    if target.path:
        async with await asyncio.start_unix_server(serve, f"{target.path}.proxy"):
            yield f"{target.scheme}://{target.path}.proxy", seen
        return
    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with proxy:
        yield f"{target.scheme}://127.0.0.1:{proxy.sockets[0].getsockname()[1]}", seen


async def test_a_sniffer_sees_nothing_of_an_encrypted_wire(
    server: Running, wire: str, name: str
) -> None:
    """
    Neither subject nor payload; the control is the plain wires, where both are seen. Within the
    process there is nothing to listen in on.
    """
    if wire == "memory":
        return
    async with (
        sniffing(server.url(wire)) as (url, seen),
        tidewire.connect(url, tls=server.tls(wire)) as client,
        client.events.subscribe(f"{name}.>") as messages,
    ):
        # What a client says in a WebSocket is masked, which hides it from a search and from nobody
        # else; what the server says is not.
        await client.events.publish(f"{name}.subject", b"a-very-secret-payload")
        await asyncio.wait_for(anext(messages), 10)
    expected = wire not in ENCRYPTED

    assert expected == (f"{name}.subject".encode() in seen)
    assert expected == (b"a-very-secret-payload" in seen)


async def test_rules_of_access_hold_on_every_wire(tmp_path: Path) -> None:
    """Whoever has the name may; on plain wires nobody has one."""
    rules = [
        {"principals": ["client.test"], "methods": ["*"], "effect": "allow"},
        {"principals": ["*", ""], "methods": ["StateService/Delete"], "effect": "deny"},
    ]
    async with running(tmp_path, access={"rules": rules}) as it:
        for wire in ("grpc", "tcp"):
            async with tidewire.connect(it.url(wire), timeout_s=TIMEOUT_S) as client:
                with pytest.raises(errors.PermissionDenied):
                    await client.state.get("a")
        for wire in ENCRYPTED:
            async with tidewire.connect(it.url(wire), tls=it.tls(wire)) as client:
                await client.state.put("a", b"1")
                with pytest.raises(errors.PermissionDenied):
                    await client.state.delete("a")


FACADE = """
import sys, tidewire, tidewire.sync
from tidewire.v1 import state_pb2, state_pb2_grpc
url = sys.argv[1]
tls = tidewire.TlsConfig(*sys.argv[2:5]) if len(sys.argv) > 2 else None
with tidewire.sync.connect(url, tls=tls) as client:
    client.events.stream("s").create(["s.>"])
    assert client.events.publish("s.a", b"1").sequence == 1
    with client.queries.serve("q", lambda query: query.payload * 2):
        assert client.queries.ask("q", b"ab").payload == b"abab"
    assert client.state.put("k", b"v").revision == client.state.get("k").revision
    with client.control.attend("n", {"v": lambda command: b"done"}):
        assert client.control.send("v", node_id="n").succeeded
    with client.members.join("m", lease_s=5):
        assert [member.node_id for member in client.members.list()] == ["m"]
    operator = client.checkpoints.operator("o")
    operator.acquire()
    operator.commit(b"state")
    assert operator.load().state == b"state"
with tidewire.sync.channel(url, tls=tls) as channel:
    stub = state_pb2_grpc.StateServiceStub(channel)
    assert stub.Get(state_pb2.GetRequest(key="k"), timeout=10).entry.value.data == b"v"
print("all six kinds")
"""


async def test_the_blocking_facade_works_on_every_wire(
    wire: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    All six kinds and a blocking stub, in a process without a loop of its own; within the server's
    process, in another thread.
    """
    if wire == "memory":
        async with running(tmp_path, (wire,)) as it:
            monkeypatch.setattr(sys, "argv", ["-c", it.url(wire)])
            code = compile(FACADE, "facade", "exec")
            await asyncio.to_thread(exec, code, {"__name__": "facade"})
        assert "all six kinds\n" == capsys.readouterr().out
        return
    certificates = None
    flags: list[str] = []
    arguments: list[str] = []
    if wire in ENCRYPTED:
        from support.certificates import Certificates

        certificates = Certificates.make(tmp_path / "certs")
        flags = ["--tls-ca", str(certificates.ca), "--tls-key", str(certificates.server_key)]
        flags += ["--tls-certificate", str(certificates.server_certificate)]
        tls = certificates.client()
        arguments = [str(tls.certificate), str(tls.key), str(tls.ca)]
    with ServerProcess(tmp_path, (wire,), flags=flags) as process:
        command = [sys.executable, "-c", FACADE, process.url(wire), *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
        )

    if "streams" in LACKS.get(wire, ()):
        assert "WireUnsuitable" in done.stderr
    else:
        assert "all six kinds\n" == done.stdout, done.stderr
