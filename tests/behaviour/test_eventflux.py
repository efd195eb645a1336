"""EventFlux's own service over every wire, by its generated stubs, beside tidewire's clients."""

import asyncio
from typing import Any

import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import tidewire
from support.eventflux import error_of, events, message, name_of, now_ms, send, stub_of, take
from support.scripted import eventually
from support.server import Running
from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.v1 import heartbeat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 20.0
SERVICE = "eventflux.transport.Transport"


@pytest.fixture
def stub(client: tidewire.Client) -> Any:
    """An EventFlux client on this wire."""
    return stub_of(client.channel)


async def test_an_event_reaches_a_subscriber(client: tidewire.Client, stub: Any, name: str) -> None:
    """Payload and headers, and the fields as headers; the answer says how it was taken."""
    headers = {"source_node": "n1", "priority": "2", "stream": f"{name}.a", "trace": "t"}
    async with client.events.subscribe(f"{name}.>") as subscription:
        sent = message("EVENT", b"hello", headers)
        answer = await stub.SendMessage(sent, timeout=WAIT_S)
        got = await subscription.next(timeout_s=WAIT_S)

    assert (b"hello", f"{name}.a") == (got.payload, got.subject)
    seen = {key: value.decode() for key, value in got.headers}
    assert headers.items() <= seen.items()
    assert str(sent.timestamp) == seen["eventflux-timestamp"]
    assert ("ACKNOWLEDGMENT", sent.id, 2) == (
        name_of(answer.message_type),
        answer.id,
        answer.priority,
    )
    assert ("test-server", "n1") == (answer.source_node, answer.target_node)
    assert {"durability": "memory", "receivers": "1"} == dict(answer.headers)
    assert abs(answer.timestamp - now_ms()) < 60_000


async def test_the_default_client_needs_no_headers_at_all(
    client: tidewire.Client, stub: Any
) -> None:
    """Without a stream name an event has a subject all the same; priority is 5."""
    async with client.events.subscribe("eventflux.event") as subscription:
        answer = await send(stub, "EVENT", b"bare")
        got = await subscription.next(timeout_s=WAIT_S)

    assert b"bare" == got.payload
    assert "5" == dict(got.headers)["priority"].decode()
    assert 5 == answer.priority


async def test_a_stored_event_is_acknowledged_when_it_is_flushed(
    client: tidewire.Client, stub: Any, name: str
) -> None:
    """Durability, stream and sequence are answered; the same id again is not stored again."""
    await client.events.stream(name).create([f"{name}.>"])
    sent = message("EVENT", b"keep", {"stream": f"{name}.a"})
    first = await stub.SendMessage(sent, timeout=WAIT_S)
    again = await stub.SendMessage(sent, timeout=WAIT_S)
    other = await send(stub, "EVENT", b"keep", {"stream": f"{name}.a"})

    assert {"durability": "fsync", "stream": name, "sequence": "1"} == dict(first.headers)
    assert "true" == again.headers["duplicate"]
    assert "2" == other.headers["sequence"]


@pytest.mark.needs("streams")
async def test_events_of_tidewire_reach_an_eventflux_reader(
    client: tidewire.Client, stub: Any, name: str
) -> None:
    """Live events of both kinds of clients, with their headers; other subjects do not come."""
    call = events(stub, f"{name}.*")
    async with asyncio.timeout(WAIT_S):
        await call.initial_metadata()  # from here on nothing is missed
    await client.events.publish(f"{name}.b", b"native", headers=[("k", b"v"), ("raw", b"\xff")])
    await client.events.publish(f"{name}.b.c", b"elsewhere")
    await send(stub, "EVENT", b"own", {"stream": f"{name}.c", "source_node": "n1"})
    native, own = await take(call, 2)
    call.cancel()

    assert (b"native", "EVENT", 5) == (
        native.payload,
        name_of(native.message_type),
        native.priority,
    )
    assert {"k": "v", "raw-bin": "/w==", "stream": f"{name}.b"}.items() <= native.headers.items()
    assert (b"own", "n1", f"{name}.c") == (own.payload, own.source_node, own.headers["stream"])
    assert transport_pb2.COMPRESSION_TYPE_NONE == own.compression


