"""How much to claim, what to claim of what is due, and how long to wait: pure functions of numbers.

It owns the pace of a worker. It refuses to know about databases, threads or clocks; time comes in as an argument.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

BATCH_SPAN = 0.25
"""A claim fetches what is finished in about so many seconds: short enough that no job grows old in a worker's memory."""
LARGEST_BATCH = 500
MANY = 5
"""So many jobs in a twentieth of a second were no chance; nor so many of each slot in a hundredth."""
LONGEST_WAIT = 1.0
"""A claimed job that has waited so many seconds behind busy slots is given back, for others to take."""

SHORTEST_WAIT = 0.01
"""So many seconds after the last job a worker looks for the next one; then it waits longer from poll to poll."""
SWEEP_SPAN = 1.0
"""So many seconds may a worker look only at what follows what it has claimed before."""
LATE = timedelta(seconds=0.5)
"""So much later than the jobs of another may those of a transaction be committed, and still be found at the next look."""

FIRST_BACK_OFF = 0.1
LONGEST_BACK_OFF = 2.0


class _HasCrashes(Protocol):
    @property
    def crashes(self) -> int: ...


C = TypeVar("C", bound=_HasCrashes)


@dataclass(slots=True)
class FinishRate:
    """Jobs finished per second, as a moving average that forgets half of what it knows in ``half_life`` seconds.

    When many jobs are finished faster than that, it follows at once: after a pause a worker need not find its pace again.

    :param slots: so many jobs that run side by side may end at one time, which says nothing.
    """

    slots: int = 1
    half_life: float = 1.0
    per_second: float = 0.0
    _since: float | None = None
    _count: int = 0

    def finished(self, count: int, now: float) -> None:
        """Note that ``count`` jobs were finished by ``now``."""
        if self._since is None:
            self._since = now
        self._count += count
        span = now - self._since
        if span >= 0.05 or (span >= 0.01 and self._count >= MANY * self.slots):
            weight, seen = 0.5 ** (span / self.half_life), self._count / span
            rising = self._count >= MANY and seen > self.per_second
            self.per_second = seen if rising else self.per_second * weight + seen * (1 - weight)
            self._since, self._count = now, 0


def capacity(slots: int, per_second: float) -> int:
    """Give how many jobs a worker may have claimed at once: one a slot, and a quarter of a second's work behind them."""
    return max(slots, min(LARGEST_BATCH, slots + int(per_second * BATCH_SPAN)))


def wanted(slots: int, outstanding: int, per_second: float) -> int:
    """Give how many jobs to claim now: none before a slot is free, or half of what waits behind the slots is gone."""
    if outstanding > enough(slots, per_second):
        return 0
    return capacity(slots, per_second) - outstanding


def enough(slots: int, per_second: float) -> int:
    """Give how many claimed jobs are enough, so that more are claimed only when there are no more than these."""
    waiting = capacity(slots, per_second) - slots
    return slots + waiting // 2 if waiting else slots - 1


@dataclass(frozen=True, slots=True)
class Choice(Generic[C]):
    """What to claim of the candidates: ``run`` these, archive ``condemned`` as crashed, and perhaps wait to be ``alone``.

    :param solo: ``run`` holds one job that must have the process to itself.
    :param wants_solitude: the next job in line may only run alone, and something else runs here.
    """

    run: Sequence[C]
    condemned: Sequence[C]
    solo: bool = False
    wants_solitude: bool = False


def choose(candidates: Sequence[C], *, ceiling: int, idle: bool) -> Choice[C]:
    """Choose what to claim, so that a job that kills its process takes nobody along.

    Jobs under which a process has died are suspects: a suspect is claimed alone, so that whoever dies next to it is not
    suspected in its place; and its last permitted run happens while nothing else runs in this process (``idle``), so that
    nothing is archived ``crashed`` unless its last run was alone.
    """
    condemned = [candidate for candidate in candidates if candidate.crashes >= ceiling]
    able = [candidate for candidate in candidates if candidate.crashes < ceiling]
    if not able:
        return Choice([], condemned)
    first = able[0]
    if first.crashes == 0:
        return Choice([candidate for candidate in able if candidate.crashes == 0], condemned)
    if not is_last_chance(first.crashes, ceiling):
        return Choice([first], condemned)
    if idle:
        return Choice([first], condemned, solo=True)
    return Choice([], condemned, wants_solitude=True)


def is_last_chance(crashes: int, ceiling: int) -> bool:
    """Say whether one more crash would reach the ceiling."""
    return 0 < crashes == ceiling - 1


class _HasPlace(Protocol):
    @property
    def process_at(self) -> datetime: ...


@dataclass(slots=True)
class Place:
    """How far a worker has come in the line of due jobs: a claim need not look again at what lies before that.

    There lie the dead rows of jobs that are done, which nothing can remove while an old snapshot is open somewhere; but also
    jobs that were committed late, rescheduled to an earlier time, or given up by their worker. So a claim looks at the whole
    line at least once in ``SWEEP_SPAN`` seconds; and while a worker keeps up with what comes, it looks back by ``LATE``,
    for transactions that are open side by side are not committed in the order of their jobs.
    """

    _reached: datetime | None = None
    _next_sweep: float = float("-inf")
    _swept: bool = True

    def begin(self, now: float) -> datetime | None:
        """Give where to begin; ``None`` for the beginning of the line."""
        return None if now >= self._next_sweep else self._reached

    @property
    def unseen_until(self) -> float:
        """When the next look is due, if the last one was not at the whole line; else infinitely late."""
        return float("inf") if self._swept else self._next_sweep

    def forget(self) -> None:
        """Let the next look be at the whole line: something has come free in it."""
        self._next_sweep = float("-inf")

    def came(
        self, candidates: Sequence[_HasPlace], chosen: Collection[_HasPlace], *, swept: bool, short: bool, now: float
    ) -> None:
        """Note what a look brought, in the order of the line, and what of it was claimed.

        :param swept: all of the line was looked at.
        :param short: it brought less than was wanted: there was no more.
        """
        left = next((candidate for candidate in candidates if candidate not in chosen), None)
        last = candidates[-1].process_at if candidates else None
        self.came_to(last if left is None else left.process_at, swept=swept, short=short and left is None, now=now)

    def came_to(self, last: datetime | None, *, swept: bool, short: bool, now: float) -> None:
        """Note that all before ``last`` was claimed; ``None`` if there was nothing."""
        self._swept = swept
        if swept:
            self._next_sweep = now + SWEEP_SPAN
        if last is not None:
            self._reached = _before(last) if short else last


def _before(moment: datetime) -> datetime | None:
    try:
        return moment - LATE
    except OverflowError:  # the beginning of time
        return None


def back_off(failures: int, chance: Callable[[], float] = random.random) -> float:
    """Give the seconds to wait after so many failures in a row: doubling up to 2 s, with jitter by half either way."""
    exact = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2.0 ** min(failures - 1, 16))
    return exact * (0.5 + chance())


def after_work(interval: float, empty_polls: int) -> float:
    """Give the seconds to wait after a poll that found nothing, and others before: doubling up to ``interval``."""
    return min(interval, SHORTEST_WAIT * 2.0 ** min(empty_polls, 32))


def jittered(seconds: float, chance: Callable[[], float] = random.random) -> float:
    """Stretch or shorten a wait by up to a tenth, so that workers that started together do not stay in step."""
    return seconds * (0.9 + 0.2 * chance())
