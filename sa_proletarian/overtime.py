"""Runs that shall end before their worker does.

It owns when a handler's time is over, how it is asked to end, and what follows where it does not end: its transaction is
ended and the run given up, so that the job can be settled without it. It refuses to settle, and to put something else in
the place of what hangs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from . import clock, events
from .execution import Execution
from .runs import Asked, Report, Run

STUCK_GRACE = 2.0
"""So many seconds has a handler for ending, from the moment in which it was asked to."""


class Overtime:
    """Watches the timeouts of one worker's runs."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._timed: set[Run] = set()
        self._asked: dict[Run, float] = {}

    def watch(self, runs: Iterable[Run]) -> None:
        """Watch those of ``runs`` that have a timeout."""
        self._timed.update(run for run in runs if run.timeout is not None)

    def end(self, connection: Connection, outstanding: set[Run]) -> list[Report]:
        """Ask those to end whose time is over; report those that were asked and have not ended within the grace."""
        now = clock.monotonic()
        self._timed &= outstanding
        self._ask(connection, [run for run in self._timed if run.time_left(now) <= 0], now)
        self._asked = {run: at for run, at in self._asked.items() if run in outstanding}
        stuck = [run for run, at in self._asked.items() if now >= at + STUCK_GRACE]
        return self._give_up(connection, stuck) if stuck else []

    def due(self, now: float) -> list[float]:
        """Give the moments at which to look again."""
        return [now + run.time_left(now) for run in self._timed] + [at + STUCK_GRACE for at in self._asked.values()]

    def _ask(self, connection: Connection, runs: Sequence[Run], now: float) -> None:
        self._timed.difference_update(runs)
        self._asked.update(dict.fromkeys(runs, now))
        ask(self._execution, connection, runs, Asked.TIMED_OUT)

    def _give_up(self, connection: Connection, stuck: Sequence[Run]) -> list[Report]:
        """End the transactions of runs that hang, and rule on them; what their handlers still do is not kept."""
        given_up = [run for run in stuck if run.abandon()]
        self._execution.transactions.end_transactions(connection, given_up)
        for run in stuck:
            del self._asked[run]
        return [self._report(run) for run in given_up]

    def _report(self, run: Run) -> Report:
        self._execution.conclusion.tell(run, events.HandlerStuck)
        return Report(run, self._execution.end_early(run))


def ask(execution: Execution, connection: Connection, runs: Sequence[Run], why: Asked) -> None:
    """Ask the handlers of ``runs`` to end, and cancel the statements in which they wait."""
    for run in runs:
        run.hold.spoilt = True
        run.mark(why)
    try:
        execution.transactions.cancel_statements(connection, runs)
    finally:  # not before: a handler may end well, and its settling shall not be what is cancelled
        for run in runs:
            run.wake()


def pause(execution: Execution, run: Run) -> float:
    """Give after how many seconds to :func:`look_after` a run that has no feeder."""
    return max(0.0, min(execution.transactions.lease.total_seconds() / 3, run.time_left(clock.monotonic())))


def look_after(execution: Execution, connection: Connection, run: Run) -> None:
    """Do for a run that has no feeder what one would do: ask it to end when its time is over, and renew its lease."""
    if run.time_left(clock.monotonic()) <= 0:
        ask(execution, connection, [run], Asked.TIMED_OUT)
    execution.transactions.renew(connection, [run])
