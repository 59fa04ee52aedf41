"""The archive in months: the models do not notice, and old months go as a whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import MetaData, create_engine, event, text
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, ConfigurationError, Outcome, Proletarian, models_for, partitions, schema
from sa_proletarian.grants import grants

DAY = timedelta(days=1)
ROW = """
    INSERT INTO proletarian_archived_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, status,
                                          finished_at)
    VALUES (gen_random_uuid(), 'default', 'work', '1', 1, now(), now(), 'success', :at)
"""
WHERE = "SELECT CAST(CAST(tableoid AS regclass) AS text), count(*) FROM proletarian_archived_job GROUP BY 1 ORDER BY 1"
TABLES = """
    SELECT CAST(relname AS text) FROM pg_class
     WHERE relname LIKE 'proletarian_archived_job%' AND relkind IN ('r', 'p') ORDER BY 1
"""


def month(ahead, day=1):
    """Give a day of the month that is so many months ahead of this one."""
    now = datetime.now(UTC)
    number = now.year * 12 + now.month - 1 + ahead
    return datetime(number // 12, number % 12 + 1, day, tzinfo=UTC)


def name(ahead, prefix=""):
    return f"proletarian_archived_job_{prefix}{month(ahead):%Y_%m}"


@pytest.fixture
def archived(rows):
    """Return a function that writes a row that ended on a day of some month into the archive."""
    return lambda *months: [rows(ROW, at=month(ahead, 5)) for ahead in months]


@pytest.fixture
def split(tables, rows, archived):
    """Return an engine on tables whose archive has been split, with two rows in it already."""
    archived(-2, -1)
    with tables.begin() as connection:
        partitions.split(connection, months=2)
    return tables


def work(jobs, engine, **options):
    if jobs.registration("work") is None:
        jobs.handler("work")(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('done')")))
    with Session(engine) as session, session.begin():
        job_id = jobs.enqueue(session, "work", **options).job_id
    return job_id, jobs.process_next(engine)


def test_what_was_there_is_the_first_partition_and_months_are_ready(split, rows):
    beginning = name(1, "before_")
    assert [table for (table,) in rows(TABLES)] == sorted(
        ["proletarian_archived_job", name(1), name(2), beginning, "proletarian_archived_job_default"]
    )
    assert rows(WHERE) == [(beginning, 2)]


def test_jobs_are_archived_read_and_requeued_as_before(split, jobs, rows):
    job_id, outcome = work(jobs, split)
    assert outcome is Outcome.RETURNED
    with Session(split) as session, session.begin():
        archived = session.get(ArchivedJob, job_id)
        assert archived.status == "success"
        jobs.requeue(session, archived)
    assert jobs.process_next(split) is Outcome.RETURNED
    assert rows("SELECT count(*) FROM effect") == [(2,)]
    assert rows(WHERE) == [(name(1, "before_"), 4)]


def test_a_worker_settles_many_at_once_into_it(split, jobs, start_worker, recorder, rows):
    jobs.handler("idle")(lambda session, job: None)
    with split.begin() as connection:
        jobs.enqueue_many(connection, [("idle", n) for n in range(200)])
    start_worker(jobs, threads=2)
    recorder.wait_for("job_finished", 200)
    assert rows(WHERE) == [(name(1, "before_"), 202)]


def test_check_takes_it_for_what_it_is(split):
    with split.connect() as connection:
        assert schema.check(connection).ok
        connection.execute(text("ALTER TABLE proletarian_archived_job DROP CONSTRAINT proletarian_archived_job_pkey"))
        assert "PRIMARY KEY (job_id) is missing" in schema.check(connection).message


def test_a_plain_archive_with_the_key_of_a_partitioned_one_is_drift(tables, rows):
    rows("ALTER TABLE proletarian_archived_job DROP CONSTRAINT proletarian_archived_job_pkey")
    rows("ALTER TABLE proletarian_archived_job ADD PRIMARY KEY (job_id, finished_at)")
    with tables.connect() as connection:
        assert "has PRIMARY KEY (job_id, finished_at), needs PRIMARY KEY (job_id)" in schema.check(connection).message


def test_a_job_whose_id_is_archived_already_is_archived_beside_it_and_comes_to_an_end(split, jobs, rows):
    """A plain archive refuses the second and the job is parked; here no key can hold it back."""
    job_id = uuid4()
    assert work(jobs, split, job_id=job_id) == (job_id, Outcome.RETURNED)
    assert work(jobs, split, job_id=job_id) == (job_id, Outcome.RETURNED)
    assert rows("SELECT count(*) FROM proletarian_archived_job WHERE job_id = :id", id=job_id) == [(2,)]
    assert rows("SELECT count(*) FROM proletarian_job") == [(0,)]


def test_months_are_made_once_and_take_over_what_is_in_the_default_partition(split, rows, archived):
    archived(2, 3, 4, 9)
    assert rows(WHERE)[-1] == ("proletarian_archived_job_default", 3)
    with split.begin() as connection:
        assert partitions.make(connection, months=2) == []
        assert partitions.make(connection, months=4) == [name(3), name(4)]
        assert partitions.make(connection, months=4) == []
    assert dict(rows(WHERE)) == {
        name(1, "before_"): 2,
        name(2): 1,
        name(3): 1,
        name(4): 1,
        "proletarian_archived_job_default": 1,
    }


def test_old_months_are_dropped_as_a_whole(split, rows, archived):
    archived(0, 1, 2)
    with split.begin() as connection:
        assert partitions.drop(connection, older_than=timedelta(0)) == []
        connection.execute(text(f"ALTER TABLE proletarian_archived_job DETACH PARTITION {name(1, 'before_')}"))
        bounds = f"FROM (MINVALUE) TO ('{month(-1)}')"
        old = f"CREATE TABLE old PARTITION OF proletarian_archived_job FOR VALUES {bounds}"
        connection.execute(text(old.replace(":", r"\:")))
    archived(-2, -3)
    with split.begin() as connection:
        assert partitions.drop(connection, older_than=365 * DAY) == []
        assert partitions.drop(connection, older_than=timedelta(0)) == ["old"]
    assert dict(rows(WHERE)) == {name(1): 1, name(2): 1}


def test_a_part_of_a_month_is_pruned_from_it(split, jobs, rows, archived):
    archived(0, 1)
    assert jobs.prune(split, older_than=timedelta(0), dry_run=True) >= 2
    assert jobs.prune(split, older_than=datetime.now(UTC) - month(0)) == 2
    assert dict(rows(WHERE)) == {name(1, "before_"): 1, name(1): 1}


def test_roles_keep_their_rights(tables, administration, jobs, rows):
    role = f"worker_{tables.url.database}"
    rows(f"CREATE ROLE {role} LOGIN")
    for statement in (*grants("worker", to=role).statements(), f"GRANT INSERT ON effect TO {role}"):
        rows(statement)
    rows("GRANT SELECT ON proletarian_archived_job TO PUBLIC")
    engine = create_engine(tables.url.set(username=role))
    try:
        with tables.begin() as connection:
            partitions.split(connection)
        jobs.handler("work")(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('done')")))
        with Session(tables) as session, session.begin():
            jobs.enqueue(session, "work")
        assert jobs.process_next(engine) is Outcome.RETURNED
        assert rows("SELECT has_table_privilege('pg_monitor', 'proletarian_archived_job', 'SELECT')") == [(True,)]
    finally:
        engine.dispose()
        rows(f"DROP OWNED BY {role}")
        rows(f"DROP ROLE {role}")


def test_the_apps_own_columns_indexes_and_foreign_keys_stay(tables, rows):
    rows("CREATE TABLE tenant (id int PRIMARY KEY)")
    rows("ALTER TABLE proletarian_archived_job ADD COLUMN tenant_id int DEFAULT 7 REFERENCES tenant")
    rows("CREATE INDEX by_tenant ON proletarian_archived_job (tenant_id) WHERE queue <> 'a:b' AND job_type LIKE 'x%'")
    rows("INSERT INTO tenant VALUES (7)")
    with tables.begin() as connection:
        partitions.split(connection)
    rows(ROW, at=month(1, 3))
    assert rows("SELECT tenant_id FROM proletarian_archived_job") == [(7,)]
    [(definition,)] = rows("SELECT indexdef FROM pg_indexes WHERE indexname = 'by_tenant'")
    assert "ON ONLY public.proletarian_archived_job " in definition and "'a:b'" in definition and "x%" in definition
    [(key,)] = rows(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = CAST('proletarian_archived_job' AS regclass) AND contype = 'f'"
    )
    assert key == "FOREIGN KEY (tenant_id) REFERENCES tenant(id)"


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_another_schema_another_name_and_another_time_zone(tables, rows, driver):
    rows('CREATE SCHEMA "Tenant 7"')
    models = models_for(MetaData(), prefix="mail_", schema="tenant")
    engine = create_engine(
        tables.url.set(drivername=f"postgresql+{driver}"), execution_options={"schema_translate_map": {"tenant": "Tenant 7"}}
    )

    @event.listens_for(engine, "connect")
    def set_time_zone(connection, record):
        connection.cursor().execute("SET TimeZone = 'Pacific/Auckland'")
        connection.commit()

    models[0].metadata.create_all(engine)
    with engine.begin() as connection:
        partitions.split(connection, "mail_archived_job", schema="tenant", months=1)
        assert partitions.make(connection, "mail_archived_job", schema="tenant", months=2) == [
            f"mail_archived_job_{month(2):%Y_%m}"
        ]
    with engine.connect() as connection:
        assert schema.check(connection, *models).ok
    jobs = Proletarian(*models)
    jobs.handler("work")(lambda session, job: None)
    with Session(engine) as session, session.begin():
        jobs.enqueue(session, "work")
    assert jobs.process_next(engine) is Outcome.RETURNED
    assert rows(f'SELECT count(*) FROM "Tenant 7".mail_archived_job_before_{month(1):%Y_%m}') == [(1,)]
    assert jobs.prune(engine, older_than=timedelta(0)) == 1
    engine.dispose()


def test_what_cannot_be_split_is_said(split, database_url):
    with split.connect() as connection:
        with pytest.raises(ConfigurationError, match="is it partitioned already"):
            partitions.split(connection)
        with pytest.raises(ValueError, match="longer than 63 bytes"):
            partitions._Archive(connection, "j" * 60, None).beside("2026_01")
        with pytest.raises(ValueError, match="months must be at least 0"):
            partitions.make(connection, months=-1)
        with pytest.raises(TypeError, match="older_than must be a timedelta"):
            partitions.drop(connection, older_than=90)
    with pytest.raises(TypeError, match="expected a Connection, got a Engine"):
        partitions.make(split)
