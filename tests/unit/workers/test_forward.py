"""Calls through a worker are the calls they were: the kit's behaviours, bounds, and bad ends."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
import pytest

from support.forwarding import forwarding, maker
from support.wires import ENCRYPTED
from tidewire.testing import ABILITIES, BEHAVIOURS, Outcome, check_transport
from tidewire.testing.echo import INDEX, SERVICE, Echo
from tidewire.transport import channel
from tidewire_server.workers.channel import CALL_WINDOW_BYTES_MAX, UNREAD_BYTES_MAX
from tidewire_server.workers.forward import Shape

LIMIT_S: Final = 20.0
KNOWN: Final[dict[str, Shape]] = {
    f"/{SERVICE}/{method}": (False, False)
    for method in ("Say", "Hold", "Fail", "Crash", "Metadata", "Remaining", "Who")
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("wire", ["tcp", "tls", "ws", "wss"])
@pytest.mark.parametrize("shapes", [KNOWN, {}], ids=["known", "unknown"])
async def test_every_wire_conforms_through_a_worker(wire: str, shapes: dict[str, Shape]) -> None:
    """Whether the worker knows what shape a call has, or hands it on as a stream."""
    report = await check_transport(
        f"{wire}://127.0.0.1:0", server=maker(shapes), carries=set(ABILITIES)
    )

    assert [] == [(result.behaviour, result.why) for result in report.failures]
    assert [behaviour.name for behaviour in BEHAVIOURS] == [r.behaviour for r in report.results]
    unsuitable = [r.behaviour for r in report.results if r.outcome is Outcome.UNSUITABLE]
    assert (wire not in ENCRYPTED) == bool(unsuitable)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds, within the limit."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (it tells nobody)
            await asyncio.sleep(0.01)


def method(it: Any, name: str) -> Any:
    """A unary method of the echo through a worker."""
    return it.unary_unary(f"/{SERVICE}/{name}")


async def stalled_streams_stop_others(unread_bytes_max: int, patch: pytest.MonkeyPatch) -> bool:
    """Let 40 streams be written to a client that reads none; whether another client waits."""
    patch.setattr("tidewire_server.workers.channel.CONNECTION_CREDIT_BYTES", 1 << 20)
    patch.setattr("tidewire_server.workers.channel.UNREAD_BYTES_MAX", unread_bytes_max)
    async with forwarding(Echo().handlers(), KNOWN) as it:
        url = it.server.listen("tcp://127.0.0.1:0").url.text
        async with channel(url) as lazy, channel(url) as other:
            request = INDEX.pack(1 << 20, 16 << 10)
            start: Any = lazy.unary_stream(f"/{SERVICE}/Repeat")
            streams = [start(request) for _ in range(40)]
            await asyncio.gather(*(stream.initial_metadata() for stream in streams))
            link = it.channel.link
            before = -1
            while before != link.unread_bytes:
                before = link.unread_bytes
                await asyncio.sleep(0.5)
            assert 40 * (CALL_WINDOW_BYTES_MAX + (1 << 20)) > before
            call = method(other, "Say")(b"x" * 65_536, timeout=3)
            code = await call.code()
            for stream in streams:
                stream.cancel()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
    return bool(code is grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_clients_that_do_not_read_stop_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What they leave in the worker is bounded for each call, and the calls of others go by. Control:
    with a small bound on what all of them leave together, the others wait.
    """
    assert not await stalled_streams_stop_others(UNREAD_BYTES_MAX, monkeypatch)
    assert await stalled_streams_stop_others(1 << 20, monkeypatch)


