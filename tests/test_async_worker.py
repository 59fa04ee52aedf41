"""The async worker: handlers on the event loop, lease upkeep beside it, and the ways in which it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import timedelta

import pytest
from psycopg.errors import DeadlockDetected
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import await_only, greenlet_spawn

from sa_proletarian import AsyncWorker, ConfigurationError, Job, Retry
from sa_proletarian.async_execution import LoopLock
from sa_proletarian.async_shift import AsyncShift

PATIENCE = 20


@pytest.fixture(params=["psycopg", "asyncpg"])
def url(request, database_url):
    return database_url.set(drivername=f"postgresql+{request.param}")


@pytest.fixture
def psycopg_url(database_url):
    return database_url.set(drivername="postgresql+psycopg")


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*job_types, **options):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type, **options).job_id for job_type in job_types]

    return enqueue


@pytest.fixture
def seen(recorder):
    """Wait, without blocking the loop, for so many events of a name."""

    async def seen(name, count=1):
        return await asyncio.to_thread(recorder.wait_for, name, count)

    return seen


@asynccontextmanager
async def working(jobs, url, recorder, **options):
    engine = create_async_engine(url)
    options = {"polling_interval": timedelta(milliseconds=20), "listener": recorder, **options}
    worker = AsyncWorker(jobs, engine, **options)
    try:
        async with worker:
            yield worker
    finally:
        await engine.dispose()


async def write(session, what):
    await session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


def effects(rows):
    return [what for (what,) in rows("SELECT what FROM effect ORDER BY what")]


def archive(rows):
    return rows("SELECT job_type, status, attempts FROM proletarian_archived_job ORDER BY job_type")


def backends(rows):
    return rows(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )[0][0]


# run


def test_handlers_of_both_kinds_are_run_once_and_archived_with_what_they_wrote(url, jobs, enqueue, recorder, seen, rows):
    @jobs.handler("async")
    async def in_task(session: AsyncSession, job: Job):
        await write(session, f"async {job.attempts}")

    @jobs.handler("plain")
    def in_thread(session: Session, job: Job):
        session.execute(text("INSERT INTO effect VALUES ('plain')"))

    @jobs.handler("idle")
    async def idle(session, job):
        await asyncio.sleep(0)

    @jobs.handler("retried", retry=Retry(retries=1))
    async def retried(session, job):
        await write(session, f"retried {job.attempts}")
        if job.attempts == 1:
            raise ValueError("not yet")

    enqueue("async", "plain", "idle", "retried")

    async def main():
        async with working(jobs, url, recorder):
            await seen("job_finished", 4)

    asyncio.run(main())
    assert archive(rows) == [
        ("async", "success", 1),
        ("idle", "success", 1),
        ("plain", "success", 1),
        ("retried", "success", 2),
    ]
    assert effects(rows) == ["async 1", "plain", "retried 2"]


def test_a_hundred_handlers_that_leave_their_session_alone_hold_no_connection(url, jobs, enqueue, recorder, seen, rows):
    inside, connections = [], []

    @jobs.handler("call")
    async def call(session, job):
        inside.append(job)
        if len(inside) == 100:
            connections.append(await asyncio.to_thread(backends, rows))
            everybody.set()
        await everybody.wait()

    enqueue(*["call"] * 100)

    async def main():
        global everybody
        everybody = asyncio.Event()
        async with working(jobs, url, recorder, concurrency=100):
            await seen("job_finished", 100)

    asyncio.run(main())
    assert connections[0] <= 3  # the feeder's, the one to listen with, and that of the fixture


def test_handlers_wait_for_a_connection_and_none_fails_by_waiting(url, jobs, enqueue, recorder, seen, rows):
    most = []

    @jobs.handler("write")
    async def handler(session, job):
        await write(session, "written")
        most.append(await asyncio.to_thread(backends, rows))

    enqueue(*["write"] * 30)

    async def main():
        async with working(jobs, url, recorder, concurrency=30, connections=2):
            await seen("job_finished", 30)

    asyncio.run(main())
    assert effects(rows) == ["written"] * 30
    assert max(most) <= 5  # two handlers, the feeder, the one to listen with, the fixture
    assert set(recorder.names) <= {"handling_job", "job_finished", "shutting_down", "completed_shutdown"}


def test_what_a_handler_leaves_in_its_task_does_not_reach_the_next(psycopg_url, jobs, enqueue, recorder, seen, rows):
    request, got, tasks = ContextVar("request"), [], []

    @jobs.handler("work")
    async def work(session, job):
        got.append(request.get(None))
        request.set(job.job_id)
        tasks.append(asyncio.current_task())
        if len(tasks) == 1:
            raise deadlock  # called again, and in the same way

    enqueue(*["work"] * 3)
    deadlock = DBAPIError("", {}, DeadlockDetected())

    async def main():
        async with working(jobs, psycopg_url, recorder, concurrency=1):
            await seen("job_finished", 3)

    asyncio.run(main())
    assert got == [None] * 4
    assert len({*tasks}) == 4
    assert recorder.names.count("conflict_retried") == 1


def test_a_session_is_made_when_it_is_asked_for_something(psycopg_url, jobs, enqueue, recorder, seen, rows):
    got = []

    @jobs.handler("idle")
    async def idle(session, job):
        got.append((isinstance(session, AsyncSession), {*vars(session)} & {"sync_session", "bind", "binds"}))

    @jobs.handler("work")
    async def work(session, job):
        got.append((hasattr(session, "nonsense"), session.autoflush, isinstance(session.sync_session, Session)))
        async with session:
            await write(session, "written")
            await session.commit()

    enqueue("idle", "work")

    async def main():
        async with working(jobs, psycopg_url, recorder, concurrency=1):
            await seen("job_finished", 2)

    asyncio.run(main())
    assert got == [(True, set()), (False, True, True)]
    assert effects(rows) == ["written"]


def test_a_handler_that_uses_its_session_as_a_plain_one_has_failed(psycopg_url, jobs, enqueue, recorder, seen, rows):
    """It has no connection, but for no fault of the database: to run it again and again would change nothing."""

    @jobs.handler("plain", retry=None)
    async def plain(session, job):
        session.sync_session.execute(text("SELECT 1"))

    enqueue("plain")

    async def main():
        async with working(jobs, psycopg_url, recorder):
            await seen("not_retrying")

    asyncio.run(main())
    assert rows("SELECT status, attempts, error LIKE '%run_sync%' FROM proletarian_archived_job") == [("failure", 1, True)]
    assert recorder.named("connection_unavailable") == []


def test_who_cancels_a_handlers_task_too_late_does_not_cancel_what_follows(psycopg_url, jobs, enqueue, recorder, seen, rows):
    tasks = []

    @jobs.handler("work")
    async def work(session, job):
        await write(session, "never")
        tasks.append(asyncio.current_task())
        raise ValueError("no")

    async def on_failed(job, error):
        tasks[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks.append(str(error))

    @jobs.handler("next")
    async def next_one(session, job):
        await write(session, "next")

    enqueue("work", "next")

    async def main():
        async with working(jobs, psycopg_url, recorder, concurrency=1, on_failed=on_failed):
            await seen("job_finished")

    asyncio.run(main())
    assert archive(rows) == [("next", "success", 1), ("work", "failure", 1)]
    assert tasks[1:] == ["no"]
    assert effects(rows) == ["next"]


def test_what_follows_a_handler_is_done_also_if_it_is_cancelled_before_it_has_begun(
    psycopg_url, jobs, enqueue, recorder, seen, rows
):
    cancelled = []

    @jobs.handler("work")
    async def work(session, job):
        await write(session, "never")
        before = asyncio.all_tasks()

        def cancel_what_is_new():
            cancelled.extend(task.cancel() for task in asyncio.all_tasks() - before)

        asyncio.get_running_loop().call_soon(cancel_what_is_new)
        raise ValueError("no")

    @jobs.handler("next")
    async def next_one(session, job):
        await write(session, "next")

    enqueue("work", "next")

    async def main():
        async with working(jobs, psycopg_url, recorder, concurrency=1, connections=1):
            await seen("job_finished")

    asyncio.run(main())
    assert cancelled == [True]
    assert archive(rows) == [("next", "success", 1), ("work", "failure", 1)]
    assert effects(rows) == ["next"]


def test_a_plain_function_does_not_block_the_loop(psycopg_url, jobs, enqueue, recorder, seen):
    met = threading.Event()

    @jobs.handler("plain")
    def waits(session, job):
        assert met.wait(PATIENCE)

    @jobs.handler("async")
    async def sets(session, job):
        met.set()

    enqueue("plain", "async")

    async def main():
        async with working(jobs, psycopg_url, recorder, concurrency=2):
            await seen("job_finished", 2)

    asyncio.run(main())


def test_a_handler_that_blocks_the_loop_does_not_let_its_neighbours_lease_run_out(
    psycopg_url, jobs, enqueue, recorder, seen, rows
):
    patient = asyncio.Event()
    renewed = []

    @jobs.handler("patient")
    async def waits(session, job):
        await patient.wait()

    @jobs.handler("blocking")
    async def blocks(session, job):
        """Hold up the loop until the neighbour's lease has been renewed twice."""
        until = set()
        while len(until) < 3:
            until |= {*rows("SELECT claimed_until FROM proletarian_job WHERE job_type = 'patient'")}
        renewed.append(True)
        patient.set()

    enqueue("patient", "blocking")

    async def main():
        async with working(jobs, psycopg_url, recorder, lease=timedelta(milliseconds=600)):
            await seen("job_finished", 2)

    asyncio.run(main())
    assert renewed
    assert [event.attempt for event in recorder.named("handling_job")] == [1, 1]


