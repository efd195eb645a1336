"""The table of commands, with clocks that are numbers."""

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from tidewire import errors
from tidewire.v1 import common_pb2, control_pb2
from tidewire_server.services.control import commands as module
from tidewire_server.services.control.commands import (
    ACKNOWLEDGED,
    EXPIRED,
    FAILED,
    PENDING,
    SENT,
    SUCCEEDED,
    Command,
    CommandTable,
)
from tidewire_server.services.control.record import decode_command, encode_command

EXPIRY_S = 30.0


def command(command_id: str = "c", *nodes: str, expires_s: float = EXPIRY_S) -> Command:
    request = control_pb2.SendRequest(command_id=command_id, verb="restart")
    return Command(
        request,
        nodes or ("n",),
        principal="p",
        sent_ns=1,
        expires_ns=int(expires_s * 1e9),
        expires_s=expires_s,
    )


def outcome(node_id: str = "n", progress: int = SUCCEEDED) -> control_pb2.NodeProgress:
    made = control_pb2.NodeProgress(node_id=node_id)
    made.progress = control_pb2.CommandProgress.ValueType(progress)
    made.time.FromNanoseconds(7)
    return made


class Heard:
    """A follower that remembers."""

    def __init__(self) -> None:
        self.nodes: list[str] = []

    def on_progress(self, node_id: str) -> None:
        self.nodes.append(node_id)


def test_progress_only_goes_forward() -> None:
    """A late SENT does not undo an acknowledgement, and nothing undoes the end."""
    table, one, heard = CommandTable(), command(), Heard()
    table.add(one, 0.0)
    one.followers[heard] = None

    assert table.advance(one, "n", ACKNOWLEDGED, 2)
    assert not table.advance(one, "n", SENT, 3)
    table.settle(one, outcome(), 1.0)
    table.settle(one, outcome(progress=FAILED), 1.0)
    assert (SUCCEEDED, 1.0, []) == (one.nodes["n"].progress, one.finished_s, table.open_at("n"))
    assert ["n", "n"] == heard.nodes


def test_what_is_not_done_in_time_expires() -> None:
    """At each node that has not ended; the others keep their outcome."""
    table, one = CommandTable(), command("c", "a", "b")
    table.add(one, 0.0)
    table.settle(one, outcome("a"), 1.0)
    assert EXPIRY_S == table.next_due_s()
    assert [] == table.expire(EXPIRY_S - 0.1, 5)
    assert 1 == one.open
    table.expire(EXPIRY_S, 5)

    assert {"a": SUCCEEDED, "b": EXPIRED} == {n: s.progress for n, s in one.nodes.items()}
    assert EXPIRY_S == one.finished_s
    assert [] == table.open_at("b")


def test_finished_commands_are_remembered_for_a_while() -> None:
    """So that repeating an id does nothing twice."""
    table, one = CommandTable(), command()
    table.add(one, 0.0)
    table.settle(one, outcome(), 1.0)
    kept_until_s = 1.0 + module.FINISHED_KEPT_S
    table.expire(kept_until_s - 1, 5)
    assert one is table.get("c")
    assert [one] == table.expire(kept_until_s, 5)

    assert table.get("c") is None
    assert (0, 0, 0) == (len(table), table.targets, table.bytes)


