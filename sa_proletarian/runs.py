"""What goes through a worker's hands: runs, reports of runs, and what became of them.

It owns values, and the making of the ``job`` that a handler sees. It refuses to touch a database.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from . import serializers
from .claims import Claim
from .errors import Interrupted
from .lifecycle import Lifecycle
from .models import detached
from .outcomes import Outcome, Ruling
from .sessions import Hold


class Stopping(threading.Event):
    """Set when the worker stops; tells also those who cannot wait for a thread's event."""

    def __init__(self) -> None:
        super().__init__()
        self._listening: set[Callable[[], Any]] = set()

    def set(self) -> None:
        super().set()
        for callback in [*self._listening]:
            callback()

    @contextmanager
    def telling(self, callback: Callable[[], Any]) -> Generator[None, None, None]:
        """Call ``callback`` when the worker stops, at once if it does already, for as long as the context lasts."""
        self._listening.add(callback)
        try:
            if self.is_set():
                callback()
            yield
        finally:
            self._listening.discard(callback)


class Asked(Enum):
    """Why one run shall end before its worker does."""

    TIMED_OUT = "the job's time is over"
    CANCELLED = "somebody has cancelled the job"


_sharing = threading.Lock()
"""For what happens to few runs, and then in a moment: a lock of its own would be one more object for each run that waits."""


class _Ender(Enum):
    HANDLER = 1
    WORKER = 2


class Run:
    """A claimed job on its way through this process.

    :ivar asked: why this run alone shall end; ``None`` while it need not. ``reason`` is what somebody has said about it.
    :ivar overdue: its time was found to be over.
    :ivar computed: what its ``compute`` gave, for the handler; nothing without one.
    :ivar cut: it was cancelled, as far as it can be, because it shall end now.
    :ivar progress: how far the handler says it is; the latest.
    :ivar runner: the thread or task in which it runs.
    """

    __slots__ = (
        "_cutting",
        "_ended_by",
        "_hold",
        "_listening",
        "_make_hold",
        "asked",
        "claim",
        "computed",
        "cut",
        "job",
        "keyboard_interrupt",
        "noticed",
        "outcome",
        "overdue",
        "progress",
        "reason",
        "runner",
        "started_at",
        "stopping",
        "timeout",
    )

    def __init__(
        self, claim: Claim, make_hold: Callable[[Claim], Hold], stopping: Stopping, timeout: timedelta | None = None
    ) -> None:
        self.claim: Claim = claim
        self._make_hold: Callable[[Claim], Hold] = make_hold
        self._hold: Hold | None = None
        self.job: Any = None
        self.outcome: Outcome | None = None
        self.keyboard_interrupt: KeyboardInterrupt | None = None
        self.started_at: float | None = None
        self.noticed: bool = False
        self.stopping: Stopping = stopping
        self.timeout: float | None = None if timeout is None else timeout.total_seconds()
        self.asked: Asked | None = None
        self.reason: str = ""
        self.overdue: bool = False
        self.runner: Any = None
        self.progress: dict[str, Any] | None = None
        self.computed: tuple[Any, ...] = ()
        self.cut: bool = False
        self._cutting: set[Callable[[], Any]] | None = None
        self._listening: set[Callable[[], Any]] | None = None
        self._ended_by: _Ender | None = None

    @property
    def hold(self) -> Hold:
        """The transaction that holds the job; made when it is first asked for, as hundreds of runs may wait."""
        hold = self._hold
        if hold is None:
            with _sharing:
                hold = self._hold = self._hold or self._make_hold(self.claim)
        return hold

    def lighten(self) -> None:
        """Keep no more than the settling needs, as hundreds of runs may wait for that; the hold must be over."""
        if self.hold.held is None:
            self._hold = None
            self.claim.lighten()

    # for the handler --------------------------------------------------------------------------------------------------

    def interrupted(self) -> bool:
        """Whether the worker is stopping, or this run shall end.

        A handler that has seen the first is interrupted rather than failed by an error.
        """
        self.noticed = self.noticed or self.stopping.is_set()
        return self.noticed or self.asked is not None

    def tell_progress(self, done: float, total: float | None, note: str | None) -> None:
        """Keep what the handler says of its progress; whoever looks after the run may show it."""
        self.progress = {"done": done, "total": total, "note": note, "attempt": self.claim.attempts}

    def sleep(self, span: timedelta) -> None:
        """Sleep, or raise ``Interrupted`` as soon as the worker stops or this run shall end."""
        if self.hold.in_coroutine:
            raise RuntimeError("job.sleep would block the event loop: await job.sleep_async(…)")
        woken = threading.Event()
        with self._telling(woken.set):
            if woken.wait(max(0.0, span.total_seconds())):
                raise self._interruption()

    async def sleep_async(self, span: timedelta) -> None:
        """Do the same on an event loop."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        with self._telling(lambda: loop.call_soon_threadsafe(woken.set)), suppress(TimeoutError):
            await asyncio.wait_for(woken.wait(), max(0.0, span.total_seconds()))
            raise self._interruption()

    @contextmanager
    def _telling(self, callback: Callable[[], Any]) -> Generator[None, None, None]:
        """Call ``callback`` when the handler shall end, at once if it shall already."""
        with _sharing:
            listening = self._listening = set() if self._listening is None else self._listening
            listening.add(callback)
        try:
            if self.asked is not None:
                callback()
            with self.stopping.telling(callback):
                yield
        finally:
            listening.discard(callback)

    def _interruption(self) -> Interrupted:
        if self.asked is not None:
            return Interrupted(self.asked.value)
        self.noticed = True
        return Interrupted("the worker is stopping")

    # for the worker, from any thread ----------------------------------------------------------------------------------

    def time_left(self, now: float) -> float:
        """Give how many seconds are left of the handler's timeout; infinitely many once they were found to be over."""
        if self.timeout is None or self.overdue:
            return float("inf")
        return self.timeout if self.started_at is None else self.started_at + self.timeout - now

    def ask(self, why: Asked, reason: str = "") -> None:
        """Ask this run alone to end, and cancel the handler where that is possible; what came first counts."""
        self.mark(why, reason)
        self.wake()

    def mark(self, why: Asked, reason: str = "") -> None:
        """Say that this run shall end, to a handler that looks."""
        self.overdue = self.overdue or why is Asked.TIMED_OUT
        if self.asked is None:
            self.asked, self.reason = why, reason

    def wake(self) -> None:
        """Say it to a handler that waits."""
        for callback in [*(self._listening or ())]:
            callback()
        self._cut()

    def cancel(self) -> None:
        """Take the handler's time as over because the worker stops, and cancel it where that is possible."""
        self.noticed = True
        self._cut()

    def _cut(self) -> None:
        self.cut = True
        self.hold.cancel_call()
        for callback in [*(self._cutting or ())]:
            callback()

    @contextmanager
    def cutting(self, callback: Callable[[], Any]) -> Generator[None, None, None]:
        """Call ``callback`` when the run is cancelled, at once if it is already, for as long as the context lasts."""
        with _sharing:
            cutting = self._cutting = set() if self._cutting is None else self._cutting
            cutting.add(callback)
        try:
            if self.cut:
                callback()
            yield
        finally:
            cutting.discard(callback)

    def finish(self) -> bool:
        """Whether the handler's end decides what becomes of the job: not, if the worker has given the run up before."""
        return self._end_by(_Ender.HANDLER)

    def abandon(self) -> bool:
        """Give the run up, which then does nothing more; ``False`` when its handler has ended before."""
        if not self._end_by(_Ender.WORKER):
            return False
        self.hold.abandon()
        return True

    def _end_by(self, ender: _Ender) -> bool:
        with _sharing:
            if self._ended_by is None:
                self._ended_by = ender
            return self._ended_by is ender

    @property
    def abandoned(self) -> bool:
        """Whether the worker has given the run up."""
        return self._ended_by is _Ender.WORKER


