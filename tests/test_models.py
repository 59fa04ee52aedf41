"""The models: tables as the app wants them with what must be in them, and a constructor that refuses before any SQL."""

# ruff: noqa: N806 (the classes of an app are made in the tests)

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy
from sqlalchemy import (
    BLANK_SCHEMA,
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    inspect,
    text,
)
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, declared_attr, mapped_column, relationship, sessionmaker

from sa_proletarian import ArchivedJob, ArchivedJobMixin, Job, JobMixin, Outcome, Proletarian, database_generated, uuid7

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CHECKS = {"attempts", "crashes", "enqueued_at", "process_at", "claimed_until"}
ARCHIVED_CHECKS = {"attempts", "enqueued_at", "process_at", "finished_at"}
WORKER_CHECKS = {"started_at", "last_seen_at"}
WORKER_KEY = ["kind", "subject", "worker_id"]


def base(**attributes: Any) -> Any:
    """Make an app's declarative base."""
    return type("Base", (DeclarativeBase,), attributes)


def columns(engine, table, schema=None):
    found = inspect(engine).get_columns(table, schema=schema)
    return {column["name"]: f"{column['type']!r}{'' if column['nullable'] else ' NOT NULL'}" for column in found}


def checks(engine, table, schema=None):
    return {check["name"] for check in inspect(engine).get_check_constraints(table, schema=schema)}


def indexes(engine, table, schema=None):
    return {index["name"]: index["column_names"] for index in inspect(engine).get_indexes(table, schema=schema)}


def assert_complete(engine, job="proletarian_job", archived="proletarian_archived_job", schema=None, worker=None):
    """Assert that index, CHECKs, primary keys and the schema's version are in the database."""
    assert indexes(engine, job, schema)[f"ix_{job}_due"] == ["queue", "process_at", "job_id"]
    assert checks(engine, job, schema) >= {f"ck_{job}_{name}" for name in CHECKS}
    assert checks(engine, archived, schema) >= {f"ck_{archived}_{name}" for name in ARCHIVED_CHECKS}
    worker = worker or ("proletarian_worker" if job == "proletarian_job" else f"{job}_worker")
    assert checks(engine, worker, schema) == {f"ck_{worker}_{name}" for name in WORKER_CHECKS}
    for table, key in {job: ["job_id"], archived: ["job_id"], worker: WORKER_KEY}.items():
        assert inspect(engine).get_pk_constraint(table, schema=schema)["constrained_columns"] == key


def run_one(engine, job_model, archived_model, payload=None, **options):
    """Enqueue a job, run it, and give its archived row."""
    jobs = Proletarian(job_model, archived_model)
    seen = []
    jobs.handler("work")(lambda session, job: seen.append(job))
    with Session(engine) as session, session.begin():
        jobs.enqueue(session, "work", payload, **options)
    assert jobs.process_next(engine) is Outcome.RETURNED
    [job] = seen
    with Session(engine) as session:
        archived = session.get_one(archived_model, job.job_id)
        assert session.query(job_model).count() == 0
        session.expunge(archived)
    return job, archived


# The default tables


def test_the_job_table_has_proletarians_columns_then_those_of_the_claim(tables):
    instant = "TIMESTAMP(timezone=True)"
    assert list(columns(tables, "proletarian_job").items()) == [
        ("job_id", "UUID() NOT NULL"),
        ("queue", "VARCHAR(length=200) NOT NULL"),
        ("job_type", "VARCHAR(length=200) NOT NULL"),
        ("payload", "JSONB(astext_type=Text()) NOT NULL"),
        ("attempts", "INTEGER() NOT NULL"),
        ("enqueued_at", f"{instant} NOT NULL"),
        ("process_at", f"{instant} NOT NULL"),
        ("claim_id", "UUID()"),
        ("claimed_by", "TEXT()"),
        ("claimed_until", instant),
        ("crashes", "INTEGER() NOT NULL"),
        ("last_error", "TEXT()"),
    ]


def test_the_archive_has_the_shared_columns_then_how_when_and_why_it_ended(tables):
    assert list(columns(tables, "proletarian_archived_job").items())[7:] == [
        ("status", "VARCHAR(length=20) NOT NULL"),
        ("finished_at", "TIMESTAMP(timezone=True) NOT NULL"),
        ("error", "TEXT()"),
    ]
    shared = list(columns(tables, "proletarian_job").items())[:7]
    assert list(columns(tables, "proletarian_archived_job").items())[:7] == shared


