"""Blocking stand-ins for the objects of the asyncio client."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Final, Self

from tidewire.client.attendance import Attendance
from tidewire.client.checkpoints import Checkpoints, Operator
from tidewire.client.client import Client
from tidewire.client.client import connect as connect_async
from tidewire.client.control import Control
from tidewire.client.durable import ConsumerHandle, StreamHandle
from tidewire.client.events import Events
from tidewire.client.members import Members
from tidewire.client.membership import Membership
from tidewire.client.message import Message, MessageBatch
from tidewire.client.publisher import Publisher
from tidewire.client.pull import PullStream
from tidewire.client.queries import Queries
from tidewire.client.responder import Responder
from tidewire.client.state import State
from tidewire.client.subscription import Subscription
from tidewire.client.transaction import Operations
from tidewire.sync.loop import LoopThread, shared_loop
from tidewire.sync.publishing import BlockingPublisher

_WRAPPED: Final = (
    Attendance,
    Checkpoints,
    Client,
    ConsumerHandle,
    Control,
    Events,
    Members,
    Membership,
    Message,
    MessageBatch,
    Operations,
    Operator,
    PullStream,
    Queries,
    Responder,
    State,
    StreamHandle,
    Subscription,
)
# Called by the library while it goes on: what they return is of no interest.
_LISTENERS: Final = frozenset(("on_lost", "on_change", "on_reply", "listener"))
_CLOSE_TIMEOUT_S: Final = 60.0


class Blocking:
    """
    Stands for an object of the asyncio client: the same attributes and methods, blocking.

    It is a context manager where the object is closed, and iterable where the object is.
    """

    def __init__(self, target: Any, loop: LoopThread) -> None:
        self._target = target
        self._loop = loop

    def __repr__(self) -> str:
        return f"<blocking {self._target!r}>"

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if inspect.ismethod(value):
            return self._method(value)
        return _wrap(value, self._loop)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_target", "_loop"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._target, name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        close = getattr(self._target, "close", None)
        if close is not None:
            self._loop.run(close(), _CLOSE_TIMEOUT_S)

    def __iter__(self) -> Iterator[Any]:
        return self.iterate()

    def __len__(self) -> int:
        return len(self._target)

    def iterate(self, *, timeout_s: float | None = None) -> Iterator[Any]:
        """
        Iterate; end when nothing comes for `timeout_s` seconds, ``None`` meaning to wait for ever.
        """
        target, loop = self._target, self._loop
        if isinstance(target, MessageBatch):
            yield from (Blocking(message, loop) for message in target)
        elif isinstance(target, Subscription):
            # By whole deliveries: a change of threads costs more than a message.
            batches = target.batches()
            for batch in _iterate(batches, loop, timeout_s):
                yield from (Blocking(message, loop) for message in batch)
        elif hasattr(target, "__anext__"):
            yield from _iterate(target, loop, timeout_s)
        else:
            raise TypeError(f"{type(target).__name__} is not iterable")

    def _method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        loop = self._loop

        @wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            given = [_unwrap(argument, loop) for argument in arguments]
            named = {
                name: _unwrap(option, loop, listener=name in _LISTENERS)
                for name, option in options.items()
            }
            return _wrap(loop.run(_invoke(method, given, named)), loop)

        return call


def connect(url: str | Sequence[str], **options: Any) -> Any:
    """
    Connect to a server, or to several; see `tidewire.connect` for the options.

    Returns:
        A stand-in for `tidewire.Client`, to be used as a context manager or closed.
    """
    loop = shared_loop()
    return Blocking(loop.run(_connect(url, options)), loop)


async def _connect(url: str | Sequence[str], options: dict[str, Any]) -> Client:
    return await connect_async(url, **options)


async def _invoke(method: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> Any:
    """Call on the loop: what is opened, or asked for, is waited for."""
    result = method(*arguments, **options)
    return await result if inspect.isawaitable(result) else result


def _wrap(value: Any, loop: LoopThread) -> Any:
    if isinstance(value, Publisher):
        return BlockingPublisher(value, loop)
    if isinstance(value, _WRAPPED):
        return Blocking(value, loop)
    if isinstance(value, AsyncIterator):
        return _iterate(value, loop, None)
    if type(value) is list and value and isinstance(value[0], _WRAPPED):
        return [Blocking(entry, loop) for entry in value]
    if type(value) is tuple:
        return tuple(_wrap(entry, loop) for entry in value)
    return value


def _unwrap(value: Any, loop: LoopThread, *, listener: bool = False) -> Any:
    if isinstance(value, Blocking):
        return value._target
    if isinstance(value, Mapping) and value and all(map(callable, value.values())):
        return {key: _unwrap(entry, loop) for key, entry in value.items()}
    if callable(value) and not isinstance(value, type):
        return _listener(value, loop) if listener else _handler(value, loop)
    return value


def _handler(function: Callable[..., Any], loop: LoopThread) -> Callable[..., Any]:
    """A handler runs on a thread: it may block, and call the client."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return function

    if inspect.isgeneratorfunction(function):

        async def generate(argument: Any) -> AsyncIterator[Any]:
            answers = function(_wrap(argument, loop))
            while (answer := await loop.on_thread(next, answers, _END)) is not _END:
                yield answer

        return generate

    if not inspect.signature(function).parameters:
        return function  # a figure asked for by the library, such as `figures`

    async def handle(argument: Any) -> Any:
        return await loop.on_thread(function, _wrap(argument, loop))

    return handle


def _listener(function: Callable[..., Any], loop: LoopThread) -> Callable[..., Any]:
    def tell(*news: Any) -> None:
        loop.handlers.submit(function, *(_wrap(entry, loop) for entry in news))

    return tell


_END: Final = object()


def _iterate(
    source: AsyncIterator[Any], loop: LoopThread, timeout_s: float | None
) -> Iterator[Any]:
    try:
        while True:
            try:
                value = loop.run(_next(source), timeout_s)
            except TimeoutError:
                return
            if value is _END:
                return
            yield value
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            loop.run(_close(source))


async def _next(source: AsyncIterator[Any]) -> Any:
    return await anext(source, _END)


async def _close(source: Any) -> None:
    await source.aclose()
