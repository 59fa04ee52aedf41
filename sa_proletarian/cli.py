"""The command ``sa-proletarian``.

It owns the parsing of arguments and the exit codes. What a command does is said in a room of its own, which is loaded
only when the command is called.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib import metadata
from typing import NoReturn

USAGE = 2
INTERRUPTED = 130


def program() -> NoReturn:
    """Be the command ``sa-proletarian``: this process ends with it."""
    sys.exit(main(alone=True))


def main(argv: Sequence[str] | None = None, *, alone: bool = False) -> int:
    """Run the command that ``argv`` (default: ``sys.argv``) names, and give its exit code.

    0 is success, 1 a failure that has been explained, 2 wrong usage, 3 no connection to the database, 130 Ctrl-C.

    :param alone: whether the process is there for the command only, so that a worker may end it when its stop hangs.
    """
    parser = _parser()
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(given, argparse.Namespace(given=given, alone=alone))
    command: Callable[[argparse.Namespace], int] | None = arguments.command
    if command is None:
        parser.print_help(sys.stderr)
        return USAGE
    try:
        return command(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone, as in "sa-proletarian demo | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sa-proletarian", description="Durable background jobs in your own database.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="")
    _add_demo(commands)
    _add_check(commands)
    _add_grants(commands)
    _add_prune(commands)
    _add_partitions(commands)
    _add_worker(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="watch ten jobs that fail half of the time, on a PostgreSQL that is gone afterwards",
        description="Run ten jobs that fail half of the time and are tried again, on a PostgreSQL server of their own. "
        "It takes a few seconds and leaves nothing behind.",
    )
    demo.add_argument("--plain", action="store_true", help="write a line for each thing that happens, not a live table")
    demo.add_argument("--url", help="make a database on this server, and drop it afterwards, instead of starting a server")
    demo.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import main as demo  # noqa: PLC0415 (--help answers at once)

    return demo(plain=arguments.plain, url=arguments.url)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "check",
        help="say in one line whether the tables are what this version needs",
        description="Say in one line whether the tables in the database are what this version needs, and how to get there. "
        "It reads PostgreSQL's catalog, changes nothing, and needs no right to the tables. "
        "Exit code: 0 they are, 1 they are not, 2 wrong usage, 3 the database could not be asked.",
    )
    _add_url(check)
    _add_models(check)
    check.set_defaults(command=_check)


def _add_grants(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    grants = commands.add_parser(
        "grants",
        help="print the GRANT statements for a role that enqueues, works or administers",
        description="Print the GRANT statements that give a role of the database what it needs, and no more.",
    )
    grants.add_argument("--role", required=True, choices=("enqueuer", "worker", "admin"), help="what the role is for")
    grants.add_argument("--to", metavar="NAME", help="the role of the database; default: proletarian_enqueuer and so on")
    _add_models(grants)
    grants.set_defaults(command=_grants)


def _add_prune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prune = commands.add_parser(
        "prune",
        help="delete archived jobs that ended long ago",
        description="Delete archived jobs that ended long ago, a few blocks of the table in each transaction, so that "
        "workers can go on beside it. It may be interrupted and run again. "
        "Exit code: 0 done, 1 the database refused it, 2 wrong usage, 3 no connection to the database.",
    )
    add = prune.add_argument
    add("--older-than", required=True, type=_span, metavar="AGE", help="how long ago they ended at least, as 14d, 12h or 2w")
    add("--queue", metavar="NAME", help="only jobs of this queue")
    statuses = ("success", "failure", "cancelled", "crashed")
    add("--status", choices=statuses, help="only jobs that ended so")
    add("--dry-run", action="store_true", help="only count them")
    add("--plain", action="store_true", help="write lines, not a progress bar")
    add("--engine", metavar="app.db:engine", help="instead of --url: the app's engine, or a function that makes it")
    _add_url(prune)
    _add_models(prune)
    prune.set_defaults(command=_prune)


def _add_partitions(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    partitions = commands.add_parser(
        "partitions",
        help="make the coming months of a partitioned archive, and drop those that are over",
        description="Make the partitions of the coming months of an archive that was split into months, and drop those in "
        "which every job ended long ago. To be run as the owner of the tables, say once a week. "
        "Exit code: 0 done, 1 the database refused it, 2 wrong usage, 3 no connection to the database.",
    )
    add = partitions.add_argument
    add("--months", type=int, default=3, metavar="N", help="how many months after this one; default 3")
    add("--older-than", type=_span, metavar="AGE", help="drop months whose jobs all ended longer ago, as 90d; default: none")
    _add_url(partitions)
    _add_models(partitions)
    partitions.set_defaults(command=_partitions)


def _span(text: str) -> timedelta:
    from .arguments import span_from  # noqa: PLC0415 (--help answers at once)

    try:
        return span_from(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_url(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--url",
        default=os.environ.get("SA_PROLETARIAN_DATABASE_URL"),
        help="the database, as postgresql+psycopg://user:password@host/database; default: $SA_PROLETARIAN_DATABASE_URL",
    )


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--models",
        metavar="PLACES",
        help="the app's models: module:jobs (a Proletarian), or module:Job,module:ArchivedJob; default: the library's own",
    )
    command.add_argument("--prefix", help="instead of --models: what goes before job, archived_job and worker")
    command.add_argument("--schema", help="the schema of tables whose models name none; default: as the search_path says")


def _check(arguments: argparse.Namespace) -> int:
    from .commands import check  # noqa: PLC0415 (--help answers at once)

    return check(arguments)


def _grants(arguments: argparse.Namespace) -> int:
    from .commands import grants  # noqa: PLC0415 (--help answers at once)

    return grants(arguments)


def _partitions(arguments: argparse.Namespace) -> int:
    from .commands import keep_months  # noqa: PLC0415 (--help answers at once)

    return keep_months(arguments)


def _prune(arguments: argparse.Namespace) -> int:
    from .commands import prune  # noqa: PLC0415 (--help answers at once)

    return prune(arguments)


def _add_worker(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from .worker_command import add_parser  # noqa: PLC0415 (its arguments are its own)

    add_parser(commands)


def _version() -> str:
    try:
        return metadata.version("sa-proletarian")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    program()
