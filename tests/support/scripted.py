"""Servicers that do what a test's script says, and remember what they were asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from support.serving import Registration, serving
from tidewire.client.client import Client
from tidewire.client.retry import RetryPolicy
from tidewire.client.session import ClientOptions
from tidewire.v1 import (
    common_pb2,
    control_pb2,
    control_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    heartbeat_pb2,
    heartbeat_pb2_grpc,
    state_pb2,
    state_pb2_grpc,
)

WAIT_S = 20.0
"""Long enough for anything that happens at all."""
QUICK = RetryPolicy(delay_first_s=0.001, delay_s_max=0.01, budget_burst=1_000)
CODECS = (1, 2, 3, 4)

# Generated servicers are abstract; these answer only what a test asks.
_Events: Any = event_pb2_grpc.EventServiceServicer
_Control: Any = control_pb2_grpc.ControlServiceServicer
_State: Any = state_pb2_grpc.StateServiceServicer
_Heartbeat: Any = heartbeat_pb2_grpc.HeartbeatServiceServicer

Script = Callable[["Conversation"], Awaitable[None]]


class Conversation:
    """One call of a bidirectional stream, from the server's side."""

    def __init__(self, requests: Any, context: Any, number: int, response: type[Any]) -> None:
        self.context = context
        self.number = number
        self.requests: list[Any] = []
        self._iterator = requests
        self._response = response

    async def read(self) -> Any:
        """Next request; ``None`` when the client sends no more."""
        async for request in self._iterator:
            self.requests.append(request)
            return request
        return None

    async def greet(self, **fields: Any) -> Any:
        """Take `open`, answer `opened`, and return what was opened."""
        request = await self.read()
        fields.setdefault("codecs", CODECS)
        await self.write(opened=common_pb2.Opened(node_id="scripted", epoch=1, **fields))
        return request.open

    async def write(self, **fields: Any) -> None:
        """Send a response."""
        await self.context.write(self._response(**fields))

    async def cut(self) -> None:
        """Break the call as a lost connection would."""
        await self.context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the script")


class Scripted:
    """Runs a script for each call of one method, the last one again and again."""

    def __init__(self, response: type[Any], scripts: Sequence[Script]) -> None:
        self.calls: list[Conversation] = []
        self._scripts = list(scripts)
        self._response = response

    async def run(self, requests: Any, context: Any) -> None:
        """Handle a call."""
        conversation = Conversation(requests, context, len(self.calls), self._response)
        self.calls.append(conversation)
        script = self._scripts[min(conversation.number, len(self._scripts) - 1)]
        await script(conversation)


class ScriptedEvents(_Events):  # type: ignore[misc]
    """Events by scripts."""

    def __init__(self, publish: Sequence[Script] = (), subscribe: Sequence[Script] = ()) -> None:
        self.publishing = Scripted(event_pb2.PublishStreamResponse, publish)
        self.subscribing = Scripted(event_pb2.SubscribeResponse, subscribe)
        self.last_sequence = 0

    async def PublishStream(self, request_iterator: Any, context: Any) -> None:
        """Run the script of this call."""
        await self.publishing.run(request_iterator, context)

    async def Subscribe(self, request_iterator: Any, context: Any) -> None:
        """Run the script of this call."""
        await self.subscribing.run(request_iterator, context)

    async def GetStream(self, request: Any, context: Any) -> event_pb2.GetStreamResponse:
        """A stream with the sequence the test set."""
        state = event_pb2.StreamState(last_sequence=self.last_sequence)
        return event_pb2.GetStreamResponse(stream=event_pb2.Stream(state=state))


class ScriptedControl(_Control):  # type: ignore[misc]
    """Attendance by scripts."""

    def __init__(self, attend: Sequence[Script]) -> None:
        self.attending = Scripted(control_pb2.AttendResponse, attend)

    async def Attend(self, request_iterator: Any, context: Any) -> None:
        """Run the script of this call."""
        await self.attending.run(request_iterator, context)


class ScriptedState(_State):  # type: ignore[misc]
    """Watches by scripts; a store at the revision the test set."""

    def __init__(self, watch: Sequence[Script] = ()) -> None:
        self.watching = Scripted(state_pb2.WatchResponse, watch)
        self.revision = 0

    async def Watch(self, request: Any, context: Any) -> None:
        """Run the script of this call."""
        await self.watching.run(one(request), context)

    async def Range(self, request: Any, context: Any) -> state_pb2.RangeResponse:
        """An empty page."""
        return state_pb2.RangeResponse(revision=self.revision)


class ScriptedHeartbeat(_Heartbeat):  # type: ignore[misc]
    """Takes joins and beats; a test may have errors raised by the next ones."""

    def __init__(self) -> None:
        self.joins: list[heartbeat_pb2.JoinRequest] = []
        self.beats: list[heartbeat_pb2.BeatRequest] = []
        self.left: list[heartbeat_pb2.LeaveRequest] = []
        self.errors: list[Exception] = []
        self.interval_ms = 10

    async def Join(self, request: Any, context: Any) -> heartbeat_pb2.JoinResponse:
        """Join under a higher incarnation."""
        self._raise()
        self.joins.append(request)
        response = heartbeat_pb2.JoinResponse(
            incarnation=len(self.joins), fencing_token=10 * len(self.joins)
        )
        response.lease.FromMilliseconds(3 * self.interval_ms)
        response.interval.FromMilliseconds(self.interval_ms)
        return response

    async def Beat(self, request: Any, context: Any) -> heartbeat_pb2.BeatResponse:
        """Take a beat."""
        self._raise()
        self.beats.append(request)
        return heartbeat_pb2.BeatResponse()

    async def Leave(self, request: Any, context: Any) -> heartbeat_pb2.LeaveResponse:
        """Take the leave."""
        self.left.append(request)
        return heartbeat_pb2.LeaveResponse()

    def _raise(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


async def one(request: Any) -> AsyncIterator[Any]:
    """A stream of one request."""
    yield request


@asynccontextmanager
async def client_of(*registrations: Registration, **options: Any) -> AsyncIterator[Client]:
    """A client of scripted servicers over a real socket, with quick retries."""
    options.setdefault("timeout_s", WAIT_S)
    options.setdefault("retry", QUICK)
    async with serving(None, registrations) as channel:
        client = Client("grpc://scripted", channel, ClientOptions(**options))
        try:
            yield client
        finally:
            await client.close()


def events_of(servicer: ScriptedEvents) -> Registration:
    """How to register it."""
    return (event_pb2_grpc.add_EventServiceServicer_to_server, servicer)


async def idle(conversation: Conversation) -> None:
    """Keep a call open until the client ends it, or sends no more."""
    while await conversation.read() is not None:
        continue


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds that another task brings about."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.001)


async def forever(_conversation: Conversation) -> None:
    """Keep a call open, for calls of which the client's half is closed from the beginning."""
    await asyncio.Event().wait()
