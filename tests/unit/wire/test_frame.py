"""Frames: golden bytes, any cut, every illegal header."""

from itertools import pairwise
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.errors import ProtocolViolation
from tidewire.wire import bodies
from tidewire.wire.bodies import (
    HELLOS_CACHED_MAX,
    Ending,
    Goaway,
    Head,
    HeadCache,
    Hello,
    decode_ending,
    decode_goaway,
    decode_head,
    decode_headers,
    decode_hello,
    encode_ending,
    encode_goaway,
    encode_head,
    encode_headers,
    encode_hello,
)
from tidewire.wire.frame import (
    CANCEL,
    CREDIT,
    CREDIT_BODY,
    END,
    GOAWAY,
    HEADERS,
    HELLO,
    MESSAGE,
    MORE,
    NONE,
    OPEN,
    OPEN_PREFIX,
    PING,
    PONG,
    STATUS,
    WITH_MESSAGE,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)
from tidewire.wire.limits import FRAME_BYTES_MAX, WireLimits

GOLDEN = Path(__file__).parents[2] / "data" / "wire"

HEAD = encode_head("/echo.v1.EchoService/Say", (("color", "blue"), ("raw-bin", b"\x00\xff")))
SAMPLES: dict[str, Frame] = {
    "hello": (
        HELLO,
        0,
        0,
        0,
        encode_hello(Hello(agent="test/1", codecs=(1, 2, 3, 4), node_id="n1"), WireLimits()),
    ),
    "open": (OPEN, 0, 5, 1, OPEN_PREFIX.pack(0, len(HEAD)) + HEAD),
    "open_unary": (
        OPEN,
        END | WITH_MESSAGE,
        0,
        2,
        OPEN_PREFIX.pack(1_500_000, len(HEAD)) + HEAD + b"request",
    ),
    "message": (MESSAGE, 0, 0, 1, b"message"),
    "message_fragment": (MESSAGE, MORE, 0, 1, b"\x00" * 100),
    "message_last": (MESSAGE, END, 0, 1, b"last"),
    "half_close": (MESSAGE, END | NONE, 0, 1, b""),
    "headers": (HEADERS, 0, 0, 1, encode_headers((("first", "1"), ("first-bin", b"\x01")))),
    "status_ok": (STATUS, 0, 0, 1, encode_ending(Ending(0))),
    "status": (STATUS, 0, 0, 1, encode_ending(Ending(5, "no such thing", b"", (("last", "2"),)))),
    "cancel": (CANCEL, 0, 0, 1, b""),
    "credit": (CREDIT, 0, 0, 1, CREDIT_BODY.pack(1 << 20)),
    "credit_connection": (CREDIT, 0, 0, 0, CREDIT_BODY.pack(1 << 40)),
    "ping": (PING, 0, 0, 0, b"12345678"),
    "pong": (PONG, 0, 0, 0, b"12345678"),
    "goaway": (GOAWAY, 0, 0, 0, encode_goaway(Goaway(7, Ending(14, "going"), 1.5))),
}


def encode(frame: Frame) -> bytes:
    """Return the bytes of a sample."""
    kind, flags, priority, call_id, body = frame
    return encode_frame(kind, body, flags=flags, priority=priority, call_id=call_id)


WIRE = b"".join(encode(frame) for frame in SAMPLES.values())


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_bytes(name: str) -> None:
    """The bytes of each frame are those of the files, which other implementations may read."""
    golden = bytes.fromhex((GOLDEN / f"{name}.hex").read_text("ascii"))

    assert golden == encode(SAMPLES[name])
    assert [SAMPLES[name]] == FrameDecoder(FRAME_BYTES_MAX).feed(golden)


def test_golden_bytes_cover_every_type() -> None:
    """No frame type is without a golden file."""
    assert set(FrameType) == {frame[0] for frame in SAMPLES.values()}
    assert set(SAMPLES) == {path.stem for path in GOLDEN.glob("*.hex")}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 11, 12, 13, 100, 4096])
def test_frames_survive_any_step(step: int) -> None:
    """However the stream is cut, the same frames come out."""
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    cuts = [WIRE[at : at + step] for at in range(0, len(WIRE), step)]

    got = [frame for cut in cuts for frame in decoder.feed(cut)]

    assert list(SAMPLES.values()) == got
    assert not decoder.incomplete


