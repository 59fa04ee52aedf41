"""The command ``sa-proletarian``.

It owns the parsing of arguments and the exit codes. What a command does is said in a room of its own, which is loaded
only when the command is called.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

USAGE = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (default: ``sys.argv``) names, and give its exit code.

    0 is success, 1 a failure that has been explained, 2 wrong usage, 130 Ctrl-C.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
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
    _add_demo(parser.add_subparsers(title="commands", metavar=""))
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="watch ten jobs that fail half of the time, on a PostgreSQL that is gone afterwards",
        description="Run ten jobs that fail half of the time and are tried again, on a PostgreSQL server of their own. "
        "It takes a few seconds and leaves nothing behind.",
    )
    demo.add_argument("--plain", action="store_true", help="write a line for each thing that happens, not a live table")
    demo.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import main as demo  # noqa: PLC0415 (--help answers at once)

    return demo(plain=arguments.plain)


def _version() -> str:
    try:
        return metadata.version("sa-proletarian")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
