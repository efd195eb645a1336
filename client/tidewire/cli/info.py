"""``tidewire info``: what a server is and allows."""

from typing import Any

import click

from tidewire.cli.output import Output, to_plain
from tidewire.cli.parameters import enum_name, when
from tidewire.cli.settings import Settings, connection_options, pass_settings


@click.command(
    epilog="\b\nExamples:\n  tidewire info\n  tidewire info --url grpc://127.0.0.1:50051 --json"
)
@connection_options
@pass_settings
def info(settings: Settings) -> None:
    """Show a server's version, limits, codecs, listeners, engine, and who you are to it."""
    from tidewire.cli.session import Caller, run_calls
    from tidewire.v1 import common_pb2, server_pb2, server_pb2_grpc

    async def work(caller: Caller) -> Any:
        stub: Any = server_pb2_grpc.ServerServiceStub(caller.channel)
        return await caller.call(stub.GetInfo, server_pb2.GetInfoRequest())

    answer = run_calls(settings, work)
    out = Output()
    if settings.json:
        out.record(answer)
        return
    durability = common_pb2.Durability
    out.listing(
        {
            "node": answer.node_id,
            "version": answer.version,
            "cluster": answer.cluster_id,
            "started": f"{when(answer.started)}, epoch {answer.epoch}",
            "draining": "yes" if answer.draining else "no",
            "you are": answer.principal or "not authenticated",
            "listeners": ", ".join(_listener(one) for one in answer.listeners),
            "engine": answer.engine,
            "durability": (
                f"{enum_name(durability, answer.durability_default, 'DURABILITY_')} by default, "
                f"{enum_name(durability, answer.durability_max, 'DURABILITY_')} at most"
            ),
            "codecs": ", ".join(
                enum_name(common_pb2.Codec, one, "CODEC_") for one in answer.codecs
            ),
            "limits": {name: int(value) for name, value in to_plain(answer.limits).items()},
            "components": dict(sorted(answer.components.items())),
        }
    )


def _listener(one: Any) -> str:
    words = "encrypted" if one.encrypted else "not encrypted"
    if one.client_certificate_required:
        words += ", client certificate"
    return f"{one.url} ({words})"
