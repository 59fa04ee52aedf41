"""How many jobs a second one worker process drains, beside PostgreSQL's own limit and a naive loop, taken in turn.

    python benchmarks/drain.py [--jobs 20000] [--written 3000] [--runs 5] [--postgresql 18] [--only noop,rows]

It starts a PostgreSQL of its own, which waits for the disk (fsync, synchronous_commit). Two kinds of jobs:

* no-op: a handler that does nothing. `worker` is a Worker as it comes, with one thread; `verbs` are the same claim and
  settle statements in a loop of one thread; `pgbench` is PostgreSQL's own client, which sends the same statements, each
  transaction for as many jobs as the worker has settled in one on average.
* rows: a handler that adds one row to its session. `worker` has four threads; `pgbench` has four clients, which send the
  statements of a job whose session is used, in as many round trips; its jobs are claimed before the clock starts.

`naive` is what one writes first: one ORM transaction for each job, in one thread.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_proletarian import ArchivedJob, Job, Proletarian, Worker, metadata
from sa_proletarian.embedded import EmbeddedPostgres, find_programs
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.outcomes import RETURNED
from sa_proletarian.transactions import SETTLE_LIMITS

SETTINGS = {"fsync": True, "synchronous_commit": True, "full_page_writes": True}
LEASE = timedelta(seconds=30)
FILL = """
INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes, claim_id,
    claimed_by, claimed_until)
SELECT CAST(lpad(to_hex(n), 32, '0') AS uuid), 'default', :job_type, jsonb_build_object('i', n), 0, now(),
    now() - interval '1 hour' + n * interval '1 microsecond', 0, CASE WHEN :claimed THEN :token END,
    CASE WHEN :claimed THEN 'me' END, CASE WHEN :claimed THEN now() + interval '1 hour' END
FROM generate_series(0, :count - 1) AS n
"""
TOKEN = "12345678-1234-5678-1234-567812345678"


class Base(DeclarativeBase):
    pass


class Effect(Base):
    __tablename__ = "effect"

    effect_id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


# the ways ---------------------------------------------------------------------------------------------------------------


def fill(engine: Engine, job_type: str, count: int, *, claimed: bool = False) -> None:
    parameters = {"job_type": job_type, "count": count, "claimed": claimed, "token": TOKEN}
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE proletarian_job, proletarian_archived_job, effect"))
        connection.execute(text(FILL.replace(":token", f"CAST('{TOKEN}' AS uuid)")), parameters)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE proletarian_job, proletarian_archived_job, effect"))
        connection.execute(text("CHECKPOINT"))


def worked(engine: Engine, job_type: str, count: int, threads: int) -> float:
    """Give the seconds from the first call of a handler to the last settling, by the clock that both share."""
    jobs = Proletarian()
    begun: list[float] = []

    @jobs.handler("noop")
    def noop(session: Session, job: Job) -> None:
        if not begun:
            begun.append(time.time())

    @jobs.handler("rows")
    def rows(session: Session, job: Job) -> None:
        if not begun:
            begun.append(time.time())
        session.add(Effect(number=job.payload["i"]))

    with Worker(jobs, engine, threads=threads):
        while True:
            time.sleep(0.05)
            with Session(engine) as session:
                if session.scalar(select(Job.job_id).limit(1)) is None:
                    break
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(ArchivedJob)) == count
        return session.scalar(select(func.max(ArchivedJob.finished_at))).timestamp() - begun[0]


def settled_at_once(engine: Engine) -> float:
    """Give how many jobs were settled in one transaction, on average."""
    with engine.begin() as connection:
        return float(
            connection.scalar(text("SELECT count(*) / count(DISTINCT CAST(xmin AS text)) FROM proletarian_archived_job"))
        )


def verbs(engine: Engine, batch: int) -> float:
    lifecycle = Lifecycle(Job, ArchivedJob)
    begun = time.perf_counter()
    with engine.connect() as connection:
        while True:
            with connection.begin():
                found = lifecycle.candidates(connection, queue="default", known=["noop"], limit=batch, lease=LEASE)
                lifecycle.set_local(connection, synchronous_commit="off")
                claims = lifecycle.take(connection, found, worker_id="me")
            if not claims:
                return time.perf_counter() - begun
            with connection.begin():
                lifecycle.set_local(connection, **SETTLE_LIMITS)
                lifecycle.settle(connection, [(claim, RETURNED) for claim in claims])


def naive(engine: Engine, effect: bool) -> float:
    begun = time.perf_counter()
    due = select(Job).where(Job.queue == "default", Job.process_at <= func.now(), Job.claimed_until.is_(None))
    due = due.order_by(Job.process_at, Job.job_id).limit(1).with_for_update(skip_locked=True)
    while True:
        with Session(engine) as session, session.begin():
            job = session.scalar(due)
            if job is None:
                return time.perf_counter() - begun
            if effect:
                session.add(Effect(number=job.payload["i"]))
            copied = ("job_id", "queue", "job_type", "payload", "attempts", "enqueued_at", "process_at")
            archived = {name: getattr(job, name) for name in copied}
            session.add(ArchivedJob(**archived, status="success", finished_at=func.clock_timestamp()))
            session.delete(job)


# pgbench ----------------------------------------------------------------------------------------------------------------

CLAIM_COLUMNS = "job_id, queue, job_type, payload::text AS payload, attempts, enqueued_at, process_at, crashes, last_error"
ARCHIVED = "job_id, queue, job_type, payload, attempts, enqueued_at, process_at"
NOOP = f"""
BEGIN;
SELECT set_config('synchronous_commit', 'off', true);
SELECT array_agg(job_id) AS ids, array_agg(payload) AS payloads, array_agg(process_at) AS due, count(*) AS found FROM (
 SELECT {CLAIM_COLUMNS}, CASE WHEN claimed_until IS NOT NULL THEN 1 ELSE 0 END AS expired,
  statement_timestamp() + interval '30 s' AS until
 FROM proletarian_job WHERE queue = 'default' AND process_at <= statement_timestamp() AND job_type = ANY ('{{noop}}')
  AND (claimed_until IS NULL OR claimed_until <= statement_timestamp())
 ORDER BY process_at, job_id LIMIT :batch FOR NO KEY UPDATE SKIP LOCKED) AS c \\gset