def test_the_default_tables_are_complete_and_say_their_version(tables):
    assert_complete(tables)
    for table in ("proletarian_job", "proletarian_archived_job", "proletarian_worker"):
        assert inspect(tables).get_table_comment(table) == {"text": "sa_proletarian schema v2"}


def test_the_worker_table_says_of_whom_about_what_and_since_when(tables):
    instant = "TIMESTAMP(timezone=True)"
    assert list(columns(tables, "proletarian_worker").items()) == [
        ("kind", "VARCHAR(length=20) NOT NULL"),
        ("subject", "VARCHAR(length=200) NOT NULL"),
        ("worker_id", "VARCHAR(length=200) NOT NULL"),
        ("idle", "BOOLEAN() NOT NULL"),
        ("detail", "JSONB(astext_type=Text())"),
        ("started_at", f"{instant} NOT NULL"),
        ("last_seen_at", f"{instant} NOT NULL"),
    ]
    assert Job.__worker_table__ is Job.metadata.tables["proletarian_worker"]


def test_a_job_that_was_only_added_is_a_job(tables):
    with Session(tables) as session, session.begin():
        session.add(job := Job("work", {"n": 1}))
    jobs = Proletarian()
    jobs.handler("work")(lambda session, found: seen.append((found.job_id, found.payload)))
    seen: list[Any] = []
    assert jobs.process_next(tables) is Outcome.RETURNED
    with Session(tables) as session:
        assert [archived.job_id for archived in session.query(ArchivedJob)] == [id_ for id_, _ in seen]
    assert seen == [(inspect(job).identity[0], {"n": 1})]


# Tables as the app wants them


def test_two_queues_live_in_one_base(engine):
    Base = base()

    class Mail(JobMixin, Base):
        __tablename__ = "mail"

    class ArchivedMail(ArchivedJobMixin, Base):
        __tablename__ = "archived_mail"

    class Report(JobMixin, Base):
        __tablename__ = "report"

    class ArchivedReport(ArchivedJobMixin, Base):
        __tablename__ = "archived_report"

    Base.metadata.create_all(engine)
    assert_complete(engine, "mail", "archived_mail")
    assert_complete(engine, "report", "archived_report")
    assert run_one(engine, Mail, ArchivedMail, {"n": 1})[1].payload == {"n": 1}
    assert run_one(engine, Report, ArchivedReport, {"n": 2})[1].payload == {"n": 2}


@pytest.mark.parametrize("how", ["metadata", "table args"])
def test_the_schema_is_the_apps_choice(engine, how):
    Base = base(metadata=MetaData(schema="queues" if how == "metadata" else None))
    args = {} if how == "metadata" else {"__table_args__": {"schema": "queues"}}
    AppJob = type("AppJob", (JobMixin, Base), {**args})
    AppArchivedJob = type("AppArchivedJob", (ArchivedJobMixin, Base), {**args})
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA queues"))
    Base.metadata.create_all(engine)
    assert_complete(engine, schema="queues")
    assert run_one(engine, AppJob, AppArchivedJob)[1].status == "success"


