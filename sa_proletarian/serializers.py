"""Serializers: from what an app hands over to a JSON value, and back.

It owns the default serializer and the checks that every payload passes, whoever encoded it: a payload that the database
would refuse must be refused here, in the call, because one bad statement aborts the app's whole transaction. It refuses to
import any class on decoding: what comes back are plain JSON types.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, Protocol
from uuid import UUID

MAX_DEPTH = 100
MAX_BYTES = 1024 * 1024

JSON = Any
"""``dict`` with text keys, ``list``, ``str``, ``int``, ``float``, ``bool`` or ``None``."""


class Serializer(Protocol):
    """Turns payloads into JSON values and back; set it on the job model as ``serializer``."""

    def encode(self, payload: Any) -> JSON:
        """Give the JSON value to store; raise ``ValueError`` or ``TypeError`` for what cannot be stored."""
        ...

    def decode(self, value: JSON) -> Any:
        """Give back what the handler shall see as ``job.payload``."""
        ...


class JSONSerializer:
    """The default: JSON, with a text form for the usual Python values.

    ``datetime`` (aware only), ``date``, ``time``, ``UUID`` and ``Decimal`` become text, an ``Enum`` its value, dataclasses
    and pydantic or msgspec models their fields, tuples lists. All come back as those plain JSON types.
    """

    def encode(self, payload: Any) -> JSON:
        return _plain(payload, 1)

    def decode(self, value: JSON) -> Any:
        return value


def checked(value: JSON, *, max_bytes: int = MAX_BYTES) -> JSON:
    """Give a copy of the JSON ``value`` of which it is certain that every supported database will take it.

    ``TypeError`` for anything that is not JSON and for keys that are not text; ``ValueError`` for NaN and infinities, NUL
    characters, lone surrogates, more than 100 levels, and more than ``max_bytes`` bytes of JSON text (default 1 MiB).
    """
    copy = _plain(value, 1)
    size = len(json.dumps(copy, ensure_ascii=False, separators=(",", ":")).encode())
    if size > max_bytes:
        raise ValueError(f"payload is too large: {size} bytes of JSON, at most {max_bytes} are allowed")
    return copy


def loads(text: str) -> JSON:
    """Parse JSON text as it came from the database; ``ValueError`` or ``RecursionError`` when it cannot be read."""
    return json.loads(text)


def _plain(value: Any, depth: int) -> JSON:
    if value is None or value is True or value is False:
        return value
    if depth > MAX_DEPTH:
        raise ValueError(f"payload is nested too deeply: at most {MAX_DEPTH} levels are allowed")
    if isinstance(value, Enum):
        return _plain(value.value, depth)
    if isinstance(value, str):
        return _text(str(value))
    if isinstance(value, int):
        return _integer(int(value))
    if isinstance(value, float):
        return _finite(float(value))
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    return _plain(_converted(value), depth + 1)


def _converted(value: Any) -> Any:
    match value:
        case datetime():
            return _aware(value).isoformat()
        case time() if value.tzinfo is not None and value.utcoffset() is None:
            raise TypeError(f"payload holds a time whose offset is unknown: {value!r}")
        case date() | time():
            return value.isoformat()
        case UUID():
            return str(value)
        case Decimal():
            return str(_finite(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)) and not isinstance(value, type):
        return dump(mode="json")
    if (fields := getattr(value, "__struct_fields__", None)) is not None and not isinstance(value, type):
        return dict(zip(value.__struct_encode_fields__, (getattr(value, name) for name in fields), strict=True))
    raise TypeError(f"payload holds a {type(value).__qualname__}, which the serializer cannot turn into JSON")


def _text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("payload holds a NUL character, which PostgreSQL cannot store")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("payload holds a lone surrogate, which is not valid text") from None
    return value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"payload has a key that is not text: a {type(key).__qualname__}")
    return _text(str(key.value if isinstance(key, Enum) else key))


def _integer(value: int) -> int:
    if value.bit_length() > 13_000:
        raise ValueError("payload holds an integer of more than about 4,000 digits, which Python would not read back")
    return value


def _finite(value: Any) -> Any:
    if not math.isfinite(value):
        raise ValueError("payload holds NaN or an infinity, which JSON cannot express")
    return value


def _aware(value: datetime) -> datetime:
    if value.utcoffset() is None:
        raise TypeError(f"payload holds a naive datetime ({value!r}); give it a time zone")
    return value
