"""A client's session by hand: what it sends when, and what it makes of what comes."""

import random
from typing import Any

import pytest

from tidewire.errors import MessageTooLarge, PeerVanished, TidewireError, WireUnsuitable
from tidewire.wire.bodies import ENDING_OK, Goaway, Hello, PeerLimits, encode_head, encode_hello
from tidewire.wire.datagram import (
    CANCEL,
    DELIVER,
    DELIVER_PREFIX,
    HELLO,
    LOSSY,
    MOVE,
    OPENED,
    PING,
    PLAIN,
    POLL,
    POSITION,
    REQUEST,
    RESPONSE,
    RETRY,
    WELCOME,
    WORKING,
    Answer,
    decode_greeting,
    decode_request,
    encode_datagram,
    parse_datagram,
)
from tidewire.wire.datagram_asking import Asking
from tidewire.wire.datagram_client import ClientSession
from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.limits import WireLimits

HEAD = encode_head("/a.B/C")
COOKIE = bytes(range(24))
STEADY = DatagramLimits(retry_jitter=0.0)
BODY = encode_hello(Hello(limits=PeerLimits()), WireLimits(frame_bytes_max=1_200, calls_max=100))


class Client:
    """A session, and everything it told."""

    def __init__(self, limits: DatagramLimits = STEADY) -> None:
        self.news: list[tuple[str, Any]] = []
        self.now_s = 0.0
        self.session = ClientSession(self, Hello(), WireLimits(), limits, 0.0, seed=1)

    def welcomed(self, hello: Hello) -> None:
        self.news.append(("welcomed", hello.agent))

    def answered(self, asking: Asking, answer: Answer) -> None:
        self.news.append((f"answered {asking.call}", answer.message))

    def failed(self, asking: Asking, error: TidewireError) -> None:
        self.news.append((f"failed {asking.call}", type(error)))

    def expired(self, asking: Asking) -> None:
        self.news.append((f"expired {asking.call}", None))
        self.session.cancel(asking, self.now_s)

    def delivered(self, asking: Asking, message: bytes, weight: int) -> None:
        self.news.append(("delivered", (message, weight)))

    def missed(self, asking: Asking, messages: int) -> None:
        self.news.append(("missed", messages))

    def ponged(self) -> None:
        self.news.append(("ponged", None))

    def going(self, goaway: Goaway) -> None:
        self.news.append(("going", goaway.grace_s))

    def ended(self, error: TidewireError) -> None:
        self.news.append(("ended", type(error)))

    def out(self) -> list[tuple[int, int, bytes]]:
        """Take what it sends: type, number, body."""
        taken, self.session.out = self.session.out, []
        parsed = [parse_datagram(each, from_client=True) for each in taken]
        return [(kind, number, body) for kind, _, _, _, number, body in parsed]

    def kinds(self) -> list[int]:
        """Take what it sends: types only."""
        return [each[0] for each in self.out()]

    def receive(self, kind: int, number: int, body: bytes = b"", flags: int = 0) -> None:
        """Hand it a datagram of the server."""
        data = encode_datagram(kind, self.session.session, number, body, flags=flags)
        self.session.receive(data, self.now_s)

    def run_to(self, now_s: float) -> list[tuple[float, int]]:
        """Let time pass; return when it sent what."""
        sent: list[tuple[float, int]] = []
        while self.session.wake_s <= now_s:
            self.now_s = self.session.wake_s
            self.session.handle_timeout(self.now_s)
            sent += [(round(self.now_s, 3), kind) for kind in self.kinds()]
        self.now_s = now_s
        return sent

    def ask(self, name: str, message: bytes = b"x", *, flags: int = 0, **more: Any) -> Asking:
        """Make a request."""
        asking = Asking(name, HEAD, message, more.get("priority", 5), more.get("deadline_s"))
        asking.flags = flags
        self.session.request(asking, self.now_s)
        return asking


@pytest.fixture
def client() -> Client:
    """A client whose session is there."""
    it = Client()
    it.out()
    it.receive(RETRY, 1, COOKIE)
    ((kind, number, body),) = it.out()
    assert (HELLO, COOKIE) == (kind, decode_greeting(body).cookie)
    it.receive(WELCOME, number, BODY)
    assert ("welcomed", "") == it.news.pop()
    return it