def test_two_first_uses_at_once_do_not_lock_each_other_out(url, jobs, enqueue, recorder, seen, rows):
    @jobs.handler("together")
    async def together(session, job):
        await asyncio.gather(*[session.run_sync(lambda s: s.connection()) for _ in range(3)], return_exceptions=True)

    @jobs.handler("after")
    async def after(session, job):
        await write(session, "after")

    enqueue("together", "after")

    async def main():
        async with working(jobs, url, recorder, connections=1):
            await seen("handling_job", 2)
            while not await asyncio.to_thread(effects, rows):
                pass

    asyncio.run(main())
    assert rows("SELECT count(*) FROM proletarian_job WHERE claim_id IS NOT NULL") == [(0,)]


def test_a_lock_of_the_loop_is_one_greenlets_at_a_time_also_when_one_that_waits_is_cancelled():
    lock, inside, order = LoopLock(), asyncio.Event(), []

    def use(name):
        with lock:
            order.append(f"{name} in")
            inside.set()
            await_only(asyncio.sleep(0.01))
            order.append(f"{name} out")

    async def main():
        tasks = [asyncio.create_task(greenlet_spawn(use, name)) for name in "abc"]
        await inside.wait()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[1].cancelled()
        await greenlet_spawn(use, "d")

    asyncio.run(main())
    assert order == ["a in", "a out", "c in", "c out", "d in", "d out"]


