"""Messages with their long field apart: what is sent is what protobuf reads, and the reverse."""

import pytest
from crc32c import crc32c

from tidewire.errors import BodyCorrupt, ChecksumMismatch, MessageTooLarge
from tidewire.v1 import common_pb2, event_pb2
from tidewire.wire.batch import (
    BATCH_MESSAGES_MAX,
    CODECS,
    PAYLOAD_BYTES_MAX,
    check_batch,
    decode,
    encode_payloads,
    seal_apart,
)
from tidewire.wire.codec import CodecName
from tidewire.wire.spliced import (
    DELIVERY_BODY,
    FIELDS_MAX,
    PUBLISH_BODY,
    SPLICED_BYTES_MIN,
    Apart,
    Path,
    Spliced,
    parse_apart,
    splice,
    split,
)

BODY = bytes(range(256)) * (SPLICED_BYTES_MIN // 256)
LIMITS = common_pb2.Limits(
    payload_bytes_max=PAYLOAD_BYTES_MAX, batch_messages_max=BATCH_MESSAGES_MAX
)


def publish(body: bytes = b"") -> event_pb2.PublishStreamRequest:
    """A request with fields before and behind the body, at each level."""
    message = event_pb2.PublishStreamRequest()
    message.publish.publish_id = 300
    request = message.publish.request
    request.durability = common_pb2.DURABILITY_MEMORY
    request.expected_stream = "stream"
    request.expected_last_sequence = 0
    request.batch.subject = "a.b"
    request.batch.crc32c = 0xFEDCBA98
    request.batch.message_ids.extend(["one", "", "three"])
    request.batch.selected.add(first=1, last=2)
    request.batch.body = body
    return message


@pytest.mark.parametrize(
    ("path", "descriptor", "names"),
    [
        (
            PUBLISH_BODY,
            event_pb2.PublishStreamRequest.DESCRIPTOR,
            ("publish", "request", "batch", "body"),
        ),
        (
            DELIVERY_BODY,
            event_pb2.SubscribeResponse.DESCRIPTOR,
            ("delivery", "batch", "body"),
        ),
    ],
)
def test_paths_are_those_of_the_contract(
    path: Path, descriptor: object, names: tuple[str, ...]
) -> None:
    """The numbers lead to the fields they are meant for."""
    numbers = []
    for name in names:
        field = descriptor.fields_by_name[name]  # type: ignore[attr-defined]
        numbers.append(field.number)
        descriptor = field.message_type
    assert path == tuple(numbers)


@pytest.mark.parametrize("before", [b"", BODY[:5]])
def test_spliced_message_is_read_by_protobuf(before: bytes) -> None:
    """Head and tail together are the message with the field."""
    spliced = splice(publish().SerializeToString(), PUBLISH_BODY, BODY[len(before) :], before)
    whole = bytes(spliced)
    assert len(spliced) == len(whole)
    assert publish(BODY) == event_pb2.PublishStreamRequest.FromString(whole)
    assert b"before" + whole == b"before" + spliced


@pytest.mark.parametrize("cut", [1, 7, 100, 4_096, SPLICED_BYTES_MIN])
def test_pieces_make_the_whole(cut: int) -> None:
    """Pieces of any size, put together, are the message."""
    spliced = splice(publish().SerializeToString(), PUBLISH_BODY, BODY)
    pieces = [spliced.piece(at, min(at + cut, len(spliced))) for at in range(0, len(spliced), cut)]
    assert bytes(spliced) == b"".join(pieces)


def test_tail_is_not_copied() -> None:
    """A piece behind the head is a view of the very object that was given."""
    spliced = Spliced(b"head", BODY)
    piece = spliced.piece(4, 100)
    assert isinstance(piece, memoryview)
    assert piece.obj is BODY


@pytest.mark.parametrize("order", ["protobuf", "spliced"])
def test_message_is_split_wherever_its_field_is(order: str) -> None:
    """The message without the field, and the field, whoever serialized it."""
    data = publish(BODY).SerializeToString()
    if order == "spliced":
        data = bytes(splice(publish().SerializeToString(), PUBLISH_BODY, BODY))
    parsed = parse_apart(event_pb2.PublishStreamRequest, data, PUBLISH_BODY)
    assert isinstance(parsed, Apart)
    assert publish() == parsed.message
    assert parsed.body == BODY
    assert parsed.WhichOneof("kind") == "publish"


def test_short_body_stays_in_its_message() -> None:
    """What is cheap to copy is parsed as ever."""
    message = publish(BODY[:-1])
    parsed = parse_apart(event_pb2.PublishStreamRequest, message.SerializeToString(), PUBLISH_BODY)
    assert message == parsed


def test_other_kind_is_left_to_protobuf() -> None:
    """A long message that has no such field is parsed whole."""
    message = event_pb2.PublishStreamRequest()
    message.open.client_id = "x" * SPLICED_BYTES_MIN
    parsed = parse_apart(event_pb2.PublishStreamRequest, message.SerializeToString(), PUBLISH_BODY)
    assert message == parsed


def test_field_that_comes_twice_is_left_to_protobuf() -> None:
    """Protobuf merges messages and takes the last value: only it knows how."""
    data = publish(BODY).SerializeToString()
    assert split(data, PUBLISH_BODY) is not None
    assert split(data + data, PUBLISH_BODY) is None
    batch = common_pb2.Batch(body=BODY).SerializeToString()
    assert split(batch, (7,)) is not None
    assert split(batch + batch, (7,)) is None


@pytest.mark.parametrize("cut", range(1, 10))
def test_what_is_cut_short_is_left_to_protobuf(cut: int) -> None:
    """Bytes that are no message are refused by whoever refused them before."""
    data = common_pb2.Batch(body=BODY[:8]).SerializeToString()
    assert split(data, (7,)) is not None
    assert split(data[:-cut], (7,)) is None


@pytest.mark.parametrize("odd", [b"\x0f", b"\x3b", b"\x38\x01", b"\xff" * 11])
def test_odd_bytes_are_left_to_protobuf(odd: bytes) -> None:
    """Groups, unknown kinds, the field as a number, endless numbers."""
    data = common_pb2.Batch(body=BODY).SerializeToString()
    assert split(data + odd, (7,)) is None


def test_many_fields_are_left_to_protobuf() -> None:
    """The look at a message is bounded."""
    few = common_pb2.Batch(body=BODY, message_ids=["x"] * (FIELDS_MAX - 1))
    many = common_pb2.Batch(body=BODY, message_ids=["x"] * FIELDS_MAX)
    assert split(few.SerializeToString(), (7,)) is not None
    assert split(many.SerializeToString(), (7,)) is None


def test_field_is_spliced_in_once() -> None:
    """A message that has the field cannot be given another."""
    with pytest.raises(ValueError, match="already"):
        splice(publish(BODY).SerializeToString(), PUBLISH_BODY, BODY)


def apart_batch(payloads: list[bytes], codec: CodecName) -> tuple[common_pb2.Batch, bytes]:
    """A batch without its body, and the body."""
    batch = common_pb2.Batch()
    before, tail = seal_apart(batch, "a", payloads, codec)
    assert batch.body == b""
    return batch, before + tail


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "payloads", [[BODY], [b""], [b"x" * 127], [b"x" * 128], [BODY, b"x", BODY], [b"ab"] * 5_000]
)
def test_body_apart_is_the_body(payloads: list[bytes], codec: CodecName) -> None:
    """A batch sealed without its body is the one that is sealed with it, and is read the same."""
    batch, body = apart_batch(payloads, codec)
    assert payloads == decode(batch, body=memoryview(body))
    check_batch(batch, LIMITS, body=memoryview(body))
    batch.body = body
    assert encode_payloads("a", payloads, codec=codec) == batch


