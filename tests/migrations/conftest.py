"""What the tests of migrations share: a database's schema in words, and Alembic without its command or with it."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import main as command_line
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import URL, Connection, Engine, MetaData
from sqlalchemy.dialects import mysql, postgresql

import sa_proletarian
from sa_proletarian.embedded import EmbeddedPostgres, find_programs

CLONE = Path(sa_proletarian.__file__).parents[1]
PLUGINS = ["alembic.autogenerate.*", "sa_proletarian.migrations"]

Alembic = Callable[..., str]


@pytest.fixture
def dump(postgres: EmbeddedPostgres, database_url: URL) -> Callable[[], str]:
    """Return a function that writes down the schema of the database, without Alembic's version tables."""
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    pg_dump = find_programs(postgres.version) / "pg_dump"

    def written_down() -> str:
        command = [pg_dump, "--schema-only", "--exclude-table=*version", f"--dbname={url}"]
        sql = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return "\n".join(line for line in sql.splitlines() if line and not re.match(r"--|\\(un)?restrict ", line))

    return written_down


@pytest.fixture
def by_alembic_alone() -> Callable[[str], str]:
    """Return a function that gives what Alembic makes without our plugin where ``create_all`` makes a schema."""
    if sa.__version__.startswith("2.0."):  # which knows no storage parameters of tables
        return lambda schema: schema.replace(")\nWITH (fillfactor='40');", ");")
    return lambda schema: schema


@pytest.fixture
def created(engine: Engine, dump: Callable[[], str]) -> Callable[[MetaData], str]:
    """Return a function that writes down what ``create_all`` makes, then removes it."""

    def written_down(metadata: MetaData) -> str:
        metadata.create_all(engine)
        schema = dump()
        metadata.drop_all(engine)
        return schema

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

    def run(*commands: str, fails: bool = False) -> str:
        program = f"from alembic.config import main\nfor argv in {[*map(shlex.split, commands)]}: main(argv)"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CLONE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr if fails else done.stdout

    return run


@dataclass(frozen=True)
class Revision:
    """What autogenerate has written: the bodies of the two functions, and what ``alembic check`` would print."""

    upgrade: str
    downgrade: str
    differences: list[Any] = field(repr=False)


class Migrations:
    """Alembic on the database of a test, without files."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def autogenerate(self, metadata: Any, *, plugins: list[str] | None = PLUGINS, **options: Any) -> Revision:
        """Compare the database with ``metadata``; by default with our plugin."""
        options |= {} if plugins is None else {"autogenerate_plugins": plugins}
        with self.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"target_metadata": metadata, **options})
            script = produce_migrations(context, metadata)
            upgrade, downgrade = (_body(ops, context) for ops in (script.upgrade_ops, script.downgrade_ops))
            return Revision(upgrade, downgrade, script.upgrade_ops.as_diffs())

    def run(self, code: str, metadata: Any = None) -> None:
        """Run the body of an ``upgrade`` or ``downgrade``."""
        with self.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"target_metadata": metadata})
            with context.begin_transaction():
                execute(code, Operations(context))

    def run_on(self, connection: Connection, code: str) -> None:
        """Run it on a connection, in whose transaction nothing is committed."""
        execute(code, Operations(MigrationContext.configure(connection)))

    def run_sql(self, sql: str) -> None:
        """Run what ``--sql`` printed, as ``psql`` would, and again if autovacuum had a table just then."""
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._all_run(connection, [statement for statement in sql.split(";\n") if statement.strip()]):
                connection.exec_driver_sql("ROLLBACK")

    def _all_run(self, connection: Connection, statements: list[str]) -> bool:
        try:
            for statement in statements:
                connection.exec_driver_sql(statement)
        except sa.exc.OperationalError as error:
            if error.orig.sqlstate == "55P03" and statements[0].strip() == "BEGIN":
                return False
            raise
        return True


def _as_sql(code: str, metadata: Any = None, *, dialect: str = "postgresql") -> str:
    buffer = io.StringIO()
    options = {"as_sql": True, "output_buffer": buffer, "target_metadata": metadata}
    context = MigrationContext.configure(dialect_name=dialect, opts=options)
    with context.begin_transaction():
        execute(code, Operations(context))
    return buffer.getvalue()


def _body(ops: Any, context: MigrationContext) -> str:
    code = render_python_code(ops, migration_context=context)
    return textwrap.dedent("\n".join(line for line in code.splitlines() if line.strip() and "###" not in line))


def execute(code: str, op: Operations) -> None:
    """Execute the code of a revision."""
    exec(textwrap.dedent(code), {"op": op, "sa": sa, "postgresql": postgresql, "mysql": mysql, "timedelta": timedelta})


@pytest.fixture
def migrations(engine: Engine) -> Migrations:
    """Return Alembic on the database of this test."""
    return Migrations(engine)


@pytest.fixture
def as_sql() -> Callable[..., str]:
    """Return a function that gives what ``--sql`` prints for the body of an ``upgrade`` or ``downgrade``."""
    return _as_sql
