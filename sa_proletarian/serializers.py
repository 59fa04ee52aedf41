"""Serializers: from what an app hands over to a JSON value, and back.

It owns the default serializer and the checks that every payload passes, whoever encoded it: a payload that the database
would refuse must be refused here, in the call, because one bad statement aborts the app's whole transaction. It refuses to
import any class on decoding: what comes back are plain JSON types.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Protocol, TypeGuard
from uuid import UUID

MAX_DEPTH = 100
MAX_BYTES = 1024 * 1024

# a payload of which a text this short is made holds no integer that is too long, and not too many values
_SHORT = 3_000
_FEW = 50
_ONLY_TEXT = {str}

_TOO_DEEP = f"payload is nested too deeply: at most {MAX_DEPTH} levels are allowed"
_NOT_FINITE = "payload holds NaN or an infinity, which JSON cannot express"

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


@dataclasses.dataclass(frozen=True, slots=True)
class Binding:
    """The job that a payload belongs to; ``job_id`` is ``None`` where only the database will make it."""

    job_id: Any
    queue: str
    job_type: str

    @classmethod
    def of(cls, row: Any) -> Binding:
        """Give that of a job, or of an archived one."""
        return cls(row.job_id, row.queue, row.job_type)


class BoundSerializer(Serializer, Protocol):
    """A serializer that wants to know for which job it works: one with these two methods is asked by them alone."""

    def encode_for(self, payload: Any, binding: Binding) -> JSON:
        """Give the JSON value to store in that job."""
        ...

    def decode_for(self, value: JSON, binding: Binding) -> Any:
        """Give back what that job's handler shall see."""
        ...


class JSONSerializer:
    """The default: JSON, with a text form for the usual Python values.

    ``datetime`` (aware only), ``date``, ``time``, ``UUID`` and ``Decimal`` become text, an ``Enum`` its value, dataclasses
    and msgspec structs their fields, tuples lists, and a pydantic model what its ``model_dump(mode="json")`` gives. All come
    back as those plain JSON types; a whole ``float`` from 1e16 on comes back from PostgreSQL as an ``int``.
    """

    def encode(self, payload: Any) -> JSON:
        return _Walk(MAX_BYTES).plain(payload)

    def decode(self, value: JSON) -> Any:
        return value


def checked(value: JSON, *, max_bytes: int = MAX_BYTES) -> JSON:
    """Give a copy of the JSON ``value`` of which it is certain that every supported database will take it.

    ``TypeError`` for what is neither JSON nor understood by :class:`JSONSerializer`, and for keys that are not text;
    ``ValueError`` for NaN and infinities, NUL characters, lone surrogates, more than 100 levels, and more than ``max_bytes``
    bytes of JSON text (default 1 MiB). No message quotes the payload.
    """
    copy = _Walk(max_bytes).plain(value)
    _measured(copy, max_bytes)
    return copy


def encoded(serializer: Serializer, payload: Any, binding: Binding | None = None) -> tuple[JSON, str]:
    """Give the JSON value that ``serializer`` makes of ``payload``, checked as by :func:`checked`, and its text."""
    if type(serializer) is JSONSerializer:
        value = serializer.encode(payload)  # has walked it already
    elif binding is not None and is_bound(serializer):
        value = _Walk(MAX_BYTES).plain(serializer.encode_for(payload, binding))
    else:
        value = _Walk(MAX_BYTES).plain(serializer.encode(payload))
    return value, _measured(value, MAX_BYTES)


def decoded(serializer: Serializer, value: JSON, job: Any) -> Any:
    """Give what ``serializer`` makes of the JSON ``value`` that is stored in ``job``, or in an archived one."""
    return serializer.decode_for(value, Binding.of(job)) if is_bound(serializer) else serializer.decode(value)


def is_bound(serializer: Serializer) -> TypeGuard[BoundSerializer]:
    """Say whether it wants to know the job."""
    return hasattr(serializer, "encode_for")


def text_of(payload: Any) -> str:
    """Give the JSON text of what :class:`JSONSerializer` makes of ``payload``, checked as by :func:`checked`.

    Nearly all payloads are small and hold nothing but the very types of JSON: those are looked at, and not copied.
    """
    if _is_plain(payload) and (text := _short_text(payload)):
        return text
    return encoded(JSONSerializer(), payload)[1]


def _short_text(payload: Any) -> str | None:
    """Give the text, unless it is long or something about it has to be looked at more closely."""
    try:
        text = _compact(payload)
        if len(text) > _SHORT or "\\u0000" in text:
            return None
        if not text.isascii():
            text.encode()  # fails for a lone surrogate
    except ValueError:
        return None
    return text


def _is_plain(payload: Any) -> bool:
    """Whether ``payload`` holds few values, all of the very types of JSON and NaN perhaps, and is not deep."""
    level: Iterable[Any] = (payload,)
    for _ in range(_FEW):
        held: list[Any] = []
        for value in level:
            if type(value) in _SCALARS:
                continue
            values = _values_in(value)
            if values is None:
                return False
            if not {*map(type, values)} <= _SCALARS.keys():
                held.extend(values)
        if not held:
            return True
        if len(held) > _FEW:
            return False
        level = held
    return False


