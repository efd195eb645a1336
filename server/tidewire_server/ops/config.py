"""
The server's options: their names, types, bounds, defaults and meaning, and what must hold between
them.

One section is one struct; an unknown key is an error. Where values come from (flags, environment,
file) is `tidewire_server.ops.config_sources`. Times are numbers of seconds (``_s``), sizes
numbers of bytes (``_bytes``), maxima end in ``_max``. Options that hold secrets do not exist:
keys are files, named here by path.
"""

import hashlib
import ipaddress
import re
import socket
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta, Struct

from tidewire.errors import InvalidArgument
from tidewire.v1 import common_pb2
from tidewire.wire.limits import WireLimits
from tidewire_server.core import ServiceLimits

ENCRYPTED_SCHEMES: Final = frozenset({"dtls", "grpcs", "quic", "tls", "wss"})
LOCAL_SCHEMES: Final = frozenset({"grpc+unix", "memory", "unix"})
LISTENERS_MAX: Final = 64
RULES_MAX: Final = 1_024
ORIGINS_MAX: Final = 256
KIB: Final = 1024
MIB: Final = 1024 * KIB

CodecName = Literal["none", "lz4", "snappy", "zstd"]


class ConfigError(InvalidArgument):
    """
    The configuration cannot be used; the message names the option, where it was set, and what
    fits.
    """


def about(text: str) -> Meta:
    """Describe an option."""
    return Meta(description=text)


def count(text: str, least: int = 1, most: int = (1 << 31) - 1) -> Meta:
    """Describe an option that is a whole number, with its bounds."""
    return Meta(ge=least, le=most, description=text)


def time_s(text: str, least: float = 0.0, most: float = 86_400.0) -> Meta:
    """Describe an option that is a time in seconds, with its bounds."""
    return Meta(ge=least, le=most, description=text)


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of options."""


def default_node_id() -> str:
    """The host's name as a subject token: other characters become "-", at most 64."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0])
    return name.strip("-")[:64] or "tidewire"


class Server(Section, frozen=True):
    """[server]: who this server is and where its data is."""

    node_id: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="name of this server among the nodes"),
    ] = msgspec.field(default_factory=default_node_id)
    data_dir: Annotated[str, Meta(min_length=1, description="folder of the durable store")] = (
        "./tidewire-data"
    )
    workers: Annotated[
        int,
        count("processes that take the connections of tcp, tls, ws and wss; 0: none", 0, 64),
    ] = 0


class Listen(Section, frozen=True):
    """[listen]: where the server listens, and how."""

    urls: Annotated[
        list[str],
        Meta(
            min_length=1,
            max_length=LISTENERS_MAX,
            description="one URL per listener; port 0 picks one",
        ),
    ] = msgspec.field(default_factory=lambda: ["grpc://127.0.0.1:50051", "tcp://127.0.0.1:7401"])
    insecure: Annotated[
        bool, about("allow unencrypted listeners on addresses other machines can reach")
    ] = False


class Tls(Section, frozen=True):
    """
    [tls]: certificates of the encrypted listeners, as PEM files; new files are taken up while
    running.
    """

    ca: Annotated[
        str, about("certificates of the authorities that clients' certificates come from")
    ] = ""
    certificate: Annotated[str, about("the server's certificate, followed by its chain")] = ""
    key: Annotated[str, about("the server's private key")] = ""
    require_client_certificate: Annotated[
        bool, about("refuse clients without a certificate of `tls.ca`")
    ] = True
    reload_interval_s: Annotated[
        float, time_s("how often the files are looked at for a change", least=0.05)
    ] = 10.0


class Admin(Section, frozen=True):
    """
    [admin]: the HTTP listener for probes and metrics. It is never encrypted and changes nothing.
    """

    enabled: Annotated[bool, about("serve /livez, /readyz and /metrics")] = True
    address: Annotated[str, about("host:port; port 0 picks one")] = "127.0.0.1:9464"
    insecure: Annotated[bool, about("allow an address other machines can reach")] = False


