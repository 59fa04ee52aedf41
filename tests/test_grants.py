"""Real logins with exactly the rights that ``grants`` prints: what they can do, cannot do, and that none is too much.

Each database role is made for one test; what is printed is executed as it stands.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    MetaData,
    Sequence,
    Text,
    create_engine,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session

from sa_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Cancel,
    Cancellation,
    Job,
    JobMixin,
    Outcome,
    Proletarian,
    Retry,
    Snooze,
    database_generated,
    models_for,
)
from sa_proletarian.dialects import sqlstate
from sa_proletarian.grants import grants
from sa_proletarian.quoting import quoted
from sa_proletarian.roster import Roster

WorkerTable = Job.__worker_table__


def execute(engine, *statements):
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture
def login(administration, engine):
    """Return a function that makes a role with rights, and gives an engine on which one is that role."""
    engines = []

    def login(role, *models, to=None, **options):
        name = to or f"{role}_{uuid4().hex}"
        execute(administration, f"CREATE ROLE {quoted(name)} LOGIN")
        engines.append(create_engine(engine.url.set(username=name)))
        execute(engine, *grants(role, *models, to=name, **options).script().splitlines())
        return engines[-1]

    yield login
    for each in engines:
        each.dispose()
        execute(engine, f"DROP OWNED BY {quoted(each.url.username)}", f"DROP ROLE {quoted(each.url.username)}")


@contextmanager
def denied():
    with pytest.raises(DBAPIError) as refusal:
        yield
    assert sqlstate(refusal.value) == "42501", refusal.value


# the enqueuer -----------------------------------------------------------------------------------------------------------


def test_the_enqueuer_enqueues_by_session_and_connection_one_and_many(tables, jobs, login, rows):
    enqueuer = login("enqueuer")
    with Session(enqueuer) as session, session.begin():
        jobs.enqueue(session, "a", {"n": 1}, process_in=timedelta(hours=1))
        session.add_all([Job("b"), Job("b")])
        jobs.enqueue_many(session, [("c", {"n": n}) for n in range(3)])
    with enqueuer.begin() as connection:
        jobs.enqueue(connection, "d")
        jobs.enqueue_many(connection, [("e", None), ("e", None)])
    assert rows("SELECT job_type, count(*) FROM proletarian_job GROUP BY 1 ORDER BY 1") == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 1),
        ("e", 2),
    ]


@pytest.mark.parametrize(
    "statement",
    [
        select(Job.job_id),
        select(func.count()).select_from(Job),
        delete(Job),
        update(Job).values(queue="other"),
        select(ArchivedJob.job_id),
        insert(ArchivedJob).from_select(["job_id"], select(func.gen_random_uuid())),
        select(WorkerTable.c.subject),
        delete(WorkerTable),
    ],
    ids=str,
)
def test_the_enqueuer_can_do_nothing_else(tables, login, statement):
    with login("enqueuer").connect() as connection, denied():
        connection.execute(statement)


# the worker -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker_login(tables, login):
    """Return an engine of a worker whose handlers may write effects."""
    engine = login("worker")
    execute(tables, f"GRANT INSERT ON effect TO {quoted(engine.url.username)}")
    return engine


def effect(session, what="done"):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


def fails_once(session, job):
    effect(session, f"attempt {job.attempts}")
    if job.attempts == 1:
        raise ValueError("once")


def snoozes(session, job):
    raise Snooze(timedelta(0))


def cancels(session, job):
    effect(session)
    raise Cancel("no longer wanted")


HANDLERS = {
    "unused": lambda session, job: None,
    "used": lambda session, job: effect(session),
    "looks": lambda session, job: effect(session, session.get(Job, job.job_id).queue),
    "fails_once": fails_once,
    "gives_up": lambda session, job: 1 / 0,
    "snoozes": snoozes,
    "cancels": cancels,
}


@pytest.fixture
def run(tables, jobs):
    """Return a function that enqueues a job and has it processed as somebody, so often; it gives the outcomes."""
    for job_type, handler in HANDLERS.items():
        jobs.handler(job_type, retry=Retry(1, [timedelta(0)]) if job_type == "fails_once" else None)(handler)

    def run(engine, job_type, times=1, change=None):
        with Session(tables) as session, session.begin():
            jobs.enqueue(session, job_type, {"n": 1})
        if change is not None:
            execute(tables, f"UPDATE proletarian_job SET {change}")
        return [jobs.process_next(engine) for _ in range(times)]

    return run


EXPIRED = "attempts = 1, claim_id = gen_random_uuid(), claimed_until = now()"
SCENARIOS = {
    "unused session": ("unused", 1, None, [Outcome.RETURNED], ["success"], 0),
    "used session": ("used", 1, None, [Outcome.RETURNED], ["success"], 1),
    "a look at its own row": ("looks", 1, None, [Outcome.RETURNED], ["success"], 1),
    "failure and retry": ("fails_once", 2, None, [Outcome.RETRIED, Outcome.RETURNED], ["success"], 1),
    "giving up": ("gives_up", 1, None, [Outcome.GAVE_UP], ["failure"], 0),
    "snooze": ("snoozes", 2, None, [Outcome.SNOOZED, Outcome.SNOOZED], [], 0),
    "cancel": ("cancels", 1, None, [Outcome.CANCELLED], ["cancelled"], None),
    "a claim that ran out": ("used", 1, EXPIRED, [Outcome.RETURNED], ["success"], 1),
    "the crash ceiling": ("used", 1, f"{EXPIRED}, crashes = 4", [Outcome.CRASHED], ["crashed"], 0),
    "an undecodable payload": (
        "used",
        1,
        "payload = CAST('1' || repeat('0', 5000) AS jsonb)",
        [Outcome.GAVE_UP],
        ["failure"],
        0,
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_worker_brings_every_outcome_about(run, worker_login, rows, scenario):
    job_type, times, change, outcomes, statuses, effects = SCENARIOS[scenario]
    assert run(worker_login, job_type, times, change) == outcomes
    assert [status for (status,) in rows("SELECT status FROM proletarian_archived_job")] == statuses
    if effects is not None:
        assert len(rows("SELECT * FROM effect")) == effects


def test_a_running_worker_is_seen_renews_and_leaves(run, worker_login, tables, jobs, rows, start_worker, recorder):
    begun, free = threading.Event(), threading.Event()
    jobs.handler("long")(lambda session, job: (begun.set(), free.wait(20)))
    worker = start_worker(jobs, worker_login, lease=timedelta(seconds=1))
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "long")
    assert begun.wait(20)
    [(name, until)] = rows("SELECT claimed_by, claimed_until FROM proletarian_job")
    waited_for(rows, f"SELECT 1 FROM proletarian_job WHERE claimed_until > '{until}'")
    assert rows("SELECT kind, subject, worker_id FROM proletarian_worker") == [("queue", "default", name)]
    free.set()
    recorder.wait_for("job_finished")
    assert worker.stop() is True
    assert rows("SELECT * FROM proletarian_worker") == []
    assert recorder.named("presence_unavailable") == recorder.named("job_worker_error") == []


@pytest.mark.parametrize("stuck", ["in a statement", "in Python"])
def test_a_stuck_handler_is_cancelled_or_ended_by_a_worker_that_stops(
    worker_login, tables, jobs, rows, start_worker, recorder, stuck
):
    holding, free = threading.Event(), threading.Event()

    def handler(session, job):
        effect(session)
        holding.set()
        session.execute(text("SELECT pg_sleep(60)")) if stuck == "in a statement" else free.wait(60)

    jobs.handler("hang")(handler)
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "hang")
    worker = start_worker(jobs, worker_login, termination_timeout=timedelta(milliseconds=50))
    assert holding.wait(20)
    if stuck == "in a statement":
        who = worker_login.url.username
        waited_for(rows, f"SELECT 1 FROM pg_stat_activity WHERE usename = '{who}' AND wait_event = 'PgSleep'")
    assert worker.stop() is (stuck == "in a statement")
    free.set()
    assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job") == [(0, 0, None)]
    assert rows("SELECT * FROM effect") == []
    for thread in threading.enumerate():
        if thread.name.startswith(worker.worker_id):
            thread.join(10)


def test_a_running_job_shows_its_progress_and_is_cancelled_by_the_admin(
    login, worker_login, tables, jobs, rows, start_worker, recorder
):
    admin = login("admin")

    def handler(session, job):
        effect(session)
        job.progress(1, 2)
        job.sleep(timedelta(seconds=60))

    jobs.handler("long")(handler)
    with Session(tables) as session, session.begin():
        job_id = jobs.enqueue(session, "long").job_id
    worker = start_worker(jobs, worker_login)
    waited_for(rows, "SELECT 1 FROM proletarian_worker WHERE kind = 'job'")
    with admin.begin() as connection:
        assert jobs.cancel(connection, job_id) is Cancellation.REQUESTED
    recorder.wait_for("job_cancelled")
    assert worker.stop() is True
    assert rows("SELECT status FROM proletarian_archived_job") == [("cancelled",)]
    assert rows("SELECT * FROM effect") == rows("SELECT * FROM proletarian_worker") == []
    assert recorder.named("presence_unavailable") == []


def waited_for(rows, statement):
    """Give the rows of a statement once there are some; the server's own sleep is the pause."""
    for _ in range(1000):
        if found := rows(statement):
            return found
        rows("SELECT pg_sleep(0.01)")
    raise AssertionError(f"never: {statement}")


