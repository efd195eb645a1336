"""
Handlers without a task: those that only pass a request on and are told the answer later.

A task costs three turns of the event loop and about 10 microseconds for a call, which is more than
such a handler itself. gRPC knows no handlers of this kind, so that each is an addition to a
coroutine that does the same.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from tidewire.transport.context import ServerCall

Direct = Callable[[Any, ServerCall], bool | None]
"""
A handler of one request and one response that is called in the reader's turn and must not block.

It ends its call by :meth:`ServerCall.answer` or :meth:`ServerCall.fail`, then or later; what it
raises ends the call too. One that cannot do it without waiting returns True and has done nothing:
the coroutine then serves the call, in a task. It is the attribute ``direct`` of a ``unary_unary``
behaviour, which serves wherever there is none of this.
"""

BehaviourT = TypeVar("BehaviourT", bound=Callable[..., Any])


def served_directly_by(name: str) -> Callable[[BehaviourT], BehaviourT]:
    """Say which method of a servicer does on raw wires, without a task, what this one does."""

    def mark(behaviour: BehaviourT) -> BehaviourT:
        behaviour.direct_name = name  # type: ignore[attr-defined]
        return behaviour

    return mark


def direct_of(behaviour: Any) -> Direct | None:
    """Return the direct handler beside a servicer's method, when it has one."""
    name = getattr(behaviour, "direct_name", None)
    direct: Direct | None = None if name is None else getattr(behaviour.__self__, name)
    return direct
