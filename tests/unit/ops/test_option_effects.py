"""What options of the server, its services and its store do."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

import tidewire
from support.process import ServerProcess
from support.proofs import proves
from support.server import Running, running
from tidewire import errors
from tidewire.v1 import checkpoint_pb2, common_pb2, event_pb2, state_pb2
from tidewire.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from tidewire.v1.event_pb2_grpc import EventServiceStub
from tidewire.v1.state_pb2_grpc import StateServiceStub
from tidewire_server.engine.embedded.writer import WriterCounters

LIMIT_S: Final = 15


def connect(it: Running, wire: str = "tcp") -> Any:
    return tidewire.connect(it.url(wire), tls=it.tls(wire), timeout_s=LIMIT_S)


def stub_of(kind: Callable[[Any], Any], client: Any) -> Any:
    """A stub without its types: type checkers disagree about asynchronous ones."""
    return kind(client.channel)


# --- where it is and who it is --------------------------------------------------------------------


@proves("server.node_id", "server.data_dir", "listen.urls", "admin.address")
async def test_it_is_where_it_was_told_to_be(tmp_path: Path) -> None:
    """Name, folder, listeners and admin address are those of the configuration."""
    options: dict[str, Any] = {"node_id": "other", "data_dir": str(tmp_path / "elsewhere")}
    async with running(tmp_path, ("tcp", "grpc"), server=options) as it, connect(it) as client:
        info = await client.info()
        assert it.server.admin is not None
        admin = urlsplit(it.server.admin.url)

    assert "other" == info.node_id
    assert (tmp_path / "elsewhere" / "tidewire.db").exists()
    assert {"tcp", "grpc"} == {urlsplit(listener.url).scheme for listener in info.listeners}
    assert "127.0.0.1" == admin.hostname


@proves("admin.enabled")
async def test_the_admin_listener_can_be_off(tmp_path: Path) -> None:
    """Off, nothing listens."""
    async with running(tmp_path, ("tcp",), admin={"enabled": False}) as it:
        assert it.server.admin is None


@proves("log.level", "log.format")
def test_logs_are_as_wanted(tmp_path: Path) -> None:
    """At error nothing is said of a start; console lines are not JSON; control: info, as JSON."""
    logged = {}
    for level, form in (("error", "json"), ("info", "console"), ("info", "auto")):
        folder = tmp_path / f"{level}-{form}"
        folder.mkdir()
        flags = ["--log-level", level, "--log-format", form]
        with ServerProcess(folder, ("tcp",), flags=flags) as process:
            process.end()
            logged[level, form] = process.log()

    assert "" == logged["error", "json"]
    assert "serving" in logged["info", "console"]
    assert not logged["info", "console"].startswith("{")
    assert logged["info", "auto"].startswith('{"event":"serving"')


@proves("codecs.allowed")
async def test_codecs_can_be_narrowed(tmp_path: Path) -> None:
    """A client that compresses otherwise is refused; control: with an allowed codec it is not."""
    async with running(tmp_path, ("tcp",), codecs={"allowed": ["none", "lz4"]}) as it:
        with pytest.raises(errors.CodecUnsupported):
            await tidewire.connect(it.url("tcp"), compression="zstd")
        async with tidewire.connect(it.url("tcp"), compression="lz4") as client:
            assert [common_pb2.CODEC_NONE, common_pb2.CODEC_LZ4] == list(
                (await client.info()).codecs
            )


# --- bounds of the services -----------------------------------------------------------------------

Act = Callable[[Any], Awaitable[Any]]


async def _publish_long(client: Any) -> None:
    await client.events.publish("a", b"x" * 2_000)


async def _publish_three(client: Any) -> None:
    await client.events.publish_many("a", [b"1", b"2", b"3"])


async def _long_transaction(client: Any) -> None:
    compare = [state_pb2.Compare(key=f"k{n}" * 20, exists=False) for n in range(100)]
    request = state_pb2.TransactRequest(compare=compare)
    await stub_of(StateServiceStub, client).Transact(request, timeout=LIMIT_S)


async def _two_operations(client: Any) -> None:
    await client.state.transact().put("a", b"1").put("b", b"2").commit()


async def _large_consumer(client: Any) -> None:
    await client.events.stream("s").create("s.>")
    await client.events.stream("s").consumer("c").create(ack_pending_max=100)


async def _put_chunk(client: Any) -> None:
    data = b"x" * 100
    request = checkpoint_pb2.PutChunkRequest(data=data, digest=hashlib.sha256(data).digest())
    await stub_of(CheckpointServiceStub, client).PutChunk(request, timeout=LIMIT_S)


async def _wait_long(client: Any) -> None:
    request = state_pb2.ChangesRequest(wait=Duration(nanos=300_000_000))
    await stub_of(StateServiceStub, client).Changes(request, timeout=LIMIT_S)


async def _one_page(client: Any) -> None:
    for n in range(5):
        await client.state.put(f"k{n}", b"x" * 500)
    answer = await stub_of(StateServiceStub, client).Range(
        state_pb2.RangeRequest(), timeout=LIMIT_S
    )
    if answer.next_page_token:
        raise errors.OutOfRange("several pages")


REFUSALS: Final[list[tuple[str, int | float, Act]]] = [
    ("payload_bytes_max", 1_000, _publish_long),
    ("batch_messages_max", 2, _publish_three),
    ("overhead_bytes_max", 1_000, _long_transaction),
    ("transaction_operations_max", 1, _two_operations),
    ("ack_pending_max", 99, _large_consumer),
    ("chunk_bytes_max", 99, _put_chunk),
    ("unary_wait_s_max", 0.2, _wait_long),
    ("response_bytes_max", 1_000, _one_page),
]


@proves(
    "limits.payload_bytes_max",
    "limits.batch_messages_max",
    "limits.overhead_bytes_max",
    "limits.transaction_operations_max",
    "limits.ack_pending_max",
    "limits.chunk_bytes_max",
    "limits.unary_wait_s_max",
    "limits.response_bytes_max",
)
@pytest.mark.parametrize(("name", "value", "act"), REFUSALS, ids=[r[0] for r in REFUSALS])
async def test_limits_refuse_what_is_over_them(
    tmp_path: Path, name: str, value: float, act: Act
) -> None:
    """Lowered, the limit refuses; control: as it is by default, the same is let through."""
    async with (
        running(tmp_path / "low", ("tcp",), limits={name: value}) as it,
        connect(it) as client,
    ):
        with pytest.raises((errors.TidewireError, grpc.aio.AioRpcError)):
            await act(client)
    async with running(tmp_path / "default", ("tcp",)) as it, connect(it) as client:
        await act(client)


@proves("limits.publish_pending_bytes_max", "limits.publish_pending_messages_max")
async def test_publishers_are_told_their_credit(tmp_path: Path) -> None:
    """The first credit of a publishing stream is what may be pending."""
    limits = {"publish_pending_bytes_max": 12_345, "publish_pending_messages_max": 678}
    async with running(tmp_path, ("tcp",), limits=limits) as it, connect(it) as client:
        call: Any = stub_of(EventServiceStub, client).PublishStream(timeout=LIMIT_S)
        await call.write(event_pb2.PublishStreamRequest(open=event_pb2.PublishOpen()))
        credit = (await call.read()).opened.credit
        call.cancel()

    assert (12_345, 678) == (credit.bytes_until, credit.messages_until)


async def _stuck_subscriber(client: Any) -> Any:
    """A live subscription that takes nothing."""
    call: Any = stub_of(EventServiceStub, client).Subscribe(timeout=LIMIT_S)
    opening = event_pb2.SubscribeOpen(
        live=event_pb2.LiveSource(subjects=["a"]),
        codecs=common_pb2.Codec.values()[1:],
    )
    await call.write(event_pb2.SubscribeRequest(open=opening))
    assert "opened" == (await call.read()).WhichOneof("kind")
    return call


async def _lost(limits: dict[str, float], folder: Path) -> int:
    """How many of ten messages a subscriber loses that takes them late."""
    async with running(folder, ("tcp",), limits=limits) as it, connect(it) as client:
        call = await _stuck_subscriber(client)
        for _ in range(10):
            await client.events.publish("a", b"x" * 100)
        credit = common_pb2.Credit(messages_until=100, bytes_until=1 << 20)
        await call.write(event_pb2.SubscribeRequest(credit=credit))
        lost = received = 0
        while lost + received < 10:
            response = await call.read()
            lost += response.lost.messages
            received += response.delivery.batch.count
        call.cancel()
        return lost


@proves("limits.subscriber_pending_messages_max", "limits.subscriber_pending_bytes_max")
async def test_slow_subscribers_keep_so_much(tmp_path: Path) -> None:
    """Beyond messages, or bytes, they lose and are told; control: by default they lose nothing."""
    assert 0 < await _lost({"subscriber_pending_messages_max": 3}, tmp_path / "messages")
    assert 0 < await _lost({"subscriber_pending_bytes_max": 350}, tmp_path / "bytes")
    assert 0 == await _lost({}, tmp_path / "default")


@proves("limits.subscriber_stall_s")
async def test_stalled_subscribers_are_cut_off(tmp_path: Path) -> None:
    """Who takes nothing while something waits is cut off; control: not before the default time."""
    for limits, is_cut in (({"subscriber_stall_s": 0.2}, True), ({}, False)):
        async with (
            running(tmp_path / str(is_cut), ("tcp",), limits=limits) as it,
            connect(it) as client,
        ):
            call = await _stuck_subscriber(client)
            await client.events.publish("a", b"x")
            done = asyncio.Event()
            call.add_done_callback(lambda _, done=done: done.set())
            try:
                await asyncio.wait_for(done.wait(), LIMIT_S if is_cut else 1.0)
            except TimeoutError:
                assert not is_cut
            else:
                assert is_cut
            call.cancel()


# --- the store and the end ------------------------------------------------------------------------


@proves("engine.ballast_bytes")
async def test_space_is_held_back(tmp_path: Path) -> None:
    """The store's folder has a file of this size."""
    async with running(tmp_path, ("tcp",), engine={"ballast_bytes": 123_456}):
        assert 123_456 == (tmp_path / "data" / "ballast").stat().st_size