@pytest.mark.parametrize(
    "statement",
    [
        insert(Job).from_select(["job_id"], select(func.gen_random_uuid())),
        update(Job).values(payload={}),
        update(Job).values(queue="other"),
        select(ArchivedJob.payload),
        update(ArchivedJob).values(status="success"),
        delete(ArchivedJob),
        update(WorkerTable).values(subject="other"),
        text("TRUNCATE proletarian_job"),
        text("ALTER TABLE proletarian_job ADD mine int"),
    ],
    ids=str,
)
def test_the_worker_can_do_nothing_else(tables, login, statement):
    with login("worker").connect() as connection, denied():
        connection.execute(statement)


def test_handlers_that_enqueue_need_the_enqueuers_rights_as_the_note_says(run, login, worker_login, jobs, tables, rows):
    jobs.handler("follows")(lambda session, job: jobs.enqueue(session, "unused") and None)
    assert run(worker_login, "follows") == [Outcome.GAVE_UP]
    enqueuer = login("enqueuer").url.username
    note = grants("worker", to=worker_login.url.username).notes[-1]
    execute(tables, note.replace("proletarian_enqueuer", quoted(enqueuer)))
    assert run(worker_login, "follows", times=2) == [Outcome.RETURNED, Outcome.RETURNED]


# the admin --------------------------------------------------------------------------------------------------------------


