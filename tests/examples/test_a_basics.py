import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, Job

WORKER = "a_basics/worker.py"
ENQUEUE = "a_basics/enqueue.py"
HINT = "Jobs are already there. For accurate figures in the summary, run this first: python examples/database.py recreate"


def test_the_worker_echoes_what_the_other_terminal_enqueues(example_database, start):
    worker = start(WORKER, "--polling-interval", "0.05")
    worker.wait_for("polling_for_jobs")

    enqueued = start(ENQUEUE)
    job_id = enqueued.wait_for(r"'job_id': '([0-9a-f-]{36})'")[1]
    timestamp = enqueued.wait_for(r"'timestamp': ('[^']+')")[1]
    enqueued.end()
    assert enqueued.exit_code == 0

    worker.wait_for(f"handling_job .*job_id={job_id} job_type=echo attempt=1")
    worker.wait_for("Running job echo. Payload:")
    worker.wait_for(rf"'message': 'Hello world!'.*{re.escape(timestamp)}")
    worker.wait_for(f"job_finished .*job_id={job_id} job_type=echo attempt=1")
    worker.press_ctrl_c()
    assert "completed_shutdown" in worker.end()
    assert worker.exit_code == 0
    with Session(example_database) as session:
        assert session.scalars(select(ArchivedJob.status)).all() == ["success"]
        assert session.scalars(select(Job)).all() == []


def test_both_scripts_first_count_the_jobs(example_database, start):
    first = start(ENQUEUE)
    first.end()
    assert first.printed[:5] == [
        "Number of jobs in default queue: 0",
        "Number of jobs in proletarian_job table: 0",
        "Number of jobs in proletarian_archived_job table: 0",
        "",
        "Adding new job to default queue:",
    ]

    worker = start(WORKER)
    worker.wait_for("Worker threads")
    assert worker.printed == [
        "Number of jobs in default queue: 1",
        "Number of jobs in proletarian_job table: 1",
        "Number of jobs in proletarian_archived_job table: 0",
        HINT,
        "",
        "Starting worker for default queue",
        "Polling interval: 5 seconds. Worker threads: 1",
    ]


def test_the_counts_tell_the_default_queue_from_others(example_database, start):
    with Session(example_database) as session, session.begin():
        session.add(Job("echo", queue="other"))
    enqueued = start(ENQUEUE)
    enqueued.end()
    assert enqueued.printed[:2] == ["Number of jobs in default queue: 0", "Number of jobs in proletarian_job table: 1"]


def test_impossible_options_are_refused_in_words(start):
    worker = start(WORKER, "--threads", "0")
    assert "must be at least 1" in worker.end()
    assert worker.exit_code == 2