def test_the_schema_can_be_translated_by_the_engine(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
    translated = engine.execution_options(schema_translate_map={None: "tenant"})
    Job.metadata.create_all(translated)
    assert_complete(engine, schema="tenant")
    assert run_one(translated, Job, ArchivedJob)[1].status == "success"


def test_index_and_checks_survive_table_args_of_the_app(engine):
    Base = base()

    class WithTuple(JobMixin, Base):
        __tablename__ = "with_tuple"
        __table_args__ = (Index("ix_with_tuple_type", "job_type"), {"comment": "ours"})

    class ArchivedWithTuple(ArchivedJobMixin, Base):
        __tablename__ = "archived_with_tuple"
        __table_args__ = (Index("ix_finished", "finished_at"),)

    class WithDict(JobMixin, Base):
        __tablename__ = "with_dict"
        __table_args__ = {"prefixes": ["UNLOGGED"]}  # noqa: RUF012

    class ArchivedWithDict(ArchivedJobMixin, Base):
        __tablename__ = "archived_with_dict"

        @declared_attr.directive
        def __table_args__(cls):  # noqa: N805
            return {"info": {"of": cls.__tablename__}}

    Base.metadata.create_all(engine)
    assert_complete(engine, "with_tuple", "archived_with_tuple")
    assert_complete(engine, "with_dict", "archived_with_dict")
    assert indexes(engine, "with_tuple")["ix_with_tuple_type"] == ["job_type"]
    assert indexes(engine, "archived_with_tuple")["ix_finished"] == ["finished_at"]
    assert inspect(engine).get_table_comment("with_tuple") == {"text": "ours"}
    assert inspect(engine).get_table_comment("with_dict") == {"text": "sa_proletarian schema v2"}
    with engine.connect() as connection:
        persistence = connection.scalar(text("SELECT relpersistence FROM pg_class WHERE relname = 'with_dict'"))
    assert persistence == "u"


@pytest.mark.parametrize("token", ["%(column_0_label)s", "%(constraint_name)s", "%(table_name)s_%(constraint_name)s"])
def test_a_naming_convention_renames_nothing_of_ours(engine, token):
    Base = base(metadata=MetaData(naming_convention={kind: f"{kind}_app_{token}" for kind in ("ix", "uq", "ck", "fk")}))
    type("AppJob", (JobMixin, Base), {})
    type("AppArchivedJob", (ArchivedJobMixin, Base), {})
    Base.metadata.create_all(engine)
    assert_complete(engine)


def test_a_type_annotation_map_changes_none_of_our_columns(tables):
    Base = base(
        type_annotation_map={str: String(5), int: BigInteger(), datetime: DateTime(), UUID: String(40), Any: Text()},
        metadata=MetaData(schema="mapped"),
    )
    type("AppJob", (JobMixin, Base), {})
    type("AppArchivedJob", (ArchivedJobMixin, Base), {})
    with tables.begin() as connection:
        connection.execute(text("CREATE SCHEMA mapped"))
    Base.metadata.create_all(tables)
    for table in ("proletarian_job", "proletarian_archived_job", "proletarian_worker"):
        assert columns(tables, table, "mapped") == columns(tables, table)


@pytest.mark.parametrize(
    ("job", "worker"),
    [
        ("mail", "mail_worker"),
        ("mail_job", "mail_worker"),
        ("job", "worker"),
        ("job_2", "job_2_worker"),
        ("jobs", "jobs_worker"),
    ],
)
def test_the_worker_table_is_named_like_its_job_table(engine, job, worker):
    Base = base(metadata=MetaData(naming_convention={"ck": "%(table_name)s_%(constraint_name)s"}))
    AppJob = type("AppJob", (JobMixin, Base), {"__tablename__": job})
    AppArchivedJob = type("AppArchivedJob", (ArchivedJobMixin, Base), {"__tablename__": "archive"})
    Base.metadata.create_all(engine)
    assert_complete(engine, job, "archive", worker=worker)
    assert AppJob.__worker_table__.name == worker
    assert not hasattr(AppArchivedJob, "__worker_table__")


def test_a_worker_table_of_no_schema_stays_out_of_the_metadatas_default_schema():
    Base = base(metadata=MetaData(schema="app"))
    AppJob = type("AppJob", (JobMixin, Base), {"__table_args__": {"schema": BLANK_SCHEMA}})
    assert set(Base.metadata.tables) == {"proletarian_job", "proletarian_worker"}
    assert AppJob.__worker_table__.schema is None


def test_an_abstract_model_makes_no_table_and_each_of_its_subclasses_one_of_each():
    Base = base()

    class AppJob(JobMixin, Base):
        __abstract__ = True

    assert not Base.metadata.tables
    Mail = type("Mail", (AppJob,), {"__tablename__": "mail"})
    Report = type("Report", (AppJob,), {"__tablename__": "report"})
    assert set(Base.metadata.tables) == {"mail", "mail_worker", "report", "report_worker"}
    assert (Mail.__worker_table__.name, Report.__worker_table__.name) == ("mail_worker", "report_worker")


def test_a_subclass_of_a_model_shares_its_worker_table(engine):
    Base = base()

    class AppJob(JobMixin, Base):
        __mapper_args__ = {"polymorphic_on": "job_type", "polymorphic_identity": "work"}  # noqa: RUF012

    class InTheSameTable(AppJob):
        __tablename__ = None
        __mapper_args__ = {"polymorphic_identity": "same"}  # noqa: RUF012

    class InATableOfItsOwn(AppJob):
        __tablename__ = "joined"
        __mapper_args__ = {"polymorphic_identity": "joined"}  # noqa: RUF012
        job_id: Mapped[UUID] = mapped_column(ForeignKey(AppJob.job_id), primary_key=True)

    Base.metadata.create_all(engine)
    assert set(inspect(engine).get_table_names()) == {"proletarian_job", "proletarian_worker", "joined"}
    assert checks(engine, "joined") == set()
    assert InTheSameTable.__worker_table__ is InATableOfItsOwn.__worker_table__ is AppJob.__worker_table__


@pytest.mark.filterwarnings("ignore:This declarative base already contains a class:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("option", ["extend_existing", "keep_existing"])
def test_a_model_that_is_declared_again_keeps_its_tables(engine, option):
    Base = base()
    for name in ("first", "second"):
        args = {"__table_args__": {option: True}, "__doc__": name}
        AppJob = type("AppJob", (JobMixin, Base), {**args})
        AppArchivedJob = type("AppArchivedJob", (ArchivedJobMixin, Base), {**args})
        assert AppJob.__worker_table__ is Base.metadata.tables["proletarian_worker"]
    Base.metadata.create_all(engine)
    assert_complete(engine)
    assert run_one(engine, AppJob, AppArchivedJob)[1].status == "success"


def test_a_table_name_that_is_taken_is_refused_as_sqlalchemy_refuses_it():
    Base = base()
    type("AppJob", (JobMixin, Base), {})
    with pytest.raises(InvalidRequestError, match="Table 'proletarian_job' is already defined"):
        type("OtherJob", (JobMixin, Base), {})
    type("Mail", (JobMixin, Base), {"__tablename__": "mail"})
    with pytest.raises(InvalidRequestError, match="Table 'mail_worker' is already defined"):
        type("MailJob", (JobMixin, Base), {"__tablename__": "mail_job"})


# More columns


def test_columns_of_the_app_are_set_by_enqueue_seen_by_the_handler_and_received_by_the_archive(engine):
    Base = base()

    class AppJob(JobMixin, Base):
        tenant_id: Mapped[int]
        only_here: Mapped[str | None]

    class AppArchivedJob(ArchivedJobMixin, Base):
        tenant_id: Mapped[int]

    Base.metadata.create_all(engine)
    job, archived = run_one(engine, AppJob, AppArchivedJob, tenant_id=7, only_here="x")
    assert (job.tenant_id, job.only_here, archived.tenant_id) == (7, "x", 7)
    with pytest.raises(TypeError, match="no_such_column"):
        AppJob("work", no_such_column=1)


def test_relationships_and_foreign_keys_lead_to_and_from_the_apps_tables(engine):
    Base = base()

    class User(Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True)
        jobs: Mapped[list["AppJob"]] = relationship(back_populates="user")

    class AppJob(JobMixin, Base):
        user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))
        user: Mapped[User | None] = relationship(back_populates="jobs")

    class AppArchivedJob(ArchivedJobMixin, Base):
        user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))
        user: Mapped[User | None] = relationship()

    class Invoice(Base):
        __tablename__ = "invoice"
        id: Mapped[int] = mapped_column(primary_key=True)
        job_id: Mapped[UUID | None] = mapped_column(ForeignKey(AppJob.job_id, ondelete="SET NULL"))
        job: Mapped[AppJob | None] = relationship()

    Base.metadata.create_all(engine)
    jobs = Proletarian(AppJob, AppArchivedJob)
    jobs.handler("bill")(lambda session, job: session.get_one(AppJob, job.job_id).user)
    with Session(engine) as session, session.begin():
        job = jobs.enqueue(session, "bill", user=(user := User()))
        session.add(Invoice(job=job))
        session.flush()
        assert user.jobs == [job]
    assert jobs.process_next(engine) is Outcome.RETURNED
    with Session(engine) as session:
        assert session.query(Invoice.job_id).all() == [(None,)]
        archived = session.query(AppArchivedJob).one()
        assert archived.user is session.query(User).one()