@pytest.mark.needs("streams")
async def test_history_comes_from_a_stream_and_ends(
    client: tidewire.Client, stub: Any, name: str
) -> None:
    """Between two times, in order, and then the stream is over; the times are the messages' own."""
    await client.events.stream(name).create([f"{name}.>"])
    for second in range(10):
        headers = {"stream": f"{name}.{second % 2}"}
        await send(
            stub, "EVENT", str(second).encode(), headers, timestamp=1_000_000 + 1000 * second
        )
    call = events(stub, f"{name}.>", start=1_003_000, end=1_007_000)
    async with asyncio.timeout(WAIT_S):
        got = [event async for event in call]
    odd = [event async for event in events(stub, f"{name}.1", start=1, end=now_ms())]

    assert ["3", "4", "5", "6", "7"] == [event.payload.decode() for event in got]
    assert [1_003_000, 1_007_000] == [got[0].timestamp, got[-1].timestamp]
    assert ["1", "3", "5", "7", "9"] == [event.payload.decode() for event in odd]


@pytest.mark.needs("streams")
async def test_history_goes_over_into_what_comes(
    client: tidewire.Client, stub: Any, name: str
) -> None:
    """Events stored before and after the reader came arrive once each, in order."""
    await client.events.stream(name).create([name])
    await client.events.publish_many(name, [str(number) for number in range(500)])
    call = events(stub, name, start=1, batch_size=64)
    before = await take(call, 500)
    await client.events.publish_many(name, [str(number) for number in range(500, 700)])
    after = await take(call, 200)
    call.cancel()

    assert [str(n) for n in range(700)] == [e.payload.decode() for e in before + after]
    sizes = [int(event.headers["batch"]) for event in before if "batch" in event.headers]
    assert 500 == sum(sizes)
    assert 64 == max(sizes)
    assert f"{name}/1" == before[0].id


@pytest.mark.needs("streams")
async def test_types_and_targets_are_filtered(
    client: tidewire.Client, stub: Any, name: str
) -> None:
    """METADATA can be wanted alone; what is for one node comes to that node and not to others."""
    await client.events.stream(name).create([name])
    here = {"stream": name}
    await send(stub, "EVENT", b"event", here)
    await send(stub, "METADATA", b"meta", here)
    await send(stub, "EVENT", b"for a", {**here, "target_node": "a"})
    metadata = [transport_pb2.MESSAGE_TYPE_METADATA]
    only = events(stub, name, kinds=metadata, start=1, end=now_ms())
    to_a = events(stub, name, node="a", start=1, end=now_ms())
    to_b = events(stub, name, node="b", start=1, end=now_ms())

    async def payloads(call: Any) -> list[bytes]:
        return [event.payload async for event in call]

    assert [b"meta"] == await payloads(only)
    assert [b"event", b"meta", b"for a"] == await payloads(to_a)
    assert [b"event", b"meta"] == await payloads(to_b)


@pytest.mark.needs("streams")
async def test_a_query_is_answered(client: tidewire.Client, stub: Any, name: str) -> None:
    """The reply has the query's id; nobody there, a failure and a deadline are errors."""
    release = asyncio.Event()

    async def answer(query: tidewire.Query) -> bytes:
        if query.payload == b"slow":
            await release.wait()
        return query.payload[::-1]

    async with client.queries.serve(name, answer):
        sent = message("QUERY", b"abc", {"stream": name, "source_node": "n1"})
        reply = await stub.SendMessage(sent, timeout=WAIT_S)
        late = await error_of(
            stub.SendMessage(message("QUERY", b"slow", {"stream": name, "timeout_ms": "50"}))
        )
        release.set()
    nobody = await error_of(stub.SendMessage(message("QUERY", b"", {"target_node": name})))

    assert (b"cba", "QUERY", sent.id) == (reply.payload, name_of(reply.message_type), reply.id)
    assert reply.headers["responder"]
    assert isinstance(late, errors.DeadlineExceeded)
    assert isinstance(nobody, errors.NoResponders)
    assert f"eventflux.query.{name}" in nobody.message


