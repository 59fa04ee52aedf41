"""One job on the caller's event loop: for tests, the REPL and cron.

It owns what differs there from ``inline``: a task renews the lease, and everything runs in a greenlet of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.util.concurrency import greenlet_spawn

from .async_execution import AsyncConclusion, AsyncExecution, AsyncHold
from .execution import Execution, build_execution
from .inline import process_next
from .outcomes import Outcome
from .overtime import look_after, pause
from .runs import Run
from .sessions import checked_maker


class _One(AsyncExecution):
    __slots__ = ()
    _is_ctrl_c = Execution._is_ctrl_c


async def process_one(*, engine: Engine, app_engine: Engine, session: Any, **settings: Any) -> Outcome | None:
    """Run the next due job; give what it came to, or ``None`` when nothing was due."""
    execution = build_execution(
        engine=engine,
        app_engine=app_engine,
        session=checked_maker(session, app_engine, kind=async_sessionmaker),
        hold=AsyncHold,
        kind=_One,
        conclusion=AsyncConclusion,
        **settings,
    )
    try:
        return await greenlet_spawn(process_next, execution, _renewing)
    finally:
        await greenlet_spawn(engine.dispose)


@contextmanager
def _renewing(execution: Execution, run: Run) -> Generator[None, None, None]:
    """Look after ``run`` while its handler waits; one that blocks the loop must be done within its lease."""
    task = asyncio.get_running_loop().create_task(_renew_for_ever(execution, run))
    try:
        yield
    finally:
        task.cancel()


async def _renew_for_ever(execution: Execution, run: Run) -> None:
    while True:
        await asyncio.sleep(pause(execution, run))
        with suppress(Exception):
            await greenlet_spawn(_renew, execution, run)


def _renew(execution: Execution, run: Run) -> None:
    with execution.transactions.engine.connect() as connection:
        look_after(execution, connection, run)
