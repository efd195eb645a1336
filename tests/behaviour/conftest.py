"""
One suite over every wire: each module gets one whole server with all four listeners, each test
runs once per wire and keeps to names of its own.
"""

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import tidewire
from support.server import Running, running
from support.wires import WIRES


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One server for a module, on every wire."""
    async with running(tmp_path_factory.mktemp("server")) as it:
        yield it


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    """Each wire in turn."""
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def client(server: Running, wire: str) -> AsyncIterator[tidewire.Client]:
    """A client of the module's server on this wire."""
    async with tidewire.connect(server.url(wire), tls=server.tls(wire)) as made:
        yield made


@pytest.fixture
def name() -> str:
    """A name no other test uses: streams, keys and nodes of one server must not meet."""
    return f"t{uuid.uuid4().hex[:10]}"