def test_sessions_are_made_by_the_apps_sessionmaker(psycopg_url, jobs, enqueue, recorder, seen):
    class MyAsyncSession(AsyncSession):
        pass

    class MySession(Session):
        pass

    got = []

    @jobs.handler("async")
    async def in_task(session, job):
        got.append((type(session).__name__, type(session.sync_session).__name__, session.sync_session.expire_on_commit))

    @jobs.handler("plain")
    def in_thread(session, job):
        got.append((type(session).__name__, session.expire_on_commit))

    enqueue("async", "plain")

    async def main():
        maker = async_sessionmaker(class_=MyAsyncSession, sync_session_class=MySession, expire_on_commit=False)
        async with working(jobs, psycopg_url, recorder, session=maker):
            await seen("job_finished", 2)

    asyncio.run(main())
    assert sorted(got) == [("MyAsyncSession", "MySession", False), ("MySession", False)]


def test_an_async_scoped_session_is_the_handlers_session_in_its_task(psycopg_url, jobs, enqueue, recorder, seen, rows):
    scoped = async_scoped_session(async_sessionmaker(), scopefunc=asyncio.current_task)

    @jobs.handler("scoped")
    async def handler(session, job):
        assert scoped() is session
        await write(scoped, "by the scope")

    enqueue("scoped")

    async def main():
        async with working(jobs, psycopg_url, recorder, session=scoped):
            await seen("job_finished")

    asyncio.run(main())
    assert effects(rows) == ["by the scope"]
    assert not scoped.registry.registry


