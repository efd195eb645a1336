"""
Where the server listens: one gRPC server and one raw server for each scheme, all on one router.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc.aio

from tidewire.errors import InvalidArgument, TidewireError
from tidewire.transport import (
    ConnectionInfo,
    GrpcServerOptions,
    RawServer,
    ServerCredentials,
    TlsConfig,
    TransportOptions,
    WireUrl,
    grpc_server,
    listener_schemes,
    missing,
    parse_url,
)
from tidewire.transport.registry import listener_maker
from tidewire.transport.sockets import UNIX_SOCKETS
from tidewire.v1 import server_pb2
from tidewire.wire.datagram_limits import DatagramLimits
from tidewire_server.ops.config import LOCAL_SCHEMES, Config, ConfigError, is_loopback
from tidewire_server.ops.wire_metrics import GrpcCalls
from tidewire_server.router import Router
from tidewire_server.workers import WORKER_SCHEMES, Workers, WorkerWire

if TYPE_CHECKING:
    from tidewire.transport.socket_file import SocketFile

GRPC_UNIX: Final = "grpc+unix"
GRPC_SCHEMES: Final = ("grpc", "grpcs", *((GRPC_UNIX,) if UNIX_SOCKETS else ()))

GOODBYE_S: Final = 2.0
"""Peers of gRPC that have no calls are given this long to answer that the server goes."""
GRPC_POLL_S: Final = 0.1

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Listeners:
    """
    Everything that accepts connections.

    Attributes:
        bound: What is listened on, with the ports that were picked.
        grpc_calls: Counts the calls of gRPC's server.
    """

    router: Router
    config: Config
    bound: list[server_pb2.Listener] = field(default_factory=list)
    grpc_calls: GrpcCalls = field(init=False)
    _raw: dict[str, RawServer] = field(default_factory=dict)
    _workers: Workers | None = None
    _grpc: grpc.aio.Server | None = None
    _credentials: list[ServerCredentials] = field(default_factory=list)
    _files: list["SocketFile"] = field(default_factory=list)
    _reloads: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.grpc_calls = GrpcCalls(self.router)

    async def start(self) -> None:
        """
        Listen on every URL of the configuration.

        Raises:
            ConfigError: An address cannot be listened on, or a scheme is not known.
        """
        try:
            for url in self.config.listen.urls:
                self._add(parse_url(url))
        except TidewireError:
            await self._unbind()
            raise
        for server in self._servers():
            await server.start()
        if self._workers is not None:
            await self._workers.start()
        self._reloads = asyncio.create_task(self._watch_certificates())

    async def _unbind(self) -> None:
        """Let go of what was bound before one address could not be: ports, files and names."""
        for file in self._files:
            file.remove()
        await asyncio.gather(*(server.stop(None) for server in self._servers()))

    async def stop(self, grace_s: float) -> None:
        """Take no new connections and calls; cut those in flight when the grace is over."""
        if self._reloads is not None:
            self._reloads.cancel()
        for file in self._files:
            file.remove()
        stops = [server.stop(grace_s) for server in self._raw.values()]
        if self._grpc is not None:
            stops.append(self._stop_grpc(self._grpc, grace_s))
        if self._workers is not None:
            stops.append(self._workers.stop(grace_s))
        await asyncio.gather(*stops)

    async def _stop_grpc(self, server: grpc.aio.Server, grace_s: float) -> None:
        """
        Stop gRPC's server, and cut connections that have no calls and do not answer.

        gRPC waits for an answer to the PING behind its GOAWAY, so that a peer that hangs, or is
        behind a proxy that does, held every stop for the whole grace.
        """
        stopping = asyncio.ensure_future(server.stop(grace_s))
        try:
            await asyncio.wait({stopping}, timeout=GOODBYE_S)
            while not stopping.done():
                if not self.grpc_calls.active:
                    await server.stop(None)
                await asyncio.wait({stopping}, timeout=GRPC_POLL_S)
        finally:
            await stopping

    async def reload_certificates(self) -> bool:
        """Read certificates anew for connections that come; False when some keep their old ones."""
        outcomes = [server.reload_tls() for server in self._raw.values()]
        outcomes += [credentials.reload() for credentials in self._credentials]
        if self._workers is not None:
            outcomes.append(await self._workers.reload_tls())
        return all(outcomes)

    @property
    def raw(self) -> Mapping[str, RawServer | WorkerWire]:
        """Connections of raw wires by scheme: this process's servers, and those of workers."""
        return {**self._raw, **(self._workers.wires if self._workers is not None else {})}

    async def connections(self) -> dict[str, list[ConnectionInfo]]:
        """List the open connections of raw wires, by scheme."""
        found = {scheme: server.connections() for scheme, server in self._raw.items()}
        return found | (await self._workers.connections() if self._workers is not None else {})

    async def disconnect(self, scheme: str, identifier: int) -> bool:
        """End a connection; return False when there is none of this scheme and number."""
        server = self._raw.get(scheme)
        if server is not None:
            return server.disconnect(identifier)
        return self._workers is not None and await self._workers.disconnect(scheme, identifier)

    def _servers(self) -> list[grpc.aio.Server]:
        return [*([self._grpc] if self._grpc is not None else []), *self._raw.values()]

    def _add(self, url: WireUrl) -> None:
        if url.scheme in GRPC_SCHEMES:
            bound, encrypted = url.at(self._add_grpc(url)), url.scheme == "grpcs"
        elif url.scheme in listener_schemes():
            encrypted = listener_maker(url.scheme)[1]
            bound = self._add_raw(url, encrypted=encrypted)
        else:
            known = ", ".join(f"{scheme}://" for scheme in (*GRPC_SCHEMES, *listener_schemes()))
            reasons = [absent.reason for absent in missing() if absent.scheme == url.scheme]
            why = f"; {url.scheme}:// is missing: {reasons[0]}" if reasons else ""
            raise ConfigError(
                f"listen.urls: the server has no wire {url.scheme}://; it has {known}{why}"
            )
        if not encrypted and url.scheme not in LOCAL_SCHEMES and not is_loopback(url.host):
            log.warning(
                "others can reach a listener that is not encrypted", extra={"url": bound.text}
            )
        self.bound.append(
            server_pb2.Listener(
                url=bound.text,
                encrypted=encrypted,
                client_certificate_required=encrypted
                and tls_of(self.config, url.scheme).require_client_certificate,
            )
        )

    def _add_grpc(self, url: WireUrl) -> int:
        wire = self.config.wire
        if self._grpc is None:
            self._grpc = grpc_server(
                (self.grpc_calls,),
                limits=wire.to_wire(),
                options=GrpcServerOptions(
                    handshake_timeout_s=wire.handshake_timeout_s,
                    streams_max=wire.calls_max,
                    connections_max=wire.connections_max,
                    keepalive_s=wire.keepalive_s,
                    keepalive_timeout_s=wire.ping_timeout_s,
                ),
            )
        try:
            if url.scheme == "grpc":
                return self._grpc.add_insecure_port(url.target)
            if url.scheme == GRPC_UNIX:
                from tidewire.transport.socket_file import bind_grpc

                self._files.append(bind_grpc(self._grpc, url.path))
                return 0
            credentials = ServerCredentials(tls_of(self.config))
            self._credentials.append(credentials)
            return self._grpc.add_secure_port(url.target, credentials.credentials)
        except RuntimeError as error:
            raise _cannot_listen(url) from error
        except InvalidArgument as error:
            raise _cannot_listen(url, error.message) from error

    def _add_raw(self, url: WireUrl, *, encrypted: bool) -> WireUrl:
        try:
            if self.config.server.workers and url.scheme in WORKER_SCHEMES:
                if self._workers is None:
                    self._workers = Workers(self.router, self.config)
                return self._workers.add(url)
            server = self._raw.get(url.scheme)
            if server is None:
                server = self._raw[url.scheme] = RawServer(
                    (self.router,),
                    options=raw_options(self.config),
                    codecs=self.config.codecs.to_proto(),
                )
            tls = tls_of(self.config, url.scheme) if encrypted else None
            return server.listen(url.text, tls=tls).url
        except (OSError, InvalidArgument) as error:
            raise _cannot_listen(url, str(error)) from error

    async def _watch_certificates(self) -> None:
        """GRPC cannot look at files in a handshake, so somebody has to look now and then."""
        while True:
            await asyncio.sleep(self.config.tls.reload_interval_s)
            for credentials in self._credentials:
                credentials.refresh()