@dataclass(slots=True, eq=False)
class Report:
    """A run that has ended and is to be settled.

    :param committed: what the job came to if it turns out that the handler's unanswered COMMIT was carried out.
    :param tried: a settling was sent before, and its answer did not come.
    :param failures: how often the database has refused the settling; it is not tried again before ``not_before``.
    """

    run: Run
    ruling: Ruling
    committed: Ruling | None = None
    tried: bool = False
    failures: int = 0
    not_before: float = 0.0

    @property
    def pair(self) -> tuple[Claim, Ruling]:
        return self.run.claim, self.ruling


@dataclass(slots=True, eq=False)  # not frozen: that makes making one four times as slow
class Settled:
    """A run whose end is committed; ``certain`` unless another worker may have settled the job as well."""

    run: Run
    ruling: Ruling
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought: jobs to run, and those that are to be archived as crashed."""

    runs: Sequence[Run] = ()
    condemned: Sequence[Report] = ()
    solo: bool = False
    wants_solitude: bool = False


def prepare(run: Run, lifecycle: Lifecycle) -> None:
    """Make ``run.job``, the job as its handler will see it; raise what makes that impossible.

    The job is there in any case: one that cannot be read has ``None`` for a payload, for strategies and ``on_failed``.
    """
    claim = run.claim
    run.job = detached(lifecycle.job_model, claim.values, payload=None, _running=run)
    if claim.unreadable is not None:
        raise claim.unreadable
    stored = claim.values["payload"]
    value = serializers.loads(stored) if lifecycle.payload_is_json else stored
    run.job.__dict__["payload"] = serializers.decoded(lifecycle.job_model.serializer, value, run.job)
