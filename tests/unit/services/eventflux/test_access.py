"""A right to EventFlux's methods is a right to nothing that is done by them."""

from pathlib import Path

import pytest

from support.eventflux import error_of, events, message, stub_of
from support.eventflux_service import EventFlux, eventflux
from support.server import running
from tidewire import errors
from tidewire.eventflux import transport_pb2
from tidewire.transport import channel
from tidewire_server.ops.access import AccessPolicy
from tidewire_server.ops.config import Rule

TRANSPORT = Rule(principals=["*"], methods=["eventflux.transport.Transport/*"])
MESSAGES = {
    "EventService/Publish": message("EVENT"),
    "QueryService/Ask": message("QUERY"),
    "StateService/Put": message("STATE", b"", {"key": "k"}),
    "StateService/Get": message("STATE", b"", {"key": "k", "operation": "get"}),
    "StateService/Delete": message("STATE", b"", {"key": "k", "operation": "delete"}),
    "ControlService/Send": message("CONTROL", b"", {"target_node": "n"}),
    "HeartbeatService/Beat": message("HEARTBEAT", source_node="n"),
    "HeartbeatService/Join": message("HEARTBEAT", source_node="n"),
    "CheckpointService/Commit": message("CHECKPOINT", source_node="n"),
    "CheckpointService/Acquire": message("CHECKPOINT", source_node="n"),
    "CheckpointService/Load": message("CHECKPOINT", b"", {"operation": "load"}, source_node="n"),
}


def judge(*rules: Rule) -> object:
    """What the server makes of rules."""
    policy = AccessPolicy([TRANSPORT, *rules])

    def authorize(principal: str, method: str) -> None:
        if not policy.allows(principal, method):
            raise errors.PermissionDenied(method)

    return authorize


async def outcome(server: EventFlux, sent: transport_pb2.TransportMessage) -> str:
    """What was denied; "" when something else came of it."""
    try:
        await server.stub.SendMessage(sent)
    except Exception:  # noqa: BLE001 (looked at by what follows)
        error = await error_of(server.stub.SendMessage(sent))
        return error.message if isinstance(error, errors.PermissionDenied) else ""
    return ""


@pytest.mark.parametrize("method", MESSAGES)
async def test_every_kind_needs_the_right_it_stands_for(tmp_path: Path, method: str) -> None:
    """
    Without the one right it needs a message is denied, also on a stream; control: with it, it is
    not.
    """
    everything = Rule(principals=["*"], methods=["tidewire.v1.*"])
    denied = Rule(principals=["*"], methods=[method], effect="deny")
    sent = MESSAGES[method]
    async with eventflux(tmp_path / "denied", authorize=judge(everything, denied)) as server:
        unary = await outcome(server, sent)
        call = server.stub.StreamMessages()
        await call.write(sent)
        await call.done_writing()
        (answer,) = [each async for each in call]
    async with eventflux(tmp_path / "allowed", authorize=judge(everything)) as server:
        allowed = await outcome(server, sent)

    assert f"/tidewire.v1.{method}" == unary
    assert "PERMISSION_DENIED" == answer.headers["status"]
    assert "" == allowed


async def test_reading_and_beating_need_theirs(tmp_path: Path) -> None:
    """Streams of events are subscriptions, heartbeats are beats."""
    async with eventflux(tmp_path, authorize=judge()) as server:
        reading = await error_of(events(server.stub).read())
        beating = await error_of(server.stub.Heartbeat(transport_pb2.HeartbeatRequest(node_id="n")))

    assert "/tidewire.v1.EventService/Subscribe" == reading.message
    assert "/tidewire.v1.HeartbeatService/Beat" == beating.message


async def test_the_server_judges_by_its_rules(tmp_path: Path) -> None:
    """Rules of [access] as they are written: Transport alone does nothing, Transport and Put do."""
    for methods, allowed in (
        (["Transport/*"], False),
        (["StateService/*"], False),
        (["Transport/*", "StateService/Put"], True),
    ):
        rules = [{"principals": ["*"], "methods": methods}]
        folder = tmp_path / str(len(methods)) / methods[0].partition("/")[0]
        async with (
            running(folder, ("tcp",), access={"rules": rules}) as it,
            channel(it.url("tcp")) as opened,
        ):
            call = stub_of(opened).SendMessage(MESSAGES["StateService/Put"])
            if allowed:
                await call
            else:
                assert isinstance(await error_of(call), errors.PermissionDenied)