@pytest.mark.parametrize("kind", [contextmanager, asynccontextmanager])
def test_around_takes_context_managers_of_both_kinds(kind, psycopg_url, jobs, enqueue, recorder, seen):
    order = []

    if kind is contextmanager:

        @contextmanager
        def around(job):
            order.append(f"before {job.job_type}")
            yield
            order.append("after")

    else:

        @asynccontextmanager
        async def around(job):
            order.append(f"before {job.job_type}")
            yield
            order.append("after")

    @jobs.handler("work")
    async def handler(session, job):
        order.append("inside")

    enqueue("work")

    async def main():
        async with working(jobs, psycopg_url, recorder, around=around):
            await seen("job_finished")

    asyncio.run(main())
    assert order == ["before work", "inside", "after"]


# fail


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), KeyboardInterrupt(), Odd(), ValueError("no")])
def test_whatever_a_handler_raises_fails_its_job_and_the_worker_lives_on(
    error, psycopg_url, jobs, enqueue, recorder, seen, rows
):
    @jobs.handler("bad")
    async def bad(session, job):
        await write(session, "bad")
        raise error

    @jobs.handler("good")
    async def good(session, job):
        await write(session, "good")

    enqueue("bad")

    async def main():
        async with working(jobs, psycopg_url, recorder):
            await seen("not_retrying")
            enqueue("good")
            await seen("job_finished")

    asyncio.run(main())
    assert archive(rows) == [("bad", "failure", 1), ("good", "success", 1)]
    assert effects(rows) == ["good"]


def test_on_failed_is_awaited_or_called_in_a_thread(psycopg_url, jobs, enqueue, recorder, seen, rows):
    called = []

    async def on_the_loop(job, error):
        await asyncio.sleep(0)
        called.append(("loop", str(error), threading.current_thread() is threading.main_thread()))

    def in_a_thread(job, error):
        called.append(("thread", str(error), threading.current_thread() is threading.main_thread()))

    async def refuse(session, job):
        await write(session, "never")
        raise ValueError(job.job_type)

    def refuse_plainly(session, job):
        raise ValueError(job.job_type)

    jobs.handler("one", on_failed=on_the_loop)(refuse)
    jobs.handler("two", on_failed=in_a_thread)(refuse)
    jobs.handler("three", on_failed=on_the_loop)(refuse_plainly)
    jobs.handler("four", on_failed=in_a_thread)(refuse_plainly)
    enqueue("one", "two", "three", "four")

    async def main():
        async with working(jobs, psycopg_url, recorder):
            await seen("not_retrying", 4)

    asyncio.run(main())
    assert sorted(called) == [
        ("loop", "one", True),
        ("loop", "three", True),
        ("thread", "four", False),
        ("thread", "two", False),
    ]


def test_sleep_would_block_the_loop_and_says_what_to_do(psycopg_url, jobs, enqueue, recorder, seen):
    @jobs.handler("work")
    async def work(session, job):
        job.sleep(timedelta(seconds=1))

    enqueue("work")

    async def main():
        async with working(jobs, psycopg_url, recorder):
            await seen("not_retrying")

    asyncio.run(main())
    assert "await job.sleep_async" in str(recorder.named("not_retrying")[0].error)


# stop


