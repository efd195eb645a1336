"""What is refused before the engine is asked, and with which field."""

from typing import cast

import pytest

from tidewire import errors
from tidewire.v1 import common_pb2, state_pb2
from tidewire_server.core import Core, ServiceLimits
from tidewire_server.engine.base import Engine
from tidewire_server.members import Life, Members
from tidewire_server.services.payload import check_payload
from tidewire_server.services.state import checks
from tidewire_server.services.state.pages import decode_token, encode_token


class FsyncOnly:
    """The one thing of an engine that these checks ask for."""

    durability_max = common_pb2.DURABILITY_FSYNC


@pytest.fixture
def core() -> Core:
    limits = ServiceLimits(payload_bytes_max=1000, overhead_bytes_max=500)
    return Core(cast("Engine", FsyncOnly()), Members(), "server", "0", limits=limits)


@pytest.mark.parametrize("key", ["a", "A-z_0.9:/=@+", "x" * 512])
def test_keys_that_are_taken(key: str) -> None:
    """The alphabet and the longest key."""
    assert key == checks.check_key(key)
    assert key == checks.check_prefix(key)


@pytest.mark.parametrize("key", ["", "a b", "ä", "a\n", "x" * 513, "*", "a\0"])
def test_keys_that_are_refused(key: str) -> None:
    """Everything else is an error that names the field."""
    with pytest.raises(errors.InvalidKey) as caught:
        checks.check_key(key, "then[0].put.key")

    assert ["then[0].put.key"] == list(caught.value.fields)
    if key:
        with pytest.raises(errors.InvalidKey):
            checks.check_prefix(key)


def payload(**values: object) -> common_pb2.Payload:
    return common_pb2.Payload(**values)  # type: ignore[arg-type]


HEADER = common_pb2.Header

PAYLOADS_TAKEN = [
    payload(),
    payload(data=bytes(1000)),
    payload(data=b"abc", raw_size=3),
    payload(codec=common_pb2.CODEC_ZSTD, data=b"abc", raw_size=1000),
    payload(header=[HEADER(key="k", value=bytes(499))], content_type="x" * 128),
]
PAYLOADS_REFUSED = [
    (payload(data=bytes(1001)), errors.MessageTooLarge, None),
    (payload(codec=2, data=b"abc", raw_size=1001), errors.MessageTooLarge, None),
    (payload(codec=99, data=b"abc", raw_size=9), errors.CodecUnsupported, "value.codec"),
    (payload(data=b"abc", raw_size=4), errors.InvalidArgument, "value.raw_size"),
    (payload(codec=3, data=b"abc"), errors.InvalidArgument, "value.raw_size"),
    (payload(content_type="x" * 129), errors.InvalidArgument, "value.content_type"),
    (payload(header=[HEADER()]), errors.InvalidArgument, "value.header[0].key"),
    (payload(header=[HEADER(key="k" * 257)]), errors.InvalidArgument, "value.header[0].key"),
    (
        payload(header=[HEADER(key="k", value=bytes(65537))]),
        errors.InvalidArgument,
        "value.header[0].value",
    ),
    (payload(header=[HEADER(key="k", value=bytes(250))] * 2), errors.MessageTooLarge, None),
]


@pytest.mark.parametrize("value", PAYLOADS_TAKEN)
def test_payloads_that_are_taken(core: Core, value: common_pb2.Payload) -> None:
    """Figures within the limits, whatever the bytes are: nothing is decompressed."""
    check_payload(value, "value", core)


@pytest.mark.parametrize(("value", "kind", "field"), PAYLOADS_REFUSED)
def test_payloads_that_are_refused(
    core: Core, value: common_pb2.Payload, kind: type[errors.TidewireError], field: str | None
) -> None:
    """Figures over a limit, or that do not fit each other, with the field they are in."""
    with pytest.raises(kind) as caught:
        check_payload(value, "value", core)

    assert ([field] if field else []) == list(caught.value.fields)


def put(key: str = "k", **values: object) -> state_pb2.PutRequest:
    request = state_pb2.PutRequest(key=key, **values)  # type: ignore[arg-type]
    request.value.SetInParent()
    return request


def lease(node_id: str = "n", token: int = 1) -> state_pb2.LeaseRef:
    return state_pb2.LeaseRef(node_id=node_id, fencing_token=token)


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [(1, True), (0, False), (-5, False), (3650 * 86400, True), (1 << 40, False)],
)
def test_bounds_of_the_time_to_live(core: Core, seconds: int, taken: bool) -> None:
    """At least a second, at most ten years."""
    request = put()
    request.ttl.seconds = seconds
    if taken:
        checks.check_put(request, "", core)
        return
    with pytest.raises(errors.InvalidArgument) as caught:
        checks.check_put(request, "", core)
    assert ["ttl"] == list(caught.value.fields)


