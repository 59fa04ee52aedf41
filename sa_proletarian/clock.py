"""The only room that reads a clock.

It owns "now" for enqueues (aware UTC) and the monotonic seconds by which a worker paces itself. It decides nothing:
whether a job is due is asked of the database, whose clock is the only one that workers share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Anything that, called without arguments, gives the current instant as an aware ``datetime``."""


def system_clock() -> datetime:
    """Give the current instant in UTC, by this machine's clock."""
    return datetime.now(UTC)


def read(clock: Clock) -> datetime:
    """Read ``clock`` and give its instant in UTC; a naive answer is a ``TypeError``."""
    now = clock()
    # utcoffset() rather than tzinfo: a time zone that does not know its offset leaves a datetime naive
    if not isinstance(now, datetime) or now.utcoffset() is None:  # type: ignore[redundant-expr]
        raise TypeError(f"clock must return an aware datetime, got {now!r}")
    return now.astimezone(UTC)


def monotonic() -> float:
    """Give seconds that never go backwards, for measuring spans within this process."""
    return time.monotonic()


def unix_nanoseconds() -> int:
    """Give nanoseconds since 1970, the time part of a UUIDv7."""
    return time.time_ns()
