"""
Looking through the small tables at a start.

A row that does not fit is refused when it is read; a row that is lost is not read at all. So tables
where absence is an answer are looked through once, structure and rows, and when something is wrong
with one, absence in it is no longer believed. Damage that comes later, while the store is in use,
is found in rows that are read, each time; that a row has vanished since is found by the next start.
"""

from dataclasses import dataclass, field

import apsw

from tidewire_server.engine.embedded import rows, schema
from tidewire_server.engine.embedded.connections import Connection


@dataclass(slots=True)
class Damage:
    """
    What was found.

    Attributes:
        tables: Tables in which something is wrong.
        rows: Rows, by table and first column.
        groups_lost: Groups that a damaged write-ahead log has lost.
    """

    tables: set[str] = field(default_factory=set)
    rows: list[str] = field(default_factory=list)
    groups_lost: int = 0


NAMED_MAX = 100


def look_through(connection: Connection) -> Damage:
    """Check the small tables."""
    damage = Damage()
    for table in schema.SMALL_TABLES:
        if not _is_sound(connection, table) or not _rows_fit(connection, table, damage):
            damage.tables.add(table)
    return damage


def has_all_tables(connection: Connection) -> bool:
    """Whether the tables are those of this format."""
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")
    return {name for (name,) in names}.issuperset(schema.TABLE_NAMES)


def _is_sound(connection: Connection, table: str) -> bool:
    try:
        return bool(connection.execute(f"PRAGMA integrity_check({table})").get == "ok")
    except apsw.Error:
        return False


def _rows_fit(connection: Connection, table: str, damage: Damage) -> bool:
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    columns = ", ".join(name for name in names if name != "crc")
    whole = True
    try:
        for row in connection.execute(f"SELECT crc, {columns} FROM {table}"):  # noqa: S608
            if not rows.fits(*row):
                whole = False
                if len(damage.rows) < NAMED_MAX:
                    damage.rows.append(f"{table}: {row[1]!r}")
    except (apsw.Error, UnicodeDecodeError):
        return False
    return whole
