"""Real processes on the real database: what survives the death of one, and how all of them end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, Job, cli, curfew, events, shift, signals, supervisor
from sa_proletarian.child import READY, REPLACE, Child, memory
from sa_proletarian.clock import monotonic
from sa_proletarian.hand_back import LAST_CALL, Deceased, HandBack
from sa_proletarian.leases import Leases
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.overdue import CANCEL_GRACE, GIVE_UP_GRACE, HOPELESS
from sa_proletarian.supervisor import Place

APP = '''
import asyncio, os, signal, subprocess, sys, threading
from datetime import timedelta
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sa_proletarian import Proletarian

jobs = Proletarian()
async_jobs = Proletarian()
url = os.environ["APP_URL"]
engine = create_engine(url)
number = 7

def make_async_engine():
    return create_async_engine(url)

def say(what):
    os.write(1, f"{what} in {os.getpid()}\\n".encode())

@jobs.handler("write")
def write(session, job):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": job.job_type})
    say(f"writing {job.crashes}")
    if job.crashes == 0:
        job.sleep(timedelta(hours=1))

@jobs.handler("call")
def call(session, job):
    say(f"calling {job.crashes}")
    if job.crashes == 0:
        job.sleep(timedelta(hours=1))
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": job.job_type})

@jobs.handler("sleep")
def sleep(session, job):
    say("sleeping")
    job.sleep(timedelta(hours=1))

@jobs.handler("listen")
@async_jobs.handler("listen")
async def listen(session, job):
    ears = [thread for thread in threading.enumerate() if thread.name.endswith("-ears")]
    say(f"{len(ears)} of the threads listen")

@jobs.handler("hang")
def hang(session, job):
    say("hanging")
    threading.Event().wait(3600)

def stay_for_an_hour():
    threading.Thread(target=threading.Event().wait, args=(3600,), daemon=False).start()

@jobs.handler("stay")
@async_jobs.handler("stay")
def stay(session, job):
    stay_for_an_hour()
    say("staying")

@async_jobs.handler("stay_in_a_thread")
async def stay_in_a_thread(session, job):
    say("staying")
    await asyncio.to_thread(threading.Event().wait, 3600)

@jobs.handler("quick")
def quick(session, job):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": str(os.getpid())})

@jobs.handler("kill")
def kill(session, job):
    say("killing")
    os.kill(os.getpid(), signal.SIGKILL)

@jobs.handler("orphan")
def orphan(session, job):
    """Leave a process to PID 1, end it, and wait until nothing is left of it."""
    made = subprocess.run(["sh", "-c", "sleep 600 >/dev/null & echo $!"], stdout=subprocess.PIPE, text=True, check=True)
    pid = int(made.stdout)
    parent = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1]
    os.kill(pid, signal.SIGKILL)
    left = 1000
    while os.path.exists(f"/proc/{pid}") and left:
        job.sleep(timedelta(milliseconds=10))
        left -= 1
    say(f"child of {parent} {'reaped' if left else 'is a zombie'}, supervisor {os.getppid()}")

@async_jobs.handler("sleep")
async def sleep_async(session, job):
    say(f"sleeping on {job.queue}")
    await job.sleep_async(timedelta(hours=1))

@async_jobs.handler("hang")
async def hang_async(session, job):
    say(f"hanging on {job.queue}")
    await asyncio.sleep(3600)
'''

PROGRAM = """
from sa_proletarian import cli, supervisor
{}
cli.program()
"""


HANGING = """
import threading
threading.Thread(target=threading.Event().wait, args=(3600,)).start()
"""


class Command:
    """``sa-proletarian worker`` in a process, and what it and its children write."""

    def __init__(self, process):
        self.process = process
        self.lines = []

    def read_until(self, pattern, count=1):
        """Read until so many more lines match; give the matches."""
        found = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if match := re.search(pattern, line):
                found.append(match)
                if len(found) == count:
                    return found
        raise AssertionError(f"no {count} {pattern!r} in " + "\n".join(self.lines[-60:]))

    def end(self):
        """Read to the end, when the last process that could write has ended; give the exit code."""
        self.lines += [line.rstrip() for line in self.process.stdout]
        return self.process.wait(60)

    def kill_children(self):
        """End children that should have ended and have not, in a test that fails."""
        for pid, name in re.findall(r"child_started pid=(\d+) name=(\S+)", "\n".join(self.lines)):
            with suppress(OSError):
                if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    def has_said(self, pattern):
        return any(re.search(pattern, line) for line in self.lines)


@pytest.fixture
def command(tables, database_url, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    commands = []

    def start(*arguments, jobs="app:jobs", engine="app:engine", before=(), patch=""):
        environment = {**os.environ, "APP_URL": database_url.render_as_string(hide_password=False)}
        polling = ("--polling-interval", "0.02")
        worker = [sys.executable, "-c", PROGRAM.format(patch), "worker", jobs, "--engine", engine, *polling]
        process = subprocess.Popen(
            [*before, *worker, *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        commands.append(Command(process))
        return commands[-1]

    yield start
    for command in commands:
        command.process.kill()
        command.kill_children()
        command.end()
        command.process.stdout.close()


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*job_types, **options):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type, **options).job_id for job_type in job_types]

    return enqueue


ARCHIVE = "SELECT job_type, status, attempts FROM proletarian_archived_job ORDER BY job_type"
WAITING = "SELECT job_type, attempts, crashes, claim_id FROM proletarian_job"
EFFECTS = "SELECT what FROM effect"


# a child dies


@pytest.mark.parametrize(("job_type", "verb"), [("write", "writing"), ("call", "calling")])
def test_the_job_of_a_killed_child_runs_again_long_before_its_lease_ends(command, enqueue, rows, job_type, verb):
    """With a transaction that holds the row, and without."""
    enqueue(job_type)
    worker = command("--processes", "2")
    [begun] = worker.read_until(rf"{verb} 0 in (\d+)")
    before = time.monotonic()
    os.kill(int(begun[1]), signal.SIGKILL)
    [again] = worker.read_until(rf"{verb} 1 in (\d+)")
    worker.read_until("job_finished")
    assert time.monotonic() - before < 20, "the lease of 30 s is not waited for"
    assert again[1] != begun[1]
    assert worker.has_said("child_died .*exit=SIGKILL") and worker.has_said("handed_back jobs=1")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert rows(EFFECTS) == [(job_type,)]
    assert rows(ARCHIVE) == [(job_type, "success", 1)] and rows(WAITING) == []


@pytest.mark.slow
def test_a_job_that_kills_its_process_ends_as_crashed_and_takes_nobody_along(command, enqueue, rows):
    enqueue("quick", "quick", "kill", "quick", "quick")
    worker = command("--processes", "2", "--threads", "4", "--crash-ceiling", "3")
    worker.read_until("job_crashed")
    enqueue("quick")
    while rows("SELECT count(*) FROM proletarian_archived_job") != [(6,)]:
        worker.read_until("job_finished|child_started")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert [row[:2] for row in rows(ARCHIVE)] == [("kill", "crashed"), *[("quick", "success")] * 5]
    assert len(rows(EFFECTS)) == 5
    assert sum(line.startswith("killing") for line in worker.lines) == 3


# a child is replaced


@pytest.mark.slow
def test_a_child_is_replaced_after_so_many_jobs(command, enqueue, rows):
    enqueue(*["quick"] * 5)
    worker = command("--processes", "2", "--max-jobs", "1")
    while rows("SELECT count(*) FROM proletarian_archived_job") != [(5,)]:
        worker.read_until("child_ended")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert not worker.has_said("child_died")
    assert len({pid for (pid,) in rows(EFFECTS)}) >= 3
    assert rows(ARCHIVE) == [("quick", "success", 1)] * 5


@pytest.mark.slow
def test_a_child_is_replaced_above_its_memory_and_what_it_did_runs_again(command, enqueue, rows):
    enqueue("sleep")
    worker = command("--processes", "2", "--max-memory", "1")
    [begun] = worker.read_until(r"sleeping in (\d+)")
    [again] = worker.read_until(r"sleeping in (\d+)")
    assert begun[1] != again[1] and worker.has_said(f"child_replaced pid={begun[1]}")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert not worker.has_said("child_died")
    assert rows(WAITING) == [("sleep", 0, 0, None)]


def test_memory_is_what_this_process_uses():
    before = memory()
    ballast = b"x" * 50_000_000
    assert 10_000_000 < before < memory() - 40_000_000
    del ballast


# the end


def test_the_first_signal_stops_all_children_gracefully(command, enqueue, rows):
    enqueue("sleep", "sleep")
    worker = command("--processes", "2")
    begun = {match[1] for match in worker.read_until(r"sleeping in (\d+)", 2)}
    assert len(begun) == 2
    # a Ctrl-C in the terminal reaches the supervisor's group, of which they are not
    assert {os.getpgid(int(pid)) for pid in begun} == {int(pid) for pid in begun}
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert rows(WAITING) == [("sleep", 0, 0, None)] * 2


def test_a_second_signal_stops_at_once(command, enqueue, rows):
    enqueue("hang")
    worker = command("--processes", "2", "--termination-timeout", "600")
    worker.read_until("hanging")
    worker.process.send_signal(signal.SIGTERM)
    worker.read_until("shutting_down")
    worker.process.send_signal(signal.SIGINT)
    assert worker.end() == 1, "what hangs cannot end well"
    assert rows(WAITING) == [("hang", 0, 0, None)]


@pytest.mark.parametrize(
    ("second", "after", "hurries"),
    [(signal.SIGINT, 0.4, False), (signal.SIGINT, 0.6, True), (signal.SIGTERM, 0.1, True)],
)
def test_the_echo_of_a_signal_is_not_a_second_one(monkeypatch, caplog, second, after, hurries):
    """Two of one kind in a moment are one to the kernel anyway, so that the moment is made here."""
    now = [1000.0]
    monkeypatch.setattr("sa_proletarian.clock.monotonic", lambda: now[0])
    caplog.set_level("INFO", "sa_proletarian")
    boss = supervisor.Supervisor(lambda name, fd: [], lambda name: None, processes=0, termination_timeout=10)
    boss._places = []
    boss._heed(signal.SIGINT)
    now[0] += after
    boss._heed(second)
    boss._selector.close()
    assert "supervisor_interrupted signal=SIGINT" in caplog.text
    assert ("supervisor_interrupted_while_stopping" in caplog.text) is hurries


def test_children_stop_gracefully_when_their_supervisor_is_killed(command, enqueue, rows):
    enqueue("sleep", "sleep")
    worker = command("--processes", "2")
    worker.read_until("sleeping", 2)
    worker.process.kill()
    assert worker.end() == -signal.SIGKILL  # and nobody writes any more
    assert rows(WAITING) == [("sleep", 0, 0, None)] * 2


@pytest.mark.slow
def test_a_child_that_does_not_end_in_time_is_killed_and_its_jobs_are_handed_back(command, enqueue, rows):
    enqueue("sleep")
    worker = command("--processes", "2", "--termination-timeout", "600")
    [begun] = worker.read_until(r"sleeping in (\d+)")
    os.kill(int(begun[1]), signal.SIGSTOP)
    worker.process.send_signal(signal.SIGTERM)
    worker.read_until("supervisor_interrupted signal=SIGTERM")
    worker.process.send_signal(signal.SIGINT)
    worker.read_until(f"child_killed pid={begun[1]}")
    assert worker.end() == 1
    assert rows("SELECT claimed_until <= now(), attempts - 1 FROM proletarian_job") == [(True, 0)]


@pytest.mark.parametrize(
    ("options", "handler", "code"),
    [
        ((), "stay", 0),
        (("--async",), "stay", 0),
        (("--async",), "stay_in_a_thread", 0),
        (("--processes", "2"), "sleep", 0),
        (("--processes", "2"), "stay", 1),
    ],
)
def test_a_thread_of_the_app_does_not_keep_a_process_from_ending(command, enqueue, rows, options, handler, code):
    """What the app leaves behind in a worker, or, at its import, in the supervisor, would let it run for an hour."""
    app = ASYNC if "--async" in options else {}
    enqueue(handler)
    worker = command("--termination-timeout", "0.2", *options, **app, patch=HANGING if handler == "sleep" else "")
    worker.read_until("staying|sleeping")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == code
    assert worker.has_said("the time to stop is over|child_killed")
    assert rows("SELECT count(*) FROM proletarian_job WHERE claimed_until > now()") == [(0,)]


def test_a_stop_is_over_within_two_seconds_by_the_sum_of_its_parts():
    turn = max(signals.TURN, shift.WAIT_TURN)
    assert CANCEL_GRACE < GIVE_UP_GRACE < HOPELESS
    assert HOPELESS + turn < supervisor.GRACE, "a child gives up before it is killed"
    assert supervisor.GRACE + LAST_CALL < curfew.LIMIT, "the supervisor hands back what it can"
    assert curfew.LIMIT < 2


@pytest.mark.parametrize(("hurried", "seconds"), [(False, 10 + supervisor.GRACE), (True, supervisor.GRACE)])
def test_a_child_has_no_more_time_than_its_timeout_and_what_it_needs_to_give_up(monkeypatch, hurried, seconds):
    monkeypatch.setattr("sa_proletarian.clock.monotonic", lambda: 1000.0)
    boss = supervisor.Supervisor(lambda name, fd: [], lambda name: None, processes=1, termination_timeout=10)
    with subprocess.Popen(["sleep", "600"]) as process, socket.socket() as line:
        child = supervisor.Child("name", process, line, 1000.0)
        boss._places = [Place(1, child)]
        for number in [signal.SIGTERM, signal.SIGINT][: 1 + hurried]:
            boss._heed(number)
    boss._selector.close()
    assert child.kill_at == 1000 + seconds


# when the next one is started

LONG = supervisor.LIVED_LONG


def test_the_pause_before_the_next_child_grows_until_one_has_lived_long():
    place = Place(1)
    pauses = []
    for lived in (0, 0, 0, LONG, 0):
        place.vacate(1000.0, worked=True, well=False, lived=lived)
        pauses.append(place.start_at - 1000)
    for pause, exact in zip(pauses, (0.1, 0.2, 0.4, 0.1, 0.2), strict=True):
        assert exact * 0.49 <= pause < exact * 1.51
    place.vacate(1000.0, worked=True, well=True, lived=0)
    assert (place.start_at, place.deaths) == (1000, 0)


def test_only_children_that_never_worked_are_a_reason_to_give_up():
    place = Place(1)
    for _ in range(20):
        place.vacate(0.0, worked=True, well=False, lived=0)
    for _ in range(4):
        place.vacate(0.0, worked=False, well=False, lived=0)
    assert not place.is_hopeless
    place.vacate(0.0, worked=False, well=False, lived=LONG)
    assert place.is_hopeless


# what a child says


@pytest.fixture
def line():
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there:
        yield here, there


def event(kind):
    about = {"job_id": 1, "job_type": "work", "attempt": 1} if issubclass(kind, events.JobEvent) else {}
    return kind(worker_id="w", queue="q", thread="t", **about)


def test_a_child_says_once_that_it_works_and_once_that_it_has_worked_enough(line):
    here, there = line
    child = Child(there, max_jobs=2, max_memory=None)
    child(event(events.PollingForJobs))
    child(event(events.HandlingJob))
    child(event(events.JobFinished))
    child(event(events.JobInterrupted))
    assert here.recv(64) == READY
    child(event(events.JobFinished))
    child(event(events.JobFinished))
    assert here.recv(64) == REPLACE


def test_a_child_that_stops_already_gives_itself_no_second_signal(monkeypatch):
    signals = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append(number))
    child = Child(None, max_jobs=1, max_memory=None)
    child(event(events.ShuttingDown))
    child(event(events.JobFinished))
    assert signals == []
    child = Child(None, max_jobs=1, max_memory=None)
    child(event(events.JobFinished))
    assert signals == [signal.SIGTERM]


# exit codes


@pytest.mark.slow
def test_children_that_cannot_live_are_not_started_for_ever(command, tmp_path):
    (tmp_path / "broken.py").write_text(
        "import sys\nfrom app import *\nif '--child' in sys.argv:\n    raise RuntimeError('broken here')\n"
    )
    worker = command("--processes", "2", jobs="broken:jobs", patch="supervisor.MOST_STILLBIRTHS = 2")
    assert worker.end() == 1
    assert worker.has_said("broken here") and worker.has_said("exit=3") and worker.has_said("children_cannot_live")
    starts = sum("child_started" in line for line in worker.lines)
    assert 2 <= starts <= 4


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Return a function that calls the command in this process, where it must fail before anything is started."""
    name = f"app_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(APP)
    (tmp_path / f"raises_{name}.py").write_text("1 / 0")
    (tmp_path / f"misses_{name}.py").write_text("import no_such_thing_at_all")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("APP_URL", "postgresql+psycopg://nobody@localhost:1/nothing")

    def refused(*arguments):
        code = cli.main(["worker", *(argument.replace("APP", name) for argument in arguments), "--processes", "2"])
        return code, capsys.readouterr().err.replace(name, "APP")

    yield refused
    for module in [module for module in sys.modules if module.endswith(name)]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere_at_all:jobs", "--engine", "APP:engine"], 3, "there is no module 'nowhere_at_all' in /"),
        (["APP.deeper:jobs", "--engine", "APP:engine"], 3, "APP.deeper"),
        (["raises_APP:jobs", "--engine", "APP:engine"], 3, "ZeroDivisionError"),
        (["misses_APP:jobs", "--engine", "APP:engine"], 3, "'misses_APP' cannot be imported"),
        (["APP", "--engine", "APP:engine"], 2, "'APP' is not of the form package.module:attribute"),
        (["APP:jbos", "--engine", "APP:engine"], 2, "there is no 'jbos' in the module 'APP'"),
        (["APP:jobs.more", "--engine", "APP:engine"], 2, "there is no 'more' in a Proletarian"),
        (["APP:engine", "--engine", "APP:engine"], 2, "'APP:engine' is a Engine, not a Proletarian"),
        (["APP:jobs", "--engine", "APP:number"], 2, "'APP:number' is a int, not an Engine or an AsyncEngine"),
        (["APP:async_jobs", "--async", "--engine", "APP:engine"], 2, "--async needs an AsyncEngine"),
        (["APP:jobs", "--url", "not a url"], 2, "Could not parse"),
        (["APP:jobs", "--url", "sqlite://"], 2, "needs PostgreSQL"),
        (["APP:jobs", "--engine", "APP:engine", "--queue", "a", "--queue", "a"], 2, "--queue names a queue twice"),
        (["APP:jobs", "--engine", "APP:engine", "--queue", "a b"], 2, "queue must be"),
        (["APP:jobs", "--engine", "APP:engine", "--concurrency", "7"], 2, "--concurrency means nothing without --async"),
        (
            ["APP:async_jobs", "--async", "--engine", "APP:make_async_engine", "--threads", "7"],
            2,
            "--threads means nothing with",
        ),
        (["APP:jobs", "--engine", "APP:engine", "--lease", "0.1"], 2, "lease must be at least"),
        (["APP:jobs", "--engine", "APP:engine", "--session", "APP:number"], 2, "session must be"),
        (["APP:jobs", "--engine", "APP:engine", "--executor", "APP:number"], 2, "executor must be a function"),
    ],
)
def test_what_cannot_work_is_said_before_a_child_is_started(refused, arguments, code, words):
    given, said = refused(*arguments)
    assert given == code and words in said
    assert "child_started" not in said


