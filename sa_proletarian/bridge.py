"""Async drivers in threads: what the connections of an async engine do, done on an event loop beside them.

It owns the loop, which runs in a thread of its own, and the stand-ins through which any thread uses connections that
live there: made by the app's own engine, adapted by SQLAlchemy as always. A thread hands over a call and waits for its
end. It refuses to know what a connection is for, and what SQL is.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, cast

from sqlalchemy.pool import QueuePool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import greenlet_spawn

_FETCHES = ("fetchone", "fetchmany", "fetchall")


class EventLoop:
    """An event loop in a thread, begun at the first call and ended by :meth:`close`."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self._turn = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``function`` on the loop, where SQLAlchemy's adapters can await; give what it gives, raise what it raises."""
        if threading.current_thread() is self.thread:
            return function(*args, **kwargs)
        return _wait_for(self.begin(function, *args, **kwargs))

    def run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Call ``function`` on the loop and wait for what it gives to await; from another thread."""
        return _wait_for(self._submit(_awaited, function))

    def begin(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Do what :meth:`call` does, without waiting for the end."""
        return self._submit(greenlet_spawn, function, *args, **kwargs)

    def close(self, timeout: float | None = None) -> None:
        """End the loop and what still runs on it, within ``timeout`` seconds. Later calls raise ``RuntimeError``."""
        with self._turn:
            self._closed = True
            loop, thread = self._loop, self.thread
        if loop is not None and thread is not None:
            with suppress(RuntimeError):  # closed before
                loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout)

    def _submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        with self._turn:  # not after close(): nobody would answer
            if self._closed:
                raise RuntimeError("the worker's event loop is closed, and its connections with it")
            return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), self._begun())

    def _begun(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            # daemon: a forgotten worker must not keep the interpreter from exiting
            self.thread = threading.Thread(target=_serve, args=(self._loop,), name="sa_proletarian-loop", daemon=True)
            self.thread.start()
        return self._loop


def _wait_for(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BaseException:
        future.cancel()  # the caller is interrupted: so is what it waits for
        raise


async def _awaited(function: Callable[[], Awaitable[Any]]) -> Any:
    return await function()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()


class BridgedPool(QueuePool):
    """A pool whose connections are made on the loop, where the listeners of an async engine expect to be called."""

    def _create_connection(self) -> _ConnectionRecord:
        return cast("_ConnectionRecord", self._loop.call(_BridgedRecord, self))

    def dispose(self) -> None:
        """Close the connections, and the loop for good."""
        super().dispose()
        self._loop.close()

    @property
    def _loop(self) -> EventLoop:
        creator: Any = self._creator
        return cast("EventLoop", creator.loop)


class _BridgedRecord(_ConnectionRecord):
    def __init__(self, pool: BridgedPool) -> None:
        self._proletarian_loop = pool._loop
        super().__init__(pool)

    def get_connection(self) -> Any:
        return self._proletarian_loop.call(super().get_connection)


class BridgedCreator:
    """Makes connections as ``parent`` does, for use in any thread."""

    def __init__(self, parent: Any) -> None:
        self.loop: EventLoop = EventLoop()
        self._parent = parent

    def __call__(self, connection_record: Any) -> BridgedConnection:
        return BridgedConnection(self.loop, self.loop.call(self._parent._invoke_creator, connection_record))


class _Bridged:
    """Stands in for ``adapted``: its attributes, and its methods called on the loop."""

    __slots__ = ("_proletarian_adapted", "_proletarian_loop")

    def __init__(self, loop: EventLoop, adapted: Any) -> None:
        object.__setattr__(self, "_proletarian_loop", loop)
        object.__setattr__(self, "_proletarian_adapted", adapted)

    def __getattr__(self, name: str) -> Any:
        value: Any = getattr(self._proletarian_adapted, name)
        if not callable(value):
            return value
        return functools.partial(cast("EventLoop", self._proletarian_loop).call, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self._proletarian_loop.call(setattr, self._proletarian_adapted, name, value)


class BridgedConnection(_Bridged):
    """A DBAPI connection as SQLAlchemy adapts an async one, for use in any thread, by one at a time."""

    __slots__ = ()

    def cursor(self, *args: Any, **kwargs: Any) -> BridgedCursor:
        loop = self._proletarian_loop
        return BridgedCursor(loop, loop.call(self._proletarian_adapted.cursor, *args, **kwargs))

    def execute(self, *args: Any) -> BridgedCursor:
        cursor = self.cursor()
        cursor.execute(*args)
        return cursor


class BridgedCursor(_Bridged):
    """A cursor of such a connection."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        adapted = self._proletarian_adapted
        if name in _FETCHES and not getattr(type(adapted), "server_side", True):
            return getattr(adapted, name)  # its rows have come with the execution
        return super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
