"""The package is light to import and offers what it says."""

import subprocess
import sys

import tidewire

LIGHT = """
import sys, time
began = time.perf_counter()
import tidewire
took_s = time.perf_counter() - began
heavy = [name for name in ("grpc", "google.protobuf", "asyncio", "ssl") if name in sys.modules]
print(heavy, took_s < 1.0)
"""

ENVIRONMENT = """
import os
import tidewire
tidewire.connect
print(os.environ["GRPC_VERBOSITY"], os.environ["GRPC_ENABLE_FORK_SUPPORT"])
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    """Neither gRPC nor protobuf nor asyncio is loaded by `import tidewire` alone."""
    assert "[] True" == run(LIGHT)


def test_grpc_is_told_its_environment_first() -> None:
    """What grpcio reads once when it is imported is set before."""
    assert "ERROR 0" == run(ENVIRONMENT)


def test_every_public_name_is_there() -> None:
    """Each name of `__all__` can be had, and nothing else is invented."""
    for name in tidewire.__all__:
        assert getattr(tidewire, name) is not None
    assert set(tidewire.__all__) <= set(dir(tidewire))
    assert not hasattr(tidewire, "nothing")
