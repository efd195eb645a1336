"""Every wire by fixture."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.echoing import Echoing, echoing
from support.wires import WIRES


@pytest.fixture(params=WIRES)
async def echo(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Echoing]:
    """Echo over each wire."""
    async with echoing(request.param, tmp_path) as served:
        yield served
