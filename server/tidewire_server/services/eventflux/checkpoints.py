"""
Checkpoints of EventFlux nodes.

CheckpointService fences: who commits has acquired the operator, and is refused once another has.
EventFlux has no such step, so the server holds the operator for the node that sends. A node that
wants to be fenced itself acquires an epoch and says it.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import checkpoint_pb2, common_pb2
from tidewire_server.core import Context
from tidewire_server.services.eventflux.access import Backends
from tidewire_server.services.eventflux.headers import (
    bad_header,
    choice,
    durability_word,
    number,
)
from tidewire_server.services.eventflux.messages import Incoming, TransportMessage, Writer

HELD_MAX: Final = 1024
"""Operators held for nodes; the one that was used longest ago is let go, and acquired again."""


@dataclass(slots=True)
class _Held:
    """An operator that is held for a node; the lock keeps its commits from fencing each other."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    epoch: int = 0


class Checkpoints:
    """Commits and loads."""

    def __init__(self, backends: Backends, writer: Writer) -> None:
        self._backends = backends
        self._service = backends.checkpoint
        self._writer = writer
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()

    async def do(self, message: Incoming, context: Context) -> TransportMessage:
        """
        Do what a CHECKPOINT says.

        Raises:
            TidewireError: See ``CheckpointService.Commit`` and ``Load``.
        """
        operator = message.headers.get("operator") or message.source_node
        if not operator:
            raise bad_header("operator", "is needed where the message has no source_node")
        if choice(message.headers, "operation", "commit", "load") == "load":
            return await self._load(message, operator, context)
        self._backends.check(context, "CheckpointService/Commit")
        request = checkpoint_pb2.CommitRequest(
            operator=operator,
            inline=message.payload,
            expected_revision=number(message.headers, "expected_revision"),
            request_id=message.id if message.is_named else "",
            note=message.headers.get("checkpoint_id", ""),
        )
        epoch = number(message.headers, "epoch", least=1)
        if epoch is not None:
            request.epoch = epoch
            response = await self._service.Commit(request, context)
        else:
            response = await self._commit_held(request, message.source_node, context)
        headers = {
            "durability": durability_word(response.durability),
            "operator": operator,
            "revision": str(response.revision),
            "epoch": str(request.epoch),
            "checkpoint_id": request.note,
            "digest": response.digest.hex(),
        }
        return self._writer.answer(message, headers)

    async def _commit_held(
        self, request: checkpoint_pb2.CommitRequest, node: str, context: Context
    ) -> checkpoint_pb2.CommitResponse:
        self._backends.check(context, "CheckpointService/Acquire")
        held = self._hold(request.operator, node)
        async with held.lock:
            if not held.epoch:
                asked = checkpoint_pb2.AcquireRequest(operator=request.operator)
                held.epoch = (await self._service.Acquire(asked, context)).epoch
            request.epoch = held.epoch
            try:
                return await self._service.Commit(request, context)
            except errors.OperatorFenced:
                held.epoch = 0  # its sender is told; if it goes on, it takes the operator back
                raise

    def _hold(self, operator: str, node: str) -> _Held:
        key = (operator, node)
        held = self._held.get(key)
        if held is None:
            if len(self._held) >= HELD_MAX:
                self._held.popitem(last=False)
            held = self._held[key] = _Held()
        self._held.move_to_end(key)
        return held

    async def _load(self, message: Incoming, operator: str, context: Context) -> TransportMessage:
        self._backends.check(context, "CheckpointService/Load")
        request = checkpoint_pb2.LoadRequest(
            operator=operator, revision=number(message.headers, "revision") or 0
        )
        found = (await self._service.Load(request, context)).checkpoint
        if not found.revision:
            raise errors.CheckpointNotFound(
                f"operator {operator!r} has no checkpoint", metadata={"subject": operator}
            )
        if found.WhichOneof("state") == "chunks":
            raise errors.CheckpointNotFound(
                f"checkpoint {found.revision} of {operator!r} is in chunks, which no message holds;"
                " read them with CheckpointService/GetChunk",
                metadata={"subject": operator, "revision": found.revision},
            )
        headers = {
            "operator": operator,
            "revision": str(found.revision),
            "epoch": str(found.epoch),
            "checkpoint_id": found.note,
            "digest": found.digest.hex(),
        }
        value = common_pb2.Payload(data=found.inline)
        kind = transport_pb2.MESSAGE_TYPE_CHECKPOINT
        return await self._writer.reply(message, headers, kind, value)
