"""Sync drivers on an event loop: what would block it is done in threads beside it.

It is ``bridge`` the other way round, and owns what a loop needs to use connections of a driver that knows of none: a
dialect and a pool that are the app's own, but for the calls in which the driver waits for the server. It refuses to
wait anywhere else: outside of SQLAlchemy's greenlets everything is done where it is called.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import Any, cast

from sqlalchemy.engine import Dialect
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util.concurrency import await_only, in_greenlet

Action = Callable[[], Any]


def do_aside(function: Action, *, cancel: Action | None = None, undo: Callable[[Any], Any] | None = None) -> Any:
    """Call ``function`` in a thread, while the loop goes on; give what it gives, raise what it raises.

    :param cancel: makes ``function`` end early, if the task that waits for it is cancelled.
    :param undo: called, in that case, with what it gave all the same.
    """
    return await_only(_done(function, cancel, undo)) if in_greenlet() else function()


async def _done(function: Action, cancel: Action | None, undo: Callable[[Any], Any] | None) -> Any:
    running = asyncio.wrap_future(_begin(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        # a connection must not be closed while a thread is in it
        if cancel is not None and not running.done():
            _begin(cancel)
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if running.exception() is None and undo is not None:
            undo(running.result())
        raise


def _begin(function: Action) -> Future[Any]:
    """Call ``function`` in a thread of its own, which is there as long as the call: nobody has to end it, or to fork it."""
    future: Future[Any] = Future()
    context = copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(function))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name=f"{threading.current_thread().name}-aside", daemon=True).start()
    return future


def aside_dialect(dialect: Dialect) -> Dialect:
    """Give ``dialect`` as one whose driver is waited for aside; what it learns of the server, both know."""
    given: Any = type(dialect)
    kind = _aside_class(given)
    twin = kind.__new__(kind)
    twin.__dict__ = dialect.__dict__
    return cast("Dialect", twin)


@functools.cache
def _aside_class(given: Any) -> Any:
    """Subclass the app's dialect, once: what it does with a driver that waits, it does in a thread."""

    def aside(name: str, cancelling: Callable[[Any], Action | None]) -> Callable[..., None]:
        function = getattr(given, name)

        def method(self: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            do_aside(functools.partial(function, self, target, *args, **kwargs), cancel=cancelling(target))

        return method

    class Context(given.execution_ctx_cls):  # type: ignore[misc]
        def create_default_cursor(self) -> Any:
            return AsideCursor(given.execution_ctx_cls.create_default_cursor(self))

        def create_server_side_cursor(self) -> Any:
            return StreamedCursor(given.execution_ctx_cls.create_server_side_cursor(self))

    # a COMMIT or ROLLBACK is waited for, whoever is cancelled: none is cut off halfway
    methods = {name: aside(name, _cancelling) for name in ("do_execute", "do_executemany", "do_execute_no_params")}
    methods |= {name: aside(name, lambda connection: None) for name in ("do_commit", "do_rollback")}
    changed = {"is_async": True, "execution_ctx_cls": Context, "supports_statement_cache": given.supports_statement_cache}
    return type(given.__name__, (given,), {**methods, **changed, "__module__": given.__module__})


def _cancelling(cursor: Any) -> Action | None:
    """Give what ends the statement of ``cursor`` from another thread, if its driver has that; psycopg's way is encrypted."""
    connection = cursor.connection
    return getattr(connection, "cancel_safe", None) or getattr(connection, "cancel", None)


class AsidePool(AsyncAdaptedQueuePool):
    """A pool whose connections are made in a thread, where the listeners of a sync engine may wait."""

    _is_asyncio = False  # what its listeners take turns by is a lock of threads

    def _create_connection(self) -> _ConnectionRecord:
        record = do_aside(functools.partial(_AsideRecord, self), undo=lambda record: record.close())
        return cast("_ConnectionRecord", record)


class _AsideRecord(_ConnectionRecord):
    def get_connection(self) -> Any:
        return do_aside(super().get_connection)


class AsideCursor:
    """A cursor whose rows have come with the execution."""

    __slots__ = ("_proletarian_cursor",)

    def __init__(self, cursor: Any) -> None:
        object.__setattr__(self, "_proletarian_cursor", cursor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proletarian_cursor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._proletarian_cursor, name, value)

    async def _async_soft_close(self) -> None:
        """Keep nothing open: what SQLAlchemy asks of an async driver's cursor once it was executed."""


class StreamedCursor(AsideCursor):
    """A cursor whose rows come from the server as they are fetched."""

    __slots__ = ()

    def fetchone(self) -> Any:
        return do_aside(self._proletarian_cursor.fetchone)

    def fetchmany(self, *size: int) -> Any:
        return do_aside(functools.partial(self._proletarian_cursor.fetchmany, *size))

    def fetchall(self) -> Any:
        return do_aside(self._proletarian_cursor.fetchall)

    def close(self) -> None:
        do_aside(self._proletarian_cursor.close)
