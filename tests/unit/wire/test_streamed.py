"""Calls with streams of their own: what may come where, and in which order."""

from typing import Any

import pytest

from tidewire.errors import CreditExceeded, PeerTooSlow, ProtocolViolation, TidewireError
from tidewire.wire.bodies import Ending, Head, Hello, encode_head, encode_hello
from tidewire.wire.call import Call
from tidewire.wire.client_side import ClientCall
from tidewire.wire.frame import (
    CREDIT,
    CREDIT_BODY,
    END,
    HELLO,
    MESSAGE,
    OPEN,
    OPEN_PREFIX,
    PING,
    WITH_MESSAGE,
    encode_frame,
)
from tidewire.wire.limits import KIB, WireLimits
from tidewire.wire.streamed import ABORT, DATA, LAST, STOP, Outgoing, StreamedClient, StreamedServer

HEAD = encode_head("/a.B/C")


class Served(Call):
    """A call at the server that writes down what happens."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.news: list[Any] = []

    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        self.news.append(body)
        self.take(mark)

    def on_half_closed(self) -> None:
        self.news.append("half-closed")

    def on_end(self, ending: Ending) -> None:
        self.news.append(ending.code)


class Server(StreamedServer):
    """A server's side that keeps its calls."""

    def __init__(self, limits: WireLimits | None = None) -> None:
        super().__init__(Hello(), limits or WireLimits(), 0.0)
        self.begin_streams()
        self.opened: list[int] = []
        self.served: dict[int, Served] = {}

    def on_call(self, head: Head) -> Call:
        return Served(head)

    def on_call_opened(self, call: Call, message: bytes | None, last: bool) -> None:
        assert isinstance(call, Served)
        self.opened.append(call.call_id)
        self.served[call.call_id] = call
        if message is not None:
            call.news.append(message)


class Client(StreamedClient):
    """A client's side."""

    def __init__(self) -> None:
        super().__init__(Hello(), WireLimits(), 0.0)
        self.begin_streams()


class Asked(ClientCall):
    """A call at the client that writes down what happens."""

    def __init__(self) -> None:
        self.head = HEAD
        self.news: list[Any] = []

    def on_message(self, body: bytes, mark: int, last: bool) -> None:
        self.news.append(body)

    def on_end(self, ending: Ending) -> None:
        self.news.append(ending.code)


def greeted(limits: WireLimits | None = None) -> Server:
    """Return a server that has had HELLO."""
    server = Server(limits)
    server.receive_stream(0, encode_frame(HELLO, encode_hello(Hello(), WireLimits())), False, 0.0)
    server.streams_to_send(1 << 20, 0.0)
    return server


def opening(call_id: int, message: bytes = b"m", flags: int = END | WITH_MESSAGE) -> bytes:
    """Return an OPEN."""
    body = OPEN_PREFIX.pack(0, len(HEAD)) + HEAD + (message if flags & WITH_MESSAGE else b"")
    return encode_frame(OPEN, body, flags=flags, priority=5, call_id=call_id)


def pair() -> tuple[Client, Server]:
    """Return two sides that have exchanged HELLOs."""
    client, server = Client(), Server()
    exchange(client, server)
    exchange(server, client)
    return client, server


def exchange(
    sender: Any, receiver: Any, order: list[int] | None = None, now_s: float = 0.0
) -> list[Outgoing]:
    """Carry what one side has to send, streams in ``order`` where it is given."""
    sent = sender.streams_to_send(1 << 24, now_s)
    for one in sorted(sent, key=lambda each: order.index(each.number)) if order else sent:
        if one.action == ABORT:
            receiver.receive_abort(one.number, now_s)
        elif one.action == STOP:
            receiver.receive_stop(one.number, now_s)
        else:
            receiver.receive_stream(one.number, one.data, one.action == LAST, now_s)
    return list(sent)


def test_calls_overtake_each_other() -> None:
    """OPENs that arrive in another order are all served: what was lost comes later."""
    client, server = pair()
    calls = [Asked() for _ in range(3)]
    for call in calls:
        client.open(call, b"question", last=True)
    exchange(client, server, order=[3, 1, 2])

    assert [3, 1, 2] == server.opened
    assert server.error is None
    for number in (1, 3, 2):
        server.served[number].reply(b"answer %d" % number)
    exchange(server, client)
    assert [[b"answer 1", 0], [b"answer 2", 0], [b"answer 3", 0]] == [call.news for call in calls]
    assert {} == client.calls == server.calls


def test_a_stream_ends_with_the_last_frame() -> None:
    """FIN goes with END of the client and with the end of the server; nothing more is sent."""
    client, server = pair()
    call = Asked()
    client.open(call, None, last=False)
    call.send_message(b"one")
    call.send_message(b"two", END)

    assert [(1, DATA), (1, DATA), (1, LAST)] == [
        (one.number, one.action) for one in exchange(client, server)
    ]
    server.served[1].send_message(b"reply")
    server.served[1].finish(Ending(0))
    assert [(1, DATA), (1, LAST)] == [(one.number, one.action) for one in exchange(server, client)]
    assert [b"one", b"two"] == server.served[1].news
    assert [] == client.streams_to_send(1 << 20, 0.0)


def test_a_call_that_is_over_stops_its_client() -> None:
    """A server that ends first asks for no more; the client aborts its way and keeps the answer."""
    client, server = pair()
    call = Asked()
    client.open(call, b"first", last=False)
    exchange(client, server)
    server.served[1].reply(b"enough")
    sent = exchange(server, client)

    assert [(1, LAST), (1, STOP)] == [(one.number, one.action) for one in sent]
    assert [b"enough", 0] == call.news
    server.receive_stream(1, b"whatever was on its way", False, 0.0)
    server.receive_abort(1, 0.0)
    assert server.error is None
    assert {0} == set(server._partials)


