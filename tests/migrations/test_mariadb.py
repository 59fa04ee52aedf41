"""The migration on a real MariaDB: the same tables as ``create_all`` makes, found and made by autogenerate."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Engine, MetaData, String, create_mock_engine, inspect, text
from sqlalchemy.orm import DeclarativeBase

from sa_proletarian import ArchivedJobMixin, JobMixin, metadata

PLUGINS = ["alembic.autogenerate.*", "sa_proletarian.migrations"]
TABLES = ("proletarian_job", "proletarian_archived_job", "proletarian_worker")


def described(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {name: connection.execute(text(f"SHOW CREATE TABLE {name}")).one()[1] for name in TABLES}


def in_any_order(definition: str) -> list[str]:
    """Give the lines, without the CHECKs that only MySQL has, of which plain Alembic knows nothing."""
    return sorted(line.strip(" ,") for line in definition.splitlines() if "regexp" not in line)


def revision(engine: Engine, target: MetaData) -> str:
    """Give the body of what autogenerate proposes."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": target, "autogenerate_plugins": PLUGINS})
        return render_python_code(produce_migrations(context, target).upgrade_ops)


def run(engine: Engine, what: Any) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction(), Operations.context(context) as op:
            what(op)
        connection.commit()


def test_makes_the_tables_that_create_all_makes(mariadb_engine):
    metadata.create_all(mariadb_engine)
    created = described(mariadb_engine)
    metadata.drop_all(mariadb_engine)
    run(mariadb_engine, lambda op: op.proletarian_migrate(0, 2))
    assert described(mariadb_engine) == created


def test_autogenerate_proposes_the_operation_and_then_nothing(mariadb_engine):
    assert "op.proletarian_migrate(0, 2)" in revision(mariadb_engine, metadata)
    run(mariadb_engine, lambda op: op.proletarian_migrate(0, 2))
    assert "pass" in revision(mariadb_engine, metadata)


def test_goes_from_version_to_version_and_back(mariadb_engine):
    run(mariadb_engine, lambda op: op.proletarian_migrate(0, 1))
    assert "op.proletarian_migrate(1, 2)" in revision(mariadb_engine, metadata)
    run(mariadb_engine, lambda op: op.proletarian_migrate(1, 2))
    run(mariadb_engine, lambda op: op.proletarian_migrate(2, 0))
    assert not set(TABLES) & set(inspect(mariadb_engine).get_table_names())


def test_without_the_plugin_a_revision_is_plain_alembic(mariadb_engine):
    class Base(DeclarativeBase):
        pass

    class Job(JobMixin, Base):
        note = Column(String(20))

    class ArchivedJob(ArchivedJobMixin, Base):
        pass

    with mariadb_engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": Base.metadata})
        imports: set[str] = set()
        code = render_python_code(produce_migrations(context, Base.metadata).upgrade_ops, imports=imports)
    assert "mysql.DATETIME(fsp=6)" in code
    assert "sa_proletarian." not in code
    body = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    names: dict[str, Any] = {}
    # Alembic writes JSONB's argument as plain Text() where the dialect is not PostgreSQL's
    exec("import sqlalchemy as sa\nfrom sqlalchemy import Text\nfrom sqlalchemy.dialects import mysql, postgresql", names)
    run(mariadb_engine, lambda op: exec(body, {**names, "op": op}))
    made = described(mariadb_engine)
    with mariadb_engine.begin() as connection:
        Base.metadata.drop_all(connection)
    Base.metadata.create_all(mariadb_engine)
    assert {name: in_any_order(made[name]) for name in made} == {
        name: in_any_order(definition) for name, definition in described(mariadb_engine).items()
    }


@pytest.mark.parametrize(("url", "expected"), [("mysql+pymysql://", 2), ("postgresql+psycopg://", 0)])
def test_mysql_which_keeps_uuids_as_text_gets_checks_of_them(url, expected):
    created, migrated = StringIO(), StringIO()
    mock: Any = create_mock_engine(url, lambda ddl, *_: created.write(str(ddl.compile(dialect=mock.dialect))))
    metadata.create_all(mock, checkfirst=False)
    context = MigrationContext.configure(dialect=mock.dialect, opts={"as_sql": True, "output_buffer": migrated})
    with context.begin_transaction(), Operations.context(context) as op:
        op.proletarian_migrate(0, 2)
    check = re.compile(r"ck_proletarian_job_(?:job|claim)_id`? CHECK \(\w+ REGEXP '\^\[0-9a-fA-F\]\{32\}\$'\)")
    assert [len(check.findall(sql.getvalue())) for sql in (created, migrated)] == [expected, expected]
