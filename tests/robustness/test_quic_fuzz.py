"""Any datagram at all: at a QUIC listener, and at a connection whose handshake is not done."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.authority import Authority
from support.quic import initial
from tidewire.transport.quic.listener import destination, quic_settings
from tidewire.transport.quic.over_aioquic import BACKEND
from tidewire.transport.quic.tokens import AddressTokens, ResetKey, TokenRefused
from tidewire.transport.tls import ALPN, ServerTls
from tidewire.wire.limits import WireLimits


class _Session:
    """Hears what a session says."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


_FIRST = st.one_of(
    st.binary(max_size=1_500),
    st.builds(
        lambda head, rest: head + rest,
        st.sampled_from([b"\xc0", b"\xe0", b"\x40"]),
        st.binary(min_size=1_200, max_size=1_500),
    ),
    st.builds(
        lambda cut, place, byte: _flip(initial(), cut, place, byte),
        st.integers(0, 1_200),
        st.integers(0, 60),
        st.integers(0, 255),
    ),
)


def _flip(data: bytes, cut: int, place: int, byte: int) -> bytes:
    changed = bytearray(data)
    changed[place] = byte
    return bytes(changed[: max(cut, place + 1)])


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    """Certificates of a server."""
    authority = Authority(tmp_path_factory.mktemp("fuzz"))
    return ServerTls(authority.config(authority.issue("server")))


@pytest.fixture(scope="module")
def judge(server_tls: ServerTls) -> Any:
    """What judges first datagrams."""
    made = quic_settings(WireLimits(), alpn=(ALPN,), whole=False, files=server_tls.config.read())
    return BACKEND.server(made)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=_FIRST)
def test_any_first_datagram_is_judged(judge: Any, data: bytes) -> None:
    """Nothing is raised, nothing is kept without a token, and no answer is three times as long."""
    assert len(destination(data)) <= 255
    answer = judge.begin(data, ("127.0.0.1", 5), 1.0)

    assert answer is None or (isinstance(answer, bytes) and len(answer) <= 3 * len(data))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.lists(_FIRST, min_size=1, max_size=4))
def test_any_datagram_of_a_connection(judge: Any, data: list[bytes]) -> None:
    """A connection takes any datagrams without an error, and stays usable or ends."""
    address = ("127.0.0.1", 5)
    retry = judge.begin(initial(), address, 1.0)
    chosen, token = retry[15:23], retry[23:-16]
    first = initial(token)
    session = judge.begin(first[:6] + chosen + first[14:], address, 1.0)
    for one in data:
        session.receive(one, address, 1.0)
        session.deliver(_Session())
        sent = sum(len(each) for each, _ in session.datagrams(1.0))
        assert sent <= 20_000
    assert session.wake_s() >= 0


def test_tokens() -> None:
    """A token proves the address it is for, for as long as it is good, and nothing else."""
    made, now_s = AddressTokens(), 1_000.0
    here, there = ("10.0.0.1", 5), ("10.0.0.2", 5)
    retry = made.for_retry(here, b"original", b"chosen!!", now_s)
    later = made.for_later(here, now_s)

    assert (b"original", b"chosen!!") == made.open(retry, here, b"chosen!!", now_s + 29)
    assert (b"anything", None) == made.open(later, ("10.0.0.1", 9), b"anything", now_s + 3_600)
    for token, address, at_s in (
        (retry, there, now_s),
        (later, there, now_s),
        (later, here, now_s + 25 * 3_600),
        (retry[:-1], here, now_s),
        (b"", here, now_s),
        (bytes(60), here, now_s),
    ):
        assert made.open(token, address, b"chosen!!", at_s) is None
    for used, at_s in ((b"another!", now_s), (b"chosen!!", now_s + 31)):
        with pytest.raises(TokenRefused):
            made.open(retry, here, used, at_s)
    assert AddressTokens().open(later, here, b"anything", now_s) is None


def test_resets_are_shorter_than_what_they_answer() -> None:
    """Two servers that reset each other come to an end; and only the key makes the token."""
    key = ResetKey(b"secret")
    data = b"\x40" + os.urandom(1_199)
    lengths = []
    while (answer := key.answer(data)) is not None:
        assert len(answer) < len(data)
        assert key.token(data[1:9]) == answer[-16:]
        assert ResetKey(b"other").token(data[1:9]) != answer[-16:]
        lengths.append(len(answer))
        data = answer
    assert len(lengths) < 30
