"""Proletarian's tables, and a stand-in for what its Clojure code does to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from sa_proletarian.clojure import ClojureProletarian

# what database/postgresql/tables.sql of Proletarian 1.0.109 (Martin Solli, MIT licence) makes
TABLES = """
CREATE SCHEMA proletarian;
CREATE TABLE proletarian.job (
    job_id uuid PRIMARY KEY, queue text NOT NULL, job_type text NOT NULL, payload text NOT NULL,
    attempts integer NOT NULL, enqueued_at timestamptz NOT NULL, process_at timestamptz NOT NULL);
CREATE TABLE proletarian.archived_job (
    job_id uuid PRIMARY KEY, queue text NOT NULL, job_type text NOT NULL, payload text NOT NULL,
    attempts integer NOT NULL, enqueued_at timestamptz NOT NULL, process_at timestamptz NOT NULL,
    status text NOT NULL, finished_at timestamptz NOT NULL);
CREATE INDEX job_queue_process_at ON proletarian.job (queue, process_at);
"""


@pytest.fixture
def tables(engine: Engine) -> Engine:
    """Return an engine on a database with Proletarian's tables, and a table ``effect`` for what handlers write."""
    with engine.begin() as connection:
        connection.exec_driver_sql(TABLES)
        connection.exec_driver_sql("CREATE TABLE effect (what text NOT NULL)")
    return engine


@pytest.fixture
def jobs() -> ClojureProletarian:
    """Return a fresh registry on Proletarian's tables."""
    return ClojureProletarian()


@pytest.fixture
def from_clojure(rows: Callable[..., list[Any]]) -> Callable[..., Any]:
    """Return a function that inserts a job as ``proletarian.job/enqueue!`` does; it gives the id."""

    def insert(job_type: str, payload: str, *, queue: str = ":proletarian/default", process_at: str = "now") -> Any:
        [(job_id,)] = rows(
            "INSERT INTO proletarian.job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at)"
            " VALUES (gen_random_uuid(), :queue, :job_type, :payload, 0, now(), CAST(:process_at AS timestamptz))"
            " RETURNING job_id",
            queue=queue,
            job_type=job_type,
            payload=payload,
            process_at=process_at,
        )
        return job_id

    return insert


def effects(engine: Engine) -> list[str]:
    """Give what handlers have written, in its order."""
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT what FROM effect")))