@pytest.mark.parametrize("step", [1, 3, 12, 13, 100, 4096])
def test_a_buffer_may_be_used_again(step: int) -> None:
    """What was fed as a view of a buffer is not needed afterwards: nothing of it is kept."""
    decoder, buffer = FrameDecoder(FRAME_BYTES_MAX), bytearray(step)
    got = []
    for at in range(0, len(WIRE), step):
        cut = WIRE[at : at + step]
        buffer[: len(cut)] = cut
        got += decoder.feed(memoryview(buffer)[: len(cut)])
        buffer[:] = b"\xff" * step

    assert list(SAMPLES.values()) == got
    assert all(type(frame[4]) is bytes for frame in got)


def test_frames_survive_every_single_cut() -> None:
    """The stream cut at each byte gives the same frames."""
    for at in range(len(WIRE) + 1):
        decoder = FrameDecoder(FRAME_BYTES_MAX)
        assert list(SAMPLES.values()) == decoder.feed(WIRE[:at]) + decoder.feed(WIRE[at:])


@given(
    st.lists(
        st.tuples(
            st.just(MESSAGE),
            st.sampled_from([0, END, MORE]),
            st.just(0),
            st.integers(1, 9),
            st.binary(max_size=300),
        )
    ),
    st.lists(st.integers(0, 5000)),
)
def test_round_trip(frames: list[Frame], cuts: list[int]) -> None:
    """Any frames, cut anywhere, come out as they went in."""
    wire = b"".join(encode(frame) for frame in frames)
    edges = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    decoder = FrameDecoder(FRAME_BYTES_MAX)

    got = []
    for begin, end in pairwise(edges):
        got += decoder.feed(wire[begin:end])

    assert frames == got


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (pack(">IBBHI", 7, MESSAGE, 0, 0, 1), "length"),
        (pack(">IBBHI", 0, MESSAGE, 0, 0, 1), "length"),
        (pack(">IBBHI", FRAME_BYTES_MAX + 1, MESSAGE, 0, 0, 1), "length"),
        (pack(">IBBHI", 8, 0, 0, 0, 1), "type 0"),
        (pack(">IBBHI", 8, 11, 0, 0, 1), "type 11"),
        (pack(">IBBHI", 8, 255, 0, 0, 1), "type 255"),
        (pack(">IBBHI", 8, MESSAGE, 0x10, 0, 1), "flags"),
        (pack(">IBBHI", 8, MESSAGE, END | MORE, 0, 1), "flags"),
        (pack(">IBBHI", 8, MESSAGE, NONE, 0, 1), "flags"),
        (pack(">IBBHI", 8, MESSAGE, WITH_MESSAGE, 0, 1), "flags"),
        (pack(">IBBHI", 8, OPEN, MORE, 0, 1), "flags"),
        (pack(">IBBHI", 8, STATUS, END, 0, 1), "flags"),
        (pack(">IBBHI", 8, OPEN, 0, 10, 1), "priority"),
        (pack(">IBBHI", 8, MESSAGE, 0, 1, 1), "priority"),
        (pack(">IBBHI", 8, PING, 0, 1, 0), "priority"),
        (pack(">IBBHI", 8, MESSAGE, 0, 0, 0), "no call"),
        (pack(">IBBHI", 8, OPEN, 0, 0, 0), "no call"),
        (pack(">IBBHI", 16, PING, 0, 0, 1), "must not"),
        (pack(">IBBHI", 8, HELLO, 0, 0, 1), "must not"),
        (pack(">IBBHI", 8, GOAWAY, 0, 0, 1), "must not"),
        (pack(">IBBHI", 9, MESSAGE, END | NONE, 0, 1), "NONE"),
    ],
)
@pytest.mark.parametrize("step", [1, 12])
def test_illegal_headers(header: bytes, why: str, step: int) -> None:
    """An illegal header ends the stream before its body is kept, after the frames before it."""
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    wire = encode(SAMPLES["message"]) + header
    got = []
    for at in range(0, len(wire), step):
        got += decoder.feed(wire[at : at + step])

    assert [SAMPLES["message"]] == got
    assert isinstance(decoder.violation, ProtocolViolation)
    assert why in str(decoder.violation)
    assert [] == decoder.feed(encode(SAMPLES["message"]))


def test_length_is_judged_on_four_bytes() -> None:
    """A peer that speaks something else is refused on its first four bytes."""
    for stranger in (b"GET ", b"\x16\x03\x01\x02", b"PRI ", b"SSH-"):
        decoder = FrameDecoder(FRAME_BYTES_MAX)
        decoder.feed(stranger)
        assert decoder.violation is not None
        assert not decoder.incomplete