def test_unique_constraints_of_the_app_hold(engine):
    Base = base()

    class AppJob(JobMixin, Base):
        __table_args__ = (UniqueConstraint("queue", "key"),)
        key: Mapped[str | None]

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([AppJob("work", key="a"), AppJob("work", key="b"), AppJob("work"), AppJob("work")])
        session.commit()
        session.add(AppJob("work", key="a"))
        with pytest.raises(IntegrityError):
            session.commit()


# Other columns in place of ours


def test_ids_can_be_numbers_that_the_database_gives(engine):
    Base = base()

    class AppJob(JobMixin, Base):
        job_id: Mapped[int] = mapped_column(BigInteger(), Identity(), primary_key=True, sort_order=-100)
        job_id_strategy = staticmethod(database_generated)

    class AppArchivedJob(ArchivedJobMixin, Base):
        job_id: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False, sort_order=-100)

    Base.metadata.create_all(engine)
    assert next(iter(columns(engine, "proletarian_job"))) == "job_id"
    assert_complete(engine)
    assert [run_one(engine, AppJob, AppArchivedJob)[1].job_id for _ in range(3)] == [1, 2, 3]
    with engine.begin() as connection:
        job = Proletarian(AppJob, AppArchivedJob).enqueue(connection, "work")
        assert job.job_id == 4
    for wrong in (uuid4(), "5", True):
        with pytest.raises(TypeError, match="job_id must be a int"):
            AppJob("work", job_id=wrong)