UPDATE proletarian_job SET claim_id = '{TOKEN}', claimed_by = 'me', claimed_until = now() + interval '30 s',
 attempts = CASE WHEN claimed_until IS NULL THEN least(attempts, 2147483646) + 1 ELSE attempts END,
 crashes = CASE WHEN claimed_until IS NULL THEN crashes ELSE least(crashes, 2147483646) + 1 END
 WHERE job_id = ANY (:ids::uuid[]);
COMMIT;
BEGIN;
SELECT set_config('lock_timeout', '1s', true), set_config('statement_timeout', '30s', true);
WITH fences AS (SELECT * FROM unnest(:ids::uuid[], array_fill('{TOKEN}'::uuid, ARRAY[:found::int])) AS f(job_id, claim_id)),
 gone AS (DELETE FROM proletarian_job USING fences
  WHERE proletarian_job.job_id = fences.job_id AND proletarian_job.claim_id = fences.claim_id
  RETURNING 'success' AS status, NULL::text AS error, clock_timestamp() AS finished_at,
   {", ".join("proletarian_job." + name for name in ARCHIVED.split(", "))}),
 archived AS (INSERT INTO proletarian_archived_job (status, error, finished_at, {ARCHIVED})
  SELECT status, error, finished_at, {ARCHIVED} FROM gone RETURNING job_id)
SELECT job_id FROM fences WHERE job_id NOT IN (SELECT job_id FROM archived);
COMMIT;
"""
ONE = f"""
\\set n :n + 1
\\set i :client_id + 4 * :n
\\startpipeline
BEGIN;
WITH before AS (SELECT current_setting('lock_timeout') AS value, set_config('lock_timeout', '5s', true) AS waiting),
 held AS (SELECT job_id FROM proletarian_job JOIN before ON true
  WHERE job_id = lpad(to_hex(:i::int), 32, '0')::uuid AND claim_id = '{TOKEN}' FOR NO KEY UPDATE OF proletarian_job)
SELECT set_config('lock_timeout', before.value, true), set_config('idle_in_transaction_session_timeout', '0', true),
 current_setting('search_path'), current_setting('role'), pg_backend_pid(), pg_current_xact_id()::text
 FROM held JOIN before ON true;
