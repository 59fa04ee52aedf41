"""What handlers do to their session and connection on PostgreSQL, and what comes of it there."""

from __future__ import annotations

from sqlalchemy import text

from .abuse import Cases, ends_connections, write

POSTGRESQL = Cases()


@POSTGRESQL.case(ends="failure", event="handle_job_exception", error="25P02")
def swallows_an_error(session, job):
    write(session, job)
    try:
        session.execute(text("SELECT 1/0"))
    except Exception:
        pass


@POSTGRESQL.case(ends="failure", event="handle_job_exception", error="22012")
def raises_an_sql_error(session, job):
    write(session, job)
    session.commit()
    session.execute(text("SELECT 1/0"))


@POSTGRESQL.case(ends="failure", event="handle_job_exception", error="23505")
def breaks_a_constraint_when_it_commits(session, job):
    write(session, job)
    session.execute(text("INSERT INTO deferred VALUES (1), (1)"))


@POSTGRESQL.case(ends="failure", error="25006")
def writes_in_a_read_only_transaction(session, job):
    session.execute(text("SET TRANSACTION READ ONLY"))
    write(session, job)


@POSTGRESQL.case(effects=1)
def leaves_settings_behind(session, job):
    """The next job on this connection cannot use it; it runs again on another."""
    write(session, job)
    session.execute(text("SET default_transaction_read_only = on"))
    session.execute(text("SET search_path = nowhere"))


@POSTGRESQL.case(effects=1)
def leaves_locks_and_tables_behind(session, job):
    session.execute(text("CREATE TEMP TABLE left_behind (what text)"))
    session.execute(text("SELECT pg_advisory_lock(1)"))
    session.execute(text("LISTEN something"))
    write(session, job)


@POSTGRESQL.case(effects=1)
def takes_the_same_lock_and_makes_the_same_table(session, job):
    session.execute(text("SET LOCAL lock_timeout = '5s'"))
    session.execute(text("SELECT pg_advisory_lock(2)"))
    session.execute(text("CREATE TEMP TABLE left_behind_too (what text)"))
    write(session, job)


ends_connections(POSTGRESQL, "SELECT pg_terminate_backend(pg_backend_pid())")
