"""What is done with each kind of message: one call of the service that stands for it."""

import asyncio
import contextlib
from typing import Any, Final

from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import common_pb2, control_pb2, event_pb2, query_pb2, state_pb2
from tidewire.wire.payload import encode_payload
from tidewire_server.core import Context, Core
from tidewire_server.services.eventflux.access import Backends
from tidewire_server.services.eventflux.checkpoints import Checkpoints
from tidewire_server.services.eventflux.headers import (
    bad_header,
    choice,
    durability,
    durability_word,
    number,
)
from tidewire_server.services.eventflux.members import Nodes
from tidewire_server.services.eventflux.messages import (
    MILLISECOND_NS,
    Incoming,
    TransportMessage,
    Writer,
)
from tidewire_server.services.eventflux.translate import to_batch

TIMEOUT_MS_MAX: Final = 300_000
EXPIRY_MS_MAX: Final = 3_600_000
TTL_MS_MAX: Final = 3650 * 86_400_000
VERB_DEFAULT: Final = "eventflux.control"
OPTIONS: Final = frozenset(
    {
        "await",
        "durability",
        "expected_revision",
        "expiry_ms",
        "key",
        "operation",
        "timeout_ms",
        "ttl_ms",
        "verb",
    }
)
"""Headers that say what the server is to do; they are not passed on with a value."""
NODES_SHOWN_MAX: Final = 1000
"""Nodes whose outcome an answer names."""

QUERY: Final = transport_pb2.MESSAGE_TYPE_QUERY
STATE: Final = transport_pb2.MESSAGE_TYPE_STATE


