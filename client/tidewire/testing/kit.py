"""Runs behaviours on a wire, one after another, and reports."""

import asyncio
import tempfile
import time
from asyncio import InvalidStateError
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidewire.client.translate import RPC_ERRORS, translate
from tidewire.errors import InvalidArgument, TidewireError
from tidewire.testing.behaviour import (
    ABILITIES,
    CERTIFICATES,
    LARGE,
    PRIORITIES,
    REFUSALS,
    STREAMS,
    TOKEN,
    Absent,
    Behaviour,
    Unmet,
)
from tidewire.testing.behaviours import BEHAVIOURS
from tidewire.testing.report import Outcome, Report, Result
from tidewire.testing.site import GRPC_SCHEMES, ServerMaker, Site, serve
from tidewire.transport import TlsConfig, channel, parse_url
from tidewire.transport.registry import listener_maker

if TYPE_CHECKING:
    from tidewire.testing.certificates import Trust

DATAGRAM_SCHEMES: Final = ("udp", "dtls")
BEHAVIOUR_LIMIT_S: Final = 60.0
"""No behaviour may take longer."""
CLOSE_LIMIT_S: Final = 15.0
"""Nor may its end."""


async def check_transport(
    listen_url: str,
    *,
    server: ServerMaker | None = None,
    encrypted: bool | None = None,
    carries: Collection[str] | None = None,
    only: Collection[str] | None = None,
) -> Report:
    """
    Run everything that must hold on every wire over one of them, and report.

    For each behaviour a server is started on the URL and a channel made to it, so the transport
    must be registered (``tidewire.transport.register`` and ``register_listener``, or an entry
    point). Needs the package ``cryptography`` (``tidewire[certs]``) for wires with certificates.

    Args:
        listen_url: Where to listen, such as ``third://127.0.0.1:0``; port 0 picks one.
        server: Serves handlers where the registry has no listeners of the scheme.
        encrypted: The wire has certificates; by default the registry says so.
        carries: What the wire carries beside unary calls; see ``ABILITIES``. A behaviour that
            needs more must end with the typed error that says so: else it has failed. By default
            everything; gRPC has no priorities, our datagrams have no streams and no large messages.
        only: Names of behaviours to run; by default all.

    Returns:
        A report with one result for each behaviour; nothing is skipped.

    Raises:
        InvalidArgument: The URL cannot be used, or an ability or a behaviour is not known.
    """
    if carries is None:
        carries = set(ABILITIES) - _lacking(parse_url(listen_url).scheme)
    chosen = _chosen(carries, only)
    if encrypted is None:
        encrypted = _is_encrypted(listen_url)
    able = set(carries)
    if not encrypted:
        able -= {CERTIFICATES}
    results = []
    with tempfile.TemporaryDirectory(prefix="tidewire-kit-") as folder:
        for number, behaviour in enumerate(chosen):
            (own := Path(folder, str(number))).mkdir()
            trust = _trust(own) if encrypted else None
            results.append(await _one(behaviour, listen_url, server or serve, trust, able))
    return Report(listen_url, encrypted, results)


def _lacking(scheme: str) -> frozenset[str]:
    """What a wire that comes with the package is known not to carry."""
    if scheme in GRPC_SCHEMES:
        return frozenset({PRIORITIES})
    return frozenset({STREAMS, LARGE}) if scheme in DATAGRAM_SCHEMES else frozenset()


def _trust(folder: Path) -> "Trust":
    from tidewire.testing.certificates import Trust

    return Trust(folder)


def check_transport_blocking(listen_url: str, **more: object) -> Report:
    """Do what :func:`check_transport` does, from code without an event loop."""
    return asyncio.run(check_transport(listen_url, **more))  # type: ignore[arg-type]  # its own


def _chosen(carries: Collection[str], only: Collection[str] | None) -> Sequence[Behaviour]:
    unknown = sorted(set(carries) - ABILITIES.keys())
    if unknown:
        raise InvalidArgument(f"{', '.join(unknown)}: abilities are {', '.join(ABILITIES)}")
    if only is None:
        return BEHAVIOURS
    names = {behaviour.name for behaviour in BEHAVIOURS}
    unknown = sorted(set(only) - names)
    if unknown:
        raise InvalidArgument(f"{', '.join(unknown)}: behaviours are {', '.join(sorted(names))}")
    return [behaviour for behaviour in BEHAVIOURS if behaviour.name in only]


def _is_encrypted(listen_url: str) -> bool:
    scheme = parse_url(listen_url).scheme
    if scheme.startswith("grpc"):
        return scheme == "grpcs"
    return listener_maker(scheme)[1]


async def _one(
    behaviour: Behaviour, listen_url: str, maker: ServerMaker, trust: "Trust | None", able: set[str]
) -> Result:
    began_s = time.monotonic()
    site = Site(listen_url, maker, trust)
    try:
        async with asyncio.timeout(BEHAVIOUR_LIMIT_S):
            await site.open()
            outcome, why = await _judge(behaviour, site, able)
    except TimeoutError:
        outcome, why = Outcome.FAILED, f"not done within {BEHAVIOUR_LIMIT_S:g} s"
    finally:
        why_open = await _close(site)
    if outcome is not Outcome.FAILED and why_open:
        outcome, why = Outcome.FAILED, why_open
    seconds = round(time.monotonic() - began_s, 3)
    return Result(behaviour.name, behaviour.group, behaviour.proves, outcome, why, seconds)


async def _close(site: Site) -> str:
    """Close a site; returns what is wrong when that does not work."""
    try:
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await site.close()
    except TimeoutError:
        return f"the channels and the server do not close within {CLOSE_LIMIT_S:g} s"
    except Exception as error:  # noqa: BLE001 (whatever a transport raises is its fault)
        return f"closing failed: {type(error).__name__}: {error}"
    return ""


async def _judge(behaviour: Behaviour, site: Site, able: set[str]) -> tuple[Outcome, str]:
    lacking = behaviour.needs - able
    if CERTIFICATES in lacking and site.trust is None:
        return _refuses_certificates(site.url)
    try:
        await behaviour.run(site)
    except Absent as absent:
        excused = absent.ability in lacking
        return Outcome.UNSUITABLE if excused else Outcome.FAILED, str(absent)
    except Unmet as unmet:
        return Outcome.FAILED, str(unmet)
    except (TidewireError, *RPC_ERRORS) as raised:
        told_by = await site.stream_error() if isinstance(raised, InvalidStateError) else None
        error = translate(told_by or raised)
        refusals = tuple(kind for ability in lacking for kind in REFUSALS[ability])
        if TOKEN in behaviour.needs and site.trust is None:
            refusals = (*refusals, *REFUSALS[TOKEN])
        told = f"{type(error).__name__}: {error.message}"
        if isinstance(error, refusals):
            return Outcome.UNSUITABLE, told
        return Outcome.FAILED, told
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a transport raises is its fault)
        return Outcome.FAILED, f"{type(error).__name__}: {error}"
    # Who waits behind bulk is luck: a wire without priorities may be lucky.
    if lacking := lacking - {PRIORITIES}:
        return Outcome.FAILED, f"it carries {', '.join(sorted(lacking))}, and is said not to"
    return Outcome.OK, ""


def _refuses_certificates(url: str) -> tuple[Outcome, str]:
    """A wire without encryption must not take certificates and then do nothing with them."""
    try:
        channel(url, tls=TlsConfig())
    except TidewireError as error:
        return Outcome.UNSUITABLE, f"{type(error).__name__}: {error.message}"
    return Outcome.FAILED, "certificates are given to it, and it ignores them"
