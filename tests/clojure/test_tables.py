"""The models and Proletarian's tables: the same columns, types, keys and index, and other names where an app has them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, inspect
from sqlalchemy.orm import DeclarativeBase, Session

from sa_proletarian import Outcome
from sa_proletarian.clojure import ArchivedJob, ClojureArchivedJobMixin, ClojureJobMixin, ClojureProletarian, Job
from sa_proletarian.errors import ConfigurationError


def test_the_models_are_the_tables_of_the_script(tables):
    options = {"compare_type": True, "include_schemas": True}
    with tables.connect() as connection:
        connection.exec_driver_sql("DROP TABLE effect")
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Job.metadata) == []


def test_migrations_can_pass_the_schema_over(tables):
    def include_object(thing, name, kind, reflected, compare_to):
        return not (kind == "table" and thing.schema == "proletarian")

    options = {"include_schemas": True, "include_object": include_object}
    for metadata in (MetaData(), Job.metadata):  # neither dropped nor made
        with tables.connect() as connection:
            connection.exec_driver_sql("DROP TABLE effect")
            connection.exec_driver_sql("DROP TABLE proletarian.job" if metadata is Job.metadata else "SELECT 1")
            assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
            connection.rollback()


@pytest.mark.parametrize("model", [Job, ArchivedJob])
def test_no_column_is_added_and_no_check(tables, model):
    there = {
        column["name"]: column["nullable"] for column in inspect(tables).get_columns(model.__tablename__, "proletarian")
    }
    assert there == {column.name: column.nullable for column in model.__table__.c}
    assert {type(constraint).__name__ for constraint in model.__table__.constraints} == {"PrimaryKeyConstraint"}
    assert model.__table__.comment is None


class Base(DeclarativeBase):
    pass


class OtherJob(ClojureJobMixin, Base):
    __tablename__ = "jobs"
    __table_args__ = {"schema": "queue"}  # noqa: RUF012


class OtherArchivedJob(ClojureArchivedJobMixin, Base):
    __tablename__ = "old_jobs"
    __table_args__ = {"schema": "queue"}  # noqa: RUF012


def test_other_names_are_said_as_in_any_model(tables, rows):
    rows("ALTER SCHEMA proletarian RENAME TO queue")
    rows("ALTER TABLE queue.job RENAME TO jobs")
    rows("ALTER TABLE queue.archived_job RENAME TO old_jobs")
    jobs = ClojureProletarian(OtherJob, OtherArchivedJob)
    jobs.handler("echo")(lambda session, job: None)
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "echo")
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert rows("SELECT status FROM queue.old_jobs") == [(":success",)]
    assert [index.name for index in OtherJob.__table__.indexes] == ["jobs_queue_process_at"]


@pytest.mark.parametrize("models", [(object, ArchivedJob), (ClojureJobMixin, ArchivedJob), (Job, Job), (ArchivedJob, Job)])
def test_other_models_are_refused(models):
    with pytest.raises(TypeError):
        ClojureProletarian(*models)


def test_a_clock_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="clock must be a function"):
        ClojureProletarian(clock=5)


def test_an_engine_on_which_a_lock_would_not_last_is_refused(tables):
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        ClojureProletarian().process_next(tables.execution_options(isolation_level="AUTOCOMMIT"))


def test_importing_the_library_loads_nothing_of_this():
    program = "import sys, sa_proletarian; print([name for name in sys.modules if 'clojure' in name])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
