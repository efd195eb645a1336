"""The conformance kit: every wire passes, and a wire with a fault does not."""

import json
from pathlib import Path

import pytest

from support.broken_wires import (
    DroppingLink,
    SwappingLink,
    greedy,
    listener_of,
    plain_channel,
    registered,
    silent_channel,
)
from support.wires import ENCRYPTED, LACKS, WIRES, listen_url
from tidewire.errors import InvalidArgument
from tidewire.testing import ABILITIES, BEHAVIOURS, Outcome, check_transport, kit
from tidewire.transport.link import ServerLink

LOOPBACK = "127.0.0.1:0"


def needs(name: str) -> frozenset[str]:
    """Return what a behaviour needs."""
    return next(behaviour.needs for behaviour in BEHAVIOURS if behaviour.name == name)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("wire", WIRES)
async def test_every_wire_conforms(wire: str, tmp_path: Path) -> None:
    """Nothing fails; what a wire cannot carry is refused with the typed error, and only that."""
    lacks = LACKS.get(wire, frozenset())
    report = await check_transport(listen_url(wire, tmp_path), carries=set(ABILITIES) - lacks)

    assert [] == [(result.behaviour, result.why) for result in report.failures]
    assert [behaviour.name for behaviour in BEHAVIOURS] == [r.behaviour for r in report.results]
    excused = lacks if wire in ENCRYPTED else lacks | {"certificates", "token"}
    assert [] == [
        result.behaviour
        for result in report.results
        if result.outcome is Outcome.UNSUITABLE and not needs(result.behaviour) & excused
    ]
    assert all(result.why for result in report.results if result.outcome is Outcome.UNSUITABLE)


async def test_lost_messages_are_found() -> None:
    """Control: a transport that loses every tenth message does not conform."""
    with registered("tcp-drops", plain_channel, listener_of(DroppingLink)):
        report = await check_transport(
            f"tcp-drops://{LOOPBACK}", only=["unary_unary", "stream_unary", "half_close"]
        )

    assert ["stream_unary", "half_close"] == [result.behaviour for result in report.failures]


async def test_swapped_messages_are_found() -> None:
    """Control: a transport that swaps messages does not conform."""
    with registered("tcp-swaps", plain_channel, listener_of(SwappingLink)):
        report = await check_transport(
            f"tcp-swaps://{LOOPBACK}", only=["unary_unary", "stream_unary", "half_close"]
        )

    assert ["stream_unary", "half_close"] == [result.behaviour for result in report.failures]
    assert "numbers" in report.of("stream_unary").why


async def test_a_silent_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: a transport that does not tell its calls that it is gone does not conform."""
    monkeypatch.setattr(kit, "BEHAVIOUR_LIMIT_S", 2.0)
    with registered("tcp-silent", silent_channel, listener_of(ServerLink)):
        report = await check_transport(
            f"tcp-silent://{LOOPBACK}", only=["unary_unary", "connection_breaks"]
        )

    assert ["connection_breaks"] == [result.behaviour for result in report.failures]
    assert "not done within 2 s" == report.of("connection_breaks").why


async def test_encryption_that_is_none_is_found() -> None:
    """Control: a wire that says it is encrypted and takes anybody does not conform."""
    with registered("tcp-fake", plain_channel, listener_of(ServerLink), encrypted=True):
        report = await check_transport(
            f"tcp-fake://{LOOPBACK}",
            only=[b.name for b in BEHAVIOURS if "certificates" in b.needs],
        )

    served = {result.behaviour for result in report.failures if result.why.endswith("is served")}
    assert {
        "no_certificate",
        "unknown_authority",
        "expired_certificate",
        "wrong_server_name",
        "unknown_server",
    } == served
    assert "identity" in {result.behaviour for result in report.failures}


async def test_ignored_certificates_are_found() -> None:
    """Control: a plain wire that takes certificates and does nothing with them is at fault."""
    with registered("tcp-deaf", plain_channel, listener_of(ServerLink)):
        report = await check_transport(f"tcp-deaf://{LOOPBACK}", only=["identity"])

    assert ["certificates are given to it, and it ignores them"] == [
        result.why for result in report.failures
    ]


@pytest.mark.timeout(120)
async def test_unbounded_buffers_are_found() -> None:
    """Control: a server that takes whatever comes while its handler does not read is at fault."""
    report = await check_transport(f"tcp://{LOOPBACK}", server=greedy, only=["slow_server"])

    assert ["slow_server"] == [result.behaviour for result in report.failures]
    assert "does not read" in report.of("slow_server").why


async def test_a_false_excuse_is_found() -> None:
    """A wire that is said to lack what it carries does not conform."""
    report = await check_transport(
        f"tcp://{LOOPBACK}", carries=["large"], only=["unary_stream", "large_message"]
    )

    assert ["unary_stream"] == [result.behaviour for result in report.failures]
    assert "said not to" in report.of("unary_stream").why


async def test_reports_read_well() -> None:
    """A report is text for people, JSON for programs and Markdown for pages."""
    report = await check_transport(f"tcp://{LOOPBACK}", only=["unary_unary", "identity"])

    assert report.ok
    assert report.text().endswith("1 ok, 1 unsuitable, 0 failed")
    assert ["ok", "unsuitable"] == [r["outcome"] for r in json.loads(report.json())["results"]]
    assert "| unary_unary | ok |  |" in report.markdown()
    with pytest.raises(KeyError):
        report.of("nothing")


@pytest.mark.parametrize(
    "wrong", [{"only": ["no_such"]}, {"carries": ["wings"]}, {"listen_url": "gopher://h"}]
)
async def test_what_does_not_exist_is_refused(wrong: dict[str, object]) -> None:
    """Names nobody knows are mistakes that show."""
    arguments: dict[str, object] = {"listen_url": f"tcp://{LOOPBACK}", **wrong}
    with pytest.raises(InvalidArgument):
        await check_transport(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_every_behaviour_says_what_it_proves() -> None:
    """A behaviour has a sentence, a name of its own and needs that exist."""
    assert len({behaviour.name for behaviour in BEHAVIOURS}) == len(BEHAVIOURS)
    for behaviour in BEHAVIOURS:
        assert behaviour.proves.endswith("."), behaviour.name
        assert behaviour.needs <= ABILITIES.keys()
