"""The pace of a worker: when its threads begin, when it polls, and which of its commits wait for the disk."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from datetime import timedelta

from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session

from sa_proletarian import Retry, polling

HOUR = timedelta(hours=1)


def enqueue(jobs, engine, *job_types):
    with Session(engine) as session, session.begin():
        for job_type in job_types:
            jobs.enqueue(session, job_type)


def test_threads_begin_one_after_the_other(jobs, tables, start_worker, recorder):
    """Twenty first connections do not reach the server in one moment: the n-th thread waits for n - 1 small spans."""
    together = threading.Barrier(20, timeout=20)
    begun = {}

    def handler(session, job):
        begun[threading.current_thread().name] = time.monotonic()
        together.wait()

    jobs.handler("meet")(handler)
    enqueue(jobs, tables, *["meet"] * 20)
    before = time.monotonic()
    worker = start_worker(jobs, threads=20)
    recorder.wait_for("job_finished", 20)
    spans = [begun[f"{worker.worker_id}-{number}"] - before for number in range(1, 21)]
    assert [number for number, span in enumerate(spans) if span < number * 0.009] == []


def test_chance_spreads_the_first_poll_and_each_wait_between_polls(jobs, start_worker, recorder, monkeypatch):
    """With an hour between polls, a chance far outside of its range brings the next one at once."""
    drawn, before_first_poll = [], []

    def chance():
        drawn.append(1)
        return -4.5

    def listener(event):
        if event.name == "polling_for_jobs":
            before_first_poll.append(len(drawn))
        recorder(event)

    monkeypatch.setattr(polling.jittered, "__defaults__", (chance,))
    start_worker(jobs, polling_interval=HOUR, listener=listener)
    recorder.wait_for("polling_for_jobs", 5)
    assert before_first_poll[:5] == [1, 2, 3, 4, 5]


def test_claims_and_renewals_do_not_wait_for_the_disk_and_settling_does(jobs, tables, database_url, start_worker, recorder):
    """A crash of the server that forgets a claim leaves a job that is due; one that forgot an archive would run it twice."""
    seen, fences, renewed = defaultdict(set), set(), threading.Event()
    engine = create_engine(database_url)

    def verb(fence):
        if fence is None:
            return "settle"
        if fence in fences:
            renewed.set()
            return "renew"
        fences.add(fence)
        return "claim"

    @event.listens_for(engine, "commit")
    def look_at_what_was_written(connection):
        raw = connection.connection.driver_connection
        mine = "WHERE xmin = CAST(pg_current_xact_id_if_assigned() AS xid)"
        written = raw.execute(
            f"SELECT claim_id FROM proletarian_job {mine} UNION SELECT NULL FROM proletarian_archived_job {mine}"
        )
        verbs = {verb(fence) for (fence,) in written.fetchall()}
        [setting] = raw.execute("SHOW synchronous_commit").fetchone()
        for each in verbs:
            seen[each].add(setting)

    def fail_once(session, job):
        if job.attempts == 1:
            raise ValueError("again")

    jobs.handler("write")(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('x')")))
    jobs.handler("fail", retry=Retry(1))(fail_once)
    jobs.handler("wait")(lambda session, job: renewed.wait(20))
    enqueue(jobs, tables, "write", "fail", "wait")
    start_worker(jobs, engine, threads=3, lease=timedelta(milliseconds=300))
    recorder.wait_for("job_finished", 3)
    assert seen == {"claim": {"off"}, "renew": {"off"}, "settle": {"on"}}
