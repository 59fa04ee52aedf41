"""What takes a processor: computed by an executor, in another process, and written by the handler in its session."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import (
    AsyncWorker,
    ComputationFailed,
    ConfigurationError,
    JobTimeout,
    Outcome,
    Proletarian,
    Retry,
    Worker,
    processes,
)

PATIENCE = 60

# what other processes can import by name
COMPUTATIONS = '''
import os, signal, sys, threading
from pathlib import Path
from datetime import timedelta
from sa_proletarian import Cancel, Snooze

class Particular(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what} {why}")

def double(payload):
    return {"n": payload["n"] * 2, "pid": os.getpid()}

def fail(payload):
    raise ValueError("no good")

def fail_particularly(payload):
    raise Particular("cannot", "be pickled")

def leave(payload):
    sys.exit("left")

def snooze(payload):
    raise Snooze(timedelta(hours=1))

def cancel(payload):
    raise Cancel("not wanted")

def give_what_cannot_be_sent(payload):
    return threading.Lock()

def die(payload):
    os.kill(os.getpid(), signal.SIGKILL)

def die_once(payload):
    try:
        Path(payload["path"]).touch(exist_ok=False)
    except FileExistsError:
        return "survived"
    os.kill(os.getpid(), signal.SIGKILL)

def note(payload):
    """Leave a line, as each call does that is really made."""
    with open(payload["path"], "a") as file:
        file.write(f"{os.getpid()}\\n")
    return "noted"

def hang(payload):
    Path(payload["path"]).write_text(f"{os.getpid()}")
    while True:
        threading.Event().wait(3600)
'''


@pytest.fixture
def computations(tmp_path, monkeypatch):
    (tmp_path / "computations.py").write_text(COMPUTATIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import computations

    yield computations
    del sys.modules["computations"]


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*payloads, job_type="work"):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type, payload).job_id for payload in payloads]

    return enqueue


class InThreads:
    is_async = False

    def __init__(self, jobs, engine, recorder):
        self._given = jobs, engine, recorder

    @contextmanager
    def __call__(self, **options):
        jobs, engine, recorder = self._given
        options = {"polling_interval": timedelta(milliseconds=20), "listener": recorder, "threads": 2, **options}
        worker = Worker(jobs, engine, **options)
        worker.start()
        try:
            yield worker.stop
        finally:
            worker.stop(timedelta(seconds=2))


class OnLoop:
    is_async = True

    def __init__(self, jobs, engine, recorder):
        self._given = jobs, engine, recorder

    @contextmanager
    def __call__(self, **options):
        jobs, engine, recorder = self._given
        options = {"polling_interval": timedelta(milliseconds=20), "listener": recorder, "concurrency": 2, **options}
        begun, answers = threading.Event(), []

        async def main():
            app = create_async_engine(engine.url)
            worker, loop = AsyncWorker(jobs, app, **options), asyncio.get_running_loop()
            await worker.start()
            begin_stop.append(lambda timeout: loop.call_soon_threadsafe(worker._shift.begin_stop, timeout))
            begun.set()
            answers.append(await worker._shift.wait())
            await app.dispose()

        begin_stop = []
        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        assert begun.wait(PATIENCE)

        def end(timeout=timedelta(seconds=10)):
            if not answers:
                begin_stop[0](timeout)
            thread.join(PATIENCE)
            return answers[0]

        try:
            yield end
        finally:
            end(timedelta(seconds=2))


@pytest.fixture(params=["Worker", "AsyncWorker"])
def working(request, jobs, tables, recorder):
    """Give a context in which a worker of each kind runs."""
    return (InThreads if request.param == "Worker" else OnLoop)(jobs, tables, recorder)


@pytest.fixture
def in_threads(jobs, tables, recorder):
    return InThreads(jobs, tables, recorder)


def write(session, what):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": str(what)})


def effects(rows):
    return sorted(what for (what,) in rows("SELECT what FROM effect"))


def archive(rows):
    return rows("SELECT status, attempts FROM proletarian_archived_job ORDER BY status, attempts")


def queue(rows):
    return rows("SELECT attempts, crashes, claim_id FROM proletarian_job")


def error(rows):
    [(text,)] = rows("SELECT error FROM proletarian_archived_job")
    return text


def keep(session, job, result):
    write(session, result)


# compute and write


def test_what_a_process_has_computed_is_written_in_the_fenced_session(working, computations, jobs, enqueue, recorder, rows):
    @jobs.handler("plain", compute=computations.double)
    def plain(session, job, result):
        assert result["pid"] != os.getpid()
        write(session, result["n"])

    @jobs.handler("async", compute=computations.double)
    async def on_loop(session, job, result):
        assert result["pid"] != os.getpid()
        await session.run_sync(write, result["n"])

    enqueue({"n": 1}, {"n": 2}, job_type="plain")
    enqueue({"n": 3}, job_type="async")
    with working(executor=processes(2)):
        recorder.wait_for("job_finished", 3, PATIENCE)
    assert archive(rows) == [("success", 1)] * 3
    assert effects(rows) == ["2", "4", "6"]


@pytest.mark.parametrize("form", ["process_next", "process_next_async"])
def test_process_next_computes_here(form, computations, jobs, enqueue, tables):
    seen = []
    jobs.handler("work", compute=computations.double)(lambda session, job, result: seen.append(result))
    enqueue({"n": 1})
    if form == "process_next":
        assert jobs.process_next(tables) is Outcome.RETURNED
    else:

        async def main():
            engine = create_async_engine(tables.url)
            assert await jobs.process_next_async(engine) is Outcome.RETURNED
            await engine.dispose()

        asyncio.run(main())
    assert seen == [{"n": 2, "pid": os.getpid()}]


def test_a_conflict_in_the_handler_computes_nothing_again(computations, jobs, enqueue, in_threads, recorder, tmp_path):
    path = tmp_path / "calls"
    calls = []

    @jobs.handler("work", compute=computations.note)
    def work(session, job, result):
        calls.append(result)
        if len(calls) == 1:
            session.execute(text("DO $$ BEGIN RAISE 'again' USING ERRCODE = 'serialization_failure'; END $$"))

    enqueue({"path": str(path)})
    with in_threads(executor=lambda: ThreadPoolExecutor(1)):
        recorder.wait_for("job_finished")
    assert calls == ["noted", "noted"]
    assert len(path.read_text().splitlines()) == 1


# what the function raises


def test_what_it_raises_is_the_jobs_failure_and_says_where(computations, jobs, enqueue, in_threads, recorder, rows):
    jobs.handler("work", compute=computations.fail, retry=Retry(retries=1))(keep)
    enqueue({})
    with in_threads(executor=lambda: ThreadPoolExecutor(1)):
        recorder.wait_for("not_retrying")
    assert "ValueError: no good" in error(rows)
    assert 'computations.py", line' in error(rows) and "in fail" in error(rows)
    assert (archive(rows), effects(rows)) == ([("failure", 2)], [])


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("fail_particularly", ComputationFailed, "Particular: cannot be pickled"),
        ("leave", SystemExit, "left"),
        ("give_what_cannot_be_sent", TypeError, "cannot pickle"),
    ],
)
def test_nothing_that_it_does_breaks_the_executor(
    name, kind, words, computations, jobs, enqueue, in_threads, recorder, rows
):
    jobs.handler("work", compute=getattr(computations, name))(keep)
    enqueue({})
    with in_threads(executor=lambda: ThreadPoolExecutor(1)):
        [event] = recorder.wait_for("not_retrying")
    assert type(event.error) is kind and words in str(event.error)
    assert "executor_replaced" not in recorder.names


def test_it_may_choose_the_jobs_fate(computations, jobs, enqueue, in_threads, recorder):
    jobs.handler("snooze", compute=computations.snooze)(keep)
    jobs.handler("cancel", compute=computations.cancel)(keep)
    enqueue({}, job_type="snooze")
    enqueue({}, job_type="cancel")
    with in_threads(executor=lambda: ThreadPoolExecutor(1)):
        [snoozed] = recorder.wait_for("job_snoozed")
        [cancelled] = recorder.wait_for("job_cancelled")
    assert (snoozed.delay, cancelled.reason) == (timedelta(hours=1), "not wanted")


def test_a_function_without_a_name_fails_in_words(jobs, enqueue, in_threads, recorder, rows):
    jobs.handler("work", compute=lambda payload: payload)(keep)
    enqueue({})
    with in_threads(executor=lambda: ThreadPoolExecutor(1)):
        recorder.wait_for("not_retrying")
    assert "can be imported by its name" in error(rows)


# lost processes


def test_a_lost_process_is_a_crash_and_no_attempt_and_the_next_job_has_a_new_executor(
    working, computations, jobs, enqueue, recorder, rows, tmp_path
):
    jobs.handler("work", compute=computations.die_once)(keep)
    enqueue({"path": str(tmp_path / "once")})
    with working(executor=processes(1)):
        recorder.wait_for("process_died", 1, PATIENCE)
        assert queue(rows)[0][:2] == (0, 1)
        recorder.wait_for("job_finished", 1, PATIENCE)
    assert (archive(rows), effects(rows)) == ([("success", 1)], ["survived"])
    assert len(recorder.named("executor_replaced")) == 1


@pytest.mark.slow
def test_a_job_that_kills_its_process_takes_no_other_along_and_is_archived_as_crashed(
    computations, jobs, enqueue, in_threads, recorder, rows
):
    jobs.handler("killer", compute=computations.die)(keep)
    jobs.handler("work", compute=computations.double)(lambda session, job, result: write(session, result["n"]))
    enqueue({}, job_type="killer")
    enqueue(*[{"n": n} for n in range(4)])
    with in_threads(executor=processes(2), crash_ceiling=2):
        recorder.wait_for("job_crashed", 1, PATIENCE)
        recorder.wait_for("job_finished", 4, PATIENCE)
    assert archive(rows) == [("crashed", 1), *[("success", 1)] * 4]
    assert "executor's" in rows("SELECT error FROM proletarian_archived_job WHERE status = 'crashed'")[0][0]


def test_an_executor_that_never_works_is_no_jobs_fault(computations, jobs, enqueue, in_threads, recorder, rows):
    jobs.handler("work", compute=computations.double)(keep)
    enqueue({"n": 1})
    with in_threads(executor=processes(1, initializer=computations.die, initargs=({},))):
        recorder.wait_for("connection_unavailable", 2, PATIENCE)
    assert queue(rows) == [(0, 0, None)]
    assert "process_died" not in recorder.names


class CallsOff(Executor):
    """An executor that calls off the first job it gets, as dask does when its scheduler is gone."""

    def __init__(self):
        self._answers = iter([True, False])

    def submit(self, function, /, *args):
        future = Future()
        if args and next(self._answers, True):
            future.set_result(function(*args))
        elif args:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_result(function())
        return future


def test_a_call_that_is_called_off_by_somebody_else_is_made_again(computations, jobs, enqueue, in_threads, recorder, rows):
    jobs.handler("work", compute=computations.double)(lambda session, job, result: write(session, result["n"]))
    enqueue({"n": 1}, {"n": 2}, {"n": 3})
    with in_threads(executor=CallsOff, threads=1):
        recorder.wait_for("job_finished", 3, PATIENCE)
    assert len(recorder.named("connection_unavailable")) == 1
    assert archive(rows) == [("success", 1)] * 3


class Closed(Exception):
    """What dask says, in a class of its own, when its client has closed itself."""


class Closes(Executor):
    """An executor that takes one job, and no more."""

    def __init__(self):
        self._jobs = 0

    def submit(self, function, /, *args):
        self._jobs += bool(args)
        if self._jobs > 1:
            raise Closed
        future = Future()
        future.set_result(function(*args))
        return future


def test_an_executor_that_takes_no_more_calls_is_replaced_whatever_it_says(
    computations, jobs, enqueue, in_threads, recorder, rows
):
    jobs.handler("work", compute=computations.double)(lambda session, job, result: write(session, result["n"]))
    enqueue({"n": 1}, {"n": 2})
    with in_threads(executor=Closes, threads=1):
        recorder.wait_for("job_finished", 2, PATIENCE)
    assert [type(event.error) for event in recorder.named("executor_replaced")] == [Closed]
    assert archive(rows) == [("success", 1)] * 2


# end early


def hanging(path, recorder):
    """Wait until the call has begun; give the id of its process."""
    for _ in range(PATIENCE * 20):
        if path.exists() and (text := path.read_text()):
            return int(text)
        threading.Event().wait(0.05)
    raise AssertionError(f"nothing hangs, but {recorder.names}")


def ends(pid):
    """Wait until a process has ended."""
    for _ in range(PATIENCE * 20):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if state(pid) in ("Z", "X"):
            return True
        threading.Event().wait(0.05)
    return False


def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


@pytest.mark.slow
def test_a_call_whose_time_is_over_gives_up_its_slot_and_its_process(
    working, computations, jobs, enqueue, recorder, rows, tmp_path
):
    path = tmp_path / "pid"
    jobs.handler("hang", compute=computations.hang, timeout=timedelta(seconds=5))(keep)
    jobs.handler("work", compute=computations.double)(lambda session, job, result: write(session, result["n"]))
    enqueue({"n": 1})
    with working(executor=processes(1)):
        recorder.wait_for("job_finished", 1, PATIENCE)  # the process is there
        enqueue({"path": str(path)}, job_type="hang")
        pid = hanging(path, recorder)
        enqueue({"n": 2})
        [failed] = recorder.wait_for("not_retrying", 1, PATIENCE)
        assert isinstance(failed.error, JobTimeout)
        assert ends(pid)
        recorder.wait_for("job_finished", 2, PATIENCE)
    assert "handler_stuck" not in recorder.names
    assert (archive(rows), effects(rows)) == ([("failure", 1), ("success", 1), ("success", 1)], ["2", "4"])


@pytest.mark.slow
def test_a_stop_waits_as_long_as_it_may_and_then_releases_the_job(
    working, computations, jobs, enqueue, recorder, rows, tmp_path
):
    path = tmp_path / "pid"
    jobs.handler("hang", compute=computations.hang)(keep)
    enqueue({"path": str(path)}, job_type="hang")
    with working(executor=processes(1)) as stop:
        pid = hanging(path, recorder)
        assert stop(timedelta(seconds=0.2))
    assert ends(pid)
    assert queue(rows) == [(0, 0, None)]
    assert recorder.names.count("job_interrupted") == 1
    assert "executor_replaced" not in recorder.names


def test_a_job_that_is_cancelled_from_outside_is_given_up(
    in_threads, computations, jobs, enqueue, recorder, rows, tables, tmp_path
):
    path = tmp_path / "pid"
    jobs.handler("hang", compute=computations.hang)(keep)
    [job_id] = enqueue({"path": str(path)}, job_type="hang")
    with in_threads(executor=processes(1)):
        pid = hanging(path, recorder)
        with Session(tables) as session, session.begin():
            jobs.cancel(session, job_id)
        recorder.wait_for("job_cancelled", 1, PATIENCE)
        assert ends(pid)
    assert archive(rows) == [("cancelled", 1)]


# processes


PROGRAM = """
import sys
from sqlalchemy import create_engine
from computations import hang
from sa_proletarian import Proletarian, Worker, processes

