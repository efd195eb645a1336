"""Every rule of WIRE.md that a peer can break ends its connection, and the reason is told."""

from collections.abc import Callable

import pytest

from support.pipe import Pipe, PipeClient, PipeServer, piped
from tidewire.wire.bodies import (
    Ending,
    Goaway,
    Hello,
    decode_goaway,
    encode_ending,
    encode_goaway,
    encode_head,
    encode_headers,
    encode_hello,
)
from tidewire.wire.connection import Connection
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
    FrameDecoder,
    encode_frame,
)
from tidewire.wire.limits import FRAME_BYTES_MAX, KIB, MIB, WireLimits

HEAD = encode_head("/a/b")
CLIENT_HELLO = encode_frame(HELLO, encode_hello(Hello(), WireLimits()))


def open_frame(call_id: int, message: bytes | None = None, *, flags: int = 0) -> bytes:
    """Return an OPEN."""
    body = OPEN_PREFIX.pack(0, len(HEAD)) + HEAD + (message or b"")
    if message is not None:
        flags |= WITH_MESSAGE
    return encode_frame(OPEN, body, flags=flags, priority=5, call_id=call_id)


def fresh_server(limits: WireLimits | None = None, *, greeted: bool = True) -> PipeServer:
    """Return a server that has heard HELLO."""
    server = PipeServer(limits or WireLimits())
    if greeted:
        server.receive_data(CLIENT_HELLO, 0.0)
        server.data_to_send(1 << 20, 0.0)
    return server


def fresh_client() -> Pipe:
    """Return a client with one call in flight, numbered 1."""
    pipe = piped()
    pipe.open(b"x")
    pipe.run()
    return pipe


def farewell(side: Connection) -> Ending:
    """Return the reason in the GOAWAY a side sends, which must be the last frame."""
    frames = FrameDecoder(FRAME_BYTES_MAX).feed(b"".join(side.data_to_send(1 << 20, 0.0)))
    assert GOAWAY == frames[-1][0]
    return decode_goaway(frames[-1][4]).reason


SERVER_VIOLATIONS = {
    "second hello": CLIENT_HELLO,
    "status from a client": encode_frame(STATUS, b"", call_id=1),
    "headers from a client": encode_frame(HEADERS, b"", call_id=1),
    "message of a call never opened": encode_frame(MESSAGE, b"", call_id=1),
    "cancel of a call never opened": encode_frame(CANCEL, call_id=1),
    "credit of a call never opened": encode_frame(CREDIT, CREDIT_BODY.pack(1), call_id=1),
    "call id used twice": open_frame(1) + open_frame(1),
    "call id that decreases": open_frame(2) + open_frame(1),
    "open without its prefix": encode_frame(OPEN, b"12345678901", call_id=1),
    "head longer than the frame": encode_frame(OPEN, OPEN_PREFIX.pack(0, 99) + HEAD, call_id=1),
    "message without its flag": encode_frame(
        OPEN, OPEN_PREFIX.pack(0, len(HEAD)) + HEAD + b"x", call_id=1
    ),
    "head that is no head": encode_frame(OPEN, OPEN_PREFIX.pack(0, 1) + b"\xff", call_id=1),
    "cancel with a body": open_frame(1) + encode_frame(CANCEL, b"x", call_id=1),
    "message after the last": open_frame(1, flags=END) + encode_frame(MESSAGE, b"", call_id=1),
    "half-close twice": open_frame(1)
    + encode_frame(MESSAGE, flags=END | NONE, call_id=1)
    + encode_frame(MESSAGE, flags=END | NONE, call_id=1),
    "half-close within a message": open_frame(1)
    + encode_frame(MESSAGE, b"x", flags=MORE, call_id=1)
    + encode_frame(MESSAGE, flags=END | NONE, call_id=1),
    "credit of 7 bytes": encode_frame(CREDIT, b"1234567"),
    "credit that shrinks": encode_frame(CREDIT, CREDIT_BODY.pack(1)),
    "credit of a call that shrinks": open_frame(1)
    + encode_frame(CREDIT, CREDIT_BODY.pack(1), call_id=1),
    "ping of 7 bytes": encode_frame(PING, b"1234567"),
    "pong of 9 bytes": encode_frame(PONG, b"123456789"),
    "goaway that is none": encode_frame(GOAWAY, b"\xff"),
}


@pytest.mark.parametrize("name", SERVER_VIOLATIONS)
def test_server_ends_the_connection(name: str) -> None:
    """A client that breaks a rule is told the reason and cut off; its calls end."""
    server = fresh_server()
    server.receive_data(SERVER_VIOLATIONS[name], 1.0)

    assert server.closed
    reason = farewell(server)
    assert 13 == reason.code
    assert b"PROTOCOL_VIOLATION" in reason.details
    assert {} == server.calls
    assert all(1 == call.log.endings[-1].code for call in server.opened)


