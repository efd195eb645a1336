"""What options of EventFlux's service do."""

from pathlib import Path

import grpc.aio
import pytest

import tidewire
from support.eventflux import error_of, message, send, stub_of
from support.proofs import proves
from support.server import running
from tidewire import errors

RAW = b"not compressed, whatever is said of it"


@proves("eventflux.enabled")
async def test_the_service_can_be_off(tmp_path: Path) -> None:
    """Off, nobody has heard of it, neither a call nor health; everything else is there."""
    options = {"enabled": False}
    async with (
        running(tmp_path, ("tcp", "grpc"), eventflux=options) as it,
        tidewire.connect(it.url("tcp")) as client,
        grpc.aio.insecure_channel(it.url("grpc").removeprefix("grpc://")) as channel,
    ):
        for each in (client.channel, channel):
            error = await error_of(stub_of(each).SendMessage(message("EVENT")))
            assert isinstance(error, errors.MethodNotFound)
        assert (await client.info()).node_id


@proves("eventflux.accept_mislabelled_zstd")
@pytest.mark.parametrize("accepts", [False, True])
async def test_raw_bytes_that_say_zstd_are_taken_only_when_wanted(
    tmp_path: Path, accepts: bool
) -> None:
    """
    On, they are what they are, and it is counted; off, they are refused. Real frames are neither's
    business, and a broken frame is refused by both.
    """
    options = {"accept_mislabelled_zstd": accepts}
    key = {"key": "k", "operation": "put"}
    async with (
        running(tmp_path, ("tcp",), eventflux=options) as it,
        tidewire.connect(it.url("tcp")) as client,
    ):
        stub = stub_of(client.channel)
        put = stub.SendMessage(message("STATE", RAW, key, compression="ZSTD"))
        if accepts:
            await put
            entry = await client.state.get("k")
            assert entry is not None
            assert RAW == entry.value
        else:
            error = await error_of(put)
            assert isinstance(error, errors.BodyCorrupt)
            assert "eventflux.accept_mislabelled_zstd" in error.message
            assert await client.state.get("k") is None
        broken = b"\x28\xb5\x2f\xfd" + RAW
        error = await error_of(stub.SendMessage(message("STATE", broken, key, compression="ZSTD")))
        assert isinstance(error, errors.BodyCorrupt)
        await send(stub, "STATE", RAW, key)
        counted = it.server.core.counters.values.get("eventflux_mislabelled_zstd_total", 0)
        assert int(accepts) == counted
