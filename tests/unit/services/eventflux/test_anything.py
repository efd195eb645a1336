"""Whatever comes in, what goes wrong is an error of ours, and what goes right is within bounds."""

import asyncio

from crc32c import crc32c
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.live_fake_engine import make_core
from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import check_batch
from tidewire_server.core import ServiceLimits
from tidewire_server.services.eventflux.messages import TAKEN, Reader
from tidewire_server.services.eventflux.translate import from_delivery, to_batch

LIMITS = ServiceLimits(payload_bytes_max=4096)
TEXT = st.text(max_size=80)
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
MAGIC = st.sampled_from([b"", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x80\x80\x80\x80\x0f"])


@settings(max_examples=400, deadline=None)
@given(
    kind=st.integers(-1, 10),
    compression=st.integers(-1, 5),
    payload=st.builds(bytes.__add__, MAGIC, st.binary(max_size=64)),
    headers=st.dictionaries(TEXT, TEXT, max_size=4),
    timestamp=st.integers(-(1 << 63), (1 << 63) - 1),
    texts=st.tuples(TEXT, TEXT, TEXT),
    priority=st.one_of(st.integers(0, 9), INT32),
)
@example(1, 0, b"x", {"stream": "a.b"}, 1, ("", "", ""), 5)
def test_any_message_is_taken_whole_or_refused(
    kind: int,
    compression: int,
    payload: bytes,
    headers: dict[str, str],
    timestamp: int,
    texts: tuple[str, str, str],
    priority: int,
) -> None:
    """A message that is taken becomes a batch the server itself would take from a publisher."""
    message = transport_pb2.TransportMessage(
        id=texts[0],
        message_type=kind,  # type: ignore[arg-type]  # on purpose, also here below
        payload=payload,
        headers=headers,
        timestamp=timestamp,
        source_node=texts[1],
        target_node=texts[2],
        priority=priority,
        compression=compression,  # type: ignore[arg-type]
    )
    core = make_core(limits=LIMITS)
    try:
        read = asyncio.run(Reader(core).read(message))
    except (errors.InvalidArgument, errors.ResourceExhausted):
        return
    assert read.kind in TAKEN
    assert len(read.payload) <= LIMITS.payload_bytes_max
    if read.kind not in (1, 7):
        return
    batch = common_pb2.Batch()
    try:
        asyncio.run(to_batch(read, batch))
    except errors.InvalidArgument:
        return
    check_batch(batch, LIMITS)


@settings(max_examples=400, deadline=None)
@given(
    body=st.binary(max_size=80),
    codec=st.integers(0, 5),
    form=st.integers(0, 3),
    count=st.integers(0, 20),
    raw_size=st.integers(0, 8192),
    selected=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=3),
    included=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=3),
    ids=st.lists(TEXT, max_size=3),
)
@example(b"\n\x01x", 1, 1, 1, 3, [], [], [])
def test_any_batch_is_read_or_an_error(
    body: bytes,
    codec: int,
    form: int,
    count: int,
    raw_size: int,
    selected: list[tuple[int, int]],
    included: list[tuple[int, int]],
    ids: list[str],
) -> None:
    """Bodies are looked into here first, and selections may be of what is not there."""
    delivery = event_pb2.Delivery(stream="s", first_sequence=1)
    batch = delivery.batch
    batch.subject, batch.body, batch.crc32c = "a", body, crc32c(body)
    batch.codec, batch.form = codec, form  # type: ignore[assignment]
    batch.count, batch.raw_size = count, raw_size
    batch.message_ids.extend(ids)
    for first, last in selected:
        batch.selected.add(first=first, last=last)
    for first, last in included:
        delivery.included.add(first=first, last=last)
    try:
        messages = list(asyncio.run(from_delivery(delivery, LIMITS.payload_bytes_max)))
    except errors.TidewireError:
        return

    assert len(messages) <= 3 * 31
    assert all(message.message_type in (1, 7) for message in messages)
