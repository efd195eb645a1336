"""ControlService over a real server and the embedded store: what senders and nodes see."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import duration_pb2
from google.rpc import status_pb2

from support.commanding import WAIT_S, Served, attending, served
from tidewire import errors
from tidewire.v1 import common_pb2, control_pb2

PENDING = control_pb2.COMMAND_PROGRESS_PENDING
SENT = control_pb2.COMMAND_PROGRESS_SENT
ACKNOWLEDGED = control_pb2.COMMAND_PROGRESS_ACKNOWLEDGED
SUCCEEDED = control_pb2.COMMAND_PROGRESS_SUCCEEDED
FAILED = control_pb2.COMMAND_PROGRESS_FAILED
EXPIRED = control_pb2.COMMAND_PROGRESS_EXPIRED


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path) as server:
        yield server


def send(server: Served, command_id: str = "c1", *, timeout: float = WAIT_S, **fields: Any) -> Any:
    """Start sending; ``expiry_s`` and ``data`` are short for the messages."""
    expiry_s = fields.pop("expiry_s", None)
    fields.setdefault("verb", "restart")
    request = control_pb2.SendRequest(command_id=command_id, **fields)
    if expiry_s is not None:
        request.expiry.CopyFrom(duration_pb2.Duration(nanos=int(expiry_s % 1 * 1e9)))
        request.expiry.seconds = int(expiry_s)
    return server.stub.Send(request, timeout=timeout)


def to(node_id: str) -> control_pb2.Target:
    return control_pb2.Target(node_id=node_id)


async def read_all(
    call: Any,
) -> tuple[control_pb2.SendAccepted, list[tuple[str, int]], control_pb2.SendFinished]:
    """What was accepted, each progress, and the end."""
    responses = [response async for response in call]
    kinds = [response.WhichOneof("kind") for response in responses]
    assert ["accepted", *["progress"] * (len(kinds) - 2), "finished"] == kinds
    steps = [(each.progress.node_id, each.progress.progress) for each in responses[1:-1]]
    return responses[0].accepted, steps, responses[-1].finished


async def reason(call: Any) -> str:
    """Wait for the call to fail and name the reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(WAIT_S):
            await (read_all(call) if hasattr(call, "__aiter__") else call)
    details = dict(caught.value.trailing_metadata())[errors.STATUS_TRAILER]
    assert isinstance(details, bytes)
    return errors.reason_name(errors.from_status(status_pb2.Status.FromString(details)).reason)


async def test_a_command_goes_to_its_node_and_back(server: Served) -> None:
    """Verb, arguments and time left go there; each step and the result come back."""
    async with attending(server, "n1") as node:
        call = send(server, target=to("n1"), arguments=common_pb2.Payload(data=b"now"), expiry_s=20)
        command = await node.command()
        await node.acknowledge("c1")
        await node.succeed("c1", b"done")
        accepted, steps, finished = await read_all(call)

    assert ("c1", "restart", b"now", False) == (
        command.command_id,
        command.verb,
        command.arguments.data,
        command.redelivered,
    )
    assert 0 < command.remaining.ToNanoseconds() <= 20e9
    assert (["n1"], False) == (list(accepted.targets), accepted.repeated_command)
    assert ("n1", SUCCEEDED) == steps[-1]
    assert [progress for _, progress in steps] == sorted(progress for _, progress in steps)
    assert finished.succeeded
    assert b"done" == finished.nodes[0].result.data


async def test_a_failure_comes_back_with_its_reason(server: Served) -> None:
    """The command is over and has not succeeded."""
    async with attending(server, "n1") as node:
        call = send(server, target=to("n1"))
        await node.command()
        await node.fail("c1", errors.KeyNotFound("no such thing"))
        _, _, finished = await read_all(call)

    assert not finished.succeeded
    assert FAILED == finished.nodes[0].progress
    assert isinstance(errors.from_status(finished.nodes[0].error), errors.KeyNotFound)


