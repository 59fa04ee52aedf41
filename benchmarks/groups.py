"""The groups of rows: what each measures, on how much, and which of the goals it answers.

It owns the goals' numbers. How things are measured is in the modules that it calls; how findings are shown is ``report``'s.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import backlog
import enqueues
import memory
import pickups
from chart import Panel
from drains import BATCH, Drains, Way, noop_ways, scaled, write_ways
from measuring import Series, fresh_engine, percentile
from report import Findings, Goal, Grid, Table, at_least, at_most

from sa_proletarian.embedded import EmbeddedPostgres

OURS, OURS_4, NAIVE = "sa_proletarian, 1 thread", "sa_proletarian, 4 threads", "naive ORM loop, 1 thread"
LIMIT, LIMIT_4 = "pgbench, our statements, 1 client", "pgbench, our statements, 4 clients"
PGQUEUER, GRAPHILE = "PGQueuer, tuned", "graphile-worker, tuned"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything; ``scale`` multiplies the jobs of a drain."""

    runs: int
    scale: float
    transactions: int
    bulk: int
    probes: int
    seconds: float
    rows: int
    finished: int
    remembered: int
    chunk: int = memory.CHUNK


QUICK = Size(5, 0.5, 300, 20_000, 150, 0.7, 1_000_000, 100_000, 200_000)
LONG = Size(7, 1.5, 1_000, 50_000, 500, 2.0, 1_000_000, 100_000, 1_000_000)
TINY = Size(1, 0.01, 5, 200, 3, 0.1, 500, 200, 400, chunk=200)
"""For the test that the pieces work; its figures say nothing."""


@dataclass(slots=True)
class Bench:
    """What a group needs, and where it puts what it finds."""

    postgres: EmbeddedPostgres
    size: Size
    findings: Findings
    tell: Callable[[str], None]
    peers: bool = True
    graphile: Path | None = None
    _noop: list[Way] = field(default_factory=list)

    def noop_ways(self) -> list[Way]:
        if not self._noop:
            self._noop = noop_ways(peers=self.peers, graphile=self.graphile, tell=self.tell)
        return self._noop


Group: TypeAlias = Callable[[Bench], None]


def noop(bench: Bench) -> None:
    """Drains of jobs whose handler does nothing."""
    title = "Drain, handler does nothing"
    drains = Drains(bench.postgres, bench.tell)
    count = max(BATCH, round(30_000 * bench.size.scale))
    ways = scaled(bench.noop_ways(), bench.size.scale)
    seen = drains.measured(ways, {LIMIT: lambda: drains.pgbench_noop(count)}, bench.size.runs)
    bench.findings.add(
        tables=[Table(title, "jobs/s", seen, OURS), costs(f"What it costs. {title}", drains)],
        panels=[Panel(f"{title}: jobs a second", seen, ours(seen), [LIMIT])],
        goals=[
            ratio("floor: drain, no-op", seen, OURS, PGQUEUER, 1.5),
            ratio("floor: drain, no-op", seen, OURS, GRAPHILE, 0.8),
            ratio("drain, no-op", seen, OURS, GRAPHILE, 1.5),
            ratio("drain, no-op", seen, OURS, PGQUEUER, 3.0),
            ratio("drain, no-op", seen, OURS, LIMIT, 0.6),
        ],
    )


def write(bench: Bench) -> None:
    """Drains of jobs whose handler writes one row by its session."""
    title = "Drain, handler writes one row by its session"
    drains = Drains(bench.postgres, bench.tell)
    count = max(40, round(1_000 * bench.size.scale) * 4)
    ways = scaled(write_ways(), bench.size.scale)
    seen = drains.measured(ways, {LIMIT_4: lambda: drains.pgbench_write(count)}, bench.size.runs)
    bench.findings.add(
        tables=[Table(title, "jobs/s", seen, OURS_4), costs(f"What it costs. {title}", drains)],
        panels=[Panel(f"{title}: jobs a second", seen, ours(seen), [LIMIT_4])],
        goals=[
            ratio("drain, one row written, 4 threads", seen, OURS_4, NAIVE, 3.0),
            ratio("drain, one row written, 4 threads", seen, OURS_4, LIMIT_4, 0.6),
        ],
    )


def enqueue(bench: Bench) -> None:
    """Enqueues, one in a transaction and many."""
    plain, one, add_all, many = enqueues.PLAIN, enqueues.ONE, enqueues.ADD_ALL, enqueues.MANY
    with fresh_engine(bench.postgres) as engine:
        single = enqueues.one_each(engine, transactions=bench.size.transactions, runs=bench.size.runs)
        bulk = enqueues.in_bulk(engine, count=bench.size.bulk, runs=bench.size.runs)
    bench.findings.add(
        tables=[
            Table("Enqueue, one in a transaction, wake-ups off", "transactions/s", single, plain),
            Table(f"Enqueue, {bench.size.bulk:,} in one transaction", "jobs/s", bulk, add_all),
        ],
        goals=[
            at_most(
                "enqueue in a session, wake-ups off: time, of session.add of a plain model",
                1.1,
                single[plain].over(single[one]),
            ),
            at_least("enqueue_many × add_all (50,000/s where that does 13,000)", 50 / 13, bulk[many].over(bulk[add_all])),
        ],
    )


