"""The registry: which models an app uses, and which handler takes which job type.

It owns lookups only. There is no global registry: an app makes its own, and may make several.
"""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from .arguments import callable_or_none, timeout_or_none
from .models import checked_name
from .retry import RetryStrategy, checked_strategy

EVERY_TYPE = "*"

Handler = Callable[..., Any]
"""``(session, job) -> anything``, or ``(session, job, result)`` after a ``compute``; what it returns is dropped."""

Compute = Callable[[Any], Any]
"""``(payload) -> result``, called in a process of an executor."""

OnFailed = Callable[[Any, BaseException], None]
"""``(job, error) -> None``, called once after a job has finally failed."""

H = TypeVar("H", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler and what goes with it; ``None`` leaves the choice to the worker."""

    handler: Handler
    retry: RetryStrategy | None = None
    on_failed: OnFailed | None = None
    is_async: bool = False
    timeout: timedelta | None = None
    compute: Compute | None = None


class Registry:
    """Handlers by job type."""

    def __init__(self) -> None:
        self._registrations: dict[str, Registration] = {}

    def handler(
        self,
        job_type: str,
        *,
        retry: RetryStrategy | None = None,
        on_failed: OnFailed | None = None,
        timeout: timedelta | None = None,
        compute: Compute | None = None,
    ) -> Callable[[H], H]:
        """Register the decorated function ``(session, job)`` for ``job_type``.

        :param job_type: the type of job that the function takes; ``"*"`` takes every type that has no handler of its own.
        :param retry: a ``Retry`` or a function ``(job, error) -> Retry | None``; ``None`` leaves it to the worker's
            ``retry``, which gives up by default.
        :param on_failed: called as ``(job, error)`` after the job has been archived as ``failure`` or ``crashed``, at most
            once; ``None`` leaves it to the worker's ``on_failed``.
        :param timeout: how long one call may take; then it is asked to end, and what it raises is a ``JobTimeout`` to the
            retry strategy. ``None`` leaves it to the worker's ``timeout``, which is none by default. It counts for
            ``compute`` and the handler together.
        :param compute: a function that takes a processor: the worker's ``executor`` calls it with the job's payload, in
            another process, and the decorated function is then ``(session, job, result)``, with what it gave. It must
            be one that can be imported by its name.

        ``ValueError`` when the type has a handler already.
        """
        if not isinstance(job_type, str):
            raise TypeError(f'name the job type, as in @jobs.handler("welcome"); got {job_type!r}')
        name = EVERY_TYPE if job_type == EVERY_TYPE else self._checked_type(job_type)
        checked_strategy(retry)
        callable_or_none("on_failed", on_failed)
        self._check_timeout(timeout)
        self._check_compute(compute)

        def register(function: H) -> H:
            if not callable(function):
                raise TypeError(f"a handler must be callable, got {function!r}")
            if python_inspect.isgeneratorfunction(function) or python_inspect.isasyncgenfunction(function):
                raise TypeError(f"a handler must not be a generator, whose body would not run; got {function!r}")
            if name in self._registrations:
                raise ValueError(f"job type {name!r} has a handler already")
            self._registrations[name] = Registration(function, retry, on_failed, is_async(function), timeout, compute)
            return function

        return register

    def _check_timeout(self, timeout: timedelta | None) -> None:
        timeout_or_none(timeout)

    def _check_compute(self, compute: Compute | None) -> None:
        callable_or_none("compute", compute)
        if is_async(compute):
            raise TypeError(f"compute must be a plain function, which another process calls; got {compute!r}")

    def _checked_type(self, job_type: str) -> str:
        return checked_name("job_type", job_type)

    def registration(self, job_type: str) -> Registration | None:
        """Give what is registered for ``job_type``, or for every type; ``None`` when nothing is."""
        return self._registrations.get(job_type) or self._registrations.get(EVERY_TYPE)

    def known_types(self) -> list[str] | None:
        """Give the job types that can be handled here; ``None`` means all of them."""
        return None if EVERY_TYPE in self._registrations else sorted(self._registrations)

    def type_of(self, target: str | Callable[..., Any]) -> str:
        """Give the job type that ``target`` (a type, or a handler's function) stands for."""
        if isinstance(target, str):
            return target
        types = [name for name, registration in self._registrations.items() if registration.handler == target]
        if len(types) == 1 and types[0] != EVERY_TYPE:
            return types[0]
        if not types:
            raise TypeError(f"a job type must be a text or a registered handler, got {target!r}")
        raise ValueError(f"{target!r} handles {', '.join(types)}: say which job type you mean")

    def computed_type(self) -> str | None:
        """Give a job type that needs an executor, if there is one."""
        return next((name for name, entry in self._registrations.items() if entry.compute is not None), None)

    def has_coroutines(self) -> bool:
        """Whether there is anything ``async def`` here, which needs an event loop."""
        return any(entry.is_async or is_async(entry.on_failed) for entry in self._registrations.values())

    def refuse_coroutines(self) -> None:
        """Raise ``TypeError`` if a handler is ``async def``."""
        for name, registration in self._registrations.items():
            if registration.is_async:
                raise TypeError(f"the handler of {name!r} is async; this kind of worker runs plain functions only")


def is_async(function: Any) -> bool:
    """Whether calling ``function`` gives a coroutine; also that of an object whose class has an async ``__call__``."""
    owner: Any = function.__class__
    return any(map(python_inspect.iscoroutinefunction, (function, getattr(owner, "__call__", None))))  # noqa: B004
