"""What ``schema.check`` says of every kind of drift, and that following its advice ends it."""

# ruff: noqa: N806 (the classes of an app are made in the tests)

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Text,
    create_engine,
    text,
)
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    ConfigurationError,
    Job,
    JobMixin,
    Proletarian,
    clojure,
    database_generated,
    metadata,
    models_for,
    schema,
)
from sa_proletarian.tables import SCHEMA_VERSION

OK = "proletarian_job, proletarian_archived_job, proletarian_worker: schema v2, as this version needs"
DUE = "ix_proletarian_job_due"
NEEDED_DUE = "needs btree (queue, process_at, job_id)"
TWO_JOBS = """INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes)
              SELECT gen_random_uuid(), 'one', 'x', '{}', 0, now(), now(), 0 FROM generate_series(1, 2)"""


def base(**attributes: Any) -> Any:
    return type("Base", (DeclarativeBase,), attributes)


def check(engine, *models):
    with engine.connect() as connection:
        return schema.check(connection, *models)


def whats(result):
    return [problem.what for problem in result.problems]


def execute(engine, statements):
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for statement in statements.split("; "):
            connection.execute(text(statement))


def follow(engine, remedy):
    """Do what a remedy says: SQL, then or instead a call of the operation."""
    sql, _, call = remedy.partition("run ")
    if sql:
        execute(engine, sql.removesuffix("; then "))
    if call:
        with engine.begin() as connection:
            eval(call, {"op": Operations(MigrationContext.configure(connection))})


def test_the_tables_as_the_models_make_them_are_what_is_needed(tables):
    result = check(tables)
    assert result == schema.Check((), OK)
    assert result.ok and result


DUE_IS = f"index {DUE} is"
DROP_DUE = f"DROP INDEX {DUE}; CREATE INDEX {DUE} ON proletarian_job"
ALTER_JOB = "ALTER TABLE proletarian_job"
CK = "ck_proletarian_job_attempts"
CK_INSTANT = "ck_proletarian_job_process_at"
DROP_CK = f"{ALTER_JOB} DROP CONSTRAINT {CK}; {ALTER_JOB} ADD CONSTRAINT {CK} CHECK"
DROP_CK_INSTANT = f"{ALTER_JOB} DROP CONSTRAINT {CK_INSTANT}; {ALTER_JOB} ADD CONSTRAINT {CK_INSTANT} CHECK"
NEEDS_INSTANT = "needs (process_at >= '0001-01-03' AND process_at < '9999-12-30')"

