"""
One server: the engine, the services on one router, the listeners, and how they start and go.
"""

import asyncio
import importlib.metadata
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import uvloop

import tidewire.transport  # noqa: F401  (first: it tunes grpcio before that is imported)

# isort: split
from grpc_health.v1 import health_pb2_grpc

from tidewire import errors
from tidewire.eventflux import transport_pb2_grpc
from tidewire.v1 import (
    checkpoint_pb2_grpc,
    control_pb2_grpc,
    event_pb2_grpc,
    heartbeat_pb2_grpc,
    query_pb2_grpc,
    server_pb2_grpc,
    state_pb2_grpc,
)
from tidewire_server.core import Core
from tidewire_server.engine.embedded import EngineOptions, open_engine
from tidewire_server.listeners import Listeners
from tidewire_server.members import Members
from tidewire_server.ops import logs
from tidewire_server.ops.access import AccessPolicy
from tidewire_server.ops.actions import Actions
from tidewire_server.ops.admin import AdminServer
from tidewire_server.ops.allocator import keep_freed_memory
from tidewire_server.ops.collector import calm_collector
from tidewire_server.ops.config import Config, ConfigError, digest
from tidewire_server.ops.connections import Connections
from tidewire_server.ops.descriptors import raise_limit, warn_if_few
from tidewire_server.ops.health import HealthService
from tidewire_server.ops.metrics import (
    CallMetrics,
    ServerCollector,
    make_registry,
    store_sources,
)
from tidewire_server.ops.reflection import add_reflection
from tidewire_server.ops.refusals import RefusalLog
from tidewire_server.router import Authorize, Router
from tidewire_server.services.checkpoint import CheckpointService
from tidewire_server.services.control import ControlService
from tidewire_server.services.event import EventService
from tidewire_server.services.eventflux import Backends, EventFluxService
from tidewire_server.services.heartbeat import HeartbeatService
from tidewire_server.services.query import QueryService
from tidewire_server.services.server_info import ServerService
from tidewire_server.services.state import StateService

EXIT_CONFIG: Final = 2
EXIT_FAILED: Final = 1
EXIT_STORE_FAILED: Final = 74
"""A write could not be made durable (EX_IOERR): a supervisor should start the server again."""
EXIT_LOCKED: Final = 75
"""Another process holds the store (EX_TEMPFAIL)."""
HEALTH_NAME: Final = "grpc.health.v1.Health"

log = logging.getLogger(__name__)


class Server:
    """
    A whole server. `start`, then `stop`; or `run` for a process of its own.

    Attributes:
        core: What the services share; there once it is started.
        listeners: What is listened on; there once it is started.
        health: What probes are told; there once it is started.
        admin: The admin listener; ``None`` when it is off.
    """

    core: Core
    listeners: Listeners
    health: HealthService

    def __init__(self, config: Config) -> None:
        self.config = config
        self.admin: AdminServer | None = None
        self.stopping = asyncio.Event()
        self._grace_s: float | None = None
        self._cleanup = AsyncExitStack()

    async def start(self) -> None:
        """
        Open the store, start the services, listen.

        Raises:
            ConfigError: An address cannot be listened on.
            StoreLocked: Another process holds the store.
            StoreUnusable: The store is of a newer format, of another application, or damaged.
        """
        try:
            await self._start()
        except BaseException:
            await self._cleanup.aclose()
            raise

    async def _start(self) -> None:
        config = self.config
        engine = await open_engine(Path(config.server.data_dir), options=engine_options(config))
        self._cleanup.push_async_callback(engine.close)
        core = self.core = Core(
            engine=engine,
            members=Members(),
            node_id=config.server.node_id,
            version=importlib.metadata.version("tidewire"),
            limits=config.limits.to_service(),
            codecs=config.codecs.to_proto(),
        )
        metrics = CallMetrics()
        authorize = _authorizer(AccessPolicy(config.access.rules))
        router = Router(
            drain=core.drain,
            metrics=metrics,
            authorize=authorize,
            overhead_bytes_max=core.limits.overhead_bytes_max,
        )
        self.listeners = Listeners(router, config)
        info = await self._start_services(router, authorize)
        collector = await self._start_admin(metrics)
        await self.listeners.start()
        refusals = RefusalLog(lambda: self.listeners.raw)
        refusals.start()
        self._cleanup.callback(refusals.close)
        info.listeners = self.listeners.bound
        collector.wires = self.listeners

    async def _start_services(self, router: Router, authorize: Authorize) -> ServerService:
        core = self.core
        actions = Actions(core.engine, self.listeners, self.begin_stop)
        info = ServerService(core)
        connections = Connections(self.listeners).count
        backends = Backends(
            event=EventService(core),
            query=QueryService(core),
            state=StateService(core),
            control=ControlService(core, actions),
            heartbeat=HeartbeatService(core, connections=connections, events=self._events),
            checkpoint=CheckpointService(core),
            authorize=authorize,
        )
        services: list[tuple[Any, Any]] = [
            (event_pb2_grpc.add_EventServiceServicer_to_server, backends.event),
            (query_pb2_grpc.add_QueryServiceServicer_to_server, backends.query),
            (state_pb2_grpc.add_StateServiceServicer_to_server, backends.state),
            (control_pb2_grpc.add_ControlServiceServicer_to_server, backends.control),
            (heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server, backends.heartbeat),
            (checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server, backends.checkpoint),
            (server_pb2_grpc.add_ServerServiceServicer_to_server, info),
        ]
        if self.config.eventflux.enabled:
            mislabelled = self.config.eventflux.accept_mislabelled_zstd
            eventflux = EventFluxService(core, backends, accept_mislabelled_zstd=mislabelled)
            services.append((transport_pb2_grpc.add_TransportServicer_to_server, eventflux))
        for add, service in services:
            add(service, router)
            await service.start()
            self._cleanup.push_async_callback(service.close)
        names = sorted({method.split("/")[1] for method in router.methods})
        self.health = HealthService(names)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, router)
        add_reflection([*names, HEALTH_NAME], router)
        return info

    async def _start_admin(self, metrics: CallMetrics) -> ServerCollector:
        collector = ServerCollector(self.core, metrics)
        for source in store_sources(self.core.engine):
            collector.add(source)
        if self.config.admin.enabled:
            collector.lag.start()
            self._cleanup.callback(collector.lag.close)
            self.admin = AdminServer(self.config.admin.address, make_registry(collector))
            self.admin.live.add("engine", self._engine_fault)
            self.admin.ready.add("drain", self._drain_fault)
            await self.admin.start()
            self._cleanup.push_async_callback(self.admin.close)
        return collector

    def begin_stop(self, grace_s: float | None = None) -> None:
        """Ask for an orderly end, as SIGTERM does; returns at once."""
        if grace_s is not None:
            self._grace_s = grace_s
        self.stopping.set()

    async def stop(self, grace_s: float | None = None) -> None:
        """
        Go in order: NOT_SERVING, time for load balancers, "draining" on every stream, work in
        flight, flush, release.
        """
        drain = self.config.drain
        told = self._grace_s if grace_s is None else grace_s
        grace = drain.grace_s if told is None else told
        self.health.shut_down()
        if drain.wait_s and told is None:
            await asyncio.sleep(drain.wait_s)
        self.core.drain.start(grace)
        await self.listeners.stop(grace)
        await self._cleanup.aclose()

    def _events(self) -> int:
        return self.core.counters.values.get("events_published", 0)

    def _engine_fault(self) -> str | None:
        failure = self.core.engine.failure
        return None if failure is None else "the store can no longer be written"

    def _drain_fault(self) -> str | None:
        going = self.stopping.is_set() or self.core.drain.started.is_set()
        return "the server is shutting down" if going else None


