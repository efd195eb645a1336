"""What can be set about the embedded engine, and its bounds."""

from dataclasses import dataclass
from pathlib import Path

BALLAST_BYTES_DEFAULT = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """
    Bounds of the embedded engine.

    Attributes:
        group_transactions_max: Most transactions of one commit.
        group_bytes_max: Most bytes of one commit; a single transaction may be larger.
        pending_transactions_max: Transactions that may wait for the writer; more are
            `errors.Overloaded`.
        pending_bytes_max: Bytes that may wait for the writer; more are `errors.Overloaded`.
        reads_pending_max: Reads that may wait; more are `errors.Overloaded`.
        readers: Reader threads.
        cache_bytes: Page cache of each connection.
        state_cache_bytes: Current entries of State that are kept in memory; 0 keeps none.
        wal_pages_max: Pages in the write-ahead log at which it is copied into the database.
        history_changes_max: State changes kept; older ones are compacted by themselves. 10 % over
            before it starts.
        message_ids_max: Message ids remembered over all streams; beyond, the oldest of a stream go
            before their window ends.
        producers_max: Producers remembered in memory; all are stored.
        producer_idle_s: A producer that published nothing for so long is forgotten.
        sweep_interval_s: How often what is over (age, deleted streams, old requests) is removed.
        sweep_rows_max: Most rows one sweep removes, so that publishing does not wait long.
        ballast_bytes: Space held back, given up when the disk is full so that deleting is possible;
            at least what the write-ahead log takes (``wal_pages_max`` and one group).
        chunk_grace_s: How long a chunk that no checkpoint needs is kept.
        documents_max: Documents of one kind.
        synchronous: SQLite's level for durable groups; another one than FULL is for showing that
            tests notice.
        vfs: Name of a registered SQLite VFS; empty means the default. For tests of failing disks.
        acknowledge_early: Answer before the commit. Only the robustness tests' control sets it, to
            show that they notice.
    """

    group_transactions_max: int = 4096
    group_bytes_max: int = 8 * 1024 * 1024
    pending_transactions_max: int = 65_536
    pending_bytes_max: int = 64 * 1024 * 1024
    reads_pending_max: int = 16_384
    readers: int = 2
    cache_bytes: int = 32 * 1024 * 1024
    state_cache_bytes: int = 16 * 1024 * 1024
    wal_pages_max: int = 4096
    history_changes_max: int = 100_000
    message_ids_max: int = 1_000_000
    producers_max: int = 10_000
    producer_idle_s: float = 24 * 3600.0
    sweep_interval_s: float = 1.0
    sweep_rows_max: int = 2048
    ballast_bytes: int = BALLAST_BYTES_DEFAULT
    chunk_grace_s: float = 600.0
    documents_max: int = 100_000
    synchronous: str = "FULL"
    vfs: str = ""
    acknowledge_early: bool = False


def database_path(directory: Path) -> Path:
    """Where the database of a store is."""
    return directory / "tidewire.db"