@pytest.mark.parametrize("option", [["--processes", "0"], ["--lease", "soon"], ["--lease", "inf"], ["--threads", "1.5"]])
def test_numbers_that_are_none_are_wrong_usage(capsys, option):
    with pytest.raises(SystemExit) as end:
        cli.main(["worker", "app:jobs", "--engine", "app:engine", *option])
    assert end.value.code == 2
    assert option[0] in capsys.readouterr().err


# one process


def test_one_process_is_this_one(command, enqueue, rows):
    enqueue("sleep")
    worker = command("--queue", "default", "--queue", "other")
    [begun] = worker.read_until(r"sleeping in (\d+)")
    assert int(begun[1]) == worker.process.pid
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert rows(WAITING) == [("sleep", 0, 0, None)]


def test_one_process_ends_by_itself_after_so_many_jobs(command, enqueue, rows):
    enqueue("quick", "quick")
    worker = command("--max-jobs", "2")
    assert worker.end() == 0
    assert len(rows(EFFECTS)) == 2


ASYNC = {"jobs": "app:async_jobs", "engine": "app:make_async_engine"}


@pytest.mark.parametrize(("options", "app"), [(("--processes", "2"), {}), (("--async",), ASYNC)])
def test_no_wake_reaches_the_workers(command, enqueue, options, app):
    """The threads in which they listen are begun before the first job."""
    for flags, count in (([], 1), (["--no-wake"], 0)):
        enqueue("listen")
        worker = command(*options, *flags, **app)
        worker.read_until(rf"^{count} of the threads listen")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0


