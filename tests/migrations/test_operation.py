"""``op.proletarian_migrate`` by hand: what it refuses at the call, and what it refuses to begin."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from alembic.util import CommandError
from sqlalchemy import inspect, text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ("-1, 2", ValueError, "from_version must be between 0 (no tables) and 2, the newest version"),
        ("0, 3", ValueError, "to_version must be between 0 (no tables) and 2, the newest version"),
        ("1, 1", ValueError, "from_version and to_version are both 1"),
        ("False, 2", TypeError, "from_version must be an int, got False"),
        ("0, True", TypeError, "to_version must be an int, got True"),
        ("0, '2'", TypeError, "to_version must be an int, got '2'"),
        ("0, 2, prefix=None", TypeError, "prefix must be a text, got None"),
        ("0, 2, schema=7", TypeError, "schema must be a text, got 7"),
        ("0, 2, job_table=''", ValueError, "job_table must not be empty"),
        ("0, 2, prefix='mail_', job_table='mail'", ValueError, "give prefix, or job_table and archived_table, not both"),
        ("0, 2, lock_timeout=200", TypeError, "lock_timeout must be a timedelta, got 200"),
        ("0, 2, lock_timeout=timedelta(0)", ValueError, "lock_timeout must be between a millisecond and a day"),
        ("0, 2, retries=True", TypeError, "retries must be an int, got True"),
        ("0, 2, retries=-1", ValueError, "retries must not be negative, got -1"),
        ("0, 2, concurrently=1", TypeError, "concurrently must be True or False, got 1"),
        ("0, 2, job_columns=['job_id']", TypeError, "job_columns must be columns, got 'job_id'"),
        ("0, 2, job_columns=[sa.Column('tenant', sa.Text)]", ValueError, "got tenant: add a column of your own"),
        ("0, 2, archived_columns=[sa.Column('claim_id', sa.Text)]", ValueError, "columns of the library (job_id, queue"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused_at_the_call(arguments, error, message, as_sql):
    with pytest.raises(error) as refused:
        as_sql(f"op.proletarian_migrate({arguments})")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("before", "code", "message"),
    [
        ("", "1, 2", "from version 1 cannot begin: there is no table proletarian_job"),
        ("", "2, 0, schema='queues'", "there is no table proletarian_job"),
        ("op.proletarian_migrate(0, 1)", "0, 2", "0 cannot begin: proletarian_job is there already, at version 1"),
        ("op.proletarian_migrate(0, 2)", "1, 2", "1 cannot begin: the comment of proletarian_job states version 2"),
        ("op.proletarian_migrate(0, 1)", "2, 0", "2 cannot begin: the comment of proletarian_job states version 1"),
        ("op.proletarian_migrate(0, 1)\nop.create_table('proletarian_worker')", "1, 2", "proletarian_worker states no"),
        (
            "op.proletarian_migrate(0, 1)\nop.drop_table_comment('proletarian_archived_job')",
            "1, 2",
            "COMMENT ON TABLE proletarian_archived_job IS 'sa_proletarian schema v1'",
        ),
    ],
)  # fmt: skip
def test_a_migration_begins_only_where_the_comments_say(before, code, message, migrations, engine, dump):
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA queues"))
    migrations.run(before)
    found = dump()
    with pytest.raises(CommandError) as refused:
        migrations.run(f"op.proletarian_migrate({code})")
    assert message in str(refused.value)
    assert dump() == found


def test_the_tables_of_a_tenant_are_those_of_its_schema(migrations, engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
    migrations.run("op.proletarian_migrate(0, 1)")
    with engine.connect().execution_options(schema_translate_map={None: "tenant"}) as connection:
        for start, end in ((0, 1), (1, 2)):
            migrations.run_on(connection, f"op.proletarian_migrate({start}, {end})")
        assert len(inspect(connection).get_table_names(schema="tenant")) == 3
        migrations.run_on(connection, "op.proletarian_migrate(2, 0)")
        assert inspect(connection).get_table_names(schema="tenant") == []
        assert len(inspect(connection).get_table_names()) == 2


def test_jobs_stay_when_the_tables_move_on_and_back(migrations, engine):
    migrations.run("op.proletarian_migrate(0, 1)")
    insert = sa.text(
        "INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes) "
        "VALUES (gen_random_uuid(), 'default', 'x', '7', 0, now(), now(), 0)"
    )
    with engine.begin() as connection:
        connection.execute(insert)
    migrations.run("op.proletarian_migrate(1, 2)")
    migrations.run("op.proletarian_migrate(2, 1)")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM proletarian_job")) == 1


def test_a_column_of_the_app_can_be_given_again_and_again(migrations):
    migrations.run(
        "columns = [sa.Column('payload', sa.Text(), nullable=False)]\n"
        "op.proletarian_migrate(0, 2, job_columns=columns, archived_columns=columns)\n"
        "op.proletarian_migrate(0, 2, prefix='mail_', job_columns=columns)"
    )


@pytest.mark.parametrize("dialect", ["mysql", "mariadb"])
def test_mysql_gets_plain_statements(dialect, as_sql):
    sql = as_sql("op.proletarian_migrate(0, 2, concurrently=True)\nop.proletarian_migrate(2, 0)", dialect=dialect)
    assert "lock_timeout" not in sql
    assert "LOCK TABLE" not in sql
    assert "CONCURRENTLY" not in sql
    assert sql.count("CREATE TABLE") == sql.count("DROP TABLE") == 3
    assert sql.count("'sa_proletarian schema v2'") == 3
    assert "DATETIME(6)" in sql


def test_the_operation_can_be_written_and_reversed_by_a_program(migrations):
    from alembic.autogenerate import render_python_code
    from alembic.migration import MigrationContext
    from alembic.operations import ops

    from sa_proletarian.migrations import autogenerate
    from sa_proletarian.migrations.instance import Instance
    from sa_proletarian.migrations.operation import ProletarianMigrateOp
    from sa_proletarian.migrations.patience import Patience

    assert autogenerate.rendering
    tables = Instance("mail_job", "mail_archived_job", job_columns=(sa.Column("payload", sa.Text()),))
    op = ProletarianMigrateOp(0, 2, tables, concurrently=True, patience=Patience(timedelta(seconds=1), 5))
    context = MigrationContext.configure(dialect_name="postgresql")
    code = render_python_code(ops.UpgradeOps([op]), migration_context=context)
    assert (
        "op.proletarian_migrate(0, 2, prefix='mail_', job_columns=[sa.Column('payload', sa.Text(), nullable=True)], "
        "concurrently=True, lock_timeout=datetime.timedelta(seconds=1), retries=5)"
    ) in code
    back = op.reverse()
    assert (back.from_version, back.to_version, back.tables.job_columns) == (2, 0, ())
    assert ProletarianMigrateOp(2, 0, tables).reverse().tables.job_columns == tables.job_columns


@pytest.mark.parametrize("prefix", ["a%sb_", "a%(b)s_"])
def test_a_table_with_a_percent_sign_in_its_name_gets_room_and_loses_it_again(prefix, migrations, rows):
    migrations.run(f"op.proletarian_migrate(0, 2, prefix={prefix!r})")
    [(options,)] = rows("SELECT reloptions FROM pg_class WHERE relname = :name", name=f"{prefix}job")
    assert options == ["fillfactor=40"]
    migrations.run(f"op.proletarian_migrate(2, 1, prefix={prefix!r})")
    assert rows("SELECT reloptions FROM pg_class WHERE relname = :name", name=f"{prefix}job") == [(None,)]
    migrations.run(f"op.proletarian_migrate(1, 0, prefix={prefix!r})")