@pytest.mark.parametrize(
    ("limit", "value"),
    [("COMMANDS_MAX", 2), ("TARGETS_MAX", 2), ("KEPT_BYTES_MAX", 30), ("PENDING_PER_NODE_MAX", 2)],
)
def test_there_are_limits(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """What is under way is refused over them; what is over makes room."""
    monkeypatch.setattr(module, limit, value)
    table = CommandTable()
    one, two, three = command("c1"), command("c2"), command("c3")
    table.add(one, 0.0)
    table.add(two, 0.0)
    with pytest.raises(errors.Overloaded):
        table.add(three, 0.0)

    forgotten = [*table.settle(one, outcome(), 1.0), *table.add(three, 0.0)]
    assert three is table.get("c3")
    assert forgotten == [each for each in (one,) if table.get("c1") is None]


def test_deadlines_of_what_is_done_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short commands with long expiries: memory follows what is kept."""
    monkeypatch.setattr(module, "DEADLINES_SPARE", 10)
    monkeypatch.setattr(module, "COMMANDS_MAX", 5)
    table = CommandTable()
    for i in range(500):
        one = command(f"c{i}", expires_s=3600.0)
        table.add(one, 0.0)
        table.settle(one, outcome(), 0.0)
    last = command("last")
    table.add(last, 0.0)

    assert len(table._deadlines) <= 2 * len(table) + 11
    table.expire(EXPIRY_S, 1)
    assert EXPIRED == last.nodes["n"].progress


def test_the_same_id_with_other_content_is_a_conflict() -> None:
    """Target, verb, arguments and sender make the content; the expiry does not."""
    one = command()
    same = control_pb2.SendRequest(command_id="c", verb="restart")
    same.expiry.seconds = 5
    one.check_same(same, "p")
    others = [
        control_pb2.SendRequest(command_id="c", verb="stop"),
        control_pb2.SendRequest(
            command_id="c", verb="restart", target=control_pb2.Target(node_id="x")
        ),
        control_pb2.SendRequest(
            command_id="c", verb="restart", arguments=common_pb2.Payload(data=b"x")
        ),
    ]
    for other in others:
        with pytest.raises(errors.CommandConflict):
            one.check_same(other, "p")
    with pytest.raises(errors.CommandConflict):
        one.check_same(same, "somebody else")


def test_a_command_survives_the_store() -> None:
    """All of it, and every hand-over after it is a redelivery."""
    one = command("c/1,2", "a", "b")
    two = decode_command(encode_command(one), now_s=100.0, now_ns=int(20e9))

    assert (one.request, list(one.nodes), "p", one.sent_ns, one.expires_ns) == (
        two.request,
        list(two.nodes),
        two.principal,
        two.sent_ns,
        two.expires_ns,
    )
    assert 110.0 == two.expires_s
    assert all(state.handed_over and state.progress == PENDING for state in two.nodes.values())


@given(st.binary(max_size=80))
def test_garbage_from_the_store_is_a_typed_error(body: bytes) -> None:
    """Never anything else."""
    try:
        decode_command(body, now_s=0.0, now_ns=0)
    except errors.DataCorrupt:
        return


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "settle", "fail", "expire"]),
            st.integers(0, 5),
            st.sampled_from("ab"),
        ),
        max_size=40,
    )
)
def test_what_is_open_at_a_node_is_what_is_not_done_there(
    steps: list[tuple[str, int, str]],
) -> None:
    """Against a scan over all commands, whatever happens."""
    table = CommandTable()
    now_s = 0.0
    for act, number, node_id in steps:
        now_s += 1.0
        one = table.get(f"c{number}")
        if act == "add" and one is None:
            table.add(command(f"c{number}", "a", "b", expires_s=now_s + number), now_s)
        elif act in ("settle", "fail") and one is not None:
            progress = SUCCEEDED if act == "settle" else FAILED
            table.settle(one, outcome(node_id, progress), now_s)
        elif act == "expire":
            table.expire(now_s, 1)
        for node in "ab":
            every = [each for i in range(6) if (each := table.get(f"c{i}")) is not None]
            still = {each.command_id for each in every if not each.nodes[node].done}
            assert still == {each.command_id for each in table.open_at(node)}
            assert all((each.open == 0) == (each.finished_s is not None) for each in every)


def test_a_failure_keeps_its_error() -> None:
    """As the node told it."""
    table, one = CommandTable(), command()
    table.add(one, 0.0)
    failed = outcome(progress=FAILED)
    failed.error.CopyFrom(status_pb2.Status(code=5, message="no"))
    table.settle(one, failed, 1.0)

    assert "no" == one.nodes["n"].to_proto("n").error.message
