"""Processes of a worker's own for what takes a processor: an executor of the standard library, as a worker needs it.

It owns how such processes begin and end. They are spawned, not forked: a forked one would keep the worker's database
connections open after the worker has died, and with them the locks on its jobs.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from .arguments import at_least, callable_or_none


def processes(
    count: int | None = None,
    *,
    initializer: Callable[..., Any] | None = None,
    initargs: tuple[Any, ...] = (),
    max_tasks_per_child: int | None = None,
) -> Callable[[], ProcessPoolExecutor]:
    """Give what a worker's ``executor`` may be: a function that makes a ``ProcessPoolExecutor``.

    :param count: how many processes; by default as many as there are processors. A worker should have as many threads.
    :param initializer: called with ``initargs`` when a process begins; both are pickled.
    :param max_tasks_per_child: how many calls a process may do before another takes its place.

    Signals that ask for an end, as a terminal and systemd send them to the whole group, are left to the worker. A process
    whose worker has died ends.
    """
    if count is not None:
        at_least("count", count, 1)
    if max_tasks_per_child is not None:
        at_least("max_tasks_per_child", max_tasks_per_child, 1)
    callable_or_none("initializer", initializer)
    return functools.partial(
        ProcessPoolExecutor,
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(initializer, initargs),
        max_tasks_per_child=max_tasks_per_child,
    )


def _begin(initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it_to_the_worker)
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _leave_it_to_the_worker(number: int, frame: Any) -> None:
    """Do nothing; unlike SIG_IGN this is not passed on to a program that the function starts."""


def _end_with_the_worker() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
