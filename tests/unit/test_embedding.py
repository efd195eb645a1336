"""A server within one's own process, reached without sockets: how an application embeds it."""

from pathlib import Path

import pytest

import tidewire
from tidewire_server.app import Server
from tidewire_server.ops import config
from tidewire_server.ops.config import Config, ConfigError


def embedded(folder: Path, *urls: str) -> Server:
    """The whole server with its store in a folder, nothing of it on the network."""
    return Server(
        Config(
            server=config.Server(node_id="embedded", data_dir=str(folder)),
            listen=config.Listen(urls=list(urls)),
            admin=config.Admin(enabled=False),
            engine=config.Engine(ballast_bytes=0),
        )
    )


async def test_an_application_embeds_the_server(tmp_path: Path) -> None:
    """Start it, connect by its name, use every kind, stop it; the store is there the next time."""
    server = embedded(tmp_path, "memory://app")
    await server.start()
    async with tidewire.connect("memory://app") as client:
        info = await client.info()
        assert ["memory://app"] == [listener.url for listener in info.listeners]
        assert ("memory://process", False) == (info.principal, info.listeners[0].encrypted)
        await client.state.put("answer", b"42")
        async with client.queries.serve("double", lambda query: query.payload * 2):
            assert b"abab" == (await client.queries.ask("double", b"ab")).payload
    await server.stop(0.0)

    again = embedded(tmp_path, "memory://app")
    await again.start()
    async with tidewire.connect("memory://app") as client:
        entry = await client.state.get("answer")
        assert entry is not None
        assert b"42" == entry.value
    await again.stop(0.0)


async def test_names_and_sockets_are_free_after_a_start_that_failed(tmp_path: Path) -> None:
    """When one address cannot be listened on, the others are let go of, files and all."""
    path, grpc_path = tmp_path / "raw.sock", tmp_path / "grpc.sock"
    good = ("memory://app", f"unix://{path}", f"grpc+unix://{grpc_path}")
    with pytest.raises(ConfigError, match="no socket"):
        await embedded(tmp_path / "data", *good, f"unix://{tmp_path}").start()
    assert not path.exists()
    assert not grpc_path.exists()

    server = embedded(tmp_path / "data", *good)
    await server.start()
    for url in good:
        async with tidewire.connect(url) as client:
            assert "embedded" == (await client.info()).node_id
    await server.stop(0.0)
    assert not path.exists()
    assert not grpc_path.exists()


async def test_a_plain_listener_others_can_reach_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so in the log, and only of that one; what only this machine reaches is no news."""
    quiet = ("tcp://127.0.0.1:0", "memory://app", f"unix://{tmp_path}/raw.sock")
    server = embedded(tmp_path / "data", *quiet, "tcp://0.0.0.0:0")
    await server.start()
    bound = [listener.url for listener in server.listeners.bound]
    await server.stop(0.0)

    told = [record for record in caplog.records if "not encrypted" in record.getMessage()]
    assert [bound[-1]] == [getattr(record, "url", "") for record in told]
    assert ["WARNING"] == [record.levelname for record in told]
