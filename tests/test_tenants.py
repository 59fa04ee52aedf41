"""Several schemas, several databases, several queues: workers that run together, and what they keep apart."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.schema import CreateSchema

from sa_proletarian import ArchivedJobMixin, JobMixin, Proletarian, Retry, Worker, Workers, metadata, uuid7

TENANTS = ("north", "south")
OFTEN = timedelta(milliseconds=20)


class Base(DeclarativeBase):
    pass


class TenantJob(JobMixin, Base):
    pass


class ArchivedTenantJob(ArchivedJobMixin, Base):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


@pytest.fixture
def tenant_jobs():
    return Proletarian(TenantJob, ArchivedTenantJob)


@pytest.fixture
def tenants(engine):
    """The engine of each tenant: the app's own, with a map of its schema. There are no tables outside of the schemas."""
    engines = {name: engine.execution_options(schema_translate_map={None: name}) for name in TENANTS}
    for name, tenant in engines.items():
        with tenant.begin() as connection:
            connection.execute(CreateSchema(name))
        Base.metadata.create_all(tenant)
    return engines


@pytest.fixture
def together(recorder):
    """Start workers as one; they are stopped at the end."""
    groups = []

    def together(*workers):
        groups.append(Workers(*workers))
        groups[-1].start()
        return groups[-1]

    yield together
    for group in groups:
        group.stop(timedelta(seconds=2))


@pytest.fixture
def worker(recorder):
    def worker(jobs, engine, **options):
        return Worker(jobs, engine, **{"polling_interval": OFTEN, "listener": recorder, **options})

    return worker


def enqueue(jobs, engine, *arguments, **options):
    with Session(engine) as session, session.begin():
        return jobs.enqueue(session, *arguments, **options).job_id


def ask(engine, statement):
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


# schemas


def test_each_tenants_jobs_are_worked_in_its_own_schema(tenants, tenant_jobs, together, worker, recorder, engine):
    """The same job ids in both: what one tenant's worker claims, writes and archives, the other's never touches."""

    def handler(session, job):
        assert session.get(TenantJob, job.job_id).payload == job.payload
        session.add(Note(what=job.payload))
        session.commit()
        session.add(Note(what=f"{job.payload}, after a commit"))

    tenant_jobs.handler("note")(handler)
    shared = uuid7()
    for name, tenant in tenants.items():
        enqueue(tenant_jobs, tenant, "note", f"of {name}", job_id=shared)
    together(*[worker(tenant_jobs, tenant, worker_id=name) for name, tenant in tenants.items()])
    recorder.wait_for("job_finished", 2)
    for name in TENANTS:
        assert ask(engine, f"SELECT what FROM {name}.note ORDER BY id") == [(f"of {name}",), (f"of {name}, after a commit",)]
        archived = ask(engine, f"SELECT job_id, payload #>> '{{}}', status FROM {name}.proletarian_archived_job")
        assert archived == [(shared, f"of {name}", "success")]
        assert ask(engine, f"SELECT count(*) FROM {name}.proletarian_job") == [(0,)]
    assert {(event.worker_id, event.job_id) for event in recorder.named("job_finished")} == {(n, shared) for n in TENANTS}


def test_failures_and_retries_stay_with_their_tenant(tenants, tenant_jobs, together, worker, recorder, engine):
    def handler(session, job):
        session.add(Note(what="gone"))
        session.flush()
        if job.payload == "fails" or job.attempts == 1:
            raise ValueError(job.payload)

    tenant_jobs.handler("work", retry=Retry(1))(handler)
    enqueue(tenant_jobs, tenants["north"], "work", "fails")
    enqueue(tenant_jobs, tenants["south"], "work", "recovers")
    together(*[worker(tenant_jobs, tenant) for tenant in tenants.values()])
    recorder.wait_for("not_retrying")
    recorder.wait_for("job_finished")
    fates = {name: ask(engine, f"SELECT status, attempts FROM {name}.proletarian_archived_job") for name in TENANTS}
    assert fates == {"north": [("failure", 2)], "south": [("success", 2)]}
    assert ask(engine, "SELECT count(*) FROM north.note") == [(0,)]


def test_what_a_handler_enqueues_and_where_its_search_goes_is_its_own_tenant(
    tenants, tenant_jobs, together, worker, recorder, engine
):
    def first(session, job):
        tenant_jobs.enqueue(session, "second", job.payload)
        session.connection(execution_options={"schema_translate_map": {None: "south"}})  # does not outlive the job

    tenant_jobs.handler("first")(first)
    tenant_jobs.handler("second")(lambda session, job: session.add(Note(what=job.payload)))
    enqueue(tenant_jobs, tenants["north"], "first", "handed on")
    together(*[worker(tenant_jobs, tenant) for tenant in tenants.values()])
    recorder.wait_for("job_finished", 2)
    notes = {name: ask(engine, f"SELECT what FROM {name}.note") for name in TENANTS}
    assert notes in ({"north": [("handed on",)], "south": []}, {"north": [], "south": [("handed on",)]})
    assert ask(engine, "SELECT count(*) FROM north.proletarian_archived_job WHERE job_type = 'first'") == [(1,)]