def administrate(jobs, engine):
    """Do what an admin does, once each, in one transaction."""
    with Session(engine) as session, session.begin():
        jobs.requeue(session, session.scalars(select(ArchivedJob)).first())
        session.flush()
        [one, two, three] = session.scalars(select(Job.job_id)).all()
        connection = session.connection()
        connection.execute(update(Job).where(Job.job_id == one).values(process_at=func.now()))
        connection.execute(update(Job).where(Job.job_id == two).values(queue="slow"))
        assert jobs.cancel(session, three) is Cancellation.CANCELLED
        connection.execute(delete(ArchivedJob).where(ArchivedJob.finished_at < func.clock_timestamp()))
        request = {"kind": "cancel", "subject": str(one), "worker_id": "me", "idle": False}
        now = {"started_at": func.now(), "last_seen_at": func.now()}
        connection.execute(insert(WorkerTable).values(**request, **now))
        assert connection.scalar(select(WorkerTable.c.subject)) == str(one)
        connection.execute(delete(WorkerTable))


def test_the_admin_looks_requeues_hurries_moves_cancels_prunes_and_asks_for_a_cancel(run, tables, jobs, login, rows):
    run(tables, "gives_up")
    run(tables, "unused", times=0)
    run(tables, "unused", times=0)
    administrate(jobs, login("admin"))
    assert rows("SELECT count(*) FROM proletarian_job") == [(2,)]
    assert rows("SELECT * FROM proletarian_archived_job") == []


def test_the_admin_prunes_and_the_others_cannot(run, tables, jobs, login, rows):
    run(tables, "gives_up")
    run(tables, "unused")
    for role in ("enqueuer", "worker"):
        with denied():
            jobs.prune(login(role), older_than=timedelta(0))
    admin = login("admin")
    assert jobs.prune(admin, older_than=timedelta(0), status="failure", dry_run=True) == 1
    assert jobs.prune(admin, older_than=timedelta(0), queue="default") == 2
    assert rows("SELECT * FROM proletarian_archived_job") == []


@pytest.mark.parametrize(
    "statement",
    [
        update(Job).values(payload={}),
        update(Job).values(claim_id=None),
        update(ArchivedJob).values(status="success"),
        update(WorkerTable).values(idle=True),
        text("DROP TABLE proletarian_archived_job"),
        text("CREATE INDEX mine ON proletarian_job (job_type)"),
    ],
    ids=str,
)
def test_the_admin_can_do_nothing_else(tables, login, statement):
    with login("admin").connect() as connection, denied():
        connection.execute(statement)