async def test_calls_leave_nothing_behind() -> None:
    """After 4,000 calls that were answered, refused, cancelled or late: no call, no task."""
    async with forwarding(Echo().handlers(), KNOWN) as it:
        url = it.server.listen("tcp://127.0.0.1:0").url.text
        async with channel(url) as client:
            await method(client, "Say")(b"x")
            before = len(asyncio.all_tasks())
            for _ in range(40):
                await asyncio.gather(*(_odd_call(client, number) for number in range(100)))
            links = list(it.upstream._links.values())
            await until(
                lambda: len(asyncio.all_tasks()) <= before and not any(one.calls for one in links)
            )
            counters = (it.server.counters, it.upstream.counters, it.channel.counters)
            assert [0, 0, 0] == [each.calls_active for each in counters]


async def _odd_call(client: Any, number: int) -> None:
    match number % 4:
        case 0:
            assert b"x" == await method(client, "Say")(b"x")
        case 1:
            with pytest.raises(grpc.aio.AioRpcError):
                await method(client, "Fail")(b"x")
        case 2:
            call = method(client, "Hold")(b"x")
            await asyncio.sleep(0)
            call.cancel()
        case 3:
            with pytest.raises(grpc.aio.AioRpcError):
                await method(client, "Hold")(b"x", timeout=0.02)


async def test_a_broken_way_to_the_engine_is_told_and_mended() -> None:
    """Calls in flight end with UNAVAILABLE at once; the next ones go over a new connection."""
    echo = Echo()
    async with forwarding(echo.handlers(), KNOWN) as it:
        url = it.server.listen("tcp://127.0.0.1:0").url.text
        async with channel(url) as client:
            held = method(client, "Hold")(b"x")
            stream: Any = client.stream_stream(f"/{SERVICE}/Converse")()
            await stream.write(b"a")
            assert b"a" == await stream.read()
            await echo.started.wait()
            it.upstream.sever()
            codes = []
            for ending in (held, stream.read()):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async with asyncio.timeout(LIMIT_S):
                        await ending
                codes.append(caught.value.code())
            await echo.cancelled.wait()
            assert b"y" == await method(client, "Say")(b"y", timeout=LIMIT_S, wait_for_ready=True)

    assert [grpc.StatusCode.UNAVAILABLE] * 2 == codes


async def test_a_long_head_goes_through() -> None:
    """The longest one a client may send, with what a worker adds to it; none is kept."""
    async with forwarding(Echo().handlers(), KNOWN) as it:
        url = it.server.listen("tcp://127.0.0.1:0").url.text
        async with channel(url) as client:
            long = (("kit-long", "x" * (63 << 10)),)
            assert b"x" == await method(client, "Say")(b"x", metadata=long)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(client, "Say")(b"x", metadata=(("kit-long", "x" * (64 << 10)),))

    assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()


class Silent(grpc.GenericRpcHandler):
    """A stream that says it is there, with no metadata, and nothing else."""

    def service(self, handler_call_details: Any) -> Any:
        """Every method is this one."""

        async def serve(_requests: Any, context: Any) -> None:
            await context.send_initial_metadata(())
            await asyncio.Event().wait()

        return grpc.stream_stream_rpc_method_handler(serve)


async def test_empty_initial_metadata_come_before_the_first_message() -> None:
    """A reader of EventFlux waits for them: from then on it misses nothing."""
    async with forwarding(Silent(), {}) as it:
        url = it.server.listen("tcp://127.0.0.1:0").url.text
        async with channel(url) as client:
            stream: Any = client.stream_stream("/any.Service/Method")()
            async with asyncio.timeout(LIMIT_S):
                assert 0 == len(await stream.initial_metadata())
            assert not stream.done()
            stream.cancel()


async def test_connections_are_told_as_they_come_and_go() -> None:
    """Each change of their number, which other workers count with."""
    async with forwarding(Echo().handlers(), KNOWN) as it:
        url = it.server.listen("tcp://127.0.0.1:0").url.text
        async with channel(url) as client, channel(url) as other:
            await method(client, "Say")(b"x")
            await method(other, "Say")(b"x")
        await until(lambda: len(it.counts) == 4)

    assert [1, 2, 1, 0] == it.counts