async def _groups_of(folder: Path, engine: dict[str, int]) -> float:
    """Flushes for each of 50 writes at the same time."""
    async with running(folder, ("tcp",), engine=engine) as it, connect(it) as client:
        counters: WriterCounters = it.server.core.engine.writer.counters  # type: ignore[attr-defined]
        before = counters.groups
        await asyncio.gather(*(client.state.put(f"k{n}", b"x" * 100) for n in range(50)))
        return (counters.groups - before) / 50


@proves("engine.group_transactions_max", "engine.group_bytes_max")
async def test_groups_can_be_made_small(tmp_path: Path) -> None:
    """One write in each flush when that is the limit; control: by default many share one."""
    assert 1 <= await _groups_of(tmp_path / "count", {"group_transactions_max": 1})
    assert 1 <= await _groups_of(tmp_path / "bytes", {"group_bytes_max": 1})
    assert 0.5 > await _groups_of(tmp_path / "default", {})


@proves("drain.wait_s")
async def test_load_balancers_get_time_to_notice(tmp_path: Path) -> None:
    """While it waits it says NOT_SERVING and still answers; control: without it soon refuses."""
    async with (
        running(tmp_path, ("tcp",), drain={"wait_s": 0.5}) as it,
        connect(it) as client,
    ):
        stopping = asyncio.create_task(it.server.stop())
        await asyncio.sleep(0)
        health: Any = health_pb2_grpc.HealthStub(client.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
        await client.state.put("a", b"1")
        await stopping

        assert health_pb2.HealthCheckResponse.NOT_SERVING == answer.status
    async with running(tmp_path, ("tcp",)) as it, connect(it) as client:
        stopping = asyncio.create_task(it.server.stop())
        with pytest.raises(errors.Unavailable):
            async with asyncio.timeout(LIMIT_S):
                while True:  # a call that came before the news of the end goes on
                    await client.state.put("a", b"2")
        await stopping


@proves("drain.grace_s")
async def test_streams_are_told_the_grace(tmp_path: Path) -> None:
    """What a draining server says on a stream, and waits for at most, is the configured time."""
    told = []
    for grace_s in (7.0, 0.0):
        async with (
            running(tmp_path, ("tcp",), drain={"grace_s": grace_s}) as it,
            connect(it) as client,
        ):
            call = await _stuck_subscriber(client)
            stopping = asyncio.create_task(it.server.stop())
            if grace_s:
                response = await call.read()
                told.append(response.draining.grace.ToNanoseconds() / 1e9)
            call.cancel()
            await asyncio.wait_for(stopping, LIMIT_S)

    assert [7.0] == told
