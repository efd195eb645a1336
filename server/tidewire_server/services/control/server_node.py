"""The server as a node: it takes the commands that are for its own node id, one after the other."""

import asyncio
import logging

from tidewire import errors
from tidewire.v1 import control_pb2
from tidewire_server.core import Core
from tidewire_server.services.control.admin import AdminActions, run_verb
from tidewire_server.services.control.attendance import Attendant
from tidewire_server.services.control.commands import ACKNOWLEDGED, SUCCEEDED, Command
from tidewire_server.services.control.keeper import CommandKeeper

log = logging.getLogger(__name__)


class ServerNode(Attendant):
    """Attends as the server's node id, without a stream."""

    def __init__(self, core: Core, keeper: CommandKeeper, admin: AdminActions | None) -> None:
        super().__init__(core.node_id, ())
        self._core = core
        self._keeper = keeper
        self._admin = admin

    async def run(self) -> None:
        """Do commands until cancelled."""
        for command in self._keeper.table.open_at(self.node_id):
            self.outbox.put(command)
        while True:
            item = await self.outbox.take()
            if not isinstance(item, Command) or item.nodes[self.node_id].done:
                continue
            try:
                await self._do(item)
            except errors.TidewireError as error:
                log.warning("a command's outcome is not stored", extra={"error": error.message})

    async def _do(self, command: Command) -> None:
        node_id, keeper = self.node_id, self._keeper
        now_ns = self._core.wall_ns()
        keeper.table.advance(command, node_id, ACKNOWLEDGED, now_ns)
        # Stored before it is done: after a start it is never done again.
        begun = command.nodes[node_id].to_proto(node_id)
        await keeper.store_outcome(command, begun)
        try:
            async with asyncio.timeout(max(0.0, command.expires_s - self._core.clock())):
                result = await run_verb(
                    self._admin, command.request.verb, command.request.arguments
                )
        except TimeoutError:
            return  # it expires
        except errors.TidewireError as error:
            outcome = keeper.failure(node_id, error.to_status())
        except Exception as error:
            log.exception("an administrative command failed", extra={"verb": command.request.verb})
            mistake = errors.Internal(f"the server made a mistake: {type(error).__name__}")
            outcome = keeper.failure(node_id, mistake.to_status())
        else:
            outcome = control_pb2.NodeProgress(node_id=node_id, progress=SUCCEEDED, result=result)
            outcome.time.FromNanoseconds(self._core.wall_ns())
        await keeper.settle(command, outcome)
