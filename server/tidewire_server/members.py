"""
Who is alive, as the other services see it.

The heartbeat service is the only writer. The event service asks whose deliveries to take back, the
query service who "all" is, the state service whose leases are over.
"""

from collections.abc import Callable
from enum import Enum


class Life(Enum):
    """What the detector thinks of a member."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


Listener = Callable[[str, Life, int], None]
"""
Called with the node id, what became of it, and the fencing token of the incarnation it is about.
"""


class Members:
    """The lives of the members, by node id. A node that never joined is not in it."""

    def __init__(self) -> None:
        self._lives: dict[str, Life] = {}
        self._listeners: list[Listener] = []

    def life(self, node_id: str) -> Life | None:
        """What is thought of this node; ``None`` when it never joined."""
        return self._lives.get(node_id)

    def is_gone(self, node_id: str) -> bool:
        """True for a member that is DEAD or has LEFT; False also for who never joined."""
        return self._lives.get(node_id) in (Life.DEAD, Life.LEFT)

    def listen(self, listener: Listener) -> None:
        """Hear of every change from now on. Listeners must not block or raise."""
        self._listeners.append(listener)

    def set_life(self, node_id: str, life: Life, fencing_token: int) -> None:
        """
        Record what became of a node and tell the listeners, also when the life is the same (a new
        incarnation).
        """
        self._lives[node_id] = life
        for listener in self._listeners:
            listener(node_id, life, fencing_token)

    def forget(self, node_id: str) -> None:
        """Drop a member that has been gone for long."""
        self._lives.pop(node_id, None)
