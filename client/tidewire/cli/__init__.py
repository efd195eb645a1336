"""
The command line: ``tidewire``.

What is imported here is imported for every ``tidewire --help``: click and the standard library.
Each command lives in a module of its own, which is imported when it is run.
"""

from tidewire.cli.app import main

__all__ = ["main"]