def _values_in(value: Any) -> Collection[Any] | None:
    """Give the values in a list, tuple or dict of text keys; ``None`` for anything else."""
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is dict:
        return value.values() if not value or {*map(type, value)} == _ONLY_TEXT else None
    return value if kind is list or kind is tuple else None


def _measured(value: JSON, max_bytes: int) -> str:
    text = _compact(value)
    size = len(text) if text.isascii() else len(text.encode())
    if size > max_bytes:
        raise ValueError(f"payload is too large: {size} bytes of JSON, at most {max_bytes} are allowed")
    return text


def _compactor() -> Callable[[JSON], str]:
    """Make the function that gives compact JSON text; it expects no circles, and raises ``ValueError`` for NaN."""
    encoder = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    # what encode() would make anew for every payload
    parts = make(None, encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(parts(value, 0))


_compact = _compactor()


_decoder = json.JSONDecoder()
_decode, _decode_first = _decoder.decode, _decoder.raw_decode


def loads(text: str) -> JSON:
    """Parse JSON text as it came from the database; ``ValueError`` or ``RecursionError`` when it cannot be read."""
    try:
        value, end = _decode_first(text)
    except ValueError:
        return _decode(text)  # which knows of blanks around a value, and says what is wrong
    return value if end == len(text) else _decode(text)


class _Walk:
    """One pass over a payload, of at most so many values: a few lists that name each other can stand for billions."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def plain(self, value: Any, depth: int = 0) -> JSON:
        """Copy ``value``, which is in ``depth`` lists and dicts, into plain JSON."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"payload is too large: it holds more than {self._most} values")
        kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
        if exact := _SCALARS.get(kind):  # nearly all values are of these very types: the short way for them
            return exact(value)
        if kind in _CONTAINERS:
            return self._held(value, depth)
        value = _reduced(value)
        for scalar, check in _SCALARS.items():
            if isinstance(value, scalar):
                return check(value)
        return self._held(value, depth)

    def _held(self, value: Any, depth: int) -> JSON:
        if depth >= MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if _is_mapping(value):
            return {_key(key): self.plain(item, depth + 1) for key, item in value.items()}
        return [self.plain(item, depth + 1) for item in value]


def _reduced(value: Any) -> Any:
    """Convert ``value`` until it is a scalar, a mapping, a list or a tuple; what it holds is not looked at."""
    for _ in range(MAX_DEPTH):
        if isinstance(value, Enum):
            value = value.value
        elif isinstance(value, _JSON_KINDS):
            return value
        else:
            value = _converted(value)
    raise ValueError(_TOO_DEEP)


def _converted(value: Any) -> Any:
    match value:
        case datetime() if value.utcoffset() is None:
            raise TypeError("payload holds a naive datetime; give it a time zone")
        case time() if value.tzinfo is not None and value.utcoffset() is None:
            raise TypeError("payload holds a time whose offset is unknown without a date")
        case date() | time():
            return value.isoformat()
        case UUID():
            return str(value)
        case Decimal() if not value.is_finite():
            raise ValueError(_NOT_FINITE)
        case Decimal():
            return str(value)
        case _:
            return _fields_of(value)


def _fields_of(value: Any) -> Any:
    if not isinstance(value, type):
        if dataclasses.is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if callable(dump := getattr(value, "model_dump", None)):
            return dump(mode="json")
        if hasattr(value, "__struct_fields__"):
            return _fields_of_struct(value)
    raise TypeError(f"payload holds a {type(value).__qualname__}, which the serializer cannot turn into JSON")


def _fields_of_struct(struct: Any) -> dict[str, Any]:
    config = struct.__struct_config__
    tag = {} if config.tag_field is None else {config.tag_field: config.tag}
    values = (getattr(struct, name) for name in struct.__struct_fields__)
    return tag | dict(zip(struct.__struct_encode_fields__, values, strict=True))


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return type(value) is dict or isinstance(value, Mapping)


def _text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("payload holds a NUL character, which PostgreSQL cannot store")
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError:
        raise ValueError("payload holds a lone surrogate, which is not valid text") from None
    return value if type(value) is str else str.__str__(value)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"payload has a key that is not text: a {type(key).__qualname__}")
    return _text(key)


def _integer(value: int) -> int:
    if value.bit_length() > 13_000:
        raise ValueError("payload holds an integer of more than about 4,000 digits, which Python would not read back")
    return int(value)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(_NOT_FINITE)
    return float(value)


_SCALARS: Mapping[type, Callable[[Any], JSON]] = {
    NoneType: lambda value: value,
    bool: lambda value: value,
    str: _text,
    int: _integer,
    float: _finite,
}
_CONTAINERS = frozenset((dict, list, tuple))
_JSON_KINDS = (*_SCALARS, Mapping, list, tuple)
