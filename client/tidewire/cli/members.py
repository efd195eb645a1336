"""``tidewire members``: who is alive."""

from typing import TYPE_CHECKING, Any

import click

from tidewire.cli.output import Output
from tidewire.cli.parameters import enum_name, joined, long, when
from tidewire.cli.settings import Settings, connection_options, pass_settings

if TYPE_CHECKING:
    import tidewire


@click.command(
    epilog="""\b
Examples:
  tidewire members
  tidewire members --group pumps --watch --json
"""
)
@click.option("--group", default="", help="Only members of this group.")
@click.option("--all", "include_gone", is_flag=True, help="Also those that are dead or have left.")
@click.option("--watch", is_flag=True, help="Go on and print every change.")
@connection_options
@pass_settings
def members(settings: Settings, group: str, include_gone: bool, watch: bool) -> None:
    """Show the members of the cluster, and how they are."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import heartbeat_pb2, heartbeat_pb2_grpc

    if watch:
        _watch(settings, group)
        return

    async def work(caller: Caller) -> Any:
        stub: Any = heartbeat_pb2_grpc.HeartbeatServiceStub(caller.channel)
        request = heartbeat_pb2.ListMembersRequest(group=group, include_gone=include_gone)
        return await caller.call(stub.ListMembers, request)

    found = run_calls(settings, work).members
    out = Output()
    if settings.json:
        for one in found:
            out.record(one)
        return
    out.table(
        (
            "node",
            "status",
            "health",
            "groups",
            "incarnation",
            "lease",
            "last beat",
            "cpu",
            "memory",
        ),
        [_row(one) for one in found],
    )


def _row(one: Any) -> tuple[object, ...]:
    from tidewire.v1 import heartbeat_pb2

    node = one.node
    return (
        one.node_id,
        enum_name(heartbeat_pb2.MemberStatus, one.status, "MEMBER_STATUS_"),
        enum_name(heartbeat_pb2.NodeHealth, node.health, "NODE_HEALTH_"),
        joined(one.groups),
        one.incarnation,
        long(one.lease.ToNanoseconds() / 1e9),
        when(one.last_beat),
        f"{node.cpu_cores:.2f}" if node.HasField("cpu_cores") else "",
        f"{node.memory_bytes >> 20} MiB" if node.HasField("memory_bytes") else "",
    )


def _watch(settings: Settings, group: str) -> None:
    from tidewire.cli.session import run

    out = Output()

    async def work(client: "tidewire.Client") -> None:
        async with client.members.watch(group) as events:
            settings.note(f"watching {group or 'all members'}")
            async for event in events:
                if settings.json:
                    plain = {"status": event.status, "status_before": event.status_before}
                    out.record(plain | {"snapshot": event.snapshot, "member": event.member})
                    continue
                change = f"{event.status_before or 'new'} -> " if not event.snapshot else ""
                out.line(f"{event.member.node_id}\t{change}{event.status}")

    run(settings, work)
