"""Many jobs at once: in the app's own transaction, all or none, whatever the driver."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import JSON, BigInteger, Identity, String, Text, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker, validates
from sqlalchemy.types import TypeDecorator

from sa_proletarian import ArchivedJobMixin, Job, JobMixin, Outcome, Proletarian, database_generated

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
PAYLOADS = [
    None,
    {},
    [],
    "",
    0,
    -1.5,
    True,
    "null",
    'quo"te',
    "back\\slash",
    "{a,b}",
    ["naïve 🙂", "\x01\t\n\r"],
    {"NULL": "NULL"},
]


@pytest.fixture(params=["psycopg", "psycopg2"])
def app(request, tables, database_url):
    """Make an app's engine, in turn with each synchronous driver."""
    engine = create_engine(database_url.set(drivername=f"postgresql+{request.param}"))
    yield engine
    engine.dispose()


@pytest.fixture
def count(rows):
    return lambda: rows("SELECT count(*) FROM proletarian_job")[0][0]


def pairs(number):
    return [("welcome", {"n": n}) for n in range(number)]


@contextmanager
def inserts(engine):
    """See the INSERT statements."""
    seen: list[str] = []

    def note(connection, cursor, statement, parameters, context, many):
        if statement.startswith("INSERT"):
            seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


# the same as enqueueing one by one


@pytest.mark.parametrize("kind", [Session, "connection"])
def test_many_jobs_are_stored_as_one_by_one(app, jobs, rows, kind):
    with app.begin() as connection:
        target = connection if kind == "connection" else Session(connection)
        for payload in PAYLOADS:
            jobs.enqueue(connection, "welcome", payload, process_at=NOON + 400 * 24 * HOUR)
        ids = jobs.enqueue_many(target, ((("welcome", payload)) for payload in PAYLOADS), process_at=NOON + 400 * 24 * HOUR)
    columns = (
        "queue, job_type, payload::text, attempts, crashes, process_at, claim_id, claimed_by, claimed_until, last_error"
    )
    stored = rows(f"SELECT {columns}, job_id FROM proletarian_job ORDER BY job_id")
    assert [row[:-1] for row in stored[: len(PAYLOADS)]] == [row[:-1] for row in stored[len(PAYLOADS) :]]
    assert [row[-1] for row in stored[len(PAYLOADS) :]] == ids


def test_a_worker_works_such_jobs_in_their_order(app, jobs, start_worker, recorder):
    seen = []
    jobs.handler("welcome")(lambda session, job: seen.append((job.job_id, job.payload["n"])))
    with Session(app) as session, session.begin():
        ids = jobs.enqueue_many(session, pairs(50), chunk_size=7)
    start_worker(jobs)
    recorder.wait_for("job_finished", 50)
    assert seen == list(zip(ids, range(50), strict=True))


def test_a_chunk_is_one_statement(app, jobs, count):
    with app.begin() as connection, inserts(app) as seen:
        jobs.enqueue_many(connection, pairs(25), chunk_size=10)
    assert (len(seen), count()) == (3, 25)
    assert all("unnest" in statement for statement in seen)


def test_a_chunk_of_large_payloads_ends_early(tables, jobs, count):
    with tables.begin() as connection, inserts(tables) as seen:
        jobs.enqueue_many(connection, [("welcome", "x" * 1_000_000)] * 20)
    assert (len(seen), count()) == (3, 20)


def test_items_are_taken_only_as_their_chunks_go(tables, jobs):
    taken = []

    def items():
        for number, item in enumerate(pairs(10)):
            taken.append(number)
            yield item

    progress = []
    with Session(tables) as session, session.begin():
        jobs.enqueue_many(session, items(), chunk_size=4, progress=lambda done: progress.append((done, len(taken))))
    assert progress == [(4, 4), (8, 8), (10, 10)]


def test_items_may_come_from_the_same_session(app, jobs, rows, count):
    rows("INSERT INTO effect SELECT 'user ' || n FROM generate_series(1, 500) AS n")
    with Session(app) as session, session.begin():
        names = session.scalars(text("SELECT what FROM effect").execution_options(stream_results=True, max_row_buffer=10))
        jobs.enqueue_many(session, (("welcome", name) for name in names), chunk_size=50)
    assert count() == 500


