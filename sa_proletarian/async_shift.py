"""One run of an async worker, from its start to its end.

It owns the feeder's thread and the order in which things end. The feeder lives outside of the app's event loop, in a
thread with a loop of its own, so that a handler that blocks the loop does not let the leases of its neighbours run out.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.util.concurrency import greenlet_spawn

from . import events, wires
from .async_execution import AsyncExecution
from .async_lane import AsyncLane
from .execution import Execution
from .feeder import Feeder, OnPollingError
from .lanes import Lanes
from .listening import Ears
from .overdue import LAST_CALLS, Overdue
from .retention import Retention
from .runs import Report, Run, Settled
from .shift import JOIN
from .thread_lane import ThreadLane

PARTING = 0.2
"""So many seconds has a task that is left behind to hear that its wire is cut."""


class AsyncShift:
    """One run of an async worker; made on the loop on which handlers run."""

    def __init__(
        self,
        execution: AsyncExecution,
        in_threads: Execution,
        engines: Iterable[Engine],
        *,
        concurrency: int,
        polling_interval: timedelta,
        on_polling_error: OnPollingError | None,
        on_shutdown: Callable[[], Any] | None,
        ears: Ears,
        retention: Retention | None = None,
    ) -> None:
        self._execution = execution
        self._retention = retention
        self._engines = engines  # the handlers'
        self._ears = ears
        self._emit = execution.conclusion.emit
        self._on_shutdown = on_shutdown
        self._loop = asyncio.get_running_loop()
        self._tasks = AsyncLane(execution, self._ended, concurrency=concurrency)
        self._threads = ThreadLane(in_threads, self._ended, most=concurrency)
        self._feeder = Feeder(
            execution,
            Lanes(self._tasks, self._threads),
            slots=concurrency,
            polling_interval=polling_interval,
            on_polling_error=on_polling_error,
            ears=ears,
        )
        self._hangs = True
        self._feeder_gone = asyncio.Event()
        name = execution.transactions.worker_id
        self._thread = threading.Thread(target=self._feed, name=f"{name}-feeder", daemon=True)
        self._stop = Overdue(name, cut=self._cut_wires, give_up=self._go_on)
        self._end: asyncio.Task[bool] | None = None

    @property
    def stopping(self) -> bool:
        return self._execution.stopping.is_set()

    @property
    def done(self) -> bool:
        return self._end is not None and self._end.done()

    def start(self) -> None:
        self._thread.start()
        if self._retention is not None:
            self._retention.start()
        self._end = self._loop.create_task(self._until_the_end())

    def begin_stop(self, timeout: timedelta) -> None:
        self._stop.begin(timeout)
        if not self.stopping:
            self._emit(events.ShuttingDown)
        self._feeder.stop(self._stop.deadline)

    def runs_this_task(self) -> bool:
        """Whether the current task is, or was begun by, a handler of this shift."""
        return self._tasks.runs_this_task()

    async def wait(self) -> bool:
        """Wait for the end, which a begun stop brings; give whether everything was settled in time."""
        assert self._end is not None
        return await asyncio.shield(self._end)

    def call_back(self, settled: Settled) -> None:
        """Call ``on_failed`` on the loop."""
        self._tasks.put([settled])

    def _ended(self, run: Run, report: Report | None) -> None:
        self._feeder.ended(run, report)

    def _feed(self) -> None:
        try:
            asyncio.run(greenlet_spawn(self._feed_in_greenlet))
        finally:
            self._threads.close()
            self._hangs = False
            self._go_on()

    def _go_on(self) -> None:
        """Let the loop wait for the feeder no longer."""
        with suppress(RuntimeError):  # the loop of a forgotten worker may be closed by now
            self._loop.call_soon_threadsafe(self._feeder_gone.set)

    def _feed_in_greenlet(self) -> None:
        try:
            self._feeder.run()
        finally:
            self._execution.transactions.engine.dispose()

    async def _until_the_end(self) -> bool:
        await self._feeder_gone.wait()  # or it hangs in the network beyond all timeouts, and is left behind
        hangs = self._hangs
        if not hangs:
            self._thread.join(JOIN)  # it has only to return: no wait that the loop would notice
        unfinished = [run.claim.job_id for run in self._feeder.unfinished]
        if hangs:
            unfinished = [run.claim.job_id for run in self._feeder.outstanding]
        # no job is left; what a task or thread may still be at is an on_failed call
        ended = await self._tasks.finish(PARTING if unfinished else min(self._stop.left, threading.TIMEOUT_MAX))
        ended = await asyncio.to_thread(self._threads.finish, 0.0 if unfinished else self._stop.left) and ended
        if self._retention is not None:
            await asyncio.to_thread(self._retention.wait, min(LAST_CALLS, self._stop.left))
        with suppress(Exception):
            await greenlet_spawn(self._dispose)
        self._stop.end()
        if unfinished or not ended or hangs:
            self._emit_unfinished(unfinished)
            return False
        return await self._call_on_shutdown()

    def _cut_wires(self) -> None:
        """Let nobody wait for a stalled server when the time of the stop is over."""
        self._ears.cut()
        # the feeder's last: when it ends, what still runs is cancelled, and psycopg would ask the stalled server for that
        for engine in (*self._engines, self._execution.transactions.engine):
            wires.cut(engine)

    def _dispose(self) -> None:
        for engine in self._engines:
            engine.dispose()
        if self._execution.computation is not None:
            self._execution.computation.close()

    def _emit_unfinished(self, job_ids: Iterable[Any]) -> None:
        self._emit(events.QueueWorkerShutdownError, error=None, job_ids=tuple(job_ids))

    async def _call_on_shutdown(self) -> bool:
        self._emit(events.CompletedShutdown)
        try:
            answer = self._on_shutdown() if self._on_shutdown is not None else None
            if inspect.isawaitable(answer):
                await _awaited(answer)
        except (Exception, SystemExit) as error:
            self._emit(events.QueueWorkerShutdownError, error=error)
            return False
        return True


async def _awaited(answer: Awaitable[Any]) -> None:
    await answer