def pickup(bench: Bench) -> None:
    """Latencies from enqueue to handler, and what wake-ups cost those who enqueue."""
    seen = {
        "idle worker": pickups.latencies(bench.postgres, jobs=bench.size.probes),
        "200 other jobs a second": pickups.latencies(bench.postgres, jobs=bench.size.probes, load=200),
    }
    busy = pickups.while_busy(bench.postgres, seconds=bench.size.seconds, runs=max(bench.size.runs, bench.size.runs * 2 - 1))
    statements = pickups.statements_each(bench.postgres)
    off, on = busy
    rows = {name: [percentile(values, percent) for percent in (50, 95, 99)] for name, values in seen.items()}
    p50, _, p99 = rows["idle worker"]
    bench.findings.add(
        tables=[
            Grid("Pick-up, from calling enqueue to the handler's first line", ["p50, ms", "p95, ms", "p99, ms"], rows),
            Table("Concurrent enqueues, 4 threads, worker busy", "transactions/s", busy, off),
        ],
        goals=[
            at_most("pick-up, idle worker, p50", 3, p50, "ms"),
            at_most("pick-up, idle worker, p99", 10, p99, "ms"),
            at_most("statements more in a transaction, wake-ups on", 1, statements[on] - statements[off], "statements"),
            at_least("concurrent enqueues, worker busy: wake-ups on × off", 0.92, busy[on].over(busy[off])),
        ],
    )


def claims(bench: Bench) -> None:
    """Claims against backlogs, and beside a held snapshot."""
    size = bench.size
    seen = backlog.claims_by_backlog(bench.postgres, rows=size.rows, runs=size.runs)
    small, _, due, future = seen
    pairs = [backlog.beside_a_snapshot(bench.postgres, finished=size.finished) for _ in range(min(size.runs, 3))]
    before, after = (Series(tuple(values)) for values in zip(*pairs, strict=True))
    snapshot = {"before": before, f"after {size.finished:,} jobs": after}
    bench.findings.add(
        tables=[
            Table("Claims of ten jobs against the backlog", "p50, ms", seen, small),
            Table("Claims of a trickle, beside a held snapshot", "p50, ms", snapshot, "before"),
        ],
        goals=[
            at_most(f"claim p50, {due}, of that with {small}", 1.5, seen[due].over(seen[small])),
            at_most(f"claim p50, {future}, of that with {small}", 1.5, seen[future].over(seen[small])),
            at_most(f"claim p50 after {size.finished:,} jobs beside a held snapshot, of that before", 2, after.over(before)),
        ],
    )


def remembered(bench: Bench) -> None:
    """Resident memory of a worker over many jobs."""
    size = bench.size
    seen = memory.resident(bench.postgres, jobs=size.remembered, chunk=size.chunk)
    rows = {"sa_proletarian, 1 thread": [seen[0], seen[-1], max(seen)]}
    columns = [f"MiB after {size.chunk:,} jobs", f"after {size.chunk * len(seen):,}", "most"]
    bench.findings.add(
        tables=[Grid("Resident memory of a worker", columns, rows)],
        goals=[at_most(f"growth of memory over {size.chunk * len(seen):,} jobs", 5, memory.growth(seen), "%")],
    )


def trips(bench: Bench) -> None:
    """Round trips for a job, counted by a proxy."""
    drains = Drains(bench.postgres, bench.tell)
    kinds = {"handler does nothing": bench.noop_ways(), "handler writes one row": write_ways()}
    rows: dict[str, list[float | None]] = {}
    for place, ways in enumerate(kinds.values()):
        for way in scaled(ways, min(bench.size.scale, 0.3)):
            rows.setdefault(way.name, [None, None])[place] = drains.trips(way)
    bench.findings.add(tables=[Grid("Round trips for a job, counted", list(kinds), rows)])


GROUPS: Mapping[str, Group] = {
    "noop": noop,
    "write": write,
    "enqueue": enqueue,
    "pickup": pickup,
    "claims": claims,
    "memory": remembered,
    "trips": trips,
}


def ratio(what: str, seen: Mapping[str, Series], ours: str, theirs: str, asked: float) -> Goal:
    what = f"{what}: × {theirs}"
    if theirs not in seen:
        return Goal(what, f"≥ {asked:g} ×", "", None)
    return at_least(what, asked, seen[ours].over(seen[theirs]))


def ours(seen: Mapping[str, Series]) -> list[str]:
    return [name for name in seen if name.startswith("sa_proletarian")]


def costs(title: str, drains: Drains) -> Grid:
    """Medians over the runs of what drains cost."""
    columns = ["its µs/job", "PostgreSQL's µs/job", "WAL bytes/job"]
    rows = {
        name: [
            statistics.median(one.client * 1000 for one in seen),
            statistics.median(one.server * 1000 for one in seen),
            statistics.median(one.wal for one in seen),
        ]
        for name, seen in drains.costs.items()
    }
    return Grid(title, columns, rows)
