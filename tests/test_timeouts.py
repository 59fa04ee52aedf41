"""Timeouts of handlers: how they are asked to end, and what becomes of those that do not."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import AsyncWorker, Interrupted, JobTimeout, Outcome, Retry, Snooze, Worker, overtime
from sa_proletarian.sessions import Hold
from sa_proletarian.transactions import Transactions

HOUR = timedelta(hours=1)
SHORT = timedelta(milliseconds=50)
ENOUGH = timedelta(seconds=3)  # to use the session before it is over, also on a busy machine
PATIENCE = 20


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*job_types):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type).job_id for job_type in job_types]

    return enqueue


@pytest.fixture(params=["psycopg", "asyncpg"])
def url(request, database_url):
    return database_url.set(drivername=f"postgresql+{request.param}")


@pytest.fixture
def working(url, recorder):
    """Return a context in which an async worker runs."""

    @asynccontextmanager
    async def working(jobs, **options):
        engine = create_async_engine(url)
        options = {"polling_interval": timedelta(milliseconds=20), "listener": recorder, **options}
        try:
            async with AsyncWorker(jobs, engine, **options) as worker:
                yield worker
        finally:
            await engine.dispose()

    return working


@pytest.fixture
def seen(recorder):
    async def seen(name, count=1):
        return await asyncio.to_thread(recorder.wait_for, name, count)

    return seen


@pytest.fixture
def impatient(monkeypatch):
    """Give handlers that were asked to end no second more."""
    monkeypatch.setattr(overtime, "STUCK_GRACE", 0.05)


def write(session, what):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


async def write_async(session, what):
    await session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


def effects(rows):
    return [what for (what,) in rows("SELECT what FROM effect ORDER BY what")]


def archive(rows):
    return rows("SELECT job_type, status, attempts FROM proletarian_archived_job ORDER BY job_type")


TOLD = ["handling_job", "timed_out", "handle_job_exception", "not_retrying"]


def the_error(recorder):
    [event] = recorder.named("not_retrying")
    assert isinstance(event.error, JobTimeout)
    return event.error


# the argument


@pytest.mark.parametrize("wrong", [timedelta(0), -SHORT, 5])
def test_a_timeout_is_a_span_above_zero(wrong, jobs, tables):
    kind = TypeError if wrong == 5 else ValueError
    with pytest.raises(kind, match="timeout must be"):
        jobs.handler("work", timeout=wrong)
    with pytest.raises(kind, match="timeout must be"):
        Worker(jobs, tables, timeout=wrong)
    with pytest.raises(kind, match="timeout must be"):
        jobs.process_next(tables, timeout=wrong)
    engine = create_async_engine(tables.url)
    with pytest.raises(kind, match="timeout must be"):
        AsyncWorker(jobs, engine, timeout=wrong)
    with pytest.raises(kind, match="timeout must be"):
        asyncio.run(jobs.process_next_async(engine, timeout=wrong))


# threads


def test_a_sleeping_job_ends_when_its_time_is_over_and_its_neighbour_goes_on(jobs, enqueue, start_worker, recorder, rows):
    timed_out = threading.Event()

    @jobs.handler("short", timeout=SHORT)
    def short(session, job):
        write(session, "never")
        job.sleep(HOUR)

    @jobs.handler("long")
    def long(session, job):
        assert timed_out.wait(PATIENCE)
        assert not job.interrupted
        job.sleep(timedelta(0))

    enqueue("short", "long")
    start_worker(jobs, threads=2)
    recorder.wait_for("not_retrying")
    timed_out.set()
    recorder.wait_for("job_finished")
    assert archive(rows) == [("long", "success", 1), ("short", "failure", 1)]
    assert effects(rows) == []
    assert str(the_error(recorder)) == "the handler took longer than its timeout of 0.05 s"
    [(error,)] = rows("SELECT error FROM proletarian_archived_job WHERE job_type = 'short'")
    assert error.startswith("JobTimeout: ") and "job.sleep(HOUR)" in error


def test_the_strategy_sees_the_timeout_and_what_the_handler_raised(jobs, enqueue, start_worker, recorder, rows):
    asked = []

    def strategy(job, error):
        asked.append((job.attempts, type(error), type(error.__cause__)))
        return Retry(retries=1)

    @jobs.handler("work", timeout=SHORT, retry=strategy)
    def work(session, job):
        while not job.interrupted:
            pass
        raise KeyError("in the middle")

    enqueue("work")
    start_worker(jobs)
    recorder.wait_for("not_retrying")
    assert asked == [(1, JobTimeout, KeyError), (2, JobTimeout, KeyError)]
    assert archive(rows) == [("work", "failure", 2)]


def test_the_sql_of_an_overdue_handler_is_cancelled(jobs, enqueue, start_worker, recorder, rows):
    @jobs.handler("slow")
    def slow(session, job):
        write(session, "never")
        session.execute(text("SELECT pg_sleep(3600)"))

    jobs.handler("next")(lambda session, job: write(session, "next"))
    enqueue("slow", "next")
    start_worker(jobs, timeout=timedelta(seconds=1))
    recorder.wait_for("job_finished")
    assert archive(rows) == [("next", "success", 1), ("slow", "failure", 1)]
    assert effects(rows) == ["next"]
    assert recorder.names[:4] == TOLD
    assert "canceling statement due to user request" in str(the_error(recorder).__cause__)


def test_the_handlers_timeout_comes_before_the_workers(jobs, enqueue, start_worker, recorder):
    @jobs.handler("own", timeout=HOUR)
    def own(session, job):
        recorder.wait_for("not_retrying")
        assert not job.interrupted

    jobs.handler("workers")(lambda session, job: job.sleep(HOUR))
    enqueue("own", "workers")
    start_worker(jobs, threads=2, timeout=SHORT)
    recorder.wait_for("job_finished")
    assert recorder.named("job_finished")[0].job_type == "own"


def test_a_handler_that_is_overdue_and_returns_has_returned(jobs, enqueue, start_worker, recorder, rows):
    @jobs.handler("work", timeout=SHORT)
    def work(session, job):
        while not job.interrupted:
            pass
        write(session, "late")

    enqueue("work")
    start_worker(jobs)
    recorder.wait_for("job_finished")
    assert (archive(rows), effects(rows)) == ([("work", "success", 1)], ["late"])
    assert recorder.named("timed_out") == []


def test_a_handler_that_is_overdue_may_still_choose_its_fate(jobs, enqueue, start_worker, recorder, rows):
    @jobs.handler("work", timeout=ENOUGH)
    def work(session, job):
        write(session, "a part")
        session.commit()
        try:
            job.sleep(HOUR)
        except Interrupted:
            raise Snooze(HOUR) from None

    enqueue("work")
    start_worker(jobs)
    recorder.wait_for("job_snoozed")
    assert rows("SELECT attempts, claim_id FROM proletarian_job") == [(0, None)]
    assert effects(rows) == ["a part"]


def test_a_server_connection_that_was_cancelled_is_not_used_again(jobs, enqueue, start_worker, recorder):
    pids = []

    @jobs.handler("work", timeout=ENOUGH)
    def work(session, job):
        pids.append(session.scalar(text("SELECT pg_backend_pid()")))
        while not job.interrupted and len(pids) == 1:
            pass

    enqueue("work", "work")
    start_worker(jobs)
    recorder.wait_for("job_finished", 2)
    assert pids[0] != pids[1]


def test_a_handler_that_sees_that_its_time_is_over_is_settled_after_the_cancel(
    jobs, enqueue, start_worker, recorder, rows, monkeypatch
):
    order, settled = [], threading.Event()
    cancel, finish = Transactions.cancel_statements, Hold.finish

    def cancel_late(self, connection, runs):
        if runs:
            settled.wait(0.5)  # it must not come to that
            order.append("cancelled")
        cancel(self, connection, runs)

    def finish_and_tell(self, limits):
        order.append("settled")
        settled.set()
        return finish(self, limits)

    monkeypatch.setattr(Transactions, "cancel_statements", cancel_late)
    monkeypatch.setattr(Hold, "finish", finish_and_tell)

    @jobs.handler("work", timeout=ENOUGH)
    def work(session, job):
        write(session, "done")
        while not job.interrupted:
            pass

    enqueue("work")
    start_worker(jobs)
    recorder.wait_for("job_finished")
    assert order == ["cancelled", "settled"]
    assert rows("SELECT what FROM effect") == [("done",)]


def test_a_handler_that_hangs_is_left_behind_and_another_thread_takes_its_place(
    jobs, enqueue, start_worker, recorder, rows, impatient
):
    free, said, pids = threading.Event(), [], []

    @jobs.handler("hang", timeout=ENOUGH)
    def hang(session, job):
        write(session, "never")
        pids.append(session.scalar(text("SELECT pg_backend_pid()")))
        assert free.wait(PATIENCE)
        try:
            write(session, "late")
        except Exception as error:
            said.append(error)

    jobs.handler("next")(lambda session, job: write(session, "next"))
    enqueue("hang", "next", "next")
    worker = start_worker(jobs)
    recorder.wait_for("job_finished", 2)
    assert archive(rows) == [("hang", "failure", 1), ("next", "success", 1), ("next", "success", 1)]
    assert recorder.names[:5] == ["handling_job", "handler_stuck", *TOLD[1:]]
    while rows("SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=pids[0]):
        pass  # it has been told to end, and takes a moment
    [stuck] = [thread for thread in threading.enumerate() if thread.name == f"{worker.worker_id}-1"]
    free.set()
    stuck.join(PATIENCE)
    assert not stuck.is_alive() and said
    assert effects(rows) == ["next", "next"]
    assert worker.stop() is True
    assert [name for name in recorder.names if name in TOLD[1:]] == TOLD[1:]


def test_as_many_jobs_run_side_by_side_after_a_handler_hung_and_came_back_as_before(
    jobs, enqueue, start_worker, recorder, impatient
):
    free, inside, most, running = threading.Event(), threading.Semaphore(0), [], set()
    go_on = threading.Event()

    @jobs.handler("hang", timeout=SHORT)
    def hang(session, job):
        assert free.wait(PATIENCE)

    @jobs.handler("meet")
    def meet(session, job):
        running.add(job.job_id)
        most.append(len(running))
        inside.release()
        assert go_on.wait(PATIENCE)
        running.discard(job.job_id)

    enqueue("hang")
    worker = start_worker(jobs, threads=2)
    recorder.wait_for("handler_stuck")
    [stuck] = [event.thread for event in recorder.named("handling_job")]
    [stuck] = [thread for thread in threading.enumerate() if thread.name == stuck]
    free.set()
    stuck.join(PATIENCE)
    enqueue(*["meet"] * 5)
    assert all(inside.acquire(timeout=PATIENCE) for _ in range(2))
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith(worker.worker_id)]
    assert len([name for name in threads if not name.endswith("-ears")]) == 3
    go_on.set()
    recorder.wait_for("job_finished", 5)
    assert max(most) == 2


def test_a_hanging_handler_that_comes_back_settles_nothing(jobs, enqueue, start_worker, recorder, rows, impatient):
    """It has used no session: no transaction could be ended under it, and its return is all that it has to say."""
    free, again = threading.Event(), []

    @jobs.handler("hang", timeout=SHORT, retry=Retry(retries=1, delays=[HOUR]))
    def hang(session, job):
        assert free.wait(PATIENCE)
        with pytest.raises(Exception, match="was used after the job was over") as caught:
            write(session, "late")
        again.append(caught)

    enqueue("hang")
    worker = start_worker(jobs)
    recorder.wait_for("retrying")
    [stuck] = [thread for thread in threading.enumerate() if thread.name == f"{worker.worker_id}-1"]
    free.set()
    stuck.join(PATIENCE)
    assert again
    assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job") == [(1, 0, None)]
    assert recorder.named("job_finished") == recorder.named("claim_lost") == []


def test_process_next_has_timeouts_too(jobs, tables, enqueue, recorder):
    @jobs.handler("work")
    def work(session, job):
        write(session, "never")
        session.execute(text("SELECT pg_sleep(3600)"))

    enqueue("work")
    assert jobs.process_next(tables, timeout=SHORT, listener=recorder) is Outcome.GAVE_UP
    assert recorder.names == TOLD


# asyncio


def test_an_overdue_coroutine_is_cancelled_and_its_neighbour_goes_on(working, jobs, enqueue, recorder, seen, rows):
    @jobs.handler("short", timeout=SHORT)
    async def short(session, job):
        await write_async(session, "never")
        await asyncio.Event().wait()

    @jobs.handler("long")
    async def long(session, job):
        await write_async(session, "kept")
        await seen("not_retrying")

    enqueue("short", "long")

    async def main():
        async with working(jobs):
            await seen("job_finished")

    asyncio.run(main())
    assert archive(rows) == [("long", "success", 1), ("short", "failure", 1)]
    assert effects(rows) == ["kept"]
    assert str(the_error(recorder)) == "the handler took longer than its timeout of 0.05 s"


def test_a_coroutine_cancelled_within_its_sql_has_timed_out_and_the_pool_stays_whole(
    working, jobs, enqueue, recorder, seen, rows
):
    """Cancelled there, SQLAlchemy gives up the connection: the end is settled on the feeder's, and is an attempt."""

    @jobs.handler("slow", timeout=timedelta(milliseconds=300), retry=Retry(retries=2))
    async def slow(session, job):
        await write_async(session, "never")
        await session.execute(text("SELECT pg_sleep(3600)"))

    @jobs.handler("next")
    async def next_one(session, job):
        await write_async(session, "next")

    enqueue("slow")

    async def main():
        async with working(jobs, connections=1):
            await seen("not_retrying")
            enqueue("next")
            await seen("job_finished")

    asyncio.run(main())
    assert archive(rows) == [("next", "success", 1), ("slow", "failure", 3)]
    assert effects(rows) == ["next"]
    assert [event.attempt for event in recorder.named("timed_out")] == [1, 2, 3]
    assert recorder.named("connection_died") == []


