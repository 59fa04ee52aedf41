"""Retry strategies: how often and when a failed job runs again.

It owns Proletarian's rules, exactly: ``retries`` is how many runs may follow the first, ``delays`` is how long each waits,
and the last delay repeats. It refuses to know about jobs, databases or clocks: a decision here is a function of the number
of attempts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .errors import LONGEST_DELAY


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed job is tried again, and after which delays.

    :param retries: how many runs may follow the first one; 0 gives up at once.
    :param delays: the delay before each retry. When there are fewer delays than retries the last one repeats; when there
        are more, the surplus is ignored; an empty sequence (or ``None``) retries at once.

    ``ValueError`` for negative values, ``TypeError`` for anything but an int and a sequence of ``timedelta``.
    """

    retries: int
    delays: Sequence[timedelta] | None = ()

    def __post_init__(self) -> None:
        if not isinstance(self.retries, int) or isinstance(self.retries, bool):  # type: ignore[redundant-expr]
            raise TypeError(f"retries must be an int, got {self.retries!r}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative, got {self.retries}")
        delays = () if self.delays is None else self.delays
        if not isinstance(delays, (list, tuple)):
            raise TypeError(f"delays must be a list or tuple of timedelta, got {delays!r}")
        for delay in delays:
            _check_delay(delay)
        object.__setattr__(self, "delays", tuple(delays))


RetryStrategy = Retry | Callable[[Any, BaseException], "Retry | None"]
"""A :class:`Retry`, or a function ``(job, error) -> Retry | None`` in which ``None`` gives up."""


def checked_strategy(retry: Any) -> RetryStrategy | None:
    """Give ``retry`` if it can be a strategy, or is ``None``; ``TypeError`` if not."""
    if retry is not None and not isinstance(retry, Retry) and not callable(retry):
        raise TypeError(f"retry must be a Retry or a function (job, error), got {retry!r}")
    return retry  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class RetrySpec:
    """What a strategy comes to for a job that has been attempted so often: retries left, and the delay before the next."""

    retries_left: int
    delay: timedelta | None = None


def retry_spec(retry: Retry, attempts: int) -> RetrySpec:
    """Give what ``retry`` allows after ``attempts`` runs (at least 1); without retries left there is no delay."""
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, got {attempts}")
    retries_left = retry.retries + 1 - attempts if retry.retries else 0
    if retries_left <= 0:
        return RetrySpec(retries_left)
    return RetrySpec(retries_left, _delay_for(retry.delays or (), attempts))


def exponential(
    retries: int,
    *,
    initial: timedelta = timedelta(seconds=1),
    factor: float = 2.0,
    cap: timedelta = timedelta(hours=1),
    jitter: float = 0.1,
    chance: Callable[[], float] = random.random,
) -> Callable[[Any, BaseException], Retry]:
    """Make a strategy whose delays grow by ``factor`` from ``initial`` up to ``cap``.

    :param jitter: the share by which each delay is stretched or shortened at random, from 0 (exact) to 1; jobs that failed
        together then do not come back together. The cap holds after jitter.
    :param chance: the source of randomness, a function that gives a float from 0 to 1.
    """
    Retry(retries, [initial, cap])
    if not factor >= 1:
        raise ValueError(f"factor must be at least 1, got {factor!r}")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must be between 0 and 1, got {jitter!r}")

    def strategy(job: Any, error: BaseException) -> Retry:
        delay = unjittered(job.attempts, initial=initial, factor=factor, cap=cap)
        return Retry(retries, [min(cap, delay * (1 + jitter * (2 * chance() - 1)))])

    return strategy


def unjittered(attempts: int, *, initial: timedelta, factor: float, cap: timedelta) -> timedelta:
    """Give the exact curve of :func:`exponential`: ``initial * factor ** (attempts - 1)``, never above ``cap``."""
    try:
        # a float overflows at once, where an int would grow until it has used up the memory
        return min(cap, initial * float(factor) ** (attempts - 1))
    except OverflowError:
        return cap


def _delay_for(delays: Sequence[timedelta], attempts: int) -> timedelta:
    return delays[min(attempts, len(delays)) - 1] if delays else timedelta(0)


def _check_delay(delay: object) -> None:
    if not isinstance(delay, timedelta):
        raise TypeError(f"a delay must be a timedelta, got {delay!r}")
    if not timedelta(0) <= delay <= LONGEST_DELAY:
        raise ValueError(f"a delay must be between 0 and {LONGEST_DELAY.days} days, got {delay!r}")
