"""Errors and control flow, and the words in which an error is written down.

The tree::

    ProletarianError
    ├── ConfigurationError      the worker or the models cannot work as they are set up
    ├── DecryptionFailed        a payload was changed or moved, or there is no key for it
    └── JobError                raised in or about a running job
        ├── ClaimLost           the claim belongs to somebody else now; nothing this run does will be kept
        ├── SessionClosed       a session was used after its job was over
        ├── TransactionEscaped  the handler ended the worker's transaction behind its session's back
        ├── ConnectionLost      the database connection of the job died, or could not be had
        ├── JobTimeout          the handler took longer than its ``timeout``
        ├── ProcessDied         the executor has lost the process in which the job was computed
        ├── ExecutorUnavailable the executor does not work, takes no calls, or has called the computation off
        ├── ComputationFailed   in the place of an error that cannot be sent from the executor's process
        ├── JobCrashed          recorded on a job whose process died as often as the crash ceiling allows
        └── StrategyFailed      a retry strategy raised, or returned something else than a ``Retry`` or ``None``

    ControlFlow                 raised *by* a handler to choose its fate
    ├── Snooze                  run again later; not an attempt
    └── Cancel                  archive as ``cancelled``

    Interrupted                 raised *in* a handler whose worker is stopping, or which is to end (not an ``Exception``)

Mistakes of the caller are plain ``ValueError`` and ``TypeError``, raised before any SQL. SQLAlchemy's own errors pass
through unwrapped. What is written into a row or a log line goes through :func:`describe`, which leaves out what a
database error quotes from rows and parameters.
"""

from __future__ import annotations

import os
import re
import traceback
from datetime import timedelta
from typing import Any

from . import mysql_errors

LONGEST_DELAY = timedelta(days=3650)
"""Delays above ten years are refused: they would run out of the calendar."""

_HERE = os.path.dirname(__file__) + os.sep
_MESSAGE_LIMIT = 4_000
_FRAMES = 5

# what follows one of these in a database's, a driver's or SQLAlchemy's message may quote a row, a parameter or a statement
_QUOTATION = re.compile(
    r"\s*(?:\n(?:DETAIL|HINT|CONTEXT|QUERY|LINE \d+|\[SQL|\[parameters): |Original exception was: ).*", re.DOTALL
)
# "data exceptions" and syntax errors quote a value in the message itself, between quotation marks or after a colon
_QUOTING_STATES = ("22", "42601")
_QUOTED = re.compile('".*"', re.DOTALL)
# SQLAlchemy puts the class of asyncpg's errors in front
_ADAPTED = re.compile(r"^<class '[\w.]+'>: ")


class ProletarianError(Exception):
    """Base of the library's own errors."""


class ConfigurationError(ProletarianError):
    """The worker or the models cannot work as they are set up; the message says what to change."""


class DecryptionFailed(ProletarianError):
    """An encrypted payload cannot be read: it was changed, or belongs to another job, or its key is not among ours."""


class JobError(ProletarianError):
    """Base of the errors that are raised in, or recorded about, a running job."""


class ClaimLost(JobError):
    """The job's claim belongs to somebody else, so nothing that this run writes can be kept."""


class SessionClosed(JobError):
    """A handler's session was used after its job was over."""


class TransactionEscaped(JobError):
    """A COMMIT or ROLLBACK was sent to the worker's connection behind the session's back."""


class ConnectionLost(JobError):
    """The database connection of the job died, or no connection could be had."""


class JobTimeout(JobError):
    """The handler took longer than its ``timeout``; ``__cause__`` is what it raised when it was asked to end, if it did."""


class ProcessDied(JobError):
    """The executor has lost the process in which the job was computed; ``__cause__`` is the executor's own word."""


class ExecutorUnavailable(JobError):
    """The executor does not work, takes no calls, or has called the computation off."""


class ComputationFailed(JobError):
    """What ``compute`` raised, in words: the error itself cannot be pickled and unpickled."""


class JobCrashed(JobError):
    """The process died under this job as often as the worker's crash ceiling allows."""


