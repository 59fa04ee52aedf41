"""The main path for ``async def`` handlers: the same steps as in ``execution``, in a greenlet of the event loop.

It owns what is different there: the handler gets an ``AsyncSession`` and is awaited, in a task of its own that can be
cancelled; waiting gives way to the loop. Everything else, from the hold to the settling, is the code that threads run:
SQLAlchemy's async drivers take it as it is within ``greenlet_spawn``, which is what ``run_sync`` does as well.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util.concurrency import await_only

from .aside import do_aside
from .conclusion import Conclusion
from .errors import Interrupted
from .execution import Execution, flush
from .registry import Compute, OnFailed, Registration, is_async
from .runs import Run, Settled
from .sessions import Hold, held_class, held_options, hold_in, in_scope, maker_of


class LoopLock:
    """A lock for the greenlets of one event loop, which costs next to nothing as long as nobody else has it."""

    __slots__ = ("_freed", "_taken")

    def __init__(self) -> None:
        self._taken = False
        self._freed: asyncio.Event | None = None

    def __enter__(self) -> bool:
        while self._taken:
            self._freed = self._freed or asyncio.Event()
            await_only(self._freed.wait())
        self._taken = True
        return True

    def __exit__(self, *error: object) -> None:
        self._taken = False
        freed, self._freed = self._freed, None
        if freed is not None:
            freed.set()


class AsyncHold(Hold):
    """A hold on a connection of an async driver, whose handler runs in a task."""

    _may_script = False
    _cancel: Callable[[], None] | None = None
    cancelled: bool = False

    def _make_lock(self) -> AbstractContextManager[bool]:
        return LoopLock()

    @property
    def in_coroutine(self) -> bool:
        return self._cancel is not None

    def begin_call(self, task: asyncio.Task[Any]) -> None:
        """Let :meth:`cancel_call` cancel ``task``, in which the handler runs, from any thread."""
        loop = task.get_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)

        self._cancel = cancel
        if self.cancelled:  # before it has begun
            cancel()

    def end_call(self) -> None:
        """Cancel nothing from now on."""
        self._cancel = None

    def cancel_call(self) -> None:
        self.cancelled = True
        cancel = self._cancel
        if cancel is not None:
            cancel()


class AsyncExecution(Execution):
    """What one worker needs to run one claimed job whose handler is ``async def``; call it in ``greenlet_spawn``."""

    __slots__ = ()

    def _is_ctrl_c(self, error: BaseException) -> bool:
        return False  # on an event loop SIGINT is nothing that a handler could meet

    def _pause(self, seconds: float) -> None:
        await_only(asyncio.sleep(seconds))

    def _have_computed(self, run: Run, function: Compute) -> BaseException | None:
        computing = functools.partial(Execution._have_computed, self, run, function)
        error: BaseException | None = do_aside(computing, cancel=run.cancel)
        return error

    def _open(self, run: Run) -> tuple[Session, Any]:
        session = open_async_session(self.session, self.app_engine, run.hold)
        return session.sync_session, session

    def _invoke(self, registration: Registration, session: Any, run: Run) -> None:
        if not registration.is_async:
            Execution._invoke(self, registration, session.sync_session, run)
            return
        error = await_only(_in_a_task(run, self._awaited(registration, session, run)))
        if error is not None:
            raise error

    async def _awaited(self, registration: Registration, session: Any, run: Run) -> BaseException | None:
        """Give the error with which the handler ended: raised out of a task, a ``SystemExit`` would end the loop."""
        try:
            if self.around is None and self.session is None:
                await self._await_handler(registration, session, run)
            else:
                await self._await_handler_within(registration, session, run)
        except BaseException as error:
            return error
        return None

    async def _await_handler(self, registration: Registration, session: Any, run: Run) -> None:
        await registration.handler(session, run.job, *run.computed)
        if session.sync_session.in_transaction():  # else there is nothing for which a greenlet were needed
            await session.run_sync(flush, run)

    async def _await_handler_within(self, registration: Registration, session: Any, run: Run) -> None:
        failure: BaseException | None = None
        async with _entered(self.around(run.job) if self.around else nullcontext()):
            try:
                with in_scope(self.session, session):
                    await self._await_handler(registration, session, run)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:  # a context manager that swallows errors must not turn a failure into a success
            raise failure


@dataclass(frozen=True, slots=True)
class ThreadConclusion(Conclusion):
    """Tells how the jobs of ``def`` handlers ended, and leaves ``on_failed`` to the event loop."""

    hand_over: Callable[[Settled], None]

    def call_on_failed(self, settled: Settled) -> None:
        self.hand_over(settled)


class AsyncConclusion(Conclusion):
    """Tells how jobs ended; ``on_failed`` is awaited if it is ``async def``, else called in a thread."""

    __slots__ = ()

    def _call(self, callback: OnFailed, job: Any, error: BaseException) -> None:
        if is_async(callback):
            await_only(cast("Awaitable[None]", callback(job, error)))
        else:
            await_only(asyncio.to_thread(callback, job, error))


def open_async_session(source: Any, engine: Engine, hold: Hold) -> AsyncSession:
    """Make the handler's session: of the app's class and options, on the held connection where it would use ``engine``."""
    maker: Any = maker_of(source)
    session_class: Any = maker.class_ if maker is not None else AsyncSession
    options: dict[str, Any] = {**maker.kw} if maker is not None else {}
    sync_class: Any = options.pop("sync_session_class", None) or session_class.sync_session_class
    bind: Any = options.pop("bind", None)
    session: AsyncSession = session_class(bind, sync_session_class=held_class(sync_class), **held_options(options))
    if bind is None:
        session.sync_session.bind = engine
    hold_in(session.sync_session, engine, hold)
    return session


def sync_maker(source: Any) -> sessionmaker[Any] | None:
    """Give the ``sessionmaker`` of the plain sessions within those that ``source`` makes, for ``def`` handlers."""
    maker: Any = maker_of(source)
    if maker is None:
        return None
    options: dict[str, Any] = {**maker.kw}
    class_: Any = options.pop("sync_session_class", None) or maker.class_.sync_session_class
    bind: Any = options.pop("bind", None)
    return sessionmaker(getattr(bind, "sync_engine", bind), class_=class_, **options)


async def _in_a_task(run: Run, call: Coroutine[Any, Any, BaseException | None]) -> BaseException | None:
    """Await the handler in a task of its own: it can be cancelled, and what follows cannot."""
    hold = cast("AsyncHold", run.hold)
    task = asyncio.get_running_loop().create_task(call)
    hold.begin_call(task)
    try:
        error = await task
    except asyncio.CancelledError as cancelled:
        if not hold.cancelled:  # the loop is going down under the worker
            run.stopping.set()
        error = cancelled
        hold.cancelled = True
    finally:
        hold.end_call()
    if isinstance(error, asyncio.CancelledError) and hold.cancelled:
        return Interrupted("the worker has cancelled the handler")
    return error


@asynccontextmanager
async def _entered(manager: Any) -> AsyncGenerator[None, None]:
    """Enter a context manager of either kind."""
    if isinstance(manager, AbstractAsyncContextManager):
        async with manager:
            yield
    else:
        with manager:
            yield