# asyncio


def test_async_workers_of_several_queues_stop_as_one(command, enqueue, rows):
    enqueue("sleep", queue="a")
    enqueue("sleep", queue="b")
    worker = command("--async", "--concurrency", "5", "--queue", "a", "--queue", "b", **ASYNC)
    assert {match[1] for match in worker.read_until(r"sleeping on (\w)", 2)} == {"a", "b"}
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert rows(WAITING) == [("sleep", 0, 0, None)] * 2


def test_a_second_signal_stops_async_workers_at_once(command, enqueue, rows):
    enqueue("hang", queue="a")
    worker = command("--async", "--queue", "a", "--queue", "b", "--termination-timeout", "600", **ASYNC)
    worker.read_until("hanging")
    worker.process.send_signal(signal.SIGTERM)
    worker.read_until("shutting_down")
    worker.process.send_signal(signal.SIGINT)
    assert worker.end() == 0, "a task can be cancelled, unlike a thread"
    assert rows(WAITING) == [("hang", 0, 0, None)]


def test_async_children_are_supervised_too(command, enqueue, rows):
    enqueue("sleep")
    worker = command("--async", "--processes", "2", **ASYNC)
    [begun] = worker.read_until(r"sleeping on default in (\d+)")
    os.kill(int(begun[1]), signal.SIGKILL)
    [again] = worker.read_until(r"sleeping on default in (\d+)")
    assert begun[1] != again[1]
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert rows(WAITING) == [("sleep", 0, 1, None)]