class Kinds:
    """Does what messages say."""

    def __init__(self, core: Core, backends: Backends, nodes: Nodes, writer: Writer) -> None:
        self._core = core
        self._backends = backends
        self._nodes = nodes
        self._writer = writer
        self._checkpoints = Checkpoints(backends, writer)

    async def do(self, message: Incoming, context: Context) -> TransportMessage:
        """
        Do what a message says and answer it.

        Raises:
            TidewireError: What the service that stands for its kind raises.
        """
        kind = message.kind
        if kind in (transport_pb2.MESSAGE_TYPE_EVENT, transport_pb2.MESSAGE_TYPE_METADATA):
            request = await self.to_publish(message, context)
            response = await self._backends.event.Publish(request, context)
            return self.published(message, response)
        if kind == QUERY:
            return await self._ask(message, context)
        if kind == STATE:
            return await self._state(message, context)
        if kind == transport_pb2.MESSAGE_TYPE_CONTROL:
            return await self._control(message, context)
        if kind == transport_pb2.MESSAGE_TYPE_HEARTBEAT:
            await self._nodes.beat(message.source_node, None, context)
            now_ms = self._core.wall_ns() // MILLISECOND_NS
            return self._writer.answer(message, {"server_time": str(now_ms)})
        return await self._checkpoints.do(message, context)

    # Events.

    async def to_publish(self, message: Incoming, context: Context) -> event_pb2.PublishRequest:
        """Make the publish an EVENT or METADATA stands for."""
        self._backends.check(context, "EventService/Publish")
        request = event_pb2.PublishRequest(durability=durability(message.headers))
        await to_batch(message, request.batch)
        return request

    def published(self, message: Incoming, response: event_pb2.PublishResponse) -> TransportMessage:
        """Acknowledge an EVENT or METADATA."""
        headers = {"durability": durability_word(response.durability)}
        if response.stream:
            headers["stream"] = response.stream
        if response.HasField("stored"):
            headers["sequence"] = str(response.stored.first)
        elif not response.duplicates:
            headers["receivers"] = str(response.receivers)
        if response.duplicates:
            headers["duplicate"] = "true"
        return self._writer.answer(message, headers)

    # Queries.

    async def _ask(self, message: Incoming, context: Context) -> TransportMessage:
        self._backends.check(context, "QueryService/Ask")
        request = query_pb2.AskRequest(
            subject=message.subject, payload=_payload(message), request_id=message.id
        )
        timeout_ms = number(message.headers, "timeout_ms", least=1, most=TIMEOUT_MS_MAX)
        try:
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms else None):
                response = await self._backends.query.Ask(request, context)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"no reply to query {message.id!r} within {timeout_ms} ms",
                metadata={"request_id": message.id},
            ) from None
        headers = _headers_of(response.payload)
        headers["responder"] = response.responder
        return await self._writer.reply(message, headers, QUERY, response.payload)

    # State.

    async def _state(self, message: Incoming, context: Context) -> TransportMessage:
        operation = choice(message.headers, "operation", "put", "get", "delete")
        key = message.headers.get("key", "")
        if not key:
            raise bad_header("key", "is needed: the key of the value")
        if operation == "get":
            return await self._get(message, key, context)
        expected = number(message.headers, "expected_revision")
        request_id = message.id if message.is_named else ""
        level = durability(message.headers)
        if operation == "delete":
            self._backends.check(context, "StateService/Delete")
            deleted = await self._backends.state.Delete(
                state_pb2.DeleteRequest(
                    key=key, expected_revision=expected, request_id=request_id, durability=level
                ),
                context,
            )
            headers = _written(deleted)
            headers["deleted"] = str(deleted.deleted).lower()
            return self._writer.answer(message, headers)
        self._backends.check(context, "StateService/Put")
        request = state_pb2.PutRequest(
            key=key,
            value=_payload(message),
            expected_revision=expected,
            request_id=request_id,
            durability=level,
        )
        ttl_ms = number(message.headers, "ttl_ms", least=1000, most=TTL_MS_MAX)
        if ttl_ms is not None:
            request.ttl.FromMilliseconds(ttl_ms)
        put = await self._backends.state.Put(request, context)
        headers = _written(put)
        headers["version"] = str(put.entry.version)
        return self._writer.answer(message, headers)

    async def _get(self, message: Incoming, key: str, context: Context) -> TransportMessage:
        self._backends.check(context, "StateService/Get")
        found = await self._backends.state.Get(state_pb2.GetRequest(key=key), context)
        if not found.HasField("entry"):
            raise errors.KeyNotFound(f"there is no key {key!r}", metadata={"subject": key})
        headers = _headers_of(found.entry.value)
        headers["key"] = key
        headers["revision"] = str(found.entry.revision)
        headers["version"] = str(found.entry.version)
        return await self._writer.reply(message, headers, STATE, found.entry.value)

    # Control.

    async def _control(self, message: Incoming, context: Context) -> TransportMessage:
        self._backends.check(context, "ControlService/Send")
        wait = choice(message.headers, "await", "accepted", "finished")
        request = control_pb2.SendRequest(
            command_id=message.id,
            verb=message.headers.get("verb", VERB_DEFAULT),
            arguments=_payload(message),
        )
        if message.target_node:
            request.target.node_id = message.target_node
        else:
            request.target.all = True
        expiry_ms = number(message.headers, "expiry_ms", least=1, most=EXPIRY_MS_MAX)
        if expiry_ms is not None:
            request.expiry.FromMilliseconds(expiry_ms)
        sending = _Sending(context, until_accepted=wait == "accepted")
        with contextlib.suppress(_Enough):  # its nodes get it whether somebody follows it or not
            await self._backends.control.Send(request, sending)
        headers = {
            # A command that was accepted is stored as safely as the engine can.
            "durability": durability_word(
                min(common_pb2.DURABILITY_FSYNC, self._core.engine.durability_max)
            ),
            "targets": str(len(sending.targets)),
        }
        if sending.finished is not None:
            headers["succeeded"] = str(sending.finished.succeeded).lower()
            for node in sending.finished.nodes[:NODES_SHOWN_MAX]:
                word = control_pb2.CommandProgress.Name(node.progress)
                headers[f"node.{node.node_id}"] = word.removeprefix("COMMAND_PROGRESS_").lower()
        return self._writer.answer(message, headers)


class _Enough(Exception):
    """All that is needed of a stream of responses was written."""


class _Sending:
    """Stands for the context of ``ControlService.Send``: keeps what counts of what is written."""

    def __init__(self, context: Context, *, until_accepted: bool) -> None:
        self._context = context
        self._until_accepted = until_accepted
        self.targets: list[str] = []
        self.finished: control_pb2.SendFinished | None = None

    async def write(self, response: control_pb2.SendResponse) -> None:
        """Take a response in place of a client."""
        kind = response.WhichOneof("kind")
        if kind == "accepted":
            self.targets = list(response.accepted.targets)
            if self._until_accepted:
                raise _Enough
        elif kind == "finished":
            self.finished = response.finished

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _payload(message: Incoming) -> common_pb2.Payload:
    texts = {"source_node": message.source_node, **message.headers}
    headers = [(key, text.encode()) for key, text in texts.items() if text and key not in OPTIONS]
    return encode_payload(message.payload, codec=message.codec, headers=headers)


def _headers_of(payload: common_pb2.Payload) -> dict[str, str]:
    return {header.key: header.value.decode(errors="replace") for header in payload.header}


def _written(response: state_pb2.PutResponse | state_pb2.DeleteResponse) -> dict[str, str]:
    return {
        "durability": durability_word(response.durability),
        "revision": str(response.revision),
    }
