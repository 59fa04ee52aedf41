"""What the shop does in the background.

In a handler ``db.session`` is the handler's session: what it commits becomes visible together with the end of the job.
"""

from datetime import timedelta

from flask import Flask
from models import ArchivedJob, Job, add_receipt, db
from sqlalchemy.orm import Session

from sa_proletarian import Proletarian, Retry, Worker

jobs = Proletarian(Job, ArchivedJob)


@jobs.handler("write_receipt", retry=Retry(retries=3, delays=[timedelta(seconds=5)]))
def write_receipt(session: Session, job: Job) -> None:
    add_receipt(job.payload["order_id"])


def make_worker(app: Flask) -> Worker:
    with app.app_context():
        return Worker(jobs, db.engine, threads=2, session=db.session, around=lambda job: app.app_context())
