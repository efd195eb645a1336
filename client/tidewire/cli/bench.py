"""``tidewire bench``: how fast a server is from here, over one wire or all of its wires."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from tidewire.cli.output import Output
from tidewire.cli.parameters import SECONDS, SIZE
from tidewire.cli.settings import Settings, connection_options, pass_settings

if TYPE_CHECKING:
    import tidewire
    from tidewire.cli.load import Load, Measured

KINDS: Final = ("call", "query", "events", "durable")
IN_FLIGHT_MAX: Final = 4_096
ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 (what a server may say, not do)
COLUMNS: Final = ("wire", "what", "a second", "p50 us", "p99 us", "p99.9 us", "lost", "limit")


@click.command(
    epilog="""\b
"call" reads a key that is not there, "query" asks a responder of its own through the server,
"events" publishes to a subscription of its own; none of them stores anything. "durable" publishes
into a stream that it makes and removes again.

\b
With --rate, requests and messages go at that rate whether answers come or not, and a latency
counts from the time its request was meant to go. The last column says who had no more to give.

\b
Examples:
  tidewire bench
  tidewire bench events --bytes 1k --rate 5000 --seconds 10
  tidewire bench --all-wires --json
"""
)
@click.argument("kinds", nargs=-1, type=click.Choice(KINDS))
@click.option("--seconds", type=SECONDS, default=3.0, help="Of each measurement.  [default: 3]")
@click.option("--bytes", "size", type=SIZE, default=128, help="Of a payload.  [default: 128]")
@click.option("--rate", type=click.FloatRange(0.0), default=0.0, help="A second; 0: all it can.")
@click.option(
    "--in-flight",
    type=click.IntRange(1, IN_FLIGHT_MAX),
    multiple=True,
    help="Calls at a time; may be repeated.  [default: 1 and 64]",
)
@click.option("--all-wires", is_flag=True, help="Every listener the server tells of.")
@connection_options
@pass_settings
def bench(settings: Settings, /, kinds: tuple[str, ...], all_wires: bool, **options: Any) -> None:
    """Measure rate and latency of KINDS: call, query, events, durable."""
    import asyncio

    results = asyncio.run(_measure(settings, kinds or KINDS[:3], all_wires, options))
    out = Output()
    if settings.json:
        for measured in results:
            out.record(_record(measured))
    else:
        out.table(COLUMNS, [_row(measured) for measured in results])


async def _measure(
    settings: Settings, kinds: tuple[str, ...], all_wires: bool, options: dict[str, Any]
) -> "list[Measured]":
    from tidewire.cli.load import Load, Measured
    from tidewire.errors import TidewireError

    results: list[Measured] = []
    places = await _listeners(settings) if all_wires else [(settings.url, True)]
    for url, with_certificates in places:
        wire = url.partition("://")[0]
        try:
            async with _connected(settings, url, with_certificates) as client:
                load = Load(
                    client,
                    wire,
                    seconds=options["seconds"],
                    size=options["size"],
                    rate=options["rate"],
                )
                for kind in kinds:
                    settings.progress(f"{wire}: {kind}")
                    results += await _one(load, kind, options["in_flight"], wire)
        except TidewireError as error:
            if not all_wires:
                raise
            results.append(Measured("connect", wire, error=error.message))
    settings.end_progress()
    return results


async def _one(load: "Load", kind: str, in_flight: tuple[int, ...], wire: str) -> "list[Measured]":
    from tidewire.cli.load import Measured
    from tidewire.errors import TidewireError

    try:
        if kind == "events":
            return [await load.events()]
        if kind == "durable":
            return [await load.durable()]
        call = load.call if kind == "call" else load.query
        return [await call(count) for count in in_flight or (1, 64)]
    except TidewireError as error:
        return [Measured(kind, wire, error=error.message)]


async def _listeners(settings: Settings) -> list[tuple[str, bool]]:
    """
    Every listener of the server and whether it is encrypted; those on all addresses by the host of
    our own URL.
    """
    async with _connected(settings, settings.url, True) as client:
        info = await client.info()
    host = urlsplit(settings.url).hostname or "127.0.0.1"
    places = []
    for listener in info.listeners:
        parts = urlsplit(listener.url)
        url = listener.url  # urlsplit would put unix:///path together as unix:/path
        if parts.hostname in ANY_HOST:
            url = parts._replace(netloc=f"{host}:{parts.port}").geturl()
        places.append((url, listener.encrypted))
    return places


@asynccontextmanager
async def _connected(
    settings: Settings, url: str, with_certificates: bool
) -> "AsyncIterator[tidewire.Client]":
    import tidewire
    from tidewire.cli.wire import tls_of

    async with tidewire.connect(
        url,
        tls=tls_of(settings) if with_certificates else None,
        timeout_s=settings.timeout_s,
        connect_timeout_s=settings.timeout_s,
    ) as client:
        yield client


def _record(measured: "Measured") -> dict[str, Any]:
    record: dict[str, Any] = {"wire": measured.wire, "what": measured.what}
    if measured.error and not measured.done:
        return record | {"error": measured.error}
    shares = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
    record |= {"per_s": round(measured.rate, 1), "done": measured.done, "lost": measured.lost}
    for name, share in shares.items():
        value = measured.percentile_us(share)
        record[name] = None if value is None else round(value, 1)
    server = measured.server_cores
    record["client_cores"] = round(measured.client_cores, 2)
    record["server_cores"] = None if server is None else round(server, 2)
    return record | {"limit": measured.limit}


def _row(measured: "Measured") -> list[object]:
    if measured.error and not measured.done:
        return [measured.wire, measured.what, "", "", "", "", "", measured.error]
    times = (measured.percentile_us(share) for share in (0.5, 0.99, 0.999))
    return [
        measured.wire,
        measured.what,
        f"{measured.rate:,.0f}",
        *("" if value is None else f"{value:,.0f}" for value in times),
        measured.lost,
        measured.limit,
    ]
