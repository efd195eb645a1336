"""Two sans-IO connections back to back, with a clock that stands until it is moved."""

from dataclasses import dataclass, field
from typing import Any

from tidewire.errors import TidewireError
from tidewire.wire.bodies import Ending, Goaway, Head, Hello, Metadata, encode_head
from tidewire.wire.call import Call
from tidewire.wire.client_side import ClientCall, ClientConnection
from tidewire.wire.connection import Connection
from tidewire.wire.limits import WireLimits
from tidewire.wire.server_side import ServerConnection

TURN_BYTES = 128 * 1024


class Log:
    """What a call heard."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.messages: list[bytes] = []
        self.unread: list[int] = []
        self.headers: list[Metadata] = []
        self.endings: list[Ending] = []
        self.half_closed = 0
        self.drained_times = 0


class LoggedClientCall(ClientCall):
    """A client's call that writes down what it hears."""

    def __init__(self, *, reads: bool = True, priority: int = 5) -> None:
        self.log = Log(reads=reads)
        self.head = encode_head("/pkg.Service/Method")
        self.priority = priority

    def on_headers(self, metadata: Metadata) -> None:
        self.log.headers.append(metadata)

    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        self.log.messages.append(body)
        if self.log.reads:
            self.take(mark)
        else:
            self.log.unread.append(mark)

    def on_end(self, ending: Ending) -> None:
        self.log.endings.append(ending)

    def on_drained(self) -> None:
        self.log.drained_times += 1


class LoggedServerCall(Call):
    """A server's call that writes down what it hears."""

    def __init__(self, head: Head, *, reads: bool = True) -> None:
        self.head = head
        self.log = Log(reads=reads)

    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        self.log.messages.append(body)
        if self.log.reads:
            self.take(mark)
        else:
            self.log.unread.append(mark)

    def on_half_closed(self) -> None:
        self.log.half_closed += 1

    def on_end(self, ending: Ending) -> None:
        self.log.endings.append(ending)

    def on_drained(self) -> None:
        self.log.drained_times += 1


class PipeServer(ServerConnection):
    """A server that keeps its calls."""

    reads = True

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(Hello(agent="server"), limits, 0.0)
        self.opened: list[LoggedServerCall] = []
        self.closed_by: list[TidewireError] = []
        self.refused: list[TidewireError] = []

    def on_call(self, head: Head) -> Call:
        call = LoggedServerCall(head, reads=self.reads)
        self.opened.append(call)
        return call

    def on_call_opened(self, call: Call, message: bytes | None, last: bool) -> None:
        if message is not None:
            call.on_message(message, call.consumed, last)

    def on_refused(self, error: TidewireError) -> None:
        self.refused.append(error)

    def on_closed(self, error: TidewireError) -> None:
        self.closed_by.append(error)


class PipeClient(ClientConnection):
    """A client that writes down what it hears of the connection."""

    def __init__(self, limits: WireLimits) -> None:
        super().__init__(Hello(agent="client"), limits, 0.0)
        self.ready = 0
        self.goaways: list[Goaway] = []
        self.closed_by: list[TidewireError] = []

    def on_ready(self) -> None:
        self.ready += 1

    def on_goaway(self, goaway: Goaway) -> None:
        self.goaways.append(goaway)

    def on_closed(self, error: TidewireError) -> None:
        self.closed_by.append(error)


@dataclass
class Pipe:
    """A client and a server; ``run`` carries bytes until both are silent."""

    client: PipeClient
    server: PipeServer
    now_s: float = 0.0
    carried: list[tuple[str, bytes]] = field(default_factory=list)

    def run(self, turn_bytes: int = TURN_BYTES) -> None:
        """Carry everything both sides have to say."""
        while self.step(self.client, self.server, turn_bytes) | self.step(
            self.server, self.client, turn_bytes
        ):
            pass

    def step(self, source: Connection, target: Connection, turn_bytes: int = TURN_BYTES) -> bool:
        """Carry one turn of one side; return whether there was anything."""
        data = b"".join(source.data_to_send(turn_bytes, self.now_s))
        if data:
            self.carried.append(("client" if source is self.client else "server", data))
            target.receive_data(data, self.now_s)
        return bool(data)

    def pass_time(self, seconds: float) -> None:
        """Move the clock and run the timers that are due."""
        self.now_s += seconds
        for side in (self.client, self.server):
            if side.wake_s <= self.now_s:
                side.handle_timeout(self.now_s)

    def open(
        self, message: bytes | None = None, *, last: bool = True, **call: Any
    ) -> LoggedClientCall:
        """Open a call."""
        opened = LoggedClientCall(**call)
        self.client.open(opened, message, last=last)
        return opened


def piped(
    client: WireLimits | None = None, server: WireLimits | None = None, *, greeted: bool = True
) -> Pipe:
    """Return two connections, after their HELLOs unless told otherwise."""
    pipe = Pipe(PipeClient(client or WireLimits()), PipeServer(server or WireLimits()))
    if greeted:
        pipe.run()
    return pipe
