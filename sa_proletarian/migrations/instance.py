"""One instance of the library's tables, by name, and the version that a table's comment states.

It owns how names follow from each other and how a version is written down. It refuses to know what the tables look like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Engine

DEFAULT_PREFIX = "proletarian_"

_COMMENT = re.compile(r"sa_proletarian schema v(\d{1,4})")

Columns = tuple[Column[Any], ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """The tables that one call migrates; ``None`` for a table that it leaves alone."""

    job: str | None
    archived: str | None
    schema: str | None = None
    job_columns: Columns = ()
    archived_columns: Columns = ()

    @property
    def worker(self) -> str | None:
        """The name of the worker table, which follows from that of the job table."""
        return None if self.job is None else worker_table_name(self.job)

    @property
    def prefix(self) -> str | None:
        """What goes before ``job`` and ``archived_job``, if that is what the tables are called."""
        if self.job is None or not self.job.endswith("job"):
            return None
        prefix = self.job.removesuffix("job")
        return prefix if self.archived == f"{prefix}archived_job" else None

    def tables(self) -> Iterator[tuple[str, int]]:
        """Give the tables' names, each with the version that brought it."""
        for name, since in ((self.job, 1), (self.archived, 1), (self.worker, 2)):
            if name is not None:
                yield name, since


def worker_table_name(job_table: str) -> str:
    """Give the name of the worker table: ``proletarian_job`` has ``proletarian_worker``, ``mail`` has ``mail_worker``."""
    return f"{job_table.removesuffix('job')}worker" if job_table.endswith("job") else f"{job_table}_worker"


def comment(version: int) -> str:
    """Give the comment of the tables at a version."""
    return f"sa_proletarian schema v{version}"


def version_of(comment: str | None) -> int | None:
    """Give the version that a table's comment states; ``None`` if it states none."""
    stated = _COMMENT.fullmatch(comment or "")
    return int(stated[1]) if stated else None


def translated(bind: Connection | Engine | None, schema: str | None) -> str | None:
    """Give the schema that the ``schema_translate_map`` of a connection puts in the place of ``schema``."""
    options: Any = {} if bind is None else bind.get_execution_options()
    places: dict[str | None, str | None] = options.get("schema_translate_map") or {}
    return places.get(schema, schema)
