"""
The same client for code that does not use asyncio.

::

    with tidewire.sync.connect("tcp://localhost:7401") as client:
        client.events.publish("orders.created", b"...")
        with client.events.subscribe("orders.>") as subscription:
            for message in subscription:
                ...

Names and arguments are those of the asyncio client; what is awaited there blocks here, what is
opened there is open when the call returns, and ``async for`` becomes ``for``. Everything runs on
one event loop in one thread of this process; handlers run on threads of their own.

`channel` gives blocking generated stubs of any service a wire of tidewire.
"""

from tidewire.sync.channel import BlockingChannel, channel
from tidewire.sync.facade import Blocking, connect

__all__ = ("Blocking", "BlockingChannel", "channel", "connect")
