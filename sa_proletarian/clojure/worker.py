"""The threaded worker on Proletarian's tables.

It owns its arguments. Starting, stopping and signals are the library's own (``worker``), the loop is ``crew``'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from sa_proletarian import arguments, events
from sa_proletarian.connections import Pooler, only_postgresql, own_engine, plain
from sa_proletarian.execution import Around
from sa_proletarian.listening import ears
from sa_proletarian.registry import OnFailed
from sa_proletarian.retry import RetryStrategy, checked_strategy
from sa_proletarian.sessions import checked_maker
from sa_proletarian.setbacks import OnPollingError
from sa_proletarian.worker import Worker, default_worker_id

from .crew import Crew
from .names import DEFAULT_QUEUE, stored_name
from .proletarian import ClojureProletarian

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class ClojureWorker(Worker):
    """Runs the jobs of one of Proletarian's queues in threads, beside Clojure workers or without them.

    Each thread holds a connection, and a transaction for as long as its handler runs; the worker has a pool of
    ``threads + 1``.

    :param jobs: the app's :class:`ClojureProletarian`.
    :param engine: the app's engine.
    :param queue: which queue to work on, a keyword; default ``:proletarian/default``.

    The other arguments mean what they mean for :class:`sa_proletarian.Worker`. There is no ``lease`` and no
    ``crash_ceiling``: the tables have no columns for them, so a job that kills its process is tried for ever.
    """

    def __init__(
        self,
        jobs: ClojureProletarian,
        engine: Engine | AsyncEngine,
        *,
        queue: str = DEFAULT_QUEUE,
        threads: int = 1,
        polling_interval: timedelta = timedelta(milliseconds=100),
        retry: RetryStrategy | None = None,
        on_failed: OnFailed | None = None,
        on_polling_error: OnPollingError | None = None,
        termination_timeout: timedelta = timedelta(seconds=10),
        session: Any = None,
        around: Around | None = None,
        listener: events.Listener = events.log_event,
        pooler: Pooler | None = None,
        worker_id: str | None = None,
        on_shutdown: Callable[[], Any] | None = None,
    ) -> None:
        if not isinstance(jobs, ClojureProletarian):
            raise TypeError(f"a ClojureWorker takes a ClojureProletarian first, got a {type(jobs).__name__}")
        only_postgresql(engine, "a ClojureWorker")
        own_engine(engine, size=1, pooler=pooler)  # refuses what cannot work, before anything is started
        self.queue: str = stored_name("queue", queue)
        self.worker_id: str = (
            default_worker_id(self.queue) if worker_id is None else arguments.printable("worker_id", worker_id)
        )
        self._jobs: Any = jobs
        self._engine: Engine = plain(engine)
        self._pooler: Pooler | None = pooler
        self._threads = arguments.at_least("threads", threads, 1)
        self._polling_interval = arguments.span("polling_interval", polling_interval, timedelta(milliseconds=1))
        self._retry = checked_strategy(retry)
        self._on_failed = arguments.callable_or_none("on_failed", on_failed)
        self._on_polling_error = arguments.callable_or_none("on_polling_error", on_polling_error)
        self._termination_timeout = arguments.span("termination_timeout", termination_timeout, timedelta(0))
        self._session = checked_maker(session, self._engine)
        self._around = arguments.callable_or_none("around", around)
        self._emit = events.Emitter(listener, worker_id=self.worker_id, queue=self.queue)
        self._on_shutdown = arguments.callable_or_none("on_shutdown", on_shutdown)
        self._starting = threading.Lock()
        self._shift: Any = None

    def _make_shift(self) -> Crew:
        execution = self._jobs.execution(
            self._engine,
            size=self._threads + 1,
            pooler=self._pooler,
            queue=self.queue,
            retry=self._retry,
            on_failed=self._on_failed,
            session=self._session,
            around=self._around,
            emit=self._emit,
            worker_id=self.worker_id,
        )
        return Crew(
            execution,
            threads=self._threads,
            polling_interval=self._polling_interval,
            on_polling_error=self._on_polling_error,
            on_shutdown=self._on_shutdown,
            ears=ears(self._engine, self._jobs.job_model.__table__, self.queue, self._emit, name=self.worker_id, wake=False),
        )
