"""The revisions in the package, and those that an app's own Alembic writes: both give what ``create_all`` gives."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from alembic.config import main as command_line
from sqlalchemy import URL, Engine, MetaData, inspect, text

import sa_proletarian
from sa_proletarian.embedded import EmbeddedPostgres, find_programs

CLONE = Path(sa_proletarian.__file__).parents[1]

PLAIN = """
class Base(DeclarativeBase):
    pass
"""
NAMING_CONVENTION = """
class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    })
"""
SCHEMA = """
class Base(DeclarativeBase):
    metadata = MetaData(schema="queues")
"""
MODELS = """
from sa_proletarian import ArchivedJobMixin, JobMixin
from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
{base}
class Tenant(Base):
    __tablename__ = "tenant"
    id: Mapped[int] = mapped_column(primary_key=True)

class Job(JobMixin, Base):
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey(Tenant.id), index=True)

class ArchivedJob(ArchivedJobMixin, Base):
    tenant_id: Mapped[int | None]

class Mail(JobMixin, Base):
    __tablename__ = "mail"

class ArchivedMail(ArchivedJobMixin, Base):
    __tablename__ = "archived_mail"
"""

Alembic = Callable[..., str]
Dump = Callable[[], str]


@pytest.fixture
def dump(postgres: EmbeddedPostgres, database_url: URL) -> Dump:
    """Return a function that writes down the schema of the database, without Alembic's version tables."""
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    pg_dump = find_programs(postgres.version) / "pg_dump"

    def written_down() -> str:
        command = [pg_dump, "--schema-only", "--exclude-table=*version", f"--dbname={url}"]
        sql = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return "\n".join(line for line in sql.splitlines() if line and not re.match(r"--|\\(un)?restrict ", line))

    return written_down


@pytest.fixture
def in_clone(database_url: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Alembic:
    """Return a function that does what the command ``alembic`` does in a clone, and gives what it prints."""
    monkeypatch.chdir(CLONE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("SA_PROLETARIAN_DATABASE_URL", database_url.render_as_string(hide_password=False))

    def run(command: str) -> str:
        command_line(shlex.split(command))
        return capsys.readouterr().out

    return run


@pytest.fixture
def in_app(tmp_path: Path) -> Alembic:
    """Return a function that runs Alembic's commands in the app's folder, where any warning is an error."""

    def run(*commands: str) -> str:
        program = f"from alembic.config import main\nfor argv in {[*map(shlex.split, commands)]}: main(argv)"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CLONE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def created(metadata: MetaData, engine: Engine, dump: Dump) -> str:
    """Write down what ``create_all`` makes, then remove it."""
    metadata.create_all(engine)
    schema = dump()
    metadata.drop_all(engine)
    return schema


# The library's own revisions, from a clone


def test_the_revisions_give_the_tables_that_the_models_describe(engine: Engine, in_clone: Alembic, dump: Dump) -> None:
    expected = created(sa_proletarian.metadata, engine, dump)
    in_clone("upgrade head")
    assert dump() == expected
    for what in ("ix_proletarian_job_due", "ck_proletarian_job_crashes", "COMMENT ON TABLE", "PRIMARY KEY"):
        assert what in expected


def test_check_finds_nothing_to_change_after_the_upgrade(in_clone: Alembic) -> None:
    in_clone("upgrade head")
    in_clone("check")  # exits with an error if there is something


def test_check_reports_tables_of_another_schema_version(engine: Engine, in_clone: Alembic) -> None:
    in_clone("upgrade head")
    with engine.begin() as connection:
        connection.execute(text("COMMENT ON TABLE proletarian_job IS 'sa_proletarian schema v0'"))
    with pytest.raises(SystemExit):
        in_clone("check")


def test_the_downgrade_takes_everything_away_and_the_upgrade_brings_it_back(
    engine: Engine, in_clone: Alembic, dump: Dump
) -> None:
    in_clone("upgrade head")
    upgraded = dump()
    in_clone("downgrade base")
    assert inspect(engine).get_table_names() == ["proletarian_version"]
    in_clone("upgrade head")
    assert dump() == upgraded


def test_offline_sql_needs_no_database_and_gives_the_same_tables(
    engine: Engine, in_clone: Alembic, dump: Dump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SA_PROLETARIAN_DATABASE_URL", "postgresql+psycopg://192.0.2.1/")
    upgrade = in_clone("upgrade head --sql")
    downgrade = in_clone("downgrade head:base --sql")
    expected = created(sa_proletarian.metadata, engine, dump)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(upgrade)
        assert dump() == expected
        connection.exec_driver_sql(downgrade)
        assert not {"proletarian_job", "proletarian_archived_job"} & {*inspect(connection).get_table_names()}


def test_the_version_table_does_not_meet_the_one_of_an_app_in_the_same_database(engine: Engine, in_clone: Alembic) -> None:
    in_clone("upgrade head")
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT version_num FROM proletarian_version")).all() == ["proletarian_v2"]
    assert not inspect(engine).has_table("alembic_version")


def test_the_revisions_are_in_the_package() -> None:
    versions = resources.files("sa_proletarian") / "migrations" / "versions"
    assert "proletarian_v1_job_and_archive.py" in {entry.name for entry in versions.iterdir()}


# An app's own revisions


def app(folder: Path, database_url: URL, base: str) -> MetaData:
    """Make an app with ``alembic init``, and edit what its template asks to be edited; return its metadata."""
    (folder / "models.py").write_text(MODELS.format(base=base))
    command_line(["--config", str(folder / "alembic.ini"), "init", str(folder / "alembic")])
    url = database_url.render_as_string(hide_password=False).replace("%", "%%")
    edit(folder / "alembic.ini", "sqlalchemy.url = .*", f"sqlalchemy.url = {url}")
    edit(folder / "alembic/env.py", "= None", "= __import__('models').Base.metadata")
    metadata: MetaData = load(folder / "models.py").Base.metadata
    if metadata.schema is not None:
        edit(folder / "alembic/env.py", "target_metadata=target_metadata", r"\g<0>, include_schemas=True")
    return metadata


def edit(path: Path, pattern: str, replacement: str) -> None:
    edited, times = re.subn(pattern, replacement, path.read_text())
    assert times, f"nothing to edit in {path}"
    path.write_text(edited)


def load(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("base", [PLAIN, NAMING_CONVENTION, SCHEMA], ids=["plain", "naming convention", "schema"])
def test_autogenerate_in_an_app_needs_no_edit(
    base: str, tmp_path: Path, engine: Engine, database_url: URL, in_app: Alembic, dump: Dump
) -> None:
    metadata = app(tmp_path, database_url, base)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA queues"))
    expected = created(metadata, engine, dump)

    said = in_app("revision --autogenerate -m jobs", "upgrade head", "check")

    assert "No new upgrade operations detected" in said
    assert dump() == expected
    [revision] = (tmp_path / "alembic/versions").glob("*.py")
    assert not re.search(r"import sa_proletarian|\bsa_proletarian\.", revision.read_text())
    in_app("downgrade base")
    assert inspect(engine).get_table_names(metadata.schema) == (["alembic_version"] if metadata.schema is None else [])
