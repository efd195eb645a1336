"""The file of reserved numbers: ahead of what is given, and never lost by a write that is cut."""

import errno
import os
from pathlib import Path
from typing import Any

import apsw
import pytest

from tidewire_server.engine.embedded import reserved as module
from tidewire_server.engine.embedded.reserved import NAME, STEP_MAX, STEP_MIN, LogPlace, Reserved


def test_what_is_given_is_reserved_before(tmp_path: Path) -> None:
    """Whatever was covered is known after a crash at any moment, and little is written."""
    reserved = Reserved(tmp_path)
    assert not reserved.is_known
    writes = 0
    for last in range(100, 3_000_000, 100):
        before = reserved.mark(7)
        reserved.cover([(7, last)])
        writes += before != reserved.mark(7)
        assert last <= reserved.mark(7) <= last + STEP_MAX
    reserved.close()
    again = Reserved(tmp_path)

    assert again.is_known
    assert (reserved.mark(7), 0) == (again.mark(7), again.mark(8))
    assert writes < 15
    again.cover([(7, again.mark(7) + 1)])
    assert reserved.mark(7) + 1 + STEP_MIN == again.mark(7)


def test_a_write_that_is_cut_leaves_the_one_before(tmp_path: Path) -> None:
    """Each byte of the newest place may be wrong: what was reserved before is still known."""
    for place in (0, 9, 20, 30, 35):
        directory = tmp_path / str(place)
        directory.mkdir()
        reserved = Reserved(directory)
        reserved.cover([(1, reserved.mark(1) + 1)])
        first = reserved.mark(1)
        reserved.cover([(1, first + 1)])
        reserved.close()
        data = bytearray((directory / NAME).read_bytes())
        newest = max(
            (0, module._PLACE_BYTES),
            key=lambda at: int.from_bytes(data[at + 8 : at + 16], "little"),
        )
        data[newest + place] ^= 1
        (directory / NAME).write_bytes(data)
        assert first == Reserved(directory).mark(1)


def test_a_reservation_that_fails_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk refuses the group and everything is as before; another error is the end."""
    reserved = Reserved(tmp_path)
    reserved.cover([(1, 1)])
    before = reserved.mark(1)

    def fail(code: int) -> Any:
        def pwrite(*_: Any) -> int:
            raise OSError(code, "it does not work")

        return pwrite

    for code, error in ((errno.ENOSPC, apsw.FullError), (errno.EIO, apsw.IOError)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fail(code))
            with pytest.raises(error):
                reserved.cover([(1, before + 1)])
        assert before == reserved.mark(1)
    reserved.cover([(1, before + 1)])
    assert before + 1 + 2 * STEP_MIN == reserved.mark(1)


def test_what_is_over_is_forgotten(tmp_path: Path) -> None:
    """Only what is retained is written on."""
    reserved = Reserved(tmp_path)
    reserved.cover([(1, 1), (2, 1)])
    reserved.retain([2])
    reserved.cover([(2, 10_000)])
    again = Reserved(tmp_path)
    assert (0, reserved.mark(2)) == (again.mark(1), again.mark(2))


def test_what_was_noted_holds_for_one_run_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far the log was written is known until the machine is started anew, or not at all."""
    place = LogPlace(1, 2**32 - 1, 7)
    reserved = Reserved(tmp_path)
    reserved.note_log(LogPlace(1, 2, 6))
    reserved.note_log(place)
    assert place == Reserved(tmp_path).log
    for other in (b"another boot, it", bytes(16)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "_boot_id", lambda other=other: other)
            again = Reserved(tmp_path)
            assert again.log is None
    monkeypatch.setattr(module, "_boot_id", lambda: bytes(16))
    unknown = Reserved(tmp_path)
    unknown.note_log(place)
    assert Reserved(tmp_path).log is None