CLIENT_VIOLATIONS = {
    "open from a server": open_frame(1),
    "cancel from a server": encode_frame(CANCEL, call_id=1),
    "second hello": CLIENT_HELLO,
    "message of a call never opened": encode_frame(MESSAGE, b"", call_id=2),
    "status of a call never opened": encode_frame(STATUS, b"", call_id=2),
    "headers twice": 2 * encode_frame(HEADERS, b"", call_id=1),
    "headers after a message": encode_frame(MESSAGE, b"", call_id=1)
    + encode_frame(HEADERS, b"", call_id=1),
    "half-close from a server": encode_frame(MESSAGE, flags=END | NONE, call_id=1),
    "status ok within a message": encode_frame(MESSAGE, b"x", flags=MORE, call_id=1)
    + encode_frame(STATUS, b"", call_id=1),
    "status that is none": encode_frame(STATUS, b"\xff", call_id=1),
    "headers that are none": encode_frame(HEADERS, b"\xff", call_id=1),
}


@pytest.mark.parametrize("name", CLIENT_VIOLATIONS)
def test_client_ends_the_connection(name: str) -> None:
    """A server that breaks a rule is cut off; calls in flight are UNAVAILABLE."""
    pipe = fresh_client()
    pipe.client.receive_data(CLIENT_VIOLATIONS[name], 1.0)

    assert pipe.client.closed
    assert 13 == farewell(pipe.client).code
    assert {} == pipe.client.calls


LEGAL: dict[str, Callable[[], bytes]] = {
    "late message": lambda: encode_frame(MESSAGE, b"late", call_id=1),
    "late cancel": lambda: encode_frame(CANCEL, call_id=1),
    "late credit": lambda: encode_frame(CREDIT, CREDIT_BODY.pack(1), call_id=1),
    "late half-close": lambda: encode_frame(MESSAGE, flags=END | NONE, call_id=1),
}


@pytest.mark.parametrize("name", LEGAL)
def test_frames_of_ended_calls_are_ignored(name: str) -> None:
    """What arrives for a call that is over is dropped and harms nobody."""
    server = fresh_server()
    server.receive_data(open_frame(1, b"x", flags=END), 1.0)
    server.opened[0].reply(b"")
    server.receive_data(LEGAL[name](), 1.0)

    assert not server.closed


