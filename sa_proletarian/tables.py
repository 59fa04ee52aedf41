"""What the tables have in common, and the one among them that has no model: the worker table.

It owns the version of the schema, the types and the limits of columns, the CHECKs, and names that no app's convention
changes. The worker table says what goes on now: ``JobMixin`` makes one beside each job table. It refuses to know models,
and to write rows: those are ``presence``'s.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from sqlalchemy import (
    BLANK_SCHEMA,
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    String,
    Table,
    Uuid,
    event,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.elements import conv
from sqlalchemy.types import TypeEngine

from .dialects import MYSQL
from .dialects import TIMESTAMP as TIMESTAMP

SCHEMA_VERSION = 2
COMMENT = f"sa_proletarian schema v{SCHEMA_VERSION}"
NAME_LIMIT = 200

# Python's calendar, less a day at either end for the time zones of sessions
EARLIEST = datetime(1, 1, 3, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)

# names are told apart by their case, whatever the collation of a MariaDB or MySQL database
OPTIONS: dict[str, Any] = {f"{dialect}_collate": "utf8mb4_bin" for dialect in MYSQL}

# SQLAlchemy 2.0 knows no storage parameters of tables
_TABLES_HAVE_STORAGE = not sqlalchemy.__version__.startswith("2.0.")

DOCUMENT: TypeEngine[Any] = JSON().with_variant(JSONB(), "postgresql")


def worker_table(job_table: Table, *, keep_existing: bool = False) -> Table:
    """Make the worker table of a job table: in its schema, and named like it with ``worker`` in place of ``job``.

    ``kind`` says what a row is, ``subject`` what it is about, ``worker_id`` of whom or to whom it speaks: ``queue``, a
    worker works on this queue; ``job``, it runs this job; ``cancel``, somebody asks it to give this job up.

    :param keep_existing: give the one that the ``MetaData`` has, if it has one: the job table was declared again.
    """
    table = Table(
        worker_table_name(job_table.name),
        job_table.metadata,
        Column("kind", String(20), primary_key=True),
        Column("subject", String(NAME_LIMIT), primary_key=True),
        Column("worker_id", String(NAME_LIMIT), primary_key=True),
        Column("idle", Boolean(), nullable=False),
        Column("detail", DOCUMENT, nullable=True),
        Column("started_at", TIMESTAMP, nullable=False),
        Column("last_seen_at", TIMESTAMP, nullable=False),
        schema=job_table.schema or BLANK_SCHEMA,
        comment=COMMENT,
        keep_existing=keep_existing,
        **({} if keep_existing else OPTIONS),
    )
    add_checks(table, instants=("started_at", "last_seen_at"))
    return table


def worker_table_name(job_table_name: str) -> str:
    """Give the name of the worker table: ``proletarian_job`` has ``proletarian_worker``, ``mail`` has ``mail_worker``."""
    if job_table_name.endswith("job"):
        return f"{job_table_name.removesuffix('job')}worker"
    return f"{job_table_name}_worker"


def room() -> dict[str, Any]:
    """Give the options by which PostgreSQL fills the job table's pages to less than half.

    A claim writes a row anew, and longer, as it says whose claim it is; where there is room for that beside the row, no
    index has to learn of it. A job costs the server a quarter less then, and a third less WAL.
    """
    return {"postgresql_with": {"fillfactor": 40}} if _TABLES_HAVE_STORAGE else {}


def make_room(table: Table) -> None:
    """See to the same where SQLAlchemy does not."""
    if not _TABLES_HAVE_STORAGE:
        event.listen(table, "after_create", _MakeRoom().execute_if(dialect="postgresql"))


class _MakeRoom(ExecutableDDLElement):
    """What ``DDL`` would say, which doubles a percent sign in a name once too often."""


@compiles(_MakeRoom)
def _alter(element: Any, compiler: Any, **kw: Any) -> str:
    return f"ALTER TABLE {compiler.preparer.format_table(element.target)} SET (fillfactor = 40)"


def add_checks(table: Table, *, counts: tuple[str, ...] = (), instants: tuple[str, ...] = ()) -> None:
    """Keep out by CHECK what could be inserted by hand but not be read by a worker, or not be counted on."""
    for name in counts:
        _add_check(table, name, f"{name} >= 0")
    for name in instants:
        _add_check(table, name, f"{name} >= '{EARLIEST.date()}' AND {name} < '{LATEST.date()}'")


def _add_check(table: Table, column: str, condition: str) -> None:
    name = final(f"ck_{table.name}_{column}")
    if name not in {constraint.name for constraint in table.constraints}:  # else the table was declared again
        table.append_constraint(CheckConstraint(condition, name=name))


def add_checks_of_ids(table: Table, *columns: str) -> None:
    """See to the same for UUIDs on MySQL, which keeps them as text; no CHECK of the table, for elsewhere it is none."""
    for name in columns:
        if isinstance(table.c[name].type, Uuid):
            check = _CheckId(f"ck_{table.name}_{name}", f"{name} REGEXP '^[0-9a-fA-F]{{32}}$'")
            event.listen(table, "after_create", check.execute_if(callable_=_keeps_uuids_as_text))


def _keeps_uuids_as_text(*_: Any, dialect: Any, **__: Any) -> bool:
    return dialect.name in MYSQL and not dialect.supports_native_uuid


class _CheckId(ExecutableDDLElement):
    def __init__(self, name: str, condition: str) -> None:
        self.name = name
        self.condition = condition


@compiles(_CheckId)
def _add(element: Any, compiler: Any, **kw: Any) -> str:
    table, name = compiler.preparer.format_table(element.target), compiler.preparer.quote(element.name)
    return f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({element.condition})"


def add_index(table: Table, suffix: str, *columns: str) -> bool:
    """Add an index on ``columns``, unless the table has it because it was declared again; give whether it was added."""
    name = final(f"ix_{table.name}_{suffix}")
    if name in {index.name for index in table.indexes}:
        return False
    Index(name, *(table.c[column] for column in columns))
    return True


def final(name: str) -> conv:
    """Give a name that no naming convention of the app's MetaData changes, also not one with ``constraint_name``."""
    return conv(name)
