"""Migrations beside a running job: nobody waits long behind them, and who gives up says what was in the way."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.util import CommandError
from sqlalchemy import inspect, text

from sa_proletarian import Proletarian

jobs = Proletarian()


class Tries(logging.Handler):
    """Hears of every try that got no lock, and lets a test wait for one."""

    def __init__(self):
        super().__init__()
        self.messages = []
        self._changed = threading.Condition()

    def emit(self, record):
        with self._changed:
            self.messages.append(record.getMessage())
            self._changed.notify_all()

    def wait_for(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, 30), self.messages


@pytest.fixture
def tries():
    handler = Tries()
    log = logging.getLogger("sa_proletarian.migrations.patience")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.fixture
def holder(engine, migrations):
    """Return a connection whose open transaction holds a job of version 1, as a handler's does."""
    migrations.run("op.proletarian_migrate(0, 1)")
    with engine.begin() as connection:
        jobs.enqueue(connection, "slow")
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL application_name = 'a slow handler'"))
        assert connection.execute(text("SELECT FROM proletarian_job FOR UPDATE")).rowcount == 1
        yield connection


def test_version_2_is_made_while_a_job_runs(holder, migrations, tries):
    migrations.run("op.proletarian_migrate(1, 2)")
    migrations.run("op.proletarian_migrate(2, 1)")
    assert tries.messages == []


def test_a_migration_waits_for_a_running_job_but_lets_enqueues_pass(holder, engine, migrations, tries):
    with ThreadPoolExecutor() as pool, engine.connect() as app:
        migration = pool.submit(migrations.run, "op.proletarian_migrate(1, 0)")
        waits = []  # of many enqueues, some of which meet a migration that waits for its lock
        while len(tries.messages) < 3 and not migration.done():
            began = time.monotonic()
            with app.begin():
                app.execute(text("SET LOCAL lock_timeout = '5s'"))
                jobs.enqueue(app, "quick")
            waits.append(time.monotonic() - began)
        assert not migration.done()
        holder.rollback()
        migration.result(timeout=30)
    assert 0.05 < max(waits) < 2  # 0.2 s of lock_timeout, and what a busy machine adds
    assert not inspect(engine).has_table("proletarian_job")
    assert "proletarian_job, proletarian_archived_job within 200ms, try 1 of 101; pid" in tries.messages[0]


def test_who_gives_up_names_the_holder_and_has_changed_nothing(holder, engine, migrations, tries, dump):
    before = dump()
    pid = holder.scalar(text("SELECT pg_backend_pid()"))
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        with pytest.raises(CommandError) as refused:
            migrations.run_on(connection, "op.proletarian_migrate(1, 0, retries=2, lock_timeout=timedelta(milliseconds=20))")
        assert connection.scalar(text("SHOW lock_timeout")) == "7s"
        connection.execute(text("SELECT 1 FROM proletarian_archived_job"))
    said = str(refused.value)
    assert "not within 20ms in any of 3 tries" in said
    assert "held by a running job, or by another open transaction" in said
    assert f"; pid {pid} (a slow handler, idle in transaction, since " in said
    assert "Nothing was changed. Stop the workers, or wait for the job, or end that transaction" in said
    assert f"(SELECT pg_terminate_backend({pid}))" in said
    assert len(tries.messages) == 2
    assert dump() == before


def test_one_lock_at_most_is_waited_for_in_a_try(holder, engine, migrations):
    """A reader of the archive must not add its wait to that of an enqueue behind the locked job table."""
    holder.rollback()
    with engine.connect() as reader, engine.connect() as connection, connection.begin():
        reader.execute(text("SELECT FROM proletarian_archived_job"))
        began = time.monotonic()
        with pytest.raises(CommandError, match="could not be locked"):
            migrations.run_on(connection, "op.proletarian_migrate(1, 0, retries=0, lock_timeout=timedelta(seconds=20))")
        assert time.monotonic() - began < 10


def test_the_lock_timeout_that_was_is_there_again_after_the_migration(engine, migrations):
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        migrations.run_on(connection, "op.proletarian_migrate(0, 2)")
        assert connection.scalar(text("SHOW lock_timeout")) == "7s"
        assert connection.scalar(text("SELECT count(*) FROM proletarian_job")) == 0


def test_as_sql_the_lock_timeout_is_set_for_our_statements_only(as_sql):
    sql = as_sql("op.proletarian_migrate(0, 2, lock_timeout=timedelta(seconds=1.5))\nop.execute('SELECT 1')")
    before, _, after = sql.partition("SET LOCAL lock_timeout = '1500ms';\n")
    ours, _, theirs = after.partition("SET LOCAL lock_timeout TO DEFAULT;\n")
    assert "CREATE" not in before
    assert ours.count("CREATE TABLE") == 3
    assert theirs.split() == ["SELECT", "1;", "COMMIT;"]
    down = as_sql("op.proletarian_migrate(2, 0, schema='queues')")
    assert "LOCK TABLE queues.proletarian_job IN ACCESS EXCLUSIVE MODE;" in down
    assert "LOCK TABLE queues.proletarian_worker IN ACCESS EXCLUSIVE MODE NOWAIT;" in down


def test_without_a_transaction_nothing_is_done(engine, migrations):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(CommandError, match="needs a transaction, but this connection is in AUTOCOMMIT"):
            migrations.run_on(connection, "op.proletarian_migrate(0, 2)")
        assert inspect(connection).get_table_names() == []


def test_other_errors_pass_through(engine, migrations):
    migrations.run("op.proletarian_migrate(0, 2)")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE log (job_id uuid REFERENCES proletarian_job)"))
    with pytest.raises(Exception, match="other objects depend on it"):
        migrations.run("op.proletarian_migrate(2, 0)")
    assert inspect(engine).has_table("proletarian_worker")
