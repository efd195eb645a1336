"""Attending as a node: commands are taken, done once, and answered."""

import asyncio
import inspect
import json
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from tidewire.client.content import Content
from tidewire.client.responder import status_of
from tidewire.client.session import PRIORITY_CONTROL, Session, log
from tidewire.client.stream import ReopeningStream
from tidewire.client.times import to_seconds
from tidewire.errors import DeadlineExceeded, TidewireError, Unimplemented
from tidewire.v1 import common_pb2, control_pb2
from tidewire.v1.control_pb2_grpc import ControlServiceStub
from tidewire.wire.codec import CodecName
from tidewire.wire.payload import encode_payload

REMEMBERED_MAX: Final = 1_024
"""Answers kept, so that a command that comes again is answered and not done twice."""
RUNNING_MAX: Final = 1_024

Result: TypeAlias = bytes | str | Mapping[str, Any] | Sequence[Any] | int | float | bool | None
"""Bytes and text go as they are, anything else as JSON; ``None`` is empty."""


class Command(Content):
    """
    A command for this node; its payload are the arguments.

    Attributes:
        command_id: Identifier.
        verb: What to do.
        remaining_s: Time left when the server sent it.
        principal: Who sent it, as the server authenticated it.
        redelivered: It was handed over before.
    """

    __slots__ = ("command_id", "principal", "redelivered", "remaining_s", "verb")

    def __init__(self, command: control_pb2.Command) -> None:
        super().__init__(command.arguments)
        self.command_id: str = command.command_id
        self.verb: str = command.verb
        self.remaining_s = to_seconds(command.remaining)
        self.principal: str = command.principal
        self.redelivered: bool = command.redelivered


CommandHandler = Callable[[Command], Any]


class Attendance(ReopeningStream[control_pb2.AttendRequest, control_pb2.AttendResponse]):
    """
    Takes commands until it is closed.

    Attributes:
        node_id: Node id it attends under.
        done: Commands done, failures included.
    """

    def __init__(
        self,
        session: Session,
        node_id: str,
        handlers: Mapping[str, CommandHandler],
        groups: Sequence[str],
    ) -> None:
        stub = ControlServiceStub(session.channel)
        super().__init__(session, f"attendance as {node_id}", stub.Attend, PRIORITY_CONTROL)
        self.node_id = node_id
        self.done = 0
        self._handlers = dict(handlers)
        self._groups = groups
        self._outbox: deque[control_pb2.AttendRequest] = deque()
        self._answers: OrderedDict[str, control_pb2.CommandResult] = OrderedDict()
        self._running: dict[str, asyncio.Task[None]] = {}

    async def join(self) -> None:
        """Wait until the attendance ends; raises AttendanceTaken when another one took over."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._error is not None and not self._closing:
            raise self._error

    async def close(self) -> None:
        """Stop what is being done, then end."""
        for task in self._running.values():
            task.cancel()
        await super().close()

    async def _first_request(self) -> control_pb2.AttendRequest:
        opening = control_pb2.AttendOpen(node_id=self.node_id, groups=self._groups)
        return control_pb2.AttendRequest(open=opening)

    def _outgoing(self) -> Iterator[control_pb2.AttendRequest]:
        while self._outbox:
            yield self._outbox.popleft()

    def _received(self, kind: str, response: control_pb2.AttendResponse) -> Awaitable[None] | None:
        if kind == "command":
            self._take(Command(response.command))
        return None

    def _broken(self) -> None:
        # Commands without an answer come again; answers that are known are given then.
        self._outbox.clear()

    def _take(self, command: Command) -> None:
        command_id = command.command_id
        self._tell(acknowledged=command_id)
        answer = self._answers.get(command_id)
        if answer is not None:
            self._send(answer)
        elif command_id not in self._running:
            handler = self._handlers.get(command.verb)
            if handler is None:
                known = ", ".join(sorted(self._handlers)) or "none"
                self._fail(
                    command,
                    Unimplemented(
                        f"node {self.node_id} does not know {command.verb!r}; it knows {known}"
                    ),
                )
            elif len(self._running) >= RUNNING_MAX:
                self._fail(command, Unimplemented(f"{RUNNING_MAX} commands are under way"))
            else:
                self._do(command, handler)

    def _do(self, command: Command, handler: CommandHandler) -> None:
        try:
            result = handler(command)
        except Exception as error:  # noqa: BLE001 (the application's; told to who sent it)
            self._fail(command, error)
            return
        if inspect.isawaitable(result):
            task = asyncio.create_task(self._wait(command, result))
            self._running[command.command_id] = task
            task.add_done_callback(lambda _: self._forget(command.command_id))
        else:
            self._succeed(command, result)

    def _forget(self, command_id: str) -> None:
        self._running.pop(command_id, None)
        if self._draining:
            self._wake.set()

    def _may_leave(self) -> bool:
        return not self._running

    async def _wait(self, command: Command, work: Awaitable[Result]) -> None:
        try:
            async with asyncio.timeout(command.remaining_s or None):
                result = await work
        except TimeoutError:
            self._fail(command, DeadlineExceeded("the command's time was over"))
        except Exception as error:  # noqa: BLE001 (the application's; told to who sent it)
            self._fail(command, error)
        else:
            self._succeed(command, result)

    def _succeed(self, command: Command, result: Result) -> None:
        try:
            payload = payload_of(result, self._session.codec)
        except (TypeError, ValueError, TidewireError) as error:
            self._fail(command, error)
            return
        self._complete(control_pb2.CommandResult(command_id=command.command_id, result=payload))

    def _fail(self, command: Command, error: Exception) -> None:
        log.info("command %s (%s) failed: %r", command.command_id, command.verb, error)
        status = status_of(error)
        self._complete(control_pb2.CommandResult(command_id=command.command_id, error=status))

    def _complete(self, answer: control_pb2.CommandResult) -> None:
        self.done += 1
        self._answers[answer.command_id] = answer
        if len(self._answers) > REMEMBERED_MAX:
            self._answers.popitem(last=False)
        self._send(answer)

    def _send(self, answer: control_pb2.CommandResult) -> None:
        if self.connected:
            self._outbox.append(control_pb2.AttendRequest(result=answer))
            self._wake.set()

    def _tell(self, acknowledged: str) -> None:
        taken = control_pb2.CommandAcknowledged(command_id=acknowledged)
        self._outbox.append(control_pb2.AttendRequest(acknowledged=taken))
        self._wake.set()


def payload_of(value: Result, codec: CodecName) -> common_pb2.Payload:
    """Encode arguments or a result."""
    if value is None:
        return common_pb2.Payload(codec=common_pb2.CODEC_NONE)
    if isinstance(value, bytes | str):
        return encode_payload(value, codec=codec)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return encode_payload(text, codec=codec, content_type="application/json")
