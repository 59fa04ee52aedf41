"""What handlers do to their session and connection on MariaDB and MySQL, and what comes of it there."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from datetime import timedelta

from sqlalchemy import create_engine, text

from sa_proletarian import Snooze

from .abuse import Case, Cases, ends_connections, fail, write

MARIADB = Cases()
case = MARIADB.case
ESCAPED = {"ends": "failure", "event": "transaction_escaped", "error": "TransactionEscaped"}
CALLED = set()


def make_tables(connection):
    for table in (
        "effect (what varchar(200) NOT NULL)",
        "pair (id int PRIMARY KEY, value int)",
        "of_its_own (id int)",
        "ballast (id int)",
    ):
        connection.execute(text(f"CREATE TABLE {table}"))
    connection.execute(text("INSERT INTO pair VALUES (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0)"))


def add(session, number):
    session.execute(text("UPDATE pair SET value = value + 1 WHERE id = :id"), {"id": number})


# what they need -------------------------------------------------------------------------------------------------------


@contextmanager
def rival(session):
    """Give a connection that is none of the worker's, whose transaction is undone in the end."""
    engine = create_engine(session.get_bind().engine.url.set(drivername="mysql+pymysql"))
    try:
        with engine.connect() as connection:
            connection.execute(text("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"))
            connection.rollback()
            yield connection
    finally:
        engine.dispose()


def deadlock(session, mine, theirs):
    """Lose a deadlock, against one who has written more."""
    with rival(session) as other:
        # not into a table that some case locks: its wait for the rival is one that no server sees
        other.execute(text(f"INSERT INTO ballast VALUES {', '.join(['(1)'] * 100)}"))
        add(other, theirs)
        add(session, mine)

        def want():
            with suppress(Exception):
                add(other, mine)

        thread = threading.Thread(target=want)
        thread.start()
        try:
            add(session, theirs)
        finally:
            thread.join()


def is_first(job):
    """Whether the handler was not called before."""
    if job.job_id in CALLED:
        return False
    CALLED.add(job.job_id)
    return True


# with statements that fail --------------------------------------------------------------------------------------------


@case(effects=2)
def swallows_an_error(session, job):
    """Only that statement is undone."""
    write(session, job)
    with suppress(Exception):
        fail(session)
    write(session, job)


@case(ends="failure", event="handle_job_exception", error="1048")
def raises_an_sql_error(session, job):
    write(session, job)
    session.commit()
    fail(session)


@case(effects=1)
def swallows_that_a_lock_is_not_had(session, job):
    session.execute(text("SET SESSION innodb_lock_wait_timeout = 1"))
    write(session, job)
    with rival(session) as other:
        add(other, 3)
        with suppress(Exception):
            add(session, 3)


@case(ends="failure", event="handle_job_exception", error="1205")
def raises_that_a_lock_is_not_had(session, job):
    write(session, job)
    session.execute(text("SET SESSION innodb_lock_wait_timeout = 1"))
    with rival(session) as other:
        add(other, 4)
        add(session, 4)


@case(effects=1, event="conflict_retried")
def raises_a_deadlock(session, job):
    write(session, job)
    if is_first(job):
        deadlock(session, 5, 6)


@case(effects=2)
def swallows_a_deadlock(session, job):
    """All that was written before is undone; the job runs again."""
    write(session, job)
    if is_first(job):
        with suppress(Exception):
            deadlock(session, 7, 8)
        with suppress(Exception):
            session.rollback()
    write(session, job)


# with statements that commit ------------------------------------------------------------------------------------------


def committing(name, *statements, effects=1, **expected):
    """Add a case: what was written before is there, what is written after or by the job's end is not."""

    def act(session, job):
        write(session, job)
        for statement in statements:
            session.execute(text(statement))

    MARIADB[name] = Case(act, effects=effects, **{**ESCAPED, **expected})