def test_ids_can_come_from_the_apps_own_strategy(engine):
    Base = base()
    ids = iter(["a", "b"])

    class AppJob(JobMixin, Base):
        job_id: Mapped[str] = mapped_column(String(20), primary_key=True)
        job_id_strategy = staticmethod(lambda: next(ids))

    class AppArchivedJob(ArchivedJobMixin, Base):
        job_id: Mapped[str] = mapped_column(String(20), primary_key=True)

    Base.metadata.create_all(engine)
    assert [run_one(engine, AppJob, AppArchivedJob)[0].job_id for _ in range(2)] == ["a", "b"]


class Reversed:
    """A serializer that stores a text nobody can read, as an encrypting one would."""

    def encode(self, payload):
        return str(payload)[::-1]

    def decode(self, value):
        return value[::-1]


class Shouted(TypeDecorator):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value.upper()

    def process_result_value(self, value, dialect):
        return value.lower()


@pytest.mark.parametrize(("type_", "stored"), [(Text(), "terces"), (Shouted(), "TERCES")])
def test_the_payload_can_have_another_type_and_another_serializer(engine, type_, stored):
    Base = base()

    class AppJob(JobMixin, Base):
        serializer = Reversed()
        payload: Mapped[Any] = mapped_column(type_, nullable=False)

    class AppArchivedJob(ArchivedJobMixin, Base):
        payload: Mapped[Any] = mapped_column(type_, nullable=False)

    Base.metadata.create_all(engine)
    job, archived = run_one(engine, AppJob, AppArchivedJob, "secret")
    assert (job.payload, archived.payload) == ("secret", "terces")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT payload FROM proletarian_archived_job")) == stored


def test_the_payload_is_queryable_as_json(tables):
    with Session(tables) as session, session.begin():
        session.add_all([Job("work", {"user": {"id": 7}}), Job("work", {"user": {"id": 8}}), Job("work")])
    with Session(tables) as session:
        found = session.query(Job).where(Job.payload["user"]["id"].as_integer() == 7).one()
        assert found.payload == {"user": {"id": 7}}
        assert session.query(Job).where(Job.payload.is_not(None)).count() == 3, "no payload is JSON's null"


# Poison stays out

INSERT = {
    "proletarian_job": {"attempts": "0", "crashes": "0", "claimed_until": "NULL"},
    "proletarian_archived_job": {"attempts": "0", "status": "'success'", "finished_at": "now()"},
}
WORKER = {
    "kind": "'queue'",
    "subject": "'default'",
    "worker_id": "'me'",
    "idle": "true",
    "started_at": "now()",
    "last_seen_at": "now()",
}
OUT_OF_RANGE = ("'infinity'", "'-infinity'", "'10000-01-01'", "'0001-01-01 BC'", "'0001-01-01'", "'9999-12-31'")