def raw_options(config: Config) -> TransportOptions:
    """Return the options of the connections of raw wires."""
    return TransportOptions(
        limits=config.wire.to_wire(),
        handshake_timeout_s=config.wire.handshake_timeout_s,
        connections_max=config.wire.connections_max,
        backlog=config.wire.backlog,
        tcp_keepalive_s=config.wire.tcp_keepalive_s,
        write_timeout_s=config.wire.write_timeout_s,
        send_buffer_bytes=config.wire.send_buffer_bytes,
        receive_buffer_bytes=config.wire.receive_buffer_bytes,
        datagrams=DatagramLimits(datagram_bytes=config.wire.datagram_bytes),
        node_id=config.server.node_id,
        websocket_origins=tuple(config.websocket.origins),
        websocket_hosts=tuple(config.websocket.hosts),
    )


def tls_of(config: Config, scheme: str = "") -> TlsConfig:
    """Return the certificates of encrypted listeners; those of ``scheme`` where it has options."""
    tls = config.tls
    if scheme == "wss" and not config.websocket.client_certificates:
        return TlsConfig(certificate=tls.certificate, key=tls.key, require_client_certificate=False)
    return TlsConfig(
        certificate=tls.certificate,
        key=tls.key,
        ca=tls.ca or None,
        require_client_certificate=tls.require_client_certificate,
    )


def _cannot_listen(
    url: WireUrl, why: str = "the address is in use or not of this machine"
) -> ConfigError:
    if url.scheme in LOCAL_SCHEMES:
        return ConfigError(f"listen.urls: {why}")
    return ConfigError(
        f"listen.urls: {url.text} cannot be listened on: {why}; choose another port, or port 0"
    )
