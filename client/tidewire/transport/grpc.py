"""
``grpc://`` and ``grpcs://``: grpcio, tuned once, here.

Import this before anything else imports grpc, or set the two environment variables yourself:
grpcio reads them once.
"""

import json
import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import grpc
import grpc.aio

from tidewire.errors import TlsFailed, WireUnsuitable
from tidewire.transport.options import TransportOptions
from tidewire.transport.tls import ServerTls, TlsConfig, TlsFiles, Watched, refuse_certificates
from tidewire.transport.url import WireUrl
from tidewire.transport.version import AGENT
from tidewire.wire.limits import WireLimits

Options: TypeAlias = list[tuple[str, str | int]]

_MS: Final = 1_000
IDENTITY_ONLY: Final = 1
"""
Bit set of compression algorithms: none. Bodies say their own codec; gzip bombs are not let in.
"""


@dataclass(frozen=True, slots=True)
class GrpcServerOptions:
    """How a gRPC server treats its connections. Times are seconds."""

    handshake_timeout_s: float = 3.0
    connection_idle_s: float = 300.0
    connection_age_s: float = 1_800.0
    connection_age_grace_s: float = 60.0
    streams_max: int = 0
    """Calls open at the same time on one connection; 0 takes the ``calls_max`` of raw wires.

    A burst above it that is sent before the server's SETTINGS have come fails with UNAVAILABLE:
    measured with 300 calls on a new connection and a limit of 256.
    """
    connections_max: int = 10_000
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    pings_least_s: float = 10.0
    """Shortest time between PINGs of a client that has no data; faster ones end its connection."""
    metadata_bytes_max: int = 16_384


def channel_options(options: TransportOptions) -> Options:
    """Return the options of every gRPC channel of this library."""
    limits = options.limits
    return [
        ("grpc.max_send_message_length", limits.message_bytes_max),
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * _MS)),
        ("grpc.keepalive_timeout_ms", int(limits.ping_timeout_s * _MS)),
        # The one above has no effect in grpcio: a server that hung was left after 60 s more.
        ("grpc.http2.ping_timeout_ms", int(limits.ping_timeout_s * _MS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", int(options.backoff_first_s * _MS)),
        # Its name is the shortest backoff; what it sets is the time for one attempt to connect.
        ("grpc.min_reconnect_backoff_ms", int(options.connect_timeout_s * _MS)),
        ("grpc.max_reconnect_backoff_ms", int(options.backoff_last_s * _MS)),
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
        # Or a new channel would wait out the backoff of another one of this process.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.primary_user_agent", options.agent or AGENT),
    ]


def server_options(
    limits: WireLimits | None = None, options: GrpcServerOptions | None = None
) -> Options:
    """Return the options of every gRPC server of this library."""
    limits = limits or WireLimits()
    options = options or GrpcServerOptions()
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", limits.message_bytes_max),
        ("grpc.max_receive_message_length", limits.message_bytes_max),
        ("grpc.max_concurrent_streams", options.streams_max or limits.calls_max),
        ("grpc.max_metadata_size", options.metadata_bytes_max),
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
        ("grpc.server_handshake_timeout_ms", int(options.handshake_timeout_s * _MS)),
        ("grpc.max_allowed_incoming_connections", options.connections_max),
        ("grpc.max_connection_idle_ms", int(options.connection_idle_s * _MS)),
        ("grpc.max_connection_age_ms", int(options.connection_age_s * _MS)),
        ("grpc.max_connection_age_grace_ms", int(options.connection_age_grace_s * _MS)),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * _MS)),
        ("grpc.keepalive_timeout_ms", int(options.keepalive_timeout_s * _MS)),
        ("grpc.http2.ping_timeout_ms", int(options.keepalive_timeout_s * _MS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", int(options.pings_least_s * _MS)),
    ]


def grpc_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],  # noqa: ARG001 (gRPC has no HELLO)
    target: str = "",
    more: Sequence[tuple[str, str | int]] = (),
) -> grpc.aio.Channel:
    """Return a plain gRPC channel; raise when certificates or a token are given for it."""
    refuse_certificates(url.text, tls, "grpcs")
    if options.token:
        raise WireUnsuitable(f"{url.text} is not encrypted: a token must not be sent over it")
    return grpc.aio.insecure_channel(
        target or url.target,
        options=[*channel_options(options), *more],
        interceptors=list(interceptors),
    )