async def test_state_is_written_and_read(client: tidewire.Client, stub: Any, name: str) -> None:
    """Tidewire's clients see it; revisions lock; a repetition is done once."""
    key = {"key": f"{name}/k"}
    put = message("STATE", b"v1", key)
    first = await stub.SendMessage(put, timeout=WAIT_S)
    again = await stub.SendMessage(put, timeout=WAIT_S)
    seen = await client.state.get(f"{name}/k")
    stale = await error_of(
        stub.SendMessage(message("STATE", b"v2", {**key, "expected_revision": "1000000"}))
    )
    await client.state.put(f"{name}/k", b"v3")
    got = await send(stub, "STATE", b"", {**key, "operation": "get"})
    deleted = await send(stub, "STATE", b"", {**key, "operation": "delete"})
    gone = await error_of(stub.SendMessage(message("STATE", b"", {**key, "operation": "get"})))
    keyless = await error_of(stub.SendMessage(message("STATE", b"v")))

    assert seen is not None
    assert b"v1" == seen.value
    assert ("fsync", str(seen.revision)) == (first.headers["durability"], first.headers["revision"])
    assert first.headers == again.headers
    assert isinstance(stale, errors.RevisionMismatch)
    assert ("STATE", b"v3") == (name_of(got.message_type), got.payload)
    assert "true" == deleted.headers["deleted"]
    assert isinstance(gone, errors.KeyNotFound)
    assert ["headers[key]"] == list(keyless.fields)


@pytest.mark.needs("streams")
async def test_a_command_goes_to_its_node(client: tidewire.Client, stub: Any, name: str) -> None:
    """Accepted at once, or with each node's outcome; an empty target is everybody who attends."""
    done: list[str] = []
    handlers = {f"{name}.do": lambda command: done.append(command.text)}
    verb = {"verb": f"{name}.do", "await": "finished"}
    async with client.control.attend(name, handlers):
        one = await send(stub, "CONTROL", b"one", {**verb, "target_node": name})
        accepted = await send(stub, "CONTROL", b"two", {"verb": verb["verb"], "target_node": name})
        everybody = await send(stub, "CONTROL", b"all", verb)
        await eventually(lambda: len(done) == 3)

    assert "succeeded" == one.headers[f"node.{name}"]
    assert "true" == one.headers["succeeded"]
    assert {"durability": "fsync", "targets": "1"} == dict(accepted.headers)
    assert "succeeded" == everybody.headers[f"node.{name}"]
    assert {"one", "two", "all"} == set(done)


async def test_heartbeats_make_a_member(client: tidewire.Client, stub: Any, name: str) -> None:
    """The node joins, its figures are the member's, and the answer has measured ones; it leaves."""
    status = transport_pb2.NodeStatus(
        health=transport_pb2.NODE_HEALTH_DEGRADED,
        cpu_usage=12.5,
        active_connections=3,
        events_per_second=7,
        version="1.0",
        metadata={"zone": "x"},
    )
    request = transport_pb2.HeartbeatRequest(node_id=name, timestamp=now_ms(), status=status)
    first = await stub.Heartbeat(request, timeout=WAIT_S)
    second = await stub.Heartbeat(request, timeout=WAIT_S)
    await send(stub, "HEARTBEAT", b"", {"source_node": name})
    (member,) = [m for m in await client.members.list() if m.node_id == name]
    taken = await error_of(
        stub.Heartbeat(transport_pb2.HeartbeatRequest(node_id="test-server"), timeout=WAIT_S)
    )
    request.status.health = transport_pb2.NODE_HEALTH_OFFLINE
    gone = await stub.Heartbeat(request, timeout=WAIT_S)

    assert ("test-server", "test-server") == (
        first.server_node_id,
        first.cluster_info.leader_node,
    )
    assert first.cluster_info.total_nodes == second.cluster_info.total_nodes
    assert gone.cluster_info.total_nodes == second.cluster_info.total_nodes - 1
    server = second.server_status
    assert transport_pb2.NODE_HEALTH_HEALTHY == server.health
    assert 0 < server.memory_usage < 100
    assert 0 < server.active_connections
    assert server.version
    assert ("eventflux",) == tuple(member.groups)
    assert heartbeat_pb2.MEMBER_STATUS_ALIVE == member.status
    assert (1, 3, "12.5") == (
        member.incarnation,
        member.node.connections,
        member.node.labels["cpu_usage_percent"],
    )
    assert isinstance(taken, errors.NodeInUse)


