"""Control: commands to nodes, with acknowledgement and result."""

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

from tidewire.client.attendance import Attendance, CommandHandler, Result, payload_of
from tidewire.client.opening import Opening
from tidewire.client.responses import responses
from tidewire.client.retry import may_repeat
from tidewire.client.session import PRIORITY_CONTROL, Session, log
from tidewire.client.times import to_duration
from tidewire.errors import ConnectionLost, DeadlineExceeded, InvalidArgument, TidewireError
from tidewire.errors import from_status as error_of
from tidewire.v1 import control_pb2
from tidewire.v1.control_pb2_grpc import ControlServiceStub
from tidewire.wire.payload import decode_payload

FOLLOW_SLACK_S = 10.0
"""Time a command is followed beyond its expiry: the server says the end."""

PROGRESS_NAMES = {
    control_pb2.COMMAND_PROGRESS_PENDING: "pending",
    control_pb2.COMMAND_PROGRESS_SENT: "sent",
    control_pb2.COMMAND_PROGRESS_ACKNOWLEDGED: "acknowledged",
    control_pb2.COMMAND_PROGRESS_SUCCEEDED: "succeeded",
    control_pb2.COMMAND_PROGRESS_FAILED: "failed",
    control_pb2.COMMAND_PROGRESS_EXPIRED: "expired",
}


@dataclass(frozen=True, slots=True)
class NodeResult:
    """
    How far a command is at one node.

    Attributes:
        node_id: Node.
        progress: "pending", "sent", "acknowledged", "succeeded", "failed" or "expired".
        result: What it answered, when it succeeded.
        error: Why it failed.
    """

    node_id: str
    progress: str
    result: bytes = b""
    error: TidewireError | None = None

    def json(self) -> Any:
        """The result as JSON; ``None`` when it is empty."""
        return json.loads(self.result) if self.result else None


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """
    How a command ended.

    Attributes:
        command_id: Identifier.
        nodes: Where every node stands, by node id.
        succeeded: Every node succeeded.
    """

    command_id: str
    nodes: dict[str, NodeResult]
    succeeded: bool

    def check(self) -> Self:
        """Return this; raise the first failure, or DeadlineExceeded when a node did not do it."""
        for node in self.nodes.values():
            if node.error is not None:
                raise node.error
        if not self.succeeded:
            late = [node.node_id for node in self.nodes.values() if node.progress != "succeeded"]
            raise DeadlineExceeded(f"command {self.command_id} was not done by {', '.join(late)}")
        return self


class SentCommand:
    """
    A command on its way: await it for its outcome, or iterate over its progress.

    It is followed again after a break: the same command id does nothing twice.

    Attributes:
        command_id: Identifier.
        targets: Nodes it is for, known when it was taken.
        outcome: How it ended; ``None`` before.
    """

    def __init__(self, session: Session, request: control_pb2.SendRequest, expiry_s: float) -> None:
        self._session = session
        self._stub = ControlServiceStub(session.channel)
        self._request = request
        self._ends_s = session.clock() + expiry_s + FOLLOW_SLACK_S
        self.command_id: str = request.command_id
        self.targets: tuple[str, ...] = ()
        self.outcome: CommandOutcome | None = None

    @property
    def over(self) -> bool:
        """The outcome is known."""
        return self.outcome is not None

    def __await__(self) -> Generator[Any, None, CommandOutcome]:
        return self._finish().__await__()

    def __aiter__(self) -> AsyncIterator[NodeResult]:
        return self._follow()

    async def _finish(self) -> CommandOutcome:
        async with aclosing(self._follow()) as steps:
            async for _ in steps:
                continue
        if self.outcome is None:
            raise ConnectionLost(f"command {self.command_id}: the server did not say its end")
        return self.outcome

    async def _follow(self) -> AsyncGenerator[NodeResult, None]:
        attempt = 0
        while True:
            try:
                async with aclosing(self._one_call()) as steps:
                    async for step in steps:
                        yield step
                if self.over:
                    return
                problem: TidewireError = ConnectionLost("the server ended the call early")
            except TidewireError as error:
                problem = error
            attempt += 1
            policy = self._session.options.retry
            delay_s = policy.delay_s(attempt, self._session.random)
            late = self._session.clock() + delay_s > self._ends_s
            if late or not may_repeat(problem, repeatable=True):
                raise problem
            log.warning("following command %s again: %s", self.command_id, problem)
            await self._session.sleep(delay_s)

    async def _one_call(self) -> AsyncGenerator[NodeResult, None]:
        limit_s = max(self._ends_s - self._session.clock(), 0.001)
        call = self._stub.Send(self._request, timeout=limit_s, metadata=PRIORITY_CONTROL)
        async with aclosing(responses(call)) as steps:
            async for response in steps:
                kind = response.WhichOneof("kind")
                if kind == "accepted":
                    self.targets = tuple(response.accepted.targets)
                elif kind == "progress":
                    yield read_progress(response.progress)
                elif kind == "finished":
                    nodes = [read_progress(node) for node in response.finished.nodes]
                    self.outcome = CommandOutcome(
                        self.command_id,
                        {node.node_id: node for node in nodes},
                        response.finished.succeeded,
                    )
                    return