def test_what_still_runs_is_cancelled_when_the_time_is_over_and_the_pool_stays_whole(
    url, jobs, enqueue, recorder, seen, rows
):
    inside = threading.Event()

    @jobs.handler("stuck")
    async def stuck(session, job):
        await write(session, "never")
        inside.set()
        await session.execute(text("SELECT pg_sleep(3600)"))

    @jobs.handler("quick")
    async def quick(session, job):
        await write(session, "quick")

    enqueue("stuck")

    async def main():
        async with working(jobs, url, recorder, connections=1) as worker:
            assert await asyncio.to_thread(inside.wait, PATIENCE)
            assert await worker.stop(timedelta(0))
            rows("DELETE FROM proletarian_job")
            enqueue("quick")
            await worker.start()
            await seen("job_finished")

    asyncio.run(main())
    assert [event.attempt for event in recorder.named("job_interrupted")] == [1]
    assert effects(rows) == ["quick"]


def test_a_handler_that_does_not_let_itself_be_cancelled_is_taken_away_and_named(psycopg_url, jobs, enqueue, recorder, rows):
    @jobs.handler("stubborn")
    async def stubborn(session, job):
        await write(session, "never")
        inside.set()
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    [job_id] = enqueue("stubborn")
    inside = threading.Event()

    async def main():
        global over
        over = asyncio.Event()
        async with working(jobs, psycopg_url, recorder) as worker:
            assert await asyncio.to_thread(inside.wait, PATIENCE)
            assert not await worker.stop(timedelta(0))
            assert rows("SELECT attempts, claim_id FROM proletarian_job") == [(0, None)]
            over.set()

    asyncio.run(main())
    assert recorder.named("queue_worker_shutdown_error")[0].job_ids == (job_id,)
    assert effects(rows) == []


def test_what_waits_behind_busy_slots_is_released_on_stop(psycopg_url, jobs, enqueue, recorder, seen, rows):
    @jobs.handler("long")
    async def long(session, job):
        await job.sleep_async(timedelta(hours=1))

    enqueue(*["long"] * 5)

    async def main():
        async with working(jobs, psycopg_url, recorder, concurrency=2):
            await seen("handling_job", 2)

    asyncio.run(main())
    assert rows("SELECT attempts, claim_id FROM proletarian_job") == [(0, None)] * 5


def test_a_handler_may_stop_its_own_worker(psycopg_url, jobs, enqueue, recorder, rows):
    stopped = []

    async def main():
        async with working(jobs, psycopg_url, recorder) as worker:

            @jobs.handler("last")
            async def last(session, job):
                stopped.append(await worker.stop())

            enqueue("last")
            await worker.run()

    asyncio.run(main())
    assert stopped == [False]
    assert archive(rows) == [("last", "success", 1)]


def test_cancelling_the_task_that_runs_the_worker_stops_it(psycopg_url, jobs, enqueue, recorder, seen, rows):
    @jobs.handler("long")
    async def long(session, job):
        await job.sleep_async(timedelta(hours=1))

    enqueue("long")

    async def main():
        engine = create_async_engine(psycopg_url)
        worker = AsyncWorker(jobs, engine, listener=recorder)
        task = asyncio.create_task(worker.run())
        await seen("handling_job")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not worker.running
        await engine.dispose()

    asyncio.run(main())
    assert recorder.names[-1] == "completed_shutdown"
    assert rows("SELECT attempts, claim_id FROM proletarian_job") == [(0, None)]


def test_start_and_stop_are_idempotent_and_on_shutdown_is_awaited(psycopg_url, jobs, tables, recorder):
    ended = []

    async def on_shutdown():
        await asyncio.sleep(0)
        ended.append(True)

    async def main():
        async with working(jobs, psycopg_url, recorder, on_shutdown=on_shutdown) as worker:
            assert worker.running
            assert not await worker.start()
            assert await worker.stop()
            assert not worker.running
            assert await worker.stop()

    asyncio.run(main())
    assert ended == [True]
    assert recorder.names.count("already_shut_down") == 2


