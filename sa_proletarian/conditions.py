"""Conditions and definitions as PostgreSQL writes them back, and as a model has them, in one form that can be compared.

It owns that form: a sequence of tokens without brackets, without casts of literals, and with instants as numbers. It is no
parser of SQL: it is sure for conjunctions of comparisons, which is what the library's conditions are, and says of anything
else that it is not. It refuses to touch a connection.

PostgreSQL writes ``a >= 0`` back as ``(a >= 0)``, or as ``(a >= (0)::numeric)`` where that is the column's type, and an
instant as it prints in the time zone of whoever asks, having read it in that of whoever made the table. So two instants are
alike here when they are less than a day apart, which no two time zones are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

Token = str | float | None
"""A word; an instant in seconds since 1970; ``None``, an instant that could not be read and is like any other."""

INSTANT = r"'[^']*'::timestamp with(?:out)? time zone"
"""How PostgreSQL writes an instant back, as a regular expression."""

_DAY = 86_400
_DATE = re.compile(r"'(\d{4}-\d\d-\d\d)'")
_MARK = re.compile(r"@(\d+)@")
_TYPE = r'(?:character varying|double precision|timestamp with(?:out)? time zone|[\w."]+)'
_CAST = re.compile(rf"('[^']*'|\b\d+(?:\.\d+)?)::{_TYPE}|::text\b")  # a VARCHAR is compared as text
_WORD = re.compile(r"@\d+@|'[^']*'|\w+|[^\w\s]+")
_COMPARISON = r"\w+ (?:(?:[<>]=?|=|<>) (?:\d+|'[^']*')|IS (?:NOT )?NULL)"
_SIMPLE = re.compile(rf"{_COMPARISON}(?: AND {_COMPARISON})*")
_STORAGE = re.compile(r" (?:WITH \([^)]*\)|TABLESPACE \S+)")


def is_simple(condition: str) -> bool:
    """Say whether it compares columns with literals or NULL, joined by AND: the forms of such can be compared for sure."""
    return _SIMPLE.fullmatch(condition) is not None


def of_model(condition: str) -> list[Token]:
    """Give the form of a condition or a definition that a model has; dates are midnights UTC."""
    dates = [datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp() for date in _DATE.findall(condition)]
    return _tokens(_marked(_DATE, condition), dates)


def of_database(condition: str, instants: Sequence[float | None] = ()) -> list[Token]:
    """Give the form of what the database has written back, in which ``instants`` stand for what ``INSTANT`` matches."""
    return _tokens(_marked(re.compile(INSTANT), condition), instants)


def alike(one: Sequence[Token], other: Sequence[Token]) -> bool:
    """Say whether two forms mean the same."""
    return len(one) == len(other) and all(map(_same, one, other))


def without_storage(definition: str) -> str:
    """Give the definition of an index without its storage parameters, which are the administrator's."""
    return _STORAGE.sub("", definition)


def _marked(pattern: re.Pattern[str], condition: str) -> str:
    numbers = iter(range(len(condition)))
    return pattern.sub(lambda _: f"@{next(numbers)}@", condition)


def _tokens(marked: str, instants: Sequence[float | None]) -> list[Token]:
    bare = _CAST.sub(r"\1", re.sub(r'[()"]', "", marked.replace("(", " ")))
    return [_token(word, instants) for word in _WORD.findall(bare)]


def _token(word: str, instants: Sequence[float | None]) -> Token:
    mark = _MARK.fullmatch(word)
    if mark is None:
        return word
    place = int(mark[1])
    return instants[place] if place < len(instants) else None


def _same(one: Token, other: Token) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return one is None or other is None or abs(one - other) < _DAY
