"""What the demo tells: the story of its jobs, made of the worker's events.

It owns the story and its plain form, a line for each thing that happens; the table is in ``demo_table``, because only
that needs ``rich``. It refuses to know the database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from . import clock, events


class State(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCESS = "success"
    FAILURE = "failure"


@dataclass(slots=True)
class Attempt:
    """One run of a job; ``retry_after`` (milliseconds) is what its error says, if it failed."""

    began: float
    ended: float | None = None
    retry_after: int | None = None

    @property
    def span(self) -> float:
        """How long it has lasted, in seconds."""
        return (clock.monotonic() if self.ended is None else self.ended) - self.began


@dataclass(slots=True)
class Tale:
    """What has happened to one job."""

    number: int
    state: State = State.WAITING
    due: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)


@dataclass(slots=True)
class Scene:
    """All that there is to see at one moment."""

    tales: list[Tale]
    waiting: int
    archived: int
    reports: list[str]


class View(Protocol):
    """A way of telling the story."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def tell(self, line: str) -> None: ...
    def show(self, scene: Scene) -> None: ...


class Story:
    """Follows the jobs by the worker's events, which come from several threads."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._lock = threading.Lock()
        self._began = clock.monotonic()
        self._tales: dict[Any, Tale] = {}
        self._reports: list[str] = []

    def begin(self, job_ids: Sequence[Any]) -> None:
        """Take note of the jobs, in their order."""
        self._began = clock.monotonic()
        self._tales = {job_id: Tale(number) for number, job_id in enumerate(job_ids, 1)}
        self._tell(f"{len(job_ids)} jobs are enqueued and committed")

    def listen(self, event: events.Event) -> None:
        """Be the worker's listener."""
        with self._lock:
            if isinstance(event, events.JobEvent) and event.job_id in self._tales:
                self._follow(event, self._tales[event.job_id])
            elif events.level_of(event) >= logging.WARNING:
                self._tell(events.line(event))

    def reported(self, job: Any, error: BaseException) -> None:
        """Be the worker's ``on_failed``."""
        with self._lock:
            number = self._tales[job.job_id].number
            report = f"Job {number} failed after {job.attempts} attempts (exception message: '{error}')"
            self._reports.append(report)
            self._tell(f"on_failed: {report}")

    def show(self, waiting: int, archived: int) -> None:
        """Show how things stand, with the number of rows in the job table and in the archive table."""
        with self._lock:
            self._view.show(Scene([*self._tales.values()], waiting, archived, self._reports))

    def _follow(self, event: events.JobEvent, tale: Tale) -> None:
        now = clock.monotonic()
        match event:
            case events.HandlingJob():
                tale.attempts.append(Attempt(now))
                tale.state = State.RUNNING
                said = "begins"
            case events.HandleJobException():
                attempt = tale.attempts[-1]
                attempt.ended, attempt.retry_after = now, getattr(event.error, "retry_after", None)
                return  # what follows from it comes in the next event
            case events.Retrying():
                attempt = tale.attempts[-1]
                tale.state, tale.due = State.RETRYING, now + (attempt.retry_after or 0) / 1000
                said = f"failed, retry_after {attempt.retry_after} ms, retries left: {event.retries_left}"
            case events.NotRetrying():
                tale.state = State.FAILURE
                said = "failed, no retries left: archived as failure"
            case events.JobFinished():
                tale.attempts[-1].ended = now
                tale.state = State.SUCCESS
                said = "succeeded: archived as success"
            case events.JobInterrupted():
                tale.attempts[-1].ended = now
                tale.state = State.WAITING
                said = "interrupted: it stays in the job table and would run again"
            case _:
                said = events.line(event)
        self._tell(f"job {tale.number:2}  attempt {event.attempt}  {said}")

    def _tell(self, text: str) -> None:
        self._view.tell(f"{clock.monotonic() - self._began:5.2f} s  {text}")


class Lines:
    """A line for each thing that happens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tell(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def show(self, scene: Scene) -> None:
        pass
