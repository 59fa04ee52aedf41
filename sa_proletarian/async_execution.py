"""The main path for ``async def`` handlers: the same steps as in ``execution``, in a greenlet of the event loop.

It owns what is different there: the handler gets an ``AsyncSession`` and is awaited, in a task of its own that can be
cancelled; waiting gives way to the loop. Everything else, from the hold to the settling, is the code that threads run:
SQLAlchemy's async drivers take it as it is within ``greenlet_spawn``, which is what ``run_sync`` does as well.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util.concurrency import await_only, greenlet_spawn, in_greenlet

from .aside import do_aside
from .conclusion import Conclusion
from .dialects import Trouble, trouble
from .errors import Interrupted
from .execution import Execution, flush
from .registry import Compute, OnFailed, Registration, is_async
from .runs import Report, Run, Settled, prepare
from .sessions import Hold, close_session, held_class, held_options, hold_in, in_scope, is_used, maker_of


class LoopLock:
    """A lock for the greenlets of one event loop, which costs next to nothing as long as nobody else has it."""

    __slots__ = ("_freed", "taken")

    def __init__(self) -> None:
        self.taken: bool = False
        self._freed: asyncio.Event | None = None

    def __enter__(self) -> bool:
        while self.taken:
            self._freed = self._freed or asyncio.Event()
            await_only(self._freed.wait())
        self.taken = True
        return True

    def __exit__(self, *error: object) -> None:
        self.taken = False
        freed, self._freed = self._freed, None
        if freed is not None:
            freed.set()


class AsyncHold(Hold):
    """A hold on a connection of an async driver, whose handler runs in a task."""

    _task: asyncio.Task[Any] | None = None
    cancelled: bool = False

    def _make_lock(self) -> AbstractContextManager[bool]:
        return LoopLock()

    def connection(self) -> Connection:
        if not in_greenlet():  # the driver would say so only when half of a connection is made
            raise MissingGreenlet("the session was used outside of its AsyncSession's methods: await session.run_sync(…)")
        return super().connection()

    @property
    def untouched(self) -> bool:
        """Whether nothing is held, and nobody is about to hold anything."""
        lock = cast("LoopLock", self._opening)
        return self._connection is None and not lock.taken

    @property
    def in_coroutine(self) -> bool:
        return self._task is not None

    def begin_call(self, task: asyncio.Task[Any]) -> None:
        """Let :meth:`cancel_call` cancel ``task``, in which the handler runs, from any thread."""
        self._task = task
        if self.cancelled:  # before it has begun
            self.cancel_call()

    def end_call(self) -> None:
        """Cancel nothing from now on."""
        self._task = None

    def cancel_call(self) -> None:
        self.cancelled = True
        task = self._task
        if task is not None:
            task.get_loop().call_soon_threadsafe(self._cancel, task)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if self._task is task:  # else the handler has ended meanwhile
            task.cancel()


class AsyncExecution(Execution):
    """What one worker needs to run one claimed job whose handler is ``async def``.

    Call :meth:`perform` in ``greenlet_spawn``, or await :meth:`perform_here`.
    """

    __slots__ = ()

    async def perform_here(self, run: Run) -> Report | None:
        """Do what :meth:`perform` does, with the handler in the current task, which has no other purpose.

        That needs no greenlet as long as there is nothing to wait for but the handler. What there is else is done in
        another task, because this one may be cancelled.
        """
        early = self.begin(run)
        if early is not None:
            return early
        registration = self.registry.registration(run.claim.job_type)
        context, session = copy_context(), None
        if registration is None or registration.compute is not None or not registration.is_async:
            return await _undisturbed(context, self.go_on, run)
        try:
            prepare(run, self.transactions.lifecycle)
            session = open_async_session(self.session, self.app_engine, run.hold)
        except BaseException as its_own:
            error: BaseException | None = its_own
        else:
            error = await self._called_here(registration, session, run)
        if _is_over(run.hold, session) and (error is None or trouble(error) is not Trouble.CONFLICT):
            run.hold.abandon()
            report = self._end(run, error)
            run.lighten()
            return report
        if isinstance(error, GeneratorExit) and not _can_wait(run):  # the handler's own, or the end of the loop
            raise error
        return await _undisturbed(context, self._close_and_end, run, session, error)

    async def _called_here(self, registration: Registration, session: Any, run: Run) -> BaseException | None:
        hold = cast("AsyncHold", run.hold)
        hold.begin_call(run.runner)
        error = await self._awaited(registration, session, run)
        hold.end_call()
        return _interruption() if hold.cancelled and isinstance(error, asyncio.CancelledError) else error

    def _close_and_end(self, run: Run, session: AsyncSession | None, error: BaseException | None) -> Report | None:
        try:
            run.hold.seal()
            if session is not None:
                close_session(session.sync_session)
        except BaseException as its_own:
            error = its_own
        try:
            return self._end(run, self._call_until_no_conflict(run, error))
        finally:
            run.hold.close()
            run.lighten()

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
        if _is_made(session) and session.sync_session.in_transaction():  # else a greenlet would have nothing to do
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


def _can_wait(run: Run) -> bool:
    """Whether the task of ``run`` is at work; it may also be ended from outside, with its loop closed."""
    try:
        return asyncio.current_task() is run.runner
    except RuntimeError:
        return False


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


class _PlainSession(AsyncSession):
    """An ``AsyncSession`` that is made when it is first asked for anything: short handlers often never do."""

    proletarian_parts: tuple[Engine, Hold]

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__.pop("proletarian_parts", None)
        if parts is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        engine, hold = parts
        session_class: Any = held_class(Session)
        super().__init__(None, sync_session_class=session_class, **held_options({}))
        self.sync_session.bind = engine
        hold_in(self.sync_session, engine, hold)
        return getattr(self, name)


_PlainSession.__name__ = _PlainSession.__qualname__ = AsyncSession.__name__


def open_async_session(source: Any, engine: Engine, hold: Hold) -> AsyncSession:
    """Make the handler's session: of the app's class and options, on the held connection where it would use ``engine``."""
    if source is None:
        session: AsyncSession = _PlainSession.__new__(_PlainSession)
        session.__dict__["proletarian_parts"] = engine, hold
        return session
    maker: Any = maker_of(source)
    options: dict[str, Any] = {**maker.kw}
    sync_class: Any = options.pop("sync_session_class", None) or maker.class_.sync_session_class
    bind: Any = options.pop("bind", None)
    session = maker.class_(bind, sync_session_class=held_class(sync_class), **held_options(options))
    if bind is None:
        session.sync_session.bind = engine
    hold_in(session.sync_session, engine, hold)
    return session


def _is_made(session: AsyncSession) -> bool:
    return "sync_session" in session.__dict__


def _is_over(hold: Hold, session: AsyncSession | None) -> bool:
    """Whether nothing is left of the handler's session that were to be closed."""
    if not cast("AsyncHold", hold).untouched:
        return False
    return session is None or not _is_made(session) or not is_used(session.sync_session)


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
    return _interruption() if hold.cancelled and isinstance(error, asyncio.CancelledError) else error


def _interruption() -> Interrupted:
    return Interrupted("the worker has cancelled the handler")


async def _undisturbed(context: Context, function: Callable[..., Report | None], *args: Any) -> Report | None:
    """Call ``function`` in a greenlet of another task and wait for its end, whoever cancels this one."""
    begun: list[bool] = []

    def call() -> Report | None:
        begun.append(True)
        return function(*args)

    while True:
        task = context.run(asyncio.get_running_loop().create_task, greenlet_spawn(call))
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if begun:  # else somebody has cancelled all tasks, and it as well
            return task.result()


@asynccontextmanager
async def _entered(manager: Any) -> AsyncGenerator[None, None]:
    """Enter a context manager of either kind."""
    if isinstance(manager, AbstractAsyncContextManager):
        async with manager:
            yield
    else:
        with manager:
            yield
