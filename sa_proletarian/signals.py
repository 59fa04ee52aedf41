"""SIGTERM and SIGINT: what they mean to the workers of this process.

It owns the process's signal handlers for as long as workers run in its main thread, and the wait for their end. It
refuses to start anything.
"""

from __future__ import annotations

import queue as queues
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TypeAlias

from . import clock, events
from .shift import DONE, Shift

TURN = 0.1
ECHO = 0.5

Inbox: TypeAlias = "queues.SimpleQueue[int | None]"


@contextmanager
def caught() -> Generator[Inbox, None, None]:
    """Send SIGTERM and SIGINT to a queue for as long as the context lasts (``SimpleQueue.put`` is reentrant)."""
    inbox: Inbox = queues.SimpleQueue()

    def note(number: int, _: FrameType | None) -> None:
        inbox.put(number)

    if threading.current_thread() is not threading.main_thread():
        yield inbox
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield inbox
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def attend(inbox: Inbox, running: Sequence[tuple[Shift, timedelta]]) -> bool:
    """Wait for the end of all shifts; a signal begins their stop, each with its own timeout, a second one cuts it short.

    Gives whether every one of them has settled everything in time.
    """
    shifts = [shift for shift, _ in running]
    for shift in shifts:
        shift.tell_when_done(inbox)
    echo: tuple[int | None, float] = (None, 0.0)
    while (number := _next(inbox, shifts)) is not DONE:
        if number == echo[0] and clock.monotonic() - echo[1] < ECHO:
            continue
        echo = number, clock.monotonic()
        for shift, timeout in running:
            _pass_on(shift, signal.Signals(number).name, timeout)
    return _all_clean(shifts)


def wait_for(shifts: Sequence[Shift]) -> bool:
    """Wait for the end of shifts whose stop has begun; Ctrl-C cuts it short where the signals are not caught."""
    try:
        return _all_clean(shifts)
    except KeyboardInterrupt:
        for shift in shifts:
            _pass_on(shift, "SIGINT", timedelta(0))
        return _all_clean(shifts)


def _all_clean(shifts: Sequence[Shift]) -> bool:
    return False not in [shift.wait() for shift in shifts]


def _pass_on(shift: Shift, name: str, timeout: timedelta) -> None:
    if shift.done.is_set():
        return
    if shift.stopping:
        shift._emit(events.InterruptedWhileShuttingDown, signal=name)
        shift.begin_stop(timedelta(0))
    else:
        shift._emit(events.WorkerInterrupted, signal=name)
        shift.begin_stop(timeout)


def _next(inbox: Inbox, shifts: Sequence[Shift]) -> int | None:
    """Wait for the next signal or the end; in short turns, as one that comes just before a wait does not cut it short."""
    while not all(shift.done.is_set() or shift.is_hopeless() for shift in shifts):
        with suppress(queues.Empty):
            number = inbox.get(timeout=TURN)
            if number is not DONE:
                return number
    return DONE