class StrategyFailed(JobError):
    """A retry strategy raised, or returned something else than a ``Retry`` or ``None``; the job is given up."""


class ControlFlow(Exception):
    """Base of what a handler may raise to choose its fate."""


class Snooze(ControlFlow):
    """Raise in a handler to run the job again after ``delay``; it does not count as an attempt.

    ``delay`` is a non-negative ``timedelta``; ``Snooze(timedelta(0))`` makes the job due again at once.
    """

    def __init__(self, delay: timedelta) -> None:
        if not isinstance(delay, timedelta):
            raise TypeError(f"Snooze takes a timedelta, got {delay!r}")
        if not timedelta(0) <= delay <= LONGEST_DELAY:
            raise ValueError(f"Snooze takes a non-negative timedelta of at most {LONGEST_DELAY.days} days, got {delay!r}")
        super().__init__(f"snoozed for {delay}")
        self.delay = delay

    def __reduce__(self) -> tuple[type[Snooze], tuple[timedelta]]:
        return type(self), (self.delay,)


class Cancel(ControlFlow):
    """Raise in a handler to archive the job as ``cancelled``, with ``reason`` as its error text."""

    def __init__(self, reason: str = "cancelled by its handler") -> None:
        if not isinstance(reason, str):
            raise TypeError(f"Cancel takes a text, got {reason!r}")
        super().__init__(reason)
        self.reason = reason


class Interrupted(BaseException):
    """Raised in a handler by ``job.sleep`` when its worker stops: the job is released and is not an attempt.

    It is raised as well when only this job is to end: its time is over, or somebody has cancelled it. Then that
    decides what becomes of the job.
    As with ``KeyboardInterrupt``, an ``except Exception`` in a handler does not swallow it.
    """


def describe(error: BaseException) -> str:
    """Give ``Type: message`` for people, without what a database error quotes from rows and parameters."""
    return printable(f"{type(error).__name__}: {_message(error)}"[:_MESSAGE_LIMIT])


def describe_with_frames(error: BaseException) -> str:
    """Give :func:`describe` and the innermost stack frames: what is kept in ``last_error`` and ``error``."""
    return "\n\n".join(part for part in (describe(error), frames(error)) if part)


def frames(error: BaseException) -> str:
    """Give the outermost and the innermost stack frames of ``error`` that are not this library's, if there are any."""
    elsewhere: Any = getattr(error, "proletarian_frames", "")  # of another process, which has sent the error
    if isinstance(elsewhere, str) and elsewhere:
        return elsewhere
    summary = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_HERE)]
    if not summary:
        return ""
    lines = traceback.format_list(summary)
    if len(lines) > 2 * _FRAMES:
        lines[_FRAMES:-_FRAMES] = ["  ...\n"]
    return printable("Traceback (most recent call last):\n" + "".join(lines).rstrip())


def printable(text: str) -> str:
    """Make ``text`` storable in any database: no NUL, no lone surrogates."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def without_details(message: str) -> str:
    """Give the first part of a database's message, without the DETAIL and CONTEXT that quote rows and parameters."""
    return _QUOTATION.sub("", message)


def _message(error: BaseException) -> str:
    try:
        return _without_quotations(getattr(error, "orig", None) or error)
    except Exception:
        return "(its message could not be read)"


def _without_quotations(error: Any) -> str:
    """Give the message of ``error`` without rows, parameters and statements; a database's error with its SQLSTATE."""
    if (message := mysql_errors.without_values(error)) is not None:
        return f"{message} [{mysql_errors.number_of(error)}]"
    diagnostics = getattr(error, "diag", None)
    message = without_details(getattr(diagnostics, "message_primary", None) or str(error)).strip()
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if not isinstance(state, str):
        return message
    message = _ADAPTED.sub("", message)
    if state.startswith(_QUOTING_STATES):
        message = _QUOTED.sub('"…"', message).split(": ")[0]
    constraint = getattr(diagnostics, "constraint_name", None)
    return f"{message} [{state}]" + (f" (constraint {constraint})" if constraint else "")
