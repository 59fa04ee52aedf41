"""The worker: a process of its own that sends the mails, until SIGTERM or Ctrl-C."""

import logging
import os

from jobs import jobs
from sqlalchemy import create_engine

from sa_proletarian import Worker

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Worker(jobs, create_engine(os.environ["DATABASE_URL"]), threads=4).run()
