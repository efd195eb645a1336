"""Control over every wire, through the public client."""

import asyncio

import pytest

import tidewire
from tidewire import errors
from tidewire.client.control import SentCommand

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 20.0


@pytest.mark.needs("streams")
async def test_a_node_a_group_and_all(client: tidewire.Client, name: str) -> None:
    """Each target gets the command, each node acknowledges and answers for itself."""
    a, b = f"{name}a", f"{name}b"

    def fails(_: tidewire.Command) -> None:
        raise errors.KeyNotFound("no such valve")

    handlers = {"name": lambda c: c.json()}
    async with (
        client.control.attend(a, {**handlers, "open": lambda _: "opened"}, groups=[name]),
        client.control.attend(b, {**handlers, "open": fails}, groups=[name]),
    ):
        one = await client.control.send("name", {"x": [1]}, node_id=a)
        sent = client.control.send("open", group=name)
        steps = [(step.node_id, step.progress) async for step in sent]
        everybody = await client.control.send("name", {"x": 1}, all_nodes=True)
        unknown = await client.control.send("close", node_id=a)

    assert {"x": [1]} == one.check().nodes[a].json()
    outcome = sent.outcome
    assert outcome is not None
    assert not outcome.succeeded
    assert b"opened" == outcome.nodes[a].result
    assert "no such valve" in str(outcome.nodes[b].error)
    assert (a, "acknowledged") in steps
    assert (b, "failed") in steps
    assert {a, b} <= set(everybody.nodes)
    assert "failed" == unknown.nodes[a].progress


@pytest.mark.needs("streams")
async def test_a_command_is_done_once(client: tidewire.Client, name: str) -> None:
    """The same id again answers what was done; with other content it is refused."""
    done: list[str] = []
    async with client.control.attend(name, {"do": lambda c: done.append(c.text)}):
        for _ in range(3):
            outcome = await client.control.send("do", "x", node_id=name, command_id=f"{name}-1")
            assert outcome.succeeded
        with pytest.raises(errors.CommandConflict):
            await client.control.send("do", "y", node_id=name, command_id=f"{name}-1")
    nodes, finished = await client.control.get(f"{name}-1")
    with pytest.raises(errors.CommandNotFound):
        await client.control.get(f"{name}-2")

    assert ["x"] == done
    assert (True, ["succeeded"]) == (finished, [node.progress for node in nodes])


@pytest.mark.needs("streams")
async def test_a_node_that_is_away_gets_it_in_time_or_never(
    client: tidewire.Client, name: str
) -> None:
    """It is delivered when the node comes, and expires when it does not."""
    expired = await client.control.send("do", node_id=name, expiry_s=0.3)
    sent = asyncio.ensure_future(_awaited(client.control.send("do", node_id=name, expiry_s=20)))
    await asyncio.sleep(0)
    done: list[str] = []
    async with client.control.attend(name, {"do": lambda c: done.append(c.command_id)}):
        outcome = await sent

    assert "expired" == expired.nodes[name].progress
    with pytest.raises(errors.DeadlineExceeded):
        expired.check()
    assert outcome.succeeded
    assert [outcome.command_id] == done


async def _awaited(sent: SentCommand) -> tidewire.CommandOutcome:
    return await sent


@pytest.mark.needs("streams")
async def test_commands_overtake_bulk(client: tidewire.Client, name: str) -> None:
    """A command sent behind megabytes of events of the same connection is done before their end."""
    order: list[str] = []
    async with (
        client.control.attend(name, {"do": lambda _: order.append("command")}),
        client.events.publisher(bulk=True) as publisher,
    ):
        await client.events.stream(name).create(name)
        sending = asyncio.create_task(_publish(publisher, name, order))
        await asyncio.sleep(0)
        await client.control.send("do", node_id=name)
        await sending

    assert ["command", "bulk"] == order


async def _publish(publisher: tidewire.Publisher, subject: str, order: list[str]) -> None:
    body = bytes(8 << 20)
    for _ in range(8):
        await publisher.publish(subject, body)
    await publisher.flush()
    order.append("bulk")


@pytest.mark.needs("streams")
async def test_the_server_takes_commands(client: tidewire.Client, name: str) -> None:
    """Pause and resume of a stream, the log level, the connections, and a refusal of nonsense."""
    await client.events.stream(name).create(name)

    async def tell(verb: str, arguments: dict[str, str] | None = None) -> object:
        outcome = await client.control.send(verb, arguments, node_id="test-server")
        return outcome.check().nodes["test-server"].json()

    await tell("pause_stream", {"name": name})
    with pytest.raises(errors.StreamPaused):
        await client.events.publish(name, "x", durability="fsync")
    await tell("resume_stream", {"name": name})
    stored = await client.events.publish(name, "x", durability="fsync")
    connections = await tell("list_connections")
    with pytest.raises(errors.InvalidArgument):
        await tell("set_log_level", {"level": "shout"})
    with pytest.raises(errors.InvalidArgument):
        await tell("explode")

    assert 1 == stored.sequence
    assert isinstance(connections, dict)
