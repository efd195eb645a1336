"""
``tidewire health``: is a server there, and does it take calls?

The call of ``grpc.health.v1`` is written by hand here: its two messages have one field each, and
the package that has them is not part of a bare install.
"""

import asyncio
from typing import Final

import click

from tidewire.cli.output import Output
from tidewire.cli.settings import Settings, connection_options, pass_settings

EXIT_INVALID: Final = 1
EXIT_NOT_CONNECTED: Final = 2
EXIT_CALL_FAILED: Final = 3
EXIT_NOT_SERVING: Final = 4
METHOD: Final = "/grpc.health.v1.Health/Check"
STATUSES: Final = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
SERVICE_BYTES_MAX: Final = 1_024


@click.command(
    epilog="""\b
Exit codes, as those of grpc_health_probe:
  0 serving, 1 wrong arguments, 2 not connected, 3 the call failed, 4 not serving

\b
Examples:
  tidewire health
  tidewire health --url grpc://127.0.0.1:50051 tidewire.v1.StateService
  tidewire health --url unix:///run/tidewire.sock
"""
)
@click.argument("service", default="")
@connection_options
@pass_settings
def health(settings: Settings, service: str) -> int:
    """Ask whether a server, or one SERVICE of it, takes calls."""
    import grpc.aio

    from tidewire.cli.wire import open_channel
    from tidewire.errors import TidewireError

    if "://" in service:
        click.echo(f"tidewire: SERVICE is a name; say --url {service}", err=True)
        return EXIT_INVALID
    if len(service.encode()) > SERVICE_BYTES_MAX:
        click.echo("tidewire: the name of the service is too long.", err=True)
        return EXIT_INVALID

    async def check() -> str:
        async with open_channel(settings) as channel:
            call = channel.unary_unary(
                METHOD, request_serializer=encode_request, response_deserializer=decode_status
            )
            return str(await call(service, timeout=settings.timeout_s))

    try:
        status = asyncio.run(check())
    except grpc.aio.AioRpcError as error:
        code = error.code()
        if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            click.echo(f"tidewire: {settings.url}: {code.name}: {error.details()}", err=True)
            return EXIT_CALL_FAILED
        from tidewire.cli.advice import explain
        from tidewire.client.translate import translate

        click.echo(f"tidewire: {explain(translate(error), settings)}", err=True)
        return EXIT_NOT_CONNECTED
    except TidewireError as error:
        click.echo(f"tidewire: {error.message}", err=True)
        return EXIT_INVALID
    if settings.json:
        Output().record({"url": settings.url, "service": service, "status": status})
    else:
        Output().line(status)
    return 0 if status == "SERVING" else EXIT_NOT_SERVING


def encode_request(service: str) -> bytes:
    """Encode HealthCheckRequest: field 1, text; absent when empty."""
    data = service.encode()
    return b"\x0a" + _varint(len(data)) + data if data else b""


def decode_status(data: bytes) -> str:
    """Decode HealthCheckResponse: field 1, an enum below 128; absent means 0."""
    number = data[1] if len(data) == 2 and data[0] == 0x08 else 0
    return STATUSES[number] if number < len(STATUSES) else "UNKNOWN"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