DRIFTS = {
    "CHECK dropped": (f"{ALTER_JOB} DROP CONSTRAINT {CK}", f"CHECK {CK} is missing"),
    "CHECK of another number": (f"{DROP_CK} (attempts >= 1)", f"CHECK {CK} is ((attempts >= 1)), needs (attempts >= 0)"),
    "CHECK of another operator": (f"{DROP_CK} (attempts > 0)", f"CHECK {CK} is ((attempts > 0)), needs (attempts >= 0)"),
    "CHECK of another column": (f"{DROP_CK} (crashes >= 0)", f"CHECK {CK} is ((crashes >= 0)), needs (attempts >= 0)"),
    "CHECK with a way out": (
        f"{DROP_CK} (attempts >= 0 OR crashes > 5)",
        f"CHECK {CK} is (((attempts >= 0) OR (crashes > 5))), needs (attempts >= 0)",
    ),
    "CHECK for this table alone": (
        f"{DROP_CK} (attempts >= 0) NO INHERIT",
        f"CHECK {CK} is ((attempts >= 0)) NO INHERIT, needs (attempts >= 0)",
    ),
    "CHECK not validated": (f"{DROP_CK} (attempts >= 0) NOT VALID", f"CHECK {CK} is not validated"),
    "CHECK of a later date": (
        f"{DROP_CK_INSTANT} (process_at >= '0001-01-05 00:00+00' AND process_at < '9999-12-30 00:00+00')",
        NEEDS_INSTANT,
    ),
    "CHECK of one end": (f"{DROP_CK_INSTANT} (process_at < '9999-12-30 00:00+00')", NEEDS_INSTANT),
    "CHECK with infinity": (
        f"{DROP_CK_INSTANT} (process_at >= '-infinity' AND process_at < '9999-12-30 00:00+00')",
        NEEDS_INSTANT,
    ),
    "index dropped": (f"DROP INDEX {DUE}", f"index {DUE} is missing"),
    "index with a predicate": (
        f"{DROP_DUE} (queue, process_at, job_id) WHERE claim_id IS NULL",
        f"{DUE_IS} btree (queue, process_at, job_id) WHERE (claim_id IS NULL), {NEEDED_DUE}",
    ),
    "index of fewer columns": (f"{DROP_DUE} (queue, process_at)", f"{DUE_IS} btree (queue, process_at), {NEEDED_DUE}"),
    "index in another order": (
        f"{DROP_DUE} (process_at, queue, job_id)",
        f"{DUE_IS} btree (process_at, queue, job_id), {NEEDED_DUE}",
    ),
    "index descending": (
        f"{DROP_DUE} (queue, process_at DESC, job_id)",
        f"{DUE_IS} btree (queue, process_at DESC, job_id), {NEEDED_DUE}",
    ),
    "index with more in it": (
        f"{DROP_DUE} (queue, process_at, job_id) INCLUDE (attempts)",
        f"{DUE_IS} btree (queue, process_at, job_id) INCLUDE (attempts), {NEEDED_DUE}",
    ),
    "index of another kind": (f"{DROP_DUE} USING brin (queue, process_at, job_id)", f"{DUE_IS} brin"),
    "index of another collation": (
        f'{DROP_DUE} (queue COLLATE "C", process_at, job_id)',
        f'{DUE_IS} btree (queue COLLATE "C"',
    ),
    "index unique": (
        f"{DROP_DUE.replace('CREATE', 'CREATE UNIQUE')} (queue, process_at, job_id)",
        f"{DUE_IS} UNIQUE btree (queue, process_at, job_id), {NEEDED_DUE}",
    ),
    "type": (
        f"{ALTER_JOB} ALTER claimed_by TYPE varchar(50)",
        "column claimed_by is character varying(50), needs TEXT",
    ),
    "type's length": (
        f"{ALTER_JOB} ALTER queue TYPE varchar(100)",
        "column queue is character varying(100), needs VARCHAR(200)",
    ),
    "type without a length": (
        f"{ALTER_JOB} ALTER queue TYPE varchar",
        "column queue is character varying, needs VARCHAR(200)",
    ),
    "type's precision": (
        f"{ALTER_JOB} ALTER process_at TYPE timestamptz(3)",
        "column process_at is timestamp(3) with time zone, needs TIMESTAMP WITH TIME ZONE",
    ),
    "type of the payload": (f"{ALTER_JOB} ALTER payload TYPE json", "column payload is json, needs JSONB"),
    "type in another table": (
        "ALTER TABLE proletarian_worker ALTER idle TYPE text",
        "column idle is text, needs BOOLEAN",
    ),
    "NULL accepted": (f"{ALTER_JOB} ALTER payload DROP NOT NULL", "column payload must be NOT NULL"),
    "NULL refused": (f"{ALTER_JOB} ALTER claim_id SET NOT NULL", "column claim_id must accept NULL"),
    "column dropped": (f"{ALTER_JOB} DROP last_error", "column last_error is missing"),
    "column nobody fills": (
        f"{ALTER_JOB} ADD tenant int NOT NULL",
        "column tenant is NOT NULL without a default, and the model does not know it: no row can be inserted",
    ),
    "primary key dropped": (f"{ALTER_JOB} DROP CONSTRAINT proletarian_job_pkey", "PRIMARY KEY (job_id) is missing"),
    "primary key of other columns": (
        (
            "ALTER TABLE proletarian_worker DROP CONSTRAINT proletarian_worker_pkey"
            "; ALTER TABLE proletarian_worker ADD PRIMARY KEY (worker_id, kind)"
        ),
        "has PRIMARY KEY (worker_id, kind), needs PRIMARY KEY (kind, subject, worker_id)",
    ),
    "primary key deferrable": (
        f"{ALTER_JOB} DROP CONSTRAINT proletarian_job_pkey; {ALTER_JOB} ADD PRIMARY KEY (job_id) DEFERRABLE",
        "has PRIMARY KEY (job_id) DEFERRABLE, needs PRIMARY KEY (job_id)",
    ),
    "comment dropped": ("COMMENT ON TABLE proletarian_job IS NULL", "its comment states no version of the schema"),
    "comment of somebody else": (
        "COMMENT ON TABLE proletarian_job IS 'jobs'",
        "its comment states no version of the schema",
    ),
    "comment of the worker table": (
        "COMMENT ON TABLE proletarian_worker IS 'sa_proletarian schema v1'",
        "its comment states v1, that of proletarian_job does not",
    ),
    "archive dropped": ("DROP TABLE proletarian_archived_job", "there is no proletarian_archived_job in database "),
    "worker table dropped": ("DROP TABLE proletarian_worker", "there is no proletarian_worker in database "),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_is_named_and_following_the_advice_ends_it(tables, drift):
    statements, what = DRIFTS[drift]
    execute(tables, statements)
    result = check(tables)
    assert not result.ok and not result
    [problem] = result.problems
    assert what in problem.what
    assert result.message == f"{problem.what}: {problem.remedy}" and "\n" not in result.message
    follow(tables, problem.remedy)
    assert check(tables).message == OK


def test_a_check_that_is_not_enforced_is_drift(tables):
    with tables.connect() as connection:
        if connection.dialect.server_version_info < (18,):
            pytest.skip("PostgreSQL 18 has NOT ENFORCED")
    execute(tables, f"{DROP_CK} (attempts >= 0) NOT ENFORCED")
    [problem] = check(tables).problems
    assert problem.what.endswith(f"CHECK {CK} is ((attempts >= 0)) NOT ENFORCED, needs (attempts >= 0)")
    follow(tables, problem.remedy)
    assert check(tables).ok


def drops(connection):
    """Give a statement for each part of the three tables that drops it, and a word that the problem must hold."""
    for table in (Job.__table__, ArchivedJob.__table__, Job.__worker_table__):
        for column in table.c:
            yield f"ALTER TABLE {table.name} DROP {column.name} CASCADE", f"column {column.name} is missing"
        found = text("SELECT conname FROM pg_constraint WHERE conrelid = CAST(:name AS regclass) AND contype = 'c'")
        for name in connection.scalars(found, {"name": table.name}).all():
            yield f"ALTER TABLE {table.name} DROP CONSTRAINT {name}", f"CHECK {name} is missing"


def test_no_column_and_no_check_can_go_unnoticed(tables):
    with tables.connect() as connection:
        all_drops = list(drops(connection))
        assert len(all_drops) == 12 + 10 + 7 + 5 + 4 + 2
        for statement, what in all_drops:
            part = connection.begin_nested()
            connection.execute(text(statement))
            assert what in schema.check(connection).message
            part.rollback()
        assert schema.check(connection).ok


FAILED_BUILDS = {
    "ours": (f"DROP INDEX {DUE}", DUE, f"proletarian_job: index {DUE} is INVALID"),
    "another": (
        "SELECT 1",
        "ix_left_over",
        "proletarian_job: index ix_left_over is INVALID, as a CREATE INDEX CONCURRENTLY that fails leaves it",
    ),
}


@pytest.mark.parametrize("which", FAILED_BUILDS)
def test_an_index_whose_concurrent_build_failed_is_drift(tables, which):
    before, name, what = FAILED_BUILDS[which]
    execute(tables, f"{TWO_JOBS}; {before}")
    with pytest.raises(DBAPIError, match="could not create unique index"):
        execute(tables, f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON proletarian_job (queue)")
    [problem] = check(tables).problems
    assert problem.what == what
    follow(tables, problem.remedy)
    assert check(tables).ok


TOLERATED = {
    "columns": f"{ALTER_JOB} ADD tenant int; {ALTER_JOB} ADD region text NOT NULL DEFAULT 'eu'",
    "identity": f"{ALTER_JOB} ADD number bigint NOT NULL GENERATED ALWAYS AS IDENTITY",
    "indexes": "CREATE UNIQUE INDEX mine ON proletarian_job (queue, job_id) WHERE attempts > 3",
    "constraints": f"{ALTER_JOB} ADD CONSTRAINT mine CHECK (queue <> 'x'); {ALTER_JOB} ADD UNIQUE (queue, job_id)",
    "storage": f"ALTER INDEX {DUE} SET (fillfactor = 70); {ALTER_JOB} SET (autovacuum_vacuum_scale_factor = 0.01)",
    "a default": f"{ALTER_JOB} ALTER attempts SET DEFAULT 0",
    "a later version": f"COMMENT ON TABLE proletarian_job IS 'sa_proletarian schema v{SCHEMA_VERSION + 1}'",
}


@pytest.mark.parametrize("addition", TOLERATED)
def test_what_is_beyond_the_need_does_not_matter(tables, addition):
    execute(tables, TOLERATED[addition])
    assert check(tables).ok


def test_a_later_version_that_has_what_is_needed_will_do_and_is_mentioned(tables):
    for table in ("proletarian_job", "proletarian_archived_job", "proletarian_worker"):
        execute(tables, f"COMMENT ON TABLE {table} IS 'sa_proletarian schema v7'")
    assert check(tables).message == f"{OK} (the database has v7, which does for it)"
    execute(tables, f"{ALTER_JOB} DROP crashes CASCADE")
    assert not check(tables).ok


@pytest.mark.parametrize("made_in", ["Pacific/Kiritimati", "America/Adak"])
@pytest.mark.parametrize("asked_in", ["UTC", "Pacific/Kiritimati", "America/Adak", "Europe/Berlin"])
def test_time_zones_of_maker_and_asker_make_no_drift(engine, made_in, asked_in):
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL timezone = '{made_in}'"))
        metadata.create_all(connection)
        connection.execute(text(f"SET LOCAL timezone = '{asked_in}'"))
        assert schema.check(connection).message == OK


@pytest.mark.parametrize("style", ["German, DMY", "SQL, MDY", "Postgres, DMY"])
def test_the_style_in_which_a_session_prints_dates_makes_no_drift(tables, style):
    with tables.connect() as connection:
        connection.execute(text(f"SET LOCAL datestyle = '{style}'"))
        connection.execute(text("SET LOCAL timezone = 'Europe/Berlin'"))
        assert schema.check(connection).message == OK


def test_it_only_reads(tables):
    with tables.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        assert schema.check(connection).ok
        assert connection.scalar(text("SELECT pg_current_xact_id_if_assigned()")) is None


# versions -------------------------------------------------------------------------------------------------------------


def make(engine, version, **options):
    with engine.begin() as connection:
        Operations(MigrationContext.configure(connection)).proletarian_migrate(0, version, **options)


INSTANCES = {
    "the default": ({}, ""),
    "a prefix": ({"prefix": "mail_"}, ", prefix='mail_'"),
    "no prefix": ({"prefix": ""}, ", prefix=''"),
    "a schema": ({"schema": "Queues"}, ", schema='Queues'"),
}


@pytest.mark.parametrize("instance", INSTANCES)
def test_from_nothing_and_from_every_version_the_operation_leads_there(engine, instance):
    options, written = INSTANCES[instance]
    jobs = Proletarian(*models_for(MetaData(), **options))
    execute(engine, 'CREATE SCHEMA "Queues"')
    absent = check(engine, jobs)
    assert [problem.remedy for problem in absent.problems] == [f"run op.proletarian_migrate(0, 2{written})"]
    make(engine, 1, **options)
    stale = check(engine, jobs)
    label = ("Queues." if "schema" in options else "") + jobs.job_model.__tablename__
    assert stale.message == (f"{label}: schema v1, this version needs v2: run op.proletarian_migrate(1, 2{written})")
    follow(engine, stale.problems[0].remedy)
    assert check(engine, jobs).ok


def test_tables_of_any_name_are_migrated_by_their_names(engine):
    Base = base()
    ours = type("Task", (JobMixin, Base), {"__tablename__": "task"})
    archived = type("Done", (ArchivedJobMixin, Base), {"__tablename__": "done"})
    for remedy in ("(0, 2, ", "(1, 2, "):
        [problem] = check(engine, ours, archived).problems
        assert problem.remedy == f"run op.proletarian_migrate{remedy}job_table='task', archived_table='done')"
        make(engine, 1, job_table="task", archived_table="done") if "(0" in remedy else follow(engine, problem.remedy)
    assert check(engine, ours, archived).ok


def test_an_archive_of_an_earlier_version_is_brought_on_alone(tables):
    execute(tables, "DROP TABLE proletarian_archived_job")
    make(tables, 1, archived_table="proletarian_archived_job")
    [problem] = check(tables).problems
    assert problem.what == "proletarian_archived_job: schema v1, this version needs v2"
    follow(tables, problem.remedy)
    assert check(tables).ok


def test_tables_of_version_1_without_a_comment_are_found_out_step_by_step(engine):
    make(engine, 1)
    execute(engine, "COMMENT ON TABLE proletarian_job IS NULL; COMMENT ON TABLE proletarian_archived_job IS NULL")
    for problem in check(engine).problems:
        if "COMMENT" in problem.remedy and "run" not in problem.remedy:
            assert problem.remedy.endswith("IS 'sa_proletarian schema v1'")
            follow(engine, problem.remedy)
    [problem] = check(engine).problems
    follow(engine, problem.remedy)
    assert check(engine).ok


# places ---------------------------------------------------------------------------------------------------------------


def test_the_schema_translate_map_of_a_connection_counts(engine):
    tenant = engine.execution_options(schema_translate_map={None: "north"})
    execute(engine, "CREATE SCHEMA north; CREATE SCHEMA south")
    metadata.create_all(tenant)
    assert check(tenant).message.startswith("north.proletarian_job, ")
    other = engine.execution_options(schema_translate_map={None: "south"})
    assert "there is no south.proletarian_job in database " in check(other).message
    assert "but there is north.proletarian_job: name that schema in the models" in check(other).message
    assert "but there is north.proletarian_job" in check(engine).message


def test_the_search_path_decides_where_a_model_names_no_schema(tables):
    execute(tables, "CREATE SCHEMA away")
    with tables.connect() as connection:
        connection.execute(text("SET LOCAL search_path = away"))
        message = schema.check(connection).message
        assert "on the search_path (away), but there is public.proletarian_job: name that schema" in message
        metadata.create_all(connection)
        connection.execute(text("DROP INDEX away.ix_proletarian_job_due"))
        assert schema.check(connection).message.startswith("proletarian_job: index ix_proletarian_job_due is missing")
        connection.execute(text("SET LOCAL search_path = public, away"))
        assert schema.check(connection).ok


def test_a_schema_that_is_not_there_is_said(engine):
    message = check(engine, Proletarian(*models_for(MetaData(), schema="queues"))).message
    assert "which has no schema queues: run op.proletarian_migrate(0, 2, schema='queues')" in message


def test_a_view_is_no_table(tables):
    execute(tables, f"{ALTER_JOB} RENAME TO hidden; CREATE VIEW proletarian_job AS SELECT * FROM hidden")
    assert whats(check(tables)) == ["proletarian_job is not a table, but a view or a foreign table"]


# rights ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(administration, engine):
    """Return an engine of a role that may connect, and has no right to anything."""
    name = f"stranger_{uuid4().hex}"
    execute(administration, f"CREATE ROLE {name} LOGIN")
    stranger = create_engine(engine.url.set(username=name))
    yield stranger
    stranger.dispose()
    execute(engine, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_no_right_to_the_tables_is_needed(tables, stranger):
    with pytest.raises(ProgrammingError, match="permission denied"), stranger.connect() as connection:
        connection.execute(text("SELECT 1 FROM proletarian_job"))
    assert check(stranger).message == OK


@pytest.mark.parametrize("named", [True, False], ids=["a schema in the models", "a schema on the search_path"])
def test_a_schema_that_the_role_may_not_use_is_said(engine, stranger, named):
    execute(engine, "CREATE SCHEMA queues")
    execute(engine, f"ALTER ROLE {stranger.url.username} SET search_path = queues")
    jobs = Proletarian(*models_for(MetaData(), schema="queues"))
    jobs.job_model.metadata.create_all(engine)
    result = check(stranger, *([jobs] if named else []))
    assert "is out of reach: role " in result.message
    execute(engine, result.problems[0].remedy)
    assert check(stranger, *([jobs] if named else [])).ok


def test_a_catalog_that_the_role_may_not_read_is_said(tables, stranger):
    execute(tables, "REVOKE SELECT ON pg_catalog.pg_constraint FROM PUBLIC")
    [problem] = check(stranger).problems
    assert "the catalog cannot be read: " in problem.what
    assert "permission denied for table pg_constraint" in problem.what


# models ---------------------------------------------------------------------------------------------------------------


def app_models():
    Base = base(
        metadata=MetaData(naming_convention={"ck": "check_%(table_name)s_%(constraint_name)s", "ix": "i_%(table_name)s"})
    )

    class Task(JobMixin, Base):
        __tablename__ = "order"
        job_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
        attempts: Mapped[int] = mapped_column(SmallInteger, nullable=False)
        crashes: Mapped[int] = mapped_column(Numeric(10, 0), nullable=False)  # whose CHECK the server writes with a cast
        payload: Mapped[Any] = mapped_column(Text, nullable=False)
        tenant: Mapped[str | None] = mapped_column(String(7))
        job_id_strategy = staticmethod(database_generated)

    class Done(ArchivedJobMixin, Base):
        job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
        payload: Mapped[Any] = mapped_column(Text, nullable=False)

    return Base, Task, Done


APP_DRIFTS = {
    "overridden type": (
        'ALTER TABLE "order" ALTER payload TYPE varchar',
        "order: column payload is character varying, needs TEXT",
    ),
    "identity": (
        'ALTER TABLE "order" ALTER job_id DROP IDENTITY',
        "order: column job_id has no default, and the model leaves",
    ),
    "own column": ('ALTER TABLE "order" DROP tenant', "order: column tenant is missing"),
    "CHECK": ('ALTER TABLE "order" DROP CONSTRAINT ck_order_crashes', "order: CHECK ck_order_crashes is missing"),
    "index": ("DROP INDEX ix_order_due", "order: index ix_order_due is missing"),
}


@pytest.mark.parametrize("drift", APP_DRIFTS)
def test_names_and_types_and_columns_of_an_app_count(engine, drift):
    Base, Task, Done = app_models()
    Base.metadata.create_all(engine)
    assert (
        check(engine, Task, Done).message
        == "order, proletarian_archived_job, order_worker: schema v2, as this version needs"
    )
    statement, what = APP_DRIFTS[drift]
    execute(engine, statement)
    [problem] = check(engine, Proletarian(Task, Done)).problems
    assert problem.what.startswith(what)


def test_columns_that_the_app_declares_otherwise_leave_a_gap_in_the_advice(engine):
    _, Task, Done = app_models()
    [problem] = check(engine, Task, Done).problems
    tables = "job_table='order', archived_table='proletarian_archived_job'"
    assert problem.remedy == f"run op.proletarian_migrate(0, 2, {tables}, job_columns=[...], archived_columns=[...])"


def test_the_type_of_a_column_of_the_apps_own_is_its_own_business(engine):
    Base, Task, Done = app_models()
    Base.metadata.create_all(engine)
    execute(engine, 'ALTER TABLE "order" ALTER tenant TYPE int USING NULL; DROP INDEX IF EXISTS mine')
    assert check(engine, Task, Done).ok


def test_a_condition_of_the_apps_own_under_our_name_is_compared_by_name_only(engine):
    Base = base()
    own = CheckConstraint("attempts IN (0, 1, 2)", name=CK)
    Task = type("Task", (JobMixin, Base), {"__table_args__": (own, {})})
    Done = type("Done", (ArchivedJobMixin, Base), {})
    Base.metadata.create_all(engine)
    assert check(engine, Task, Done).message == OK
    execute(engine, f"{ALTER_JOB} DROP CONSTRAINT {CK}")
    assert whats(check(engine, Task, Done)) == [f"proletarian_job: CHECK {CK} is missing"]


def test_an_index_of_the_apps_own_under_our_name_is_what_is_needed(engine):
    Base = base()
    where = text("claim_id IS NULL AND queue = 'q'")
    own = Index(DUE, "queue", "process_at", unique=True, postgresql_where=where, postgresql_with={"fillfactor": 50})
    Task = type("Task", (JobMixin, Base), {"__table_args__": (own, {})})
    Done = type("Done", (ArchivedJobMixin, Base), {})
    Base.metadata.create_all(engine)
    assert check(engine, Task, Done).message == OK
    execute(engine, f"{DROP_DUE.replace('CREATE', 'CREATE UNIQUE')} (queue, process_at) WHERE claim_id IS NULL")
    [problem] = check(engine, Task, Done).problems
    assert "needs UNIQUE btree (queue, process_at) WHERE claim_id IS NULL AND queue = 'q'" in problem.what
    follow(engine, problem.remedy)
    assert check(engine, Task, Done).message == OK


def test_a_predicate_that_the_server_writes_in_other_words_is_not_compared(engine):
    Base = base()
    own = Index(DUE, "queue", postgresql_where=text("queue IN ('a', 'b')"))
    Task = type("Task", (JobMixin, Base), {"__table_args__": (own, {})})
    Done = type("Done", (ArchivedJobMixin, Base), {})
    Base.metadata.create_all(engine)
    assert check(engine, Task, Done).message == OK
    execute(engine, f"{DROP_DUE} (queue)")
    assert f"{DUE_IS} btree (queue), needs" in check(engine, Task, Done).message


def test_tables_of_another_kind_of_models_are_compared_without_a_version(engine):
    models = clojure.Job, clojure.ArchivedJob
    assert [problem.remedy for problem in check(engine, *models).problems] == ["make these tables"]
    execute(engine, "CREATE SCHEMA proletarian")
    clojure.Job.metadata.create_all(engine)
    assert check(engine, *models).message == "proletarian.job, proletarian.archived_job: as this version needs them"
    execute(engine, "DROP INDEX proletarian.job_queue_process_at; ALTER TABLE proletarian.job ALTER payload TYPE varchar")
    assert whats(check(engine, *models)) == [
        "proletarian.job: column payload is character varying, needs TEXT",
        "proletarian.job: index job_queue_process_at is missing",
    ]
    execute(engine, "DROP TABLE proletarian.archived_job")
    assert check(engine, *models).problems[-1].remedy == "make this table"


def test_tables_of_the_models_are_told_apart_by_instance(tables):
    mail = Proletarian(*models_for(MetaData(), prefix="mail_"))
    assert not check(tables, mail).ok
    assert check(tables).ok


# callers --------------------------------------------------------------------------------------------------------------


async def _checked_async(url):
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(schema.check, Proletarian())
    finally:
        await engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_connection_checks_by_run_sync(tables, driver):
    execute(tables, f"DROP INDEX {DUE}")
    result = asyncio.run(_checked_async(tables.url.set(drivername=f"postgresql+{driver}")))
    assert whats(result) == [f"proletarian_job: index {DUE} is missing"]


def test_psycopg2_will_do(tables):
    engine = create_engine(tables.url.set(drivername="postgresql+psycopg2"))
    assert check(engine).message == OK
    engine.dispose()


def test_another_database_is_refused():
    engine = create_engine("sqlite://")
    with pytest.raises(ConfigurationError, match="not that of sqlite"):
        check(engine)
    engine.dispose()


def test_what_is_no_connection_is_refused_with_a_word_of_help(tables):
    with pytest.raises(TypeError, match="with engine.connect"):
        schema.check(tables)


@pytest.mark.parametrize("models", [(JobMixin,), (Job, 7), (7,), (type("Task", (JobMixin, base()), {}),)])
def test_what_are_no_two_models_is_refused(tables, models):
    with pytest.raises(TypeError, match="a job model and an archive model"):
        check(tables, *models)


def test_a_dead_connection_is_sqlalchemys_own_error(tables):
    with tables.connect() as connection:
        connection.connection.dbapi_connection.close()
        with pytest.raises(DBAPIError):
            schema.check(connection)