class Log(Section, frozen=True):
    """[log]: what is written to stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], about("least important level")
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "console"], about("auto: console on a terminal, else JSON lines")
    ] = "auto"


class Limits(Section, frozen=True):
    """[limits]: bounds of the services; clients are told those that concern them."""

    payload_bytes_max: Annotated[int, count("largest payload or batch body")] = 10 * MIB
    overhead_bytes_max: Annotated[int, count("largest request outside of its payload")] = 256 * KIB
    batch_messages_max: Annotated[int, count("messages in a batch", most=65_536)] = 65_536
    ack_pending_max: Annotated[int, count("unacknowledged messages of a consumer")] = 65_536
    response_bytes_max: Annotated[int, count("largest answer of lists and fetches")] = 4 * MIB
    transaction_operations_max: Annotated[int, count("operations in a State transaction")] = 128
    chunk_bytes_max: Annotated[int, count("largest chunk of a checkpoint")] = MIB
    publish_pending_bytes_max: Annotated[
        int, count("bytes published on one stream and not acknowledged")
    ] = 16 * MIB
    publish_pending_messages_max: Annotated[
        int, count("messages published on one stream and not acknowledged")
    ] = 262_144
    subscriber_pending_bytes_max: Annotated[
        int, count("bytes kept for one slow live subscriber before it loses messages")
    ] = 8 * MIB
    subscriber_pending_messages_max: Annotated[
        int, count("messages kept for one slow live subscriber before it loses some")
    ] = 262_144
    subscriber_stall_s: Annotated[
        float, time_s("a subscriber that takes nothing for this long is cut off", least=0.01)
    ] = 10.0
    unary_wait_s_max: Annotated[float, time_s("longest wait of Fetch and Changes")] = 30.0

    def to_service(self) -> ServiceLimits:
        """The bounds as the services take them."""
        return ServiceLimits(**msgspec.structs.asdict(self))


class Wire(Section, frozen=True):
    """[wire]: bounds of connections."""

    connections_max: Annotated[
        int, count("connections of each wire; of all workers together where they take them")
    ] = 10_000
    handshake_timeout_s: Annotated[float, time_s("time for a TLS handshake", least=0.01)] = 3.0
    calls_max: Annotated[int, count("calls open at the same time on one connection")] = 1_024
    frame_bytes_max: Annotated[int, count("largest frame of a raw wire", least=256)] = 256 * KIB + 8
    message_bytes_max: Annotated[
        int, count("largest message of any wire; payload limit and overhead must fit")
    ] = 10 * MIB + 256 * KIB
    call_credit_bytes: Annotated[int, count("flow-control window of a call")] = MIB
    connection_credit_bytes: Annotated[int, count("flow-control window of a connection")] = 16 * MIB
    unread_bytes_max: Annotated[
        int, count("messages of one connection that the services have not taken yet")
    ] = 16 * MIB
    unsent_bytes_max: Annotated[
        int, count("bytes made for one connection and not taken by the network")
    ] = 256 * KIB
    hello_timeout_s: Annotated[float, time_s("time for a connection's first frame", least=0.01)] = (
        3.0
    )
    frame_timeout_s: Annotated[float, time_s("time for one frame to arrive", least=0.01)] = 10.0
    keepalive_s: Annotated[float, time_s("silence after which the peer is pinged", least=0.01)] = (
        30.0
    )
    ping_timeout_s: Annotated[float, time_s("time for the answer to a ping", least=0.01)] = 10.0
    backlog: Annotated[
        int, count("connections the kernel holds until they are accepted", most=65_535)
    ] = 1_024
    tcp_keepalive_s: Annotated[
        int,
        count("idle time before the kernel probes a TCP peer; 0 is never", least=0, most=32_767),
    ] = 30
    write_timeout_s: Annotated[
        float,
        time_s("time for a TCP peer's kernel to acknowledge what was sent; 0 is the kernel's"),
    ] = 30.0
    send_buffer_bytes: Annotated[
        int, count("SO_SNDBUF; 0 is the kernel's, 512 KiB for unix", least=0, most=64 * MIB)
    ] = 0
    receive_buffer_bytes: Annotated[
        int, count("SO_RCVBUF of a connection; 0 is the kernel's", least=0, most=64 * MIB)
    ] = 0

    datagram_bytes: Annotated[
        int,
        count("largest datagram of udp:// and dtls://", least=512, most=65_507),
    ] = 1_200

    def to_wire(self) -> WireLimits:
        """The bounds as raw connections take them."""
        known = set(WireLimits.__dataclass_fields__)
        values = msgspec.structs.asdict(self)
        return WireLimits(**{name: value for name, value in values.items() if name in known})


class WebSocket(Section, frozen=True):
    """[websocket]: who may connect to ws:// and wss://."""

    origins: Annotated[
        list[Annotated[str, Meta(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+)$")]],
        Meta(
            max_length=ORIGINS_MAX,
            description="origins of pages that may connect, such as https://app.example; "
            "* is every page, none is no browser",
        ),
    ] = msgspec.field(default_factory=list)
    hosts: Annotated[
        list[Annotated[str, Meta(pattern=r"^[A-Za-z0-9._~:\[\]-]+$")]],
        Meta(
            max_length=ORIGINS_MAX,
            description="values of Host that are served, as clients write them; none is any",
        ),
    ] = msgspec.field(default_factory=list)
    client_certificates: Annotated[
        bool,
        about(
            "clients of wss:// are asked for certificates as [tls] says; false for browsers, which"
            " give up when they are asked: then a token says who they are"
        ),
    ] = True


class Drain(Section, frozen=True):
    """[drain]: how the server goes when it is told to."""

    wait_s: Annotated[
        float,
        time_s("time between NOT_SERVING and the first refusal, for load balancers to notice"),
    ] = 0.0
    grace_s: Annotated[float, time_s("time for work in flight to finish before it is cut")] = 10.0


class Codecs(Section, frozen=True):
    """[codecs]: how bodies may be compressed."""

    allowed: Annotated[list[CodecName], Meta(min_length=1, description="codecs bodies may use")] = (
        msgspec.field(default_factory=lambda: ["none", "lz4", "snappy", "zstd"])
    )

    def to_proto(self) -> tuple[common_pb2.Codec.ValueType, ...]:
        """The codecs as the contract numbers them, without repetitions."""
        names = dict.fromkeys(f"CODEC_{name.upper()}" for name in self.allowed)
        return tuple(common_pb2.Codec.Value(name) for name in names)


class Engine(Section, frozen=True):
    """[engine]: the embedded store."""

    group_transactions_max: Annotated[int, count("transactions flushed together")] = 4_096
    group_bytes_max: Annotated[int, count("bytes flushed together")] = 16 * MIB
    history_changes_max: Annotated[
        int, count("State changes kept for history and watches to resume")
    ] = 100_000
    state_cache_bytes: Annotated[
        int, count("current State entries kept in memory, for reading without the disk", least=0)
    ] = 16 * MIB
    ballast_bytes: Annotated[
        int, count("space kept in reserve, so that a full disk can be cleaned up", least=0)
    ] = 32 * MIB


class EventFlux(Section, frozen=True):
    """[eventflux]: the service EventFlux's own clients call."""

    enabled: Annotated[bool, about("serve eventflux.transport.Transport on every wire")] = True
    accept_mislabelled_zstd: Annotated[
        bool,
        about(
            "take payloads that say ZSTD and are not compressed, as EventFlux's own client sends"
            " them by default"
        ),
    ] = False


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    One rule of [access]: who may, or may not, call what.

    Attributes:
        principals: Patterns of SPIFFE ids or DNS names, of users of Unix sockets
            (``unix://uid=1000``) or of this process (``memory://process``); ``"*"`` is everybody,
            ``""`` who did not authenticate.
        methods: Patterns of ``Service/Method``, such as ``StateService/*`` or
            ``tidewire.v1.StateService/Get``.
        effect: ``deny`` beats ``allow``.

    """

    principals: Annotated[list[str], Meta(min_length=1, max_length=256)]
    methods: Annotated[list[str], Meta(min_length=1, max_length=256)]
    effect: Literal["allow", "deny"] = "allow"


class Access(Section, frozen=True):
    """
    [access]: who may call what. Without rules everybody may call everything; with rules, what
    none allows is denied.
    """

    rules: Annotated[
        list[Rule], Meta(max_length=RULES_MAX, description="rules; deny beats allow")
    ] = msgspec.field(default_factory=list)


class Config(Section, frozen=True):
    """All options of a server."""

    server: Server = msgspec.field(default_factory=Server)
    listen: Listen = msgspec.field(default_factory=Listen)
    tls: Tls = msgspec.field(default_factory=Tls)
    admin: Admin = msgspec.field(default_factory=Admin)
    log: Log = msgspec.field(default_factory=Log)
    limits: Limits = msgspec.field(default_factory=Limits)
    wire: Wire = msgspec.field(default_factory=Wire)
    websocket: WebSocket = msgspec.field(default_factory=WebSocket)
    drain: Drain = msgspec.field(default_factory=Drain)
    codecs: Codecs = msgspec.field(default_factory=Codecs)
    engine: Engine = msgspec.field(default_factory=Engine)
    eventflux: EventFlux = msgspec.field(default_factory=EventFlux)
    access: Access = msgspec.field(default_factory=Access)


def digest(config: Config) -> str:
    """A short name of this very configuration, the same for the same values; for logs."""
    return hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest()[:12]


def to_builtins(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration as plain values by section and key."""
    plain: dict[str, dict[str, Any]] = msgspec.to_builtins(config)
    return plain


def check(config: Config) -> None:
    """
    Hold what no single option can hold.

    Raises:
        ConfigError: An unencrypted listener that others can reach, an encrypted one without its
            files, or limits that contradict each other.

    """
    for url in config.listen.urls:
        _check_listener(url, config)
    if config.admin.enabled:
        host, _ = admin_address(config.admin.address)
        if not config.admin.insecure and not is_loopback(host):
            raise ConfigError(
                f"admin.address {config.admin.address!r} can be reached by other machines and "
                f"is not encrypted; "
                "use 127.0.0.1, or set admin.insecure = true when the network is trusted"
            )
    if len(set(config.listen.urls)) < len(config.listen.urls):
        raise ConfigError("listen.urls names the same listener twice; each URL may be there once")
    needed = config.limits.payload_bytes_max + config.limits.overhead_bytes_max
    if config.wire.message_bytes_max < needed:
        raise ConfigError(
            f"wire.message_bytes_max is {config.wire.message_bytes_max}; "
            f"limits.payload_bytes_max and "
            f"limits.overhead_bytes_max need {needed}"
        )


def admin_address(text: str) -> tuple[str, int]:
    """
    Split "host:port"; an IPv6 host stands in brackets.

    Raises:
        ConfigError: It is no such thing.

    """
    parts = _split(f"http://{text}", f"admin.address {text!r}")
    if not parts.hostname or parts.port is None or parts.path:
        raise ConfigError(f"admin.address {text!r} is not host:port, such as 127.0.0.1:9464")
    return parts.hostname, parts.port


def is_loopback(host: str) -> bool:
    """
    Say whether only this machine can reach the address. Names other than "localhost" are not
    looked up: False.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_listener(url: str, config: Config) -> None:
    parts = _split(url, f"listen.urls: {url!r}")
    if not parts.scheme or "://" not in url:
        raise ConfigError(f"listen.urls: {url!r} is not a URL, such as tcp://127.0.0.1:7401")
    if parts.scheme in LOCAL_SCHEMES:
        return
    if parts.port is None or not parts.hostname:
        raise ConfigError(
            f"listen.urls: {url!r} needs a host and a port, such as {parts.scheme}://127.0.0.1:0"
        )
    if parts.scheme in ENCRYPTED_SCHEMES:
        _check_tls(url, config.tls)
    elif not config.listen.insecure and not is_loopback(parts.hostname):
        raise ConfigError(
            f"listen.urls: {url!r} can be reached by other machines and is not encrypted; use "
            "an encrypted wire (grpcs://, tls://, quic://, dtls://, wss://), a loopback address, "
            "or set listen.insecure = true when the network is trusted"
        )


def _check_tls(url: str, tls: Tls) -> None:
    needed = ["certificate", "key"] + (["ca"] if tls.require_client_certificate else [])
    missing = [f"tls.{name}" for name in needed if not getattr(tls, name)]
    if missing:
        raise ConfigError(
            f"listen.urls: {url!r} needs {', '.join(missing)}; `tidewire certs init DIR` makes "
            f"files for development"
        )


def _split(url: str, what: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # judged only when it is asked for
    except ValueError as error:
        raise ConfigError(f"{what} is not a URL: {error}") from error
    return parts