# PID 1


def can_unshare():
    if shutil.which("unshare") is None or os.geteuid() != 0:
        return False
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], stderr=subprocess.DEVNULL, check=False)
    return tried.returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="needs root and unshare, for a PID namespace")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_it_works_as_pid_1(command, enqueue, rows, processes):
    """As a container's first process: it takes signals that have no default there, and reaps what it inherits."""
    enqueue("sleep")
    worker = command("--processes", processes, before=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
    worker.read_until("sleeping")
    if processes == "2":
        enqueue("orphan")
        worker.read_until("child of 1 reaped, supervisor 1")
    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    assert worker.end() == 0
    assert rows(WAITING) == [("sleep", 0, 0, None)]


# what the dead owe


@pytest.fixture
def claimed(enqueue, rows):
    """Return a function that enqueues a job and has a worker of that name claim it for an hour."""

    def claimed(worker_id):
        [job_id] = enqueue("work")
        rows(
            "UPDATE proletarian_job SET attempts = 1, claim_id = gen_random_uuid(), claimed_by = :worker,"
            " claimed_until = now() + interval '1 hour' WHERE job_id = :id",
            id=job_id,
            worker=worker_id,
        )
        return job_id

    return claimed


def test_only_the_leases_of_the_dead_end(tables, claimed, jobs):
    dead, living = claimed("dead"), claimed("living")
    with tables.begin() as connection:
        assert Leases(Job).end(connection, ["dead", "nobody"]) == (1, 0)
        assert Leases(Job).end(connection, ["dead", "nobody"]) == (0, 0)
    ran = []
    jobs.handler("work")(lambda session, job: ran.append((job.job_id, job.attempts, job.crashes)))
    jobs.process_next(tables)
    assert jobs.process_next(tables) is None
    assert ran == [(dead, 1, 1)], f"{living} is in good hands"


def test_a_row_that_is_held_is_left_to_its_holder_and_told(tables, claimed):
    claimed("dead")
    with tables.begin() as holder, tables.begin() as connection:
        holder.execute(text("SELECT 1 FROM proletarian_job FOR NO KEY UPDATE"))
        connection.execute(text("SET LOCAL lock_timeout = '100ms'"))
        assert Leases(Job).end(connection, ["dead"]) == (0, 1)


@pytest.fixture
def hand_back(database_url, tables, monkeypatch):
    from sqlalchemy import create_engine

    monkeypatch.setattr("sa_proletarian.hand_back.LAST_CALL", 20.0)
    hand_back = HandBack(create_engine(database_url), Lifecycle(Job, ArchivedJob), lease=30)
    hand_back.start()
    yield hand_back
    hand_back.close()
    assert not hand_back._thread.is_alive()


def wait_until_ended(rows, job_id):
    """Wait for the row to change: each look is a round trip to the server."""
    deadline = time.monotonic() + 20
    while rows("SELECT claimed_until > now() FROM proletarian_job WHERE job_id = :id", id=job_id) == [(True,)]:
        assert time.monotonic() < deadline


def test_it_comes_back_for_rows_that_were_held(hand_back, tables, claimed, rows):
    held, free = claimed("dead"), claimed("dead")
    with tables.begin() as holder:
        holder.execute(text("SELECT 1 FROM proletarian_job WHERE job_id = :id FOR NO KEY UPDATE"), {"id": held})
        hand_back.put([Deceased("dead", "default", monotonic())])
        wait_until_ended(rows, free)
    wait_until_ended(rows, held)


def test_a_claim_that_the_server_finishes_after_the_death_is_ended_too(hand_back, claimed, rows):
    first = claimed("dead")
    hand_back.put([Deceased("dead", "default", monotonic())])
    wait_until_ended(rows, first)
    late = claimed("dead")
    wait_until_ended(rows, late)


def test_the_dead_are_struck_off_the_worker_table(hand_back, rows):
    rows(
        "INSERT INTO proletarian_worker (kind, subject, worker_id, idle, started_at, last_seen_at)"
        " SELECT 'queue', 'default', who, true, now(), now() FROM unnest(ARRAY['dead', 'living']) AS who"
    )
    hand_back.put([Deceased("dead", "default", monotonic())])
    hand_back.close()
    assert rows("SELECT worker_id FROM proletarian_worker") == [("living",)]


def test_a_database_that_is_away_does_not_keep_it_from_ending(tables, monkeypatch):
    from sqlalchemy import create_engine

    monkeypatch.setattr("sa_proletarian.hand_back.LAST_CALL", 0.2)
    asked = threading.Event()

    def connect():
        asked.set()
        raise ConnectionRefusedError

    hand_back = HandBack(create_engine("postgresql+psycopg://", creator=connect), Lifecycle(Job, ArchivedJob), lease=0.1)
    hand_back.start()
    hand_back.put([Deceased("dead", "default", monotonic() - timedelta(hours=1).total_seconds())])
    assert asked.wait(20)
    hand_back.close()
