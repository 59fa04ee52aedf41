"""From Transit to Python values.

It owns the meaning of tags and codes, in both forms of Transit on JSON (the compact one, and the verbose one with JSON
objects). It refuses to lose silently what Clojure tells apart and Python does not: a map with two keys that are equal
here is an error. No message quotes the payload.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

from .caching import ReadCache, is_cacheable, is_code
from .values import URI, Char, Keyword, Symbol, TaggedValue, frozen
from .writing import EPOCH

_LOW_HALF = 2**64 - 1


class Object(list[tuple[str, Any]]):
    """A JSON object as its pairs, in their order."""


@dataclass(frozen=True, slots=True)
class _Tag:
    name: str


class _Marker:
    """What says that the rest of an array is a map."""


_MAP = _Marker()


class Reader:
    """Reads one payload: a JSON value in which objects are :class:`Object`."""

    def __init__(self) -> None:
        self._cache = ReadCache()

    def read(self, node: Any) -> Any:
        """Give the payload; ``ValueError`` for what is not Transit, and for what Python cannot tell apart."""
        value = self._any(node)
        if isinstance(value, _Tag | _Marker):
            raise _not_transit("a tag or a marker stands where a value must")
        return value

    def _any(self, node: Any, *, key: bool = False) -> Any:
        match node:
            case str():
                return self._string(node, key=key)
            case Object():
                return self._object(node)
            case list():
                return self._array(node)  # pyright: ignore[reportUnknownArgumentType]
            case _:
                return node

    def _string(self, text: str, *, key: bool) -> Any:
        if is_code(text):
            return self._cache.recall(text)
        value = _parsed(text)
        if is_cacheable(text, key=key):
            self._cache.keep(value)
        return value

    def _array(self, nodes: Sequence[Any]) -> Any:
        if not nodes:
            return []
        first = self._any(nodes[0])
        match first:
            case _Marker() if len(nodes) % 2:
                pairs = zip(nodes[1::2], nodes[2::2], strict=True)
                return _mapping([(self._key(key), self.read(node)) for key, node in pairs])
            case _Tag() if len(nodes) == 2:
                return _tagged(first.name, self.read(nodes[1]))
            case _Tag() | _Marker():
                raise _not_transit("a tag without one value, or a map with a key alone")
            case _:
                return [first, *map(self.read, nodes[1:])]

    def _object(self, pairs: Object) -> Any:
        values: list[tuple[Any, Any]] = []
        for name, node in pairs:
            key = self._any(name, key=True)
            if isinstance(key, _Tag) and len(pairs) == 1:
                return _tagged(key.name, self.read(node))
            values.append((key, self.read(node)))
        return _mapping(values)

    def _key(self, node: Any) -> Any:
        return self._any(node, key=True)


def _parsed(text: str) -> Any:
    match text[:2]:
        case "~~" | "~^" | "~`":
            return text[1:]
        case "~#":
            return _Tag(text[2:])
        case "^ ":
            return _MAP
        case sign if len(sign) == 2 and sign[0] == "~":
            return _tagged(sign[1], text[2:])
        case _:
            return text


def _tagged(tag: str, rep: Any) -> Any:
    """Give the value that ``rep`` under ``tag`` stands for."""
    read = _HANDLERS.get(tag)
    if read is None:
        return TaggedValue(tag, rep)
    try:
        return read(rep)
    except _Indistinct:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise ValueError(f"payload holds a value of the tag {tag!r} that cannot be read") from None


def _not_transit(why: str) -> ValueError:
    return ValueError(f"payload is not Transit: {why}")


class _Indistinct(ValueError):
    """Two keys or members that Python takes for one."""

    def __init__(self) -> None:
        super().__init__('payload holds two keys, or members of a set, that are one in Python, as :a and "a", or 1 and true')


def _mapping(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    values = {_hashable(key): value for key, value in pairs}
    if len(values) < len(pairs):
        raise _Indistinct
    return values


def _hashable(key: Any) -> Any:
    if isinstance(key, _Tag | _Marker):
        raise _not_transit("a tag or a marker stands where a key must")
    return frozen(key)


def _set(members: Sequence[Any]) -> frozenset[Any]:
    values = frozenset(map(frozen, _listed(members)))
    if len(values) < len(members):
        raise _Indistinct
    return values


def _composite_map(parts: Sequence[Any]) -> dict[Any, Any]:
    return _mapping(list(zip(_listed(parts)[::2], parts[1::2], strict=True)))


def _listed(rep: Any) -> Sequence[Any]:
    if not isinstance(rep, list):
        raise TypeError
    return rep  # pyright: ignore[reportUnknownVariableType]


def _boolean(rep: str) -> bool:
    return {"t": True, "f": False}[rep]


def _special_number(rep: str) -> float:
    return {"NaN": float("nan"), "INF": float("inf"), "-INF": float("-inf")}[rep]


def _instant(rep: Any) -> datetime:
    return EPOCH + timedelta(milliseconds=int(rep))


def _verbose_instant(rep: str) -> datetime:
    instant = datetime.fromisoformat(rep)
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def _uuid(rep: Any) -> UUID:
    if isinstance(rep, str):
        return UUID(rep)
    high, low = (int(half) & _LOW_HALF for half in rep)
    return UUID(int=high << 64 | low)


def _ratio(rep: Sequence[Any]) -> Fraction:
    numerator, denominator = map(int, rep)
    return Fraction(numerator, denominator)


_HANDLERS: Mapping[str, Callable[[Any], Any]] = {
    "_": lambda rep: None,
    "?": _boolean,
    "i": int,
    "n": int,
    "d": float,
    "f": Decimal,
    "z": _special_number,
    "b": base64.b64decode,
    ":": Keyword.read,
    "$": Symbol.read,
    "c": lambda rep: Char(rep[0]),
    "r": URI.read,
    "u": _uuid,
    "m": _instant,
    "t": _verbose_instant,
    "'": lambda rep: rep,
    "set": _set,
    "list": _listed,
    "cmap": _composite_map,
    "ratio": _ratio,
    "with-meta": lambda rep: _listed(rep)[0],
}