committing("makes_a_table", "CREATE TABLE another (id int)")
committing("makes_a_table_that_is_there", "CREATE TABLE IF NOT EXISTS effect (id int)")
committing("changes_a_table", "ALTER TABLE of_its_own ADD COLUMN what text")
committing("empties_a_table", "TRUNCATE TABLE of_its_own")
committing("drops_what_is_not_there", "DROP TABLE IF EXISTS nowhere")
committing("analyzes_a_table", "ANALYZE TABLE of_its_own")
committing("makes_a_temporary_table", "CREATE TEMPORARY TABLE left_behind (id int)", ends="success", event=None, error="")
committing(
    "drops_a_temporary_table",
    "CREATE TEMPORARY TABLE dropped (id int)",
    "DROP TEMPORARY TABLE dropped",
    ends="success",
    event=None,
    error="",
)
committing("begins_another", "BEGIN")
committing("starts_another", "START TRANSACTION")
committing("starts_another_and_ends_it", "START TRANSACTION", "ROLLBACK")
committing("commits_and_chains", "COMMIT AND CHAIN")
committing("locks_tables", "LOCK TABLES effect WRITE")
committing("locks_the_tables_of_the_queue", "LOCK TABLES proletarian_job READ")
committing("commits_by_itself_from_now_on", "SET autocommit = 1")
committing("begins_an_xa_transaction", "COMMIT", "XA START 'left behind'", "INSERT INTO of_its_own (id) VALUES (1)")
committing("begins_an_xa_transaction_inside", "XA START 'inside'", effects=0, event="handle_job_exception", error="XAER")
committing(
    "reads_only_in_another",
    "START TRANSACTION READ ONLY",
    "INSERT INTO effect VALUES ('never')",
    event="handle_job_exception",
    error="1792",
)


@case(**ESCAPED, effects=3)
def swallows_that_its_savepoint_is_gone(session, job):
    """From then on each statement commits by itself."""
    write(session, job)
    session.execute(text("SET autocommit = 1"))
    write(session, job)
    with suppress(Exception):
        session.commit()
    with suppress(Exception):
        session.rollback()
    write(session, job)


@case(ends="failure", effects=1, event="handle_job_exception", error="on purpose")
def locks_tables_and_fails(session, job):
    write(session, job)
    session.execute(text("LOCK TABLES effect WRITE"))
    raise ValueError("on purpose")


@case(**ESCAPED, effects=1)
def locks_tables_and_snoozes(session, job):
    """What it asks for is not done: nobody knows what else is."""
    write(session, job)
    session.execute(text("LOCK TABLES effect WRITE"))
    raise Snooze(timedelta(days=1))


# with what is left to the next job on the connection ------------------------------------------------------------------


def leaving(name, *statements):
    def act(session, job):
        write(session, job)
        for statement in statements:
            session.execute(text(statement))

    MARIADB[name] = Case(act, effects=1)


leaving("leaves_it_read_only", "SET SESSION TRANSACTION READ ONLY")
leaving("leaves_a_lock_of_its_own", "SELECT GET_LOCK('left behind', 0)")
leaving("takes_that_lock_too", "SELECT GET_LOCK('another', 5)")
leaving("gives_back_all_locks", "SELECT RELEASE_ALL_LOCKS()")
leaving("leaves_another_mode", "SET SESSION sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'")
leaving("leaves_no_mode", "SET SESSION sql_mode = ''")
leaving("leaves_another_time_zone", "SET SESSION time_zone = '+13:00'")
leaving("leaves_another_isolation", "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
leaving("leaves_a_long_wait_for_locks", "SET SESSION innodb_lock_wait_timeout = 1000")
leaving("leaves_no_checks", "SET SESSION foreign_key_checks = 0, unique_checks = 0")
leaving("leaves_the_network_little_time", "SET SESSION net_read_timeout = 1, SESSION net_write_timeout = 1")
leaving("ends_idle_sessions", "SET SESSION wait_timeout = 1")
leaving("leaves_another_character_set", "SET NAMES latin1")


@case(ends="failure", event="handle_job_exception", error="1146")
def leaves_another_database(session, job):
    """The job cannot be settled where it has done its work; the next one runs on another connection."""
    write(session, job)
    session.execute(text("USE mysql"))


@case(effects=1)
def uses_another_database_for_a_while(session, job):
    here = session.scalar(text("SELECT DATABASE()"))
    session.execute(text("USE information_schema"))
    session.execute(text(f"USE {here}"))
    write(session, job)


# with the connection --------------------------------------------------------------------------------------------------


ends_connections(MARIADB, "KILL CONNECTION_ID()")


@case(effects=1, event="connection_died")
def has_its_connection_ended_by_another(session, job):
    write(session, job)
    number = session.scalar(text("SELECT CONNECTION_ID()"))
    with rival(session) as other:
        other.execute(text(f"KILL {number}"))


@case(ends="failure", event="handle_job_exception")
def has_its_query_ended(session, job):
    write(session, job)
    session.execute(text("KILL QUERY CONNECTION_ID()"))