@given(st.binary(max_size=200))
def test_garbage_never_raises(garbage: bytes) -> None:
    """Garbage sets ``violation`` or waits for more; it raises nothing and is bounded."""
    decoder = FrameDecoder(1024)

    decoder.feed(garbage)
    decoder.feed(garbage)


METADATA = st.lists(
    st.one_of(
        st.tuples(
            st.from_regex(r"[a-z][a-z0-9_.]{0,20}", fullmatch=True),
            st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)),
        ),
        st.tuples(st.just("raw-bin"), st.binary()),
    ),
    max_size=5,
).map(tuple)


@given(st.from_regex(r"/[a-z.]{1,20}/[A-Z][a-z]{0,9}", fullmatch=True), METADATA)
def test_head_round_trip(method: str, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
    """Heads and headers come back as they were."""
    assert Head(method, metadata) == decode_head(encode_head(method, metadata))
    assert metadata == decode_headers(encode_headers(metadata))


@given(st.integers(0, 16), st.text(max_size=50), METADATA)
def test_ending_round_trip(
    code: int, message: str, trailers: tuple[tuple[str, str | bytes], ...]
) -> None:
    """Statuses come back as they were."""
    ending = Ending(code, message, b"", trailers)

    assert ending == decode_ending(encode_ending(ending))


def test_peers_that_say_the_same_share_one_object() -> None:
    """So do not those with a token, which is not kept, nor those that say much."""
    plain = encode_hello(Hello(agent="same"), WireLimits())
    token = encode_hello(Hello(agent="same", token="t"), WireLimits())
    long = encode_hello(Hello(agent="s" * 250), WireLimits())

    assert decode_hello(plain) is decode_hello(bytes(bytearray(plain)))
    assert decode_hello(token) is not decode_hello(token)
    assert decode_hello(token) == decode_hello(token)
    assert decode_hello(long) is not decode_hello(long)


def test_peers_of_their_own_do_not_end_the_sharing() -> None:
    """A process that met many peers, each with its node, still shares what comes again."""
    for number in range(10 * HELLOS_CACHED_MAX):
        decode_hello(encode_hello(Hello(agent="same", node_id=f"node {number}"), WireLimits()))
    common = encode_hello(Hello(agent="common"), WireLimits())

    assert decode_hello(common) is decode_hello(bytes(bytearray(common)))
    assert len(bodies._HELLOS) <= HELLOS_CACHED_MAX


def test_goaway_and_hello_round_trip() -> None:
    """Greetings and farewells come back as they were."""
    goaway = Goaway(9, Ending(14, "bye"), 2.5)
    hello = decode_hello(encode_hello(Hello(agent="a", node_id="n", token="t"), WireLimits()))

    assert goaway == decode_goaway(encode_goaway(goaway))
    assert ("a", "n", "t", 1, 1) == (
        hello.agent,
        hello.node_id,
        hello.token,
        hello.version_min,
        hello.version_max,
    )


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (decode_hello, b"\xff"),
        (decode_hello, b"\x2a\x02\x08\x01"),  # frame_bytes_max 1
        (decode_head, b"\xff"),
        (decode_head, b""),
        (decode_head, b"\x0a\x03abc"),  # method without a slash
        (decode_headers, b"\x0a\x05\x0a\x03ABC"),  # upper case in a key
        (decode_headers, b"\x0a\x06\x0a\x01a\x12\x01\x00"),  # a control character in text
        (decode_ending, b"\x0a\x02\x08\x11"),  # code 17
        (decode_ending, b"\xff"),
        (decode_goaway, b"\xff"),
    ],
)
def test_illegal_bodies(decode: object, body: bytes) -> None:
    """A body that is not what its frame says is a violation."""
    assert callable(decode)
    with pytest.raises(ProtocolViolation):
        decode(body)


def test_head_cache_is_bounded() -> None:
    """The cache forgets the oldest head and never keeps long ones."""
    cache = HeadCache(heads_max=2, head_bytes_max=30)
    heads = [encode_head(f"/a/{n}") for n in range(3)]
    parsed = [cache.parse(head) for head in heads]

    assert cache.parse(heads[2]) is parsed[2]
    assert cache.parse(heads[0]) is not parsed[0]
    long = encode_head("/a/" + "x" * 40)
    assert cache.parse(long) is not cache.parse(long)
