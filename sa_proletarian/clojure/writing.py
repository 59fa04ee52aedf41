"""From Python values to Transit.

It owns the way in which each type is written, as Clojure's default handlers read it, and the refusal of what they could
not. What it gives is a plain JSON value; its text is made in ``transit``.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from types import NoneType
from typing import Any
from uuid import UUID

from sa_proletarian.serializers import MAX_BYTES, MAX_DEPTH

from .caching import MAP_MARKER, WriteCache
from .values import URI, Char, Keyword, Symbol, TaggedValue

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# each takes a character and a comma at least
_MOST_VALUES = MAX_BYTES // 2
_JSON_INT = 2**53 - 1
_LONG = 2**63
_LONGEST_INT = 13_000
_TEXT_TAGS: tuple[tuple[type[str], str], ...] = ((Keyword, "~:"), (Symbol, "~$"), (Char, "~c"), (URI, "~r"))
_TEXT_TYPES = tuple(kind for kind, _ in _TEXT_TAGS)
_ESCAPED = ("~", "^", "`")
_RESERVED = ("~", "^", "`", "#")


class Writer:
    """Writes one payload.

    :param keyword_keys: write the plain texts that are keys of maps as keywords.
    """

    def __init__(self, *, keyword_keys: bool = False) -> None:
        self._keyword_keys = keyword_keys
        self._cache = WriteCache()
        self._left = _MOST_VALUES

    def write(self, payload: Any) -> Any:
        """Give the JSON value of ``payload``; ``TypeError`` or ``ValueError`` for what Transit cannot carry."""
        # what is one string or number alone is quoted: not every JSON parser takes it at the top
        return ["~#'", self._value(payload, 0)] if _is_scalar(payload) else self._value(payload, 0)

    def _value(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"payload is too large: it holds more than {_MOST_VALUES} values")
        if _is_scalar(value):
            return self._scalar(value)
        if depth >= MAX_DEPTH:
            raise ValueError(f"payload is nested too deeply: at most {MAX_DEPTH} levels are allowed")
        return self._composite(value, depth + 1)

    def _scalar(self, value: Any) -> Any:
        match value:
            case None | bool():
                return value
            case int() if abs(value) <= _JSON_INT:
                return int(value)
            case float() if math.isfinite(value):
                return float(value)
            case _:
                return self._cache.written(_text(value), key=False)

    def _composite(self, value: Any, depth: int) -> Any:
        match value:
            case Mapping():
                return self._map(value, depth)  # pyright: ignore[reportUnknownArgumentType]
            case list() | tuple():
                return [self._value(item, depth) for item in value]  # pyright: ignore[reportUnknownVariableType]
            case set() | frozenset():
                return self._tagged("set", [*value], depth)
            case Fraction():
                return self._tagged("ratio", [_big_int(value.numerator), _big_int(value.denominator)], depth)
            case TaggedValue():
                return self._tagged(value.tag, value.rep, depth)
            case _:
                raise TypeError(f"payload holds a {type(value).__qualname__}, for which Transit has no default handler")

    def _map(self, value: Mapping[Any, Any], depth: int) -> Any:
        items = [(self._key(key), item) for key, item in value.items()]
        if not all(_is_scalar(key) for key, _ in items):
            return self._tagged("cmap", [part for item in items for part in item], depth)
        written: list[Any] = [MAP_MARKER]
        for key, item in items:
            written += (self._cache.written(_text(key), key=True), self._value(item, depth))
        return written

    def _key(self, key: Any) -> Any:
        if self._keyword_keys and isinstance(key, str) and not isinstance(key, _TEXT_TYPES):
            return Keyword(str.__str__(key))
        return key

    def _tagged(self, tag: str, rep: Any, depth: int) -> Any:
        return [self._cache.written(f"~#{_storable(tag)}", key=False), self._value(rep, depth)]


def _is_scalar(value: Any) -> bool:
    """Say whether ``value`` can be written as one text, as the keys of an ordinary map must."""
    if type(value) in _CONTAINERS:
        return False
    if isinstance(value, TaggedValue):
        return len(value.tag) == 1 and isinstance(value.rep, str)
    return isinstance(value, _SCALARS)


def _text(value: Any) -> str:
    """Write a scalar as one text; the first type in :data:`_TEXTS` that it is of says how."""
    return next(written for kind, written in _TEXTS if isinstance(value, kind))(value)


def _boolean(value: bool) -> str:
    return "~?t" if value else "~?f"


def _float(value: float) -> str:
    if math.isfinite(value):
        return f"~d{float(value)!r}"
    return "~zNaN" if math.isnan(value) else f"~z{'' if value > 0 else '-'}INF"


def _bytes(value: Any) -> str:
    return f"~b{base64.b64encode(value).decode()}"


def _string(value: str) -> str:
    plain = _storable(str.__str__(value))
    for kind, tag in _TEXT_TAGS:
        if isinstance(value, kind):
            return tag + plain
    return f"~{plain}" if plain.startswith(_ESCAPED) else plain


def _storable(text: str) -> str:
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise ValueError("payload holds a lone surrogate, which is not valid text") from None
    return text


def _integer(value: int) -> str:
    if value.bit_length() > _LONGEST_INT:
        raise ValueError("payload holds an integer of more than about 4,000 digits, which Python would not read back")
    return f"~i{int(value)}" if -_LONG <= value < _LONG else f"~n{int(value)}"


def _decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise ValueError("payload holds a Decimal that is not finite, which Java's BigDecimal cannot be")
    return f"~f{value}"


def _instant(value: datetime) -> str:
    """Write the milliseconds since 1970; what is less than one is dropped, as Proletarian drops it."""
    if value.utcoffset() is None:
        raise TypeError("payload holds a naive datetime; give it a time zone")
    return f"~m{(value - EPOCH) // timedelta(milliseconds=1)}"


def _extension(value: TaggedValue) -> str:
    if value.tag in _RESERVED:
        raise ValueError(f"{value.tag!r} cannot be the tag of a value")
    return f"~{_storable(value.tag)}{_storable(value.rep)}"


def _big_int(value: int) -> TaggedValue:
    """Make the parts of a ratio what Java makes them: big integers, also where they are small."""
    return TaggedValue("n", _integer(value)[2:])


_TEXTS: tuple[tuple[type[Any], Callable[[Any], str]], ...] = (
    (NoneType, lambda value: "~_"),
    (bool, _boolean),
    (int, _integer),
    (float, _float),
    (str, _string),
    (bytes, _bytes),
    (bytearray, _bytes),
    (memoryview, _bytes),
    (Decimal, _decimal),
    (UUID, lambda value: f"~u{value}"),
    (datetime, _instant),
    (TaggedValue, _extension),
)
_SCALARS = tuple(kind for kind, _ in _TEXTS if kind is not TaggedValue)
_CONTAINERS = frozenset((dict, list, tuple))