def test_hello_is_sent_until_it_is_answered() -> None:
    """The waits double up to a second."""
    client = Client()
    client.out()

    assert [(0.2, HELLO), (0.6, HELLO), (1.4, HELLO), (2.4, HELLO)] == client.run_to(3.0)


def test_a_request_is_sent_again_with_growing_waits(client: Client) -> None:
    """The same id each time, and at last it is given up, typed."""
    client.ask("a")
    ((kind, number, body),) = client.out()
    times = [0.2, 0.6, 1.4, 2.4, 3.4]

    assert (REQUEST, 1, b"x") == (kind, number, decode_request(body).message)
    assert [(at, REQUEST) for at in times] == client.run_to(3.5)
    client.run_to(60.0)
    assert ("ended", PeerVanished) in client.news


def test_a_request_that_stays_unanswered_is_given_up_alone(client: Client) -> None:
    """When others are answered only this one fails, after so many times."""
    client.ask("a")
    for _ in range(40):
        client.run_to(client.now_s + 1.0)
        client.receive(WORKING, 99, bytes(8))

    assert [("failed a", PeerVanished)] == client.news


def test_waits_are_spread() -> None:
    """Clients that began together do not send again together."""
    rng = random.Random(0)
    first = {round(wait_of(rng.randrange(1 << 30)), 6) for _ in range(50)}

    assert len(first) > 40
    assert 0.15 <= min(first) < max(first) <= 0.25


def wait_of(seed: int) -> float:
    """Return when a session with a seed sends its HELLO again."""
    session = ClientSession(Client(), Hello(), WireLimits(), DatagramLimits(), 0.0, seed)
    return session.wake_s


def test_an_answer_ends_it_and_repeats_are_nothing(client: Client) -> None:
    """The first answer counts."""
    client.ask("a")
    client.receive(RESPONSE, 1, b"one", PLAIN)
    client.receive(RESPONSE, 1, b"two", PLAIN)

    assert [("answered a", b"one")] == client.news
    assert {} == client.session.asking


def test_karn_takes_no_sample_of_what_was_sent_again(client: Client) -> None:
    """An answer after a repeat may be to either, so it says nothing about the round trip."""
    client.ask("a")
    client.run_to(0.3)
    client.receive(RESPONSE, 1, b"", PLAIN)
    client.ask("b")
    client.out()

    assert 0.2 == pytest.approx(client.session.wake_s - client.now_s)


def test_work_in_progress_is_polled_for(client: Client) -> None:
    """After WORKING the request itself is not sent any more; polls slow down to 2 s."""
    client.ask("a")
    client.out()
    client.run_to(0.25)
    client.receive(WORKING, 1, bytes(8))

    sent = client.run_to(5.0)

    assert {POLL} == {kind for _, kind in sent}
    assert [0.75, 1.5, 2.625, 4.312] == [at for at, _ in sent]
    client.receive(RESPONSE, 1, b"late", PLAIN)
    assert [("answered a", b"late")] == client.news


def test_the_floor_follows_the_oldest_request(client: Client) -> None:
    """Every request says below which id nothing is wanted any more."""
    for name in "abc":
        client.ask(name)
    floors = [decode_request(body).floor for _, _, body in client.out()]
    client.receive(RESPONSE, 1, b"", PLAIN)
    client.receive(RESPONSE, 2, b"", PLAIN)
    client.ask("d")

    assert [1, 1, 1] == floors
    assert [3] == [decode_request(body).floor for _, _, body in client.out()]


def test_the_window_bounds_what_is_on_its_way(client: Client) -> None:
    """The rest waits, urgent ones first, and follows as answers come."""
    for index in range(64):
        client.ask(str(index))
    client.ask("later", priority=6)
    client.ask("urgent", priority=0)
    assert 64 == len(client.out())
    client.receive(RESPONSE, 1, b"", PLAIN)

    assert ["urgent"] == [client.session.asking[number].call for _, number, _ in client.out()]


def test_loss_halves_the_window_once_a_round_trip(client: Client) -> None:
    """Many losses at once are one sign of a path that is full."""
    for index in range(10):
        client.ask(str(index))
    client.now_s = 0.2
    client.session.handle_timeout(0.2)

    assert 32 == client.session.window.size