def test_cancel_is_the_abort_of_the_stream() -> None:
    """A cancelled call aborts its stream at both sides; frames of it are ignored after."""
    client, server = pair()
    call = Asked()
    client.open(call, b"first", last=True)
    exchange(client, server)
    client.cancel(call, Ending(1))
    sent = exchange(client, server)

    assert [(1, ABORT)] == [(one.number, one.action) for one in sent]
    assert [b"first", 1] == server.served[1].news
    assert [(1, ABORT)] == [(one.number, one.action) for one in exchange(server, client)]
    assert client.error is server.error is None


def test_a_client_that_stops_reading_has_cancelled() -> None:
    """STOP_SENDING of a client ends the call as its abort does."""
    client, server = pair()
    client.open(Asked(), b"first", last=True)
    exchange(client, server)
    server.receive_stop(1, 0.0)

    assert 1 == server.served[1].news[-1]
    assert {} == server.calls


def test_open_after_goaway_that_was_on_its_way() -> None:
    """Calls up to GOAWAY's number are served even when they come after it; later ones are not."""
    server = greeted()
    server.receive_stream(3, opening(3), True, 0.0)
    server.drain(1.0)
    for number in (2, 4):
        server.receive_stream(number, opening(number), True, 0.0)

    assert [3, 2] == server.opened
    assert server.error is None


def test_every_cut_is_the_same() -> None:
    """A stream may be cut anywhere; two streams that are cut do not disturb each other."""
    whole = opening(1, b"hello") + b""
    for cut in range(1, len(whole)):
        server = greeted()
        server.receive_stream(1, whole[:cut], False, 0.0)
        server.receive_stream(2, opening(2, b"other"), True, 0.0)
        server.receive_stream(1, whole[cut:], True, 0.0)
        assert server.error is None
        assert [2, 1] == server.opened
        assert 0 == server._partial_bytes


def test_the_end_may_come_alone() -> None:
    """FIN may come after the last byte."""
    server = greeted()
    server.receive_stream(1, opening(1), False, 0.0)
    server.receive_stream(1, b"", True, 0.0)

    assert server.error is None
    assert {0} == set(server._partials)


@pytest.mark.parametrize(
    ("number", "data", "last"),
    [
        (1, encode_frame(MESSAGE, b"x", call_id=1), False),
        (1, opening(2), False),
        (1, opening(1, flags=0) + opening(1), False),
        (1, opening(1)[:-1], True),
        (1, opening(1, flags=WITH_MESSAGE), True),
        (1, encode_frame(PING, b"12345678"), False),
        (1, opening(1, flags=0) + encode_frame(CREDIT, CREDIT_BODY.pack(1), call_id=1), False),
        (0, opening(1), False),
        (0, encode_frame(MESSAGE, b"x", call_id=1), False),
        (0, b"", True),
        (0, encode_frame(HELLO, encode_hello(Hello(), WireLimits())), False),
        (1, b"\xff" * 64, False),
    ],
)
def test_what_ends_the_connection(number: int, data: bytes, last: bool) -> None:
    """Frames where they must not be, and ends where there must be none."""
    server = greeted()
    server.receive_stream(number, data, last, 0.0)

    assert isinstance(server.error, ProtocolViolation)
    assert server.closed


def test_nothing_before_hello() -> None:
    """A call's stream before HELLO ends the connection; so does an abort of the control stream."""
    server = Server()
    server.receive_stream(1, opening(1), True, 0.0)
    assert isinstance(server.error, ProtocolViolation)

    for abort in (StreamedServer.receive_abort, StreamedServer.receive_stop):
        other = greeted()
        abort(other, 0, 0.0)
        assert isinstance(other.error, ProtocolViolation)


def test_unfinished_frames_are_bounded_in_bytes_and_time() -> None:
    """Of all streams together, and each for ten seconds from its first byte."""
    limits = WireLimits(connection_credit_bytes=4 * KIB, frame_timeout_s=10.0)
    server = greeted(limits)
    long = opening(1, bytes(3 * KIB))
    server.receive_stream(1, long[: 3 * KIB], False, 1.0)
    assert server.error is None
    server.handle_timeout(10.9)
    assert server.error is None
    server.handle_timeout(11.1)
    errors: list[TidewireError | None] = [server.error]

    other = greeted(limits)
    other.receive_stream(1, long[: 3 * KIB], False, 1.0)
    other.receive_stream(2, long[: 3 * KIB], False, 1.0)
    errors.append(other.error)
    assert [PeerTooSlow, CreditExceeded] == [type(error) for error in errors]


def test_credit_travels_on_the_control_stream() -> None:
    """A reader that takes gives credit on stream 0, where nothing of the call can hold it up."""
    limits = WireLimits(call_credit_bytes=2 * KIB)
    server = greeted(limits)
    server.receive_stream(1, opening(1, flags=0), False, 0.0)
    for _ in range(2):
        message = encode_frame(MESSAGE, bytes(KIB), call_id=1)
        server.receive_stream(1, message, False, 0.0)
    sent = server.streams_to_send(1 << 20, 0.0)

    assert {0} == {one.number for one in sent if one.data[4] == CREDIT}
    assert server.error is None


def test_a_server_must_not_abort() -> None:
    """A stream that a server aborts while its call goes on ends the connection of the client."""
    client, server = pair()
    call = Asked()
    client.open(call, b"first", last=True)
    exchange(client, server)
    client.receive_abort(1, 0.0)

    assert isinstance(client.error, ProtocolViolation)
    assert 1 == len(call.news)
