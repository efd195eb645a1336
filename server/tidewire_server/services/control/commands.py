"""
Commands, where each stands at each of its nodes, and when they are over. No I/O; time enters as an
argument.

Deadlines are on the caller's monotonic clock; what is shown and stored is nanoseconds since 1970
UTC.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from google.rpc import status_pb2

from tidewire import errors
from tidewire.v1 import common_pb2, control_pb2

COMMANDS_MAX: Final = 10_000
"""Commands under way; and as many that are finished are remembered."""
TARGETS_MAX: Final = 50_000
"""Targets of all commands that are remembered, together."""
KEPT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Arguments and results of all commands that are remembered, together."""
PENDING_PER_NODE_MAX: Final = 10_000
FINISHED_KEPT_S: Final = 600.0
RETRY_S: Final = 1.0
DEADLINES_SPARE: Final = 1000

Progress = control_pb2.CommandProgress
PENDING: Final = control_pb2.COMMAND_PROGRESS_PENDING
SENT: Final = control_pb2.COMMAND_PROGRESS_SENT
ACKNOWLEDGED: Final = control_pb2.COMMAND_PROGRESS_ACKNOWLEDGED
SUCCEEDED: Final = control_pb2.COMMAND_PROGRESS_SUCCEEDED
FAILED: Final = control_pb2.COMMAND_PROGRESS_FAILED
EXPIRED: Final = control_pb2.COMMAND_PROGRESS_EXPIRED


class Follower(Protocol):
    """Hears of progress."""

    def on_progress(self, node_id: str) -> None:
        """Take the news that this node got further."""
        ...


class NodeState:
    """Where a command stands at one node."""

    __slots__ = ("error", "handed_over", "progress", "result", "time_ns")

    def __init__(self, time_ns: int) -> None:
        self.progress: Progress.ValueType = PENDING
        self.result: common_pb2.Payload | None = None
        self.error: status_pb2.Status | None = None
        self.time_ns = time_ns
        self.handed_over = False
        """Whether the node may have it already: the next time it is a redelivery."""

    @property
    def done(self) -> bool:
        """Whether nothing changes any more."""
        return self.progress >= SUCCEEDED

    def to_proto(self, node_id: str) -> control_pb2.NodeProgress:
        """Say where it stands."""
        progress = control_pb2.NodeProgress(
            node_id=node_id, progress=self.progress, result=self.result, error=self.error
        )
        progress.time.FromNanoseconds(self.time_ns)
        return progress


class Command:
    """
    One command.

    Attributes:
        nodes: Its targets, fixed when it was sent.
        open: Targets that are not done.
        stored: True once it is durable; only then it is handed over.
        expires_s: Deadline on the monotonic clock.
        finished_s: When it was over on that clock; ``None`` while it is not.
    """

    __slots__ = (
        "bytes",
        "expires_ns",
        "expires_s",
        "finished_s",
        "followers",
        "nodes",
        "open",
        "principal",
        "request",
        "sent_ns",
        "stored",
    )

    def __init__(
        self,
        request: control_pb2.SendRequest,
        nodes: Iterable[str],
        *,
        principal: str,
        sent_ns: int,
        expires_ns: int,
        expires_s: float,
    ) -> None:
        self.request = request
        self.principal = principal
        self.sent_ns = sent_ns
        self.expires_ns = expires_ns
        self.expires_s = expires_s
        self.nodes = {node_id: NodeState(sent_ns) for node_id in nodes}
        self.open = len(self.nodes)
        self.stored = False
        self.finished_s: float | None = None
        self.followers: dict[Follower, None] = {}
        self.bytes = request.ByteSize()

    @property
    def command_id(self) -> str:
        """Its identifier."""
        return self.request.command_id

    def check_same(self, request: control_pb2.SendRequest, principal: str) -> None:
        """
        Refuse a request that has the id of this command and is not the same. The expiry may differ:
        the first one holds.

        Raises:
            CommandConflict: It is another one.
        """
        mine = self.request
        same = (
            mine.verb == request.verb
            and mine.target == request.target
            and mine.arguments == request.arguments
            and self.principal == principal
        )
        if not same:
            raise errors.CommandConflict(
                f"command {self.command_id!r} was sent before with another target, verb, arguments"
                " or sender; choose another id",
                metadata={"subject": self.command_id},
            )

    def apply(self, outcome: control_pb2.NodeProgress) -> int:
        """Record the end at one node; return the bytes that this keeps."""
        state = self.nodes[outcome.node_id]
        state.progress = outcome.progress
        state.time_ns = outcome.time.ToNanoseconds()
        if outcome.HasField("result"):
            state.result = outcome.result
        if outcome.HasField("error"):
            state.error = outcome.error
        self.open -= 1
        size = outcome.ByteSize()
        self.bytes += size
        return size

    def notify(self, node_id: str) -> None:
        """Tell the followers."""
        for follower in self.followers:
            follower.on_progress(node_id)