def test_a_deadline_ends_it_and_cancels(client: Client) -> None:
    """At its deadline a request is given up here and CANCEL goes out, a few times."""
    client.ask("a", deadline_s=0.1)
    client.out()

    sent = client.run_to(10.0)

    assert [("expired a", None)] == client.news
    assert [CANCEL] * 4 == [kind for _, kind in sent]


def test_a_cancel_that_is_answered_stops(client: Client) -> None:
    """The answer to CANCEL is that nothing runs any more."""
    asking = client.ask("a")
    client.out()
    client.session.cancel(asking, 0.0)
    assert [CANCEL] == client.kinds()
    client.receive(RESPONSE, 1, b"", PLAIN)

    assert [] == client.run_to(5.0)
    assert [] == client.news


def test_what_does_not_fit_is_refused_before_it_is_sent(client: Client) -> None:
    """With both figures."""
    with pytest.raises(MessageTooLarge) as caught:
        client.ask("a", bytes(1_200))

    assert 1_200 == caught.value.figure("limit_bytes")
    assert [] == client.out()


def test_a_path_that_carries_less_is_told_apart() -> None:
    """Long requests that vanish while PINGs are answered say that it is the path."""
    client = Client(DatagramLimits(retry_jitter=0.0, datagram_bytes=9_000))
    client.out()
    body = encode_hello(Hello(), WireLimits(frame_bytes_max=9_000))
    client.receive(WELCOME, 1, body)
    client.ask("a", bytes(5_000))
    for _ in range(20):
        sent = client.run_to(client.now_s + 1.0)
        if PING in [kind for _, kind in sent]:
            client.receive(WORKING, 99, bytes(8))

    assert ("failed a", WireUnsuitable) in client.news


def test_a_new_address_is_proved_and_requests_go_again(client: Client) -> None:
    """RETRY within a session is answered by HELLO with MOVE and the proof of the commitment."""
    client.ask("a")
    client.out()
    client.now_s = 0.5
    client.receive(RETRY, 1, COOKIE[::-1])
    client.receive(RETRY, 1, bytes(24))
    ((kind, number, body),) = client.out()
    greeting = decode_greeting(body)
    client.receive(WELCOME, number, BODY, MOVE)

    assert HELLO == kind
    assert COOKIE[::-1] == greeting.cookie
    assert any(greeting.proof)
    assert [REQUEST] == client.kinds()


def test_gaps_of_a_lossy_stream_are_counted(client: Client) -> None:
    """Positions say what is missing; what comes late was counted and is dropped."""
    client.ask("a", flags=LOSSY)
    client.receive(RESPONSE, 1, POSITION.pack(0) + b"first", OPENED)
    for position, weight in ((0, 2), (5, 1), (2, 3), (6, 1)):
        client.receive(DELIVER, 1, DELIVER_PREFIX.pack(position, weight) + b"m")
    client.receive(WORKING, 1, POSITION.pack(10))

    assert [
        ("delivered", (b"first", 0)),
        ("delivered", (b"m", 2)),
        ("missed", 3),
        ("delivered", (b"m", 1)),
        ("delivered", (b"m", 1)),
        ("missed", 3),
    ] == client.news
    assert 1 == client.session.refused["late"]


def test_a_lossy_stream_nobody_renews_ends(client: Client) -> None:
    """It asks every 3 s, and gives up when nothing came for 10 s."""
    client.ask("a", flags=LOSSY)
    client.receive(RESPONSE, 1, POSITION.pack(0) + b"first", OPENED)
    client.out()

    assert [3.0, 6.0, 9.0] == [at for at, kind in client.run_to(9.5) if kind == POLL]
    client.run_to(30.0)
    assert ("failed a", PeerVanished) in client.news


def test_a_silent_server_is_pinged_and_left() -> None:
    """After the keepalive PINGs go out; 10 s later the session is over."""
    client = Client()
    client.out()
    client.receive(WELCOME, 1, BODY)

    sent = client.run_to(60.0)

    assert 30.0 == sent[0][0]
    assert {PING} == {kind for _, kind in sent}
    assert [("welcomed", ""), ("ended", PeerVanished)] == client.news


def test_closing_says_goodbye(client: Client) -> None:
    """GOAWAY is the last datagram; nothing is taken after it."""
    client.session.close()
    client.receive(RESPONSE, 1, b"", PLAIN)

    assert 1 == len(client.session.out)
    assert [] == client.news
    assert ENDING_OK.code == 0
