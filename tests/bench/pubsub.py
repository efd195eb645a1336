"""
Publish to subscriber through a server: one ``publish()`` call and one handler call a message.

    python tests/bench/pubsub.py [--wire tcp] [--messages 3000000] [--bytes 128] [--durable]

Server, publisher and subscriber are processes of their own. Counted is what the handler got, from
its first message to its last. With ``--durable`` the messages go into a stream and every batch is
acknowledged at FSYNC; then the publisher's acknowledged rate is shown too.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tidewire
from bench.usage import cpu_s
from support.process import ServerProcess

SUBJECT = "bench.messages"
IDLE_S = 2.0
"""The subscriber ends when nothing has come for this long after the publisher is done."""


def subscribe(url: str, ready: Any, done: Any, results: Any) -> None:
    """Count in a process of its own."""
    received = 0
    first = last = 0.0

    def handle(_message: tidewire.Message) -> None:
        nonlocal received
        received += 1

    async def run() -> None:
        nonlocal first, last
        async with (
            tidewire.connect(url) as client,
            client.events.subscribe("bench.>", handler=handle) as subscription,
        ):
            ready.set()
            cpu_s = time.process_time()
            seen, seen_at = 0, time.perf_counter()
            while not (done.is_set() and time.perf_counter() - seen_at > IDLE_S):
                await asyncio.sleep(0.01)
                if received != seen:
                    first = first or time.perf_counter()
                    seen, seen_at = received, time.perf_counter()
                    last = seen_at
            lost = subscription.lost
        figures = {"received": received, "seconds": last - first, "lost": lost}
        results.put(figures | {"subscriber_cpu_s": time.process_time() - cpu_s})

    uvloop.run(run())


async def publish(url: str, messages: int, size: int, *, durable: bool) -> float:
    """Publish and return the seconds until everything was handed over, or acknowledged."""
    payload = b"x" * size
    async with tidewire.connect(url) as client:
        if durable:
            await client.events.stream("bench").create(["bench.>"])
        async with client.events.publisher(acknowledge=durable) as publisher:
            began = time.perf_counter()
            for _ in range(messages):
                await publisher.publish(SUBJECT, payload)
            await publisher.flush(timeout_s=300)
            return time.perf_counter() - began


def publish_process(
    url: str, messages: int, size: int, durable: bool, done: Any, results: Any
) -> None:
    """Publish in a process of its own."""
    cpu_s = time.process_time()
    seconds = uvloop.run(publish(url, messages, size, durable=durable))
    figures = {"published": messages, "publish_seconds": seconds}
    results.put(figures | {"publisher_cpu_s": time.process_time() - cpu_s})
    done.set()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wire", default="tcp", choices=["tcp", "grpc"])
    parser.add_argument("--messages", type=int, default=3_000_000)
    parser.add_argument("--bytes", type=int, default=128)
    parser.add_argument("--durable", action="store_true")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")  # never fork a process that uses grpc
    ready, done, results = context.Event(), context.Event(), context.Queue()
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder), (arguments.wire,)) as server,
    ):
        url = server.url(arguments.wire)
        subscriber = context.Process(target=subscribe, args=(url, ready, done, results))
        subscriber.start()
        ready.wait(20)
        sizes = (arguments.messages, arguments.bytes, arguments.durable)
        publisher = context.Process(target=publish_process, args=(url, *sizes, done, results))
        publisher.start()
        figures: dict[str, Any] = {"wire": arguments.wire, "bytes": arguments.bytes}
        used_s = cpu_s(server.pid)
        for _ in range(2):
            figures |= results.get(timeout=300)
        figures["server_cpu_s"] = cpu_s(server.pid) - used_s
        publisher.join()
        subscriber.join()
    figures["delivered_per_s"] = round(figures["received"] / figures["seconds"])
    figures["published_per_s"] = round(figures["published"] / figures["publish_seconds"])
    figures["durability"] = "fsync" if arguments.durable else "memory"
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
