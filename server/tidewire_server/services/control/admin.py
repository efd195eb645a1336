"""
What the server does as a node: its own administration, by command.

Arguments are a JSON object in UTF-8; results are JSON too. Every verb names the arguments it takes,
and refuses others.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tidewire import errors
from tidewire.v1 import common_pb2
from tidewire.wire.payload import decode_payload

ARGUMENTS_BYTES_MAX: Final = 64 * 1024
GRACE_S_MAX: Final = 3600.0


class AdminActions(Protocol):
    """What commands to the server's node do. Each may raise `tidewire.errors`."""

    async def drain(self, grace_s: float | None = None) -> None:
        """Begin to shut down; returns at once. ``None``: the configured grace."""
        ...

    async def pause_stream(self, name: str) -> None:
        """Refuse publishing to a stream and stop its consumers."""
        ...

    async def resume_stream(self, name: str) -> None:
        """Undo `pause_stream`."""
        ...

    async def disconnect_client(self, connection_id: str) -> None:
        """Close a connection."""
        ...

    async def list_connections(self) -> Sequence[Mapping[str, str | int]]:
        """Open connections, each with its ``connection_id``."""
        ...

    async def set_log_level(self, level: str) -> None:
        """Change what is logged."""
        ...


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a verb."""

    kind: type
    required: bool = True


VERBS: Final[Mapping[str, Mapping[str, Argument]]] = {
    "drain": {"grace_s": Argument(float, required=False)},
    "pause_stream": {"name": Argument(str)},
    "resume_stream": {"name": Argument(str)},
    "disconnect_client": {"connection_id": Argument(str)},
    "list_connections": {},
    "set_log_level": {"level": Argument(str)},
}


async def run_verb(
    actions: AdminActions | None, verb: str, payload: common_pb2.Payload
) -> common_pb2.Payload:
    """
    Do what a command to the server says; return its result.

    Raises:
        InvalidArgument: There is no such verb, or its arguments are wrong.
        FailedPrecondition: This server has no administration.
        TidewireError: The action failed.
    """
    arguments = parse_arguments(verb, payload)
    if actions is None:
        raise errors.FailedPrecondition(
            "this server was assembled without administration; it takes no commands"
        )
    result = await getattr(actions, verb)(**arguments)
    data = json.dumps({} if result is None else {"result": result}).encode()
    return common_pb2.Payload(
        codec=common_pb2.CODEC_NONE, data=data, content_type="application/json"
    )


def parse_arguments(verb: str, payload: common_pb2.Payload) -> dict[str, Any]:
    """
    Read and check the arguments of a verb. No data means no arguments.

    Raises:
        InvalidArgument: Something is wrong with them; the message says what and what is taken.
    """
    takes = VERBS.get(verb)
    if takes is None:
        raise errors.InvalidArgument(
            f"the server has no verb {verb!r}; it has {', '.join(VERBS)}",
            fields={"verb": "unknown"},
        )
    given = _parse_object(verb, decode_payload(payload, ARGUMENTS_BYTES_MAX))
    known = ", ".join(takes) or "no arguments"
    for name in given:
        if name not in takes:
            raise _wrong(name, f"is no argument of {verb}, which takes {known}")
    for name, argument in takes.items():
        if name not in given:
            if argument.required:
                raise _wrong(name, f"is missing; {verb} needs it")
            continue
        _check_argument(name, given[name], argument)
    return given


def _parse_object(verb: str, data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    try:
        value = json.loads(data.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise errors.InvalidArgument(
            f"the arguments of {verb} are not JSON in UTF-8: {error}",
            fields={"arguments": "not JSON"},
        ) from None
    if not isinstance(value, dict):
        raise errors.InvalidArgument(
            f"the arguments of {verb} must be a JSON object, not a {type(value).__name__}",
            fields={"arguments": "not an object"},
        )
    return value


def _check_argument(name: str, value: object, argument: Argument) -> None:
    if argument.kind is str:
        if not isinstance(value, str) or not value:
            raise _wrong(name, "must be a string that is not empty")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, "must be a number")
    if not math.isfinite(value) or not 0 <= value <= GRACE_S_MAX:
        raise _wrong(name, f"must be 0 to {GRACE_S_MAX:g}, not {value}")


def _wrong(name: str, what: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"argument {name!r} {what}", fields={f"arguments.{name}": what})
