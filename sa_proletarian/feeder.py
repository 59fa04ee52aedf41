"""The feeder: one for each worker, with one connection of its own.

It owns everything that must go on while handlers are busy: claiming, settling in groups, renewing leases, giving back.
It refuses to run handlers; those get their jobs from the ``tray``, so that a thread that has finished thirty
small jobs and begun a long one need not settle anything. Errors are met by ``setbacks``; that the worker is here is shown
by ``presence``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import Connection

from . import clock, events, overdue
from .dialects import trouble
from .errors import ConfigurationError
from .execution import STALE, Execution
from .listening import Ears
from .meanwhile import Meanwhile
from .old_snapshots import OldSnapshots
from .outcomes import INTERRUPTED, RETURNED, Ruling
from .overtime import Overtime
from .polling import LONGEST_WAIT, FinishRate, back_off, enough, wanted
from .presence import Presence
from .progress import Progress
from .requests import Requests
from .rest import Rest
from .runs import Report, Run, Settled
from .sessions import throw_away
from .setbacks import OnPollingError as OnPollingError
from .setbacks import Setbacks
from .solitude import Solitude
from .transactions import SYSTEMIC
from .tray import Intake
from .unknown_types import UnknownTypes
from .vigil import Vigil

_NEVER_ENOUGH = float("inf")


class Feeder:
    """Keeps ``slots`` handler threads in work, and keeps what they do durable."""

    def __init__(
        self,
        execution: Execution,
        tray: Intake,
        *,
        slots: int,
        polling_interval: timedelta,
        on_polling_error: OnPollingError | None,
        ears: Ears,
    ) -> None:
        self._transactions = execution.transactions
        self._conclusion = execution.conclusion
        self._emit = execution.conclusion.emit
        self._tray = tray
        self._slots = slots
        self._rest = Rest(polling_interval.total_seconds(), ears.place)
        self._ears = ears
        self._lease = execution.transactions.lease.total_seconds()
        self._setbacks = Setbacks(self._emit, on_polling_error)
        self._overtime = Overtime(execution)
        self._end_early = execution.end_early
        self._presence = Presence(execution.transactions, self._emit, threads=slots)
        self._vigil = Vigil(execution.transactions, self._presence, ears.place, listens=ears.listen)
        self._requests = Requests(execution.transactions, self._presence)
        self._progress = Progress(execution.transactions, self._presence)
        self._meanwhile = Meanwhile(execution.transactions)
        self._connection: Connection | None = None
        self._wake = threading.Event()
        self._ended: deque[Run | Report] = deque()
        self._outstanding: set[Run] = set()
        self._enough = _NEVER_ENOUGH
        self._pending: dict[Run, Report] = {}
        self._rate = FinishRate(slots)
        self._solitude = Solitude(self._lease)
        self._unknown_types = UnknownTypes(execution.transactions, self._emit)
        self._old_snapshots = OldSnapshots(execution.transactions, self._emit, ears.place)
        self._next_give_back = self._next_look_at_leases = 0.0
        self._deadline: float | None = None
        self._cancelled_at: float | None = None
        self._done = False
        self.unfinished: list[Run] = []

    # for other threads ------------------------------------------------------------------------------------------------

    def ended(self, run: Run, report: Report | None) -> None:
        """Take note that a handler thread is done with ``run``, and of what is left to settle."""
        self._ended.append(run if report is None else report)
        if report is None and len(self._outstanding) - len(self._ended) > self._enough:
            return  # nothing to settle, and enough to do: to wake a thread costs more than a small job
        if not self._wake.is_set():
            self._wake.set()

    def ring(self) -> None:
        """Take note that something was enqueued, or may have been."""
        self._rest.ring()
        self._wake.set()

    def stop(self, deadline: float) -> None:
        """Claim no more, interrupt what runs, and end by ``deadline`` (monotonic seconds); an earlier one counts."""
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        self._transactions.stopping.set()
        self._wake.set()

    # the loop ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Feed until stopped, and then until everything is settled or released or the deadline has passed."""
        with self._ears.open(self.ring):
            while not self._done:
                try:
                    self._turn()
                except Exception as error:
                    self._stumble(error)
            self._disconnect()

    def _turn(self) -> None:
        self._collect()
        connection = self._connected()
        self._end_overtime(connection)
        self._renew(connection)
        if self._stopping:
            self._meanwhile.close()
            self._settle(connection)
            self._ears.end()
            self._rest.show_nothing(connection)
            self._wind_down(connection)
        else:
            self._give_back_old()
            self._settle_and_claim(connection)
        self._setbacks.overcome()
        if self._done:
            self._progress.leave(connection)
            self._presence.leave(connection)
            self._requests.leave(connection)
        else:
            self._heed_requests(connection)
            self._old_snapshots.look(connection)
            self._progress.show(connection, self._outstanding)
            self._presence.show(connection, idle=self._is_idle(), tied=self._vigil.ties(hears=self._ears.hear))
            if self._vigil.look(connection):
                self._transactions.place.forget()
                self._rest.ring()
            self._pause()

    def _is_idle(self) -> bool:
        """Whether a job that were due now would start at once."""
        return not self._stopping and len(self._outstanding) < self._slots and self._wanted() > 0

    @property
    def outstanding(self) -> list[Run]:
        """The runs that are claimed and not settled, as far as another thread can tell."""
        return [*self._outstanding.copy(), *self._pending.copy()]

    @property
    def _stopping(self) -> bool:
        return self._transactions.stopping.is_set()

    def _collect(self) -> None:
        count = 0
        while self._ended:
            ended = self._ended.popleft()
            count += 1
            run = ended.run if isinstance(ended, Report) else ended
            if run in self._outstanding:  # else it was given up when the worker stopped
                self._outstanding.remove(run)
                if isinstance(ended, Report):
                    self._pending[run] = ended
        self._rate.finished(count, clock.monotonic())

    def _pause(self) -> None:
        """Wait for a handler to end, or for the next thing to be due."""
        has_enough = self._wanted() == 0 and not self._stopping
        self._enough = enough(self._slots, self._rate.per_second) if has_enough else _NEVER_ENOUGH
        if not self._ended:
            self._wake.wait(max(0.0, self._next_turn() - clock.monotonic()))
        self._wake.clear()

    def _next_turn(self) -> float:
        now = clock.monotonic()
        due = [now + min(LONGEST_WAIT, self._lease / 3), self._vigil.until]
        due += [*self._overtime.due(now), *(report.not_before for report in self._pending.values())]
        if self._stopping:
            due += [moment for moment in (self._deadline, self._force_at) if moment is not None and moment > now]
        elif self._wanted():
            due.append(self._rest.until)
        return min(due)

    # claim ------------------------------------------------------------------------------------------------------------

    def _settle_and_claim(self, connection: Connection) -> None:
        """Settle, then claim; or claim while what has returned is settled on another connection."""
        if self._rest.is_over(clock.monotonic()) and self._wanted():
            self._meanwhile.send(connection, self._due())
        try:
            self._settle(connection)
            self._claim(connection)
        finally:
            self._conclude(self._meanwhile.wait())

    def _wanted(self) -> int:
        if self._solitude.forbids(self._outstanding, self._pending, clock.monotonic()):
            return 0
        return wanted(self._slots, len(self._outstanding), self._rate.per_second)

    def _claim(self, connection: Connection) -> None:
        now = clock.monotonic()
        count = self._wanted()
        if not count or not self._rest.is_over(now):
            return
        idle = not self._outstanding
        passes_over = self._solitude.passes_over(now, idle=idle)
        self._emit(events.PollingForJobs)
        self._rest.poll()
        claimed = self._transactions.claim(connection, limit=count, idle=idle, skip_last_chance=passes_over)
        self._setbacks.found_table()
        self._solitude.claimed(claimed, now, idle=idle)
        self._pending.update({report.run: report for report in claimed.condemned})
        self._outstanding.update(claimed.runs)
        self._overtime.watch(claimed.runs)
        self._tray.put(claimed.runs)
        if claimed.runs or claimed.condemned:
            self._rest.found_work(connection)
        else:
            until = self._transactions.place.unseen_until
            self._rest.found_nothing(connection, now, hears=self._ears.hear, until=until)
            self._unknown_types.look(connection, now)
        if claimed.condemned:
            self._settle(connection)

    def _give_back_old(self) -> None:
        now = clock.monotonic()
        if now >= self._next_give_back:  # not in each turn: it looks at all that waits
            self._next_give_back = now + 0.1 * LONGEST_WAIT
            self._give_back(now - LONGEST_WAIT)

    def _give_back(self, claimed_before: float) -> None:
        """Release what has waited too long behind busy slots: another worker may be free."""
        self._take_back(lambda run: run.claim.claimed_at < claimed_before, lambda run: INTERRUPTED)

    def _heed_requests(self, connection: Connection) -> None:
        """Let those runs end that somebody has cancelled; what has not begun need not begin."""
        if self._requests.heed(connection, self._outstanding, self._pending):
            self._take_back(lambda run: run.asked is not None, self._end_early)

    def _take_back(self, wanted: Callable[[Run], bool], rule: Callable[[Run], Ruling]) -> None:
        for run in self._tray.take_back(wanted):
            self._outstanding.discard(run)
            self._pending[run] = Report(run, rule(run))

    def _end_overtime(self, connection: Connection) -> None:
        """Settle without them the jobs of handlers that do not end although they were asked to."""
        for report in self._overtime.end(connection, self._outstanding):
            self._outstanding.remove(report.run)
            self._pending[report.run] = report
            self._tray.replace(report.run)

    # settle, renew ----------------------------------------------------------------------------------------------------

    def _settle(self, connection: Connection) -> None:
        under_way = {*self._meanwhile.under_way}
        due = [report for report in self._due() if report not in under_way]
        if not due:
            return
        try:
            self._conclude(self._transactions.settle(connection, due))
        except Exception as error:
            if trouble(error) in SYSTEMIC or isinstance(error, ConfigurationError):
                raise
            self._put_off([report for report in due if report.run in self._pending], error)

    def _due(self) -> list[Report]:
        now = clock.monotonic()
        return [report for report in self._pending.values() if report.not_before <= now]

    def _conclude(self, settled_runs: Iterable[Settled]) -> None:
        is_heard = self._emit.has_use_for(events.JobFinished)
        for settled in settled_runs:
            del self._pending[settled.run]
            if settled.ruling is RETURNED and not is_heard:  # nearly all of them
                settled.run.outcome = RETURNED.outcome
                continue
            self._conclusion.announce(settled)
            if self._conclusion.wants_callback(settled):
                self._tray.put([settled])

    def _put_off(self, reports: Iterable[Report], error: Exception) -> None:
        """What the database refuses to settle is tried again later, so that it does not hold up the others."""
        for report in reports:
            report.failures += 1
            report.not_before = clock.monotonic() + back_off(report.failures)
        self._emit(events.JobWorkerError, error=error, hint="a finished job cannot be settled now; it is tried again")

    def _renew(self, connection: Connection) -> None:
        now = clock.monotonic()
        if now < self._next_look_at_leases:
            return
        self._next_look_at_leases = now + min(1.0, self._lease / 30)
        stale, before = now - STALE * self._lease, now - self._lease / 3
        # this process was paused: what has not begun is somebody else's by now, and shall not look like ours again
        self._take_back(lambda run: run.claim.renewed_at < stale, lambda run: INTERRUPTED)
        old = [run for run in (*self._outstanding, *self._pending) if run.claim.renewed_at < before]
        old = [run for run in old if run.started_at is not None or run.claim.renewed_at >= stale]
        if old:
            self._transactions.renew(connection, old)

    # stop -------------------------------------------------------------------------------------------------------------

    @property
    def _force_at(self) -> float | None:
        return None if self._cancelled_at is None else self._cancelled_at + overdue.CANCEL_GRACE

    def _wind_down(self, connection: Connection) -> None:
        """Give back what has not begun; wait for the rest until the deadline, then take it away."""
        self._give_back(float("inf"))
        self._settle(connection)
        now = clock.monotonic()
        if self._outstanding and self._deadline is not None and now >= self._deadline:
            self._end_by_force(connection, now)
        if not self._outstanding and not self._ended and (not self._pending or self._is_hopeless(now)):
            self.unfinished += self._pending
            self._done = True

    def _end_by_force(self, connection: Connection, now: float) -> None:
        """First cancel the statements that run, so that handlers may end by themselves; then end their transactions."""
        if self._cancelled_at is None:
            self._cancelled_at = now
            for run in self._outstanding:
                run.cancel()
            self._transactions.cancel_statements(connection, [*self._outstanding])
        elif now >= self._cancelled_at + overdue.CANCEL_GRACE:
            stuck = [*self._outstanding]
            self._transactions.end_transactions(connection, stuck)
            self.unfinished += stuck
            self._outstanding.clear()
            self._pending.update({run: Report(run, INTERRUPTED) for run in stuck})
            self._settle(connection)

    def _is_hopeless(self, now: float) -> bool:
        return self._deadline is not None and now > self._deadline + overdue.GIVE_UP_GRACE

    # trouble ----------------------------------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        if self._connection is None:
            self._rest.lost()
            self._connection = self._transactions.engine.connect()
            self._vigil.begin(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        self._meanwhile.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _stumble(self, error: Exception) -> None:
        """Polling failed: say so, and go on after a pause, unless the app says to stop."""
        if self._connection is not None:
            throw_away(self._connection)
            self._connection = None
        delay, asks_to_stop = self._setbacks.meet(error)
        if asks_to_stop:
            self.stop(clock.monotonic())
        if not self._stopping:
            self._transactions.stopping.wait(delay)
        elif self._is_hopeless(clock.monotonic()) or not (self._outstanding or self._pending or self._ended):
            self.unfinished += [*self._outstanding, *self._pending]
            self._done = True
        else:
            self._wake.clear()
            self._wake.wait(min(delay, 0.5))