def insert(connection, table, **changed):
    job = {
        "job_id": "gen_random_uuid()",
        "queue": "'default'",
        "job_type": "'work'",
        "payload": "'{}'",
        "enqueued_at": "now()",
        "process_at": "now()",
    }
    values = {**WORKER, **changed} if table == "proletarian_worker" else {**job, **INSERT[table], **changed}
    with connection.begin_nested():
        connection.execute(text(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(values.values())})"))


@pytest.mark.parametrize(
    ("table", "names"),
    [("proletarian_job", CHECKS), ("proletarian_archived_job", ARCHIVED_CHECKS), ("proletarian_worker", WORKER_CHECKS)],
)
def test_checks_refuse_what_a_worker_could_not_read_or_count_on(tables, table, names):
    with tables.connect() as connection:
        with connection.begin_nested() as once:
            insert(connection, table)
            once.rollback()
        for name in names:
            for poison in ("-1", "-2147483648") if name in ("attempts", "crashes") else OUT_OF_RANGE:
                with pytest.raises(IntegrityError, match=f"ck_{table}_{name}"):
                    insert(connection, table, **{name: poison})


def test_nothing_that_must_be_there_can_be_missing(tables):
    with tables.connect() as connection:
        for name in ("job_id", "queue", "job_type", "payload", "attempts", "crashes", "enqueued_at", "process_at"):
            with pytest.raises(IntegrityError, match=f'null value in column "{name}"'):
                insert(connection, "proletarian_job", **{name: "NULL"})
        for name in WORKER:
            with pytest.raises(IntegrityError, match=f'null value in column "{name}"'):
                insert(connection, "proletarian_worker", **{name: "NULL"})


@pytest.mark.parametrize("zone", ["Etc/GMT+12", "Pacific/Kiritimati"])
def test_the_first_and_the_last_instant_can_be_read_in_any_time_zone(tables, zone):
    with tables.connect() as connection:
        insert(connection, "proletarian_job", process_at="'0001-01-03 00:00+00'")
        insert(connection, "proletarian_job", process_at="'9999-12-29 23:59:59.999999+00'")
        connection.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
        years = [job.process_at.astimezone(UTC).year for job in Session(connection).query(Job).order_by(Job.process_at)]
    assert years == [1, 9999]


# The constructor


def test_a_new_job_has_an_id_and_is_due_now():
    job = Job("work", {"n": 1})
    assert (job.queue, job.job_type, job.payload) == ("default", "work", {"n": 1})
    assert (job.attempts, job.crashes, job.process_at) == (0, 0, job.enqueued_at)
    assert job.job_id.version == 7
    assert abs(datetime.now(UTC) - job.enqueued_at) < timedelta(minutes=1)


def test_the_payload_is_encoded_in_the_call():
    payload = {"at": NOW, "list": [1]}
    job = Job("work", payload)
    payload["list"].append(2)
    assert job.payload == {"at": "2026-01-02T03:04:05+00:00", "list": [1]}


def test_a_given_id_is_kept_and_must_be_of_the_columns_type():
    given = uuid7()
    assert Job("work", job_id=given).job_id == given
    for wrong in (str(given), 7, b"x" * 16):
        with pytest.raises(TypeError, match="job_id must be a UUID"):
            Job("work", job_id=wrong)


@pytest.mark.parametrize(
    ("due", "expected"),
    [
        ({}, NOW),
        ({"process_in": timedelta(minutes=5)}, NOW + timedelta(minutes=5)),
        ({"process_in": timedelta(0)}, NOW),
        ({"process_in": -timedelta(minutes=5)}, NOW),
        ({"process_in": timedelta.min}, NOW),
        ({"process_at": NOW + timedelta(days=1)}, NOW + timedelta(days=1)),
        ({"process_at": NOW - timedelta(days=1)}, NOW),
        ({"process_at": datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))}, NOW),
        (
            {"process_at": datetime(2026, 1, 2, 12, tzinfo=timezone(timedelta(hours=2)))},
            datetime(2026, 1, 2, 10, tzinfo=UTC),
        ),
    ],
)
def test_the_past_means_now(due, expected):
    job = Job("work", enqueued_at=NOW, **due)
    assert (job.process_at, job.enqueued_at) == (expected, NOW)
    assert job.process_at.tzinfo is UTC or job.process_at.utcoffset() == timedelta(0)


@dataclass
class Loop:
    inner: Any = None


