"""The executor of a worker: where functions run that take a processor, or a machine, for themselves.

It owns the executor: made by the app's function, tried before it gets a job, replaced when it is broken or a call hangs in
it, and ended with the worker. It refuses to know what is computed, and to decide what becomes of a job whose call is lost.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import uuid4

from . import events, remote
from .errors import ConfigurationError, ExecutorUnavailable, Interrupted, ProcessDied, describe
from .registry import Registry
from .runs import Run

MakeExecutor: TypeAlias = Callable[[], Executor]

_FORKS = (
    "an executor that forks would keep the worker's database connections open after the worker has died: give "
    "executor=processes(…), or a ProcessPoolExecutor with mp_context=multiprocessing.get_context('spawn')"
)


@dataclass(slots=True, eq=False)
class _Pool:
    """One executor and how many calls are under way in it.

    :ivar retired: it gets no call any more, and is ended when the last one has ended.
    """

    executor: Executor
    tried: Future[Any] | None = None
    under_way: int = 0
    retired: bool = False

    @property
    def full(self) -> bool:
        """Whether a further call would stand in line in it, perhaps behind one that hangs; dask has a line of its own."""
        most: int | None = getattr(self.executor, "_max_workers", None)
        return most is not None and self.under_way >= most


class Computation:
    """Computes on executors that ``make`` makes, one at a time.

    ``ConfigurationError`` or ``TypeError`` when it makes none that will do.
    """

    def __init__(self, make: MakeExecutor, emit: events.Emitter) -> None:
        self._make = make
        self._emit = emit
        self._changing = threading.Lock()
        self._room = threading.Condition()
        self._closed = False
        self._pool: _Pool | None = _Pool(_checked(make()))

    def result_of(self, run: Run, function: Callable[[Any], Any]) -> Any:
        """Give what ``function`` makes of the payload, or raise what it raises; wait for it in this thread.

        Raises ``Interrupted`` when the run shall end first, ``ProcessDied`` when the process was lost in which it was done,
        and ``ExecutorUnavailable`` when it was not even begun, or called off by somebody else.
        """
        packed = remote.pack(function, run.job.payload)
        pool = self._with_room(run)
        try:
            answer = self._answer(run, pool, self._begin(pool, packed))
        finally:
            self._leave(pool)
        return remote.unpack(answer)

    def close(self) -> None:
        """End the executor, and what still runs in it."""
        with self._changing:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            _end(pool)

    def _with_room(self, run: Run) -> _Pool:
        """Wait for room in an executor, and take it."""
        with run.cutting(self._look_again):
            while True:
                pool = self._ready(run)
                with self._room:
                    if run.cut:
                        raise Interrupted("the computation was given up before it had begun")
                    if not pool.retired and not pool.full:
                        pool.under_way += 1
                        return pool
                    if not pool.retired:
                        self._room.wait()

    def _leave(self, pool: _Pool) -> None:
        with self._room:
            pool.under_way -= 1
            over = pool.retired and not pool.under_way
        self._look_again()
        if over:
            _end(pool)

    def _look_again(self) -> None:
        with self._room:
            self._room.notify_all()

    def _ready(self, run: Run) -> _Pool:
        """Give an executor that has been seen to work: else a fault of its own would be taken for one of the job's."""
        pool: _Pool | None = None
        try:
            with self._changing:
                pool = self._pool = self._pool or self._made()
                if pool.tried is None:
                    pool.tried = pool.executor.submit(remote.nothing)
            self._wait(run, pool.tried)
            pool.tried.result()
        except Exception as error:
            self._replace(error, pool)
            raise ExecutorUnavailable(f"the executor does not work: {describe(error)}") from error
        return pool

    def _made(self) -> _Pool:
        if self._closed:
            raise RuntimeError("its worker has ended")
        return _Pool(_checked(self._make()))

    def _begin(self, pool: _Pool, packed: bytes) -> Future[Any]:
        try:
            return pool.executor.submit(remote.call, packed, uuid4().hex)
        except Exception as error:  # it has ended, or is out of reach, and has errors of its own for that; nothing has begun
            self._replace(error, pool)
            raise ExecutorUnavailable(f"the executor takes no calls: {describe(error)}") from error

    def _answer(self, run: Run, pool: _Pool, call: Future[Any]) -> remote.Answer:
        try:
            self._wait(run, call)
            answer: remote.Answer = call.result()
            return answer
        except Interrupted:
            if not call.cancel() and not call.done():
                self._retire(pool, quietly=run.stopping.is_set())
            raise
        except BrokenExecutor as error:
            self._replace(error, pool)
            raise ProcessDied(f"the executor has lost a process: {describe(error)}") from error
        except CancelledError as error:
            raise ExecutorUnavailable("the executor has called the computation off") from error
        except Exception as error:
            if _tells_of_death(error):
                raise ProcessDied(f"the executor has lost a process: {describe(error)}") from error
            raise

    def _wait(self, run: Run, call: Future[Any]) -> None:
        """Wait for ``call``, or until the run shall end before."""
        woken = threading.Event()
        call.add_done_callback(lambda _: woken.set())
        with run.cutting(woken.set):
            woken.wait()
        if not call.done():
            raise Interrupted("the computation was given up")

    # replace ----------------------------------------------------------------------------------------------------------

    def _replace(self, error: Exception, broken: _Pool | None) -> None:
        """Let the next job have a new executor, unless it will already."""
        with self._changing:
            if broken is None or self._pool is not broken:
                return
            self._pool = None
        broken.retired = True
        self._look_again()
        self._emit(events.ExecutorReplaced, error=error)
        _end(broken)

    def _retire(self, pool: _Pool, *, quietly: bool) -> None:
        """Let a call that nobody waits for any more have the executor for itself: it may never end."""
        with self._changing:
            told, pool.retired = pool.retired or quietly, True
            if self._pool is pool:
                self._pool = None
        self._look_again()
        if not told:
            self._emit(events.ExecutorReplaced, error=None)


