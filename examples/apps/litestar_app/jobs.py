"""What the shop does in the background. ``python jobs.py`` is a worker, a process of its own.

The worker runs plain functions in threads, with plain sessions; it connects as the app's ``AsyncEngine`` does.
"""

import logging
from datetime import timedelta
from uuid import UUID

from database import alchemy
from models import ArchivedJob, Job, Order, Receipt
from sqlalchemy.orm import Session

from sa_proletarian import Proletarian, Retry, Worker

jobs = Proletarian(Job, ArchivedJob)


@jobs.handler("write_receipt", retry=Retry(retries=3, delays=[timedelta(seconds=5)]))
def write_receipt(session: Session, job: Job) -> None:
    order = session.get_one(Order, UUID(job.payload["order_id"]))
    session.add(Receipt(order_id=order.id, text=f"{order.number}: {order.quantity} cups of tea"))


worker = Worker(jobs, alchemy.get_engine(), threads=2)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    worker.run()
