"""
How commands lie in the store: one document for a command, one for each outcome at a node.

An outcome is a document of its own, so that a command to a thousand nodes does not write a thousand
outcomes a thousand times.
"""

import struct
from typing import Final

from google.protobuf.message import DecodeError

from tidewire import errors
from tidewire.v1 import control_pb2
from tidewire_server.services.control.commands import Command

KIND_COMMAND: Final = "command"
KIND_OUTCOME: Final = "command.outcome"

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BIIqq")  # version, request bytes, targets bytes, sent, expires


def outcome_name(command_id: str, node_id: str) -> str:
    """Name of the document of an outcome; node ids have no slash."""
    return f"{command_id}/{node_id}"


def split_outcome_name(name: str) -> tuple[str, str]:
    """Command id and node id of an outcome's document."""
    command_id, _, node_id = name.rpartition("/")
    return command_id, node_id


def encode_command(command: Command) -> bytes:
    """Encode what a command is; not where it stands."""
    request = command.request.SerializeToString()
    targets = ",".join(command.nodes).encode()
    head = _HEAD.pack(_VERSION, len(request), len(targets), command.sent_ns, command.expires_ns)
    return head + request + targets + command.principal.encode()


def decode_command(body: bytes, *, now_s: float, now_ns: int) -> Command:
    """
    Decode a stored command. Each of its nodes may have got it before.

    Raises:
        DataCorrupt: It is not one, or of a newer version.
    """
    try:
        version, request_bytes, targets_bytes, sent_ns, expires_ns = _HEAD.unpack_from(body)
        if version != _VERSION:
            raise errors.DataCorrupt(f"a stored command is of version {version}, not {_VERSION}")
        request_end = _HEAD.size + request_bytes
        targets_end = request_end + targets_bytes
        request = control_pb2.SendRequest.FromString(body[_HEAD.size : request_end])
        targets = body[request_end:targets_end].decode()
        principal = body[targets_end:].decode()
    except (struct.error, DecodeError, UnicodeDecodeError):
        raise errors.DataCorrupt("a stored command cannot be read") from None
    command = Command(
        request,
        targets.split(","),
        principal=principal,
        sent_ns=sent_ns,
        expires_ns=expires_ns,
        expires_s=now_s + (expires_ns - now_ns) / 1e9,
    )
    command.stored = True
    for state in command.nodes.values():
        state.handed_over = True
    return command


def decode_outcome(body: bytes) -> control_pb2.NodeProgress:
    """
    Decode a stored outcome.

    Raises:
        DataCorrupt: It is not one.
    """
    try:
        return control_pb2.NodeProgress.FromString(body)
    except DecodeError:
        raise errors.DataCorrupt("a stored outcome of a command cannot be read") from None
