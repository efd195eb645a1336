"""Requests that a server must refuse, and the reason of each."""

import hashlib
from typing import Any, Final

from crc32c import crc32c

from tidewire.v1 import checkpoint_pb2, common_pb2, event_pb2, query_pb2, state_pb2
from tidewire.wire.batch import encode_payloads

MIB: Final = 1 << 20
CODECS: Final = common_pb2.Codec.values()[1:]
ANY: Final = "*"
"""One of several: a decoder's bounds meet in more than one place."""

Case = tuple[str, bytes, str]
"""Method, bytes of the request, and the reason it is refused for."""


def refusals() -> dict[str, Case]:
    """Return all of them by name."""
    return broken() | too_large() | bad_batches() | bad_states()


def broken() -> dict[str, Case]:
    """What is no request at all."""
    put = state_pb2.PutRequest(key="a", value=common_pb2.Payload(data=b"x"))
    return {
        "unknown method": ("EventService/Explode", b"", "METHOD_NOT_FOUND"),
        "unknown service": ("BombService/Explode", b"", "METHOD_NOT_FOUND"),
        "no protobuf": ("StateService/Put", b"\xff" * 50, "MALFORMED_REQUEST"),
        "cut protobuf": ("StateService/Put", put.SerializeToString()[:-1], "MALFORMED_REQUEST"),
        "large no protobuf": ("StateService/Put", b"\xff" * MIB, "MALFORMED_REQUEST"),
    }


def too_large() -> dict[str, Case]:
    """What is too large, or would become so."""
    bomb = b"\x0a\x00" * (4 * MIB)  # four million empty submessages in 8 MiB
    deep = b""
    for _ in range(30):  # each level doubles what is in it
        deep = b"\x0a" + _varint(len(deep)) + deep if len(deep) > 60_000 else b"\x0a\x00" + deep * 2
    over = publish(batch=batch("a.b", bytes(10 * MIB + 1)))
    stated = publish(batch=batch("a.b", b"xx", codec=CODECS[3], raw_size=1 << 31))
    return {
        "payload too large": ("EventService/Publish", over, "MESSAGE_TOO_LARGE"),
        "message too large": ("EventService/Publish", bytes(12 * MIB), "MESSAGE_TOO_LARGE"),
        "protobuf bomb": ("StateService/Transact", bomb, "MESSAGE_TOO_LARGE"),
        "bomb in a list": ("EventService/Acknowledge", b"\x12" + _varint(len(bomb)) + bomb, ANY),
        "deep bomb": ("StateService/Transact", b"\x12" + _varint(len(deep)) + deep, ANY),
        "stated size too large": ("EventService/Publish", stated, "MESSAGE_TOO_LARGE"),
    }


def bad_batches() -> dict[str, Case]:
    """Batches that are not what they say."""
    plan = {
        "codec nobody knows": (batch("a.b", b"xx", codec=99), "CODEC_UNSUPPORTED"),
        "false raw size": (batch("a.b", b"xx", raw_size=3), "INVALID_ARGUMENT"),
        "false checksum": (batch("a.b", b"xx", crc32c=1), "CHECKSUM_MISMATCH"),
        "invalid subject": (batch("a..b", b"xx"), "INVALID_SUBJECT"),
        "wildcard subject": (batch("a.>", b"xx"), "INVALID_SUBJECT"),
    }
    return {
        what: ("EventService/Publish", publish(batch=bad), reason)
        for what, (bad, reason) in plan.items()
    }


def bad_states() -> dict[str, Case]:
    """What does not fit the state of the server."""
    good = encode_payloads("a.b", [b"x"])
    durable = publish(batch=good, durability=common_pb2.DURABILITY_FSYNC)
    value = common_pb2.Payload(data=b"x")
    plan: dict[str, tuple[str, Any, str]] = {
        "unknown stream": (
            "EventService/Fetch",
            event_pb2.FetchRequest(ordered=event_pb2.OrderedSource(stream="nowhere")),
            "STREAM_NOT_FOUND",
        ),
        "wrong revision": (
            "StateService/Put",
            state_pb2.PutRequest(key="a", value=value, expected_revision=77),
            "REVISION_MISMATCH",
        ),
        "fenced operator": (
            "CheckpointService/Commit",
            checkpoint_pb2.CommitRequest(operator="op", epoch=9),
            "OPERATOR_FENCED",
        ),
        "false digest": (
            "CheckpointService/PutChunk",
            checkpoint_pb2.PutChunkRequest(data=b"x", digest=hashlib.sha256(b"y").digest()),
            "DIGEST_MISMATCH",
        ),
        "nobody asked": (
            "QueryService/Ask",
            query_pb2.AskRequest(subject="a.b"),
            "NO_RESPONDERS",
        ),
    }
    cases: dict[str, Case] = {
        what: (method, request.SerializeToString(), reason)
        for what, (method, request, reason) in plan.items()
    }
    return cases | {"no stream": ("EventService/Publish", durable, "NO_STREAM")}


def batch(subject: str, body: bytes, **fields: Any) -> common_pb2.Batch:
    """Return a batch by hand."""
    made = encode_payloads(subject, [b"x"])
    made.body = body
    made.raw_size = len(body)
    for field, value in fields.items():
        setattr(made, field, value)
    if "crc32c" not in fields:
        made.crc32c = crc32c(body)
    return made


def publish(**fields: Any) -> bytes:
    """Return the bytes of a publish."""
    return event_pb2.PublishRequest(**fields).SerializeToString()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))
