from sqlalchemy import select
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, Job

WORKER = "c_interruption/worker.py"
ENQUEUE = "c_interruption/enqueue.py"
QUICK = ("--polling-interval", "0.05")


def enqueue(start, *arguments):
    script = start(ENQUEUE, *arguments)
    job_id = script.wait_for(r"'job_id': '([0-9a-f-]{36})'")[1]
    script.end()
    return job_id


def statuses(engine):
    with Session(engine) as session:
        return session.scalars(select(ArchivedJob.status)).all()


def test_a_sleeping_job_is_interrupted_and_picked_up_again(example_database, start):
    job_id = enqueue(start, "blocking")
    worker = start(WORKER, *QUICK)
    worker.wait_for("Sleeping for 10 seconds...")
    worker.wait_for("If you don't interrupt it")
    worker.press_ctrl_c()
    worker.wait_for("shutting_down")
    worker.wait_for(f"job_interrupted .*job_id={job_id}")
    worker.wait_for("completed_shutdown")
    assert worker.end() == "Number of successful jobs: 0\nNumber of failed jobs: 0"
    assert worker.exit_code == 0
    with Session(example_database) as session:
        job = session.scalars(select(Job)).one()
        assert (str(job.job_id), job.attempts, job.claim_id) == (job_id, 0, None)

    again = start(WORKER, *QUICK)
    again.wait_for(f"handling_job .*job_id={job_id} job_type=blocking_job attempt=1")


def test_a_sleeping_job_that_is_not_interrupted_finishes(example_database, start):
    enqueue(start, "blocking", "--seconds", "0.01")
    worker = start(WORKER, *QUICK)
    worker.wait_for("Done.")
    worker.wait_for("job_finished")
    worker.press_ctrl_c()
    assert worker.end().endswith("Number of successful jobs: 1\nNumber of failed jobs: 0")
    assert statuses(example_database) == ["success"]


def test_a_computing_job_is_allowed_to_finish(example_database, start):
    job_id = enqueue(start, "cpu-bound", "--seconds", "1")
    worker = start(WORKER, *QUICK)
    worker.wait_for("Running for 1 seconds...")
    worker.press_ctrl_c()
    worker.wait_for("^shutting_down")
    worker.wait_for("Done.")
    worker.wait_for(f"job_finished .*job_id={job_id}")
    worker.wait_for("completed_shutdown")
    assert worker.end() == "Number of successful jobs: 1\nNumber of failed jobs: 0"
    assert statuses(example_database) == ["success"]


def test_by_default_it_polls_every_second_and_the_jobs_take_ten(example_database, start):
    worker = start(WORKER)
    worker.wait_for("^Polling interval: 1 seconds. Worker threads: 1$")
    script = start(ENQUEUE, "cpu-bound")
    script.wait_for("'seconds': 10.0")
