"""The command ``sa-proletarian worker``: from arguments to workers, in this process or in several.

It owns the arguments, what they become, and the exit codes. How processes are kept alive is ``supervisor``'s.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError

from . import clock
from .arguments import span_from
from .child import Child
from .connections import own_engine
from .curfew import Curfew
from .errors import ConfigurationError
from .event_log import logger
from .hand_back import Deceased, HandBack
from .models import DEFAULT_QUEUE
from .proletarian import Proletarian
from .references import ModuleUnusable, ReferenceMistake, look_up
from .supervisor import Supervisor
from .verbs import lifecycle_for
from .worker import Worker
from .workers import Workers

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from .async_worker import AsyncWorker

CLEAN, UNCLEAN, USAGE, NO_APP = 0, 1, 2, 3
LONGEST_ID = 200
MEGABYTE = 1_000_000

_DESCRIPTION = """\
Run the jobs of an app until SIGTERM or SIGINT; a second signal releases at once what still runs.
With --processes, a supervisor starts that many processes, replaces those that die and hands back their jobs at once."""

_EXIT_CODES = """\
exit codes: 0 everything was settled in time; 1 it was not, or no process could be kept alive; 2 wrong usage;
3 the app cannot be imported."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``sa-proletarian``."""
    command = commands.add_parser(
        "worker",
        help="run the jobs of an app, in one process or several",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_app(command)
    _add_size(command)
    _add_pace(command)
    command.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    command.add_argument("--line", type=int, metavar="FD", help=argparse.SUPPRESS)
    command.set_defaults(command=work)


def _add_app(command: argparse.ArgumentParser) -> None:
    command.add_argument("jobs", metavar="app.module:jobs", help="the app's Proletarian")
    database = command.add_mutually_exclusive_group(required=True)
    database.add_argument("--engine", metavar="app.db:engine", help="the app's engine, or a function that makes it")
    database.add_argument("--url", help="instead: the database's URL (others on this machine can see it in ps)")
    command.add_argument("--session", metavar="app.db:Session", help="the app's sessionmaker, for handlers' sessions")
    command.add_argument("--around", metavar="app.db:around", help="(job) -> context manager, entered around each handler")
    command.add_argument(
        "--executor", metavar="app.jobs:make", help="a function that makes the executor of handlers' compute"
    )
    command.add_argument("--pooler", choices=("transaction",), help="a pooler such as PgBouncer stands between")


def _add_size(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--processes", type=_count, default=1, metavar="N", help="how many processes; default 1, without a supervisor")
    add("--threads", type=_count, metavar="N", help="how many handlers of a queue run at once in a process; default 1")
    add("--async", dest="is_async", action="store_true", help="run async def handlers, on an AsyncEngine")
    add("--concurrency", type=_count, metavar="N", help="with --async, instead of --threads; default 100")
    add("--queue", action="append", metavar="NAME", help="which queue; may be given several times; default 'default'")
    add("--max-jobs", type=_count, metavar="N", help="replace a process after so many runs of handlers")
    add("--max-memory", type=_count, metavar="MB", help="replace a process above so much resident memory")


def _add_pace(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--polling-interval", type=_span, metavar="SECONDS", help="how long to wait on an empty queue; default 0.1")
    add("--no-wake", dest="wake", action="store_const", const=False, help="only poll, and let no enqueue wake the workers")
    add("--lease", type=_span, metavar="SECONDS", help="how long a claim holds without being renewed; default 30")
    seconds = timedelta(seconds=10)
    add("--termination-timeout", type=_span, default=seconds, metavar="SECONDS", help="what running jobs get; default 10")
    add("--crash-ceiling", type=_count, metavar="N", help="archive a job as crashed after so many deaths; default 5")
    add("--retention", type=_age, metavar="AGE", help="delete archived jobs that ended so long ago, as 14d; default: none")


def work(arguments: argparse.Namespace) -> int:
    """Run the command and give its exit code."""
    if os.getpid() == 1:  # to whom a signal without a handler is none: the app's import can be interrupted, too
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(CLEAN))
    supervised = arguments.processes > 1 and arguments.child is None
    curfew = Curfew(arguments.termination_timeout.total_seconds(), code=UNCLEAN)
    child = Child(
        _line(arguments),
        max_jobs=arguments.max_jobs,
        max_memory=_bytes(arguments.max_memory),
        curfew=curfew if arguments.alone else None,
    )
    try:
        if not supervised:
            child.start()
        app = _load(arguments)
        workers = app.workers(child)
    except ModuleUnusable as error:
        return _refuse(NO_APP, error)
    except (ReferenceMistake, ArgumentError, ConfigurationError, TypeError, ValueError) as error:
        return _refuse(USAGE, error)
    _write_log()
    try:
        return _supervise(app, curfew) if supervised else _run(workers, app.engine, curfew)
    except ConfigurationError as error:  # what only the start can see
        return _refuse(USAGE, error)


@dataclass(frozen=True, slots=True)
class App:
    """What the arguments name."""

    arguments: argparse.Namespace
    jobs: Proletarian[Any, Any]
    engine: Engine | AsyncEngine
    options: dict[str, Any]

    @property
    def queues(self) -> list[str]:
        return self.arguments.queue or [DEFAULT_QUEUE]

    def workers(self, child: Child) -> list[Worker] | list[AsyncWorker]:
        """Make the workers of this process; nothing is started yet, and nothing connected."""
        if len({*self.queues}) < len(self.queues):
            raise ReferenceMistake("--queue names a queue twice")
        name = self.arguments.child
        ids = {queue: None if name is None else worker_id(queue, name) for queue in self.queues}
        if not self.arguments.is_async:
            return [Worker(self.jobs, self.engine, queue=q, worker_id=ids[q], listener=child, **self.options) for q in ids]
        from .async_worker import AsyncWorker  # noqa: PLC0415 (it needs greenlet)

        engine: Any = self.engine
        return [AsyncWorker(self.jobs, engine, queue=q, worker_id=ids[q], listener=child, **self.options) for q in ids]


def worker_id(queue: str, name: str) -> str:
    """Name the worker of a child so that the supervisor knows it too: ``proletarian[queue]@host:pid.number:random``."""
    return f"proletarian[{queue}]@{name}"[-LONGEST_ID:]


# load -----------------------------------------------------------------------------------------------------------------


def _load(arguments: argparse.Namespace) -> App:
    jobs = look_up(arguments.jobs)
    if not issubclass(type(jobs), Proletarian):
        raise ReferenceMistake(f"{arguments.jobs!r} is a {type(jobs).__name__}, not a Proletarian")
    return App(arguments, jobs, _engine(arguments), _options(arguments))


def _engine(arguments: argparse.Namespace) -> Engine | AsyncEngine:
    if arguments.url is not None:
        return _engine_of(arguments.url, is_async=arguments.is_async)
    found = look_up(arguments.engine)
    engine: Any = found() if callable(found) else found
    if not isinstance(engine, Engine) and not isinstance(getattr(engine, "sync_engine", None), Engine):
        raise ReferenceMistake(f"{arguments.engine!r} is a {type(engine).__name__}, not an Engine or an AsyncEngine")
    if arguments.is_async and isinstance(engine, Engine):
        raise ReferenceMistake(f"--async needs an AsyncEngine, and {arguments.engine!r} is an Engine")
    return engine  # type: ignore[no-any-return]


def _engine_of(url: str, *, is_async: bool) -> Engine | AsyncEngine:
    try:
        if not is_async:
            return create_engine(url)
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 (it needs greenlet)

        return create_async_engine(url)
    except ModuleNotFoundError as error:
        raise ReferenceMistake(f"the driver that --url names is not installed: {error.name}") from error


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the workers' keyword arguments; what was not said is left to their own defaults."""
    unfit = "--threads" if arguments.is_async else "--concurrency"
    if getattr(arguments, unfit.removeprefix("--")) is not None:
        raise ReferenceMistake(f"{unfit} means nothing {'with' if arguments.is_async else 'without'} --async")
    sizes, pace = ("threads", "concurrency", "pooler"), ("polling_interval", "lease", "termination_timeout")
    names = (*sizes, *pace, "wake", "crash_ceiling", "retention")
    given = {name: getattr(arguments, name) for name in names}
    given |= {
        name: look_up(place) for name in ("session", "around", "executor") if (place := getattr(arguments, name)) is not None
    }
    return {name: value for name, value in given.items() if value is not None}


# run ------------------------------------------------------------------------------------------------------------------


def _run(workers: Sequence[Any], engine: Any, curfew: Curfew) -> int:
    """Run the workers in this process."""
    if isinstance(workers[0], Worker):
        curfew.code = CLEAN if Workers(*workers).run() else UNCLEAN
        return curfew.code
    from .async_crew import run  # noqa: PLC0415 (it needs greenlet)

    async def run_and_dispose() -> int:
        try:
            curfew.code = CLEAN if await run(workers) else UNCLEAN
            return curfew.code
        finally:
            await engine.dispose()

    return asyncio.run(run_and_dispose())


def _supervise(app: App, curfew: Curfew) -> int:
    """Run the workers in processes of their own, which make their engines themselves."""
    arguments = app.arguments
    lease = arguments.lease or timedelta(seconds=30)
    engine = own_engine(app.engine, size=1, pooler=arguments.pooler)
    lifecycle = lifecycle_for(engine.dialect.name, app.jobs.job_model, app.jobs.archived_model)
    hand_back = HandBack(engine, lifecycle, lease=lease.total_seconds())

    def command(name: str, line: int) -> list[str]:
        return [sys.executable, "-m", "sa_proletarian.cli", *arguments.given, "--child", name, "--line", str(line)]

    def died(name: str) -> None:
        now = clock.monotonic()
        hand_back.put([Deceased(worker_id(queue, name), queue, now) for queue in app.queues])

    timeout = arguments.termination_timeout.total_seconds()
    supervisor = Supervisor(command, died, arguments.processes, timeout, curfew if arguments.alone else None)
    hand_back.start()
    try:
        curfew.code = CLEAN if supervisor.run() else UNCLEAN
        return curfew.code
    finally:
        hand_back.close()


# arguments ------------------------------------------------------------------------------------------------------------


def _line(arguments: argparse.Namespace) -> socket.socket | None:
    if arguments.line is None:
        return None
    line = socket.socket(fileno=arguments.line)
    line.set_inheritable(False)  # what a handler starts must not keep it open
    return line


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _span(text: str) -> timedelta:
    try:
        return timedelta(seconds=float(text))
    except OverflowError as error:
        raise argparse.ArgumentTypeError(f"that is no number of seconds: {text}") from error


def _age(text: str) -> timedelta:
    try:
        return span_from(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _bytes(megabytes: int | None) -> int | None:
    return None if megabytes is None else megabytes * MEGABYTE


def _write_log() -> None:
    """Write the library's log to stderr, unless the app has its own idea of logs."""
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def _refuse(code: int, error: Exception) -> int:
    print(f"sa-proletarian worker: {error}", file=sys.stderr)  # noqa: T201 (a command speaks to people)
    return code
