"""Checks of arguments: a mistake of the caller is a ``TypeError`` or ``ValueError`` in the call, before anything starts."""

from __future__ import annotations

import re
from datetime import timedelta
from math import isfinite
from typing import Any

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def at_least(what: str, value: object, least: int) -> int:
    """Give ``value`` if it is an int of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")
    return value


def span(what: str, value: object, least: timedelta) -> timedelta:
    """Give ``value`` if it is a ``timedelta`` of at least ``least``."""
    if not isinstance(value, timedelta):
        raise TypeError(f"{what} must be a timedelta, got {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")
    return value


def span_from(written: str) -> timedelta:
    """Read a span as people write it: a number and a unit, as in ``90s``, ``15m``, ``12h``, ``14d``, ``2w``."""
    found = re.fullmatch(r"(\d{1,7}(?:\.\d{1,6})?)([smhdw])", written, re.ASCII)
    if found is None:
        raise ValueError(f"a span is a number and one of the units s, m, h, d, w, as in 14d, got {written!r}")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def boolean(what: str, value: object) -> bool:
    """Give ``value`` if it is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, got {value!r}")
    return value


def finite(what: str, value: object) -> None:
    """Refuse what is no finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{what} must be a number, got {value!r}")
    if not isfinite(value):
        raise ValueError(f"{what} must be finite, got {value!r}")


def timeout_or_none(value: object) -> timedelta | None:
    """Give ``value`` if it is a ``timedelta`` above zero, or ``None``."""
    return None if value is None else span("timeout", value, timedelta(microseconds=1))


def retention_or_none(value: object) -> timedelta | None:
    """Give ``value`` if it is a ``timedelta`` of at least a second, or ``None``."""
    return None if value is None else span("retention", value, timedelta(seconds=1))


def callable_or_none(what: str, value: Any) -> Any:
    """Give ``value`` if it can be called, or is ``None``."""
    if value is not None and not callable(value):
        raise TypeError(f"{what} must be callable, got {value!r}")
    return value


def printable(what: str, value: object, most: int = 200) -> str:
    """Give ``value`` if it is a text of 1 to ``most`` printable characters."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a text, got {value!r}")
    if not value.isprintable() or not 1 <= len(value) <= most:
        raise ValueError(f"{what} must be 1 to {most} printable characters, got {value!r}")
    return value