async def test_a_node_that_is_away_gets_it_when_it_comes(server: Served) -> None:
    """Until the command expires."""
    call = send(server, target=to("n1"))
    await call.read()
    found = await server.stub.GetCommand(control_pb2.GetCommandRequest(command_id="c1"))
    assert (PENDING, False, "restart") == (found.nodes[0].progress, found.finished, found.verb)
    async with attending(server, "n1") as node:
        assert not (await node.command()).redelivered
        await node.succeed("c1")
        async with asyncio.timeout(WAIT_S):
            while (await call.read()).WhichOneof("kind") != "finished":
                continue


async def test_what_a_lost_node_had_is_handed_over_again(server: Served) -> None:
    """Marked as redelivered: the node must answer, and not do it twice."""
    call = send(server, target=to("n1"))
    async with attending(server, "n1") as node:
        await node.command()
        await node.acknowledge("c1")
    async with attending(server, "n1") as node:
        assert (await node.command()).redelivered
        await node.succeed("c1")
        _, _, finished = await read_all(call)

    assert finished.succeeded


async def test_a_second_stream_takes_over(server: Served) -> None:
    """The first one ends with ABORTED, and what it had goes to the second."""
    async with attending(server, "n1", "g") as first:
        call = send(server, target=control_pb2.Target(group="g"))
        await first.command()
        async with attending(server, "n1", "g") as second:
            assert grpc.StatusCode.ABORTED == await first.ended()
            assert "c1" == (await second.command()).command_id
            await second.succeed("c1")
            _, _, finished = await read_all(call)

    assert finished.succeeded


async def test_repeating_a_command_follows_it(server: Served) -> None:
    """Nothing is done twice, under way or after it; another content is a conflict."""
    async with attending(server, "n1") as node:
        first = send(server, target=to("n1"))
        await node.command()
        second = send(server, target=to("n1"))
        assert (await second.read()).accepted.repeated_command
        assert "COMMAND_CONFLICT" == await reason(send(server, target=to("n1"), verb="stop"))
        await node.succeed("c1", b"once")
        await read_all(first)
        accepted, steps, finished = await read_all(send(server, target=to("n1")))
        marker = send(server, "marker", target=to("n1"))
        assert "marker" == (await node.command()).command_id  # nothing came between
        marker.cancel()

    assert accepted.repeated_command
    assert [("n1", SUCCEEDED)] == steps
    assert b"once" == finished.nodes[0].result.data


@pytest.mark.parametrize("whom", ["group", "all"])
async def test_groups_and_all_are_who_attends_now(server: Served, whom: str) -> None:
    """The server is not among them, nor who comes later."""
    target = control_pb2.Target(group="g") if whom == "group" else control_pb2.Target(all=True)
    async with attending(server, "n1", "g") as one, attending(server, "n2", "g", "h") as two:
        call = send(server, target=target)
        async with attending(server, "n3", "g") as late:
            await one.command()
            await one.succeed("c1")
            await two.command()
            await two.fail("c1", errors.InvalidArgument("no"))
            accepted, _, finished = await read_all(call)
            marker = send(server, "marker", target=to("n3"))
            assert "marker" == (await late.command()).command_id
            marker.cancel()

    assert ["n1", "n2"] == sorted(accepted.targets)
    assert {"n1": SUCCEEDED, "n2": FAILED} == {n.node_id: n.progress for n in finished.nodes}
    assert not finished.succeeded


async def test_nobody_to_send_to_is_an_error(server: Served) -> None:
    """Of a group, or of all."""
    assert "NO_TARGETS" == await reason(send(server, target=control_pb2.Target(group="g")))
    assert "NO_TARGETS" == await reason(send(server, target=control_pb2.Target(all=True)))