class Control:
    """The control part of a client; see `tidewire.connect`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = ControlServiceStub(session.channel)

    def send(
        self,
        verb: str,
        arguments: Result = None,
        *,
        node_id: str | None = None,
        group: str | None = None,
        all_nodes: bool = False,
        expiry_s: float = 30.0,
        command_id: str | None = None,
    ) -> SentCommand:
        """
        Send a command: ``outcome = await client.control.send("reload", node_id="node-7")``.

        Args:
            verb: What to do: ``[a-z0-9_.-]{1,64}``.
            arguments: Bytes, text, or a mapping or list that becomes JSON.
            node_id: The node it is for; this or one of the next two.
            group: Every node that attends with this group now.
            all_nodes: Every node that attends now.
            expiry_s: Time in which every node must be done; at most 1 h. A node that is away gets
                it when it comes back in time.
            command_id: A command of this id is done at most once by each node; by default random.

        Raises:
            NoTargets, CommandConflict, InvalidArgument: When it is awaited.
        """
        chosen = [node_id is not None, group is not None, all_nodes]
        if sum(chosen) != 1:
            raise InvalidArgument("a command is for exactly one of node_id, group, all_nodes")
        target = control_pb2.Target()
        if node_id is not None:
            target.node_id = node_id
        elif group is not None:
            target.group = group
        else:
            target.all = True
        request = control_pb2.SendRequest(
            command_id=command_id or uuid.uuid4().hex,
            target=target,
            verb=verb,
            arguments=payload_of(arguments, self._session.codec),
            expiry=to_duration(expiry_s),
        )
        return SentCommand(self._session, request, expiry_s)

    async def get(self, command_id: str) -> tuple[list[NodeResult], bool]:
        """What has become of a command: where nodes stand, and whether it is over."""
        request = control_pb2.GetCommandRequest(command_id=command_id)
        response = await self._session.unary(
            self._stub.GetCommand, request, metadata=PRIORITY_CONTROL
        )
        return [read_progress(node) for node in response.nodes], bool(response.finished)

    def attend(
        self,
        node_id: str,
        handlers: Mapping[str, CommandHandler],
        *,
        groups: Sequence[str] = (),
    ) -> Opening[Attendance]:
        """
        Attend as a node: ``async with client.control.attend("node-7", {"reload": reload})``.

        Args:
            node_id: Node id; a second attendance under it takes over from the first.
            handlers: Called with the `Command`, by verb; a function or coroutine function. What it
                returns (bytes, text, JSON) is the result; an exception is the failure.
            groups: Groups it is in.
        """
        attendance = Attendance(self._session, node_id, handlers, groups)

        async def open_() -> Attendance:
            await attendance.open()
            return attendance

        return Opening(open_)


def read_progress(progress: control_pb2.NodeProgress) -> NodeResult:
    """Return how far a command is at a node."""
    return NodeResult(
        node_id=progress.node_id,
        progress=PROGRESS_NAMES.get(progress.progress, "unknown"),
        result=decode_payload(progress.result) if progress.HasField("result") else b"",
        error=error_of(progress.error) if progress.HasField("error") else None,
    )
