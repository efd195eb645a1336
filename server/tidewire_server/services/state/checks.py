"""What requests of the State service must be before they reach the engine."""

import re
from collections.abc import Sequence
from typing import Final

from google.protobuf import duration_pb2

from tidewire import errors
from tidewire.v1 import common_pb2, state_pb2
from tidewire.wire.subject import check_name
from tidewire_server.core import Core
from tidewire_server.services.payload import bad_field, check_payload

KEY_BYTES_MAX: Final = 512
KEYS_MAX: Final = 1024
REQUEST_ID_BYTES_MAX: Final = 64
TTL_S_MIN: Final = 1.0
TTL_S_MAX: Final = 3650 * 86_400.0
IDLE_BOOKMARK_S: Final = 5.0
IDLE_BOOKMARK_S_MIN: Final = 0.1
IDLE_BOOKMARK_S_MAX: Final = 3600.0

_CHARACTERS: Final = r"[A-Za-z0-9_.:/=@+-]"
_KEY: Final = re.compile(_CHARACTERS + "{1,512}")
_PREFIX: Final = re.compile(_CHARACTERS + "{0,512}")
_SECONDS_MAX: Final = 1 << 32
"""Durations beyond this are judged by their seconds: protobuf's own are not bounded on the wire."""


def check_key(key: str, field: str = "key") -> str:
    """
    Return the key when it is one.

    Raises:
        InvalidKey: It is empty, too long, or has other characters.
    """
    if _KEY.fullmatch(key) is None:
        raise _invalid_key(key, field, "1")
    return key


def check_keys(keys: Sequence[str]) -> None:
    """
    Refuse none, too many, or what is no key.

    Raises:
        InvalidKey: One of them is not a key.
        InvalidArgument: There are none, or too many.
    """
    if not 0 < len(keys) <= KEYS_MAX:
        raise bad_field("keys", f"has {len(keys)} entries; 1 to {KEYS_MAX:,} are taken")
    for index, key in enumerate(keys):
        check_key(key, f"keys[{index}]")


def check_prefix(prefix: str) -> str:
    """
    Return the prefix when keys can begin with it; the empty one takes all keys.

    Raises:
        InvalidKey: No key begins with it.
    """
    if _PREFIX.fullmatch(prefix) is None:
        raise _invalid_key(prefix, "prefix", "0")
    return prefix


def check_request_id(request_id: str) -> str:
    """Return the request id when it is not too long."""
    size = len(request_id.encode())
    if size > REQUEST_ID_BYTES_MAX:
        raise bad_field("request_id", f"has {size} bytes; at most {REQUEST_ID_BYTES_MAX} are taken")
    return request_id


def check_durability(
    durability: common_pb2.Durability.ValueType, core: Core
) -> common_pb2.Durability.ValueType:
    """
    Return the level to reach; FSYNC when the request does not say.

    Raises:
        DurabilityUnavailable: The engine does not reach it.
        InvalidArgument: It is not a level.
    """
    if durability == common_pb2.DURABILITY_UNSPECIFIED:
        return common_pb2.DURABILITY_FSYNC
    if durability not in common_pb2.Durability.values():
        raise bad_field("durability", f"is {durability}, which is no level")
    most = core.engine.durability_max
    if durability > most:
        raise errors.DurabilityUnavailable(
            f"{_level(durability)} was asked for; this server reaches {_level(most)}",
            metadata={"durability_max": _level(most)},
        )
    return durability


def check_put(put: state_pb2.PutRequest, field: str, core: Core) -> None:
    """
    Refuse a write whose key, value, time to live or lease cannot be. ``field`` ends with a dot, or
    is empty.
    """
    check_key(put.key, f"{field}key")
    if not put.HasField("value"):
        raise bad_field(f"{field}value", "is needed; an empty value is a value too")
    check_payload(put.value, f"{field}value", core)
    if put.HasField("ttl"):
        duration_s(put.ttl, f"{field}ttl", TTL_S_MIN, TTL_S_MAX)
    if put.HasField("lease"):
        _check_lease(put.lease, f"{field}lease", core)


