"""
The embedded engine: one directory, one database, one writer.

A writer thread takes everything that waits, does it in one SQLite transaction, flushes once and
answers all of it: that is the group commit. Reader threads have connections of their own and never
wait for the writer. Every row carries a checksum of everything that matters in it, because SQLite
has none.
"""

from tidewire_server.engine.embedded.engine import EmbeddedEngine, open_engine
from tidewire_server.engine.embedded.options import EngineOptions

__all__ = ("EmbeddedEngine", "EngineOptions", "open_engine")
