"""Refused connections are in the log: each once, by wire and reason, and never one line each."""

from dataclasses import dataclass, field

from structlog.testing import capture_logs

from tidewire.transport import WireCounters
from tidewire_server.ops.refusals import RefusalLog


@dataclass
class Wire:
    """The connections of one wire."""

    counters: WireCounters = field(default_factory=WireCounters)
    connections_idle: int = 0


def test_what_was_refused_is_said_once_with_its_number() -> None:
    """A thousand of one reason are one line; nothing new is no line."""
    wires = {"tls": Wire(), "tcp": Wire()}
    told = RefusalLog(lambda: wires)
    for _ in range(1_000):
        wires["tls"].counters.refuse("peer_did_not_return_a_certificate", handshake=True)
    wires["tcp"].counters.refuse("too_many_connections")
    with capture_logs() as first:
        told.tell()
    with capture_logs() as second:
        told.tell()
    wires["tls"].counters.refuse("timeout", handshake=True)
    with capture_logs() as third:
        told.tell()

    def line(wire: str, reason: str, count: int) -> dict[str, object]:
        event = "connections refused"
        return {
            "event": event, "log_level": "info", "wire": wire, "reason": reason, "count": count
        }  # fmt: skip

    assert first == [
        line("tls", "peer_did_not_return_a_certificate", 1_000),
        line("tcp", "too_many_connections", 1),
    ]
    assert [] == second
    assert [line("tls", "timeout", 1)] == third


async def test_closing_says_the_rest() -> None:
    """What was refused in the last moments of a server is not lost."""
    wires = {"tls": Wire()}
    told = RefusalLog(lambda: wires)
    told.start()
    wires["tls"].counters.refuse("wrong_version_number", handshake=True)
    with capture_logs() as lines:
        told.close()

    assert ["wrong_version_number"] == [line["reason"] for line in lines]