# no right is too much ---------------------------------------------------------------------------------------------------


def pieces(role, *models, **options):
    """Give each right of a role, column by column, as what REVOKE takes away."""
    for right in grants(role, *models, **options).rights:
        for column in right.columns or [None]:
            yield f"{right.privilege} ON {right.on}" if column is None else f"{right.privilege} ({column}) ON {right.on}"


PIECES = [(role, piece) for role in ("enqueuer", "worker", "admin") for piece in pieces(role)]


def enqueuing(run, jobs, engine):
    with Session(engine) as session, session.begin():
        jobs.enqueue(session, "unused")


def working(run, jobs, engine):
    assert run(engine, "used") == [Outcome.RETURNED]
    assert run(engine, "fails_once", times=2) == [Outcome.RETRIED, Outcome.RETURNED]
    roster = Roster.beside(Job)
    me = {"queue": "default", "worker_id": "me"}
    with engine.begin() as connection:
        for idle in (True, False):
            roster.register(connection, **me, idle=idle, detail={}, started_at=None)
        roster.strike_off_the_dead(connection)
        roster.unregister(connection, **me)


def administrating(run, jobs, engine):
    administrate(jobs, engine)


@pytest.mark.parametrize(("role", "piece"), PIECES, ids=str)
def test_without_any_one_of_its_rights_a_role_cannot_do_its_work(run, tables, jobs, login, role, piece):
    engine = login(role)
    execute(tables, f"GRANT INSERT ON effect TO {quoted(engine.url.username)}")
    if role == "admin":
        run(tables, "gives_up")
        run(tables, "unused", times=0)
        run(tables, "unused", times=0)
    work = {"enqueuer": enqueuing, "worker": working, "admin": administrating}[role]
    execute(tables, f"REVOKE {piece} FROM {quoted(engine.url.username)}")
    with pytest.raises((DBAPIError, AssertionError)):
        work(run, jobs, engine)
    execute(tables, f"GRANT {piece} TO {quoted(engine.url.username)}")
    if role == "worker":  # the others do it all in one transaction
        execute(tables, "TRUNCATE proletarian_job, proletarian_archived_job, proletarian_worker")
    work(run, jobs, engine)


# ids and defaults of the database ---------------------------------------------------------------------------------------


def models(**columns):
    base = type("Base", (DeclarativeBase,), {"metadata": MetaData(schema="Queue s")})
    return (
        type("Task", (JobMixin, base), {"job_id_strategy": staticmethod(database_generated), **columns}),
        type("Done", (ArchivedJobMixin, base), {"job_id": Column(BigInteger, primary_key=True, autoincrement=False)}),
    )


numbers = Sequence("numbers", schema="Queue s")
BY_DATABASE = {
    "identity": lambda: models(job_id=Column(BigInteger, Identity(), primary_key=True)),
    "serial": lambda: models(job_id=Column(BigInteger, primary_key=True)),
    "a sequence of the app's": lambda: models(
        job_id=Column(BigInteger, numbers, primary_key=True, server_default=numbers.next_value())
    ),
    "a default of another column": lambda: models(
        job_id=Column(BigInteger, Identity(), primary_key=True),
        noted_at=Column(DateTime(timezone=True), server_default=func.now()),
        noted_by=Column(Text, default=func.current_setting("role")),
    ),
}
RIGHTS_BY_DATABASE = {
    "identity": {
        'USAGE ON SCHEMA "Queue s"',
        'INSERT ON TABLE "Queue s".proletarian_job',
        'SELECT (job_id) ON TABLE "Queue s".proletarian_job',
    }
}
RIGHTS_BY_DATABASE["serial"] = RIGHTS_BY_DATABASE["identity"] | {'USAGE ON SEQUENCE "Queue s".proletarian_job_job_id_seq'}
RIGHTS_BY_DATABASE["a sequence of the app's"] = RIGHTS_BY_DATABASE["identity"] | {'USAGE ON SEQUENCE "Queue s".numbers'}
RIGHTS_BY_DATABASE["a default of another column"] = RIGHTS_BY_DATABASE["identity"] | {
    'SELECT (noted_at) ON TABLE "Queue s".proletarian_job',
    'SELECT (noted_by) ON TABLE "Queue s".proletarian_job',
}


