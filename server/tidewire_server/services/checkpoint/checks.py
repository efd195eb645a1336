"""What requests of the Checkpoint service must be before they reach the engine."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

from tidewire import errors
from tidewire.v1 import checkpoint_pb2, event_pb2, state_pb2
from tidewire.wire.batch import check_batch
from tidewire.wire.subject import check_name, check_subject
from tidewire_server.core import Core
from tidewire_server.services.payload import bad_field
from tidewire_server.services.state.checks import (
    check_compare,
    check_operations,
    check_operations_count,
    check_request_id,
)

DIGEST_BYTES: Final = 32
DIGESTS_MAX: Final = 10_000
CHUNKS_MAX: Final = 3_000
POSITIONS_MAX: Final = 1000
OUTPUTS_MAX: Final = 128
KEEP_MAX: Final = 1000
NOTE_BYTES_MAX: Final = 1024
HASH_INLINE_BYTES_MAX: Final = 128 * 1024
"""
More than this is hashed beside the event loop: 10 MiB would hold every other call up for 20 ms.
"""


def check_operator(operator: str) -> str:
    """
    Return the operator's name when it is one or more subject tokens.

    Raises:
        InvalidSubject: It is not.
    """
    try:
        return check_subject(operator)
    except errors.InvalidSubject as error:
        rule = "1 to 16 tokens of A-Z a-z 0-9 _ - joined by dots"
        raise errors.InvalidSubject(error.message, fields={"operator": rule}) from None


def check_digest(digest: bytes, field: str) -> bytes:
    """Return the digest when it is as long as a SHA-256."""
    if len(digest) != DIGEST_BYTES:
        raise bad_field(field, f"has {len(digest)} bytes; a SHA-256 has {DIGEST_BYTES}")
    return digest


async def check_content(data: bytes, digest: bytes, field: str) -> bytes:
    """
    Return the SHA-256 of the data.

    Args:
        data: The bytes.
        digest: What their SHA-256 should be; empty when it was not said.
        field: Path of the digest in the request.

    Raises:
        DigestMismatch: The digest is another one.
    """
    if len(data) <= HASH_INLINE_BYTES_MAX:
        actual = hashlib.sha256(data).digest()
    else:
        actual = await asyncio.to_thread(_sha256, data)
    if digest and check_digest(digest, field) != actual:
        raise errors.DigestMismatch(
            f"the SHA-256 of {len(data)} bytes is {actual.hex()}, {field} says {digest.hex()}",
            metadata={"actual_digest": actual.hex(), "expected_digest": digest.hex()},
            fields={field: "is not the SHA-256 of the data"},
        )
    return actual


def check_commit(request: checkpoint_pb2.CommitRequest, core: Core) -> None:
    """
    Refuse a commit that cannot be, whatever is stored. The digest of inline state is
    `check_content`'s.

    Raises:
        TidewireError: What `check_batch`, `check_compare` and `check_operations` raise.
    """
    check_operator(request.operator)
    check_request_id(request.request_id)
    if not request.epoch:
        raise bad_field("epoch", "is needed: the one that Acquire answered")
    if len(request.note.encode()) > NOTE_BYTES_MAX:
        raise bad_field("note", f"is over {NOTE_BYTES_MAX} bytes")
    _check_state(request, core)
    _check_positions(request.positions)
    _check_outputs(request.outputs, core)
    check_compare(request.compare, core.limits.transaction_operations_max)
    _check_operations(request.state_operations, core)


def _check_state(request: checkpoint_pb2.CommitRequest, core: Core) -> None:
    if request.digest:
        check_digest(request.digest, "digest")
    if request.WhichOneof("state") != "chunks":
        most = core.limits.payload_bytes_max
        if len(request.inline) > most:
            raise errors.MessageTooLarge(
                f"inline has {len(request.inline)} bytes, at most {most} are taken; use chunks",
                metadata={"size": len(request.inline), "limit": most},
            )
        return
    if not request.digest:
        raise bad_field("digest", "is needed for state in chunks: the SHA-256 of all of it")
    chunks = request.chunks.chunks
    if len(chunks) > CHUNKS_MAX:
        raise bad_field("chunks.chunks", f"has {len(chunks)}; at most {CHUNKS_MAX} are taken")
    most = core.limits.chunk_bytes_max
    for index, chunk in enumerate(chunks):
        if len(chunk.digest) != DIGEST_BYTES:
            check_digest(chunk.digest, f"chunks.chunks[{index}].digest")
        if not 1 <= chunk.bytes <= most:
            raise bad_field(
                f"chunks.chunks[{index}].bytes", f"is {chunk.bytes}; 1 to {most} are taken"
            )


def _check_positions(positions: Sequence[checkpoint_pb2.Position]) -> None:
    if len(positions) > POSITIONS_MAX:
        raise bad_field("positions", f"has {len(positions)}; at most {POSITIONS_MAX} are taken")
    seen: set[tuple[str, str]] = set()
    for index, position in enumerate(positions):
        check_name(position.stream, f"positions[{index}].stream")
        if position.consumer:
            check_name(position.consumer, f"positions[{index}].consumer")
        place = (position.stream, position.consumer)
        if place in seen:
            raise bad_field(f"positions[{index}]", f"says {'/'.join(place)} a second time")
        seen.add(place)


def _check_outputs(outputs: Sequence[event_pb2.PublishRequest], core: Core) -> None:
    if len(outputs) > OUTPUTS_MAX:
        raise bad_field("outputs", f"has {len(outputs)}; at most {OUTPUTS_MAX} are taken")
    for index, output in enumerate(outputs):
        if output.expected_stream:
            check_name(output.expected_stream, f"outputs[{index}].expected_stream")
        check_batch(output.batch, core.limits, codecs=core.codecs)


def _check_operations(operations: Sequence[state_pb2.StateOperation], core: Core) -> None:
    field = "state_operations"
    check_operations_count(len(operations), field, core.limits.transaction_operations_max)
    for index, operation in enumerate(operations):
        if operation.WhichOneof("kind") == "get":
            raise bad_field(f"{field}[{index}]", "is a read, and a commit answers none")
    check_operations(operations, field, core)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
