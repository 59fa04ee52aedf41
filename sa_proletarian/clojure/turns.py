"""One job's turn, as Proletarian takes it: claimed, run and settled in one transaction.

It owns the beginning of that transaction; from the handler's call to the settling the way is the library's own
(``execution``). Only what that could not settle there, because the transaction is gone, is recorded in another one.
"""

from __future__ import annotations

from collections.abc import Callable

from sa_proletarian.claims import Claim
from sa_proletarian.execution import Execution
from sa_proletarian.outcomes import Outcome
from sa_proletarian.runs import Report, Run
from sa_proletarian.sessions import throw_away

from .rows import RowHold, RowLifecycle


def next_run(execution: Execution) -> Run | None:
    """Claim the next due job, with a connection that it keeps; ``None`` when nothing is due."""
    transactions, lifecycle = execution.transactions, _lifecycle(execution)
    connection = transactions.engine.connect()
    try:
        known = transactions.registry.known_types()
        claim: Claim | None = lifecycle.claim_next(connection, queue=transactions.queue, known=known)
        if claim is None:
            connection.close()
            return None
        hold = RowHold(transactions.engine, lifecycle, claim)
        hold.adopt(connection, lifecycle.held(connection))
        return Run(claim, lambda _: hold, transactions.stopping)
    except BaseException:
        throw_away(connection)
        raise


def take_turn(execution: Execution, run: Run, *, is_wanted: Callable[[Run], bool] = lambda run: True) -> Outcome | None:
    """Run the claimed job and settle it; give what it came to.

    :param is_wanted: asked at the end whether the run still counts; not, when the worker has given it up meanwhile.
    """
    report = execution.perform(run)
    if report is not None and is_wanted(run):
        _settle_apart(execution, report)
    return run.outcome


def process_next(execution: Execution) -> Outcome | None:
    """Take the next due job's turn in the caller's thread; ``None`` when nothing is due."""
    run = next_run(execution)
    if run is None:
        return None
    outcome = take_turn(execution, run)
    if run.keyboard_interrupt is not None:
        raise run.keyboard_interrupt
    return outcome


def _settle_apart(execution: Execution, report: Report) -> None:
    with execution.transactions.engine.connect() as connection:
        for settled in execution.transactions.settle(connection, [report]):
            execution.conclusion.conclude(settled)


def _lifecycle(execution: Execution) -> RowLifecycle:
    lifecycle = execution.transactions.lifecycle
    assert isinstance(lifecycle, RowLifecycle)
    return lifecycle