@pytest.mark.parametrize(
    "first",
    [open_frame(1), encode_frame(PING, b"12345678"), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"],
)
def test_first_frame_must_be_hello(first: bytes) -> None:
    """Anything before HELLO ends the connection, also what is no frame at all."""
    server = fresh_server(greeted=False)
    server.receive_data(first, 0.5)
    server.receive_data(b"\x02", 0.5)

    assert server.closed


def test_no_common_version() -> None:
    """A client of another version hears so."""
    server = fresh_server(greeted=False)
    hello = Hello(version_min=2, version_max=3)
    server.receive_data(encode_frame(HELLO, encode_hello(hello, WireLimits())), 0.0)

    reason = farewell(server)
    assert 9 == reason.code
    assert b"WIRE_VERSION_UNSUPPORTED" in reason.details


def test_server_that_chooses_another_version() -> None:
    """A client refuses a server that answers with a version it did not offer."""
    client = PipeClient(WireLimits())
    hello = Hello(version_min=2, version_max=2)
    client.receive_data(encode_frame(HELLO, encode_hello(hello, WireLimits())), 0.0)

    assert ["WireVersionUnsupported"] == [type(error).__name__ for error in client.closed_by]


@pytest.mark.parametrize("reading", [True, False])
def test_credit_of_a_call_exceeded(reading: bool) -> None:
    """A sender that passes the credit of a call by more than a frame is cut off, and only then."""
    server = fresh_server(WireLimits(call_credit_bytes=64 * KIB))
    server.reads = reading
    server.receive_data(open_frame(1), 0.0)
    for _ in range(64):
        server.receive_data(encode_frame(MESSAGE, bytes(16 * KIB), call_id=1), 0.0)

    assert reading is not server.closed
    if not reading:
        assert b"CREDIT_EXCEEDED" in farewell(server).details


def test_credit_of_the_connection_exceeded() -> None:
    """A sender that passes the credit of the connection is cut off."""
    server = fresh_server(
        WireLimits(connection_credit_bytes=64 * KIB, unread_bytes_max=1, call_credit_bytes=MIB)
    )
    server.reads = False
    server.receive_data(open_frame(1), 0.0)
    for _ in range(64):
        server.receive_data(encode_frame(MESSAGE, bytes(16 * KIB), call_id=1), 0.0)

    assert server.closed
    reason = farewell(server)
    assert (9, True) == (reason.code, b"CREDIT_EXCEEDED" in reason.details)


def test_too_many_calls() -> None:
    """A call over the limit is refused with a status; the others go on."""
    server = fresh_server(WireLimits(calls_max=2))
    for call_id in (1, 2, 3):
        server.receive_data(open_frame(call_id), 0.0)

    frames = FrameDecoder(FRAME_BYTES_MAX).feed(b"".join(server.data_to_send(1 << 20, 0.0)))
    assert [(STATUS, 3)] == [(frame[0], frame[3]) for frame in frames]
    assert b"TOO_MANY_CALLS" in frames[0][4]
    assert not server.closed
    assert 2 == len(server.calls)


def test_a_hundred_thousand_opens() -> None:
    """A flood of OPENs costs bounded memory: a peer that does not read the refusals is cut off."""
    server = fresh_server(WireLimits(calls_max=10))
    for start in range(1, 100_001, 1000):
        server.receive_data(b"".join(open_frame(start + n) for n in range(1000)), 0.0)
        assert server.scheduler.waiting_bytes <= 5 * MIB

    assert server.closed
    assert b"PEER_TOO_SLOW" in farewell(server).details
    assert len(server.opened) <= 10


def test_too_many_pings() -> None:
    """A client that pings without calls is cut off; one with a call, or with patience, is not."""
    ping = encode_frame(PING, b"12345678")
    server = fresh_server()
    for n in range(11):
        server.receive_data(ping, 1.0 + n * 0.1)
    reason = farewell(server)
    assert (8, True) == (reason.code, b"TOO_MANY_PINGS" in reason.details)

    for patient in (True, False):
        server = fresh_server()
        if not patient:
            server.receive_data(open_frame(1), 0.0)
        for n in range(50):
            server.receive_data(ping, 1.0 + n * (1.1 if patient else 0.0))
        assert not server.closed


def test_pings_that_are_never_read() -> None:
    """A peer that pings for ever and never reads the answers is cut off before they pile up."""
    server = fresh_server()
    server.receive_data(open_frame(1), 0.0)
    for _ in range(300):
        server.receive_data(encode_frame(PING, b"12345678") * 1000, 0.0)
        if server.closed:
            break

    assert server.closed
    assert b"PEER_TOO_SLOW" in farewell(server).details


@pytest.mark.parametrize("late", [True, False])
def test_hello_in_time(late: bool) -> None:
    """A peer that says nothing for 3 s is cut off; one that greets is not."""
    server = fresh_server(greeted=not late)
    assert server.wake_s <= 3.0 if late else True
    server.handle_timeout(2.9)
    assert not server.closed
    server.handle_timeout(3.0)

    assert late is server.closed


def test_frame_in_time() -> None:
    """A frame of which one byte comes each second ends the connection after 10 s."""
    server = fresh_server()
    frame = open_frame(1)
    ended_at = None
    for second, byte in enumerate(frame):
        if server.wake_s <= second:
            server.handle_timeout(float(second))
        if server.closed:
            ended_at = second
            break
        server.receive_data(bytes([byte]), float(second))

    assert 10 == ended_at
    assert b"PEER_TOO_SLOW" in farewell(server).details


def test_slow_frames_are_timed_one_by_one() -> None:
    """Frames that follow each other closely but are never all complete do not add up."""
    server = fresh_server()
    now_s = 0.0
    wire = b"".join(open_frame(n) for n in range(1, 40))
    size = len(open_frame(1))
    for at in range(0, len(wire), size):
        now_s += 1.0
        server.receive_data(
            wire[at : at + size - 5] if not at else wire[at - 5 : at + size - 5], now_s
        )
        if server.wake_s <= now_s:
            server.handle_timeout(now_s)

    assert not server.closed


def test_goaway_with_a_reason_is_told_to_calls() -> None:
    """A goaway with calls above its last id ends those, and the connection takes no new calls."""
    pipe = fresh_client()
    goaway = Goaway(0, Ending(8, "too much"), 0.0)
    pipe.client.receive_data(encode_frame(GOAWAY, encode_goaway(goaway)), 1.0)

    assert pipe.client.draining
    assert {} == pipe.client.calls
    assert [goaway] == pipe.client.goaways


def test_nothing_is_heard_after_the_end() -> None:
    """A connection that is closed ignores what still arrives."""
    server = fresh_server()
    server.receive_data(encode_frame(HEADERS, encode_headers(()), call_id=1), 0.0)
    server.receive_data(open_frame(1), 0.0)
    server.receive_data(encode_frame(STATUS, encode_ending(Ending(0)), call_id=1), 0.0)

    assert server.closed
    assert [] == server.opened