@pytest.mark.parametrize(
    ("request_", "kind", "field"),
    [
        (state_pb2.PutRequest(key="k"), errors.InvalidArgument, "value"),
        (put(""), errors.InvalidKey, "key"),
        (put(lease=lease("")), errors.InvalidSubject, "lease.node_id"),
        (put(lease=lease(token=0)), errors.InvalidArgument, "lease.fencing_token"),
    ],
)
def test_writes_that_are_refused(
    core: Core, request_: state_pb2.PutRequest, kind: type[errors.TidewireError], field: str
) -> None:
    """A write names a key, a value and a whole lease."""
    with pytest.raises(kind) as caught:
        checks.check_put(request_, "", core)

    assert [field] == list(caught.value.fields)


def test_a_lease_of_a_member_that_is_gone_is_refused(core: Core) -> None:
    """From the moment a member is dead no key can be hung on its lease."""
    checks.check_put(put(lease=lease()), "", core)
    core.members.set_life("n", Life.DEAD, 1)

    with pytest.raises(errors.LeaseNotHeld):
        checks.check_put(put(lease=lease()), "", core)


def test_durability_is_never_weakened(core: Core) -> None:
    """Not said means FSYNC; what cannot be reached is an error."""
    assert common_pb2.DURABILITY_FSYNC == checks.check_durability(
        common_pb2.DURABILITY_UNSPECIFIED, core
    )
    assert common_pb2.DURABILITY_OS == checks.check_durability(common_pb2.DURABILITY_OS, core)
    with pytest.raises(errors.DurabilityUnavailable):
        checks.check_durability(common_pb2.DURABILITY_QUORUM, core)
    with pytest.raises(errors.InvalidArgument):
        checks.check_durability(9, core)  # type: ignore[arg-type]


def operation(**values: object) -> state_pb2.StateOperation:
    return state_pb2.StateOperation(**values)  # type: ignore[arg-type]


DELETE = state_pb2.DeleteRequest


@pytest.mark.parametrize(
    ("operations", "field"),
    [
        ([operation()], "then[0]"),
        ([operation(put=put()), operation(delete=DELETE(key="k"))], "then[1].delete.key"),
        ([operation(delete=DELETE(key=" "))], "then[0].delete.key"),
        ([operation(get=state_pb2.GetRequest(key="k", revision=1))], "then[0].get.revision"),
        ([operation(put=state_pb2.PutRequest(key="k"))], "then[0].put.value"),
    ],
)
def test_operations_that_are_refused(
    core: Core, operations: list[state_pb2.StateOperation], field: str
) -> None:
    """Each operation is one thing, done to a key once, and says where it is wrong."""
    with pytest.raises(errors.InvalidArgument) as caught:
        checks.check_operations(operations, "then", core)

    assert [field] == list(caught.value.fields)


def test_comparisons_say_something_about_a_key() -> None:
    """A comparison without a condition would hold by accident."""
    checks.check_compare([state_pb2.Compare(key="k", exists=False)], 1)
    for compare in ([state_pb2.Compare(key="k")], [state_pb2.Compare(exists=True)]):
        with pytest.raises(errors.InvalidArgument):
            checks.check_compare(compare, 1)
    with pytest.raises(errors.InvalidArgument):
        checks.check_compare([state_pb2.Compare(key="k", exists=False)] * 2, 1)


def test_a_watch_does_not_contradict_itself() -> None:
    """No past changes and changes since a revision cannot both be wanted."""
    assert checks.IDLE_BOOKMARK_S == checks.check_watch(state_pb2.WatchRequest(prefix="a"))
    for request in (
        state_pb2.WatchRequest(changes_only=True, after_revision=1),
        state_pb2.WatchRequest(exact=True),
        state_pb2.WatchRequest(prefix="*"),
    ):
        with pytest.raises(errors.InvalidArgument):
            checks.check_watch(request)


def test_tokens_belong_to_their_question() -> None:
    """A token goes through as it is; with another question, or changed, it is refused."""
    token = encode_token("a/", 7, "a/9")

    assert (7, "a/9") == decode_token("a/", token)
    assert (0, "") == decode_token("a/", "")
    for question, text in (("b/", token), ("a/", token[:-1]), ("a/", "AAAA"), ("a/", "ä")):
        with pytest.raises(errors.InvalidArgument):
            decode_token(question, text)
