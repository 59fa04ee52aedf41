"""Job ids: a strategy is a function without arguments that gives the next id.

It owns the default (UUIDv7 made in this process, so that the id is known before the flush, and rows of one worker lie in
the order of their making) and the marker for ids that the database makes. It refuses to know about models.
"""

from __future__ import annotations

import os
import threading
import uuid
from typing import Any, Protocol

from .clock import unix_nanoseconds


class JobIdStrategy(Protocol):
    """Gives a fresh id, or ``None`` where the database makes it (see :func:`database_generated`)."""

    def __call__(self) -> Any: ...


_lock = threading.Lock()
_last = 0


def uuid7() -> uuid.UUID:
    """Make a UUIDv7 (RFC 9562): milliseconds, twelve bits of finer time, then 62 random bits.

    Ids that one process makes are strictly ascending, in whatever thread and even when its clock steps back.
    """
    return uuid7s(1)[0]


def uuid7s(count: int) -> list[uuid.UUID]:
    """Make that many ids at once, ascending as if :func:`uuid7` had made one after the other."""
    global _last
    nanoseconds = unix_nanoseconds()
    now = (nanoseconds // 1_000_000 << 12) | ((nanoseconds % 1_000_000 << 12) // 1_000_000)
    with _lock:
        first = max(now, _last + 1)
        _last = first + count - 1
    random_bits = os.urandom(8 * count)
    return [
        _assembled(first + number, int.from_bytes(random_bits[8 * number : 8 * number + 8], "big") >> 2)
        for number in range(count)
    ]


def _assembled(instant: int, random_bits: int) -> uuid.UUID:
    return uuid.UUID(int=(instant >> 12) << 80 | 0x7 << 76 | (instant & 0xFFF) << 64 | 0b10 << 62 | random_bits)


def database_generated() -> None:
    """Leave the id to the database: for a ``job_id`` column that is an identity or has a server default."""


def _unlock_after_fork() -> None:
    """Free the lock in a child process: the thread that held it, if one did, is not there to release it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_after_fork)