def begun(registry: Registry, make: MakeExecutor | None, emit: events.Emitter) -> Computation | None:
    """Give what computes for the handlers of ``registry``; ``ConfigurationError`` when it is needed and not given."""
    if make is not None:
        return Computation(make, emit)
    if (job_type := registry.computed_type()) is not None:
        raise ConfigurationError(f"the compute of {job_type!r} needs an executor: give the worker executor=processes(4)")
    return None


def checked_executor(value: Any) -> Any:
    """Give ``value`` if it is a function that may make an executor, or ``None``."""
    if isinstance(value, Executor) or (value is not None and not callable(value)):
        raise TypeError(
            "executor must be a function that makes one, as executor=processes(4) or executor=lambda: …, "
            f"because one that is broken has to be replaced; got a {type(value).__name__}"
        )
    return value


def _checked(executor: Any) -> Executor:
    if not isinstance(executor, Executor):
        raise TypeError(f"executor must make a concurrent.futures.Executor, it made a {type(executor).__name__}")
    if isinstance(executor, ProcessPoolExecutor):
        context: Any = getattr(executor, "_mp_context", None)
        if context is not None and context.get_start_method() == "fork":
            raise ConfigurationError(_FORKS)
    return executor


def _end(pool: _Pool) -> None:
    """End an executor; processes that are at something nobody waits for are killed, or they would keep us from exiting."""
    children: dict[int, Any] = getattr(pool.executor, "_processes", None) or {}
    with suppress(Exception):
        pool.executor.shutdown(wait=False)
    if pool.retired or pool.under_way:
        for child in [*children.values()]:
            with suppress(Exception):
                child.kill()


def _tells_of_death(error: Exception) -> bool:
    """Whether ``error`` is dask's word that workers died under a task, whose module need not be there."""
    killed: Any = getattr(sys.modules.get("distributed"), "KilledWorker", None)
    return killed is not None and isinstance(error, killed)
