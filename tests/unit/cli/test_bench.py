"""``tidewire bench`` against a real server: what it counts, and what it leaves behind."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.process import ServerProcess
from tidewire.cli import main


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on three wires."""
    with ServerProcess(tmp_path_factory.mktemp("server"), ("tcp", "grpc", "unix")) as process:
        yield process


def bench(server: ServerProcess, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:  # type: ignore[type-arg]
    """Run it and return its records."""
    code = main(["--url", server.url("tcp"), "bench", "--json", "--seconds", "0.3", *words])
    assert 0 == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_kind_is_measured_and_nothing_stays(
    server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls, queries, events and durable messages have rates and times; the stream is gone."""
    records = bench(server, capsys, "call", "query", "events", "durable", "--in-flight", "4")
    assert ["call, 4 in flight", "query, 4 in flight", "events", "durable"] == [
        record["what"] for record in records
    ]
    for record in records:
        assert record["done"] > 0, record
        assert record["per_s"] > 0, record
    assert all(record["p50_us"] <= record["p99_us"] for record in records[:3])

    assert 0 == main(["--url", server.url("tcp"), "stream", "list", "--json"])
    assert "" == capsys.readouterr().out


def test_a_rate_is_kept(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """At 200 a second for 0.3 s there are 60 requests and 60 messages, and none is lost."""
    records = bench(server, capsys, "call", "events", "--rate", "200", "--in-flight", "1")

    assert [(60, 0), (60, 0)] == [(record["done"], record["lost"]) for record in records]


def test_all_wires_are_those_the_server_tells_of(
    server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """One record for each listener."""
    records = bench(server, capsys, "call", "--in-flight", "1", "--all-wires")

    assert ["tcp", "grpc", "unix"] == [record["wire"] for record in records]
    assert all(record["done"] > 0 for record in records), records


def test_an_unknown_server_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing listens: one sentence, exit code 1."""
    code = main(["--url", "tcp://127.0.0.1:1", "--timeout", "0.5", "bench", "call"])

    assert (1, "") == (code, capsys.readouterr().out)
