"""Unix sockets: who may connect, what becomes of the file, who the client is."""

# ruff: noqa: ASYNC240 (the files of a test are its own, and local)

import asyncio
import contextlib
import os
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from support.echo.v1 import echo_pb2, echo_pb2_grpc
from support.echo_service import EchoService
from support.echoing import echoing
from tidewire.errors import InvalidArgument, WireUnsuitable
from tidewire.transport import RawServer, TransportOptions, channel, grpc_server
from tidewire.transport.socket_file import PATH_BYTES_MAX, SocketFile, bind_grpc, bind_unix

LIMIT_S = 10.0
WIRES = ("unix", "grpc+unix")
Say = echo_pb2.SayRequest


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    """Each wire with a socket file."""
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where nothing is yet."""
    return tmp_path / "tw.sock"


class Bound:
    """A server that listens on a path, by either wire."""

    def __init__(self, wire: str, path: Path) -> None:
        self.server: Any
        self.file: SocketFile | None = None
        if wire == "unix":
            self.server = RawServer()
        else:
            self.server = grpc_server()
        echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoService(), self.server)
        if wire == "unix":
            self.server.listen(f"unix://{path}")
        else:
            self.file = bind_grpc(self.server, str(path))

    async def close(self) -> None:
        """Stop, as the server's listeners do."""
        if self.file is not None:
            self.file.remove()
        await self.server.stop(None)


@contextlib.asynccontextmanager
async def bound(wire: str, path: Path) -> AsyncIterator[Bound]:
    """Serve echo on a path."""
    it = Bound(wire, path)
    await it.server.start()
    try:
        yield it
    finally:
        await it.close()


async def says(wire: str, path: Path) -> str:
    """Say something; return the answer."""
    async with channel(f"{wire}://{path}") as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        return str((await stub.Say(Say(text="on"), timeout=LIMIT_S)).text)


def left_over(path: Path) -> None:
    """Leave a socket nobody listens on, as a process that was killed does."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Let new files be for everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


async def test_only_the_owner_may_connect(wire: str, path: Path, open_umask: None) -> None:
    """The socket has mode 0600 whatever the umask; the control is a socket made without care."""
    left_over(path)
    assert 0o777 == stat.S_IMODE(path.stat().st_mode)
    async with bound(wire, path):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert 0o600 == stat.S_IMODE(mode)
        assert "on" == await says(wire, path)
        assert [path.name] == [entry.name for entry in path.parent.iterdir()]


def test_the_mode_is_there_from_the_first_moment(path: Path, open_umask: None) -> None:
    """Nobody sees the file with another mode: bind makes it with 0600, before any chmod."""
    program = (
        "import os, sys, pathlib, tidewire.transport.socket_file as it\n"
        "pathlib.Path.chmod = lambda self, mode: None\n"
        "os.umask(0)\n"
        "it.bind_unix(sys.argv[1])\n"
        "print(oct(os.stat(sys.argv[1]).st_mode & 0o777))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )

    assert "0o600\n" == done.stdout


async def test_a_socket_left_over_is_taken(wire: str, path: Path) -> None:
    """A server that was killed leaves its socket; the next one uses the path."""
    left_over(path)
    async with bound(wire, path):
        assert "on" == await says(wire, path)


async def test_a_socket_in_use_is_left_alone(wire: str, path: Path) -> None:
    """A second server is refused, and the first one goes on; also one that is not ours."""
    async with bound(wire, path):
        for other in WIRES:
            with pytest.raises(InvalidArgument, match="in use"):
                Bound(other, path)
        assert "on" == await says(wire, path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind(str(path))
        with pytest.raises(InvalidArgument, match="in use"):
            Bound(wire, path)
        assert path.exists()


@pytest.mark.parametrize("what", ["file", "folder", "link"])
async def test_what_is_no_socket_is_left_alone(wire: str, path: Path, what: str) -> None:
    """Something else at the path is never removed, nor what a link points to."""
    target = path.with_name("target")
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    else:
        left_over(target)
        path.symlink_to(target)
    with pytest.raises(InvalidArgument, match="no socket"):
        Bound(wire, path)

    assert os.path.lexists(path)
    assert what != "link" or target.exists()


async def test_a_folder_that_is_missing(wire: str, path: Path) -> None:
    """It is said which."""
    with pytest.raises(InvalidArgument, match=r"the folder .*missing cannot be used"):
        Bound(wire, path.parent / "missing" / "tw.sock")


async def test_the_file_goes_with_the_server(wire: str, path: Path) -> None:
    """Its path is free as soon as the server stops to accept."""
    async with bound(wire, path):
        assert path.exists()
    assert not path.exists()


async def test_the_socket_of_a_successor_stays(wire: str, path: Path) -> None:
    """A server whose file was replaced leaves what is there now; so does grpcio."""
    async with bound(wire, path) as first:
        path.unlink()
        async with bound(wire, path):
            await first.close()
            assert "on" == await says(wire, path)


async def test_a_path_that_is_too_long(wire: str, tmp_path: Path) -> None:
    """It is a typed error at both ends, not the kernel's, and the longest one works."""
    with contextlib.chdir(tmp_path):
        longest = Path("x" * PATH_BYTES_MAX)
        sock, file = bind_unix(str(longest))
        sock.close()
        file.remove()
    long = f"{tmp_path}/{'x' * PATH_BYTES_MAX}"
    with pytest.raises(InvalidArgument, match="at most 107 bytes"):
        Bound(wire, Path(long))
    with pytest.raises(InvalidArgument, match="at most 107 bytes"):
        channel(f"{wire}://{long}")