def test_nothing_is_enqueued_for_no_items(app, jobs, count):
    progress = []
    with Session(app) as session, session.begin():
        assert jobs.enqueue_many(session, [], progress=progress.append) == []
    assert (progress, count()) == ([], 0)


def test_a_handler_stands_for_its_job_type_and_a_mapping_holds_options(app, jobs, rows):
    @jobs.handler("welcome")
    def greet(session, job):
        pass

    jobs.clock = lambda: NOON
    key = uuid.UUID(int=7)
    items = [
        (greet, 1),
        ["other", 2],
        {"job_type": "welcome", "payload": 3, "process_in": 2 * HOUR, "queue": "mail"},
        {"job_type": greet, "process_at": NOON + 3 * HOUR, "job_id": key},
    ]
    with app.begin() as connection:
        ids = jobs.enqueue_many(connection, items, queue="bulk", process_in=HOUR)
    assert ids[3] == key
    stored = {row[0]: row[1:] for row in rows("SELECT job_id, queue, job_type, payload, process_at FROM proletarian_job")}
    assert [stored[job_id] for job_id in ids] == [
        ("bulk", "welcome", 1, NOON + HOUR),
        ("bulk", "other", 2, NOON + HOUR),
        ("mail", "welcome", 3, NOON + 2 * HOUR),
        ("bulk", "welcome", None, NOON + 3 * HOUR),
    ]


def test_ids_keep_the_order_of_items_of_both_kinds(tables, jobs):
    items = [("welcome", 1), {"job_type": "welcome"}, ("welcome", 2), ("other", 3), {"job_type": "other"}, ("welcome", 4)]
    with tables.begin() as connection:
        ids = jobs.enqueue_many(connection, items)
    assert ids == sorted(ids) and len({*ids}) == len(items)


@pytest.mark.parametrize("column", [JSON, Text], ids=["as arrays", "one by one"])
def test_a_payload_that_is_filled_anew_for_each_item_is_stored_as_it_was(app, jobs, rows, column):
    base, own = models(
        __tablename__="app_job", __annotations__={"payload": Mapped[object]}, payload=mapped_column(Twice, nullable=False)
    )
    base.metadata.create_all(app, tables=[own.job_model.__table__])
    target = jobs if column is JSON else own

    def items():
        payload = {}
        for number in range(3):
            payload["n"] = number
            yield "welcome", payload

    with Session(app) as session, session.begin():
        target.enqueue_many(session, items())
        model = target.job_model
        stored = session.scalars(select(model.payload).order_by(model.job_id)).all()
    assert stored == [{"n": 0}, {"n": 1}, {"n": 2}]


# transactions and targets


def test_nothing_is_committed(app, jobs, count):
    with Session(app) as session:
        jobs.enqueue_many(session, pairs(3))
        assert count() == 0
        session.rollback()
    with app.connect() as connection:
        jobs.enqueue_many(connection, pairs(3))
        assert connection.in_transaction()
        connection.rollback()
    assert count() == 0


BAD = [
    (("welcome", float("nan")), ValueError, "payload holds NaN"),
    (("welcome", {"secret": "\x00"}), ValueError, "NUL"),
    (("welcome", {"secret": {1, 2}}), TypeError, "payload holds a set"),
    (({"secret": 1}, "welcome"), TypeError, "a job type must be a text or a registered handler, got a dict"),
    (("two words", "secret"), ValueError, "job_type must be"),
    ("secret", TypeError, "got a str"),
    (("welcome", "secret", 3), TypeError, "got a tuple"),
    ({"payload": "secret"}, TypeError, "must hold a job_type"),
    ({"job_type": "welcome", "process_in": 60}, TypeError, "process_in must be a timedelta"),
    ({"job_type": "welcome", "colour": "secret"}, TypeError, "'colour' is not a column"),
    ({"job_type": "welcome", "attempts": 3}, TypeError, "'attempts' is not a column"),
    ({"job_type": "welcome", "job_id": "7"}, TypeError, "job_id must be a UUID"),
    (Job("welcome", "secret"), TypeError, "ready job: add it to the session"),
]


