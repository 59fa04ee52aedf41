"""One job in the caller's thread: for tests, the REPL and cron.

It owns ``process_next``: the same claim → run → settle as a worker's, without threads for handlers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress

from sqlalchemy import Connection

from .execution import Execution
from .outcomes import Outcome
from .overtime import look_after, pause
from .runs import Report, Run

Renewing = Callable[[Execution, Run], AbstractContextManager[None]]


def process_next(execution: Execution, renewing: Renewing | None = None) -> Outcome | None:
    """Run the next due job; give what it came to, or ``None`` when nothing was due.

    :param renewing: a context in which the lease is kept; default: by a thread.
    """
    with execution.transactions.engine.connect() as connection:
        claimed = execution.transactions.claim(connection, limit=1, idle=True)
        if claimed.condemned:
            return _settle(execution, connection, claimed.condemned[0])
        if not claimed.runs:
            return None
        run = claimed.runs[0]
        with (renewing or _renewing)(execution, run):
            report = execution.perform(run)
            outcome = _settle(execution, connection, report) if report is not None else run.outcome
    if run.keyboard_interrupt is not None:
        raise run.keyboard_interrupt
    return outcome


def _settle(execution: Execution, connection: Connection, report: Report) -> Outcome:
    for settled in execution.transactions.settle(connection, [report]):
        execution.conclusion.conclude(settled)
        return settled.ruling.outcome
    raise AssertionError("a settling that does not raise gives what it settled")


@contextmanager
def _renewing(execution: Execution, run: Run) -> Generator[None, None, None]:
    """Look after ``run`` while the caller's thread is busy with its handler."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(pause(execution, run)):
            with suppress(Exception), execution.transactions.engine.connect() as connection:
                look_after(execution, connection, run)

    thread = threading.Thread(target=renew, name=f"{execution.transactions.worker_id}-renewing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