@pytest.mark.parametrize("name", ["a b", "100%", "%41", "ä"])
async def test_odd_names(wire: str, tmp_path: Path, name: str) -> None:
    """Characters that mean something in a URL are taken as they are."""
    async with bound(wire, tmp_path / name):
        assert [name] == [entry.name for entry in tmp_path.iterdir()]
        assert "on" == await says(wire, tmp_path / name)


async def test_nobody_listens(wire: str, path: Path) -> None:
    """A missing socket and one left over end calls with UNAVAILABLE, naming the path."""
    for _ in range(2):
        async with channel(f"{wire}://{path}") as connected:
            stub = echo_pb2_grpc.EchoServiceStub(connected)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Say(Say(), timeout=LIMIT_S)
        assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
        assert str(path) in (caught.value.details() or "")
        if not path.exists():
            left_over(path)


async def test_the_kernel_says_who_calls(tmp_path: Path) -> None:
    """User, group and process of the client are in the authentication context."""
    async with echoing("unix", tmp_path) as served:
        await served.stub.Say(Say())
        (link,) = served.server._links.values()
        auth = dict(link.peer.auth)
        (info,) = served.server.connections()

    assert auth == {
        "transport_security_type": (b"local",),
        "peer_unix": (f"unix://uid={os.getuid()}".encode(),),
        "peer_unix_uid": (str(os.getuid()).encode(),),
        "peer_unix_gid": (str(os.getgid()).encode(),),
        "peer_unix_pid": (str(os.getpid()).encode(),),
    }
    assert (f"unix://uid={os.getuid()}", "unix:") == (info.identity, info.peer)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
async def test_another_user(tmp_path: Path) -> None:
    """
    Somebody else cannot connect; where the folder's owner lets them, they are who they are.
    """
    program = (
        "import os, sys, socket\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "it = socket.socket(socket.AF_UNIX)\n"
        "it.connect(sys.argv[1]); print('in'); sys.stdin.read()\n"
    )
    path = Path("/tmp") / f"tw{secrets.token_hex(4)}.sock"
    async with bound("unix", path) as it:
        command = [sys.executable, "-c", program, str(path)]
        refused = await asyncio.to_thread(
            subprocess.run, command, input="", capture_output=True, text=True, check=False
        )
        assert "PermissionError" in refused.stderr

        path.chmod(0o666)
        child = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert b"in\n" == await asyncio.wait_for(child.stdout.readline(), LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            while not it.server.connections():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert "unix://uid=65534" == it.server.connections()[0].identity
        child.terminate()
        await child.communicate()


async def test_no_token_and_no_certificates(wire: str, path: Path) -> None:
    """The wire is not encrypted, and nothing that asks for encryption is quietly dropped."""
    with pytest.raises(WireUnsuitable):
        channel(f"{wire}://{path}", options=TransportOptions(token="secret"))
    with pytest.raises(InvalidArgument, match="not encrypted"):
        channel(f"{wire}://{path}?ca=/x")


async def test_a_full_backlog_is_waited_out(path: Path) -> None:
    """Clients that come faster than the server accepts get in, all of them."""
    async with bound("unix", path) as it:
        (listener,) = it.server._listeners
        listener._suspend()
        listener.sock.listen(0)
        channels = [channel(f"unix://{path}") for _ in range(8)]
        calls = [
            echo_pb2_grpc.EchoServiceStub(each).Say(Say(text=str(n)), timeout=LIMIT_S)
            for n, each in enumerate(channels)
        ]
        await asyncio.sleep(0.05)
        listener._resume()
        answers = [(await call).text for call in calls]
        for each in channels:
            await each.close()

    assert [str(n) for n in range(8)] == answers


@pytest.mark.parametrize("fast", ["0", "1"])
async def test_with_and_without_aiofastnet(
    fast: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of stream carry large messages over a Unix socket."""
    monkeypatch.setenv("TIDEWIRE_AIOFASTNET", fast)
    async with bound("unix", path), channel(f"unix://{path}") as connected:
        stub = echo_pb2_grpc.EchoServiceStub(connected)
        body = os.urandom(3 << 20)
        assert body == (await stub.Say(Say(body=body), timeout=LIMIT_S)).body
