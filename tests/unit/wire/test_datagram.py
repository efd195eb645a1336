"""Datagrams byte by byte, cookies, and what a server remembers of requests."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire.errors import ProtocolViolation
from tidewire.wire.bodies import ENDING_OK, Ending, Hello
from tidewire.wire.cookie import Commitment, Cookies, proves
from tidewire.wire.datagram import (
    GOAWAY,
    HEADER_BYTES,
    NO_PROOF,
    PING,
    REQUEST,
    RETRY,
    RETRY_BYTES,
    Answer,
    DatagramType,
    Greeting,
    decode_answer,
    decode_greeting,
    decode_oneway,
    decode_request,
    encode_answer,
    encode_datagram,
    encode_greeting,
    encode_oneway,
    parse_datagram,
)
from tidewire.wire.datagram_limits import DatagramLimits
from tidewire.wire.datagram_requests import (
    EndedSessions,
    KeptBytes,
    Requests,
    Sequences,
    Verdict,
)
from tidewire.wire.datagram_rtt import RoundTrip
from tidewire.wire.limits import WireLimits

GOLDEN = Path(__file__).parents[2] / "data" / "wire" / "datagrams"
FROM_SERVER = ("retry", "welcome", "response", "working", "opened", "deliver", "pong")


def golden(name: str) -> bytes:
    """Return a sample of the corpus."""
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text("ascii"))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.hex")), ids=lambda path: path.stem)
def test_samples_are_what_their_names_say(path: Path) -> None:
    """Every sample parses at its side, is made of its parts again, and is refused elsewhere."""
    data = golden(path.stem)
    from_client = not path.stem.startswith(FROM_SERVER)
    kind, flags, priority, session, number, body = parse_datagram(data, from_client=from_client)

    assert path.stem.startswith(("opened", DatagramType(kind).name.lower()))
    assert 0x0102030405060708 == session
    again = encode_datagram(kind, session, number, body, flags=flags, priority=priority)
    assert data == again
    if kind != GOAWAY:
        with pytest.raises(ProtocolViolation):
            parse_datagram(data, from_client=not from_client)


def test_a_request_has_the_fields_of_the_page() -> None:
    """Offsets and values of WIRE.md 9.3, by hand."""
    data = golden("request")

    assert b"tw\x01\x04\x00\x03\x00\x00" == data[:8]
    assert bytes(range(1, 9)) == data[8:16]
    assert (7).to_bytes(8, "big") == data[16:24]
    assert (30_000_000).to_bytes(8, "big") == data[24:32]
    asked = decode_request(data[HEADER_BYTES:])
    assert (30_000_000, 5, b"\x0a\x01k") == (asked.timeout_us, asked.floor, asked.message)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: HEADER_BYTES - 1],
        lambda data: b"tv" + data[2:],
        lambda data: data[:2] + b"\x02" + data[3:],
        lambda data: data[:3] + b"\x0e" + data[4:],
        lambda data: data[:4] + b"\x02" + data[5:],
        lambda data: data[:5] + b"\x0a" + data[6:],
        lambda data: data[:7] + b"\x01" + data[8:],
        lambda data: data[:8] + bytes(8) + data[16:],
    ],
    ids=["short", "magic", "version", "type", "flags", "priority", "reserved", "session"],
)
def test_each_field_is_judged(change: object) -> None:
    """One wrong field is enough; the control is the datagram as it was."""
    data = golden("request")
    assert REQUEST == parse_datagram(data, from_client=True)[0]

    with pytest.raises(ProtocolViolation):
        parse_datagram(change(data), from_client=True)  # type: ignore[operator]  # a function


def test_bodies_of_one_size_have_that_size() -> None:
    """A PING with a byte more or less is refused."""
    for size in (23, 25):
        with pytest.raises(ProtocolViolation):
            parse_datagram(encode_datagram(PING, 1, 1, bytes(size)), from_client=True)


@given(st.binary(max_size=200), st.binary(max_size=300))
def test_a_oneway_survives(head: bytes, message: bytes) -> None:
    """Head and message come out as they went in."""
    asked = decode_oneway(encode_oneway(head, message))

    assert (head, message) == (asked.head, asked.message)


@given(
    st.one_of(st.none(), st.binary(max_size=100)),
    st.booleans(),
    st.sampled_from([ENDING_OK, Ending(5, "not there"), Ending(0, "", b"", (("k", "v"),))]),
)
def test_an_answer_survives(message: bytes | None, with_headers: bool, ending: Ending) -> None:
    """Message, initial metadata and status come out as they went in."""
    answer = Answer(ending, (("a", "b"),) if with_headers else None, message)

    assert answer == decode_answer(*encode_answer(answer))


@given(st.binary(min_size=16, max_size=16), st.sampled_from([b"", bytes(range(24))]))
def test_a_greeting_survives(proof: bytes, cookie: bytes) -> None:
    """Cookie, proof, commitment and Hello come out as they went in."""
    greeting = Greeting(cookie, proof, bytes(32), Hello(agent="a"))

    got = decode_greeting(encode_greeting(greeting, WireLimits()))

    assert (cookie, proof, bytes(32), "a") == (*got[:3], got.hello.agent)


def test_retry_is_not_longer_than_what_it_answers() -> None:
    """The shortest HELLO is longer than a RETRY, so nothing is amplified."""
    hello = encode_greeting(Greeting(b"", NO_PROOF, bytes(32), Hello()), WireLimits())

    assert RETRY_BYTES == len(encode_datagram(RETRY, 1, 1, bytes(24)))
    assert RETRY_BYTES <= HEADER_BYTES + len(hello)


def test_cookies_are_for_one_address_and_some_time() -> None:
    """A cookie holds for its address and 30 s: not for another, later, or with a bit changed."""
    cookies = Cookies(30.0)
    cookie = cookies.make(b"a", 100.0)

    assert cookies.check(cookie, b"a", 129.0)
    assert not cookies.check(cookie, b"b", 101.0)
    assert not cookies.check(cookie, b"a", 131.0)
    assert not cookies.check(cookie, b"a", 99.0)
    assert not Cookies(30.0).check(cookie, b"a", 101.0)
    for index in range(len(cookie)):
        changed = bytearray(cookie)
        changed[index] ^= 1
        assert not cookies.check(bytes(changed), b"a", 101.0)


def test_a_session_that_ended_is_remembered_as_long_as_its_cookie() -> None:
    """Not longer than 30 s; of too many the oldest goes, and the cookies of its time with it."""
    cookies = Cookies(30.0)
    ended = EndedSessions(DatagramLimits(cookie_life_s=30.0, ended_max=2), cookies)
    early, late = cookies.make(b"a", 100.0), cookies.make(b"a", 102.5)
    ended.add(1, 102.0)
    ended.add(2, 103.0)

    assert cookies.check(early, b"a", 104.0)
    ended.add(3, 104.0)
    assert [False, True, True] == [session in ended for session in (1, 2, 3)]
    assert not cookies.check(early, b"a", 104.0)
    assert cookies.check(late, b"a", 104.0)
    ended.add(4, 140.0)
    assert 1 == len(ended)
    assert cookies.check(cookies.make(b"a", 139.0), b"a", 140.0)


def test_only_the_proof_proves() -> None:
    """What was committed to is proved by its proof and by nothing else."""
    commitment = Commitment()

    assert proves(commitment.proof, commitment.value)
    assert not proves(NO_PROOF, commitment.value)


def remembering(**limits: int) -> tuple[Requests, KeptBytes]:
    """Return an empty memory with small bounds."""
    kept = KeptBytes(1 << 20)
    return Requests(DatagramLimits(**limits), kept), kept


def test_a_request_goes_through_its_states() -> None:
    """New, running, answered, settled; it is new only once."""
    requests, kept = remembering()

    assert Verdict.NEW is requests.judge(1)
    requests.begin(1)
    assert Verdict.RUNNING is requests.judge(1)
    requests.answer(1, 1, b"x", 0.0)
    assert Verdict.ANSWERED is requests.judge(1)
    assert b"x" == requests.kept(1).response
    assert [] == requests.raise_floor(2)
    assert Verdict.SETTLED is requests.judge(1)
    assert 0 == kept.used


def test_what_was_dropped_is_never_new() -> None:
    """Beyond its bounds the memory forgets answers, oldest first, and refuses their ids."""
    requests, kept = remembering(kept_max=10)
    for number in range(1, 31):
        requests.begin(number)
        requests.answer(number, 1, b"x", float(number))

    verdicts = [requests.judge(number) for number in range(1, 32)]

    assert [Verdict.FORGOTTEN] * 20 + [Verdict.ANSWERED] * 10 + [Verdict.NEW] == verdicts
    assert kept.used == 10 * requests.kept(30).cost_bytes
    requests.clear()
    assert 0 == kept.used


@pytest.mark.parametrize("bound", ["session", "listener", "time"])
def test_each_bound_of_the_memory(bound: str) -> None:
    """Bytes of the session, bytes of all sessions and time each make it forget."""
    requests, kept = remembering(kept_bytes_max=1_000 if bound == "session" else 1 << 20)
    if bound == "listener":
        kept.bytes_max = 1_000
    for number in range(1, 6):
        requests.begin(number)
        requests.answer(number, 1, bytes(300), 100.0 * number if bound == "time" else 0.0)

    assert Verdict.FORGOTTEN is requests.judge(1)
    assert Verdict.ANSWERED is requests.judge(5)


def test_the_floor_names_what_still_runs_below_it() -> None:
    """Requests nobody wants any more are named, so that their handlers can be cancelled."""
    requests, _ = remembering()
    for number in (1, 2, 3):
        requests.begin(number)

    assert [1, 2] == sorted(requests.raise_floor(3))
    assert [] == requests.raise_floor(3)


@given(st.lists(st.integers(min_value=1, max_value=60), max_size=100))
def test_a_sequence_is_taken_once(sequences: list[int]) -> None:
    """However they come, each is taken once, and what is missing is counted."""
    window = Sequences(64)

    taken = [each for each in sequences if window.take(each)]

    assert len(set(sequences)) == len(taken) == window.taken
    assert max(sequences, default=0) - len(taken) == window.missing


def test_a_sequence_that_comes_too_late_is_refused() -> None:
    """Behind the window nothing is taken: it cannot be known whether it was."""
    window = Sequences(8)
    assert window.take(100)

    assert window.take(93)
    assert not window.take(92)
    assert not window.take(93)


def test_the_timeout_follows_the_round_trip() -> None:
    """RFC 6298: the first sample, its variation, and the bounds."""
    rtt = RoundTrip(0.2, 0.05, 1.0)
    assert 0.2 == rtt.timeout_s

    rtt.sample(0.1)
    assert pytest.approx(0.1 + 4 * 0.05) == rtt.timeout_s
    for _ in range(100):
        rtt.sample(0.001)
    assert 0.05 == rtt.timeout_s
    assert [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0] == [
        pytest.approx(rtt.backed_off_s(sends)) for sends in range(1, 8)
    ]