def loop() -> Loop:
    loop = Loop()
    loop.inner = loop
    return loop


BAD = [
    ({"job_type": ""}, ValueError, "job_type must be 1 to 200"),
    ({"job_type": "x" * 201}, ValueError, "job_type must be 1 to 200"),
    ({"job_type": "send mail"}, ValueError, "job_type"),
    ({"job_type": "größe"}, ValueError, "job_type"),
    ({"job_type": "work\n"}, ValueError, "job_type"),
    ({"job_type": "work\x00"}, ValueError, "job_type"),
    ({"job_type": 7}, TypeError, "job.type must be a text"),
    ({"job_type": b"work"}, TypeError, "job.type must be a text"),
    ({"queue": ""}, ValueError, "queue must be 1 to 200"),
    ({"queue": "a" * 10_000}, ValueError, "queue must be 1 to 200"),
    ({"queue": None}, TypeError, "queue must be a text"),
    ({"process_in": 5}, TypeError, "process_in must be a timedelta"),
    ({"process_in": 0.5}, TypeError, "process_in must be a timedelta"),
    ({"process_in": NOW}, TypeError, "process_in must be a timedelta"),
    ({"process_in": timedelta.max}, ValueError, "process_in is beyond the calendar"),
    ({"process_at": 1_800_000_000}, TypeError, "process_at must be a datetime"),
    ({"process_at": timedelta(minutes=5)}, TypeError, "process_at must be a datetime"),
    ({"process_at": date(2030, 1, 1)}, TypeError, "process_at must be a datetime"),
    ({"process_at": "2030-01-01"}, TypeError, "process_at must be a datetime"),
    ({"process_at": datetime(2030, 1, 1)}, TypeError, "naive"),
    ({"process_at": datetime.max.replace(tzinfo=UTC)}, ValueError, "process_at must be before"),
    ({"process_at": NOW, "process_in": timedelta(0)}, ValueError, "not both"),
    ({"job_id": "7"}, TypeError, "job_id"),
    ({"payload": float("nan")}, ValueError, "NaN"),
    ({"payload": {"deep": [float("-inf")]}}, ValueError, "infinity"),
    ({"payload": "\x00"}, ValueError, "NUL"),
    ({"payload": {"\x00": 1}}, ValueError, "NUL"),
    ({"payload": "\ud800"}, ValueError, "surrogate"),
    ({"payload": {1: 2}}, TypeError, "key"),
    ({"payload": {"at": datetime(2030, 1, 1)}}, TypeError, "naive"),
    ({"payload": {1, 2}}, TypeError, "set"),
    ({"payload": b"bytes"}, TypeError, "bytes"),
    ({"payload": object()}, TypeError, "object"),
    ({"payload": loop()}, ValueError, "too deep"),
    ({"payload": "x" * 2_000_000}, ValueError, "too large"),
    ({"payload": 10**5000}, ValueError, "digits"),
    ({"no_such_column": 1}, TypeError, "no_such_column"),
]


@pytest.mark.parametrize(
    ("given", "error", "message"), BAD, ids=[f"{next(iter(given))} {message}" for given, _, message in BAD]
)
def test_bad_input_is_refused_in_the_call_with_a_short_message(given, error, message):
    with pytest.raises(error, match=message) as caught:
        Job(**{"job_type": "work", **given})
    assert len(str(caught.value)) < 400


def test_bad_input_leaves_the_session_usable_and_the_business_transaction_commits(tables, jobs, rows):
    with Session(tables) as session, session.begin():
        session.execute(text("INSERT INTO effect VALUES ('before')"))
        for given, error, _ in BAD:
            with pytest.raises(error):
                jobs.enqueue(session, **{"job_type": "work", **given})
            assert not session.new
        session.execute(text("INSERT INTO effect VALUES ('after')"))
        jobs.enqueue(session, "work")
    assert rows("SELECT what FROM effect") == [("before",), ("after",)]
    assert rows("SELECT job_type FROM proletarian_job") == [("work",)]


@pytest.mark.parametrize("payload", [None, {}, [], "", 0, False, 1.5, "\U0001f600", "x" * 1_000_000, 10**3000, {"": ""}])
def test_odd_payloads_that_the_database_takes_come_back_as_they_were(tables, payload):
    with Session(tables) as session, session.begin():
        session.add(Job("work", payload))
    with Session(tables) as session:
        assert session.query(Job).one().payload == payload