@pytest.mark.parametrize(("bad", "error", "words"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("kind", [Session, "connection"])
def test_a_bad_item_undoes_the_call_and_nothing_else_of_the_transaction(tables, jobs, rows, kind, bad, error, words):
    with tables.begin() as connection:
        target = connection if kind == "connection" else Session(connection)
        target.execute(text("INSERT INTO effect VALUES ('before')"))
        with pytest.raises(error, match=words) as refusal:
            jobs.enqueue_many(target, [*pairs(5), bad], chunk_size=2)
        assert str(refusal.value).startswith("item 5: ")
        assert "secret" not in str(refusal.value)
        jobs.enqueue_many(target, pairs(1))
    assert rows("SELECT count(*) FROM proletarian_job") == [(1,)]
    assert rows("SELECT what FROM effect") == [("before",)]


def test_what_the_items_or_the_progress_raise_undoes_the_call_only(app, jobs, count):
    def items():
        yield from pairs(4)
        raise LookupError("no more")

    with Session(app) as session, session.begin():
        jobs.enqueue(session, "welcome")
        with pytest.raises(LookupError, match="no more"):
            jobs.enqueue_many(session, items(), chunk_size=2)
        with pytest.raises(ZeroDivisionError):
            jobs.enqueue_many(session, pairs(4), chunk_size=2, progress=lambda done: 1 // 0)
    assert count() == 1


def test_what_the_database_refuses_undoes_the_call_only(app, jobs, count):
    with Session(app) as session, session.begin():
        (taken,) = jobs.enqueue_many(session, pairs(1))
        with pytest.raises(IntegrityError):
            jobs.enqueue_many(session, [*pairs(3), {"job_type": "welcome", "job_id": taken}])
    assert count() == 1


def test_a_scoped_session_takes_many_jobs(app, jobs, count):
    db = scoped_session(sessionmaker(app))
    jobs.enqueue_many(db, pairs(3))
    db.commit()
    db.remove()
    assert count() == 3


def test_a_handler_can_enqueue_many(tables, jobs, rows):
    @jobs.handler("split")
    def split(session, job):
        jobs.enqueue_many(session, pairs(3))

    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "split")
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert rows("SELECT count(*) FROM proletarian_job") == [(3,)]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_sessions_and_connections_take_many_jobs_by_run_sync(tables, database_url, jobs, rows, driver):
    async def main():
        engine = create_async_engine(database_url.set(drivername=f"postgresql+{driver}"))
        async with AsyncSession(engine) as session, session.begin():
            with pytest.raises(ValueError, match="item 3"):
                await session.run_sync(jobs.enqueue_many, [*pairs(3), ("welcome", float("inf"))], chunk_size=2)
            ids = await session.run_sync(jobs.enqueue_many, [("welcome", p) for p in PAYLOADS], process_in=HOUR)
        async with engine.begin() as connection:
            ids += await connection.run_sync(jobs.enqueue_many, [{"job_type": "b", "queue": "q"}, {"job_type": "c"}])
        await engine.dispose()
        return ids

    ids = asyncio.run(main())
    stored = rows("SELECT job_id, payload FROM proletarian_job ORDER BY job_id")
    assert stored == list(zip(ids, [*PAYLOADS, None, None], strict=True))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda engine: AsyncSession(), r"await session.run_sync\(jobs.enqueue_many, items\)"),
        (lambda engine: async_scoped_session(async_sessionmaker(), lambda: 1), r"await session.run_sync"),
        (lambda engine: create_async_engine(engine.url).connect(), "run_sync"),
        (lambda engine: engine, "got a Engine"),
        (lambda engine: sessionmaker(engine), "call it first"),
        (lambda engine: Session, "call it first"),
        (lambda engine: None, "got a NoneType"),
    ],
)
def test_a_wrong_target_is_refused_with_the_right_one(engine, jobs, target, words):
    with pytest.raises(TypeError, match=words):
        jobs.enqueue_many(target(engine), pairs(1))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"queue": "two words"}, ValueError),
        ({"process_at": NOON, "process_in": HOUR}, ValueError),
        ({"chunk_size": 0}, ValueError),
        ({"progress": 1}, TypeError),
        ({"colour": 1}, TypeError),
        ({"items": 7}, TypeError),
    ],
)
def test_wrong_options_are_refused_before_anything(tables, jobs, given, error):
    def items():
        raise AssertionError("taken")
        yield

    with Session(tables) as session, pytest.raises(error) as refusal:
        jobs.enqueue_many(session, **{"items": items(), **given})
    assert "item 0" not in str(refusal.value)
    assert tables.pool.checkedout() == 0


