"""The main path of threads that have ``async def`` handlers as well: those run on an event loop beside them.

It owns that loop and the way there: the thread whose turn it is hands the run over and waits for its end, so that a
handler of either kind takes one of the worker's threads, and everything about it is as with any other. It refuses to
know how a run goes; that is ``async_execution``'s on the loop, and ``execution``'s here.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from . import wires
from .async_execution import AsyncExecution, AsyncHold, ThreadConclusion
from .bridge import EventLoop
from .claims import Claim
from .conclusion import Conclusion
from .connections import own_engine
from .execution import Execution
from .registry import OnFailed, is_async
from .runs import Report, Run, Settled
from .sessions import Hold, maker_of, open_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

CLOSING = 2.0
"""So many seconds has the loop for closing its connections, and for ending what still runs on it."""


@dataclass(frozen=True, slots=True)
class MixedExecution(Execution):
    """What a worker needs that runs plain functions in its threads, and ``async def`` handlers on a loop.

    :ivar on_loop: runs the latter, on connections of ``engine``.
    :ivar failed: what they have settled as a failure themselves, for ``on_failed``.
    """

    loop: EventLoop
    on_loop: AsyncExecution
    engine: Engine
    failed: dict[Run, Settled] = field(default_factory=dict[Run, Settled])

    def perform(self, run: Run) -> Report | None:
        """Run one claimed job, here or on the loop."""
        if not isinstance(run.hold, AsyncHold):
            return Execution.perform(self, run)
        report = _its_end(run, self.loop.begin(self.on_loop.perform, run))
        if (settled := self.failed.pop(run, None)) is not None:
            self.conclusion.call_on_failed(settled)
        return report

    def runs_in(self, thread: threading.Thread) -> bool:
        """Whether handlers run in ``thread`` that is no thread of the worker's."""
        return thread is self.loop.thread

    def cut_wires(self) -> None:
        """Let nobody wait for the server any more, on either side."""
        Execution.cut_wires(self)
        wires.cut(self.engine)

    def close(self) -> None:
        """Close the connections, and the loop with whatever hangs on it."""
        Execution.close(self)
        if self.loop.thread is not None:
            with suppress(Exception):
                self.loop.begin(self.engine.dispose).result(CLOSING)
            self.loop.close(CLOSING)


class _LoopExecution(AsyncExecution):
    """Runs async handlers whose app has plain sessions: each gets one of those in an ``AsyncSession``."""

    __slots__ = ()

    def _open(self, run: Run) -> tuple[Session, Any]:
        session = open_session(self.session, self.app_engine, run.hold)

        def given(**options: Any) -> Session:
            return session

        return session, AsyncSession(sync_session_class=cast("type[Session]", given))  # SQLAlchemy calls it, no more


@dataclass(frozen=True, slots=True)
class _MixedConclusion(Conclusion):
    """Tells how jobs ended; ``on_failed`` is called in this thread, or awaited on the loop if it is ``async def``."""

    loop: EventLoop

    def _call(self, callback: OnFailed, job: Any, error: BaseException) -> None:
        if is_async(callback):
            self.loop.run(lambda: cast("Awaitable[None]", callback(job, error)))
        else:
            callback(job, error)


def mixed(execution: Execution, engine: Engine | AsyncEngine, **connecting: Any) -> MixedExecution:
    """Give what runs handlers of both kinds, where ``execution`` runs plain functions only.

    :param engine: the app's.
    :param connecting: how async handlers get connections as it makes them: ``size`` and more, as for ``own_engine``.

    ``ImportError`` when greenlet is not there.
    """
    if find_spec("greenlet") is None:
        raise ImportError("async handlers need greenlet: pip install sqlalchemy[asyncio]")  # 2.1 says it by itself
    transactions, told = execution.transactions, execution.conclusion
    own, lifecycle = own_engine(engine, timeout=None, on_this_loop=True, **connecting), transactions.lifecycle
    loop, failed = EventLoop(), dict[Run, Settled]()
    transactions.make_hold = _holds_of_both_kinds(execution, own)
    common = (told.emit, told.registry, lifecycle, told.on_failed, told.now)
    on_loop = _LoopExecution(
        execution.registry,
        execution.app_engine,
        transactions,
        ThreadConclusion(*common, lambda settled: failed.update({settled.run: settled})),
        execution.retry,
        maker_of(execution.session),  # a scope of threads is none of tasks
        execution.around,
        execution.computation,
    )
    return MixedExecution(
        execution.registry,
        execution.app_engine,
        transactions,
        _MixedConclusion(*common, loop),
        execution.retry,
        execution.session,
        execution.around,
        execution.computation,
        loop,
        on_loop,
        own,
        failed,
    )


def _holds_of_both_kinds(execution: Execution, own: Engine) -> Callable[[Claim], Hold]:
    in_thread, lifecycle = execution.transactions.make_hold, execution.transactions.lifecycle

    def make_hold(claim: Claim) -> Hold:
        registration = execution.registry.registration(claim.job_type)
        on_loop = registration is not None and registration.is_async
        return AsyncHold(own, lifecycle, claim) if on_loop else in_thread(claim)

    return make_hold


def _its_end(run: Run, running: Future[Report | None]) -> Report | None:
    try:
        return running.result()
    except KeyboardInterrupt as error:  # Ctrl-C in process_next: the handler is interrupted, and its job released
        run.keyboard_interrupt = error
        run.stopping.set()
        run.cancel()
        return running.result()
    except CancelledError:
        if run.abandoned:  # it hung until the loop was closed
            return None
        raise
