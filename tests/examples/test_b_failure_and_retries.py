import re

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, Job

WORKER = "b_failure_and_retries/worker.py"
ENQUEUE = "b_failure_and_retries/enqueue.py"
QUICK = ("--polling-interval", "0.05", "--threads", "10", "--sleep", "0.02")


def archived(engine):
    with Session(engine) as session:
        return dict(session.execute(select(ArchivedJob.status, func.count()).group_by(ArchivedJob.status)).all())


def test_a_job_that_always_fails_is_tried_three_times_and_then_reported(example_database, start):
    enqueued = start(ENQUEUE)
    enqueued.wait_for("Press Enter")
    worker = start(WORKER, *QUICK, "--failure-rate", "1")
    for _ in range(10):
        worker.wait_for(
            r"  1/\d  Job failed after 3 attempts \(exception message: 'This operation failed for some reason'\)"
        )
    worker.press_ctrl_c()

    assert re.search(
        r"worker_interrupted .*signal=SIGINT\n(?:.*\n)?shutting_down .*\n(?:.*\n)*?completed_shutdown .*\n"
        r"Number of successful jobs: 0\nNumber of failed jobs: 10$",
        worker.end(),
    )
    assert worker.exit_code == 0
    assert archived(example_database) == {"failure": 10}
    assert len(re.findall(r"^retrying .*retries_left=2$", worker.text, re.MULTILINE)) == 10
    assert len(re.findall(r"^retrying .*retries_left=1$", worker.text, re.MULTILINE)) == 10
    assert len(re.findall(r"^not_retrying ", worker.text, re.MULTILINE)) == 10


def test_a_job_that_does_not_fail_is_done(example_database, start):
    enqueued = start(ENQUEUE)
    enqueued.wait_for("Press Enter")
    worker = start(WORKER, *QUICK, "--failure-rate", "0")
    for _ in range(10):
        worker.wait_for("job_finished")
    worker.press_ctrl_c()

    assert worker.end().endswith("Number of successful jobs: 10\nNumber of failed jobs: 0")
    assert archived(example_database) == {"success": 10}
    lines = [line for line in worker.printed if line.startswith("  1/7")]
    assert lines == [
        "  1/7  Running job sometimes_failing. Payload: {'batch': 1, 'counter': 7}",
        "  1/7  This will fail 0% of the time and take 0.02 s on average:",
        "  1/7  Phew, it didn't fail. Done.",
    ]


def test_enter_adds_ten_more_jobs_and_ctrl_c_ends_it(example_database, start):
    enqueued = start(ENQUEUE)
    enqueued.wait_for("Press Enter to enqueue 10 more jobs")
    enqueued.press_enter()
    enqueued.wait_for("'batch': 2, 'counter': 9")
    enqueued.wait_for("Press Enter")
    enqueued.press_ctrl_c()
    assert enqueued.end().strip() == ""
    assert enqueued.exit_code == 0
    with Session(example_database) as session:
        assert session.scalar(select(func.count(Job.job_id))) == 20


def test_a_polling_error_is_told_and_survived(example_database, start):
    worker = start(WORKER, *QUICK, "--failure-rate", "0")
    worker.wait_for("polling_for_jobs")
    rename(example_database, "proletarian_job", "elsewhere")
    worker.wait_for(r"Polling error \(will retry\): \[ProgrammingError\] .*proletarian_job")
    rename(example_database, "elsewhere", "proletarian_job")
    with Session(example_database) as session, session.begin():
        session.add(Job("sometimes_failing", {"batch": 1, "counter": 0}))
    worker.wait_for("job_finished")


def test_by_default_it_polls_every_five_seconds_with_one_thread(example_database, start):
    worker = start(WORKER)
    worker.wait_for("^Polling interval: 5 seconds. Worker threads: 1$")


def rename(engine, before, after):
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))
