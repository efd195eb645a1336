"""Whether a channel is connected, and waiting for that to change: the part gRPC specifies."""

import asyncio
from collections.abc import Callable

import grpc
from grpc import ChannelConnectivity as State


class Connectivity:
    """The state of one channel; every change wakes those who wait. For one event loop."""

    def __init__(self) -> None:
        self.state = State.IDLE
        self._changed: asyncio.Event | None = None

    def set(self, state: State) -> None:
        """Go to another state; SHUTDOWN is the last one."""
        if state is self.state or self.state is State.SHUTDOWN:
            return
        self.state = state
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait_for_change(self, last_observed: State) -> None:
        """Wait until the state is another one."""
        while self.state is last_observed:
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()

    async def wait_ready(self, want: Callable[[], State]) -> None:
        """
        Wait through failures until the state is READY.

        Args:
            want: Asks for a connection and returns the state; called before each wait.

        Raises:
            grpc.aio.UsageError: The channel is closed.
        """
        while (state := want()) is not State.READY:
            if state is State.SHUTDOWN:
                raise grpc.aio.UsageError("the channel is closed")
            await self.wait_for_change(state)
