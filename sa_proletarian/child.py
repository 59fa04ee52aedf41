"""A process that runs workers, as seen from within: what it tells its supervisor, and when it asks to be replaced.

It owns the line to the supervisor and the two bounds (jobs, memory). It refuses to stop anything by itself: a signal does
that, from the supervisor, or from here where there is none or it has died.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from .curfew import Curfew
from .events import Event, Listener, log_event

READY = b"r"
"""A worker has begun to work."""
REPLACE = b"x"
"""One of the bounds is reached."""
LOOK_AT_MEMORY = 1.0
STATM = Path("/proc/self/statm")

_ENDED = frozenset({"job_finished", "retrying", "not_retrying", "job_snoozed", "job_cancelled"})


class Child:
    """Listens to the workers of this process, and keeps its two bounds.

    :param line: the socket to the supervisor; ``None`` where this process has none.
    :param max_jobs: ask to be replaced after so many runs of handlers; ``None`` for never.
    :param max_memory: ask to be replaced above so many bytes of resident memory; ``None`` for never.
    :param curfew: when this process has ended at the latest; ``None`` where the process is not the workers' own.
    """

    def __init__(
        self, line: socket.socket | None, *, max_jobs: int | None, max_memory: int | None, curfew: Curfew | None = None
    ) -> None:
        self._line = line
        self._jobs_left = max_jobs
        self._max_memory = max_memory
        self._curfew = curfew
        self._turn = threading.Lock()
        self._ready = False
        self._asked = False
        self._stopping = False
        self._listener: Listener = log_event

    def start(self) -> None:
        """Begin to watch the memory and the supervisor, in a thread."""
        if self._line is not None or self._max_memory is not None:
            threading.Thread(target=self._watch, name="sa_proletarian-child", daemon=True).start()

    def __call__(self, event: Event) -> None:
        """Take an event of a worker, and hand it on to the log."""
        if not self._ready:
            self._ready = True
            self._tell(READY)
        self._stopping = self._stopping or event.name == "shutting_down"
        if self._curfew is not None:
            self._keep(self._curfew, event)
        self._listener(event)
        if self._jobs_left is not None and event.name in _ENDED:
            self._count()

    def _keep(self, curfew: Curfew, event: Event) -> None:
        if event.name == "shutting_down":
            curfew.begin()
        elif event.name == "interrupted_while_shutting_down":
            curfew.hurry()

    def _count(self) -> None:
        with self._turn:
            assert self._jobs_left is not None
            self._jobs_left -= 1
            due = self._jobs_left <= 0
        if due:
            self._ask_to_be_replaced()

    def _watch(self) -> None:
        while not self._supervisor_has_died():
            # not before it works: an app that is large from the start shall do something between two replacements
            if self._ready and self._max_memory is not None and memory() > self._max_memory:
                self._ask_to_be_replaced()
        self._stop()

    def _supervisor_has_died(self) -> bool:
        """Wait a moment; say whether the line has ended, which only its death does."""
        timeout = None if self._max_memory is None else LOOK_AT_MEMORY
        readable, _, _ = select.select([] if self._line is None else [self._line], [], [], timeout)
        return bool(readable)

    def _ask_to_be_replaced(self) -> None:
        with self._turn:
            asked, self._asked = self._asked, True
        if asked:
            return
        if self._line is None:
            self._stop()
        else:
            self._tell(REPLACE)

    def _stop(self) -> None:
        if not self._stopping:  # else this would be a second signal, which cuts the stop short
            os.kill(os.getpid(), signal.SIGTERM)

    def _tell(self, word: bytes) -> None:
        if self._line is not None:
            with suppress(OSError):
                self._line.send(word)


def memory() -> int:
    """Give this process's resident memory in bytes; where the system does not tell that, the most it has ever been."""
    try:
        return int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource  # noqa: PLC0415 (not on every platform)

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