# models of the app's own


def models(**of_job):
    class Base(DeclarativeBase):
        pass

    job = type("AppJob", (JobMixin, Base), {"__module__": __name__, **of_job})
    archived = type("AppArchivedJob", (ArchivedJobMixin, Base), {"__module__": __name__})
    return Base, Proletarian(job, archived)


def test_columns_of_the_app_are_set_and_keep_their_defaults(app, rows, tables):
    numbers = iter(range(100))
    base, jobs = models(
        __tablename__="app_job",
        __annotations__={"tenant_id": Mapped[int], "source": Mapped[str], "noted_at": Mapped[datetime | None]},
        tenant_id=mapped_column(),
        source=mapped_column(default="web"),
        noted_at=mapped_column(server_default=func.now()),
    )
    base.metadata.create_all(app, tables=[jobs.job_model.__table__])
    with app.begin() as connection, inserts(app) as seen:
        jobs.enqueue_many(connection, pairs(2), tenant_id=7)
        many = [{"job_type": "welcome", "tenant_id": n, "source": f'"{n}"'} for n in range(2)]
        jobs.enqueue_many(connection, [*many, {"job_type": "welcome", "tenant_id": 9}])
    assert all("unnest" in statement for statement in seen)
    stored = rows("SELECT tenant_id, source, noted_at IS NOT NULL FROM app_job ORDER BY job_id")
    assert stored == [(7, "web", True), (7, "web", True), (0, '"0"', True), (1, '"1"', True), (9, "web", True)]
    assert next(numbers) == 0


@pytest.mark.parametrize("values", [("abcd", "abcd"), ("abcd", "a"), ("a\x00b", "c"), ("a\x00b", "a\x00b")])
def test_what_a_column_of_the_app_cannot_hold_is_refused_and_not_cut_off(app, tables, values):
    base, jobs = models(__tablename__="app_job", __annotations__={"tag": Mapped[str]}, tag=mapped_column(String(3)))
    base.metadata.create_all(app, tables=[jobs.job_model.__table__])
    with app.begin() as connection:
        # psycopg2 calls a NUL a ValueError, the others a DataError
        with pytest.raises((DBAPIError, ValueError)):
            jobs.enqueue_many(connection, [{"job_type": "welcome", "tag": value} for value in values])
        jobs.enqueue_many(connection, [{"job_type": "welcome", "tag": "abc"}])


def test_columns_of_types_of_the_apps_own_are_written_by_those_types(app, rows, tables):
    base, jobs = models(__tablename__="app_job", __annotations__={"tag": Mapped[str]}, tag=mapped_column(Reversed))
    base.metadata.create_all(app, tables=[jobs.job_model.__table__])
    with app.begin() as connection:
        jobs.enqueue_many(connection, pairs(2), tag="abc")
    assert rows("SELECT tag FROM app_job") == [("cba",), ("cba",)]


def test_an_id_strategy_must_fit_the_column(app, tables):
    base, jobs = models(
        __tablename__="app_job", __annotations__={"job_id": Mapped[str]}, job_id=mapped_column(primary_key=True)
    )
    base.metadata.create_all(app, tables=[jobs.job_model.__table__])
    with app.begin() as connection, pytest.raises(TypeError, match="item 0: job_id must be a str"):
        jobs.enqueue_many(connection, pairs(2))


def test_a_default_that_is_called_is_called_for_every_job(app, rows, tables):
    numbers = iter(range(100))
    base, jobs = models(
        __tablename__="app_job", __annotations__={"number": Mapped[int]}, number=mapped_column(default=lambda: next(numbers))
    )
    base.metadata.create_all(app, tables=[jobs.job_model.__table__])
    with app.begin() as connection:
        jobs.enqueue_many(connection, pairs(3))
    assert rows("SELECT number FROM app_job ORDER BY job_id") == [(0,), (1,), (2,)]


