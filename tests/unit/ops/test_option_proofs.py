"""Every option of the configuration has an effect that some test shows."""

from pathlib import Path
from typing import Final

from support.proofs import proven_in
from tidewire_server.ops.config_sources import keys, sections

ROOT: Final = Path(__file__).parents[3]
ELSEWHERE: Final = {
    "server.workers": (
        "tests/unit/workers/test_workers.py::test_a_worker_that_dies_is_started_again"
    ),
    "listen.insecure": "tests/unit/ops/test_config.py::test_plain_wires_stay_on_this_machine",
    "admin.insecure": "tests/unit/ops/test_config.py::test_admin_stays_on_this_machine",
    "access.rules": "tests/unit/test_app.py::test_who_may_call_is_the_same_on_every_wire",
    "wire.unread_bytes_max": (
        "tests/unit/wire/test_connection.py::test_unread_messages_of_all_calls_stop_the_connection"
    ),
    "engine.state_cache_bytes": "tests/unit/engine/test_state_cache.py::test_memory_is_bounded",
    "engine.history_changes_max": "tests/unit/engine/test_state.py::test_history_is_bounded",
}
"""Proven below the server; `test_bounds_reach_what_they_bind` shows that they get there."""


def test_every_option_has_a_proof() -> None:
    """Each option there is has a test that shows its effect, and each test named exists."""
    options = {f"{section}.{key}" for section, kind in sections().items() for key in keys(kind)}
    here = Path(__file__).parent.glob("test_option_effects*.py")
    proven = {option for file in here for option in proven_in(file)}

    assert set() == options - proven - ELSEWHERE.keys()
    assert set() == (proven | ELSEWHERE.keys()) - options
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text("utf-8"), place


def test_a_missing_proof_is_noticed(tmp_path: Path) -> None:
    """Control: only options that a test names are counted."""
    file = tmp_path / "test_x.py"
    file.write_text('@proves("a.b", "c.d")\nasync def test_x(): ...\ndef test_y(): ...\n')

    assert ["a.b", "c.d"] == list(proven_in(file))
