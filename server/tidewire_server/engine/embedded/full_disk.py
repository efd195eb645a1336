"""
What is done when the disk is full.

Deleting needs room too: in the write-ahead log, and in the database while the log is copied into
it. The ballast is that room, and so it is as large as the log becomes. It is given up for what
deletes; then the log is copied and cut, the pages that were freed are given back to the file
system, and the ballast is taken again. Until that works everything that takes room is refused, or
there would be none for the next deletion.
"""

import time
from typing import Final

import apsw

from tidewire_server.engine.embedded.connections import Connection
from tidewire_server.engine.embedded.files import Ballast

PIECE_PAGES: Final = 1024
PIECES_MAX: Final = 64
RETRY_S: Final = 0.5
BUSY_TIMEOUT_MS: Final = 200


class FullDisk:
    """
    The ballast and what it is for. Used by the writer thread only.

    Attributes:
        spent: The ballast was given up and could not be taken again yet.
    """

    def __init__(self, connection: Connection, ballast: Ballast) -> None:
        self.spent = False
        self._connection = connection
        self._ballast = ballast
        self._tried = 0.0

    def give_up_ballast(self) -> bool:
        """Make room for a deletion; False when there is no more to give."""
        given = self._ballast.give_up()
        self.spent = self.spent or given
        return given

    def recover(self) -> None:
        """
        Give freed pages back to the file system and take the ballast again, as far as it goes.

        Raises:
            apsw.Error: The disk failed in another way than being full.
        """
        try:
            self._cut_log()
            for _ in range(PIECES_MAX):
                if not self._connection.pragma("freelist_count"):
                    break
                self._connection.execute(f"PRAGMA incremental_vacuum({PIECE_PAGES})").fetchall()
                self._cut_log()
        except (apsw.FullError, apsw.BusyError):
            self._tried = time.monotonic()
        self.spent = not self._ballast.take()

    def refuses(self) -> bool:
        """
        Whether nothing that takes room may be written now. Tries to take the ballast now and then.
        """
        if self.spent and time.monotonic() - self._tried > RETRY_S:
            self._tried = time.monotonic()
            self.spent = not self._ballast.take()
        return self.spent

    def _cut_log(self) -> None:
        """Copy the log and give its space back. Readers hold it for one read at most."""
        self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            self._connection.set_busy_timeout(0)
