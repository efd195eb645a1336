"""What is measured: each scenario runs on one system and returns its figures."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.roles import DRAIN_MAX_S
from bench.running import Figures, Run, WorkerFailedError, measuring
from bench.systems import Limit, System

RAW = ("tidewire unix", "tidewire tcp", "tidewire ws", "tidewire udp")
SECURE = ("tidewire tls", "tidewire wss", "tidewire quic", "tidewire dtls", "tidewire grpcs")
GRPC = ("tidewire grpc", "tidewire grpc+unix")
STREAMS = (
    *("tidewire unix", "tidewire tcp", "tidewire tls", "tidewire ws", "tidewire wss"),
    *("tidewire quic", "tidewire grpc", "tidewire grpcs", "tidewire grpc+unix"),
)
WORKERS = ("tidewire tcp 2 workers", "tidewire tls 2 workers")
SETTLE_S: Final = 1.0
CROWD: Final = Path(__file__).with_name("crowd.py")
CROWD_TIMEOUT_S: Final = 400.0
CROWD_WORKERS: Final = 6
"""One process has 20,000 descriptors where nobody has changed that."""
JETSTREAM = ("jetstream default", "jetstream sync always")
REDIS = ("redis everysec", "redis always")
LIMITS = ("iperf3", "memory copy")
BARE: Final = "bare sockets"
"""The limit of what one call or query alone can be."""
LIMITS_FROM_BYTES: Final = 16 << 10
"""Smaller messages are limited by calls, not by bytes."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """
    One scenario.

    Attributes:
        name: Its name in tables.
        figure: The figure that is compared: ``p50_us``, ``per_s`` or ``bytes_each``.
        run: Measures it.
        systems: Names of the systems that have it.
        parameters: Given to ``run``.
    """

    name: str
    figure: str
    run: Callable[[System, Figures], Figures]
    systems: tuple[str, ...]
    parameters: Figures = field(default_factory=dict)


def echo(system: System, parameters: Figures) -> Figures:
    """A unary call to a handler that answers at once."""
    if isinstance(system, Limit):
        return system.limit({**parameters, "processes": 1})
    with measuring(system) as run:
        run.serve(echo=True)
        return _call(run, {"call": "echo", **parameters})


def pubsub(system: System, parameters: Figures) -> Figures:
    """One publisher process, one subscriber process; one call and one handler call a message."""
    if isinstance(system, Limit):
        return system.limit(parameters)
    with measuring(system) as run:
        run.serve()
        receiver = run.worker("subscriber", **_side(parameters, "subscribers"))
        sender = run.worker("publisher", **_side(parameters, "publishers"))
        cpu_s, _ = run.usage()
        sender.go()
        sent = sender.line()
        expected = sent["published"] * parameters.get("subscribers", 1)
        began = time.perf_counter()
        receiver.go(expected)
        got = receiver.line()
        is_cut = time.perf_counter() - began > DRAIN_MAX_S
        server_cpu_s, memory = run.usage()
    millions = max(got["received"], 1) / 1e6
    return {
        "per_s": got["received"] / got["seconds"],
        ("undelivered" if is_cut else "lost"): expected - got["received"],
        "published": sent["published"],
        "delivered": got["received"],
        "server_cpu_s_per_million": (server_cpu_s - cpu_s) / millions,
        "client_cpu_s_per_million": (got["cpu_s"] + sent["cpu_s"]) / millions,
        "server_mib": memory / (1 << 20),
    }


def _side(parameters: Figures, connections: str) -> Figures:
    return {**parameters, "connections": parameters.get(connections, 1)}


def call(system: System, parameters: Figures) -> Figures:
    """One kind of call of the service in a closed loop."""
    with measuring(system) as run:
        run.serve()
        return _call(run, parameters)


def query(system: System, parameters: Figures) -> Figures:
    """Ask a responder through the server."""
    if isinstance(system, Limit):
        return system.limit({**parameters, "processes": 2})
    with measuring(system) as run:
        run.serve()
        answering = run.worker("responder", **parameters)
        figures = _call(run, {"call": "ask", **parameters})
        answering.go()
        answering.line()
        return figures


def idle(system: System, parameters: Figures) -> Figures:
    """Resident memory of the server for each idle connection beyond the first few."""
    with measuring(system) as run:
        run.serve()
        holder = run.worker("holder", **parameters)
        _, before = run.usage()
        holder.go()
        figures = holder.line()
        time.sleep(SETTLE_S)
        _, after = run.usage()
        holder.go()
        connections = holder.line()["connections"]
        figures["bytes_each"] = (after - before) / (connections - parameters["first"])
        figures["server_mib"] = after / (1 << 20)
        return figures


def crowd(system: System, parameters: Figures) -> Figures:
    """What crowd.py measures: connections without number, held by a server with workers."""
    command = [sys.executable, str(CROWD), "--json", "--wires", "tcp"]
    command += ["--count", str(parameters["connections"]), "--workers", str(parameters["workers"])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=CROWD_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise WorkerFailedError(f"{system.name}: not all within {CROWD_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise WorkerFailedError(" | ".join(done.stderr.strip().splitlines()[-3:]))
    figures: Figures = json.loads(done.stdout)
    return figures


def role(system: System, parameters: Figures) -> Figures:
    """One worker that does everything."""
    with measuring(system) as run:
        run.serve()
        return _finish(run, parameters["role"], parameters)


def priorities(system: System, parameters: Figures) -> Figures:
    """Latency at a fixed rate with a bulk transfer through the same server beside it."""
    with measuring(system) as run:
        run.serve()
        bulk = run.worker("publisher", bytes=1 << 20, seconds=parameters["seconds"] + 1)
        steady = run.worker("open_loop", **parameters)
        bulk.go()
        steady.go()
        figures = steady.line()
        figures["bulk_mib_per_s"] = bulk.line()["published"] / (parameters["seconds"] + 1)
        return figures


def _call(run: Run, parameters: Figures) -> Figures:
    return _finish(run, "caller", parameters)


def _finish(run: Run, name: str, parameters: Figures) -> Figures:
    worker = run.worker(name, **{key: value for key, value in parameters.items() if key != "role"})
    cpu_s, _ = run.usage()
    worker.go()
    figures = worker.line()
    after_s, memory = run.usage()
    if figures.get("calls"):
        millions = figures["calls"] / 1e6
        figures["server_cpu_s_per_million"] = (after_s - cpu_s) / millions
        if "cpu_s" in figures:
            figures["client_cpu_s_per_million"] = figures.pop("cpu_s") / millions
    figures["server_mib"] = memory / (1 << 20)
    return figures


def _sizes(*sizes: int) -> list[Scenario]:
    peers = ("nats", "zenoh", "zenoh shared memory", "redis everysec", "pyzmq")
    systems = (*STREAMS, *WORKERS, *peers)
    return [
        Scenario(
            f"publish to subscriber, {_size(size)}",
            "per_s",
            pubsub,
            (*systems, *LIMITS) if size >= LIMITS_FROM_BYTES else systems,
            {"bytes": size},
        )
        for size in sizes
    ]


def _size(number: int) -> str:
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= scale:
            return f"{number // scale} {unit}"
    return f"{number} B"


def _in_flight(name: str, what: str, systems: tuple[str, ...], *counts: int) -> list[Scenario]:
    return [
        Scenario(
            f"{name}, {count} in flight",
            "p50_us" if count == 1 else "per_s",
            {"echo": echo, "ask": query}.get(what, call),
            (*systems, BARE) if count == 1 and what in ("echo", "ask") else systems,
            {"call": what, "in_flight": count},
        )
        for count in counts
    ]


def _checkpoints(*sizes: int) -> list[Scenario]:
    ours = ("tidewire tcp", "tidewire grpc")
    return [
        Scenario(
            f"checkpoint commit, {_size(size)}",
            "p50_us",
            call,
            ours,
            {"call": "checkpoint", "bytes": size, "in_flight": 1},
        )
        for size in sizes
    ]


KEYS = ("tidewire tcp", "tidewire grpc", *JETSTREAM, *REDIS)
DURABLE = ("tidewire unix", "tidewire tcp", "tidewire tls", "tidewire grpc", *JETSTREAM, *REDIS)
TEXT = ("tidewire tcp", "tidewire tcp lz4", "tidewire tcp snappy", "tidewire tcp zstd")

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *_in_flight("unary echo", "echo", (*RAW, *SECURE, *GRPC, "bare grpc.aio"), 1, 64),
    *_sizes(64, 128, 1 << 10, 16 << 10, 1 << 20),
    Scenario(
        "fan-out 1 to 100, 128 B",
        "per_s",
        pubsub,
        ("tidewire tcp", "tidewire grpc", "nats", "zenoh"),
        {"subscribers": 100},
    ),
    Scenario(
        "fan-in 100 to 1, 128 B",
        "per_s",
        pubsub,
        ("tidewire tcp", "tidewire grpc", "nats", "zenoh"),
        {"publishers": 100},
    ),
    *_in_flight("durable publish", "durable", DURABLE, 1, 64, 512),
    Scenario("durable publish, pipelined", "per_s", role, DURABLE, {"role": "pipeliner"}),
    Scenario("durable consume with acks", "per_s", role, DURABLE, {"role": "consumer"}),
    *_in_flight("query", "ask", (*STREAMS, *WORKERS, "nats", "zenoh"), 1, 64),
    *_in_flight("state put", "put", KEYS, 1, 64),
    *_in_flight("state get", "get", (*KEYS, "tidewire tls", *WORKERS), 1, 64),
    *_in_flight("state compare-and-set", "swap", ("tidewire tcp", *JETSTREAM), 1),
    Scenario(
        "state watch, 100 watchers",
        "per_s",
        role,
        ("tidewire tcp", "tidewire grpc", *JETSTREAM),
        {"role": "watcher", "connections": 100},
    ),
    *_checkpoints(1 << 10, 1 << 20, 64 << 20),
    *_in_flight(
        "connection set-up",
        "connect",
        (*STREAMS, *WORKERS, "nats", "zenoh", "redis everysec"),
        *(1, 64),
    ),
    Scenario(
        "10,000 idle connections",
        "bytes_each",
        idle,
        ("tidewire tcp", "tidewire tls", *WORKERS, "nats"),
        {"connections": 10_000, "first": 10},
    ),
    Scenario(
        "100,000 idle connections",
        "bytes_each",
        crowd,
        (f"tidewire tcp {CROWD_WORKERS} workers",),
        {"connections": 100_000, "workers": CROWD_WORKERS},
    ),
    Scenario("codecs, 16 KiB of text", "per_s", pubsub, TEXT, {"bytes": 16 << 10, "text": True}),
    Scenario(
        "latency at 5,000 messages a second",
        "p99_us",
        role,
        (*STREAMS, "nats", "zenoh"),
        {"role": "open_loop", "rate": 5_000},
    ),
    Scenario(
        "the same beside a bulk transfer",
        "p99_us",
        priorities,
        ("tidewire tcp", "tidewire grpc", "nats", "zenoh"),
        {"rate": 1_000},
    ),
)


def chosen(names: list[str]) -> list[Scenario]:
    """The scenarios whose names contain one of the words; all without words."""
    if not names:
        return list(SCENARIOS)
    return [each for each in SCENARIOS if any(name in each.name for name in names)]


def measure(scenario: Scenario, system: System, seconds: float) -> Figures:
    """Run one scenario on one system."""
    parameters: dict[str, Any] = {"seconds": seconds, "bytes": 128, **scenario.parameters}
    return scenario.run(system, parameters)