def test_one_payload_is_not_copied() -> None:
    """What is sent is the very object that was published."""
    _, tail = seal_apart(common_pb2.Batch(), "a", [BODY])
    assert tail is BODY


@pytest.mark.parametrize("place", [0, 3, 100, len(BODY)])
def test_damage_to_a_body_apart_is_found(place: int) -> None:
    """A bit that turns on the way is found by the server and by the reader; none by neither."""
    batch, body = apart_batch([BODY], common_pb2.CODEC_NONE)
    damaged = bytearray(body)
    damaged[place] ^= 1
    with pytest.raises(ChecksumMismatch):
        check_batch(batch, LIMITS, body=memoryview(bytes(damaged)))
    with pytest.raises(ChecksumMismatch):
        decode(batch, body=memoryview(bytes(damaged)))
    damaged[place] ^= 1
    check_batch(batch, LIMITS, body=memoryview(bytes(damaged)))
    assert [BODY] == decode(batch, body=memoryview(bytes(damaged)))


def test_body_apart_is_held_to_the_limits() -> None:
    """A body beyond the limit is refused though it is not in its batch; one within is not."""
    batch, body = apart_batch([BODY], common_pb2.CODEC_NONE)
    with pytest.raises(MessageTooLarge):
        check_batch(
            batch,
            common_pb2.Limits(payload_bytes_max=len(body) - 1, batch_messages_max=1),
            body=memoryview(body),
        )
    with pytest.raises(MessageTooLarge):
        decode(batch, len(body) - 1, memoryview(body))
    assert [BODY] == decode(batch, len(body), memoryview(body))


def test_body_apart_that_is_not_one_payload_is_refused() -> None:
    """A checksum that fits does not make a body what its header says."""
    batch, _ = apart_batch([BODY], common_pb2.CODEC_NONE)
    for body in (BODY[:1] * len(BODY), b"\x0a\x01" + BODY):
        batch.crc32c = crc32c(body)
        batch.raw_size = len(body)
        with pytest.raises(BodyCorrupt):
            decode(batch, body=memoryview(body))