def test_the_apps_session_class_serves_every_tenant(tenants, tenant_jobs, together, worker, recorder, engine):
    class Own(Session):
        pass

    tenant_jobs.handler("note")(lambda session, job: session.add(Note(what=type(session).__name__)))
    for tenant in tenants.values():
        enqueue(tenant_jobs, tenant, "note")
    together(*[worker(tenant_jobs, tenant, session=sessionmaker(class_=Own)) for tenant in tenants.values()])
    recorder.wait_for("job_finished", 2)
    assert [ask(engine, f"SELECT what FROM {name}.note") for name in TENANTS] == [[("Own",)], [("Own",)]]


def test_a_tenant_without_tables_does_not_hurt_the_others(tenants, tenant_jobs, together, worker, recorder, engine):
    tenant_jobs.handler("note")(lambda session, job: session.add(Note(what="x")))
    new = engine.execution_options(schema_translate_map={None: "new"})
    group = together(worker(tenant_jobs, new, worker_id="new"), worker(tenant_jobs, tenants["north"]))
    [missing] = recorder.wait_for("job_worker_error")
    assert (missing.worker_id, "migrations" in missing.hint) == ("new", True)
    enqueue(tenant_jobs, tenants["north"], "note")
    recorder.wait_for("job_finished")
    with new.begin() as connection:
        connection.execute(CreateSchema("new"))
    Base.metadata.create_all(new)
    enqueue(tenant_jobs, new, "note")
    recorder.wait_for("job_finished", 2)
    assert group.stop()


# databases


@pytest.fixture
def two_databases(postgres, administration, engine):
    """Two databases with the default tables, and a function that closes the second to everybody, or opens it again."""
    name = f"test_{uuid4().hex}"
    with administration.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))

    def allow(*, connections):
        with administration.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {connections}"))
            connection.execute(
                text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
            )

    other = create_engine(postgres.url(name))
    for database in (engine, other):
        metadata.create_all(database)
    yield engine, other, allow
    other.dispose()
    with administration.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_a_database_that_is_away_does_not_hurt_the_others(two_databases, jobs, together, worker, recorder):
    here, away, allow = two_databases
    seen = []
    jobs.handler("work")(lambda session, job: seen.append(job.payload))
    enqueue(jobs, away, "work", "away")
    allow(connections=False)
    group = together(worker(jobs, here, worker_id="here"), worker(jobs, away, worker_id="away"))
    recorder.wait_for("sql_transient_exception")
    for number in range(5):
        enqueue(jobs, here, "work", number)
    recorder.wait_for("job_finished", 5)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert {event.worker_id for event in recorder.named("sql_transient_exception")} == {"away"}
    allow(connections=True)
    recorder.wait_for("job_finished", 6)
    assert seen[-1] == "away"
    assert group.stop()


def test_a_group_stops_although_one_database_is_away(two_databases, jobs, together, worker, recorder):
    here, away, allow = two_databases
    group = together(worker(jobs, here), worker(jobs, away))
    allow(connections=False)
    recorder.wait_for("sql_transient_exception")
    assert group.stop()
    assert not group.running
    allow(connections=True)


# start, stop, run


@pytest.fixture
def queues(tables, jobs, worker):
    """Two workers, on two queues of one database."""
    return [worker(jobs, tables, queue=name, worker_id=name) for name in ("one", "two")]


def test_all_begin_to_stop_before_any_is_waited_for(queues, tables, jobs, together, recorder):
    """The first job ends when the second has seen the stop, and the other way round: one after the other never would."""
    seen = {name: threading.Event() for name in ("one", "two")}

    def handler(session, job):
        while not job.interrupted:
            threading.Event().wait(0.01)
        seen[job.queue].set()
        assert all(event.wait(8) for event in seen.values())

    jobs.handler("work")(handler)
    for name in seen:
        enqueue(jobs, tables, "work", queue=name)
    group = together(*queues)
    recorder.wait_for("handling_job", 2)
    assert group.stop()
    assert len(recorder.named("job_finished")) == 2


def test_a_stop_that_takes_a_job_away_from_one_says_so_for_all(queues, tables, jobs, together, recorder):
    hanging = threading.Event()
    jobs.handler("hang")(lambda session, job: hanging.wait(20))
    enqueue(jobs, tables, "hang", queue="one")
    group = together(*queues)
    recorder.wait_for("handling_job")
    assert not group.stop(timedelta(0))
    assert [event.worker_id for event in recorder.named("queue_worker_shutdown_error")] == ["one"]
    assert [event.worker_id for event in recorder.named("completed_shutdown")] == ["two"]
    hanging.set()


def test_start_and_stop_are_idempotent_and_a_group_can_be_started_again(queues, tables, jobs, recorder):
    jobs.handler("work")(lambda session, job: None)
    group = Workers(*queues)
    assert (group.running, group.stop()) == (False, True)
    assert (group.start(), group.start(), group.running) == (True, False, True)
    assert group.stop() and not group.running
    with group:
        enqueue(jobs, tables, "work", queue="two")
        recorder.wait_for("job_finished")
    assert not group.running


