"""Identifiers as SQL has them, for statements that people read and run.

It owns when a name needs quotation marks, and what cannot be a name. It refuses to know what the names are of.
"""

from __future__ import annotations

import re

from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def quoted(name: str) -> str:
    """Give an identifier, between quotation marks unless it is a plain word.

    ``ValueError`` for control characters: a line break would end the comment in which the name may stand.
    """
    if _CONTROL.search(name):
        raise ValueError(f"a name must not hold control characters, got {name!r}")
    if _PLAIN.fullmatch(name) and name not in RESERVED_WORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str | None, name: str) -> str:
    """Give the name of a table, an index or a sequence, with its schema if it has one."""
    return quoted(name) if schema is None else f"{quoted(schema)}.{quoted(name)}"