def test_a_coroutine_that_swallows_its_cancellation_and_returns_has_returned(working, jobs, enqueue, recorder, seen, rows):
    @jobs.handler("work", timeout=SHORT)
    async def work(session, job):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await write_async(session, "late")

    enqueue("work")

    async def main():
        async with working(jobs):
            await seen("job_finished")

    asyncio.run(main())
    assert (archive(rows), effects(rows)) == ([("work", "success", 1)], ["late"])


@pytest.mark.parametrize("kind", ["task", "thread"])
def test_what_does_not_end_in_an_async_worker_is_left_behind(kind, working, jobs, enqueue, recorder, seen, rows, impatient):
    free = threading.Event()
    came_back = threading.Event()

    @jobs.handler("task", timeout=ENOUGH)
    async def task(session, job):
        await write_async(session, "never")
        waiting = asyncio.create_task(asyncio.to_thread(free.wait, PATIENCE))
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                continue
        came_back.set()

    @jobs.handler("thread", timeout=ENOUGH)
    def thread(session, job):
        write(session, "never")
        assert free.wait(PATIENCE)
        came_back.set()

    @jobs.handler("next-task")
    async def next_task(session, job):
        await write_async(session, "next")

    @jobs.handler("next-thread")
    def next_thread(session, job):
        write(session, "next")

    enqueue(kind, f"next-{kind}")

    async def main():
        async with working(jobs, concurrency=1) as worker:
            await seen("job_finished")
            free.set()
            assert await asyncio.to_thread(came_back.wait, PATIENCE)
            enqueue(f"next-{kind}")
            await seen("job_finished", 2)
            assert await worker.stop()

    asyncio.run(main())
    assert effects(rows) == ["next", "next"]
    assert archive(rows)[-1] == (kind, "failure", 1)
    assert len(recorder.named("handler_stuck")) == len(recorder.named("timed_out")) == 1


def test_process_next_async_has_timeouts_too(url, jobs, enqueue, recorder, rows):
    @jobs.handler("work", timeout=SHORT)
    async def work(session, job):
        await write_async(session, "never")
        await session.execute(text("SELECT pg_sleep(3600)"))

    enqueue("work")

    async def main():
        engine = create_async_engine(url)
        outcome = await jobs.process_next_async(engine, listener=recorder)
        await engine.dispose()
        return outcome

    assert asyncio.run(main()) is Outcome.GAVE_UP
    assert recorder.names == TOLD
    assert (archive(rows), effects(rows)) == ([("work", "failure", 1)], [])
