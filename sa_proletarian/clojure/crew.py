"""One run of a worker on Proletarian's tables: threads that each poll, run and settle by themselves.

It owns their loop, and what happens to runs that do not end when the worker stops. How threads start and end is the
library's own (``shift``).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sa_proletarian import clock, events
from sa_proletarian.execution import Execution
from sa_proletarian.outcomes import INTERRUPTED
from sa_proletarian.polling import jittered
from sa_proletarian.runs import Run, Settled
from sa_proletarian.setbacks import OnPollingError, Setbacks
from sa_proletarian.shift import STAGGER, Shift

from .turns import next_run, take_turn

CANCEL_GRACE = 2.0


class Crew(Shift):
    """A shift without a feeder: what stands in its place watches the threads."""

    def _make_feeder(self, **options: Any) -> Any:
        self._watch = Watch(self._execution, **options)
        return self._watch

    def _work(self, number: int) -> None:
        self._execution.stopping.wait((number - 1) * random.uniform(0.2, 1.0) * STAGGER)
        try:
            while not self.stopping:
                self._watch.round()
        finally:
            self._watch.leave()


class Watch:
    """What the threads of one worker share: the runs that they are at, their setbacks, and the end of it all.

    :ivar unfinished: the runs that did not end in time when the worker stopped.
    """

    def __init__(
        self, execution: Execution, *, slots: int, polling_interval: timedelta, on_polling_error: OnPollingError | None
    ) -> None:
        self._execution = execution
        self._emit = execution.conclusion.emit
        self._interval = polling_interval.total_seconds()
        self._setbacks = Setbacks(self._emit, on_polling_error)
        self._changed = threading.Condition()
        self._present = slots
        self._running: set[Run] = set()
        self._deadline = float("inf")
        self.unfinished: list[Run] = []

    # for the threads --------------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Take turns until nothing is due, or the worker stops; then wait for the next round."""
        self._emit(events.PollingForJobs)
        try:
            while not self._stopping.is_set() and self._turn():
                pass
        except Exception as error:
            self._stumble(error)
        else:
            self._stopping.wait(jittered(self._interval))

    def leave(self) -> None:
        """Take note that a thread has ended."""
        with self._changed:
            self._present -= 1
            self._changed.notify_all()

    def _turn(self) -> bool:
        run = next_run(self._execution)
        self._setbacks.found_table()
        self._setbacks.overcome()
        if run is None:
            return False
        with self._changed:
            self._running.add(run)
        try:
            take_turn(self._execution, run, is_wanted=self._running.__contains__)
        finally:
            with self._changed:
                self._running.discard(run)
                self._changed.notify_all()
        return True

    def _stumble(self, error: Exception) -> None:
        with self._changed:
            delay, stop = self._setbacks.meet(error)
        if stop:
            self.stop(clock.monotonic())
        self._stopping.wait(delay)

    @property
    def _stopping(self) -> threading.Event:
        return self._execution.stopping

    # in the place of a feeder -----------------------------------------------------------------------------------------

    @property
    def outstanding(self) -> list[Run]:
        """The runs that have not ended, as far as another thread can tell."""
        return [*self._running.copy()]

    def stop(self, deadline: float) -> None:
        """Interrupt what runs, and end by ``deadline`` (monotonic seconds); an earlier one counts."""
        with self._changed:
            self._deadline = min(self._deadline, deadline)
            self._stopping.set()
            self._changed.notify_all()

    def run(self) -> None:
        """Wait for the stop, and then until every run has ended or was taken away."""
        self._stopping.wait()
        if self._ended_by(lambda: self._deadline):
            return
        try:
            self._end_by_force()
        except Exception as error:  # the database is away; it will notice by itself that nobody is there
            self._emit(events.JobWorkerError, error=error)
            self.unfinished += self.outstanding

    def _end_by_force(self) -> None:
        """First cancel the statements that run, so that handlers may end by themselves; then end their transactions."""
        with self._execution.transactions.engine.connect() as connection:
            runs = self.outstanding
            for run in runs:
                run.noticed = True
            self._execution.transactions.cancel_statements(connection, runs)
            last_moment = clock.monotonic() + CANCEL_GRACE
            if self._ended_by(lambda: last_moment):
                return
            self._take_away(connection)

    def _ended_by(self, deadline: Callable[[], float]) -> bool:
        """Wait for all threads to end, no longer than to the ``deadline``, which may come nearer meanwhile."""
        with self._changed:
            while self._present:
                left = deadline() - clock.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            return True

    def _take_away(self, connection: Any) -> None:
        """End the transactions of the runs that still hang; their jobs are due again at once."""
        with self._changed:
            stuck = [*self._running]
            self._running.clear()
        self.unfinished += stuck
        self._execution.transactions.end_transactions(connection, stuck)
        for run in stuck:
            self._execution.conclusion.announce(Settled(run, INTERRUPTED))
