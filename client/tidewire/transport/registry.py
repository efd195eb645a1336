"""
Which scheme is carried by what: the wires of this library, and what others add.

A third party adds a scheme by an entry point of the group ``tidewire.transports`` whose name is
the scheme and whose object is a :class:`Transport`; its listeners by one of the group
``tidewire.listeners`` whose object is a :class:`ListenerMaker`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc.aio

from tidewire.errors import InvalidArgument
from tidewire.transport.options import TransportOptions
from tidewire.transport.tls import ServerTls, TlsConfig
from tidewire.transport.url import WireUrl, parse_url

if TYPE_CHECKING:
    from tidewire.transport.server import RawServer

ENTRY_POINTS: Final = "tidewire.transports"
LISTENER_ENTRY_POINTS: Final = "tidewire.listeners"

_LOGGER = logging.getLogger(__name__)


class Transport(Protocol):
    """Makes channels of one scheme."""

    def __call__(
        self,
        url: WireUrl,
        *,
        tls: TlsConfig | None,
        options: TransportOptions,
        interceptors: Sequence[grpc.aio.ClientInterceptor],
        codecs: Sequence[int],
    ) -> grpc.aio.Channel:
        """Return a channel that connects when it is first used."""
        ...


class WireListener(Protocol):
    """
    Accepts the connections of one URL.

    Attributes:
        url: What it listens on, with the port that was picked.
        tls: Its certificates; ``None`` on a wire that is not encrypted.
    """

    url: WireUrl
    tls: ServerTls | None

    def start(self) -> None:
        """Begin to accept, in the running event loop."""
        ...

    def close(self) -> None:
        """Accept no more; connections that are there stay."""
        ...


class ListenerMaker(Protocol):
    """
    Binds listeners of one scheme.

    An attribute ``encrypted`` that is true says that the scheme has certificates.
    """

    def __call__(self, server: "RawServer", url: WireUrl, tls: ServerTls | None, /) -> WireListener:
        """Return a listener that is bound and does not accept yet; raise InvalidArgument."""
        ...


@dataclass(frozen=True, slots=True)
class Missing:
    """A scheme that is known and cannot be used here."""

    scheme: str
    reason: str


@dataclass(frozen=True, slots=True)
class WireStatus:
    """
    What can be done with a scheme here.

    Attributes:
        scheme: Scheme of its URLs.
        client: Clients can use it.
        server: Servers can listen on it.
        encrypted: It has certificates; ``None`` where there is no listener to ask.
        reason: Why a side of it cannot be used; empty when both can.
    """

    scheme: str
    client: bool
    server: bool
    encrypted: bool | None
    reason: str = ""


_TRANSPORTS: dict[str, Transport] = {}
_LISTENERS: dict[str, tuple[ListenerMaker, bool]] = {}
_SERVED_BY_GRPC: Final = {"grpc": False, "grpcs": True, "grpc+unix": False}
"""Schemes that gRPC's own server listens on, and whether they have certificates."""
_MISSING: dict[str, Missing] = {}
_NO_LISTENER: dict[str, str] = {}
"""Why servers cannot listen on a scheme that somebody has listeners for."""
_loaded = False


def register(scheme: str, transport: Transport) -> None:
    """Let ``scheme`` be carried by ``transport``; raise ``ValueError`` when it is taken."""
    if scheme in _TRANSPORTS:
        raise ValueError(f"the scheme {scheme} is registered already")
    _TRANSPORTS[scheme] = transport
    _MISSING.pop(scheme, None)


def register_listener(scheme: str, maker: ListenerMaker, *, encrypted: bool = False) -> None:
    """
    Let servers listen on ``scheme`` by ``maker``; raise ``ValueError`` when it is taken.

    Args:
        scheme: Scheme of the URLs.
        maker: Binds a listener.
        encrypted: The scheme needs certificates, and gets them.
    """
    if scheme in _LISTENERS:
        raise ValueError(f"the listeners of {scheme} are registered already")
    _LISTENERS[scheme] = (maker, encrypted)


