"""Following a command: what a sender is told, however slowly it reads."""

import asyncio
from typing import Any

from tidewire import errors
from tidewire.v1 import control_pb2
from tidewire_server.services.control.commands import PENDING, Command


class CommandFollower:
    """
    Tells one sender of the progress of one command.

    What waits is one mark for each node, not one message for each step: a slow reader misses steps
    in between, never the last one, and costs memory only for the nodes.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self._news: dict[str, None] = {
            node_id: None for node_id, state in command.nodes.items() if state.progress != PENDING
        }
        self._wake = asyncio.Event()
        self._error: errors.TidewireError | None = None

    def on_progress(self, node_id: str) -> None:
        """Take the news that this node got further."""
        self._news[node_id] = None
        self._wake.set()

    def fail(self, error: errors.TidewireError) -> None:
        """End following with an error, unless the command is over."""
        self._error = error
        self._wake.set()

    async def run(self, context: Any) -> None:
        """Write progress until the command is over."""
        command = self._command
        command.followers[self] = None
        try:
            while True:
                while self._news:
                    node_id = next(iter(self._news))
                    del self._news[node_id]
                    progress = command.nodes[node_id].to_proto(node_id)
                    await context.write(control_pb2.SendResponse(progress=progress))
                if command.finished_s is not None:
                    return
                if self._error is not None:
                    raise self._error
                self._wake.clear()
                await self._wake.wait()
        finally:
            command.followers.pop(self, None)


def finished(command: Command, bytes_max: int) -> control_pb2.SendFinished:
    """Where every node stands, in at most about ``bytes_max``."""
    return control_pb2.SendFinished(
        nodes=nodes_of(command, bytes_max),
        succeeded=all(
            state.progress == control_pb2.COMMAND_PROGRESS_SUCCEEDED
            for state in command.nodes.values()
        ),
    )


def nodes_of(command: Command, bytes_max: int) -> list[control_pb2.NodeProgress]:
    """
    Where every node stands. When that is more than ``bytes_max``, results are left out, and then
    the texts of errors: each was told before in its own progress.
    """
    nodes = [state.to_proto(node_id) for node_id, state in command.nodes.items()]
    if sum(node.ByteSize() for node in nodes) > bytes_max:
        for node in nodes:
            if node.HasField("result"):
                node.result.Clear()
    if sum(node.ByteSize() for node in nodes) > bytes_max:
        for node in nodes:
            if node.HasField("error"):
                node.error.message = ""
                del node.error.details[:]
    return nodes
