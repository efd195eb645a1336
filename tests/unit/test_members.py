"""The registry of lives that the services share."""

import pytest

from tidewire_server.members import Life, Members


def test_a_node_that_never_joined_is_not_gone() -> None:
    """Nothing is known of it, which is not the same as dead."""
    members = Members()

    assert members.life("n") is None
    assert not members.is_gone("n")


@pytest.mark.parametrize(
    ("life", "gone"),
    [(Life.ALIVE, False), (Life.SUSPECT, False), (Life.DEAD, True), (Life.LEFT, True)],
)
def test_only_the_dead_and_who_left_are_gone(life: Life, gone: bool) -> None:
    """A suspect may still be there."""
    members = Members()
    members.set_life("n", life, 1)

    assert life is members.life("n")
    assert gone == members.is_gone("n")


def test_every_listener_hears_every_change_in_order() -> None:
    """Also when the life is the same and only the incarnation is new; the life is set before."""
    members = Members()
    heard: list[tuple[str, Life, int]] = []
    seen: list[Life | None] = []
    members.listen(lambda node_id, life, token: heard.append((node_id, life, token)))
    members.listen(lambda node_id, _life, _token: seen.append(members.life(node_id)))
    members.set_life("a", Life.ALIVE, 1)
    members.set_life("a", Life.ALIVE, 2)
    members.set_life("a", Life.DEAD, 2)

    assert [("a", Life.ALIVE, 1), ("a", Life.ALIVE, 2), ("a", Life.DEAD, 2)] == heard
    assert [Life.ALIVE, Life.ALIVE, Life.DEAD] == seen


def test_forgetting_is_final_and_may_be_repeated() -> None:
    """After it the node is as one that never joined."""
    members = Members()
    members.set_life("n", Life.LEFT, 1)
    members.forget("n")
    members.forget("n")

    assert members.life("n") is None
