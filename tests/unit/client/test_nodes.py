"""Nodes: commands are done once, memberships are kept and won back."""

import asyncio
from typing import Any

import pytest

from support.scripted import (
    Conversation,
    ScriptedControl,
    ScriptedHeartbeat,
    client_of,
    eventually,
    idle,
)
from tidewire.client.attendance import Command
from tidewire.client.membership import Figures
from tidewire.errors import (
    AttendanceTaken,
    InvalidArgument,
    MemberFenced,
    NodeInUse,
    NotAMember,
    Overloaded,
    from_status,
)
from tidewire.v1 import common_pb2, control_pb2, control_pb2_grpc, heartbeat_pb2, heartbeat_pb2_grpc


def control_of(servicer: ScriptedControl) -> Any:
    return (control_pb2_grpc.add_ControlServiceServicer_to_server, servicer)


def heartbeat_of(servicer: ScriptedHeartbeat) -> Any:
    return (heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server, servicer)


def command(command_id: str, verb: str, arguments: bytes = b"") -> control_pb2.Command:
    made = control_pb2.Command(
        command_id=command_id, verb=verb, arguments=common_pb2.Payload(data=arguments)
    )
    made.remaining.FromSeconds(30)
    return made


async def results(conversation: Conversation, count: int) -> list[control_pb2.CommandResult]:
    """Read on until so many results have come."""
    got: list[control_pb2.CommandResult] = []
    while len(got) < count:
        request = await conversation.read()
        if request.WhichOneof("kind") == "result":
            got.append(request.result)
    return got


