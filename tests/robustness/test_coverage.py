"""
Which fault is shown on which wire, and by which test: no hole without its reason.

``python tests/robustness/test_coverage.py`` prints the table as Markdown.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.wires import WIRES

TESTS: Final = Path(__file__).resolve().parents[1]
NOT: Final = "not here: "
HTTP2: Final = ("grpc", "grpcs", "grpc+unix")
BYTES: Final = ("tcp", "tls", "unix", "ws", "wss")
STREAMS: Final = (*HTTP2, *BYTES, "memory")
SOCKETS: Final = (*HTTP2, *BYTES)
RESETTABLE: Final = ("grpc", "grpcs", "tcp", "tls", "ws", "wss")

_INPUT: Final = "robustness/test_bad_input.py::"
_PEERS: Final = "robustness/test_bad_peers.py::"
_QUIC: Final = "robustness/test_quic.py::"
_UDP: Final = "robustness/test_datagrams.py::"
_DTLS: Final = "robustness/test_dtls.py::"
_SESSION: Final = "robustness/test_datagram_peers.py::"
_IN_PROCESS: Final = NOT + "both ends are this process"
_NO_STREAM: Final = NOT + "a datagram is whole or lost; nothing of it is waited for"
_NO_TLS: Final = NOT + "it is plain"


def on(wires: tuple[str, ...], shown: str) -> dict[str, str]:
    """The same on several wires."""
    return dict.fromkeys(wires, shown)


def requests(test: str) -> dict[str, str]:
    """The same on all of them."""
    return on(WIRES, _INPUT + test)


_BYTES_CASES: Final = {
    **on(STREAMS, _PEERS + "test_bad_bytes_are_cut_off"),
    "quic": _QUIC + "test_streams_that_break_the_rules",
}
_REFUSED: Final = (
    "unknown method",
    "malformed protobuf",
    "oversize frame and payload",
    "protobuf bomb of 30 levels",
    "invalid subject",
    "unknown stream",
    "wrong revision",
    "fenced operator",
)

TABLE: Final[Mapping[str, Mapping[str, str]]] = {
    **{case: requests("test_bad_requests_are_refused") for case in _REFUSED},
    "expired deadline": requests("test_an_expired_deadline_is_told"),
    "decompression bomb": requests("test_a_decompression_bomb_is_refused_by_who_reads"),
    "full disk": {
        **on(
            (*SOCKETS, "quic"),
            "robustness/test_full_disk.py::test_a_full_disk_refuses_writes_and_loses_nothing",
        ),
        "memory": NOT + "the disk is the server's; memory differs in how it is reached only",
        **on(("udp", "dtls"), NOT + "a disk is not filled by datagrams; STORE_FULL is a status"),
    },
    "a client that never reads": {
        **on(SOCKETS, _INPUT + "test_one_that_never_reads_costs_little"),
        "memory": "unit/transport/test_memory.py::test_a_writer_is_paused_and_resumed",
        "quic": _INPUT + "test_one_that_never_reads_its_streams",
        **on(("udp", "dtls"), NOT + "datagrams wait for nobody; answers kept are bounded"),
    },
    "one byte a second": {
        **on(STREAMS, _PEERS + "test_one_byte_at_a_time_is_cut_off"),
        "quic": _QUIC + "test_streams_that_break_the_rules",
        **on(("udp", "dtls"), _NO_STREAM),
    },
    "100,000 calls opened": {
        **on(STREAMS, _INPUT + "test_a_flood_of_calls_is_refused"),
        **on(
            ("quic", "udp", "dtls"),
            _INPUT + "test_a_flood_of_calls_without_a_stream_of_bytes",
        ),
    },
    "garbage first bytes": {
        **_BYTES_CASES,
        "udp": _UDP + "test_an_address_that_is_not_verified_gets_no_more_than_it_sends",
        "dtls": _DTLS + "test_plain_datagrams_are_dropped",
    },
    "wrong length": {
        **_BYTES_CASES,
        **on(("udp", "dtls"), "unit/wire/test_datagram.py::test_bodies_of_one_size_have_that_size"),
    },
    "truncated frame": {
        **on(HTTP2, NOT + "grpcio keeps such a connection beyond its keepalive"),
        **on((*BYTES, "memory"), _PEERS + "test_bad_bytes_are_cut_off"),
        "quic": _QUIC + "test_streams_that_break_the_rules",
        **on(("udp", "dtls"), "robustness/test_fuzz.py::test_nothing_but_refusals"),
    },
    "another version in HELLO": {
        **on(HTTP2, NOT + "HTTP/2 has one version, which its preface names: see garbage"),
        **on((*BYTES, "memory"), _PEERS + "test_bad_bytes_are_cut_off"),
        "quic": _QUIC + "test_streams_that_break_the_rules",
        **on(("udp", "dtls"), _SESSION + "test_another_version_is_told"),
    },
    "half-open and slow handshakes": {
        **on(SOCKETS, _PEERS + "test_beginnings_that_come_to_nothing"),
        "memory": _PEERS + "test_bad_bytes_are_cut_off",
        "quic": _QUIC + "test_half_open_handshakes_are_bounded",
        "udp": _UDP + "test_sessions_are_bounded_and_the_honest_go_on",
        "dtls": _DTLS + "test_half_open_handshakes_are_bounded_and_end",
    },
    "a TLS client at a plain port": {
        **on(
            ("grpc", "grpc+unix", "tcp", "unix", "ws"),
            _PEERS + "test_beginnings_that_come_to_nothing",
        ),
        **on(("grpcs", "tls", "wss", "quic", "dtls"), NOT + "it is encrypted"),
        "memory": _IN_PROCESS,
        "udp": _QUIC + "test_the_wrong_port",
    },
    "a plain client at a TLS port": {
        **on(("grpcs", "tls", "wss"), _PEERS + "test_beginnings_that_come_to_nothing"),
        "quic": _QUIC + "test_the_wrong_port",
        "dtls": _DTLS + "test_plain_datagrams_are_dropped",
        **on(("grpc", "grpc+unix", "tcp", "unix", "ws", "memory", "udp"), _NO_TLS),
    },
    "spoofed datagrams": {
        **on(STREAMS, NOT + "it has no datagrams"),
        "quic": _QUIC + "test_an_address_is_proved_before_anything_is_kept",
        "udp": _UDP + "test_an_address_that_is_not_verified_gets_no_more_than_it_sends",
        "dtls": _DTLS + "test_before_its_cookie_an_address_costs_nothing",
    },
    "replayed datagrams": {
        **on(STREAMS, NOT + "it has no datagrams"),
        "quic": _QUIC + "test_replayed_datagrams",
        "udp": _UDP + "test_a_replay_from_another_address_has_no_effect",
        "dtls": _DTLS + "test_replayed_records_have_no_effect",
    },
    "path MTU smaller than a datagram": {
        **on(STREAMS, NOT + "it has no datagrams: the kernel cuts streams as the path needs"),
        "quic": "unit/transport/test_quic_paths.py::test_a_path_that_becomes_narrow",
        "udp": _UDP + "test_a_path_that_carries_less_is_named",
        "dtls": _SESSION + "test_a_path_that_carries_less_is_named",
    },
    "a peer that vanishes": {
        **on(
            (*SOCKETS, "quic", "udp", "dtls"),
            "robustness/test_vanishing.py::test_a_peer_that_vanishes_is_noticed_by_both",
        ),
        "memory": "unit/transport/test_memory.py::test_a_loop_that_dies",
    },
    "a storm of resets": {
        **on(RESETTABLE, _PEERS + "test_a_storm_of_resets"),
        **on(("unix", "grpc+unix"), NOT + "Unix sockets have no RST; their end is shown on tcp"),
        "memory": _IN_PROCESS,
        "quic": _QUIC + "test_a_storm_of_resets",
        **on(("udp", "dtls"), NOT + "there is no connection of the kernel to reset"),
    },
}


@pytest.mark.parametrize("case", TABLE)
def test_no_fault_has_a_hole(case: str) -> None:
    """Every wire is named: by a test that exists, or by a reason why there is none."""
    assert set(WIRES) == set(TABLE[case])
    for shown in TABLE[case].values():
        if shown.startswith(NOT):
            assert len(shown) > len(NOT) + 10
            continue
        file, _, test = shown.partition("::")
        assert re.search(
            rf"^(async )?def {test}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE
        ), shown


def markdown() -> str:
    """The table, a row for each fault and what shows it."""
    lines = ["| fault | wires | shown by |", "| --- | --- | --- |"]
    for case, wires in TABLE.items():
        by: dict[str, list[str]] = {}
        for wire in WIRES:
            by.setdefault(wires[wire], []).append(wire)
        for shown, names in by.items():
            where = "all" if len(names) == len(WIRES) else ", ".join(names)
            text = shown if shown.startswith(NOT) else f"`{shown.rpartition('/')[2]}`"
            lines.append(f"| {case} | {where} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(markdown() + "\n")
