"""When a suspect runs alone: a job under which processes have died, and whose last permitted run this is.

It owns what else may be claimed meanwhile, and how long others wait for that moment. It refuses to look at the clock and
at the database: both come in as arguments.
"""

from __future__ import annotations

from collections.abc import Collection

from .runs import Claimed, Run


class Solitude:
    """Empties a worker for a suspect, without stopping the queue for it: it asks for a lease's time, then waits for one."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._solo: Run | None = None
        self._wanted_since: float | None = None

    def forbids(self, outstanding: Collection[Run], unsettled: Collection[Run], now: float) -> bool:
        """Whether nothing may be claimed: a suspect runs, or waits for the others to end."""
        if self._solo is not None and (self._solo in outstanding or self._solo in unsettled):
            return True
        return self._wanted_since is not None and bool(outstanding) and not self._is_late(now)

    def passes_over(self, now: float, *, idle: bool) -> bool:
        """Whether to claim everything but suspects now: others have kept one waiting long enough, and may go first."""
        if self._wanted_since is not None and now - self._wanted_since > 2 * self._lease:
            self._wanted_since = None
        return self._is_late(now) and not idle

    def claimed(self, claimed: Claimed, now: float, *, idle: bool) -> None:
        """Take note of what was claimed by a worker that was ``idle``, or not."""
        self._solo = claimed.runs[0] if claimed.solo else None
        if claimed.wants_solitude and self._wanted_since is None:
            self._wanted_since = now
        elif idle:
            self._wanted_since = None

    def _is_late(self, now: float) -> bool:
        return self._wanted_since is not None and now - self._wanted_since > self._lease
