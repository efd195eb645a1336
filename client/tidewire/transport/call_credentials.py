"""Metadata of ``grpc.CallCredentials``, for calls on encrypted raw wires."""

from typing import Any, Final

import grpc

from tidewire.errors import Unauthenticated, WireUnsuitable
from tidewire.transport.metadata import flat
from tidewire.wire.bodies import Metadata

_OK: Final = 0


def credentials_metadata(credentials: grpc.CallCredentials, url: str, method: str) -> Metadata:
    """
    Ask the plugins of call credentials for their metadata.

    Raises:
        Unauthenticated: A plugin failed.
        WireUnsuitable: A plugin answers later, from another thread; only gRPC wires wait for those.
    """
    core: Any = vars(credentials)["_credentials"]  # grpc has no public way to ask
    parts = getattr(core, "_call_credentialses", None) or (core,)
    pairs: list[tuple[str, str | bytes]] = []
    service_url = f"{url}{method.rpartition('/')[0]}"
    for part in parts:
        pairs.extend(_ask(part._metadata_plugin, service_url, method.rpartition("/")[2]))
    return tuple(pairs)


def _ask(plugin: Any, service_url: str, method: str) -> Metadata:
    answers: list[tuple[Any, Any, Any]] = []
    plugin(service_url, method, lambda *answer: answers.append(answer))
    if not answers:
        raise WireUnsuitable("call credentials that answer later work on grpc:// wires only")
    metadata, code, details = answers[0]
    if code != _OK:
        raise Unauthenticated(f"call credentials gave no metadata: {details!r}")
    return flat(metadata)
