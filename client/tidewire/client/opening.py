"""What is opened by ``await`` and closed by its owner, or by ``async with``."""

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Generic, TypeVar

from tidewire.client.session import Closable

OpenedT = TypeVar("OpenedT", bound=Closable)


class Opening(Generic[OpenedT]):
    """
    Await it, or enter it, to have what it opens; leaving the context closes that.

    ``x = await opening`` must be followed by ``await x.close()``.
    """

    def __init__(self, open_: Callable[[], Awaitable[OpenedT]]) -> None:
        self._open = open_
        self._opened: OpenedT | None = None

    def __await__(self) -> Generator[None, None, OpenedT]:
        return self._open().__await__()

    async def __aenter__(self) -> OpenedT:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._opened is not None:
            await self._opened.close()
