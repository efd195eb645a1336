"""How this software calls itself to peers."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _version() -> str:
    try:
        return version("tidewire")
    except PackageNotFoundError:
        return "unknown"


AGENT: Final = f"tidewire-python/{_version()}"
