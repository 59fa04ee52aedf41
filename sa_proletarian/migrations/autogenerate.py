"""The plugin's part in ``alembic revision --autogenerate`` and ``alembic check``.

It owns the comparison of versions, stated by the comments of tables, and the rewriting of what Alembic has found: what is
about the library's tables becomes one operation for each instance, what is about the app's additions to them stays. It
refuses to compare columns: ``sa_proletarian.schema.check`` does that. Tables of ours that no model describes are let be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import CommandError, PriorityDispatchResult

from . import extras, rendering
from .instance import Instance
from .operation import ProletarianMigrateOp
from .ownership import Owned, Role, normal, owned_tables
from .runner import ABSENT, LATEST, stated_version

__all__ = ["compare", "rendering"]

Key = tuple[str | None, str]


@dataclass(frozen=True, slots=True)
class Found:
    """One of the library's tables, and the version that the database has of it."""

    owned: Owned
    version: int

    @property
    def key(self) -> Key:
        """The table's schema and name, as Alembic's comparison knows them."""
        return self.owned.schema, self.owned.table.name


def compare(context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]) -> PriorityDispatchResult:
    """Rewrite what Alembic's own comparison has put into ``upgrade_ops``."""
    found = {one.key: one for one in _found(context)}
    upgrade_ops.ops[:] = [*_migrations(found.values()), *_others(context, upgrade_ops.ops, found)]
    return PriorityDispatchResult.CONTINUE


def _found(context: AutogenContext) -> Iterator[Found]:
    for owned in owned_tables(context.sorted_tables, context.dialect):
        version = stated_version(context.inspector, owned.table.name, owned.table.schema)
        if version is None or not _is_included(context, owned):
            continue  # what nobody can know, or what the app excludes, is left to Alembic and the app
        if version > LATEST:
            raise CommandError(
                f"the database has {owned.table.fullname} at schema v{version}, but this release of sa_proletarian knows "
                f"versions up to {LATEST}: install the newer release, or downgrade the database with it"
            )
        yield Found(owned, version)


def _is_included(context: AutogenContext, owned: Owned) -> bool:
    name = owned.table.name
    return context.run_name_filters(name, "table", {"schema_name": owned.schema}) and context.run_object_filters(
        owned.table, name, "table", False, None
    )


# Our tables: one operation for each instance


def _migrations(found: Iterable[Found]) -> Iterator[ProletarianMigrateOp]:
    stale = [one for one in found if one.version < LATEST and one.owned.role is not Role.WORKER]
    jobs = [one for one in stale if one.owned.role is Role.JOB]
    archives = [one for one in stale if one.owned.role is Role.ARCHIVED]
    for job in sorted(jobs, key=_place):
        archive = _archive_of(job, jobs, archives)
        if archive is not None:
            archives.remove(archive)
        yield _migration(job, archive)
    for archive in sorted(archives, key=_place):
        yield _migration(None, archive)


def _place(found: Found) -> tuple[str, str]:
    return found.owned.table.schema or "", found.owned.table.name


def _archive_of(job: Found, jobs: list[Found], archives: list[Found]) -> Found | None:
    """Give the archive that goes with a job table: by its name, or because there is no other."""
    name = job.owned.table.name
    beside = {a.owned.table.name: a for a in archives if a.owned.schema == job.owned.schema and a.version == job.version}
    names = [f"archived_{name}"]
    if name.endswith("job"):
        names.insert(0, f"{name.removesuffix('job')}archived_job")
    for candidate in names:
        if candidate in beside:
            return beside[candidate]
    only_job = sum(one.owned.schema == job.owned.schema for one in jobs) == 1
    return next(iter(beside.values())) if only_job and len(beside) == 1 else None


def _migration(job: Found | None, archive: Found | None) -> ProletarianMigrateOp:
    one = job or archive
    assert one is not None
    tables = Instance(
        job.owned.table.name if job else None,
        archive.owned.table.name if archive else None,
        one.owned.table.schema,
        job.owned.overridden() if job and job.version == ABSENT else (),
        archive.owned.overridden() if archive and archive.version == ABSENT else (),
    )
    return ProletarianMigrateOp(one.version, LATEST, tables)


# What Alembic found: without what is ours, and in an order that works


def _others(context: AutogenContext, proposed: list[Any], found: dict[Key, Found]) -> Iterator[ops.MigrateOperation]:
    unseen = {_key(context, op) for op in proposed if isinstance(op, ops.CreateTableOp)} & found.keys()
    new = [one for one in found.values() if one.version == ABSENT]
    indexes: dict[Key, list[Any]] = {}
    for op in proposed:
        key = _key(context, op)
        if key in unseen:
            if isinstance(op, ops.ModifyTableOps):
                indexes[key] = _kept(found[key], op)
        elif isinstance(op, ops.ModifyTableOps) and key in found:
            yield from _modified(found[key], _kept(found[key], op))
        elif not _is_forgotten(context, op, key, found):
            yield op
    for one in new:
        added = [*extras.columns(one.owned), *extras.constraints(one.owned), *indexes.get(one.key, [])]
        yield from _modified(one, added)
        yield from extras.checks(one.owned)
    for one in new:
        yield from _modified(one, extras.foreign_keys(one.owned))


def _key(context: AutogenContext, op: Any) -> Key:
    return normal(getattr(op, "schema", None), context.dialect), getattr(op, "table_name", "")


def _kept(found: Found, op: ops.ModifyTableOps) -> list[Any]:
    return [change for change in op.ops if not found.owned.hides(change)]


def _modified(found: Found, changes: Iterable[Any]) -> Iterator[ops.ModifyTableOps]:
    if changes := [*changes]:
        yield ops.ModifyTableOps(found.owned.table.name, changes, schema=found.owned.table.schema)


def _is_forgotten(context: AutogenContext, op: Any, key: Key, found: dict[Key, Found]) -> bool:
    """Say whether a table, to be dropped, is one of ours that no model in the metadata describes."""
    if not isinstance(op, ops.DropTableOp | ops.ModifyTableOps) or _in_metadata(context, key):
        return False
    return bool(stated_version(context.inspector, key[1], key[0]))


def _in_metadata(context: AutogenContext, key: Key) -> bool:
    return key in {(normal(table.schema, context.dialect), table.name) for table in context.sorted_tables}
