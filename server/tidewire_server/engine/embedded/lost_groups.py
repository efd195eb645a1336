"""
After a damaged log has lost acknowledged groups: no number that may have been given is given again.

Each stream goes on behind what was reserved for it. The sequences between are named as damaged,
like any others that cannot be read, and do not count as messages kept. The log is put aside first,
so that what is in it can still be looked at.
"""

import logging
import shutil
from pathlib import Path
from typing import Final

from tidewire_server.engine.embedded import checkpoints, quarantine, schema
from tidewire_server.engine.embedded.facts import FOUND_NEVER
from tidewire_server.engine.embedded.options import database_path
from tidewire_server.engine.embedded.reserved import (
    EPOCH,
    FENCING_TOKEN,
    STATE_REVISION,
    STEP_MIN,
    Reserved,
)
from tidewire_server.engine.embedded.session import Session

_LOG = logging.getLogger(__name__)

SKIPPED_BLINDLY: Final = 2**32
"""Numbers that are skipped when what was reserved cannot be read either."""
FACTS: Final = {
    "epoch": EPOCH,
    "state_revision": STATE_REVISION,
    "fencing_token": FENCING_TOKEN,
}
"""Numbers of the whole store that must never be given twice."""


def skip_numbers(session: Session, reserved: Reserved) -> None:
    """Move every number behind what was reserved, within the transaction that is open."""
    for name, key in FACTS.items():
        number = session.number(name)
        session.set_number(name, max(number, _mark(reserved, key, number)) + STEP_MIN)
    checkpoints.skip_numbers(session)
    for stream in session.streams.by_name.values():
        last = stream.last_sequence
        mark = min(max(last, _mark(reserved, stream.number, last)), schema.SEQUENCE_MAX)
        if mark == last:
            continue
        session.touch_stream(stream)
        stream.last_sequence = mark
        stream.holes.append((last + 1, mark))
        quarantine.save(session, stream.number, (last + 1, mark), found_ns=FOUND_NEVER)
        _LOG.error(
            "stream %s may have lost messages from %d on; it goes on at %d",
            stream.name,
            last + 1,
            mark + 1,
        )


def put_log_aside(directory: Path, epoch: int) -> None:
    """Copy the damaged log, as it is written over from now on."""
    log = database_path(directory).with_name(database_path(directory).name + "-wal")
    copy = log.with_name(f"{log.name}.damaged-{epoch}")
    try:
        shutil.copyfile(log, copy)
        copy.chmod(0o600)
    except OSError as exc:
        copy.unlink(missing_ok=True)
        _LOG.error("the damaged log could not be put aside: %s", exc.strerror)
    else:
        _LOG.error("the damaged log was put aside as %s", copy.name)


def _mark(reserved: Reserved, key: int, number: int) -> int:
    return reserved.mark(key) if reserved.is_known else number + SKIPPED_BLINDLY
