"""
Commands on disk and in time: what is stored, what comes back after a start, what expires and is
forgotten.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from google.rpc import status_pb2

from tidewire import errors
from tidewire.v1 import control_pb2
from tidewire_server.core import Core
from tidewire_server.services.control.commands import (
    ACKNOWLEDGED,
    FAILED,
    FINISHED_KEPT_S,
    Command,
    CommandTable,
)
from tidewire_server.services.control.record import (
    KIND_COMMAND,
    KIND_OUTCOME,
    decode_command,
    decode_outcome,
    encode_command,
    outcome_name,
    split_outcome_name,
)

TIMER_S_MAX: Final = 3600.0
ERROR_BYTES_MAX: Final = 4096
ERROR_TEXT_MAX: Final = 1024
FORGOTTEN_AT_ONCE_MAX: Final = 100
FORGOTTEN_PENDING_MAX: Final = 100_000

log = logging.getLogger(__name__)


class CommandKeeper:
    """
    The table of commands together with its store and its one timer.

    Attributes:
        moved: Set whenever something was settled; for who waits for that.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self.table = CommandTable()
        self.moved = asyncio.Event()
        self._forgotten: deque[Command] = deque(maxlen=FORGOTTEN_PENDING_MAX)
        self._forgotten_event = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._deleting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the stored commands back."""
        await self._restore()
        self._deleting = asyncio.create_task(self._delete_forgotten(), name="control-delete")
        self._set_timer()

    async def close(self) -> None:
        """Stop; what is not done stays in the store."""
        if self._timer is not None:
            self._timer.cancel()
        if self._deleting is not None:
            self._deleting.cancel()
            await asyncio.gather(self._deleting, return_exceptions=True)

    def add(self, command: Command) -> None:
        """
        Take a command that is not stored yet.

        Raises:
            Overloaded: There are too many.
        """
        self._forget(self.table.add(command, self._core.clock()))

    async def store(self, command: Command) -> None:
        """Make a command durable; one that cannot be stored is forgotten, and the error raised."""
        try:
            await self._core.engine.put_document(
                KIND_COMMAND, command.command_id, encode_command(command), _kept_until_ns(command)
            )
        except BaseException:
            self.table.remove(command)
            raise
        command.stored = True
        self._set_timer()

    async def store_outcome(self, command: Command, outcome: control_pb2.NodeProgress) -> None:
        """Make durable where a command stands at a node."""
        await self._core.engine.put_document(
            KIND_OUTCOME,
            outcome_name(command.command_id, outcome.node_id),
            outcome.SerializeToString(),
            _kept_until_ns(command),
        )

    async def settle(self, command: Command, outcome: control_pb2.NodeProgress) -> None:
        """Make an outcome durable, then tell of it."""
        await self.store_outcome(command, outcome)
        self._forget(self.table.settle(command, outcome, self._core.clock()))
        self.moved.set()
        self._set_timer()

    def failure(self, node_id: str, error: status_pb2.Status) -> control_pb2.NodeProgress:
        """Make the outcome of a command that failed at a node, at this moment."""
        if error.ByteSize() > ERROR_BYTES_MAX:
            error = status_pb2.Status(code=error.code, message=error.message[:ERROR_TEXT_MAX])
        outcome = control_pb2.NodeProgress(node_id=node_id, progress=FAILED, error=error)
        outcome.time.FromNanoseconds(self._core.wall_ns())
        return outcome

    async def _restore(self) -> None:
        engine = self._core.engine
        outcomes: dict[str, list[control_pb2.NodeProgress]] = {}
        for name, body in await engine.list_documents(KIND_OUTCOME):
            command_id, _ = split_outcome_name(name)
            try:
                outcomes.setdefault(command_id, []).append(decode_outcome(body))
            except errors.TidewireError as error:
                self._skip(name, error)
        for name, body in await engine.list_documents(KIND_COMMAND):
            now_s, now_ns = self._core.clock(), self._core.wall_ns()
            try:
                command = decode_command(body, now_s=now_s, now_ns=now_ns)
                self._apply(command, outcomes.pop(command.command_id, ()))
                self._forget(self.table.add(command, now_s))
            except errors.TidewireError as error:
                self._skip(name, error)
            self._forget(self.table.expire(now_s, now_ns))

    def _apply(self, command: Command, outcomes: Sequence[control_pb2.NodeProgress]) -> None:
        """Give a command from the store the outcomes that were stored for it."""
        for outcome in outcomes:
            state = command.nodes.get(outcome.node_id)
            # An older one is of a command that had this id before.
            if state is None or outcome.time.ToNanoseconds() < command.sent_ns:
                continue
            if outcome.progress == ACKNOWLEDGED:
                outcome = self._interrupted(command, outcome.node_id)
            command.apply(outcome)

    def _interrupted(self, command: Command, node_id: str) -> control_pb2.NodeProgress:
        error = errors.OutcomeUnknown(
            f"the server ended while it did {command.request.verb!r}; it is not done again",
            metadata={"request_id": command.command_id},
        )
        return self.failure(node_id, error.to_status())

    def _skip(self, name: str, error: errors.TidewireError) -> None:
        self._core.counters.add("commands_skipped_total")
        log.error("a stored command is skipped", extra={"name_": name, "error": error.message})

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_s = self.table.next_due_s()
        wait_s = TIMER_S_MAX if due_s is None else due_s - self._core.clock()
        wait_s = min(max(wait_s, 0.0), TIMER_S_MAX)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._forget(self.table.expire(self._core.clock(), self._core.wall_ns()))
        self.moved.set()
        self._set_timer()

    def _forget(self, commands: Sequence[Command]) -> None:
        if commands:
            self._forgotten.extend(commands)
            self._forgotten_event.set()

    async def _delete_forgotten(self) -> None:
        """
        Delete what is forgotten from the store; what cannot be deleted expires there by itself.
        """
        engine = self._core.engine
        while True:
            await self._forgotten_event.wait()
            commands = [
                self._forgotten.popleft()
                for _ in range(min(len(self._forgotten), FORGOTTEN_AT_ONCE_MAX))
            ]
            if not self._forgotten:
                self._forgotten_event.clear()
            # An id may be in use again by now.
            gone = [each for each in commands if self.table.get(each.command_id) is None]
            outcomes = [outcome_name(each.command_id, node) for each in gone for node in each.nodes]
            try:
                # Both at once: nothing that is written from now on may be among what they delete.
                await asyncio.gather(
                    engine.delete_documents(KIND_COMMAND, [each.command_id for each in gone]),
                    engine.delete_documents(KIND_OUTCOME, outcomes),
                )
            except errors.TidewireError as error:
                log.warning("old commands are not deleted", extra={"error": error.message})


def _kept_until_ns(command: Command) -> int:
    return command.expires_ns + int(FINISHED_KEPT_S * 1e9)
