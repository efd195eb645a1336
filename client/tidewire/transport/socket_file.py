"""
The file of a listening Unix socket: made for its owner only, taken over when nobody answers on it.

Who looks at a socket file and then removes it may remove the one somebody else has just made. So
both ends of its life, binding and removing, happen under a lock on the folder, which the kernel
releases with the process.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tidewire.errors import InvalidArgument
from tidewire.transport.options import BACKLOG

PATH_BYTES_MAX: Final = 107
"""What ``sockaddr_un`` holds on Linux, with the zero at its end."""
MODE: Final = 0o600
FOLDER_WAIT_S: Final = 2.0
"""How long another process may hold the folder; it needs microseconds."""
FOLDER_POLL_S: Final = 0.01
_HIDDEN_BYTES: Final = 4
_UMASK: Final = 0o077
"""Stricter for whatever else makes a file or a folder at that moment, and never unusable."""


class SocketFile:
    """A socket in the file system that this process made."""

    def __init__(self, path: Path) -> None:
        found = path.lstat()
        self.path = path
        self._identity = (found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove it, unless somebody else has put another one in its place."""
        with contextlib.suppress(OSError, InvalidArgument), _holding(self.path.parent):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()


def check_path(path: str) -> Path:
    """Return the path of a socket. Error: InvalidArgument, it is longer than the kernel takes."""
    size = len(os.fsencode(path))
    if size > PATH_BYTES_MAX:
        raise InvalidArgument(
            f"the path of a Unix socket has at most {PATH_BYTES_MAX} bytes; {path} has {size}"
        )
    if "\0" in path or path.endswith("/"):
        raise InvalidArgument(f"{path!r} is no path of a socket")
    return Path(path)


def bind_unix(text: str, backlog: int = BACKLOG) -> tuple[socket.socket, SocketFile]:
    """
    Return a listening socket at a path, which only this user can connect to.

    A socket that is there and refuses connections is left over from a process that died: it is
    removed.

    Raises:
        InvalidArgument: The path is too long, its folder is missing, something that is no socket
            is there, somebody listens on it, or the system refuses it.
    """
    path = check_path(text)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _holding(path.parent):
            _clear(path)
            with contextlib.suppress(OSError):
                # On Linux the file gets the mode of the socket at once; elsewhere this fails.
                os.fchmod(sock.fileno(), MODE)
            sock.bind(text)
            path.chmod(MODE)  # before anybody can connect: it does not listen yet
            sock.listen(backlog)
            return sock, SocketFile(path)
    except OSError as error:
        sock.close()
        raise InvalidArgument(f"cannot listen on {text}: {error.strerror or error}") from error
    except InvalidArgument:
        sock.close()
        raise


def bind_grpc(server: Any, text: str) -> SocketFile:
    """
    Let a gRPC server listen at a path, as :func:`bind_unix` does.

    grpcio binds by itself, removes what is in its way whoever listens there, and removes its path
    in the end whoever has made it. So it gets a name of its own, which is then moved to the path.

    Raises:
        InvalidArgument: As for :func:`bind_unix`.
    """
    path = check_path(text)
    hidden = path.with_name(f".{secrets.token_hex(_HIDDEN_BYTES)}")
    check_path(str(hidden))
    with _holding(path.parent):
        _clear(path)
        before = os.umask(_UMASK)
        try:
            server.add_insecure_port(grpc_target(str(hidden)))
        except RuntimeError as error:
            raise InvalidArgument(f"cannot listen on {text}: {error}") from error
        finally:
            os.umask(before)
        try:
            hidden.chmod(MODE)
            hidden.rename(path)
        except OSError as error:
            raise InvalidArgument(f"cannot listen on {text}: {error.strerror}") from error
        return SocketFile(path)


def grpc_target(path: str) -> str:
    """Return a path as grpcio takes it: percent signs are its escapes."""
    return f"unix:{path.replace('%', '%25')}"


@contextlib.contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """Keep other servers from making or removing sockets in a folder. Error: InvalidArgument."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"the folder {folder} cannot be used: {error.strerror}") from error
    try:
        give_up_s = time.monotonic() + FOLDER_WAIT_S
        while not _locked(descriptor):
            if time.monotonic() >= give_up_s:
                raise InvalidArgument(f"another process holds the folder {folder}")
            time.sleep(FOLDER_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear(path: Path) -> None:
    """Make room at a path: remove a socket on which nobody answers, and nothing else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise InvalidArgument(f"{path} is there and is no socket; it is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(str(path))
    if code == errno.ECONNREFUSED:
        path.unlink()
    elif code != errno.ENOENT:
        raise InvalidArgument(f"{path} is in use: somebody listens on it")
