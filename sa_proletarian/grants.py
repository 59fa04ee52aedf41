"""Which rights to the tables each role needs, and no more, as GRANT statements.

It owns the roles and what each of them does with which table and column. It refuses to execute anything: whoever owns the
tables reads the statements, and runs them.

``enqueuer``
    puts jobs in: a web app. It cannot read, change or delete any, its own neither.
``worker``
    claims, runs and settles jobs, and says in the worker table that it is here.
``admin``
    looks at everything; requeues what is archived; hurries, postpones, moves, deletes or cancels what waits; prunes the
    archive; asks for a running job to be cancelled. It cannot rewrite a payload, nor what is archived.

None of them can change the schema: that is the right of the tables' owner, as whom migrations run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy import Column, Sequence, Table

from .job_ids import database_generated
from .models import ArchivedJob, Job, JobMixin
from .quoting import qualified, quoted

Role: TypeAlias = Literal["enqueuer", "worker", "admin"]

_CLAIM = ("claim_id", "claimed_by", "claimed_until", "attempts", "crashes", "process_at", "last_error")
_SIGHTING = ("idle", "detail", "started_at", "last_seen_at")
_WAITING = ("queue", "process_at")

SchemaMap = Mapping[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Right:
    """One privilege on one thing; ``columns`` are those of the table that it is about, none if it is the whole table."""

    privilege: str
    on: str
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        columns = f" ({', '.join(map(quoted, self.columns))})" if self.columns else ""
        return f"{self.privilege}{columns} ON {self.on}"


@dataclass(frozen=True, slots=True)
class Grants:
    """The rights of a role, to the database's role ``to``."""

    role: Role
    to: str
    rights: tuple[Right, ...]
    notes: tuple[str, ...]

    def statements(self) -> list[str]:
        """Give the statements, one for each schema, table and sequence."""
        return [f"GRANT {right} TO {quoted(self.to)};" for right in _together(self.rights)]

    def script(self) -> str:
        """Give the statements with a comment above them, and below as comments what some apps need besides."""
        head = f"-- What the role {self.role} of sa_proletarian needs, and no more; to be run by the owner of the tables."
        return "\n".join([head, *self.statements(), *(f"-- {note}" for note in self.notes)])


def grants(
    role: Role,
    job_model: type[JobMixin] = Job,
    archived_model: type[Any] = ArchivedJob,
    *,
    to: str | None = None,
    schema_translate_map: SchemaMap | None = None,
) -> Grants:
    """Say what ``role`` needs on the tables of two models.

    :param role: ``"enqueuer"``, ``"worker"`` or ``"admin"``.
    :param to: the role of the database; default ``proletarian_enqueuer`` and so on. It must be there.
    :param schema_translate_map: as that of an engine: puts the tables into other schemas.

    The right to enqueue includes reading the columns that the database fills in (an id that it makes, a default), because
    an ``INSERT … RETURNING`` reads them. ``ValueError`` for names that no GRANT should hold, ``TypeError`` for models that
    are not made with ``JobMixin``.
    """
    if role not in get_args(Role):
        raise ValueError(f"role must be one of {', '.join(get_args(Role))}, got {role!r}")
    if not issubclass(job_model, JobMixin):
        raise TypeError(f"expected a model made with JobMixin, got {job_model.__name__}")
    to = checked_role(f"proletarian_{role}" if to is None else to)
    tables = _Tables(job_model, archived_model, schema_translate_map or {})
    rights = {"enqueuer": tables.enqueuer, "worker": tables.worker, "admin": tables.admin}[role]
    return Grants(role, to, (*tables.usage(), *rights()), tuple(tables.notes(role, to)))


def checked_role(name: str) -> str:
    """Give ``name`` if it can be a role of one's own; ``PUBLIC`` is everybody, whether between quotation marks or not."""
    quoted(name)
    if not name or name.lower() == "public" or name == "none":
        raise ValueError(f"to must name a role of the database, got {name!r}")
    return name


