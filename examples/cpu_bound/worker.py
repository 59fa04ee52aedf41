"""The worker, until SIGTERM or Ctrl-C: python worker.py computes in four processes of its own,
python worker.py tcp://… on the cluster of that dask scheduler, whose workers can import fractal."""

import logging
import sys

from jobs import engine, jobs

from sa_proletarian import Worker, processes


def main() -> None:
    if len(sys.argv) == 1:
        Worker(jobs, engine, threads=4, executor=processes(4)).run()
        return
    from distributed import Client

    with Client(sys.argv[1]) as client:
        Worker(jobs, engine, threads=16, executor=lambda: client.get_executor(pure=False)).run()


if __name__ == "__main__":  # the processes import this file, too
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