def enqueue_in_every_way(jobs, engine):
    with Session(engine) as session, session.begin():
        job = jobs.enqueue(session, "one")
        session.flush()
        assert job.job_id == 1
        assert jobs.enqueue_many(session, [("many", {"n": n}) for n in range(3)]) == [2, 3, 4]
    with engine.begin() as connection:
        assert jobs.enqueue(connection, "core").job_id == 5


@pytest.mark.parametrize("case", BY_DATABASE)
def test_what_the_database_fills_in_is_read_back_and_no_more(engine, login, case):
    jobs = Proletarian(*BY_DATABASE[case]())
    execute(engine, 'CREATE SCHEMA "Queue s"')
    jobs.job_model.metadata.create_all(engine)
    enqueuer = login("enqueuer", jobs.job_model, jobs.archived_model)
    assert {*pieces("enqueuer", jobs.job_model, jobs.archived_model)} == RIGHTS_BY_DATABASE[case]
    for piece in RIGHTS_BY_DATABASE[case]:
        execute(engine, f"REVOKE {piece} FROM {quoted(enqueuer.url.username)}")
        with denied():
            enqueue_in_every_way(jobs, enqueuer)
        execute(engine, f"GRANT {piece} TO {quoted(enqueuer.url.username)}")
    execute(engine, 'TRUNCATE "Queue s".proletarian_job RESTART IDENTITY')
    if "sequence" in case or case == "serial":
        execute(
            engine,
            *(
                f"ALTER SEQUENCE {piece.split('SEQUENCE ')[1]} RESTART"
                for piece in RIGHTS_BY_DATABASE[case]
                if "SEQ" in piece
            ),
        )
    enqueue_in_every_way(jobs, enqueuer)
    with enqueuer.connect() as connection, denied():
        connection.execute(select(jobs.job_model.payload))


# names ------------------------------------------------------------------------------------------------------------------


NASTY = """x"; DROP TABLE kept; --'%s \'$$"""


def test_names_that_want_to_be_statements_stay_names(engine, login):
    jobs = Proletarian(*models_for(MetaData(), prefix=NASTY, schema=NASTY))
    execute(engine, "CREATE TABLE kept ()", f"CREATE SCHEMA {quoted(NASTY)}")
    jobs.job_model.metadata.create_all(engine)
    enqueuer = login("enqueuer", jobs.job_model, jobs.archived_model, to=f"{NASTY}{uuid4().hex}")
    with enqueuer.begin() as connection:
        jobs.enqueue(connection, "a")
    execute(engine, "SELECT FROM kept")


@pytest.mark.parametrize(("name", "written"), [("web", "web"), ("user", '"user"'), ("Web", '"Web"'), ('a"b', '"a""b"')])
def test_a_name_gets_quotation_marks_where_it_needs_them(name, written):
    assert grants("enqueuer", to=name).statements() == [f"GRANT INSERT ON TABLE proletarian_job TO {written};"]


def test_a_schema_translate_map_puts_the_tables_elsewhere(engine, login, jobs):
    execute(engine, "CREATE SCHEMA north")
    tenant = {"schema_translate_map": {None: "north"}}
    Job.metadata.create_all(engine.execution_options(**tenant))
    enqueuer = login("enqueuer", **tenant)
    with enqueuer.execution_options(**tenant).begin() as connection:
        jobs.enqueue(connection, "a")


@pytest.mark.parametrize("name", ["", "public", "PUBLIC", "none", "a\nb", "a\x00b"])
def test_a_role_that_is_everybody_or_no_name_is_refused(name):
    with pytest.raises(ValueError, match=r"to must name a role|control characters"):
        grants("worker", to=name)


def test_a_role_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="enqueuer, worker, admin, got 'boss'"):
        grants("boss")


def test_models_of_another_kind_are_refused():
    from sa_proletarian import clojure

    with pytest.raises(TypeError, match="made with JobMixin"):
        grants("worker", clojure.Job, clojure.ArchivedJob)


def test_what_is_optional_is_a_comment(tables):
    script = grants("worker", to="Web app").script().splitlines()
    assert '-- GRANT proletarian_enqueuer TO "Web app";' in script
    assert not [line for line in script if line.startswith("GRANT") and "enqueuer" in line]


def test_an_enqueuer_that_wakes_workers_needs_nothing_more(tables):
    script = grants("enqueuer", to="Web app").script().splitlines()
    assert [line for line in script if not line.startswith("--")] == ['GRANT INSERT ON TABLE proletarian_job TO "Web app";']
    assert not [line for line in script if "proletarian_worker" in line]