# What people see


def test_repr_names_the_job_and_never_its_payload(tables):
    job = Job("work", {"password": "secret"})
    assert repr(job) == f"<Job {job.job_id} work attempts=0>"
    with Session(tables) as session:
        session.add(job)
        session.commit()
        assert "secret" not in repr(job), "expired by the commit"
        assert repr(session.query(Job).one()) == f"<Job {job.job_id} work attempts=0>"
    assert "secret" not in repr(job), "detached"
    archived = ArchivedJob(job_id=uuid7(), job_type="work", payload="secret", attempts=1)
    assert repr(archived) == f"<ArchivedJob {archived.job_id} work attempts=1>"


def test_a_job_outside_of_a_worker_is_not_interrupted_and_cannot_sleep():
    job = Job("work")
    assert job.interrupted is False
    with pytest.raises(RuntimeError, match="only a job that a worker runs"):
        job.sleep(timedelta(seconds=1))
    with pytest.raises(TypeError, match="timedelta"):
        job.sleep(1)


# Frameworks, as they are


def test_flask_sqlalchemy_models_are_models(database_url):
    import flask
    import flask_sqlalchemy

    db = flask_sqlalchemy.SQLAlchemy(model_class=base())

    class FlaskJob(JobMixin, db.Model):
        tenant_id: Mapped[int | None]

    class FlaskArchivedJob(ArchivedJobMixin, db.Model):
        tenant_id: Mapped[int | None]

    jobs = Proletarian(FlaskJob, FlaskArchivedJob)
    jobs.handler("work")(lambda session, job: None)
    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    db.init_app(app)
    with app.app_context():
        db.create_all()
        assert_complete(db.engine)
        jobs.enqueue(db.session, "work", {"n": 1}, tenant_id=7)
        assert FlaskJob.query.count() == 1
        db.session.commit()
        assert jobs.process_next(db.engine) is Outcome.RETURNED
        assert [(job.payload, job.tenant_id) for job in FlaskArchivedJob.query] == [({"n": 1}, 7)]
        db.session.remove()
        db.engine.dispose()


def test_sqlmodels_session_and_metadata_take_jobs(engine):
    import sqlmodel

    class Hero(sqlmodel.SQLModel, table=True):
        id: int | None = sqlmodel.Field(default=None, primary_key=True)

    Base = base(metadata=sqlmodel.SQLModel.metadata)

    class HeroJob(JobMixin, Base):
        hero_id: Mapped[int | None] = mapped_column(ForeignKey("hero.id"))

    class ArchivedHeroJob(ArchivedJobMixin, Base):
        pass

    Base.metadata.create_all(engine)
    jobs = Proletarian(HeroJob, ArchivedHeroJob)
    jobs.handler("work")(lambda session, job: seen.extend(session.exec(sqlmodel.select(Hero.id)).all()))
    seen: list[Any] = []
    with sqlmodel.Session(engine) as session:
        session.add(hero := Hero())
        session.flush()
        jobs.enqueue(session, "work", hero_id=hero.id)
        session.commit()
        assert session.exec(sqlmodel.select(HeroJob)).one().hero_id == hero.id
    assert jobs.process_next(engine, session=sessionmaker(class_=sqlmodel.Session)) is Outcome.RETURNED
    assert seen == [1]


def test_the_job_table_keeps_room_for_claims(rows, tables):
    assert dict(rows("SELECT relname, reloptions FROM pg_class WHERE relname LIKE '%_job' AND relkind = 'r'")) == {
        "proletarian_job": ["fillfactor=40"],
        "proletarian_archived_job": None,
    }


@pytest.mark.skipif(sqlalchemy.__version__.startswith("2.0."), reason="SQLAlchemy 2.0 knows no storage parameters of tables")
def test_an_app_may_say_itself_how_full_the_pages_of_its_job_table_are(rows, engine):
    class Base(DeclarativeBase):
        pass

    class FullJob(JobMixin, Base):
        __tablename__ = "full_job"
        __table_args__ = {"postgresql_with": {"fillfactor": 90}}  # noqa: RUF012

    Base.metadata.create_all(engine)
    assert rows("SELECT reloptions FROM pg_class WHERE relname = 'full_job'") == [(["fillfactor=90"],)]