def test_a_worker_that_runs_already_is_left_as_it_is(queues, together):
    queues[0].start()
    shift = queues[0]._shift
    together(*queues)
    assert queues[0]._shift is shift


def test_when_one_cannot_start_none_stays_started(queues, tables, worker):
    class Broken(Proletarian):
        def has_coroutines(self):
            raise TypeError("cannot start")

    group = Workers(queues[0], worker(Broken(), tables))
    with pytest.raises(TypeError, match="cannot start"):
        group.start()
    queues[0].stop()
    assert not group.running


def test_a_handler_may_stop_its_group(queues, tables, jobs, together, recorder):
    given = []
    jobs.handler("stop")(lambda session, job: given.append(group.stop()))
    group = together(*queues)
    enqueue(jobs, tables, "stop", queue="one")
    recorder.wait_for("completed_shutdown", 2)
    assert given == [False]


def test_run_waits_for_the_last_worker_and_gives_what_stop_gives(queues, tables, jobs, recorder):
    group = Workers(*queues)
    given = []
    thread = threading.Thread(target=lambda: given.append(group.run()))
    thread.start()
    recorder.wait_for("polling_for_jobs", 2)
    queues[0].stop()
    assert thread.is_alive() and group.running
    queues[1].stop()
    thread.join(10)
    assert given == [True]


SCRIPT = """
    import sys, threading
    from sqlalchemy import create_engine
    from sa_proletarian import Proletarian, Worker, Workers

    jobs, engine = Proletarian(), create_engine(sys.argv[1])

    @jobs.handler("hang")
    def hang(session, job):
        threading.Event().wait()

    @jobs.handler("stop_one")
    def stop_one(session, job):
        workers[0].stop()
        print("one has ended", flush=True)

    def tell(event):
        print(event.name, event.worker_id, getattr(event, "signal", ""), flush=True)

    workers = [Worker(jobs, engine, queue=name, worker_id=name, listener=tell) for name in ("one", "two")]
    sys.exit(0 if Workers(*workers).run() else 3)
"""


@pytest.fixture
def process(tables, database_url):
    url = database_url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def read_until(process, wanted):
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if all(any(one in line for line in lines) for one in wanted):
            return lines
    raise AssertionError(f"no {wanted} in {lines}")


def test_one_signal_stops_every_worker(process):
    read_until(process, ["polling_for_jobs one", "polling_for_jobs two"])
    process.send_signal(signal.SIGTERM)
    lines = [line for line in process.stdout.read().splitlines() if "polling" not in line]
    assert sorted(lines) == sorted(
        f"{what} {name}" + (" SIGTERM" if what == "worker_interrupted" else " ")
        for what in ("worker_interrupted", "shutting_down", "completed_shutdown")
        for name in ("one", "two")
    )
    assert process.wait(10) == 0


def test_a_worker_that_has_ended_hears_of_no_signal(process, tables, jobs):
    enqueue(jobs, tables, "stop_one", queue="two")
    read_until(process, ["one has ended", "job_finished two"])
    process.send_signal(signal.SIGTERM)
    lines = process.stdout.read().splitlines()
    assert "worker_interrupted two SIGTERM" in lines
    assert [line for line in lines if " one" in line] == []
    assert process.wait(10) == 0


def test_a_second_signal_releases_at_once_what_still_runs(process, tables, jobs):
    enqueue(jobs, tables, "hang", queue="two")
    read_until(process, ["handling_job two", "polling_for_jobs one"])
    process.send_signal(signal.SIGTERM)
    read_until(process, ["completed_shutdown one", "shutting_down two"])
    process.send_signal(signal.SIGINT)
    lines = process.stdout.read().splitlines()
    assert "interrupted_while_shutting_down two SIGINT" in lines
    assert process.wait(10) == 3
    assert ask(tables, "SELECT attempts, claim_id FROM proletarian_job") == [(0, None)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((), ValueError), (("one",), TypeError), (("same", "same"), ValueError)],
)
def test_refuses_what_is_no_group(queues, arguments, error):
    with pytest.raises(error, match="Workers takes"):
        Workers(*[queues[0] if argument == "same" else argument for argument in arguments])


def test_no_statement_of_a_worker_leaves_its_schema(tenants, tenant_jobs, together, worker, recorder, engine):
    tenant_jobs.handler("note", retry=Retry(1))(
        lambda session, job: session.add(Note(what="x")) if job.attempts > 1 else 1 / 0
    )
    enqueue(tenant_jobs, tenants["north"], "note")
    sent = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    together(worker(tenant_jobs, tenants["north"]))
    recorder.wait_for("job_finished")
    # advisory locks and channels have names of their own, made of the schema that comes as a parameter
    named = [statement for statement in sent if re.search(r"(?<!sa_)proletarian_|\bnote\b", statement)]
    assert named
    assert [statement for statement in named if "north." not in statement] == []