jobs = Proletarian()
jobs.handler("hang", compute=hang)(lambda session, job, result: None)
if __name__ == "__main__":
    Worker(jobs, create_engine(sys.argv[1]), executor=processes(1)).run()
"""


@pytest.fixture
def program(computations, tables, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    url = tables.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, tmp_path / "program.py", url], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_process_ends_when_its_worker_has_died_and_keeps_no_connection(
    program, jobs, enqueue, recorder, rows, tmp_path, computations
):
    path = tmp_path / "pid"
    jobs.handler("hang", compute=computations.hang)(keep)
    enqueue({"path": str(path)}, job_type="hang")
    pid = hanging(path, recorder)
    program.kill()
    assert ends(pid)


@pytest.mark.slow
def test_signals_to_the_whole_group_are_left_to_the_worker(program, jobs, enqueue, recorder, rows, tmp_path, computations):
    path = tmp_path / "pid"
    jobs.handler("hang", compute=computations.hang)(keep)
    enqueue({"path": str(path)}, job_type="hang")
    pid = hanging(path, recorder)
    os.killpg(program.pid, signal.SIGINT)
    threading.Event().wait(0.6)  # longer than an echo of the first
    os.killpg(program.pid, signal.SIGTERM)
    assert program.wait(PATIENCE) == 0
    assert ends(pid)
    assert queue(rows) == [(0, 0, None)]


# refuse


def test_a_worker_without_an_executor_is_refused_at_start(jobs, tables):
    jobs.handler("work", compute=len)(keep)
    with pytest.raises(ConfigurationError, match="the compute of 'work' needs an executor"):
        Worker(jobs, tables).start()

    async def main():
        with pytest.raises(ConfigurationError, match="the compute of 'work' needs an executor"):
            await AsyncWorker(jobs, create_async_engine(tables.url)).start()

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [ThreadPoolExecutor(1), 4])
def test_an_executor_itself_is_refused_because_it_cannot_be_replaced(wrong, jobs, tables):
    with pytest.raises(TypeError, match="executor must be a function that makes one"):
        Worker(jobs, tables, executor=wrong)
    with pytest.raises(TypeError, match="executor must be a function that makes one"):
        AsyncWorker(jobs, create_async_engine(tables.url), executor=wrong)


def test_a_function_that_makes_something_else_is_refused_at_start(jobs, tables):
    with pytest.raises(TypeError, match="must make a concurrent.futures.Executor, it made a int"):
        Worker(jobs, tables, executor=lambda: 4).start()


def test_processes_that_are_forked_are_refused_at_start(jobs, tables):
    def forking():
        return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))

    with pytest.raises(ConfigurationError, match="forks"):
        Worker(jobs, tables, executor=forking).start()


async def coroutine(payload):
    pass


@pytest.mark.parametrize("wrong", ["render", coroutine])
def test_compute_is_a_plain_function(wrong, jobs):
    with pytest.raises(TypeError, match="compute must be"):
        jobs.handler("work", compute=wrong)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"max_tasks_per_child": 0}, {"initializer": 4}])
def test_processes_says_at_once_what_is_wrong(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        processes(**wrong)


def test_the_name_of_a_handler_that_computes_can_be_its_function(computations):
    jobs = Proletarian()
    jobs.handler("work", compute=computations.double)(keep)
    assert jobs.type_of(keep) == "work"
