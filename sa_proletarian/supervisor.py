"""The supervisor: several processes that run workers, kept alive, replaced, and stopped together.

It owns the processes and the signals that reach them. It runs no job and speaks to no database: what dead children owe is
``hand_back``'s, what a child does is ``child``'s and ``worker_command``'s. Children are fresh interpreters, never forks,
and see by the end of their line that the supervisor has died.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import clock
from .child import READY, REPLACE
from .curfew import Curfew
from .event_log import logger
from .polling import back_off
from .signals import ECHO

LIVED_LONG = 30.0
"""A child that has lived so many seconds is restarted as if it were the first to die."""
MOST_STILLBIRTHS = 5
"""So many children in a row that died before they worked: nothing here will make the next one live."""
GRACE = 1.65
"""So many seconds beyond its termination timeout, or a second signal, a child that stops gets: by then it has given up."""
TURN = 60.0
UNASKED = 0
"""In the place of a signal's number: the supervisor stops of its own accord."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)

Command = Callable[[str, int], Sequence[str]]
"""``(name, fd) -> argv`` of a child that calls its workers by ``name`` and has its line at ``fd``."""


@dataclass(slots=True, eq=False)
class Child:
    """A process that was started; ``kill_at`` is when it must have ended by itself."""

    name: str
    process: subprocess.Popen[bytes]
    line: socket.socket
    born_at: float
    ready: bool = False
    stopping: bool = False
    kill_at: float = float("inf")


@dataclass(slots=True, eq=False)
class Place:
    """The place of one child and of those that follow it; ``start_at`` is when the next one may be started."""

    number: int
    child: Child | None = None
    deaths: int = 0
    stillbirths: int = 0
    start_at: float = 0.0

    @property
    def is_hopeless(self) -> bool:
        return self.stillbirths >= MOST_STILLBIRTHS

    def vacate(self, now: float, *, worked: bool, well: bool, lived: float) -> None:
        """Plan the next child: at once after one that worked and ended well, else after a pause that grows."""
        self.child = None
        self.deaths = 0 if worked and well else 1 if lived >= LIVED_LONG else self.deaths + 1
        self.stillbirths = 0 if worked else self.stillbirths + 1
        self.start_at = now + (back_off(self.deaths) if self.deaths else 0.0)


