"""The database of the tests: one server for the whole run, a database of its own for every test."""

from __future__ import annotations

import secrets
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, create_engine, text

from machinery.mariadb import MariaDB, running
from sa_proletarian import Proletarian, Worker, metadata, overdue
from sa_proletarian.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_programs
from sa_proletarian.events import Event

# what depends on neither the version of SQLAlchemy nor that of PostgreSQL
ELSEWHERE = {"examples", "docs", "test_embedded.py", "test_demo.py", "test_supervisor.py", "test_cli.py", "test_transit.py"}

# a slow moment of the machine is no failure
hypothesis.settings.register_profile("patient", deadline=None, print_blob=True)
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgresql", type=int, default=18, help="major version of the server that the tests run on")
    parser.addoption("--faults", choices=("short", "long"), default="short", help="form of the scenarios in tests/faults")
    parser.addoption("--seed", type=int, help="seed of the scenarios in tests/faults, to run one again")
    parser.addoption("--seeds", type=int, default=0, help="run those scenarios once with each of so many random seeds")
    parser.addoption("--scale", type=float, default=1.0, help="make the amounts of those scenarios so many times as large")
    parser.addoption(
        "--soak", type=float, metavar="SECONDS", help="how long the scenario takes in which all of that happens"
    )
    parser.addoption("--faults-to", metavar="FOLDER", help="where those write down their seeds, faults and counts")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of Hypothesis here, so that every run has another one and says which."""
    if config.getoption("hypothesis_seed") is None:
        config.option.hypothesis_seed = str(secrets.randbelow(2**32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out of the quick passes over further versions what would say the same there as on the first."""
    for item in items:
        if ELSEWHERE & {*item.path.relative_to(Path(__file__).parent).parts}:
            item.add_marker(pytest.mark.slow)


def pytest_report_header(config: pytest.Config) -> str:
    try:
        programs = find_programs(config.option.postgresql)
    except EmbeddedPostgresError as missing:
        raise pytest.UsageError(str(missing)) from missing
    server = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True)
    seed = f"--hypothesis-seed={config.option.hypothesis_seed}"
    return f"{server.stdout.strip()}, SQLAlchemy {sqlalchemy.__version__}, {seed}"


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Let a slow moment of the machine cut no stop short; ``faults/test_stops.py`` has the true times, in processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overdue, "GIVE_UP_GRACE", 5.0)
        patch.setattr(overdue, "HOPELESS", 10.0)
        yield


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[EmbeddedPostgres]:
    """Return the server of this run; what was committed survives its ``crash()``."""
    with EmbeddedPostgres(pytestconfig.option.postgresql, settings={"synchronous_commit": True}) as server:
        yield server


@pytest.fixture(scope="session")
def administration(postgres: EmbeddedPostgres) -> Iterator[Engine]:
    """Return an engine for what cannot happen inside a transaction or inside the database of a test."""
    engine = create_engine(postgres.url(), isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    yield engine
    engine.dispose()


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, administration: Engine) -> Iterator[URL]:
    """Return the URL of an empty database that only this test uses."""
    name = f"test_{uuid4().hex}"
    with administration.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield postgres.url(name)
    with administration.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    """Return an engine (psycopg) on the database of this test."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Return a MariaDB server; without one the test is skipped, or fails where ``SA_PROLETARIAN_REQUIRE_ALL`` is set."""
    with running() as server:
        yield server


@pytest.fixture
def mariadb_engine(mariadb: MariaDB) -> Iterator[Engine]:
    """Return an engine (PyMySQL) on an empty database of MariaDB that only this test uses."""
    name = f"test_{uuid4().hex}"
    administration = create_engine(mariadb.url())
    with administration.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = create_engine(mariadb.url(name))
    yield engine
    engine.dispose()
    with administration.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))
    administration.dispose()


class Recorder:
    """A listener that keeps every event, and on which a test can wait for what it wants to see."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._counts: Counter[str] = Counter()
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._counts[event.name] += 1
            self._changed.notify_all()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events if event.name != "polling_for_jobs"]

    def named(self, name: str) -> list[Any]:
        return [event for event in self.events if event.name == name]

    def wait_for(self, name: str, count: int = 1, timeout: float = 20) -> list[Any]:
        """Wait until so many events of that name have come; they are given back."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._counts[name] >= count, timeout):
                raise AssertionError(f"no {count} {name} in {timeout} s, but {self.names[-40:]}")
        return self.named(name)


@pytest.fixture
def recorder() -> Recorder:
    """Return a listener that remembers."""
    return Recorder()


@pytest.fixture
def tables(engine: Engine) -> Engine:
    """Return an engine on a database that has the default tables and a table ``effect`` for what handlers write."""
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (what text NOT NULL)"))
    return engine


@pytest.fixture
def jobs() -> Proletarian:
    """Return a fresh registry on the default models."""
    return Proletarian()


@pytest.fixture
def start_worker(tables: Engine, recorder: Recorder) -> Iterator[Callable[..., Worker]]:
    """Return a function that starts a worker which polls often and tells the recorder; they are stopped at the end."""
    workers = []

    def start(jobs: Proletarian, engine: Engine = tables, **options: Any) -> Worker:
        options = {"polling_interval": timedelta(milliseconds=20), "listener": recorder, **options}
        worker = Worker(jobs, engine, **options)
        worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop(timedelta(seconds=2))


@pytest.fixture
def rows(tables: Engine, rows_on: Callable[[Engine], Callable[..., list[Any]]]) -> Callable[..., list[Any]]:
    """Return a function that runs one SQL statement in a transaction of its own and gives its rows, if it has any."""
    return rows_on(tables)


@pytest.fixture
def rows_on() -> Callable[[Engine], Callable[..., list[Any]]]:
    """Return what makes such a function for any engine."""

    def on(engine: Engine) -> Callable[..., list[Any]]:
        def run(statement: str, **parameters: Any) -> list[Any]:
            with engine.begin() as connection:
                result = connection.execute(text(statement), parameters)
                return [tuple(row) for row in result] if result.returns_rows else []

        return run

    return on