def _check_lease(lease: state_pb2.LeaseRef, field: str, core: Core) -> None:
    check_name(lease.node_id, f"{field}.node_id")
    if not lease.fencing_token:
        raise bad_field(f"{field}.fencing_token", "is needed: the one that Join answered")
    # The engine knows who holds which lease; it may hear a little later than we that a member is
    # gone.
    if core.members.is_gone(lease.node_id):
        raise errors.LeaseNotHeld(
            f"member {lease.node_id!r} is gone and its lease is over; join again",
            metadata={"subject": lease.node_id},
        )


def check_compare(compare: Sequence[state_pb2.Compare], operations_max: int) -> None:
    """Refuse comparisons that are too many, or say nothing."""
    if len(compare) > operations_max:
        raise bad_field(
            "compare", f"has {len(compare)} entries; at most {operations_max} are taken"
        )
    for index, one in enumerate(compare):
        check_key(one.key, f"compare[{index}].key")
        if one.WhichOneof("condition") is None:
            raise bad_field(f"compare[{index}].condition", "is needed")


def check_operations(
    operations: Sequence[state_pb2.StateOperation], field: str, core: Core
) -> None:
    """Refuse operations that cannot be, or that write a key twice."""
    written: set[str] = set()
    for index, operation in enumerate(operations):
        path = f"{field}[{index}]"
        kind = operation.WhichOneof("kind")
        if kind == "put":
            check_put(operation.put, f"{path}.put.", core)
            key = operation.put.key
        elif kind == "delete":
            key = check_key(operation.delete.key, f"{path}.delete.key")
        elif kind == "get":
            check_key(operation.get.key, f"{path}.get.key")
            if operation.get.revision:
                raise bad_field(f"{path}.get.revision", "must be 0 in a transaction")
            continue
        else:
            raise bad_field(path, "has no kind: put, delete or get is needed")
        if key in written:
            raise bad_field(f"{path}.{kind}.key", f"{key!r} is written twice")
        written.add(key)


def check_operations_count(count: int, field: str, operations_max: int) -> None:
    """Refuse more operations than a transaction takes."""
    if count > operations_max:
        raise bad_field(field, f"has {count} operations; at most {operations_max} are taken")


def check_watch(request: state_pb2.WatchRequest) -> float:
    """
    Refuse a watch that contradicts itself; return after how many idle seconds it wants a bookmark.
    """
    if request.exact:
        check_key(request.prefix, "prefix")
    else:
        check_prefix(request.prefix)
    if request.changes_only and request.after_revision:
        raise bad_field("changes_only", "leaves out what after_revision asks for; set one of them")
    if not request.HasField("idle_bookmark"):
        return IDLE_BOOKMARK_S
    return duration_s(
        request.idle_bookmark, "idle_bookmark", IDLE_BOOKMARK_S_MIN, IDLE_BOOKMARK_S_MAX
    )


def duration_s(duration: duration_pb2.Duration, field: str, least_s: float, most_s: float) -> float:
    """Return a duration in seconds when it is between the two."""
    sane = abs(duration.seconds) < _SECONDS_MAX
    seconds = duration.seconds + duration.nanos / 1e9 if sane else float(duration.seconds)
    if not least_s <= seconds <= most_s:
        raise bad_field(field, f"is {seconds:g} s; {least_s:g} to {most_s:g} s are taken")
    return seconds


def _invalid_key(key: str, field: str, least: str) -> errors.InvalidKey:
    rule = f"{least} to {KEY_BYTES_MAX} bytes of A-Z a-z 0-9 _ . : / = @ + -"
    shown = repr(key) if len(key) <= KEY_BYTES_MAX else f"{key[:80]!r}... ({len(key)} characters)"
    return errors.InvalidKey(
        f"{field} {shown} is not valid: it must be {rule}", fields={field: rule}
    )


def _level(durability: common_pb2.Durability.ValueType) -> str:
    return common_pb2.Durability.Name(durability).removeprefix("DURABILITY_")