SAVEPOINT sa_savepoint_1;
\\endpipeline
\\startpipeline
SAVEPOINT sa_savepoint_2;
INSERT INTO effect (number) VALUES (:i::int) RETURNING effect_id;
\\endpipeline
\\startpipeline
RELEASE SAVEPOINT sa_savepoint_2;
SELECT set_config('lock_timeout', '1s', true), set_config('statement_timeout', '30s', true),
 set_config('search_path', '"$user", public', true), set_config('role', 'none', true);
WITH gone AS (DELETE FROM proletarian_job USING unnest(ARRAY[lpad(to_hex(:i::int), 32, '0')::uuid], ARRAY['{TOKEN}'::uuid],
   ARRAY['success'::text], ARRAY[NULL::text]) AS f(job_id, claim_id, status, error)
  WHERE proletarian_job.job_id = f.job_id AND proletarian_job.claim_id = f.claim_id
  RETURNING f.status, f.error, clock_timestamp() AS finished_at,
   {", ".join("proletarian_job." + name for name in ARCHIVED.split(", "))})
 INSERT INTO proletarian_archived_job (status, error, finished_at, {ARCHIVED})
  SELECT status, error, finished_at, {ARCHIVED} FROM gone RETURNING job_id, pg_current_xact_id()::text;
COMMIT;
\\endpipeline
"""


def pgbench(server: EmbeddedPostgres, script: str, transactions: int, *, clients: int = 1, **variables: int) -> float:
    """Give the seconds that pgbench takes for so many transactions of each client, without connecting."""
    url = server.url()
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [find_programs(server.version) / "pgbench", "-n", "-M", "prepared", "-c", clients, "-j", min(clients, 2)]
        command += ["-t", transactions, "-f", file.name, *(f"-D{name}={value}" for name, value in variables.items())]
        command += ["-h", url.query["host"], "-p", url.query.get("port", "5432"), "-U", url.username, url.database]
        ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "processed: " in ran.stdout, ran.stdout + ran.stderr
    rate = re.search(r"tps = ([0-9.]+) \(without", ran.stdout)
    assert rate is not None, ran.stdout
    return transactions * clients / float(rate[1])


# the runs ---------------------------------------------------------------------------------------------------------------


def noop(engine: Engine, server: EmbeddedPostgres, count: int) -> dict[str, float]:
    rates = {}
    fill(engine, "noop", count)
    rates["worker"] = count / worked(engine, "noop", count, 1)
    batch = max(1, round(settled_at_once(engine)))
    rates["(settled at once)"] = batch
    fill(engine, "noop", count)
    rates["verbs"] = count / verbs(engine, batch)
    fill(engine, "noop", count)
    rates["pgbench"] = (count // batch * batch) / pgbench(server, NOOP, count // batch, batch=batch)
    few = max(500, count // 20)
    fill(engine, "noop", few)
    rates["naive"] = few / naive(engine, effect=False)
    return rates


def rows(engine: Engine, server: EmbeddedPostgres, count: int) -> dict[str, float]:
    rates = {}
    fill(engine, "rows", count)
    rates["worker"] = count / worked(engine, "rows", count, 4)
    fill(engine, "rows", count, claimed=True)
    rates["pgbench"] = count / pgbench(server, ONE, count // 4, clients=4, n=-1)
    few = max(300, count // 6)
    fill(engine, "rows", few)
    rates["naive"] = few / naive(engine, effect=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--written", type=int, default=3_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--postgresql", type=int, default=18)
    parser.add_argument("--only", default="noop,rows")
    options = parser.parse_args()
    kinds: dict[str, tuple[Callable[..., dict[str, float]], int]] = {
        "noop": (noop, options.jobs),
        "rows": (rows, options.written),
    }
    with EmbeddedPostgres(options.postgresql, settings=SETTINGS) as server:
        engine = create_engine(server.url())
        metadata.create_all(engine)
        Base.metadata.create_all(engine)
        for kind in options.only.split(","):
            run, count = kinds[kind]
            run(engine, server, count // 4)  # once without counting, for caches and files
            seen = [run(engine, server, count) for _ in range(options.runs)]
            print(f"\n{kind}: {count} jobs, {options.runs} interleaved runs; jobs/s: median (least to most), worker / this")
            for name in seen[0]:
                rates = [one[name] for one in seen]
                ratio = statistics.median(one["worker"] / one[name] for one in seen)
                print(f"{name:20}{statistics.median(rates):9,.0f}  ({min(rates):,.0f} to {max(rates):,.0f})  {ratio:.2f}")
        engine.dispose()


if __name__ == "__main__":
    main()
