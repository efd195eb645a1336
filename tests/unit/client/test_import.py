"""The package is light to import and offers what it says."""

import inspect
import subprocess
import sys
from typing import get_args

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


def classes_in(annotation: object) -> set[type]:
    """Classes an annotation is made of."""
    found = {annotation} if isinstance(annotation, type) else set()
    for part in get_args(annotation):
        found |= classes_in(part)
    return found


def test_what_the_client_hands_out_can_be_imported() -> None:
    """Whatever a public method returns has a public name, for who writes types."""
    named = {getattr(tidewire, name) for name in tidewire.__all__}
    unnamed: set[str] = set()
    for owner in [thing for thing in named if inspect.isclass(thing)]:
        for name, method in inspect.getmembers(owner, inspect.isfunction):
            if name.startswith("_") or (owner, name) == (tidewire.MessageBatch, "settler"):
                continue  # a settler is between the client's own parts
            for returned in classes_in(inspect.signature(method).return_annotation):
                if returned.__module__.startswith("tidewire.client") and returned not in named:
                    unnamed.add(f"{owner.__name__}.{name}: {returned.__name__}")
    assert set() == unnamed