class CommandTable:
    """All commands of one server that are under way, and the last ones that are over."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}
        self._finished: OrderedDict[str, Command] = OrderedDict()
        self._open_by_node: dict[str, dict[str, Command]] = {}
        self._deadlines: list[tuple[float, str]] = []
        self.targets = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._commands)

    def get(self, command_id: str) -> Command | None:
        """Look a command up."""
        return self._commands.get(command_id)

    def open_at(self, node_id: str) -> Sequence[Command]:
        """Commands this node has still to do, the oldest first."""
        return list(self._open_by_node.get(node_id, {}).values())

    def add(self, command: Command, now_s: float) -> list[Command]:
        """
        Take a command; return finished ones that had to be forgotten for it.

        One from the store may be over already.

        Raises:
            Overloaded: Too many are under way, or too much is kept, or a node has too much to do.
        """
        forgotten = self._make_room(len(command.nodes), command.bytes)
        self._check_room(command)
        self._commands[command.command_id] = command
        self.targets += len(command.nodes)
        self.bytes += command.bytes
        for node_id, state in command.nodes.items():
            if not state.done:
                self._open_by_node.setdefault(node_id, {})[command.command_id] = command
        if command.open:
            self._set_deadline(command)
        else:
            self._finish(command, now_s)
        return forgotten

    def remove(self, command: Command) -> None:
        """Forget a command; may be repeated."""
        if self._commands.pop(command.command_id, None) is None:
            return
        self._finished.pop(command.command_id, None)
        self.targets -= len(command.nodes)
        self.bytes -= command.bytes
        for node_id in command.nodes:
            self._close_at(node_id, command)

    def advance(
        self, command: Command, node_id: str, progress: Progress.ValueType, now_ns: int
    ) -> bool:
        """Record that a node got as far as SENT or ACKNOWLEDGED; False when that is no news."""
        state = command.nodes[node_id]
        if state.progress >= progress:
            return False
        state.progress = progress
        state.time_ns = now_ns
        command.notify(node_id)
        return True

    def settle(
        self, command: Command, outcome: control_pb2.NodeProgress, now_s: float
    ) -> list[Command]:
        """
        Record the end of a command at one node; return commands that had to be forgotten for it.
        """
        if command.nodes[outcome.node_id].done:
            return []
        self.bytes += command.apply(outcome)
        self._close_at(outcome.node_id, command)
        if not command.open:
            self._finish(command, now_s)
        command.notify(outcome.node_id)
        return self._make_room(0, 0)

    def expire(self, now_s: float, now_ns: int) -> list[Command]:
        """
        Let time pass: expire what is too late; return finished commands that are old and now
        forgotten.
        """
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, command_id = heapq.heappop(self._deadlines)
            command = self._commands.get(command_id)
            if command is not None and command.finished_s is None and command.expires_s <= now_s:
                self._expire(command, now_s, now_ns)
        forgotten = []
        while self._finished:
            command = next(iter(self._finished.values()))
            assert command.finished_s is not None
            if command.finished_s + FINISHED_KEPT_S > now_s:
                break
            self.remove(command)
            forgotten.append(command)
        return forgotten

    def next_due_s(self) -> float | None:
        """When to call `expire` next; ``None`` when nothing is kept."""
        due = [self._deadlines[0][0]] if self._deadlines else []
        if self._finished:
            finished_s = next(iter(self._finished.values())).finished_s
            assert finished_s is not None
            due.append(finished_s + FINISHED_KEPT_S)
        return min(due, default=None)

    def _set_deadline(self, command: Command) -> None:
        if len(self._deadlines) > 2 * len(self._commands) + DEADLINES_SPARE:
            # Most are of commands that were done long before; keep those that still matter.
            self._deadlines = [
                (each.expires_s, each.command_id)
                for each in self._commands.values()
                if each.finished_s is None and each is not command
            ]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (command.expires_s, command.command_id))

    def _expire(self, command: Command, now_s: float, now_ns: int) -> None:
        late = [node_id for node_id, state in command.nodes.items() if not state.done]
        for node_id in late:
            state = command.nodes[node_id]
            state.progress = EXPIRED
            state.time_ns = now_ns
            self._close_at(node_id, command)
        command.open = 0
        self._finish(command, now_s)
        for node_id in late:
            command.notify(node_id)

    def _finish(self, command: Command, now_s: float) -> None:
        command.finished_s = now_s
        self._finished[command.command_id] = command

    def _close_at(self, node_id: str, command: Command) -> None:
        open_here = self._open_by_node.get(node_id)
        if open_here is not None:
            open_here.pop(command.command_id, None)
            if not open_here:
                del self._open_by_node[node_id]

    def _make_room(self, targets: int, size: int) -> list[Command]:
        """Forget finished commands, the oldest first, as far as the limits need it."""
        forgotten = []
        while self._finished and (
            len(self._finished) >= COMMANDS_MAX
            or self.targets + targets > TARGETS_MAX
            or self.bytes + size > KEPT_BYTES_MAX
        ):
            command = next(iter(self._finished.values()))
            if command.followers:
                break  # somebody is still reading how it ended
            self.remove(command)
            forgotten.append(command)
        return forgotten

    def _check_room(self, command: Command) -> None:
        under_way = len(self._commands) - len(self._finished)
        figures = (
            (under_way + 1, COMMANDS_MAX, "commands are under way"),
            (self.targets + len(command.nodes), TARGETS_MAX, "targets of commands are kept"),
            (self.bytes + command.bytes, KEPT_BYTES_MAX, "bytes of commands are kept"),
            *(
                (
                    len(self._open_by_node.get(node_id, ())) + 1,
                    PENDING_PER_NODE_MAX,
                    f"commands wait for node {node_id!r}",
                )
                for node_id in command.nodes
            ),
        )
        for figure, limit, what in figures:
            if figure > limit:
                raise errors.Overloaded(
                    f"{figure} {what} with this one, and the limit is {limit}; send it later",
                    metadata={"limit": limit},
                    retry_after_s=RETRY_S,
                )
