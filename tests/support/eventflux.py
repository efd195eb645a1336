"""What EventFlux's own client puts on the wire, for tests: generated stubs and its conventions."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from typing import Any

from google.rpc import status_pb2

from tidewire import errors
from tidewire.eventflux import transport_pb2, transport_pb2_grpc

WAIT_S = 20.0
PRIORITY_DEFAULT = 5


def now_ms() -> int:
    """The machine's time."""
    return time.time_ns() // 1_000_000


def message(
    kind: str,
    payload: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    compression: str = "NONE",
    **fields: Any,
) -> transport_pb2.TransportMessage:
    """
    A message as its client makes it: a random id, the time of sending, and the fields that it reads
    from headers. ``fields`` set others, over those.
    """
    headers = dict(headers or {})
    made: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "message_type": transport_pb2.MessageType.Value(f"MESSAGE_TYPE_{kind}"),
        "payload": payload,
        "headers": headers,
        "timestamp": now_ms(),
        "source_node": headers.get("source_node", ""),
        "target_node": headers.get("target_node", ""),
        "priority": int(headers.get("priority", PRIORITY_DEFAULT)),
        "compression": transport_pb2.CompressionType.Value(f"COMPRESSION_TYPE_{compression}"),
    }
    return transport_pb2.TransportMessage(**{**made, **fields})


def stub_of(channel: Any) -> Any:
    """The service's stub, without its types: type checkers disagree about asynchronous ones."""
    return transport_pb2_grpc.TransportStub(channel)


async def send(stub: Any, *arguments: Any, **fields: Any) -> transport_pb2.TransportMessage:
    """Send one message and return its answer."""
    answer = await stub.SendMessage(message(*arguments, **fields), timeout=WAIT_S)
    assert isinstance(answer, transport_pb2.TransportMessage)
    return answer


async def take(call: Any, count: int) -> list[transport_pb2.TransportMessage]:
    """The next messages of a stream."""
    async with asyncio.timeout(WAIT_S):
        return [await call.read() for _ in range(count)]


def events(
    stub: Any, *names: str, node: str = "", batch_size: int = 0, kinds: Any = (), **times: int
) -> Any:
    """Begin to stream events; ``start`` and ``end`` are milliseconds since 1970."""
    wanted = transport_pb2.EventFilter(
        stream_names=names,
        message_types=kinds,
        start_timestamp=times.get("start", 0),
        end_timestamp=times.get("end", 0),
    )
    request = transport_pb2.EventRequest(node_id=node, filter=wanted, batch_size=batch_size)
    return stub.StreamEvents(request)


async def error_of(awaitable: Any) -> errors.TidewireError:
    """The error a call ends with."""
    try:
        async with asyncio.timeout(WAIT_S):
            await awaitable
    except errors.TidewireError as error:
        return error
    except Exception as error:  # noqa: BLE001 (an AioRpcError of whatever wire it is)
        details = dict(error.trailing_metadata())[errors.STATUS_TRAILER]  # type: ignore[attr-defined]
        return errors.from_status(status_pb2.Status.FromString(details))
    raise AssertionError("the call did not fail")


def name_of(kind: int) -> str:
    """A type without its prefix."""
    return transport_pb2.MessageType.Name(kind).removeprefix("MESSAGE_TYPE_")  # type: ignore[arg-type]
