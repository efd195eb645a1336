"""
The tables, and what marks a database as ours.

Identifiers are made so that order in the table is order in time: a batch is ``stream * 2**43 +
first sequence``, a state change is ``revision * 2**10 + place``. Each row has the checksum of its
other columns (see `rows`).
"""

import re
from typing import Final

APPLICATION_ID: Final = 0x54494445  # "TIDE"
FORMAT: Final = 1
SQLITE_VERSION_MIN: Final = (3, 51, 3)
"""First SQLite without the WAL-reset bug, which could corrupt a database."""

SEQUENCE_BITS: Final = 43
SEQUENCE_MAX: Final = 2**SEQUENCE_BITS - 1
STREAM_NUMBER_MAX: Final = 2**20 - 1
CHANGE_BITS: Final = 10
CHANGES_PER_REVISION_MAX: Final = 2**CHANGE_BITS - 1

TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value, crc INTEGER) WITHOUT ROWID;
CREATE TABLE streams (
    number INTEGER PRIMARY KEY, name TEXT, config BLOB, created_ns INTEGER, first_sequence INTEGER,
    last_sequence INTEGER, bytes INTEGER, first_time_ns INTEGER, last_time_ns INTEGER, deleted
    INTEGER, crc INTEGER);
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, last_sequence INTEGER, time_ns INTEGER, has_ids INTEGER, subject TEXT,
    crc INTEGER, dead_letter BLOB, batch BLOB);
CREATE TABLE removed_ids (
    id INTEGER PRIMARY KEY AUTOINCREMENT, stream INTEGER, time_ns INTEGER, body TEXT, crc INTEGER);
CREATE TABLE producers (
    stream INTEGER, producer_id TEXT, epoch INTEGER, recent TEXT, time_ns INTEGER, crc INTEGER,
    PRIMARY KEY (stream, producer_id)) WITHOUT ROWID;
CREATE TABLE consumers (
    stream INTEGER, name TEXT, config BLOB, state BLOB, created_ns INTEGER, crc INTEGER,
    PRIMARY KEY (stream, name)) WITHOUT ROWID;
CREATE TABLE quarantine (
    stream INTEGER, first INTEGER, last INTEGER, found_ns INTEGER, crc INTEGER,
    PRIMARY KEY (stream, first)) WITHOUT ROWID;
CREATE TABLE heads (
    key TEXT PRIMARY KEY, change_id INTEGER, version INTEGER, create_revision INTEGER, live INTEGER,
    ttl_ns INTEGER, expires_ns INTEGER, lease_node TEXT, lease_token INTEGER, crc INTEGER) WITHOUT
    ROWID;
CREATE INDEX heads_by_expiry ON heads (expires_ns) WHERE expires_ns > 0;
CREATE INDEX heads_by_lease ON heads (lease_node, lease_token) WHERE lease_node != '';
CREATE TABLE changes (
    id INTEGER PRIMARY KEY, key TEXT, kind INTEGER, previous_id INTEGER, crc INTEGER, entry BLOB);
CREATE INDEX changes_by_key ON changes (key);
CREATE TABLE requests (
    scope TEXT, request_id TEXT, time_ns INTEGER, answer BLOB, crc INTEGER,
    PRIMARY KEY (scope, request_id)) WITHOUT ROWID;
CREATE INDEX requests_by_time ON requests (time_ns);
CREATE TABLE members (
    node_id TEXT PRIMARY KEY, incarnation INTEGER, fencing_token INTEGER, lease_ns INTEGER,
    member_groups TEXT, gone INTEGER, crc INTEGER) WITHOUT ROWID;
CREATE TABLE operators (
    name TEXT PRIMARY KEY, epoch INTEGER, keep INTEGER, last_revision INTEGER,
    current_revision INTEGER, crc INTEGER) WITHOUT
    ROWID;
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY, operator TEXT, revision INTEGER, crc INTEGER, head BLOB, chunks BLOB,
    inline BLOB);
CREATE UNIQUE INDEX checkpoints_by_revision ON checkpoints (operator, revision);
CREATE TABLE chunks (
    digest BLOB PRIMARY KEY, data_id INTEGER, size INTEGER, uses INTEGER, kept_until_ns INTEGER, crc
    INTEGER) WITHOUT ROWID;
CREATE INDEX chunks_unused ON chunks (kept_until_ns) WHERE uses = 0;
CREATE TABLE chunk_data (id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB);
CREATE TABLE documents (
    kind TEXT, name TEXT, expires_ns INTEGER, crc INTEGER, body BLOB, PRIMARY KEY (kind, name))
    WITHOUT ROWID;
CREATE INDEX documents_by_expiry ON documents (expires_ns);
"""

TABLE_NAMES: Final = frozenset(re.findall(r"CREATE TABLE (\w+)", TABLES))

SMALL_TABLES: Final = (
    "meta",
    "streams",
    "consumers",
    "quarantine",
    "heads",
    "members",
    "operators",
    "documents",
)
"""Tables in which a row that is missing would be a wrong answer; looked through at every start."""


def batch_id(stream: int, sequence: int) -> int:
    """Identifier of the batch that begins with this sequence."""
    return (stream << SEQUENCE_BITS) | sequence


def change_id(revision: int, place: int = 0) -> int:
    """Identifier of the change at this place within a revision."""
    return (revision << CHANGE_BITS) | place
