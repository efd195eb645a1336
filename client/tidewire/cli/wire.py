"""A channel to the server that the options name: all that a command needs at least."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tidewire.cli.settings import Settings
from tidewire.transport import TlsConfig, channel


def tls_of(settings: Settings) -> TlsConfig | None:
    """TLS as the options say it; ``None`` when they say nothing, and the URL may."""
    named = (settings.ca, settings.cert, settings.key, settings.server_name)
    if not any(named):
        return None
    return TlsConfig(
        ca=settings.ca,
        certificate=settings.cert,
        key=settings.key,
        server_name=settings.server_name,
    )


@asynccontextmanager
async def open_channel(settings: Settings) -> AsyncIterator[Any]:
    """Yield a bare channel to the server."""
    wire = channel(settings.url, tls=tls_of(settings))
    try:
        yield wire
    finally:
        await wire.close()
