"""
Messaging for microservices: events, queries, state, control, heartbeats and checkpoints.

::

    async with tidewire.connect("tcp://localhost:7401") as client:
        await client.events.publish("orders.created", b"...")

Names are imported when they are first used: ``import tidewire`` alone loads neither gRPC nor
protobuf.
"""

from importlib import import_module

# Type checkers take it for true; importing `typing` would cost more than all the rest.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from tidewire import errors, signing, sync
    from tidewire.client.asking import Reply
    from tidewire.client.attendance import Attendance, Command
    from tidewire.client.checkpoints import (
        Checkpoint,
        CheckpointInfo,
        Checkpoints,
        Committed,
        Operator,
    )
    from tidewire.client.client import Client, ConnectionState, connect
    from tidewire.client.control import CommandOutcome, Control, NodeResult, SentCommand
    from tidewire.client.durable import ConsumerHandle, StreamHandle
    from tidewire.client.entries import ChangeKind, Deleted, Entry, StateEvent
    from tidewire.client.events import Events
    from tidewire.client.lanes import PublishAck
    from tidewire.client.members import MemberEvent, Members, MemberWatch
    from tidewire.client.membership import Figures, Membership
    from tidewire.client.message import Message, MessageBatch
    from tidewire.client.naming import DurabilityLevel
    from tidewire.client.opening import Opening
    from tidewire.client.publisher import Publisher
    from tidewire.client.queries import Gathered, Queries
    from tidewire.client.responder import Query, Responder
    from tidewire.client.retry import RetryPolicy
    from tidewire.client.state import State
    from tidewire.client.subscription import Subscription
    from tidewire.client.timeouts import TimeoutProfile
    from tidewire.client.transaction import Operations, Transaction, TransactionResult
    from tidewire.client.watching import Watch
    from tidewire.errors import TidewireError
    from tidewire.transport import PoolOptions, TlsConfig, TransportOptions, channel

__all__ = (  # noqa: RUF022 (grouped, not sorted)
    # Connecting.
    "connect",
    "Client",
    "ConnectionState",
    "DurabilityLevel",
    "Opening",
    "PoolOptions",
    "RetryPolicy",
    "TimeoutProfile",
    "TlsConfig",
    "TransportOptions",
    "channel",
    "sync",
    # Errors.
    "errors",
    "TidewireError",
    # Events.
    "ConsumerHandle",
    "Events",
    "Message",
    "MessageBatch",
    "PublishAck",
    "Publisher",
    "StreamHandle",
    "Subscription",
    "signing",
    # Queries.
    "Gathered",
    "Queries",
    "Query",
    "Reply",
    "Responder",
    # State.
    "ChangeKind",
    "Deleted",
    "Entry",
    "Operations",
    "State",
    "StateEvent",
    "Transaction",
    "TransactionResult",
    "Watch",
    # Control.
    "Attendance",
    "Command",
    "CommandOutcome",
    "Control",
    "NodeResult",
    "SentCommand",
    # Heartbeats.
    "Figures",
    "MemberEvent",
    "MemberWatch",
    "Members",
    "Membership",
    # Checkpoints.
    "Checkpoint",
    "CheckpointInfo",
    "Checkpoints",
    "Committed",
    "Operator",
)

_HOMES = {
    "connect": "tidewire.client.client",
    "Client": "tidewire.client.client",
    "ConnectionState": "tidewire.client.client",
    "RetryPolicy": "tidewire.client.retry",
    "PoolOptions": "tidewire.transport",
    "TimeoutProfile": "tidewire.client.timeouts",
    "TlsConfig": "tidewire.transport",
    "TransportOptions": "tidewire.transport",
    "channel": "tidewire.transport",
    "TidewireError": "tidewire.errors",
    "Message": "tidewire.client.message",
    "MessageBatch": "tidewire.client.message",
    "PublishAck": "tidewire.client.lanes",
    "Publisher": "tidewire.client.publisher",
    "Subscription": "tidewire.client.subscription",
    "Gathered": "tidewire.client.queries",
    "Query": "tidewire.client.responder",
    "Reply": "tidewire.client.asking",
    "Responder": "tidewire.client.responder",
    "ChangeKind": "tidewire.client.entries",
    "Entry": "tidewire.client.entries",
    "StateEvent": "tidewire.client.entries",
    "Transaction": "tidewire.client.transaction",
    "Watch": "tidewire.client.watching",
    "Attendance": "tidewire.client.attendance",
    "Command": "tidewire.client.attendance",
    "CommandOutcome": "tidewire.client.control",
    "Figures": "tidewire.client.membership",
    "Membership": "tidewire.client.membership",
    "Checkpoint": "tidewire.client.checkpoints",
    "Operator": "tidewire.client.checkpoints",
    "CheckpointInfo": "tidewire.client.checkpoints",
    "Checkpoints": "tidewire.client.checkpoints",
    "Committed": "tidewire.client.checkpoints",
    "Control": "tidewire.client.control",
    "NodeResult": "tidewire.client.control",
    "SentCommand": "tidewire.client.control",
    "ConsumerHandle": "tidewire.client.durable",
    "StreamHandle": "tidewire.client.durable",
    "Deleted": "tidewire.client.entries",
    "Events": "tidewire.client.events",
    "MemberEvent": "tidewire.client.members",
    "Members": "tidewire.client.members",
    "MemberWatch": "tidewire.client.members",
    "DurabilityLevel": "tidewire.client.naming",
    "Opening": "tidewire.client.opening",
    "Queries": "tidewire.client.queries",
    "State": "tidewire.client.state",
    "Operations": "tidewire.client.transaction",
    "TransactionResult": "tidewire.client.transaction",
}
_MODULES = ("errors", "signing", "sync")


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is not None:
        value: object = getattr(import_module(home), name)
    elif name in _MODULES:
        value = import_module(f"tidewire.{name}")
    else:
        raise AttributeError(f"module 'tidewire' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
