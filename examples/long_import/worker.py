"""The worker, until SIGTERM or Ctrl-C; start it again, and the import goes on."""

import logging

from jobs import engine, jobs

from sa_proletarian import Worker

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    Worker(jobs, engine).run()
    engine.dispose()
