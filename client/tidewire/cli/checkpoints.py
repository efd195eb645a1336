"""``tidewire checkpoint``: what operators have committed."""

from pathlib import Path
from typing import Any

import click

from tidewire.cli.groups import Group
from tidewire.cli.output import Output
from tidewire.cli.parameters import when
from tidewire.cli.settings import Settings, connection_options, pass_settings

PAGE: int = 100


@click.group(cls=Group)
def checkpoint() -> None:
    """List and show checkpoints of operators."""


@checkpoint.command(
    "list",
    epilog="\b\nExamples:\n  tidewire checkpoint list\n  tidewire checkpoint list daily-report",
)
@click.argument("operator", default="")
@connection_options
@pass_settings
def list_checkpoints(settings: Settings, operator: str) -> None:
    """List the last checkpoint of every operator, or all of one OPERATOR."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import checkpoint_pb2, checkpoint_pb2_grpc

    async def work(caller: Caller) -> list[Any]:
        found: list[Any] = []
        stub: Any = checkpoint_pb2_grpc.CheckpointServiceStub(caller.channel)
        request = checkpoint_pb2.ListCheckpointsRequest(operator=operator, page_size=PAGE)
        while True:
            page = await caller.call(stub.ListCheckpoints, request)
            found.extend(page.checkpoints)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    found = run_calls(settings, work)
    out = Output()
    if settings.json:
        for one in found:
            out.record(_plain(one))
        return
    out.table(
        ("operator", "revision", "epoch", "bytes", "time", "note"),
        [
            (one.operator, one.revision, one.epoch, one.state_bytes, when(one.time), one.note)
            for one in found
        ],
    )


@checkpoint.command(
    epilog="""\b
Examples:
  tidewire checkpoint show daily-report
  tidewire checkpoint show daily-report --revision 3 --state > state.bin
"""
)
@click.argument("operator")
@click.option("--revision", type=click.IntRange(0), default=0, help="Which one; else the last.")
@click.option("--state", is_flag=True, help="Write the state itself to standard output.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the state to this file.",
)
@connection_options
@pass_settings
def show(
    settings: Settings, operator: str, revision: int, state: bool, output: Path | None
) -> None:
    """Show a checkpoint of OPERATOR: its figures and positions, or its state."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.errors import CheckpointNotFound
    from tidewire.v1 import checkpoint_pb2, checkpoint_pb2_grpc

    with_state = state or output is not None

    async def work(caller: Caller) -> tuple[Any, bytes]:
        stub: Any = checkpoint_pb2_grpc.CheckpointServiceStub(caller.channel)
        request = checkpoint_pb2.LoadRequest(
            operator=operator, revision=revision, metadata_only=not with_state
        )
        response = await caller.call(stub.Load, request)
        if not response.HasField("checkpoint"):
            raise CheckpointNotFound(f"operator {operator!r} has no checkpoint")
        found = response.checkpoint
        return found, await _state(settings, caller, stub, found) if with_state else b""

    found, data = run_calls(settings, work)
    if output is not None:
        output.write_bytes(data)
        settings.note(f"wrote {len(data)} bytes to {output}")
    elif state:
        Output().raw(data)
    elif settings.json:
        Output().record(_plain(found))
    else:
        Output().listing(
            {
                "operator": found.operator,
                "revision": found.revision,
                "epoch": found.epoch,
                "state": f"{found.state_bytes} bytes",
                "digest": found.digest.hex(),
                "time": when(found.time),
                "note": found.note,
                "positions": {
                    f"{one.stream} {one.consumer}".strip(): one.through for one in found.positions
                },
            }
        )


async def _state(settings: Settings, caller: Any, stub: Any, found: Any) -> bytes:
    """The state of a checkpoint, put together and compared with its digest."""
    import hashlib

    from tidewire.errors import DigestMismatch
    from tidewire.v1 import checkpoint_pb2

    if found.WhichOneof("state") == "chunks":
        parts = []
        for number, chunk in enumerate(found.chunks.chunks, 1):
            request = checkpoint_pb2.GetChunkRequest(digest=chunk.digest)
            parts.append((await caller.call(stub.GetChunk, request)).data)
            settings.progress(f"chunk {number} of {len(found.chunks.chunks)}")
        settings.end_progress()
        data = b"".join(parts)
    else:
        data = found.inline
    if hashlib.sha256(data).digest() != found.digest:
        raise DigestMismatch(
            f"the state that came has {len(data)} bytes and another digest than the checkpoint"
        )
    return data


def _plain(one: Any) -> dict[str, object]:
    """A checkpoint in JSON, without its state: a terminal is no place for that."""
    return {
        "operator": one.operator,
        "revision": one.revision,
        "epoch": one.epoch,
        "state_bytes": one.state_bytes,
        "digest": one.digest.hex(),
        "time": when(one.time),
        "note": one.note,
        "positions": [
            {"stream": p.stream, "consumer": p.consumer, "through": p.through}
            for p in one.positions
        ],
    }
