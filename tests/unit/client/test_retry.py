"""Requests are tried again only when that is safe, in time, and within a budget."""

import contextlib
import random
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewire import errors
from tidewire.client.retry import RetryBudget, RetryPolicy, may_reopen, may_repeat
from tidewire.client.session import ClientOptions, Session
from tidewire.client.translate import translate
from tidewire.errors import (
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    MethodNotFound,
    NoResponders,
    Overloaded,
    RevisionMismatch,
    TidewireError,
)


def rpc_error(
    code: grpc.StatusCode, details: str = "", trailing: tuple[tuple[str, bytes], ...] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=details
    )


def typed(error: TidewireError) -> grpc.aio.AioRpcError:
    code = next(code for code in grpc.StatusCode if code.value[0] == error.code)
    trailer = (errors.STATUS_TRAILER, error.to_status().SerializeToString())
    return rpc_error(code, error.message, (trailer,))


@given(st.integers(1, 100), st.integers(0, 2**32))
def test_waits_are_bounded(attempt: int, seed: int) -> None:
    """Every wait is its step and up to half of it more; steps double up to the limit."""
    policy = RetryPolicy(delay_first_s=0.1, delay_s_max=5.0)

    delay_s = policy.delay_s(attempt, random.Random(seed))

    step_s = min(5.0 / 1.5, 0.1 * 2 ** (attempt - 1))
    assert step_s <= delay_s <= 1.5 * step_s + 1e-9
    assert delay_s <= 5.0 + 1e-9


def test_the_budget_is_a_share_of_the_requests() -> None:
    """When everything fails, retries stay at the ratio once the savings are spent."""
    budget = RetryBudget(RetryPolicy(budget_ratio=0.1, budget_burst=10))
    retries = 0
    for _ in range(1_000):
        budget.request_made()
        retries += budget.take()

    assert 100 <= retries <= 110


REPEATS = [
    (ConnectionLost("x"), True, False),
    (Draining("x"), True, True),
    (NoResponders("x"), False, False),
    (Overloaded("x"), True, True),
    (errors.Cancelled("x"), True, False),
    (RevisionMismatch("x"), False, False),
    (DeadlineExceeded("x"), False, False),
    (errors.TlsFailed("x"), False, False),
    (errors.DataLoss("x"), False, False),
    (errors.OutcomeUnknown("x"), False, False),
]


@pytest.mark.parametrize(("error", "repeatable", "other"), REPEATS, ids=str)
def test_only_what_is_safe_is_repeated(error: TidewireError, repeatable: bool, other: bool) -> None:
    """What may have been done is only repeated when the request carries an id or only reads."""
    assert repeatable == may_repeat(error, repeatable=True)
    assert other == may_repeat(error, repeatable=False)


def test_streams_do_not_outlive_what_will_not_change() -> None:
    """A stream is opened again after a break, not after a refusal."""
    for error in (ConnectionLost("x"), Draining("x"), errors.SlowConsumer("x")):
        assert may_reopen(error)
    for refusal in (
        errors.StreamNotFound("x"),
        errors.PermissionDenied("x"),
        errors.TlsFailed("x"),
        errors.AttendanceTaken("x"),
        errors.ProtocolViolation("x"),
    ):
        assert not may_reopen(refusal)