async def test_a_command_expires(server: Served) -> None:
    """At who had taken it as well as at who never came; a late result changes nothing."""
    async with attending(server, "n1", "g") as node, attending(server, "n2", "g") as other:
        call = send(server, target=control_pb2.Target(group="g"), expiry_s=0.3)
        await node.command()
        await node.acknowledge("c1")
        await other.command()
        await other.succeed("c1")
        _, _, finished = await read_all(call)
        await node.succeed("c1")
        again = send(server, "c2", target=to("n1"))
        await node.command()
        await node.succeed("c2")
        await read_all(again)
        found = await server.stub.GetCommand(control_pb2.GetCommandRequest(command_id="c1"))

    assert {"n1": EXPIRED, "n2": SUCCEEDED} == {n.node_id: n.progress for n in finished.nodes}
    assert {"n1": EXPIRED, "n2": SUCCEEDED} == {n.node_id: n.progress for n in found.nodes}


async def test_commands_survive_a_start_of_the_server(tmp_path: Path) -> None:
    """Outcomes are kept, and what is not done is handed over again."""
    async with (
        served(tmp_path) as server,
        attending(server, "n1", "g") as one,
        attending(server, "n2", "g") as two,
    ):
        call = send(server, target=control_pb2.Target(group="g"))
        await one.command()
        await one.succeed("c1", b"first")
        await two.command()
        async with asyncio.timeout(WAIT_S):
            while (await call.read()).progress.progress != SUCCEEDED:
                continue
        call.cancel()
    async with served(tmp_path) as server, attending(server, "n2") as two:
        assert (await two.command()).redelivered
        call = send(server, target=control_pb2.Target(group="g"))
        await two.succeed("c1", b"second")
        accepted, _, finished = await read_all(call)

    assert accepted.repeated_command
    assert {"n1": b"first", "n2": b"second"} == {n.node_id: n.result.data for n in finished.nodes}


async def test_the_server_is_a_node(server: Served) -> None:
    """Its verbs are done, and what is wrong with them is told."""
    node_id = server.core.node_id
    arguments = common_pb2.Payload(data=b'{"grace_s": 3}')
    _, steps, finished = await read_all(
        send(server, target=to(node_id), verb="drain", arguments=arguments)
    )
    assert finished.succeeded
    assert [3] == server.admin.drained
    assert (node_id, SUCCEEDED) == steps[-1]

    expected = {
        "pause_stream": "STREAM_NOT_FOUND",
        "resume_stream": "INTERNAL",
        "dance": "INVALID_ARGUMENT",
    }
    for verb, why in expected.items():
        named = common_pb2.Payload(data=b'{"name": "s"}')
        call = send(server, verb, target=to(node_id), verb=verb, arguments=named)
        _, _, finished = await read_all(call)
        assert why == errors.reason_name(errors.from_status(finished.nodes[0].error).reason)


async def test_the_server_never_does_a_command_twice(tmp_path: Path) -> None:
    """
    One that it was doing when it ended is reported as unknown after the start, not done again.
    """
    arguments = common_pb2.Payload(data=b'{"connection_id": "tcp-1"}')
    options: dict[str, Any] = {
        "target": to("server-1"),
        "verb": "disconnect_client",
        "arguments": arguments,
    }
    async with served(tmp_path) as server:
        server.admin.hold = asyncio.Event()
        call = send(server, **options)
        async with asyncio.timeout(WAIT_S):
            await server.admin.begun.wait()
        call.cancel()
    async with served(tmp_path) as server:
        _, _, finished = await read_all(send(server, **options))
        assert not server.admin.begun.is_set()

    assert FAILED == finished.nodes[0].progress
    assert isinstance(errors.from_status(finished.nodes[0].error), errors.OutcomeUnknown)


async def test_a_draining_server_waits_for_what_is_in_hand(server: Served) -> None:
    """Nodes hear `draining`; idle ones end at once, the busy one when it has answered."""
    async with attending(server, "n1") as busy, attending(server, "n2") as idle:
        call = send(server, target=to("n1"))
        lonely = send(server, "c2", target=to("away"))
        await lonely.read()
        await busy.command()
        server.core.drain.start(5.0)
        assert "draining" == (await idle.next()).WhichOneof("kind")
        assert grpc.StatusCode.OK == await idle.ended()
        assert "DRAINING" == await _end_of(lonely)
        assert "draining" == (await busy.next()).WhichOneof("kind")
        await busy.succeed("c1")
        _, _, finished = await read_all(call)
        assert grpc.StatusCode.OK == await busy.ended()

    assert finished.succeeded


