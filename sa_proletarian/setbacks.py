"""What becomes of an error that a feeder's turn met.

It owns what is said of it, whether the app wants the worker to stop for it, and how long to wait. It refuses to know what
the turn was about.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from . import events
from .dialects import Trouble, trouble
from .errors import ConfigurationError
from .polling import back_off

OnPollingError = Callable[[BaseException], Any]
"""``(error) -> anything``: a true answer stops the worker."""

_MISSING = (
    "the job table is missing, or is not the one that this version needs; run the migrations (alembic upgrade head). "
    "The worker keeps polling"
)


class Setbacks:
    """The errors of one worker's polling and settling, one after the other."""

    def __init__(self, emit: events.Emitter, on_polling_error: OnPollingError | None) -> None:
        self._emit = emit
        self._on_polling_error = on_polling_error
        self._in_a_row = 0
        self._told_missing = False

    def meet(self, error: Exception) -> tuple[float, bool]:
        """Report ``error``; give how many seconds to wait, and whether to stop.

        A missing table is reported, and asked about, once until it is there.
        """
        self._in_a_row += 1
        delay = back_off(self._in_a_row)
        kind = trouble(error)
        repeated = kind is Trouble.MISSING_TABLE and self._told_missing
        self._told_missing = kind is Trouble.MISSING_TABLE
        if not repeated:
            self._report(error, kind, delay)
        return delay, self._asks_to_stop(error, repeated=repeated)

    def overcome(self) -> None:
        """Take note that a whole turn went well."""
        self._in_a_row = 0

    def found_table(self) -> None:
        """Take note that the job table is there: it is reported when it is missing again."""
        self._told_missing = False

    def _report(self, error: Exception, kind: Trouble, delay: float) -> None:
        if kind in (Trouble.TRANSIENT, Trouble.DISCONNECTED, Trouble.CONFLICT):
            self._emit(events.SqlTransientException, error=error, delay=timedelta(seconds=delay))
        else:
            self._emit(events.JobWorkerError, error=error, hint=_MISSING if kind is Trouble.MISSING_TABLE else None)

    def _asks_to_stop(self, error: Exception, *, repeated: bool) -> bool:
        if isinstance(error, ConfigurationError):
            return True
        if self._on_polling_error is None or repeated:
            return False
        try:
            return bool(self._on_polling_error(error))
        except (Exception, SystemExit) as failure:
            self._emit(events.JobWorkerError, error=failure, hint="on_polling_error itself failed")
            return False
