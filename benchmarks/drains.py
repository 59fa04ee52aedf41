"""Drains of every kind of worker: this library, what one writes first, the peers, and PostgreSQL's own limit.

It owns which ways there are, with which settings, and on how many jobs each is measured: enough for about two seconds of
steady work. How a drain is run is ``children``'s.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import drain
from children import WORKERS, Drain, drained, python
from measuring import Series, fresh_engine, interleaved
from sqlalchemy import URL
from trips import counted
from workers.effects import Base as Effects

from sa_proletarian.embedded import EmbeddedPostgres, find_programs

OURS = "SELECT EXISTS (SELECT FROM proletarian_job)"
PGQUEUER = "SELECT EXISTS (SELECT FROM pgqueuer)"
PROCRASTINATE = "SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))"
GRAPHILE = "SELECT EXISTS (SELECT FROM graphile_worker._private_jobs)"
BATCH = 500
"""How many jobs a worker of ours settles at once when handlers do nothing; pgbench gets the same."""


@dataclass(frozen=True, slots=True)
class Way:
    """One kind of worker.

    :ivar commands: the processes, given the database's URL.
    :ivar left: SQL that says whether something is left to do.
    :ivar count: how many jobs.
    """

    name: str
    commands: Callable[[str], Sequence[Sequence[str]]]
    left: str
    count: int


def ours(name: str, count: int, *options: str, processes: int = 1) -> Way:
    return Way(name, lambda url: [python("ours.py", url, *options)] * processes, OURS, count)


def peer(name: str, script: str, left: str, count: int, *options: str) -> Way:
    return Way(name, lambda url: [python(script, url, *options)], left, count)


def noop_ways(*, peers: bool, graphile: Path | None, tell: Callable[[str], None]) -> list[Way]:
    """The ways to drain jobs whose handler does nothing; with ``peers``, theirs as well, as far as they are installed."""
    ways = [
        ours("sa_proletarian, 1 thread", 30_000),
        ours("sa_proletarian, 4 threads", 30_000, "--threads", "4"),
        ours("sa_proletarian, two processes", 40_000, processes=2),
        ours("sa_proletarian, AsyncWorker, 100 at once", 20_000, "--concurrency", "100"),
        peer("naive ORM loop, 1 thread", "naive.py", OURS, 700),
    ]
    return [*ways, *_peers(graphile, tell)] if peers else ways


def _peers(graphile: Path | None, tell: Callable[[str], None]) -> list[Way]:
    ways = []
    if importlib.util.find_spec("pgqueuer"):
        ways.append(peer("PGQueuer, batches of 10 (default)", "with_pgqueuer.py", PGQUEUER, 6_000))
        ways.append(peer("PGQueuer, tuned", "with_pgqueuer.py", PGQUEUER, 15_000, "--batch", "100"))
    else:
        tell("PGQueuer is left out: it is in requirements/bench.txt")
    if importlib.util.find_spec("procrastinate"):
        ways.append(peer("Procrastinate, tuned", "with_procrastinate.py", PROCRASTINATE, 700, "--concurrency", "10"))
    else:
        tell("Procrastinate is left out: it is in requirements/bench.txt")
    if graphile is not None and shutil.which("node") and (graphile / "node_modules" / "graphile-worker").exists():
        script, folder = str(WORKERS / "with_graphile.mjs"), str(graphile.resolve())
        ways.append(Way("graphile-worker, tuned", lambda url: [["node", script, url, folder]], GRAPHILE, 40_000))
    else:
        tell("graphile-worker is left out: it needs node, and package.json of benchmarks/workers installed (--graphile)")
    return ways


def write_ways() -> list[Way]:
    """The ways to drain jobs whose handler writes one row by its session."""
    return [
        ours("sa_proletarian, 1 thread", 1_500, "--handler", "write"),
        ours("sa_proletarian, 4 threads", 3_000, "--handler", "write", "--threads", "4"),
        ours("sa_proletarian, two processes of 2 threads", 3_000, "--handler", "write", "--threads", "2", processes=2),
        ours("sa_proletarian, AsyncWorker, 10 at once", 2_000, "--handler", "write", "--concurrency", "10"),
        peer("naive ORM loop, 1 thread", "naive.py", OURS, 600, "--handler", "write"),
    ]


def scaled(ways: Sequence[Way], factor: float) -> list[Way]:
    return [replace(way, count=max(50, round(way.count * factor))) for way in ways]


@dataclass(slots=True)
class Drains:
    """Runs drains on one server, and keeps what they cost."""

    postgres: EmbeddedPostgres
    tell: Callable[[str], None]
    costs: dict[str, list[Drain]] = field(default_factory=dict)

    def measured(self, ways: Sequence[Way], ceiling: dict[str, Callable[[], float]], runs: int) -> dict[str, Series]:
        """Every way in turn, ``runs`` times over, each on a database of its own; jobs/s."""
        calls = {way.name: partial(self._once, way) for way in ways} | ceiling
        return interleaved(runs, calls, warm_up=False, tell=self.tell)

    def _once(self, way: Way) -> float:
        with fresh_engine(self.postgres) as engine:
            Effects.metadata.create_all(engine)
            seen = drained(engine, way.commands(text_url(self.postgres.url("bench"))), count=way.count, left=way.left)
        self.costs.setdefault(way.name, []).append(seen)
        return seen.rate

    def trips(self, way: Way) -> float:
        """Round trips for a job, all of a worker's connections taken together."""
        url = self.postgres.url("bench")
        assert url.host is not None and url.port is not None
        with fresh_engine(self.postgres) as engine, counted(url.host, url.port) as trips:
            Effects.metadata.create_all(engine)
            through = text_url(url.set(port=trips.port))
            return drained(engine, way.commands(through), count=way.count, left=way.left, trips=trips).trips

    def pgbench_noop(self, count: int, batch: int = BATCH) -> float:
        """PostgreSQL's own client with our claim and our settle statements, one client, the same batch."""
        transactions = count // batch
        with fresh_engine(self.postgres) as engine:
            Effects.metadata.create_all(engine)
            drain.fill(engine, "noop", count)
            return batch * pgbench(self.postgres, drain.NOOP, transactions=transactions, batch=batch)

    def pgbench_write(self, count: int, clients: int = 4) -> float:
        """PostgreSQL's own client with the statements of a job whose session is used, four clients."""
        with fresh_engine(self.postgres) as engine:
            Effects.metadata.create_all(engine)
            drain.fill(engine, "rows", count, claimed=True)
            return pgbench(self.postgres, drain.ONE, transactions=count // clients, clients=clients, n=-1)


def pgbench(postgres: EmbeddedPostgres, script: str, *, transactions: int, clients: int = 1, **variables: int) -> float:
    """Transactions a second of PostgreSQL's own client with prepared statements, the connecting left out."""
    url = postgres.url("bench")
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [find_programs(postgres.version) / "pgbench", "--no-vacuum", "--protocol=prepared", f"--file={file.name}"]
        command += [f"--client={clients}", f"--jobs={min(clients, 2)}", f"--transactions={transactions}"]
        command += [f"--define={name}={value}" for name, value in variables.items()]
        command += [f"--host={url.host}", f"--port={url.port}", f"--username={url.username}", url.database]
        environment = {**os.environ, "PGPASSWORD": str(url.password)}
        ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    rate = re.search(r"tps = ([0-9.]+) \(without", ran.stdout)
    failed = re.search(r"number of failed transactions: ([1-9])", ran.stdout)
    if ran.returncode or rate is None or failed:
        raise RuntimeError(f"pgbench failed and said:\n{ran.stdout}{ran.stderr}")
    return float(rate[1])


def text_url(url: URL) -> str:
    """The URL as any driver takes it, its password in it: a server of our own, gone after the run."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