async def test_checkpoints_are_committed_and_loaded(
    client: tidewire.Client, stub: Any, name: str
) -> None:
    """Revisions grow, the state comes back, and another node takes the operator over."""
    job = {"operator": name, "source_node": f"{name}-a", "checkpoint_id": "7"}
    first = await send(stub, "CHECKPOINT", b"s1", job)
    second = await send(stub, "CHECKPOINT", b"s2", job)
    await send(stub, "CHECKPOINT", b"s3", {**job, "source_node": f"{name}-b"})
    fenced = await error_of(stub.SendMessage(message("CHECKPOINT", b"s4", job)))
    loaded = await send(stub, "CHECKPOINT", b"", {**job, "operation": "load"})
    old = await send(
        stub, "CHECKPOINT", b"", {**job, "operation": "load", "revision": first.headers["revision"]}
    )

    assert "fsync" == first.headers["durability"]
    assert int(first.headers["revision"]) < int(second.headers["revision"])
    assert isinstance(fenced, errors.OperatorFenced)
    assert (b"s3", "CHECKPOINT") == (loaded.payload, name_of(loaded.message_type))
    assert (b"s1", "7") == (old.payload, old.headers["checkpoint_id"])


@pytest.mark.needs("streams")
async def test_a_stream_is_there_before_anything_was_sent(stub: Any, name: str) -> None:
    """Clients that wait for response metadata before they write or publish do not wait for ever."""
    writing, reading = stub.StreamMessages(), events(stub, name)
    async with asyncio.timeout(WAIT_S):
        await writing.initial_metadata()
        await reading.initial_metadata()
        if writing.done():  # the wire carries no streams, and says so
            await writing.read()
        await writing.write(message("EVENT", b"x", {"stream": name}))
        assert "1" == (await writing.read()).headers["receivers"]
        assert b"x" == (await reading.read()).payload
        await writing.done_writing()
    reading.cancel()


@pytest.mark.needs("streams")
async def test_a_stream_of_messages_is_answered_in_order(
    client: tidewire.Client, stub: Any, name: str
) -> None:
    """Every kind on one stream, pipelined; what fails is told and the stream goes on."""
    await client.events.stream(name).create([name])
    sent = []
    for number in range(300):
        kind, headers = ("EVENT", {"stream": name})
        if number % 3 == 1:
            kind, headers = ("STATE", {"key": f"{name}/{number % 7}"})
        if number % 50 == 49:
            kind = "ACKNOWLEDGMENT"
        sent.append(message(kind, str(number).encode(), headers))
    call = stub.StreamMessages()

    async def write() -> None:
        for each in sent:
            await call.write(each)
        await call.done_writing()

    writing = asyncio.create_task(write())
    async with asyncio.timeout(WAIT_S):
        answers = [answer async for answer in call]
    await writing
    stored, _ = await client.events.fetch_from(name, messages_max=1000)

    assert [each.id for each in sent] == [answer.id for answer in answers]
    failed = [n for n, answer in enumerate(answers) if "status" in answer.headers]
    assert [49, 99, 149, 199, 249, 299] == failed
    assert "INVALID_ARGUMENT" == answers[49].headers["status"]
    assert [str(n) for n in range(300) if n % 3 != 1 and n % 50 != 49] == [
        m.payload.decode() for m in stored
    ]
    last = await client.state.get(f"{name}/1")
    newest = max(n for n in range(300) if n % 3 == 1 and n % 7 == 1 and n % 50 != 49)
    assert last is not None
    assert str(newest).encode() == last.value


async def test_nothing_is_taken_for_an_event(stub: Any, client: tidewire.Client) -> None:
    """UNSPECIFIED, a number nobody knows and ACKNOWLEDGMENT are refused, with the field's name."""
    async with client.events.subscribe("eventflux.>") as subscription:
        for kind in (0, 8, 9, 77):
            error = await error_of(stub.SendMessage(message("EVENT", b"x", message_type=kind)))
            assert isinstance(error, errors.InvalidArgument)
            assert ["message_type"] == list(error.fields)
        assert 0 == subscription.waiting


async def test_reflection_and_health_know_it(server: Running) -> None:
    """Generic tools find the service, and everything of its file."""
    async with grpc.aio.insecure_channel(server.url("grpc").removeprefix("grpc://")) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE))
        described = await call.read()
        call.cancel()
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=WAIT_S)
    (file,) = described.file_descriptor_response.file_descriptor_proto
    parsed = descriptor_pb2.FileDescriptorProto.FromString(file)

    assert "eventflux.transport" == parsed.package
    assert ["Transport"] == [service.name for service in parsed.service]
    assert health_pb2.HealthCheckResponse.SERVING == answer.status