@pytest.mark.parametrize("kind", [BigInteger, "uuid"])
def test_ids_that_the_database_makes_come_back_in_order(app, tables, rows, kind):
    if kind is BigInteger:
        column = mapped_column(BigInteger, Identity(start=1000), primary_key=True)
        base, jobs = models(
            __tablename__="app_job",
            __annotations__={"job_id": Mapped[int]},
            job_id=column,
            job_id_strategy=staticmethod(database_generated),
        )
    else:
        column = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
        base, jobs = models(
            __tablename__="app_job",
            __annotations__={"job_id": Mapped[uuid.UUID]},
            job_id=column,
            job_id_strategy=staticmethod(database_generated),
        )
    base.metadata.create_all(app, tables=[jobs.job_model.__table__])
    with Session(app) as session, session.begin():
        ids = jobs.enqueue_many(session, pairs(7), chunk_size=3)
    assert dict(rows("SELECT job_id, payload FROM app_job")) == {job_id: {"n": n} for n, job_id in enumerate(ids)}


class Reversed(TypeDecorator):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value[::-1]

    def process_result_value(self, value, dialect):
        return value[::-1]


@pytest.mark.parametrize(("kind", "payload"), [(Reversed, "abc"), (JSON, {"b": [1], "a": "é"})])
def test_payload_columns_of_another_type_are_written_by_that_type(app, tables, kind, payload):
    base, jobs = models(
        __tablename__="app_job", __annotations__={"payload": Mapped[object]}, payload=mapped_column(kind, nullable=False)
    )
    base.metadata.create_all(app, tables=[jobs.job_model.__table__])
    with Session(app) as session, session.begin():
        jobs.enqueue_many(session, [("welcome", payload)] * 2)
        assert session.scalars(select(jobs.job_model.payload)).all() == [payload] * 2


class Twice(TypeDecorator):
    """A type of the app's own, by which values must pass one by one."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return {**value}


class Shouting:
    """A serializer that quotes what it is given when it refuses it."""

    def encode(self, payload):
        if payload == "secret":
            raise ValueError(f"not {payload}")
        return payload.upper()

    def decode(self, value):
        return value


def test_the_models_own_serializer_encodes_and_its_refusals_are_not_quoted(tables, rows):
    base, jobs = models(__tablename__="app_job", serializer=Shouting())
    base.metadata.create_all(tables, tables=[jobs.job_model.__table__])
    with Session(tables) as session, session.begin():
        with pytest.raises(ValueError, match="item 1: Shouting refuses the payload with a ValueError") as refusal:
            jobs.enqueue_many(session, [("welcome", "a"), ("welcome", "secret")])
        assert "secret" not in str(refusal.value)
        jobs.enqueue_many(session, [("welcome", "a")])
    assert rows("SELECT payload FROM app_job") == [("A",)]


def shouts(self, job_type, payload=None, **options):
    JobMixin.__init__(self, job_type, payload, **{"source": "made", **options})


@pytest.mark.parametrize("own", [{"__init__": shouts}, {"check": validates("source")(lambda self, key, value: "made")}])
def test_constructors_and_validators_of_the_app_take_part(tables, rows, own):
    base, jobs = models(__tablename__="app_job", __annotations__={"source": Mapped[str]}, source=mapped_column(), **own)
    base.metadata.create_all(tables, tables=[jobs.job_model.__table__])
    options = {} if "__init__" in own else {"source": "given"}
    with Session(tables) as session, session.begin():
        ids = jobs.enqueue_many(session, pairs(2), process_in=HOUR, **options)
    assert rows("SELECT job_id, source, payload FROM app_job ORDER BY job_id") == [
        (job_id, "made", {"n": n}) for n, job_id in enumerate(ids)
    ]


def test_a_translated_schema_gets_the_jobs(app, jobs, rows, count):
    rows("CREATE SCHEMA tenant")
    rows("CREATE TABLE tenant.proletarian_job (LIKE proletarian_job INCLUDING ALL)")
    tenant = app.execution_options(schema_translate_map={None: "tenant"})
    with Session(tenant) as session, session.begin():
        jobs.enqueue_many(session, pairs(3))
    assert (count(), rows("SELECT count(*) FROM tenant.proletarian_job")) == (0, [(3,)])


def test_a_client_encoding_that_is_not_utf_8_changes_nothing(database_url, tables, jobs, rows):
    app = create_engine(database_url, connect_args={"client_encoding": "LATIN1"})
    with app.begin() as connection:
        jobs.enqueue_many(connection, [("welcome", "naïve 🙂")])
    app.dispose()
    assert rows("SELECT payload FROM proletarian_job") == [("naïve 🙂",)]
