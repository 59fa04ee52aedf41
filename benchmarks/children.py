"""Drains: worker processes that work off what is there, and what that costs.

It owns the worker processes (``workers/talk.py`` says how one talks to them), the clock around a drain, and what a drain
costs in processor time and WAL. It refuses to know what the workers do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text
from trips import Trips

WORKERS = Path(__file__).parent / "workers"
_TICKS = os.sysconf("SC_CLK_TCK")
_LOOK_EVERY = 0.01
_LONGEST = 300.0


@dataclass(frozen=True, slots=True)
class Drain:
    """What a drain gave.

    :ivar rate: jobs a second, from the first handler's first line until nothing was left to do or to settle.
    :ivar client: processor seconds of the worker processes for a thousand jobs.
    :ivar server: processor seconds of all of PostgreSQL's processes for a thousand jobs.
    :ivar wal: bytes of WAL for a job.
    :ivar trips: round trips to the server for a job, where they were counted.
    """

    rate: float
    client: float
    server: float
    wal: float
    trips: float = 0.0


class Child:
    """One worker process."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=WORKERS)
        self._hear("ready")

    def fill(self, count: int) -> None:
        self._say(f"fill {count}")
        self._hear("filled")

    def go(self) -> None:
        self._since = time.monotonic()
        self._say("go")

    def stop(self) -> dict[str, Any]:
        self._say("stop")
        self._hear("going")
        said: dict[str, Any] = json.loads(self._line())
        self._process.communicate(timeout=60)
        return said

    def check(self) -> None:
        """Raise if the process is gone, or works for longer than any drain should take."""
        if self._process.poll() is not None or time.monotonic() - self._since > _LONGEST:
            raise RuntimeError(f"a worker process is gone, or hangs: {self._process.args}")

    def resident(self) -> float:
        """Its resident memory in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def _hear(self, word: str) -> None:
        line = self._line()
        if line != word:
            raise RuntimeError(f"expected {word!r} of a worker process, got {line!r}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker process is gone: {self._process.args}")
        return line.strip()


@contextmanager
def children(*commands: Sequence[str]) -> Iterator[list[Child]]:
    """Start worker processes; none outlives the block."""
    with ExitStack() as stack:
        started = [Child(command) for command in commands]
        for child in started:
            stack.callback(child.end)
        yield started


def python(script: str, url: str, *options: str) -> list[str]:
    return [sys.executable, str(WORKERS / script), url, *options]


def drained(
    engine: Engine, commands: Sequence[Sequence[str]], *, count: int, left: str, trips: Trips | None = None
) -> Drain:
    """Let worker processes drain ``count`` jobs.

    :param left: SQL that says whether something is left to do.
    :param trips: counts the round trips of the workers, whose URL leads through it.
    """
    with children(*commands) as started, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        started[0].fill(count)
        settle_down(connection)
        before = server_processor_time(connection), wal_position(connection)
        if trips is not None:
            trips.count = 0
        for child in started:
            child.go()
        looking = text(left)
        while connection.scalar(looking):
            time.sleep(_LOOK_EVERY)
            for child in started:
                child.check()
        ended = time.monotonic()
        made = trips.count if trips is not None else 0
        wal = wal_position(connection) - before[1]
        server = server_processor_time(connection) - before[0]
        said = [child.stop() for child in started]
    first = min(one["first"] for one in said if one["first"] is not None)
    client = sum(one["cpu"] for one in said)
    return Drain(count / (ended - first), client / count * 1000, server / count * 1000, wal / count, made / count)


def settle_down(connection: Connection) -> None:
    """Leave nothing for autovacuum or a checkpoint to do, and give every worker the same fresh statistics."""
    connection.execute(text("VACUUM ANALYZE"))
    connection.execute(text("CHECKPOINT"))


def wal_position(connection: Connection) -> int:
    return int(connection.scalar(text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")) or 0)


def server_processor_time(connection: Connection) -> float:
    """Processor seconds of the postmaster and all its children, those that have ended included (from /proc; 0 elsewhere)."""
    postmaster = _postmaster(connection)
    if postmaster is None:
        return 0.0
    own = _times(postmaster)
    return (sum(own) + sum(sum(_times(child)[:2]) for child in _children_of(postmaster))) / _TICKS


def _postmaster(connection: Connection) -> int | None:
    backend = connection.scalar(text("SELECT pg_backend_pid()"))
    try:
        return int(_stat(int(backend))[1])
    except OSError:
        return None


def _children_of(parent: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int(_stat(int(entry.name))[1]) == parent:
                    yield int(entry.name)
            except OSError:
                continue


def _times(pid: int) -> tuple[int, int, int, int]:
    try:
        fields = _stat(pid)
    except OSError:
        return 0, 0, 0, 0
    return int(fields[11]), int(fields[12]), int(fields[13]), int(fields[14])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: 1 the parent, 11 to 14 the times of it and of its ended children."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