async def test_a_command_that_comes_again_is_answered_and_not_done_again() -> None:
    """Over a break the same command is done once and answered twice, finished or under way."""
    answers: list[control_pb2.CommandResult] = []
    release = asyncio.Event()
    done: list[str] = []
    over = asyncio.Event()

    async def first(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(command=command("1", "fast"))
        answers.extend(await results(conversation, 1))
        await conversation.write(command=command("2", "slow"))
        await conversation.read()
        await conversation.cut()

    async def second(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(command=command("1", "fast"))
        await conversation.write(command=command("2", "slow"))
        answers.extend(await results(conversation, 1))
        release.set()
        answers.extend(await results(conversation, 1))
        over.set()
        await idle(conversation)

    def fast(taken: Command) -> dict[str, str]:
        done.append(taken.command_id)
        return {"done": taken.verb}

    async def slow(taken: Command) -> str:
        done.append(taken.command_id)
        await release.wait()
        return "slowly"

    servicer = ScriptedControl(attend=[first, second])
    async with (
        client_of(control_of(servicer)) as client,
        client.control.attend("n", {"fast": fast, "slow": slow}, groups=["g"]),
    ):
        await asyncio.wait_for(over.wait(), 20)

    opened = servicer.attending.calls[0].requests[0].open
    assert ("n", ["g"]) == (opened.node_id, list(opened.groups))
    assert ["1", "2"] == done
    assert [("1", b'{"done":"fast"}'), ("1", b'{"done":"fast"}'), ("2", b"slowly")] == [
        (answer.command_id, answer.result.data) for answer in answers
    ]


async def test_failures_of_commands_travel_as_errors() -> None:
    """Unknown verbs, exceptions and bad arguments are the command's failure, each with its text."""
    answers: list[control_pb2.CommandResult] = []
    over = asyncio.Event()

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        for number, verb in enumerate(["nothing", "raise", "busy", "json"]):
            await conversation.write(command=command(str(number), verb, b"{"))
        answers.extend(await results(conversation, 4))
        over.set()
        await idle(conversation)

    def raise_(taken: Command) -> None:
        raise ValueError("it is broken")

    def busy(taken: Command) -> None:
        raise Overloaded("later", retry_after_s=1.0)

    handlers = {"raise": raise_, "busy": busy, "json": lambda taken: taken.json()}
    async with (
        client_of(control_of(ScriptedControl(attend=[serve]))) as client,
        client.control.attend("n", handlers),
    ):
        await asyncio.wait_for(over.wait(), 20)

    errors = [from_status(answer.error) for answer in answers]
    assert "does not know 'nothing'" in errors[0].message
    assert "ValueError: it is broken" == errors[1].message
    assert isinstance(errors[2], Overloaded)
    assert isinstance(errors[3], InvalidArgument)


async def test_an_attendance_that_was_taken_over_ends() -> None:
    """It is not fought for: the application is told."""

    async def serve(conversation: Conversation) -> None:
        await conversation.greet()
        raise AttendanceTaken("another stream attends as 'n'")

    async with client_of(control_of(ScriptedControl(attend=[serve]))) as client:
        attendance = await client.control.attend("n", {})
        with pytest.raises(AttendanceTaken):
            await asyncio.wait_for(attendance.join(), 20)


async def test_what_is_in_hand_is_answered_while_a_server_drains() -> None:
    """A draining server still gets the result of a command that takes its time."""
    answers: list[control_pb2.CommandResult] = []
    release = asyncio.Event()
    over = asyncio.Event()

    async def drain(conversation: Conversation) -> None:
        await conversation.greet()
        await conversation.write(command=command("1", "slow"))
        await conversation.read()
        draining = common_pb2.Draining()
        draining.grace.FromSeconds(20)
        await conversation.write(draining=draining)
        release.set()
        answers.extend(await results(conversation, 1))
        assert await conversation.read() is None
        over.set()

    async def slow(taken: Command) -> str:
        await release.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        return "done"

    servicer = ScriptedControl(attend=[drain, idle])
    async with (
        client_of(control_of(servicer)) as client,
        client.control.attend("n", {"slow": slow}),
    ):
        await asyncio.wait_for(over.wait(), 20)

    assert [b"done"] == [answer.result.data for answer in answers]


async def test_beats_carry_measured_figures() -> None:
    """Beats go by themselves, with what was measured and nothing that was not."""
    heartbeat = ScriptedHeartbeat()
    figures = Figures(health="degraded", connections=3, labels={"zone": "a"})
    async with client_of(heartbeat_of(heartbeat)) as client:
        opening = client.members.join("n", groups=["g"], version="1.2", figures=lambda: figures)
        async with opening as membership:
            await eventually(lambda: len(heartbeat.beats) >= 3)

            assert (1, 10) == (membership.incarnation, membership.lease_ref().fencing_token)
            assert membership.alive
    status = heartbeat.beats[1].status
    assert heartbeat_pb2.NODE_HEALTH_DEGRADED == status.health
    assert (3, "1.2", {"zone": "a"}) == (status.connections, status.version, dict(status.labels))
    assert status.memory_bytes > 1_000_000
    assert status.HasField("cpu_cores")
    assert not status.HasField("events_per_second")
    assert ["n"] == [request.node_id for request in heartbeat.left]


async def test_a_membership_that_was_lost_is_won_back_visibly() -> None:
    """A server that does not know the member any more is joined again, and the holder is told."""
    heartbeat = ScriptedHeartbeat()
    told: list[str] = []
    async with client_of(heartbeat_of(heartbeat)) as client:
        opening = client.members.join("n", on_change=lambda what, _: told.append(what))
        async with opening as membership:
            heartbeat.errors.extend([NotAMember("join first"), Overloaded("busy")])
            await eventually(lambda: bool(told))
            heartbeat.errors.append(NotAMember("join first"))
            await eventually(lambda: membership.rejoined == 2)
            beats = len(heartbeat.beats)
            await eventually(lambda: len(heartbeat.beats) > beats)

            assert 3 == heartbeat.beats[-1].incarnation == membership.incarnation
    assert ["rejoined", "rejoined", "left"] == told


async def test_a_fenced_membership_ends_when_another_one_lives() -> None:
    """Two nodes of one name do not fight: the older one ends with an error, and does not leave."""
    heartbeat = ScriptedHeartbeat()
    told: list[str] = []
    async with client_of(heartbeat_of(heartbeat)) as client:
        opening = client.members.join("n", on_change=lambda what, _: told.append(what))
        async with opening as membership:
            heartbeat.errors.extend([MemberFenced("newer"), NodeInUse("it beats")])
            with pytest.raises(MemberFenced, match="alive"):
                await asyncio.wait_for(membership.join(), 20)

            assert not membership.alive
    assert ["fenced"] == told
    assert [] == heartbeat.left
