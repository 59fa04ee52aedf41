"""Whether the tables in the database are what this version needs: for CI, and for health probes.

    result = schema.check(connection, jobs)
    if not result.ok:
        print(result.message)  # proletarian_job: schema v1, this version needs v2: run op.proletarian_migrate(1, 2)

It owns the question as a whole: where the tables are, which version their comments state, and then, part by part
(``drift``), how they differ from what the models need (``needs``). It refuses to change anything, and to need any right to
the tables: what it asks is PostgreSQL's catalog (``catalog``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from . import catalog, drift, needs
from .catalog import Catalog, FoundTable
from .dialects import SUPPORTED, sqlstate
from .drift import Problem as Problem
from .errors import ConfigurationError
from .models import ArchivedJob, Job
from .needs import NeededTable, Needs
from .quoting import qualified, quoted
from .tables import SCHEMA_VERSION

_NO_PRIVILEGE = "42501"


@dataclass(frozen=True, slots=True)
class Check:
    """What :func:`check` has found.

    :ivar problems: what is not as it must be; each has ``what`` and ``remedy``, and is both as a text.
    :ivar message: one line that says it all.
    """

    problems: tuple[Problem, ...]
    message: str

    @property
    def ok(self) -> bool:
        """Whether the tables are what this version needs."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok


def check(connection: Connection, jobs: Any = Job, archived_model: Any = None) -> Check:
    """Say whether the tables in the database are what this version of the library needs.

    :param connection: is only read from, in its own transaction; its ``schema_translate_map`` counts. For an
        ``AsyncConnection``: ``await connection.run_sync(schema.check, jobs)``.
    :param jobs: the app's ``Proletarian``, or its job model; by default the library's own.
    :param archived_model: the app's archive model, where ``jobs`` is a job model of the app's.

    What is there beyond the need (columns, indexes, constraints of the app's) does not matter, nor does a later version of
    the schema, as long as everything that this version needs is in it. The role of the connection needs no right to the
    tables. Drift is no exception; ``ConfigurationError`` for a database that is not PostgreSQL, and what SQLAlchemy raises
    when the database cannot be asked.
    """
    job_model, archived_model = models_of(jobs, archived_model)
    options = _checked(connection).get_execution_options()
    needed = needs.of(job_model, archived_model, connection.dialect, options.get("schema_translate_map") or {})
    try:
        found = catalog.read(connection, [(table.schema, table.name) for table in needed.tables], needed.types)
    except DBAPIError as error:
        if sqlstate(error) != _NO_PRIVILEGE:
            raise
        what = f"the catalog cannot be read: {error.orig}".splitlines()[0]
        return _result([Problem(what, "GRANT USAGE ON SCHEMA pg_catalog and SELECT on its tables to the role")], needed)
    return _result([*_problems(needed, found)], needed, _later(needed, found))


def models_of(jobs: Any, archived_model: Any = None) -> tuple[Any, Any]:
    """Give the two models of a ``Proletarian``, or those given; ``TypeError`` where the archive's is missing."""
    if hasattr(jobs, "job_model"):
        return jobs.job_model, jobs.archived_model
    if jobs is Job and archived_model is None:
        return Job, ArchivedJob
    for model in (jobs, archived_model):
        if not hasattr(model, "__table__"):
            raise TypeError(f"expected a Proletarian, or a job model and an archive model, got {jobs!r}, {archived_model!r}")
    return jobs, archived_model


def _checked(connection: Any) -> Connection:
    if not isinstance(connection, Connection):
        raise TypeError(
            f"schema.check takes a Connection, got a {type(connection).__name__}; "
            "of a session it is session.connection(), of an engine: with engine.connect() as connection, "
            "and an AsyncConnection does await connection.run_sync(schema.check, jobs)"
        )
    if connection.dialect.name not in SUPPORTED:
        raise ConfigurationError(f"schema.check can read PostgreSQL's catalog, not that of {connection.dialect.name}")
    return connection


def _result(problems: list[Problem], needed: Needs, later: int | None = None) -> Check:
    if problems:
        return Check(tuple(problems), "; ".join(map(str, problems)))
    names = ", ".join(table.label for table in needed.tables)
    version = needed.job.version
    if version is None:
        return Check((), f"{names}: as this version needs them")
    newer = f" (the database has v{later}, which does for it)" if later else ""
    return Check((), f"{names}: schema v{version}, as this version needs{newer}")


def _problems(needed: Needs, found: Catalog) -> Iterator[Problem]:
    tables = [(table, found.table(table.schema, table.name)) for table in needed.tables]
    if all(there is None for _, there in tables):
        yield _all_absent(needed, found)
        return
    yield from _stale(needed, found)
    for table, there in tables:
        if there is None:
            if not _is_yet_to_come(needed, table, found):
                yield _absent(needed, table, found)
        elif not there.is_table:
            yield Problem(f"{table.label} is not a table, but a view or a foreign table", "give the models another name")
        elif not there.may_use:
            yield _no_usage(table.label, there, found)
        elif not _is_stale(needed, table, found):
            yield from _unversioned(needed, table, there, found)
            yield from drift.of_table(table, there, found)


# where it is -----------------------------------------------------------------------------------------------------------


def _all_absent(needed: Needs, found: Catalog) -> Problem:
    labels = ", ".join(table.label for table in needed.tables)
    if (elsewhere := _elsewhere(needed.job, found)) is not None:
        return elsewhere
    if needed.job.version is None:
        return Problem(f"there is no {labels} {_looked_in(needed.job, found)}", "make these tables")
    return Problem(f"there is no {labels} {_looked_in(needed.job, found)}", f"run {_migrate(needed, 0, needed.tables)}")