def grpc_list_channel(
    urls: Sequence[WireUrl],
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    balance: str,
) -> grpc.aio.Channel:
    """
    Return a plain channel over several addresses of one family, balanced by gRPC's own policies.

    "round_robin" asks each server for its health and leaves out those that do not serve; "first"
    is gRPC's ``pick_first``.
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"pick_first": {}}]}
    if balance == "round_robin":
        config = {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": ""},
        }
    family = "ipv6" if ":" in urls[0].host else "ipv4"
    target = f"{family}:{','.join(url.target for url in urls)}"
    more: Options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.default_authority", urls[0].target),
    ]
    return grpc_channel(
        urls[0],
        tls=tls,
        options=options,
        interceptors=interceptors,
        codecs=(),
        target=target,
        more=more,
    )


def grpcs_channel(
    url: WireUrl,
    *,
    tls: TlsConfig | None,
    options: TransportOptions,
    interceptors: Sequence[grpc.aio.ClientInterceptor],
    codecs: Sequence[int],  # noqa: ARG001 (gRPC has no HELLO)
) -> grpc.aio.Channel:
    """Return a gRPC channel over TLS; names are verified."""
    config = tls or TlsConfig()
    tuned = channel_options(options)
    if config.server_name is not None:
        tuned.append(("grpc.ssl_target_name_override", config.server_name))
    credentials = client_credentials(config)
    if options.token:
        credentials = grpc.composite_channel_credentials(
            credentials, grpc.access_token_call_credentials(options.token)
        )
    return grpc.aio.secure_channel(
        url.target, credentials, options=tuned, interceptors=list(interceptors)
    )


def client_credentials(config: TlsConfig) -> grpc.ChannelCredentials:
    """Return channel credentials made of the files of ``config``."""
    files = config.read()
    return grpc.ssl_channel_credentials(
        root_certificates=files.ca, private_key=files.key, certificate_chain=files.certificate
    )


class ServerCredentials:
    """
    Credentials of a gRPC server that reload like :class:`~tidewire.transport.tls.ServerTls`.

    For one port. grpcio asks for a new configuration at each handshake, on a thread of its own, so
    nothing is read there: call :meth:`refresh` now and then, or :meth:`reload`.

    It is given one only after a reload. Whatever it is given, it puts in the place of what other
    handshakes are using, and frees that, which is a fault of gRPC: with one at each handshake,
    clients that connect and reset, without any certificate, brought the process down.
    """

    def __init__(self, config: TlsConfig) -> None:
        self._checked = ServerTls(config)
        self._watched = Watched(config)
        self._config = config
        self._new: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration(config.read()),
            self._take_new,  # type: ignore[arg-type]  # None is for no change
            config.require_client_certificate,
        )

    @property
    def failure(self) -> TlsFailed | None:
        """Why the last reload failed; ``None`` after one that worked."""
        return self._checked.failure

    def refresh(self) -> bool:
        """Reload if a file has changed; return whether new connections get new certificates."""
        return self._watched.changed() and self.reload()

    def reload(self) -> bool:
        """
        Read the files anew; when they cannot be used keep the old ones, report, and return False.
        """
        # OpenSSL judges the files first: grpcio would take anything and fail at the handshake.
        if not self._checked.reload():
            return False
        self._new.append(self._configuration(self._config.read()))
        return True

    def _take_new(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what was not yet taken, for one handshake; the following ones use it too."""
        try:
            return self._new.popleft()
        except IndexError:
            return None

    def _configuration(self, files: TlsFiles) -> grpc.ServerCertificateConfiguration:
        assert files.key is not None
        assert files.certificate is not None
        return grpc.ssl_server_certificate_configuration(
            [(files.key, files.certificate)], root_certificates=files.ca
        )


def grpc_server(
    handlers: Sequence[grpc.GenericRpcHandler] = (),
    *,
    limits: WireLimits | None = None,
    options: GrpcServerOptions | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> grpc.aio.Server:
    """Return a gRPC server with the options of this library and no ports yet."""
    return grpc.aio.server(
        handlers=list(handlers),
        interceptors=list(interceptors),
        options=server_options(limits, options),
    )