def imported_from(place: str) -> Any:
    """
    Return a maker of channels or listeners that is imported when a wire is made of it.

    Most clients use one wire: what the others need is not loaded for them, nor is a library that is
    an extra.

    Args:
        place: ``module:name``, as entry points write it.
    """
    module, _, name = place.partition(":")

    def make(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    return make


def register_missing(scheme: str, reason: str) -> None:
    """Say why a scheme cannot be used, and which extra to install."""
    if scheme not in _TRANSPORTS:
        _MISSING[scheme] = Missing(scheme, reason)


def _load() -> None:
    global _loaded  # noqa: PLW0603 (entry points are read once)
    if _loaded:
        return
    _loaded = True
    _load_group(ENTRY_POINTS, _TRANSPORTS, register, register_missing)

    def add_listener(scheme: str, maker: Any) -> None:
        register_listener(scheme, maker, encrypted=bool(getattr(maker, "encrypted", False)))

    _load_group(LISTENER_ENTRY_POINTS, _LISTENERS, add_listener, _NO_LISTENER.__setitem__)


def _load_group(
    group: str,
    known: Mapping[str, object],
    add: Callable[[str, Any], None],
    refuse: Callable[[str, str], None],
) -> None:
    """Take what other distributions offer; what cannot be loaded is kept with its reason."""
    for point in entry_points(group=group):
        if point.name in known:
            _LOGGER.warning(
                "%s of %s is left out: the scheme %s is there already",
                point.value,
                point.dist.name if point.dist is not None else "a distribution",
                point.name,
            )
            continue
        try:
            loaded = point.load()
        except Exception as error:  # noqa: BLE001 (code of others, which may fail in any way)
            refuse(point.name, f"{point.value} cannot be loaded: {error}")
        else:
            add(point.name, loaded)


def wires() -> tuple[WireStatus, ...]:
    """Return every scheme that is known here, sorted: what works, and why the rest does not."""
    _load()
    schemes = {*_TRANSPORTS, *_LISTENERS, *_MISSING, *_NO_LISTENER}
    return tuple(_status(scheme) for scheme in sorted(schemes))


def _status(scheme: str) -> WireStatus:
    encrypted: bool | None = None
    client, server = scheme in _TRANSPORTS, scheme in _LISTENERS
    if server:
        encrypted = _LISTENERS[scheme][1]
    elif client and scheme in _SERVED_BY_GRPC:
        server, encrypted = True, _SERVED_BY_GRPC[scheme]
    reasons = []
    if not client:
        absent = _MISSING.get(scheme)
        reasons.append(absent.reason if absent else "nobody has registered a transport for it")
    if not server and (client or scheme in _NO_LISTENER):
        reasons.append(_NO_LISTENER.get(scheme, "nobody has registered listeners for it"))
    return WireStatus(scheme, client, server, encrypted, "; ".join(reasons))


def listener_schemes() -> tuple[str, ...]:
    """Return the schemes raw servers can listen on."""
    _load()
    return tuple(_LISTENERS)


def encrypted_schemes() -> frozenset[str]:
    """Return the schemes that have certificates."""
    _load()
    encrypted = {scheme for scheme, (_, is_encrypted) in _LISTENERS.items() if is_encrypted}
    return frozenset((*encrypted, "grpcs"))


def listener_maker(scheme: str) -> tuple[ListenerMaker, bool]:
    """
    Return what binds listeners of a scheme, and whether it needs certificates.

    Raises:
        InvalidArgument: Raw servers cannot listen on it; the message lists what they can.
    """
    _load()
    if scheme not in _LISTENERS:
        known = ", ".join(f"{name}://" for name in sorted(_LISTENERS))
        absent = _MISSING.get(scheme)
        reason = _NO_LISTENER.get(scheme) or (absent.reason if absent else "")
        why = f"; {scheme}:// is missing: {reason}" if reason else ""
        raise InvalidArgument(f"a raw server listens on {known}, not on {scheme}://{why}")
    return _LISTENERS[scheme]


def transports() -> Mapping[str, Transport]:
    """Return what can be used, by scheme."""
    _load()
    return dict(_TRANSPORTS)


def missing() -> tuple[Missing, ...]:
    """Return what is known and cannot be used here, with reasons."""
    _load()
    return tuple(_MISSING.values())


def channel(
    url: str,
    *,
    tls: TlsConfig | None = None,
    options: TransportOptions | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    codecs: Sequence[int] = (),
) -> grpc.aio.Channel:
    """
    Return a ``grpc.aio.Channel`` for a URL such as ``tcp://localhost:7401``; every generated stub
    works on it.

    Args:
        url: Scheme, host and port; on ``tls`` and ``grpcs`` also ``?ca=&cert=&key=&server_name=``.
        tls: The same as an object; it wins over the URL as a whole.
        options: Limits, waits and sockets.
        interceptors: Interceptors of ``grpc.aio``, of any shape.
        codecs: Numbers of the codecs this client can decompress, for HELLO.

    Returns:
        A channel that connects when it is first used. Close it.

    Raises:
        InvalidArgument: The URL cannot be used; the message lists what can.
    """
    parsed = parse_url(url)
    transport = transports().get(parsed.scheme)
    if transport is None:
        raise InvalidArgument(_unknown(parsed.scheme))
    return transport(
        parsed,
        tls=tls or parsed.tls,
        options=options or TransportOptions(),
        interceptors=interceptors,
        codecs=codecs,
    )


def _unknown(scheme: str) -> str:
    known = ", ".join(f"{name}://" for name in sorted(_TRANSPORTS))
    text = f"{scheme}:// is no wire here; there are {known}"
    for absent in _MISSING.values():
        text += f"; {absent.scheme}:// is missing: {absent.reason}"
    return text
