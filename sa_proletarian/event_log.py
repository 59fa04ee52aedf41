"""The default listener: events as lines of the standard ``logging``.

It owns the levels and the wording. It knows events by their names and fields only, and it refuses to repeat what an error
quotes: errors are told by type and message, without what a database says of rows.
"""

from __future__ import annotations

import dataclasses
import logging
from datetime import datetime
from typing import Any, ClassVar, Protocol

from .errors import describe, frames

logger: logging.Logger = logging.getLogger("sa_proletarian")

_ERRORS = frozenset(
    {
        "timed_out",
        "handler_stuck",
        "handle_job_exception",
        "handle_job_exception_with_interrupt",
        "not_retrying",
        "retry_strategy_error",
        "on_failed_error",
        "job_crashed",
        "claim_lost",
        "job_parked",
        "transaction_escaped",
        "connection_died",
        "process_died",
        "executor_replaced",
        "connection_unavailable",
        "sql_transient_exception",
        "job_worker_error",
        "pruning_failed",
        "queue_worker_shutdown_error",
    }
)

_WARNINGS = frozenset({"dead_rows_kept"})


class Named(Protocol):
    """What an event is to this room: a dataclass with a name."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


def log_event(event: Named) -> None:
    """Write ``event`` to the logger ``sa_proletarian``: the default listener.

    Errors and ``not_retrying`` are ``ERROR``, ``dead_rows_kept`` is ``WARNING``, polling is ``DEBUG``, the rest ``INFO``.
    The fields of the event are in ``record.proletarian``, a dict, for structured formatters; errors are described there.
    """
    if logs(event):
        level = level_of(event)
        fields = {name: _harmless(value) for name, value in _fields(event)}
        logger.log(level, "%s", line(event), extra={"proletarian": {"event": event.name} | fields})


def logs(event: Named | type[Named]) -> bool:
    """Whether the default listener would write ``event``, or one of this kind."""
    return logger.isEnabledFor(level_of(event))


def level_of(event: Named | type[Named]) -> int:
    """Give the ``logging`` level at which the default listener writes ``event``."""
    if event.name in _ERRORS:
        return logging.ERROR
    if event.name in _WARNINGS:
        return logging.WARNING
    return logging.DEBUG if event.name == "polling_for_jobs" else logging.INFO


def line(event: Named) -> str:
    """Give ``event`` as one line ``name key=value …``; errors by type and message, with frames only for handlers' own."""
    fields = dict(_fields(event))
    text = " ".join([event.name, *(f"{name}={_shown(value)}" for name, value in fields.items())])
    if event.name == "handle_job_exception":
        text = "\n".join([text, frames(fields["error"])]).rstrip()
    return text


def _fields(event: Named) -> list[tuple[str, Any]]:
    return [(field.name, getattr(event, field.name)) for field in dataclasses.fields(event)]


def _harmless(value: Any) -> Any:
    """Put words in the place of an exception, whose own text may quote a payload."""
    return describe(value) if isinstance(value, BaseException) else value


def _shown(value: Any) -> str:
    value = _harmless(value)
    if isinstance(value, str):  # quoted where it could be taken for more than a word, or for another line
        return value if value.isprintable() and value and " " not in value else repr(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return str(value)
