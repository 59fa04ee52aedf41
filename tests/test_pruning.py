"""Pruning: what goes and what stays, in batches that get out of everybody's way."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import MetaData, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from sa_proletarian import ArchivedJob, Proletarian, Retry, Status, models_for, pruning
from sa_proletarian.dialects import sqlstate

DAY = timedelta(days=1)
ARCHIVE = """
    INSERT INTO {table} (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, status, finished_at)
    SELECT gen_random_uuid(), :queue, 'work', '{{"n": 1}}', 1, now(), now(), :status,
           now() - :age - n * interval '1 microsecond'
      FROM generate_series(1, :count) AS n
"""


@pytest.fixture
def archive(tables):
    """Return a function that writes rows that ended so long ago into an archive."""

    def archive(count, age, queue="default", status="success", table="proletarian_archived_job"):
        with tables.begin() as connection:
            given = {"count": count, "age": age, "queue": queue, "status": status}
            connection.execute(text(ARCHIVE.format(table=table)), given)

    return archive


@pytest.fixture
def left(rows):
    """Return a function that counts what is left in an archive, by queue and status."""
    return lambda table="proletarian_archived_job": rows(
        f"SELECT queue, status, count(*) FROM {table} GROUP BY 1, 2 ORDER BY 1, 2"
    )


def test_old_rows_go_and_young_ones_stay(tables, jobs, archive, left):
    archive(3000, 15 * DAY)
    archive(2000, 13 * DAY)
    archive(500, 15 * DAY, status="failure")
    assert jobs.prune(tables, older_than=14 * DAY) == 3500
    assert left() == [("default", "success", 2000)]
    assert jobs.prune(tables, older_than=14 * DAY) == 0


def test_the_databases_clock_says_what_is_old(tables, archive, left):
    jobs = Proletarian(clock=lambda: datetime(2300, 1, 1, tzinfo=UTC))
    archive(10, 13 * DAY)
    assert jobs.prune(tables, older_than=14 * DAY) == 0
    assert jobs.prune(tables, older_than=timedelta(0)) == 10


def test_nothing_is_older_than_for_ever(tables, jobs, archive):
    archive(10, 1000 * DAY)
    assert jobs.prune(tables, older_than=timedelta.max) == 0


def test_only_a_queue_and_only_a_status(tables, jobs, archive, left):
    for queue in ("mail", "default"):
        for status in Status:
            archive(10, 15 * DAY, queue, status)
    assert jobs.prune(tables, older_than=14 * DAY, queue="mail", status="success") == 10
    assert jobs.prune(tables, older_than=14 * DAY, status=Status.CRASHED) == 20
    assert jobs.prune(tables, older_than=14 * DAY, queue="mail") == 20
    assert left() == [("default", "cancelled", 10), ("default", "failure", 10), ("default", "success", 10)]


def test_a_dry_run_counts_and_deletes_nothing(tables, jobs, archive, left):
    archive(2500, 15 * DAY)
    archive(10, DAY)
    assert jobs.prune(tables, older_than=14 * DAY, dry_run=True) == 2500
    assert left() == [("default", "success", 2510)]


def test_each_batch_is_a_transaction_and_progress_says_how_far_it_is(tables, jobs, archive, left):
    archive(20_000, 15 * DAY)
    said = []
    visible = []

    def progress(rows, share):
        said.append((rows, share))
        visible.append(20_000 - sum(count for *_, count in left()))

    assert jobs.prune(tables, older_than=14 * DAY, progress=progress) == 20_000
    assert len(said) > 2 and said == sorted(said)
    assert said[-1] == (20_000, 1.0)
    assert visible == [rows for rows, _ in said]


def test_a_batch_reads_its_own_blocks_and_no_others(tables, archive):
    archive(20_000, 15 * DAY)
    verbs = pruning.Pruning(ArchivedJob)
    plans = []

    @event.listens_for(tables, "before_cursor_execute", retval=True)
    def explain(connection, cursor, statement, parameters, context, executemany):
        if statement.startswith("DELETE"):
            cursor.execute(f"EXPLAIN {statement}", parameters)
            plans.append("".join(line for (line,) in cursor.fetchall()))
        return statement, parameters

    with tables.begin() as connection:
        before = verbs.cutoff(connection, DAY)
        assert verbs.blocks(connection) > 100
        assert 0 < verbs.prune(connection, before, 0, 8) < 1000
    assert len(plans) == 1 and "Tid Range Scan" in plans[0]


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg", "psycopg_async"])
def test_any_driver_prunes(tables, jobs, archive, driver):
    archive(2000, 15 * DAY)
    url = tables.url.set(drivername=f"postgresql+{driver}")
    if driver == "psycopg2":
        engine = create_engine(url)
        assert jobs.prune(engine, older_than=14 * DAY) == 2000
        engine.dispose()
        return

    async def prune():
        engine = create_async_engine(url)
        try:
            return await asyncio.to_thread(jobs.prune, engine, older_than=14 * DAY)
        finally:
            await engine.dispose()

    assert asyncio.run(prune()) == 2000


def test_models_of_another_name_and_a_translated_schema(tables, archive, rows, left):
    rows('CREATE SCHEMA "Tenant 7"')
    models = models_for(MetaData(), prefix="mail_", schema="tenant")
    engine = tables.execution_options(schema_translate_map={"tenant": "Tenant 7"})
    models[0].metadata.create_all(engine)
    archive(50, 15 * DAY, table='"Tenant 7".mail_archived_job')
    archive(50, 15 * DAY)
    assert Proletarian(*models).prune(engine, older_than=14 * DAY) == 50
    assert (left(), left('"Tenant 7".mail_archived_job')) == ([("default", "success", 50)], [])


def test_jobs_go_on_while_the_archive_is_pruned(tables, jobs, archive, start_worker, recorder, rows):
    archive(30_000, 15 * DAY)
    jobs.handler("work", retry=Retry(3))(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('done')")))
    with tables.begin() as connection:
        jobs.enqueue_many(connection, [("work", n) for n in range(300)])
    start_worker(jobs, threads=2)
    assert jobs.prune(tables, older_than=14 * DAY) == 30_000
    recorder.wait_for("job_finished", 300)
    assert rows("SELECT count(*), count(DISTINCT job_id) FROM proletarian_archived_job") == [(300, 300)]
    assert rows("SELECT count(*) FROM effect") == [(300,)]
    assert not {"job_worker_error", "handle_job_exception", "job_parked"} & {*recorder.names}


def test_two_who_prune_at_once_delete_each_row_once(tables, jobs, archive, left):
    archive(20_000, 15 * DAY)
    archive(10, DAY)
    counts = []
    threads = [threading.Thread(target=lambda: counts.append(jobs.prune(tables, older_than=14 * DAY))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 20_000
    assert left() == [("default", "success", 10)]


def test_a_row_that_somebody_holds_is_waited_for_a_moment_only(tables, jobs, archive, monkeypatch):
    archive(100, 15 * DAY)
    monkeypatch.setitem(pruning.LIMITS, "lock_timeout", "20ms")
    with tables.begin() as holder:
        holder.execute(text("SELECT FROM proletarian_archived_job LIMIT 1 FOR UPDATE"))
        with pytest.raises(DBAPIError) as refusal:
            jobs.prune(tables, older_than=14 * DAY)
    assert sqlstate(refusal.value) == "55P03"
    assert jobs.prune(tables, older_than=14 * DAY) == 100


def test_a_batch_that_had_to_wait_is_tried_again(tables, jobs, archive, monkeypatch):
    archive(100, 15 * DAY)
    monkeypatch.setitem(pruning.LIMITS, "lock_timeout", "20ms")
    holder = tables.connect()
    holder.execute(text("SELECT FROM proletarian_archived_job LIMIT 1 FOR UPDATE"))

    @event.listens_for(tables, "handle_error")
    def let_go(context):
        holder.rollback()

    assert jobs.prune(tables, older_than=14 * DAY) == 100
    holder.close()


def test_what_the_app_still_refers_to_is_refused_without_quoting_a_row(tables, jobs, archive, rows, left):
    archive(1, 15 * DAY)
    rows("CREATE TABLE report (id uuid REFERENCES proletarian_archived_job)")
    rows("INSERT INTO report SELECT job_id FROM proletarian_archived_job")
    with pytest.raises(IntegrityError) as refusal:
        jobs.prune(tables, older_than=14 * DAY)
    assert "DETAIL" not in str(refusal.value)
    assert left() == [("default", "success", 1)]


def test_an_empty_archive_is_pruned_at_once(tables, jobs):
    assert jobs.prune(tables, older_than=DAY) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"older_than": 14}, "older_than must be a timedelta"),
        ({"older_than": -DAY}, "older_than must be at least"),
        ({"older_than": DAY, "queue": 7}, "queue must be a text"),
        ({"older_than": DAY, "queue": "a b"}, "queue must be 1 to 200"),
        ({"older_than": DAY, "status": "done"}, "status must be one of success, failure, cancelled, crashed, got 'done'"),
        ({"older_than": DAY, "status": 7}, "status must be a text"),
        ({"older_than": DAY, "progress": 7}, "progress must be callable"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_deleted(tables, jobs, archive, left, arguments, error):
    archive(1, 15 * DAY)
    with pytest.raises((TypeError, ValueError), match=error):
        jobs.prune(tables, **arguments)
    assert left() == [("default", "success", 1)]