@dataclass(slots=True, eq=False)
class Supervisor:
    """Runs ``processes`` children until SIGTERM or SIGINT.

    :param command: makes the command line of a child.
    :param died: called with the name of each child that has not ended well: what it had claimed is nobody's now.
    :param termination_timeout: how many seconds a child that stops gives its jobs.
    :param curfew: when this process has ended at the latest; ``None`` where it is not the supervisor's own.
    """

    command: Command
    died: Callable[[str], Any]
    processes: int
    termination_timeout: float
    curfew: Curfew | None = None
    _places: list[Place] = field(init=False)
    _selector: selectors.BaseSelector = field(init=False, default_factory=selectors.DefaultSelector)
    _signals: list[int] = field(init=False, default_factory=list)
    _stopped_by: int | None = field(init=False, default=None)
    _heard_at: float = field(init=False, default=0.0)
    _clean: bool = field(init=False, default=True)

    def run(self) -> bool:
        """Run children until they are told to stop; give whether they could be kept alive and settled everything in time.

        The first signal stops them gracefully, a second one at once; one of the same kind within half a second is an echo.
        """
        self._places = [Place(number) for number in range(1, self.processes + 1)]
        with self._caught(), self._selector:
            while not self._is_over():
                self._start_what_is_due()
                self._listen()
                self._heed_signals()
                self._bury()
                self._kill_what_is_late()
        return self._clean

    @property
    def _stopping(self) -> bool:
        return self._stopped_by is not None

    def _is_over(self) -> bool:
        return self._stopping and not self._children()

    def _children(self) -> list[Child]:
        return [place.child for place in self._places if place.child is not None]

    def _start_what_is_due(self) -> None:
        for place in self._places:
            if place.child is None and not self._stopping and clock.monotonic() >= place.start_at:
                self._start(place)

    def _start(self, place: Place) -> None:
        name = f"{socket.gethostname()}:{os.getpid()}.{place.number}:{secrets.token_hex(3)}"
        here, there = socket.socketpair()
        with there:
            try:
                process = self._spawn(self.command(name, there.fileno()), there)
            except OSError as error:
                here.close()
                logger.error("child_not_started error=%r", error)
                self._vacate(place, worked=False, well=False, lived=0.0)
                return
        here.setblocking(False)
        place.child = child = Child(name, process, here, clock.monotonic())
        self._selector.register(here, selectors.EVENT_READ, partial(self._hear, child))
        logger.info("child_started pid=%s name=%s", process.pid, name)

    def _spawn(self, command: Sequence[str], line: socket.socket) -> subprocess.Popen[bytes]:
        # a group of its own: Ctrl-C reaches the supervisor alone, which then says what is to be done
        return subprocess.Popen(command, pass_fds=(line.fileno(),), stdin=subprocess.DEVNULL, process_group=0)

    def _listen(self) -> None:
        """Wait for a signal, for a word of a child, or for the next thing to be due."""
        for key, _ in self._selector.select(max(0.0, self._next_turn() - clock.monotonic())):
            key.data()

    def _next_turn(self) -> float:
        due = [clock.monotonic() + TURN, *(child.kill_at for child in self._children())]
        if not self._stopping:
            due += [place.start_at for place in self._places if place.child is None]
        return min(due)

    def _hear(self, child: Child) -> None:
        try:
            words = child.line.recv(64)
        except OSError:
            words = b""
        if not words:  # it is about to die; that it is dead, the system tells
            self._selector.unregister(child.line)
            return
        child.ready = child.ready or READY in words
        if REPLACE in words:
            logger.info("child_replaced pid=%s name=%s", child.process.pid, child.name)
            self._stop(child)

    def _heed_signals(self) -> None:
        heard, self._signals[:] = self._signals[:], []
        for number in heard:
            if number != signal.SIGCHLD:
                self._heed(number)

    def _heed(self, number: int) -> None:
        now = clock.monotonic()
        if self._stopped_by == number and now - self._heard_at < ECHO:
            return
        self._heard_at = now
        name = signal.Signals(number).name
        if not self._stopped_by:
            logger.info("supervisor_interrupted signal=%s", name)
            self._stop_all(number)
        else:
            logger.info("supervisor_interrupted_while_stopping signal=%s", name)
            self._stopped_by = number
            self._hurry_all()

    def _stop_all(self, number: int) -> None:
        self._stopped_by = number
        if self.curfew is not None:
            self.curfew.begin()
        for child in self._children():
            self._stop(child)

    def _stop(self, child: Child) -> None:
        """Stop a child gracefully, once; to a child that stops already this would be a second signal."""
        if not child.stopping:
            child.stopping = True
            child.kill_at = clock.monotonic() + self.termination_timeout + GRACE
            child.process.send_signal(signal.SIGTERM)

    def _hurry_all(self) -> None:
        if self.curfew is not None:
            self.curfew.hurry()
        for child in self._children():
            child.kill_at = min(child.kill_at, clock.monotonic() + GRACE)
            # of another kind than the first, so that the child does not take it for an echo
            child.process.send_signal(signal.SIGINT)

    def _kill_what_is_late(self) -> None:
        for child in self._children():
            if clock.monotonic() >= child.kill_at:
                logger.error("child_killed pid=%s name=%s: it did not end in time", child.process.pid, child.name)
                child.kill_at = float("inf")
                child.process.kill()

    def _bury(self) -> None:
        for place in self._places:
            child = place.child
            if child is not None and (code := child.process.poll()) is not None:
                self._forget(child)
                well = self._judge(child, code)
                lived = clock.monotonic() - child.born_at
                self._vacate(place, worked=child.ready or child.stopping, well=well, lived=lived)
        if os.getpid() == 1:
            _reap_orphans({child.process.pid for child in self._children()})

    def _forget(self, child: Child) -> None:
        with suppress(KeyError):
            self._selector.unregister(child.line)
        child.line.close()

    def _judge(self, child: Child, code: int) -> bool:
        """Say whether a child has ended well; if it has not, what it had claimed is nobody's now."""
        # where the default action of our signal ends a process, no worker runs there: it has not begun, or has ended
        if code == 0 or (child.stopping and code == -signal.SIGTERM):
            logger.info("child_ended pid=%s name=%s", child.process.pid, child.name)
            return True
        logger.error("child_died pid=%s name=%s exit=%s", child.process.pid, child.name, _exit(code))
        self.died(child.name)
        return False

    def _vacate(self, place: Place, *, worked: bool, well: bool, lived: float) -> None:
        if self._stopping:
            self._clean = self._clean and well
        place.vacate(clock.monotonic(), worked=worked, well=well, lived=lived)
        if place.is_hopeless and not self._stopping:
            logger.error("children_cannot_live: %s in a row have died before they worked", place.stillbirths)
            self._clean = False
            self._stop_all(UNASKED)

    @contextmanager
    def _caught(self) -> Generator[None, None, None]:
        """Let signals wake the selector for as long as the context lasts."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)

        def read() -> None:
            with suppress(BlockingIOError):
                self._signals += reader.recv(4096)

        with reader, writer:
            self._selector.register(reader, selectors.EVENT_READ, read)
            wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            before = {number: signal.signal(number, _note) for number in SIGNALS}
            unblocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
                for number, handler in before.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(wakeup)


def _note(number: int, frame: object) -> None:
    """Do nothing: that the signal has a handler lets it be written to the wake-up socket."""


def _reap_orphans(ours: set[int]) -> None:
    """Take the exit codes of processes that PID 1 has inherited; our own children's are taken where they are awaited."""
    with suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if found.si_pid in ours:
                signal.raise_signal(signal.SIGCHLD)  # it has just died: look again
                return
            logger.debug("orphan_reaped pid=%s", found.si_pid)
            os.waitpid(found.si_pid, 0)


def _exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 and -code in signal.valid_signals() else str(code)