def engine_options(config: Config) -> EngineOptions:
    """The options of the embedded engine."""
    engine = config.engine
    return EngineOptions(
        group_transactions_max=engine.group_transactions_max,
        group_bytes_max=engine.group_bytes_max,
        history_changes_max=engine.history_changes_max,
        ballast_bytes=engine.ballast_bytes,
        state_cache_bytes=engine.state_cache_bytes,
    )


def run(config: Config) -> int:
    """
    Serve until SIGTERM or SIGINT and return the exit code.

    A second signal ends the grace at once; SIGHUP reads certificates anew.
    """
    logs.configure(config.log.level, config.log.format)
    keep_freed_memory()
    workers = config.server.workers
    warn_if_few(raise_limit(), config.wire.connections_max, workers)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config))
    except ConfigError as error:
        log.error("configuration cannot be used: %s", error.message)
        return EXIT_CONFIG
    except errors.StoreLocked as error:
        log.error("store is in use: %s", error.message)
        return EXIT_LOCKED
    except errors.TidewireError as error:
        log.error("server cannot start: %s", error.message)
        return EXIT_FAILED


async def _serve(config: Config) -> int:
    server = Server(config)
    await server.start()
    signals = _Signals(server)
    signals.install()
    calm_collector()
    bound = [listener.url for listener in server.listeners.bound]
    admin = server.admin.url if server.admin is not None else None
    logs.write_ready(bound, admin, node_id=server.core.node_id)
    log.info("serving", extra={"listeners": bound, "admin": admin, "config": digest(config)})
    failed = asyncio.create_task(server.core.engine.wait_failed())
    told = asyncio.create_task(server.stopping.wait())
    await asyncio.wait({failed, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if failed.done():
        # Nothing that was accepted can be made durable any more: no grace, the supervisor restarts.
        log.critical("store failed, the server ends", extra={"reason": repr(failed.result())})
        await server.stop(0.0)
        return EXIT_STORE_FAILED
    failed.cancel()
    log.info("shutting down")
    stop = signals.stop = asyncio.create_task(server.stop())
    await stop
    log.info("stopped")
    return 0


class _Signals:
    """SIGTERM and SIGINT begin the end, a second one hurries it, SIGHUP reads certificates."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.stop: asyncio.Task[None] | None = None

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _end(self) -> None:
        if not self._server.stopping.is_set():
            self._server.begin_stop()
            return
        log.warning("told twice, cutting what is in flight")
        self._hurry = asyncio.ensure_future(self._server.listeners.stop(0.0))

    def _reload(self) -> None:
        self._reloading = asyncio.ensure_future(self._reload_all())

    async def _reload_all(self) -> None:
        kept = not await self._server.listeners.reload_certificates()
        log.info("certificates read again", extra={"some_kept_their_old_ones": kept})


def _authorizer(policy: AccessPolicy) -> Authorize:
    def authorize(principal: str, method: str) -> None:
        if not policy.allows(principal, method):
            who = f"principal {principal!r}" if principal else "a caller without a certificate"
            raise errors.PermissionDenied(
                f"{who} may not call {method}; no rule of [access] allows it, or one denies it"
            )

    return authorize