def _absent(needed: Needs, table: NeededTable, found: Catalog) -> Problem:
    if (elsewhere := _elsewhere(table, found)) is not None:
        return elsewhere
    what = f"there is no {table.label} {_looked_in(table, found)}"
    if table is needed.worker and (job := found.table(needed.job.schema, needed.job.name)) is not None:
        step_back = f"COMMENT ON TABLE {qualified(job.schema, job.name)} IS 'sa_proletarian schema v1'"
        return Problem(what, f"{step_back}; then run {_migrate(needed, 1, (needed.job,))}")
    if table.version is None:
        return Problem(what, "make this table")
    return Problem(what, f"run {_migrate(needed, 0, (table,))}")


def _elsewhere(table: NeededTable, found: Catalog) -> Problem | None:
    """Say where a table of that name is, if not where it is looked for."""
    others = found.elsewhere(table.name)
    if not others:
        return None
    there = others[0]
    if not there.may_use:
        return _no_usage(table.label, there, found)
    what = f"there is no {table.label} {_looked_in(table, found)}, but there is {qualified(there.schema, there.name)}"
    return Problem(what, "name that schema in the models or in schema_translate_map, or set the role's search_path")


def _looked_in(table: NeededTable, found: Catalog) -> str:
    place = found.place
    if table.schema is None:
        return f"in database {place.database} on the search_path ({', '.join(place.search_path) or 'nothing usable'})"
    missing = "" if table.schema in place.schemas else f", which has no schema {table.schema}"
    return f"in database {place.database}{missing}"


def _no_usage(label: str, there: FoundTable, found: Catalog) -> Problem:
    return Problem(
        f"{label} is out of reach: role {found.place.role} has no USAGE on schema {there.schema}",
        f"GRANT USAGE ON SCHEMA {quoted(there.schema)} TO {quoted(found.place.role)}",
    )


# which version it is ---------------------------------------------------------------------------------------------------


def _stale(needed: Needs, found: Catalog) -> Iterator[Problem]:
    """Say which tables state an earlier version; those of one version are brought on together."""
    by_version: dict[int, list[NeededTable]] = {}
    for table in (needed.job, needed.archived):
        there = found.table(table.schema, table.name)
        version = None if there is None else needs.version_of(there.comment)
        if version is not None and _is_earlier(version, table):
            by_version.setdefault(version, []).append(table)
    for version, tables in by_version.items():
        what = f"{tables[0].label}: schema v{version}, this version needs v{tables[0].version}"
        yield Problem(what, f"run {_migrate(needed, version, tuple(tables))}")


def _is_stale(needed: Needs, table: NeededTable, found: Catalog) -> bool:
    """Say whether a table states an earlier version, which says more than any comparison would."""
    stating = needed.job if table is needed.worker else table
    there = found.table(stating.schema, stating.name)
    version = needs.version_of(there.comment) if there is not None else None
    return version is not None and _is_earlier(version, stating)


def _is_earlier(version: int, table: NeededTable) -> bool:
    return table.version is not None and version < table.version


def _is_yet_to_come(needed: Needs, table: NeededTable, found: Catalog) -> bool:
    """Say whether a missing table is the worker's, and the job table states a version from before there was one."""
    job = found.table(needed.job.schema, needed.job.name)
    return table is needed.worker and job is not None and needs.version_of(job.comment) == 1


def _unversioned(needed: Needs, table: NeededTable, there: FoundTable, found: Catalog) -> Iterator[Problem]:
    version = needs.version_of(there.comment)
    if table.version is None or (version is not None and not _is_earlier(version, table)):
        return
    worker = needed.worker
    is_first = worker is not None and found.table(worker.schema, worker.name) is None
    comment = f"'sa_proletarian schema v{1 if is_first else SCHEMA_VERSION}'"
    states = "no version of the schema" if version is None else f"v{version}, that of {needed.job.label} does not"
    remedy = f"COMMENT ON TABLE {qualified(there.schema, there.name)} IS {comment}"
    yield Problem(f"{table.label}: its comment states {states}", remedy)


def _later(needed: Needs, found: Catalog) -> int | None:
    there = found.table(needed.job.schema, needed.job.name)
    version = needs.version_of(there.comment) if there is not None else None
    return version if version is not None and version > (needed.job.version or version) else None


def _migrate(needed: Needs, start: int, tables: tuple[NeededTable, ...]) -> str:
    """Write the call of the operation that brings ``tables`` to this version."""
    job, archived = needed.job.name, needed.archived.name
    prefix = job.removesuffix("job")
    named: dict[str, str | None] = {}
    if len(tables) > 1 and job.endswith("job") and archived == f"{prefix}archived_job":
        named["prefix"] = None if prefix == "proletarian_" else prefix
    else:
        named["job_table"] = job if needed.job in tables else None
        named["archived_table"] = archived if needed.archived in tables else None
    named["schema"] = needed.job.schema
    keywords = "".join(f", {key}={value!r}" for key, value in named.items() if value is not None)
    return f"op.proletarian_migrate({start}, {SCHEMA_VERSION}{keywords}{_columns(needed, tables) if start == 0 else ''})"


def _columns(needed: Needs, tables: tuple[NeededTable, ...]) -> str:
    """Leave a gap for the columns that the app declares otherwise, as a revision by autogenerate spells them out."""
    gaps = (("job_columns", needed.job), ("archived_columns", needed.archived))
    return "".join(f", {name}=[...]" for name, table in gaps if table in tables and table.overrides)
