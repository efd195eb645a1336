"""The one event loop of a process that blocking code shares, in a thread of its own."""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from tidewire.errors import FailedPrecondition

ResultT = TypeVar("ResultT")

HANDLER_THREADS_MAX: Final = 32
"""Handlers of blocking code that run at the same time."""
STOP_TIMEOUT_S: Final = 5.0


class LoopThread:
    """An event loop that runs in a daemon thread until the process ends."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self.handlers = ThreadPoolExecutor(HANDLER_THREADS_MAX, "tidewire-handler")
        self._thread = threading.Thread(target=self._run, name="tidewire-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, ResultT], timeout_s: float | None = None) -> ResultT:
        """
        Run a coroutine on the loop and wait for its result; on any exception here it is cancelled.

        Raises:
            FailedPrecondition: This is the loop's own thread, which must not block.
            TimeoutError: It took longer than `timeout_s`.
        """
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:
        """Start a coroutine on the loop."""
        if threading.current_thread() is self._thread:
            work.close()
            raise FailedPrecondition(
                "a blocking call from the event loop's own thread would wait for itself; use the "
                "asyncio client there"
            )
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def on_thread(self, function: Callable[..., ResultT], *arguments: Any) -> Awaitable[ResultT]:
        """Run a blocking function of the application beside the loop; call this on the loop."""
        return self.loop.run_in_executor(self.handlers, function, *arguments)

    def stop(self) -> None:
        """End the loop and its tasks; for the end of the process."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self.handlers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=STOP_TIMEOUT_S / 2))
        finally:
            self.loop.close()


_lock = threading.Lock()
_shared: LoopThread | None = None


def shared_loop() -> LoopThread:
    """Return the loop of this process, started at the first call."""
    global _shared  # noqa: PLW0603 (gRPC wants one loop in a process, so there is one)
    with _lock:
        if _shared is None or _shared.loop.is_closed():
            _shared = LoopThread()
            atexit.register(_shared.stop)
        return _shared


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
