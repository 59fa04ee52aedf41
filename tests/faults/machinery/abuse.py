"""What handlers do on any database, to their session, connection, process and exceptions, and what comes of it.

What has another form, or another end, on one of them stands in ``abuse_postgresql`` and ``abuse_mariadb``.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, text

from sa_proletarian import Cancel, Interrupted, Snooze


@dataclass
class Case:
    """One kind of abuse, and what shall come of it.

    :ivar ends: the archive's status; ``None`` when the row stays in the queue.
    :ivar effects: how many rows of it are there in the end.
    :ivar event: an event that must have been sent for it.
    :ivar error: what the archive's or the row's error contains.
    """

    act: Any
    ends: str | None = "success"
    effects: int = 0
    event: str | None = None
    error: str = ""
    only: str | None = None
    row: dict[str, Any] = field(default_factory=dict)


class Cases(dict[str, Case]):
    """``{name: case}``, filled by the decorator below."""

    def case(self, **expected):
        def add(act):
            self[act.__name__] = Case(act, **expected)
            return act

        return add


COMMON = Cases()
case = COMMON.case


def write(session, job):
    session.execute(text("INSERT INTO effect VALUES (:type)"), {"type": job.job_type})


def about(session, job, statement):
    session.execute(text(statement).bindparams(bindparam("id", job.job_id, type_=type(job).job_id.type)))


def fail(session):
    session.execute(text("INSERT INTO effect VALUES (NULL)"))


def raw(session):
    return session.connection().connection.dbapi_connection


def once(act):
    """Behave in a run that follows a crash."""

    def handler(session, job):
        return write(session, job) if job.crashes else act(session, job)

    return handler


# with the session -----------------------------------------------------------------------------------------------------


@case(effects=1)
def commits(session, job):
    write(session, job)
    session.commit()


@case(effects=2)
def commits_often(session, job):
    for _ in range(2):
        write(session, job)
        session.commit()
    session.commit()


@case(effects=1)
def rolls_back(session, job):
    write(session, job)
    session.rollback()
    write(session, job)


@case(effects=1)
def closes(session, job):
    write(session, job)
    session.close()
    write(session, job)


@case(effects=1)
def commits_and_closes(session, job):
    write(session, job)
    session.commit()
    session.close()


@case(effects=1)
def ends_with_a_rollback(session, job):
    write(session, job)
    session.commit()
    session.rollback()


@case(effects=1)
def resets_and_expunges(session, job):
    write(session, job)
    session.commit()
    session.reset()
    session.expunge_all()


@case(effects=1)
def survives_an_error_in_a_savepoint(session, job):
    try:
        with session.begin_nested():
            write(session, job)
            fail(session)
    except Exception:
        pass
    write(session, job)


@case(effects=1)
def survives_an_error_by_rollback(session, job):
    try:
        fail(session)
    except Exception:
        session.rollback()
    write(session, job)


@case()
def leaves_a_savepoint_open(session, job):
    session.begin_nested()


@case(effects=1, only="threads")
def uses_it_from_another_thread(session, job):
    def write_quietly():
        with suppress(Exception):  # the connection may be one that another abuse has spoilt; the job runs again then
            write(session, job)

    thread = threading.Thread(target=write_quietly)
    thread.start()
    thread.join()


def ends_connections(cases, statement):
    """Add the cases of a handler whose connection is ended by ``statement``."""

    @cases.case(effects=1, event="connection_died")
    def has_its_connection_ended(session, job):
        write(session, job)
        session.execute(text(statement))

    @cases.case(effects=1, event="connection_died")
    def has_its_connection_ended_and_swallows_that(session, job):
        write(session, job)
        with suppress(Exception):
            session.execute(text(statement))

    @cases.case(effects=1, event="connection_died")
    def has_its_connection_ended_and_fails_otherwise(session, job):
        write(session, job)
        try:
            session.execute(text(statement))
        except Exception:
            raise ValueError("something else") from None


# with its own row -----------------------------------------------------------------------------------------------------


@case(ends="failure", error="deleted its own job's row")
def deletes_its_row(session, job):
    write(session, job)
    about(session, job, "DELETE FROM proletarian_job WHERE job_id = :id")


@case(ends="failure", error="changed the claim")
def frees_its_row(session, job):
    write(session, job)
    about(session, job, "UPDATE proletarian_job SET claim_id = NULL WHERE job_id = :id")


@case(ends=None, event="job_parked", error="could not be settled")
def archives_itself(session, job):
    write(session, job)
    about(
        session,
        job,
        "INSERT INTO proletarian_archived_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at,"
        " status, finished_at)"
        " SELECT job_id, queue, job_type, payload, attempts, enqueued_at, process_at, 'success', enqueued_at"
        " FROM proletarian_job WHERE job_id = :id",
    )


@case(effects=1)
def reads_its_row(session, job):
    live = session.get(type(job), job.job_id)
    assert live.claim_id is not None
    write(session, job)


@case()
def changes_what_it_was_given(session, job):
    job.job_id = job.attempts = job.job_type = job.payload = None


@case(effects=1)
def attaches_what_it_was_given(session, job):
    write(session, job)
    session.add(job)
    session.commit()


# with the connection --------------------------------------------------------------------------------------------------


@case(effects=1, ends="failure", event="transaction_escaped")
def sends_a_commit(session, job):
    write(session, job)
    session.execute(text("COMMIT"))


@case(ends="failure", event="transaction_escaped")
def sends_a_rollback(session, job):
    write(session, job)
    session.execute(text("ROLLBACK"))


@case(effects=1, ends="failure", event="transaction_escaped", only="threads")
def commits_the_drivers_connection(session, job):
    write(session, job)
    raw(session).commit()


@case(effects=1, event="connection_died", only="threads")
def closes_the_drivers_connection(session, job):
    write(session, job)
    raw(session).close()


@case(effects=1, event="connection_died")
def invalidates_the_connection(session, job):
    write(session, job)
    session.connection().invalidate()


@case(effects=1, event="connection_died")
def invalidates_the_session(session, job):
    write(session, job)
    session.invalidate()


# with exceptions ------------------------------------------------------------------------------------------------------


class Odd(BaseException):
    pass


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def raising(name, what, **expected):
    def act(session, job):
        write(session, job)
        raise what

    expected = {"ends": "failure", "event": "handle_job_exception", **expected}
    COMMON[name] = Case(act, **expected)


raising("raises", ValueError("plain"), error="plain")
raising("exits", SystemExit(0), error="SystemExit")
raising("raises_keyboard_interrupt", KeyboardInterrupt(), error="KeyboardInterrupt")
raising("raises_generator_exit", GeneratorExit(), error="GeneratorExit")
raising("raises_stop_iteration", StopIteration(), error="StopIteration")
raising("raises_an_odd_one", Odd("odd"), error="odd")
raising("raises_cancelled_error", asyncio.CancelledError(), error="CancelledError")
raising("raises_memory_error", MemoryError(), error="MemoryError")
raising("raises_what_has_no_words", Mute(), error="Mute")
raising("raises_zeros", ValueError("a\0b"), error="ValueError")
raising("raises_half_characters", ValueError("\ud800"), error="ValueError")
raising("raises_a_novel", ValueError("long" * 1_000_000), error="long")
raising("raises_interrupted", Interrupted("I say so"), error="is not stopping")
raising("cancels", Cancel("enough"), ends="cancelled", event="job_cancelled", error="enough")
raising("snoozes", Snooze(timedelta(days=1)), ends=None, event="job_snoozed", row={"attempts": 0})
raising("groups_errors", BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]), error="several")


@case(ends="cancelled", event="job_cancelled", error="enough", effects=1)
def cancels_after_a_commit(session, job):
    write(session, job)
    session.commit()
    raise Cancel("enough")


@case(ends=None, event="job_snoozed", effects=1, row={"attempts": 0})
def snoozes_after_a_commit(session, job):
    write(session, job)
    session.commit()
    raise Snooze(timedelta(days=1))


@case(ends="failure", error="RecursionError")
def recurses(session, job):
    recurses(session, job)


# with the process -----------------------------------------------------------------------------------------------------


@case(effects=1, only="threads")
def forks_a_child_that_leaves_at_once(session, job):
    write(session, job)
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


@case(ends="failure", error="coroutine", only="threads")
def is_async_in_disguise(session, job):
    async def nothing():
        pass

    return nothing()


@case()
def returns_something(session, job):
    return object()
