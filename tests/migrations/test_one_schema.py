"""Whoever makes the tables, and in whichever way: the database is the same, and the way back leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import BigInteger, CheckConstraint, Engine, ForeignKey, Identity, MetaData, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import sa_proletarian
from sa_proletarian import ArchivedJobMixin, JobMixin, models_for


@dataclass(frozen=True)
class Case:
    """Models, and the calls that migrate what they need from one version to another."""

    metadata: MetaData
    calls: tuple[str, ...]

    def code(self, start: int, end: int) -> str:
        calls = self.calls if start < end else self.calls[::-1]
        return "\n".join(f"op.proletarian_migrate({start}, {end}{call})" for call in calls)


def default_names() -> Case:
    return Case(sa_proletarian.metadata, ("",))


def schema() -> Case:
    metadata = MetaData(schema="queues")
    models_for(metadata)
    return Case(metadata, (", schema='queues'",))


def two_instances() -> Case:
    metadata = MetaData()
    models_for(metadata)
    models_for(metadata, prefix="mail_")
    return Case(metadata, ("", ", prefix='mail_'"))


def names_without_a_prefix() -> Case:
    class Base(DeclarativeBase):
        pass

    class Mail(JobMixin, Base):
        __tablename__ = "mail"

    class ArchivedMail(ArchivedJobMixin, Base):
        __tablename__ = "sent"

    return Case(Base.metadata, (", job_table='mail', archived_table='sent'",))


def naming_convention() -> Case:
    names = {"ix": "i_%(table_name)s", "ck": "c_%(table_name)s_%(constraint_name)s", "pk": "p_%(table_name)s"}
    metadata = MetaData(naming_convention=names)
    models_for(metadata)
    return Case(metadata, ("",))


def ids_and_payloads_of_its_own() -> Case:
    class Base(DeclarativeBase):
        pass

    class Job(JobMixin, Base):
        payload: Mapped[str] = mapped_column(Text, nullable=False)
        job_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)

    class ArchivedJob(ArchivedJobMixin, Base):
        job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
        payload: Mapped[str] = mapped_column(Text, nullable=False)

    job_columns = (
        "[sa.Column('job_id', sa.BigInteger(), sa.Identity(always=False), nullable=False), "
        "sa.Column('payload', sa.Text(), nullable=False)]"
    )
    archived_columns = (
        "[sa.Column('job_id', sa.BigInteger(), nullable=False), sa.Column('payload', sa.Text(), nullable=False)]"
    )
    return Case(Base.metadata, (f", job_columns={job_columns}, archived_columns={archived_columns}",))


CASES = [default_names, schema, two_instances, names_without_a_prefix, naming_convention, ids_and_payloads_of_its_own]


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def case(request, engine: Engine) -> Case:
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA queues"))
    return request.param()


def lines(code: str) -> set[str]:
    """Give the calls without the columns, which only the making of a table names."""
    return {line.split(", job_columns")[0].rstrip(")") for line in code.splitlines()}


def test_autogenerate_gives_what_create_all_gives_with_the_plugin_and_without(
    case, migrations, created, dump, by_alembic_alone
):
    empty, expected = dump(), created(case.metadata)
    for plugins in (None, ["alembic.autogenerate.*", "sa_proletarian.migrations"]):
        revision = migrations.autogenerate(case.metadata, plugins=plugins)
        migrations.run(revision.upgrade, case.metadata)
        assert dump() == (by_alembic_alone(expected) if plugins is None else expected)
        assert migrations.autogenerate(case.metadata, plugins=plugins, include_schemas=True).differences == []
        migrations.run(revision.downgrade, case.metadata)
        assert dump() == empty


def test_the_plugin_writes_one_line_for_each_instance_and_each_upgrade(case, migrations):
    first = migrations.autogenerate(case.metadata)
    assert {*first.upgrade.splitlines()} == {*case.code(0, 2).splitlines()}
    assert lines(first.downgrade) == lines(case.code(2, 0))
    migrations.run(case.code(0, 1), case.metadata)
    second = migrations.autogenerate(case.metadata)
    assert (lines(second.upgrade), lines(second.downgrade)) == (lines(case.code(1, 2)), lines(case.code(2, 1)))
    migrations.run(second.upgrade, case.metadata)
    assert migrations.autogenerate(case.metadata).differences == []


def test_the_operation_gives_what_create_all_gives_at_once_and_step_by_step(case, migrations, created, dump):
    empty, expected = dump(), created(case.metadata)
    migrations.run(case.code(0, 2), case.metadata)
    assert dump() == expected
    migrations.run(case.code(2, 0), case.metadata)
    assert dump() == empty
    migrations.run(case.code(0, 1), case.metadata)
    first = dump()
    migrations.run(case.code(1, 2), case.metadata)
    assert dump() == expected
    migrations.run(case.code(2, 1), case.metadata)
    assert dump() == first != expected
    migrations.run(case.code(1, 0), case.metadata)
    assert dump() == empty


def test_the_operation_gives_the_same_as_sql(case, migrations, as_sql, created, dump):
    empty, expected = dump(), created(case.metadata)
    for way in ([(0, 2)], [(0, 1), (1, 2)]):
        for start, end in way:
            migrations.run_sql(as_sql(case.code(start, end), case.metadata))
        assert dump() == expected
        for start, end in reversed(way):
            migrations.run_sql(as_sql(case.code(end, start), case.metadata))
        assert dump() == empty


@pytest.mark.parametrize("case", [default_names, two_instances], indirect=True)
def test_the_operation_gives_the_same_with_indexes_built_concurrently(case, migrations, as_sql, created, dump):
    expected = created(case.metadata)
    code = "\n".join(f"{line[:-1]}, concurrently=True)" for line in case.code(0, 2).splitlines())
    migrations.run(code, case.metadata)
    assert dump() == expected
    migrations.run(case.code(2, 0), case.metadata)
    sql = as_sql(code, case.metadata)
    assert "COMMIT;\n\nCREATE INDEX CONCURRENTLY ix_" in sql
    migrations.run_sql(sql)
    assert dump() == expected


def test_a_naming_convention_counts_in_a_list_of_metadata_too(migrations, created, dump):
    metadata = naming_convention().metadata
    expected = created(metadata)
    assert "p_proletarian_worker" in expected
    listed = [MetaData(naming_convention={"pk": "other_%(table_name)s"}), metadata]
    migrations.run("op.proletarian_migrate(0, 2)", listed)
    assert dump() == expected


# Extra columns


def with_extras(**convention: str) -> MetaData:
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=convention or None)

    class Tenant(Base):
        __tablename__ = "a_tenant"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Job(JobMixin, Base):
        __table_args__ = (
            CheckConstraint("weight > 0"),
            CheckConstraint("weight < tenant_id"),
            CheckConstraint("weight <> 13"),
            UniqueConstraint("weight", "tenant_id", name="heavy"),
        )
        weight: Mapped[int] = mapped_column(unique=True, server_default="1")
        tenant_id: Mapped[int] = mapped_column(ForeignKey(Tenant.id, ondelete="CASCADE"), index=True)

    class ArchivedJob(ArchivedJobMixin, Base):
        tenant_id: Mapped[int | None] = mapped_column(ForeignKey(Tenant.id))

    class Note(Base):
        __tablename__ = "a_note"
        id: Mapped[int] = mapped_column(primary_key=True)
        job_id = mapped_column(ForeignKey(Job.job_id, ondelete="SET NULL"))

    return Base.metadata


CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "fk": "f_%(table_name)s_%(column_0_name)s",
    "uq": "u_%(table_name)s_%(column_0_name)s",
}


@pytest.mark.parametrize("convention", [{}, CONVENTION], ids=["unnamed", "named by a convention"])
@pytest.mark.parametrize("as_batch", [False, True], ids=["", "as batch"])
def test_the_first_revision_makes_what_the_app_adds_after_our_tables(convention, as_batch, migrations, created, dump):
    metadata = with_extras(**convention)
    empty, expected = dump(), created(metadata)
    revision = migrations.autogenerate(metadata, render_as_batch=as_batch)
    assert revision.upgrade.startswith("op.proletarian_migrate(0, 2)\n")
    assert revision.downgrade.endswith("\nop.proletarian_migrate(2, 0)")
    assert ".add_column(" in revision.upgrade
    migrations.run(revision.upgrade, metadata)
    assert dump() == expected
    assert migrations.autogenerate(metadata).differences == []
    migrations.run(revision.downgrade, metadata)
    assert dump() == empty


def test_what_the_app_adds_later_is_diffed(migrations, created, dump: Callable[[], str]):
    metadata = with_extras(**CONVENTION)
    expected = created(metadata)
    migrations.run("op.proletarian_migrate(0, 1)")
    revision = migrations.autogenerate(metadata)
    assert revision.upgrade.startswith("op.proletarian_migrate(1, 2)\n")
    for change in (
        "op.add_column('proletarian_job', sa.Column('tenant_id'",
        "op.create_index(op.f('ix_proletarian_job_tenant_id')",
        "op.create_unique_constraint('heavy', 'proletarian_job'",
        "op.create_foreign_key(op.f('f_proletarian_job_tenant_id'), 'proletarian_job', 'a_tenant'",
        "op.add_column('proletarian_archived_job', sa.Column('tenant_id'",
    ):
        assert change in revision.upgrade
    assert "ix_proletarian_job_due" not in revision.upgrade + revision.downgrade
    migrations.run(revision.upgrade, metadata)
    for check in ("weight > 0", "weight < tenant_id", "weight <> 13"):  # which Alembic does not compare
        migrations.run(f"op.create_check_constraint(None, 'proletarian_job', '{check}')")
    assert dump() == expected