def test_errors_are_translated_with_their_details() -> None:
    """The class, the figures and the hint of the server's error arrive."""
    sent = RevisionMismatch("at 7", metadata={"actual_revision": 7}, retry_after_s=1.5)

    got = translate(typed(sent))

    assert isinstance(got, RevisionMismatch)
    assert (7, 1.5, "at 7") == (got.figure("actual_revision"), got.retry_after_s, got.message)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, ConnectionLost),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, MethodNotFound),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.UNKNOWN, errors.Unknown),
    ],
)
def test_errors_without_details_get_a_class(
    code: grpc.StatusCode, expected: type[TidewireError]
) -> None:
    """What the wire reports by itself is one of our exceptions too; broken details do no harm."""
    assert expected is type(translate(rpc_error(code, "plain")))
    broken = rpc_error(code, "plain", ((errors.STATUS_TRAILER, b"\xff\xff"),))
    assert expected is type(translate(broken))


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class Method:
    """A method that fails as it is told, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.timeouts: list[float] = []

    async def __call__(self, request: Any, *, timeout: float, metadata: Any) -> str:
        self.timeouts.append(timeout)
        if self.failures:
            raise self.failures.pop(0)
        return f"answer to {request}"


def session(clock: Clock, **policy: Any) -> Session:
    channel: Any = object()
    made = Session(channel, ClientOptions(timeout_s=10.0, retry=RetryPolicy(**policy)))
    made.clock, made.sleep = clock, clock.sleep
    return made


async def test_a_request_survives_a_break() -> None:
    """A request is tried again, and all tries share its deadline."""
    clock = Clock()
    lost = rpc_error(grpc.StatusCode.UNAVAILABLE, "reset")
    method = Method(lost, lost)

    answer = await session(clock, attempts_max=3).unary(method, "x")

    assert "answer to x" == answer
    assert 2 == len(clock.slept)
    assert [10.0, 10.0 - clock.slept[0], 10.0 - sum(clock.slept)] == method.timeouts


async def test_the_schedule() -> None:
    """Three tries by default: at once, after 100 to 150 ms, after 200 to 300 ms."""
    clock = Clock()
    method = Method(*[rpc_error(grpc.StatusCode.UNAVAILABLE)] * 5)
    made = session(clock)
    made.random = random.Random(7)
    with pytest.raises(ConnectionLost):
        await made.unary(method, "x")

    source = random.Random(7)
    expected = [0.1 + 0.05 * source.random(), 0.2 + 0.1 * source.random()]
    assert pytest.approx(expected) == clock.slept
    assert 3 == len(method.timeouts)


async def test_a_dead_server_is_not_buried() -> None:
    """Of 10,000 requests that all fail, no more than a tenth is sent again, beside the savings."""
    made = session(Clock())
    dead = Method(*[rpc_error(grpc.StatusCode.UNAVAILABLE)] * 20_000)
    for _ in range(10_000):
        with contextlib.suppress(ConnectionLost):
            await made.unary(dead, "x")

    assert 10_000 < len(dead.timeouts) <= 11_010


class Suspected:
    """A channel that counts doubts."""

    doubts = 0

    def suspect(self) -> None:
        self.doubts += 1


@pytest.mark.parametrize(
    ("failures", "doubts"),
    [
        ([grpc.StatusCode.UNAVAILABLE] * 2, 0),
        ([grpc.StatusCode.UNAVAILABLE] * 3, 1),
        ([grpc.StatusCode.DEADLINE_EXCEEDED], 1),
        ([grpc.StatusCode.NOT_FOUND], 0),
    ],
    ids=str,
)
async def test_a_server_is_suspected_when_the_tries_are_used_up(
    failures: list[grpc.StatusCode], doubts: int
) -> None:
    """Not before, and not for an answer that came."""
    channel = Suspected()
    clock = Clock()
    made = Session(channel, ClientOptions())  # type: ignore[arg-type]
    made.clock, made.sleep = clock, clock.sleep
    with contextlib.suppress(TidewireError):
        await made.unary(Method(*map(rpc_error, failures)), "x")

    assert doubts == channel.doubts


async def test_what_no_server_has_seen_is_always_repeated() -> None:
    """A request without an id may be sent again when it never left."""
    unsent = typed(ConnectionLost("refused", metadata={"sent": "no"}))
    method = Method(unsent, unsent)
    await session(Clock()).unary(method, "x", repeatable=False)

    assert 3 == len(method.timeouts)


async def test_tries_are_counted() -> None:
    """After the last try the caller hears of the problem."""
    method = Method(*[rpc_error(grpc.StatusCode.UNAVAILABLE)] * 5)

    with pytest.raises(ConnectionLost):
        await session(Clock(), attempts_max=3).unary(method, "x")

    assert 3 == len(method.timeouts)


async def test_what_may_have_been_done_is_not_repeated() -> None:
    """A request without an id is tried once; control: the same one with an id twice."""
    once = Method(rpc_error(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(ConnectionLost):
        await session(Clock()).unary(once, "x", repeatable=False)
    twice = Method(rpc_error(grpc.StatusCode.UNAVAILABLE))
    await session(Clock()).unary(twice, "x", repeatable=True)

    assert (1, 2) == (len(once.timeouts), len(twice.timeouts))


async def test_the_hint_of_the_server_is_waited_for() -> None:
    """A refusal that says when to come back is obeyed, unless the deadline comes first."""
    clock = Clock()
    method = Method(typed(Overloaded("busy", retry_after_s=2.0)))

    await session(clock).unary(method, "x")

    assert 2.0 <= sum(clock.slept)
    late = Method(typed(Overloaded("busy", retry_after_s=20.0)))
    with pytest.raises(Overloaded):
        await session(Clock()).unary(late, "x")


async def test_a_closed_client_takes_no_calls() -> None:
    """After close every request fails at once."""
    made = session(Clock())
    await made.close()

    with pytest.raises(ConnectionLost, match="closed"):
        await made.unary(Method(), "x")
