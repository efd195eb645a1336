"""The collector of cycles in a server: it looks seldom, and still looks."""

import gc

from tidewire_server.ops.collector import THRESHOLDS, calm_collector


def test_the_collector_is_calm_and_alive() -> None:
    """What was there is left alone, the thresholds are ours, and cycles still go."""
    before = gc.get_threshold()
    try:
        calm_collector()

        assert THRESHOLDS == gc.get_threshold()
        assert gc.get_freeze_count() > 0
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
