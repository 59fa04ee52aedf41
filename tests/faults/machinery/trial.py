"""One run of a scenario: a database, workers, an enqueuer, faults; then calm, an empty queue, and the checker's verdict."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, func, make_url, select, text

from sa_proletarian import ArchivedJob, Job, metadata

from . import checker, ledger, own_tables
from .enqueuer import USUAL, Enqueuer
from .record import Record

RESUME, SLACK = 5.0, 5.0
"""So many seconds after a server accepts writes again jobs end again; and so many more, where a machine is busy."""
SCRIPT = Path(__file__).with_name("worker.py")
MYSQLS = {"threads": "pymysql", "async": "asyncmy"}
"""The drivers of a worker on MariaDB or MySQL; psycopg is one for both forms."""


class Process:
    """A worker process, and what is known of its end."""

    def __init__(self, trial: Trial, form: str, command: list[str], environment: dict[str, str]) -> None:
        self._trial = trial
        self._popen = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=trial.errors,
            text=True,
            env={**os.environ, **environment},
        )
        self.pid = self._popen.pid
        self.form = form
        self._is_up = False

    def wait_until_up(self) -> None:
        if self._is_up:
            return
        self._is_up = True
        line = self._popen.stdout.readline()
        assert line == "up\n", f"the worker did not come up: {line!r}, {self._trial.said()}"

    def kill(self) -> None:
        """Kill it as ``kill -9`` does."""
        self._trial.ended.setdefault(self.pid, time.monotonic())  # whoever notices it may be faster than we are
        self._popen.kill()
        self._ended()

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def is_running(self) -> bool:
        if self._popen.poll() is None:
            return True
        self._ended()
        return False

    def wait(self, timeout: float = 120) -> int:
        code = self._popen.wait(timeout)
        self._ended()
        return code

    def _ended(self) -> None:
        if self._popen.wait() < 0:
            self._trial.killed.add(self.pid)
        self._popen.stdout.close()
        self._trial.ended.setdefault(self.pid, time.monotonic())


class Trial:
    """One run of a scenario.

    :ivar chance: all choices of the run come from it; its seed is printed and can be given again.
    :ivar patience: for how long anything is waited for while nothing changes: little where a mutant is to be noticed.
    """

    def __init__(
        self, url: URL, folder: Path, record: Record, *, long: bool, scale: float, patience: float = math.inf
    ) -> None:
        self.url = url
        self.folder = folder
        self.record = record
        self.long = long
        self.scale = scale
        self.patience = patience
        self.chance = random.Random(record.seed)
        self.ended: dict[int, float] = {}
        self.killed: set[int] = set()
        self.unlocked: set[int] = set()
        self.processes: list[Process] = []
        self.errors = (folder / "stderr").open("a")
        self.ledger = ledger.Ledger(folder / "ledger")
        self.enqueued = ledger.Ledger(folder / "enqueued")
        self.events = ledger.Ledger(folder / "events")
        self.engine = create_engine(url, pool_pre_ping=True)
        self._engines = [self.engine]

    # the scene --------------------------------------------------------------------------------------------------------

    def amount(self, short: int, long: int) -> int:
        return max(1, round((long if self.long else short) * self.scale))

    def set_up(self) -> None:
        metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            own_tables.make(connection)

    def make_engine(self, url: URL, **options: Any) -> Engine:
        """Make an engine that is disposed of at the end."""
        engine = create_engine(url, **options)
        self._engines.append(engine)
        return engine

    def start(
        self, form: str = "threads", *, up: bool = True, wrapper: tuple[str, ...] = (), environment: Any = None, **given: Any
    ) -> Process:
        """Start a worker process of the form ``threads`` or ``async``; ``given`` is for ``worker.py``."""
        url = make_url(given.get("url", self.url))
        if (server := url.get_backend_name()) != "postgresql":
            url = url.set(drivername=f"{server}+{MYSQLS[form]}")
            # a claim is had by its lease alone here: a worker that a busy machine keeps waiting that long loses it
            given = {"lease": 3.0, **given}
        given |= {"url": url.render_as_string(hide_password=False), "form": form}
        given |= {"ledger": str(self.ledger.path), "events": str(self.events.path)}
        process = Process(self, form, [*wrapper, sys.executable, str(SCRIPT), json.dumps(given)], environment or {})
        self.processes.append(process)
        if up:
            process.wait_until_up()
        return process

    def enqueuer(self, engine: Engine | None = None, mix: Any = USUAL, **options: Any) -> Enqueuer:
        return Enqueuer(engine or self.engine, self.enqueued, self.chance.getrandbits(32), mix, **options)

    @contextmanager
    def filled(self, target: int = 300, enqueuer: Enqueuer | None = None, **options: Any) -> Iterator[Enqueuer]:
        """Keep the queue filled, from another thread, for as long as the context lasts."""
        enqueuer = enqueuer or self.enqueuer()
        stop = threading.Event()
        failures: list[BaseException] = []

        def fill() -> None:
            try:
                enqueuer.keep_filled(stop, target, **options)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=fill)
        thread.start()
        try:
            yield enqueuer
        finally:
            stop.set()
            thread.join()
        assert not failures, failures

    def fault(self, kind: str) -> None:
        self.record.faults[kind] += 1

    def suffer(self, faults: list[Callable[[Trial, Any], None]], server: Any, enqueuer: Enqueuer) -> None:
        """Have the faults happen to ``server`` in any order, each while there is work."""
        self.chance.shuffle(faults)
        with self.filled(100, enqueuer):
            for fault in faults:
                self.pause(0.1, 0.6)
                self.wait_for("SELECT count(*) > 0 FROM proletarian_job")  # it answers again, and there is work
                fault(self, server)
        self.wait_for("SELECT 1 = 1")

    def resume(self) -> None:
        """Note how long it takes, once the server accepts writes again, until the next job has ended."""
        self.wait_for("SELECT NOT pg_is_in_recovery()")
        begun = time.monotonic()
        with self.engine.connect() as connection:
            ended = connection.scalar(select(func.count()).select_from(ArchivedJob))
        self.wait_for(f"SELECT count(*) > {ended} FROM proletarian_archived_job")
        seconds = round(time.monotonic() - begun, 2)
        assert seconds <= RESUME + SLACK, f"{seconds} s, {self.state()}"
        self.record.counts["seconds_to_resume"] = max(seconds, self.record.counts.get("seconds_to_resume", 0))

    def pause(self, shortest: float, longest: float) -> None:
        """Let a random time pass before the next fault."""
        time.sleep(self.chance.uniform(shortest, longest))

    # the end ----------------------------------------------------------------------------------------------------------

    def finish(self, within: float = 120, *, stop: bool = True) -> None:
        """Liveness: with the faults over, the queue must be empty in bounded time; then stop the workers."""
        begun = time.monotonic()
        self.wait_for("SELECT count(*) = 0 FROM proletarian_job", within)
        self.record.counts["seconds_to_empty"] = round(time.monotonic() - begun, 2)
        if stop:
            self.stop()

    def wait_for(self, condition: str, within: float = 120) -> None:
        """Ask the database until the answer is true."""
        self._wait(lambda: self._is_true(condition), within, 0.05, condition)

    def wait_until(self, condition: Callable[[], Any], within: float = 120) -> None:
        self._wait(condition, within, 0.02)

    def _wait(self, condition: Callable[[], Any], within: float, pause: float, what: str = "") -> None:
        deadline = time.monotonic() + within
        patience, seen = deadline, ""
        while not condition():
            if math.isfinite(self.patience):
                pause = 0.2
                if seen != (now := self._progress()):
                    seen, patience = now, time.monotonic() + self.patience
            assert time.monotonic() < min(deadline, patience), f"not in {within} s: {what}; {self.state()}"
            time.sleep(pause)

    def _progress(self) -> str:
        """Give what changes as long as workers work."""
        jobs = "SELECT count(*), sum(attempts), sum(crashes) FROM proletarian_job"
        try:
            with self.engine.begin() as connection:
                archived = connection.scalar(text("SELECT count(*) FROM proletarian_archived_job"))
                return f"{archived} {connection.execute(text(jobs)).one()}"
        except Exception:
            return ""

    def stop(self) -> None:
        """End the workers that still run as an administrator does."""
        running = [process for process in self.processes if process.is_running()]
        for process in running:
            process.wait_until_up()
            process.signal(signal.SIGTERM)
        for process in running:
            assert process.wait() == 0, f"an unclean end: {self.said()}"

    def verdict(self, *, all_done: bool = True) -> checker.Verdict:
        """Ask the checker; note its counts. The workers should have ended."""
        verdict = checker.check(self.history(), all_done=all_done)
        self.record.counts |= verdict.counts
        return verdict

    def check(self, **options: Any) -> None:
        verdict = self.verdict(**options)
        assert verdict, f"seed {self.record.seed}: {verdict}"

    def check_but_for_beaten(self, most: float) -> None:
        """Check all, but do not count the starts of jobs of which six tries each ended in a deadlock: that is a failure."""
        verdict = self.verdict()
        beaten = {event["job"] for event in self.history().events if event["name"] == "handle_job_exception"}
        self.record.counts["deadlocked_six_times"] = len(beaten)
        for kind in ("miscounted attempts", "started more often than explained"):
            if all(one.split(":")[0] in beaten for one in verdict.wrong.get(kind, ())):
                verdict.wrong.pop(kind, None)
        assert verdict, f"seed {self.record.seed}: {verdict}"
        assert len(beaten) <= most

    def history(self) -> checker.History:
        ended = select(
            ArchivedJob.job_id, ArchivedJob.status, ArchivedJob.attempts, ArchivedJob.process_at, ArchivedJob.finished_at
        )
        effect = own_tables.effect.c
        with self.engine.begin() as connection:
            return checker.History(
                enqueued=[(line["job"], line["payload"], line["outcome"]) for line in ledger.read(self.enqueued.path)],
                business=set(connection.scalars(select(own_tables.business.c.job_id))),
                archived={str(row[0]): (*row[1:3], in_utc(row[3]), in_utc(row[4])) for row in connection.execute(ended)},
                left={str(job_id) for job_id in connection.scalars(select(Job.job_id))},
                effects=[
                    (*row[:2], in_utc(row[2]))
                    for row in connection.execute(select(effect.job_id, effect.attempt, effect.at))
                ],
                ledger=ledger.read(self.ledger.path),
                events=ledger.read(self.events.path),
                ended=self.ended,
                killed=self.killed,
                unlocked=self.unlocked,
            )

    def state(self) -> str:
        """Say what is left, for messages."""
        columns = ["job_id", "attempts", "crashes", "claimed_by", "claimed_until", "process_at", "last_error"]
        first = select(*(getattr(Job, name) for name in columns)).order_by(Job.process_at).limit(5)
        try:
            with self.engine.begin() as connection:
                rows = [tuple(map(str, row)) for row in connection.execute(first)]
                rows.append(tuple(map(str, connection.execute(select(func.count(), func.now()).select_from(Job)).one())))
        except Exception as error:
            rows = [error]
        return f"{rows}; stderr: {self.said()}"

    def said(self) -> str:
        return (self.folder / "stderr").read_text()[-2000:]

    def close(self) -> None:
        for process in self.processes:
            if process.is_running():
                process.kill()
        self.errors.close()
        for one in (self.ledger, self.enqueued, self.events):
            one.close()
        for engine in self._engines:
            engine.dispose()

    def _is_true(self, condition: str) -> bool:
        try:
            with self.engine.begin() as connection:
                return bool(connection.scalar(text(condition)))
        except Exception:
            return False


def in_utc(moment: datetime) -> datetime:
    """Give a time of a session's zone in UTC: two of one zone compare as if its clocks never changed."""
    return moment.astimezone(UTC)