def test_a_stopped_worker_leaves_no_connection_and_no_thread(url, jobs, enqueue, recorder, seen, rows):
    @jobs.handler("async")
    async def in_task(session, job):
        await write(session, "async")

    @jobs.handler("plain")
    def in_thread(session, job):
        session.execute(text("INSERT INTO effect VALUES ('plain')"))

    enqueue("async", "plain")
    before = {*threading.enumerate()}

    async def main():
        async with working(jobs, url, recorder, worker_id="gone"):
            await seen("job_finished", 2)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("gone")]
        while await asyncio.to_thread(backends, rows) > 1:  # the fixture's; the server takes a moment to see the end
            pass

    asyncio.run(main())
    assert {*threading.enumerate()} <= before | {threading.main_thread()}


def test_stop_waits_also_for_a_feeder_that_has_done_everything_but_end(psycopg_url, jobs, tables, recorder, monkeypatch):
    feed, join, waited_for = AsyncShift._feed, threading.Thread.join, threading.Event()

    def feed_and_linger(self):
        feed(self)
        waited_for.wait(PATIENCE)

    def tell_and_join(self, timeout=None):
        if self.name == "slow-feeder":
            waited_for.set()
        join(self, timeout)

    monkeypatch.setattr(AsyncShift, "_feed", feed_and_linger)
    monkeypatch.setattr(threading.Thread, "join", tell_and_join)

    async def main():
        async with working(jobs, psycopg_url, recorder, worker_id="slow") as worker:
            assert await worker.stop()
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("slow")]

    asyncio.run(main())


PROGRAM = """
import asyncio, sys
from datetime import timedelta
from sqlalchemy.ext.asyncio import create_async_engine
from sa_proletarian import AsyncWorker, Proletarian

jobs = Proletarian()

@jobs.handler("long")
async def long(session, job):
    print("begun", flush=True)
    await (asyncio.sleep(3600) if job.payload == "deaf" else job.sleep_async(timedelta(hours=1)))

async def main():
    engine = create_async_engine(sys.argv[1])
    clean = await AsyncWorker(jobs, engine, termination_timeout=timedelta(hours=1)).run()
    await engine.dispose()
    print("clean" if clean else "not clean", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def process(psycopg_url, tables):
    url = psycopg_url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True, env={**os.environ})
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_gracefully(number, process, enqueue, rows):
    enqueue("long")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert process.stdout.readline() == "clean\n"
    assert process.wait(PATIENCE) == 0
    assert rows("SELECT attempts, claim_id FROM proletarian_job") == [(0, None)]


def test_a_second_signal_releases_at_once(process, enqueue, rows):
    enqueue("long", payload="deaf")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "clean\n"
    assert process.wait(PATIENCE) == 0
    assert rows("SELECT attempts, claim_id FROM proletarian_job") == [(0, None)]


# refuse


def test_bad_arguments_are_refused_before_anything_starts(psycopg_url, jobs):
    engine = create_async_engine(psycopg_url)
    plain = create_engine(psycopg_url)
    with pytest.raises(TypeError, match="takes an AsyncEngine, got a Engine"):
        AsyncWorker(jobs, plain)
    with pytest.raises(TypeError, match="takes a Proletarian first"):
        AsyncWorker(engine, jobs)
    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        AsyncWorker(jobs, engine, concurrency=0)
    with pytest.raises(ValueError, match="connections must be at least 1"):
        AsyncWorker(jobs, engine, connections=0)
    with pytest.raises(TypeError, match="session must be an async_sessionmaker, got a type"):
        AsyncWorker(jobs, engine, session=AsyncSession)
    with pytest.raises(ConfigurationError, match="another engine"):
        AsyncWorker(jobs, engine, session=async_sessionmaker(create_async_engine(psycopg_url)))
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        AsyncWorker(jobs, create_async_engine(psycopg_url, isolation_level="AUTOCOMMIT"))


def test_it_is_not_loaded_before_it_is_named():
    done = subprocess.run(
        [sys.executable, "-c", "import sa_proletarian, sys; assert 'sa_proletarian.async_worker' not in sys.modules"],
        check=False,
    )
    assert done.returncode == 0