class _Tables:
    """The tables of two models, with the names that GRANT has for them."""

    def __init__(self, job_model: Any, archived_model: Any, schemas: SchemaMap) -> None:
        self._schemas = schemas
        self._job_table: Table = job_model.__table__
        self._job = self._table(self._job_table)
        self._archived = self._table(archived_model.__table__)
        self._worker = self._table(job_model.__worker_table__)
        self._makes_ids = job_model.job_id_strategy is database_generated

    def usage(self) -> Iterator[Right]:
        schema = self._schema_of(self._job_table)
        if schema is not None:
            yield Right("USAGE", f"SCHEMA {quoted(schema)}")

    def enqueuer(self) -> Iterator[Right]:
        yield Right("INSERT", self._job)
        filled = tuple(column.name for column in self._job_table.c if self._is_filled(column))
        if filled:
            yield Right("SELECT", self._job, filled)
        yield from self._sequences()

    def worker(self) -> Iterator[Right]:
        yield Right("SELECT", self._job)
        yield Right("UPDATE", self._job, _CLAIM)
        yield Right("DELETE", self._job)
        yield Right("SELECT", self._archived, ("job_id",))
        yield Right("INSERT", self._archived)
        yield Right("SELECT", self._worker)
        yield Right("INSERT", self._worker)
        yield Right("UPDATE", self._worker, _SIGHTING)
        yield Right("DELETE", self._worker)

    def admin(self) -> Iterator[Right]:
        yield Right("SELECT", self._job)
        yield Right("INSERT", self._job)
        yield Right("UPDATE", self._job, _WAITING)
        yield Right("DELETE", self._job)
        yield from self._sequences()
        yield Right("SELECT", self._archived)
        yield Right("INSERT", self._archived)
        yield Right("DELETE", self._archived)
        yield Right("SELECT", self._worker)
        yield Right("INSERT", self._worker)
        yield Right("DELETE", self._worker)

    def notes(self, role: Role, to: str) -> Iterator[str]:
        if self._schema_of(self._job_table) is None:
            yield "The models name no schema: run this with the search_path of the app, whose schema the role must USE."
        if role == "worker":
            yield "Only where workers prune the archive (retention=):"
            yield f"GRANT SELECT, DELETE ON {self._archived} TO {quoted(to)};"
            yield "Handlers need their rights to the app's own tables besides; those that enqueue, the enqueuer's too:"
            yield f"GRANT proletarian_enqueuer TO {quoted(to)};"

    def _table(self, table: Table) -> str:
        return f"TABLE {qualified(self._schema_of(table), table.name)}"

    def _schema_of(self, table: Table) -> str | None:
        return self._schemas.get(table.schema, table.schema)

    def _is_filled(self, column: Column[Any]) -> bool:
        """Say whether the database fills in the column at an INSERT, and the statement therefore reads it."""
        default: Any = column.default
        is_expression = default is not None and (default.is_clause_element or default.is_sequence)
        return column.server_default is not None or is_expression or self._is_made_id(column)

    def _is_made_id(self, column: Column[Any]) -> bool:
        return self._makes_ids and column.name == "job_id"

    def _sequences(self) -> Iterator[Right]:
        """Give the rights to the sequences that columns' defaults draw from; an identity needs none."""
        for column in self._job_table.c:
            sequence = _sequence_of(column)
            if sequence is not None:
                schema = self._schemas.get(sequence.schema, sequence.schema)
                yield Right("USAGE", f"SEQUENCE {qualified(schema, sequence.name)}")
            elif self._is_serial(column):
                name = f"{self._job_table.name}_{column.name}_seq"
                yield Right("USAGE", f"SEQUENCE {qualified(self._schema_of(self._job_table), name)}")

    def _is_serial(self, column: Column[Any]) -> bool:
        """Say whether SQLAlchemy makes the column a SERIAL."""
        own: Any = self._job_table
        return self._is_made_id(column) and column is own._autoincrement_column and column.server_default is None


def _sequence_of(column: Column[Any]) -> Any:
    """Give the sequence that a column's default draws from, on whichever side."""
    default: Any = column.default
    if isinstance(default, Sequence):
        return default
    return getattr(getattr(column.server_default, "arg", None), "sequence", None)


def _together(rights: tuple[Right, ...]) -> list[str]:
    """Give the rights to the same thing as one."""
    by_thing: dict[str, list[str]] = {}
    for right in rights:
        by_thing.setdefault(right.on, []).append(str(right).removesuffix(f" ON {right.on}"))
    return [f"{', '.join(privileges)} ON {on}" for on, privileges in by_thing.items()]