async def _end_of(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(WAIT_S):
            await call.read()
    return "DRAINING" if "DRAINING" in str(caught.value.trailing_metadata()) else "?"


async def test_a_node_that_ignores_the_drain_is_cut(server: Served) -> None:
    """Within the grace, cleanly."""
    async with attending(server, "n1") as node:
        call = send(server, target=to("n1"))
        await node.command()
        server.core.drain.start(0.2)
        assert grpc.StatusCode.OK == await node.ended()
        assert "DRAINING" == await reason(call)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"command_id": ""}, "INVALID_ARGUMENT"),
        ({"command_id": "x" * 65}, "INVALID_ARGUMENT"),
        ({"verb": "Restart"}, "INVALID_ARGUMENT"),
        ({"verb": ""}, "INVALID_ARGUMENT"),
        ({"target": control_pb2.Target()}, "INVALID_ARGUMENT"),
        ({"target": control_pb2.Target(node_id="a.b")}, "INVALID_SUBJECT"),
        ({"expiry_s": 3601}, "INVALID_ARGUMENT"),
        ({"expiry_s": 0}, "INVALID_ARGUMENT"),
        ({"arguments": common_pb2.Payload(data=bytes(1024 * 1024 + 1))}, "MESSAGE_TOO_LARGE"),
    ],
)
async def test_bad_commands_are_refused(
    server: Served, fields: dict[str, Any], expected: str
) -> None:
    """Each with its reason, and nothing is kept."""
    fields = {"target": to("n1"), **fields}
    assert expected == await reason(send(server, **fields))
    get = control_pb2.GetCommandRequest(command_id=fields.get("command_id", "c1"))
    assert "COMMAND_NOT_FOUND" == await reason(server.stub.GetCommand(get))


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        (control_pb2.AttendOpen(node_id="server-1"), "NODE_IN_USE"),
        (control_pb2.AttendOpen(node_id=""), "INVALID_SUBJECT"),
        (control_pb2.AttendOpen(node_id="n", groups=["*"]), "INVALID_SUBJECT"),
        (control_pb2.AttendOpen(node_id="n", groups=["g"] * 65), "INVALID_ARGUMENT"),
    ],
)
async def test_bad_attendances_are_refused(
    server: Served, opening: control_pb2.AttendOpen, expected: str
) -> None:
    """Each with its reason."""
    call = server.stub.Attend(timeout=WAIT_S)
    await call.write(control_pb2.AttendRequest(open=opening))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert expected in str(caught.value.trailing_metadata())


async def test_a_result_that_is_too_large_fails_its_command_only(server: Served) -> None:
    """The sender is told that the node did it."""
    async with attending(server, "n1") as node:
        call = send(server, target=to("n1"))
        await node.command()
        await node.succeed("c1", bytes(300 * 1024))
        _, _, finished = await read_all(call)

    assert FAILED == finished.nodes[0].progress
    assert "the node did it" in finished.nodes[0].error.message


async def test_a_hundred_nodes_at_once(server: Served) -> None:
    """All of them get it, and the sender hears of each."""
    nodes: list[Any] = []
    try:
        for i in range(100):
            context = attending(server, f"n{i}", "g")
            nodes.append((context, await context.__aenter__()))
        call = send(server, target=control_pb2.Target(group="g"))
        for _, node in nodes:
            await node.command()
            await node.succeed("c1", b"x" * 1000)
        accepted, _, finished = await read_all(call)
    finally:
        for context, _ in nodes:
            await context.__aexit__(None, None, None)

    assert 100 == len(accepted.targets)
    assert finished.succeeded
