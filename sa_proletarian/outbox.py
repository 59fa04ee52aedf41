"""Enqueueing: a job goes into whatever the app's own transaction is.

It owns the one question "what kind of target is this?". It never commits, and on a session it does no I/O: the job is
flushed with everything else. Encoding and checks have happened in the job's constructor, before anything here.
"""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Connection, insert, inspect
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.attributes import set_committed_value

from . import waking

J = TypeVar("J")


def put(target: Any, job: J) -> J:
    """Add ``job`` to ``target`` and give it back.

    :param target: a ``Session``, ``AsyncSession``, ``scoped_session``, ``async_scoped_session`` or Flask-SQLAlchemy's
        ``db.session``, to which the job is added; or a ``Connection``, on which it is inserted.

    ``TypeError`` for anything else.
    """
    if isinstance(target, Connection):
        return _insert(target, job)
    add = getattr(target, "add", None)
    if callable(add) and hasattr(target, "flush") and not isinstance(target, type):
        add(job)
        return job
    raise TypeError(_refusal(target))


def _insert(connection: Connection, job: J) -> J:
    mapper = inspect(type(job))
    state = inspect(job)
    values = {key: state.dict[key] for key in mapper.columns.keys() if key in state.dict}
    columns = {mapper.columns[key]: value for key, value in values.items()}
    result = connection.execute(insert(mapper.local_table).values(columns))
    for attribute, value in zip(mapper.primary_key, result.inserted_primary_key or (), strict=False):
        set_committed_value(job, mapper.get_property_by_column(attribute).key, value)
    waking.enqueued(connection, job)
    return job


def _refusal(target: Any) -> str:
    if isinstance(target, type):
        return f"enqueue takes a session or a connection, got the class {target.__name__}: make one of it"
    if isinstance(target, sessionmaker) or type(target).__name__ == "async_sessionmaker":
        return (
            "enqueue takes a session or a connection, not a sessionmaker: call it and enqueue in the session that it gives"
        )
    if hasattr(target, "run_sync"):
        return "enqueue on an AsyncConnection by: await connection.run_sync(jobs.enqueue, job_type, …)"
    if hasattr(target, "connect"):
        return "enqueue takes a session or a connection, not an engine: the job must be part of your transaction"
    return f"enqueue takes a session or a connection, got a {type(target).__name__}"
