"""
ControlService: commands to nodes.

A command is durable before its sender hears of it, and so is its outcome at each node. What is
handed over is never behind bulk: streams of Send and Attend should go with ``tidewire-priority:
1``.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from tidewire import errors
from tidewire.v1 import control_pb2, control_pb2_grpc
from tidewire.wire.subject import check_name
from tidewire_server.core import Core, principal
from tidewire_server.services.control import following
from tidewire_server.services.control.admin import AdminActions
from tidewire_server.services.control.attendance import Attendance, Attendant
from tidewire_server.services.control.commands import (
    ACKNOWLEDGED,
    FINISHED_KEPT_S,
    SENT,
    SUCCEEDED,
    Command,
)
from tidewire_server.services.control.keeper import CommandKeeper
from tidewire_server.services.control.server_node import ServerNode
from tidewire_server.services.outbox import OutboxClosed
from tidewire_server.services.payload import bad_field, check_payload

EXPIRY_DEFAULT_S: Final = 30.0
EXPIRY_S_MAX: Final = 3600.0
COMMAND_ID_BYTES_MAX: Final = 64
ARGUMENTS_BYTES_MAX: Final = 1024 * 1024
RESULT_BYTES_MAX: Final = 256 * 1024
GROUPS_MAX: Final = 64
ATTENDANTS_MAX: Final = 10_000
OPEN_WAIT_S: Final = 10.0
GRACE_SHARE: Final = 0.9
"""Part of the grace after which streams end also with commands under way."""

_VERB: Final = re.compile(r"[a-z0-9_.-]{1,64}")


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """
    Serves commands; one instance for all wires.

    Args:
        core: Shared parts.
        admin: What commands to the server's own node do; ``None``: they fail.
    """

    def __init__(self, core: Core, admin: AdminActions | None = None) -> None:
        self._core = core
        self._keeper = CommandKeeper(core)
        self._table = self._keeper.table
        self._attendance = Attendance()
        self._server = ServerNode(core, self._keeper, admin)
        self._storing: dict[str, asyncio.Task[None]] = {}
        self._followers: dict[following.CommandFollower, Command] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take the stored commands back; nodes get what they have not done when they attend."""
        await self._keeper.start()
        self._tasks = [
            asyncio.create_task(self._server.run(), name="control-admin"),
            asyncio.create_task(self._watch_drain(), name="control-drain"),
        ]

    async def close(self) -> None:
        """Stop; what is not done stays in the store."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._storing.values(), return_exceptions=True)
        await self._keeper.close()
        self._end_streams()

    # Sending.

    async def Send(  # type: ignore[override]  # writes to the context
        self, request: control_pb2.SendRequest, context: Any
    ) -> None:
        """Send a command, or follow the one that has its id."""
        expiry_s = self._check_send(request)
        who = principal(context)
        command = self._table.get(request.command_id)
        repeated = command is not None
        if command is None:
            command = self._accept(request, who, expiry_s)
        else:
            command.check_same(request, who)
        storing = self._storing.get(command.command_id)
        if storing is not None:
            await asyncio.shield(storing)
        response = control_pb2.SendResponse()
        response.accepted.command_id = command.command_id
        response.accepted.targets.extend(command.nodes)
        response.accepted.repeated_command = repeated
        await context.write(response)
        follower = following.CommandFollower(command)
        self._followers[follower] = command
        try:
            await follower.run(context)
        finally:
            del self._followers[follower]
            self._keeper.moved.set()
        done = following.finished(command, self._core.limits.response_bytes_max)
        await context.write(control_pb2.SendResponse(finished=done))

    async def GetCommand(
        self, request: control_pb2.GetCommandRequest, context: Any
    ) -> control_pb2.GetCommandResponse:
        """Say where a command stands."""
        command = self._table.get(request.command_id)
        if command is None or not command.stored:
            raise errors.CommandNotFound(
                f"there is no command {request.command_id[:COMMAND_ID_BYTES_MAX]!r}; those that are"
                f" over are kept for {FINISHED_KEPT_S:g} s",
            )
        response = control_pb2.GetCommandResponse(
            nodes=following.nodes_of(command, self._core.limits.response_bytes_max),
            finished=command.finished_s is not None,
            verb=command.request.verb,
        )
        response.sent.FromNanoseconds(command.sent_ns)
        response.expires.FromNanoseconds(command.expires_ns)
        return response

    def _check_send(self, request: control_pb2.SendRequest) -> float:
        if not 1 <= len(request.command_id.encode()) <= COMMAND_ID_BYTES_MAX:
            raise bad_field("command_id", f"must have 1 to {COMMAND_ID_BYTES_MAX} bytes")
        if _VERB.fullmatch(request.verb) is None:
            raise bad_field("verb", "must be 1 to 64 characters of a-z 0-9 _ . -")
        check_payload(request.arguments, "arguments", self._core)
        if len(request.arguments.data) > ARGUMENTS_BYTES_MAX:
            raise errors.MessageTooLarge(
                f"arguments have {len(request.arguments.data)} bytes; at most {ARGUMENTS_BYTES_MAX}"
                " are taken",
                metadata={"size": len(request.arguments.data), "limit": ARGUMENTS_BYTES_MAX},
            )
        if not request.HasField("expiry"):
            return EXPIRY_DEFAULT_S
        expiry_s = request.expiry.ToNanoseconds() / 1e9
        if not 0 < expiry_s <= EXPIRY_S_MAX:
            raise bad_field("expiry", f"is {expiry_s:g} s; up to 1 h is taken")
        return expiry_s

    def _accept(self, request: control_pb2.SendRequest, who: str, expiry_s: float) -> Command:
        """Take a new command, and begin to store it."""
        core = self._core
        now_ns = core.wall_ns()
        command = Command(
            request,
            self._targets(request.target),
            principal=who,
            sent_ns=now_ns,
            expires_ns=now_ns + int(expiry_s * 1e9),
            expires_s=core.clock() + expiry_s,
        )
        self._keeper.add(command)
        self._core.counters.add("commands_total")
        # A task of its own: a sender that goes away must not leave a command half accepted.
        task = asyncio.create_task(self._store(command), name="control-store")
        self._storing[command.command_id] = task
        task.add_done_callback(_look_at)
        return command

    def _targets(self, target: control_pb2.Target) -> Sequence[str]:
        kind = target.WhichOneof("kind")
        if kind == "node_id":
            return [check_name(target.node_id, "node_id")]
        if kind == "group":
            nodes = self._attendance.nodes(check_name(target.group, "group"))
        elif kind == "all":
            nodes = self._attendance.nodes()
        else:
            raise bad_field("target", "is needed: node_id, group or all")
        if not nodes:
            whom = f"in group {target.group!r}" if kind == "group" else "at all"
            raise errors.NoTargets(
                f"no node {whom} attends now; send it to a node_id to have it wait for the node"
            )
        return nodes

    async def _store(self, command: Command) -> None:
        try:
            await self._keeper.store(command)
        finally:
            del self._storing[command.command_id]
        for node_id in command.nodes:
            attendant = self._attendant_of(node_id)
            if attendant is not None:
                attendant.outbox.put(command)

    def _attendant_of(self, node_id: str) -> Attendant | None:
        if node_id == self._core.node_id:
            return self._server
        return self._attendance.get(node_id)

    # Attending.

    async def Attend(  # type: ignore[override]  # writes to the context
        self, request_iterator: AsyncIterator[control_pb2.AttendRequest], context: Any
    ) -> None:
        """Hand commands to a node and take its outcomes."""
        attendant = self._open(await _first(request_iterator))
        outbox = attendant.outbox
        outbox.put(control_pb2.AttendResponse(opened=self._core.opened()))
        self._attendance.enter(attendant)
        for command in self._table.open_at(attendant.node_id):
            if command.stored:
                outbox.put(command)
        reader = asyncio.create_task(self._read(attendant, request_iterator), name="control-attend")
        try:
            with contextlib.suppress(OutboxClosed):
                while True:
                    await self._hand_over(attendant, await outbox.take(), context)
        finally:
            reader.cancel()
            self._attendance.leave(attendant)
            self._keeper.moved.set()

    def _open(self, request: control_pb2.AttendRequest) -> Attendant:
        if request.WhichOneof("kind") != "open":
            raise errors.ProtocolOrder("the first request on Attend must be `open`")
        opening = request.open
        check_name(opening.node_id, "node_id")
        if opening.node_id == self._core.node_id:
            raise errors.NodeInUse(
                f"node id {opening.node_id!r} is the server's own; choose another",
                metadata={"node_id": opening.node_id},
            )
        if len(opening.groups) > GROUPS_MAX:
            raise bad_field("open.groups", f"has {len(opening.groups)} entries, over {GROUPS_MAX}")
        for group in opening.groups:
            check_name(group, "group")
        is_new = self._attendance.get(opening.node_id) is None
        if is_new and len(self._attendance) >= ATTENDANTS_MAX:
            raise errors.Overloaded(
                f"{ATTENDANTS_MAX} nodes attend already, which is the limit",
                metadata={"attendants_max": ATTENDANTS_MAX},
            )
        return Attendant(opening.node_id, opening.groups)

    async def _hand_over(
        self, attendant: Attendant, item: Command | control_pb2.AttendResponse, context: Any
    ) -> None:
        if isinstance(item, control_pb2.AttendResponse):
            await context.write(item)
            return
        state = item.nodes[attendant.node_id]
        if state.done or self._core.drain.started.is_set():
            return
        remaining_s = max(0.0, item.expires_s - self._core.clock())
        response = control_pb2.AttendResponse()
        command = response.command
        command.command_id = item.command_id
        command.verb = item.request.verb
        command.arguments.CopyFrom(item.request.arguments)
        command.remaining.FromNanoseconds(int(remaining_s * 1e9))
        command.principal = item.principal
        command.redelivered = state.handed_over
        state.handed_over = True
        await context.write(response)
        self._table.advance(item, attendant.node_id, SENT, self._core.wall_ns())

    async def _read(
        self, attendant: Attendant, requests: AsyncIterator[control_pb2.AttendRequest]
    ) -> None:
        try:
            async for request in requests:
                await self._take(attendant, request)
        except Exception as error:  # noqa: BLE001 (the stream ends with it, and the router judges it)
            attendant.outbox.fail(error)
            return
        attendant.outbox.close()

    async def _take(self, attendant: Attendant, request: control_pb2.AttendRequest) -> None:
        kind = request.WhichOneof("kind")
        if kind == "acknowledged":
            command = self._of(attendant, request.acknowledged.command_id)
            if command is not None:
                self._table.advance(command, attendant.node_id, ACKNOWLEDGED, self._core.wall_ns())
        elif kind == "result":
            command = self._of(attendant, request.result.command_id)
            if command is not None:
                await self._keeper.settle(command, self._outcome(attendant.node_id, request.result))
        else:
            raise errors.ProtocolOrder(
                f"after `open` come `acknowledged` and `result`, not {kind or 'nothing'!r}"
            )

    def _of(self, attendant: Attendant, command_id: str) -> Command | None:
        """
        The command a node speaks of; ``None`` when it is forgotten, over, or never was for this
        node.
        """
        command = self._table.get(command_id)
        state = command.nodes.get(attendant.node_id) if command is not None else None
        if command is None or state is None or state.done or not command.stored:
            self._core.counters.add("command_answers_late_total")
            return None
        return command

    def _outcome(self, node_id: str, result: control_pb2.CommandResult) -> control_pb2.NodeProgress:
        if result.WhichOneof("outcome") == "error":
            return self._keeper.failure(node_id, result.error)
        try:
            check_payload(result.result, "result", self._core)
            if len(result.result.data) > RESULT_BYTES_MAX:
                raise errors.MessageTooLarge(
                    f"the node did it, but its result has {len(result.result.data)} bytes; at most"
                    f" {RESULT_BYTES_MAX} are taken"
                )
        except errors.TidewireError as error:
            return self._keeper.failure(node_id, error.to_status())
        outcome = control_pb2.NodeProgress(
            node_id=node_id, progress=SUCCEEDED, result=result.result
        )
        outcome.time.FromNanoseconds(self._core.wall_ns())
        return outcome

    # Going.

    async def _watch_drain(self) -> None:
        drain = self._core.drain
        await drain.started.wait()
        announcement = control_pb2.AttendResponse(draining=drain.message())
        for attendant in self._attendance.everyone():
            attendant.outbox.put(announcement)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain.grace_s * GRACE_SHARE):
                while self._end_idle():
                    self._keeper.moved.clear()
                    await self._keeper.moved.wait()
        self._end_streams()

    def _end_idle(self) -> bool:
        """
        End streams of nodes that have nothing in hand, and followers that wait for nobody here.

        Returns:
            True while some are left.
        """
        for attendant in self._attendance.everyone():
            node_id = attendant.node_id
            if not any(each.nodes[node_id].handed_over for each in self._table.open_at(node_id)):
                attendant.outbox.close()
                self._attendance.leave(attendant)
        for follower, command in self._followers.items():
            if not any(
                self._attendant_of(node_id) is not None
                for node_id, state in command.nodes.items()
                if not state.done
            ):
                follower.fail(_going(command))
        return bool(len(self._attendance) or self._followers)

    def _end_streams(self) -> None:
        for attendant in self._attendance.everyone():
            attendant.outbox.close()
        for follower, command in self._followers.items():
            follower.fail(_going(command))


async def _first(
    requests: AsyncIterator[control_pb2.AttendRequest],
) -> control_pb2.AttendRequest:
    try:
        async with asyncio.timeout(OPEN_WAIT_S):
            return await anext(requests)
    except StopAsyncIteration:
        raise errors.ProtocolOrder("Attend ended before its first request, `open`") from None
    except TimeoutError:
        raise errors.PeerTooSlow(f"`open` did not come within {OPEN_WAIT_S:g} s") from None


def _going(command: Command) -> errors.Draining:
    return errors.Draining(
        f"the server is shutting down; command {command.command_id!r} goes on when it is back: send"
        " it again with the same id to follow it",
        retry_after_s=1.0,
    )


def _look_at(task: asyncio.Task[None]) -> None:
    """Fetch the exception of a task whose waiters may all be gone."""
    if not task.cancelled():
        task.exception()
