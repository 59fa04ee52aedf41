"""The worker's own pool: it connects exactly as the app's engine does, and shares nothing with it."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import NullPool, StaticPool, create_engine, event, text

from sa_proletarian import ConfigurationError
from sa_proletarian.connections import own_engine, same_database

DRIVERS = ["psycopg", "psycopg2"]


@pytest.fixture
def make(database_url, request):
    """Make engines on the database of this test, disposed of at its end."""
    engines = []

    def make(driver="psycopg", **options):
        engine = create_engine(database_url.set(drivername=f"postgresql+{driver}"), **options)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def own(make):
    """Make the worker's engine from the app's, disposed of at the end."""
    engines = []

    def own(engine, size=2):
        engines.append(own_engine(engine, size=size))
        return engines[-1]

    yield own
    for engine in engines:
        engine.dispose()


def ask(engine, question):
    with engine.connect() as connection:
        return connection.scalar(text(question))


# a pool of its own


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_second_pool_does_not_depend_on_what_the_first_is_still_asking_the_server(make, own, driver):
    app = make(driver)
    initialize, asking, go_on, answers = app.dialect.initialize, threading.Event(), threading.Event(), []

    def slowly(connection):
        if not asking.is_set():
            asking.set()
            assert go_on.wait(60)
        initialize(connection)

    app.dialect.initialize = slowly
    first = threading.Thread(target=lambda: answers.append(ask(own(app), "SELECT 1")))
    first.start()
    assert asking.wait(60)
    try:
        answers.append(ask(own(app), "SELECT 2"))
    finally:
        go_on.set()
        first.join()
    assert answers == [2, 1]


@pytest.mark.parametrize(
    "pool", [{}, {"pool_size": 1, "max_overflow": 0}, {"poolclass": NullPool}, {"poolclass": StaticPool}]
)
def test_takes_no_connection_from_the_apps_pool(make, own, pool):
    app = make(**pool)
    worker = own(app)
    with app.connect() as theirs, worker.connect() as one, worker.connect() as two:
        pids = {connection.scalar(text("SELECT pg_backend_pid()")) for connection in (theirs, one, two)}
    assert len(pids) == 3


def test_has_exactly_the_size_that_was_asked_for(make, own):
    worker = own(make(), size=3)
    held = [worker.connect() for _ in range(3)]
    assert (worker.pool.size(), worker.pool.checkedout(), worker.pool.overflow()) == (3, 3, 0)
    assert worker.pool._max_overflow == 0
    for connection in held:
        connection.close()


def test_keeps_its_connections_open_between_uses(make, own):
    worker = own(make())
    assert ask(worker, "SELECT pg_backend_pid()") == ask(worker, "SELECT pg_backend_pid()")


def test_disposing_of_it_leaves_the_apps_pool_alone(make, own):
    app = make()
    before = ask(app, "SELECT pg_backend_pid()")
    worker = own(app)
    ask(worker, "SELECT 1")
    worker.dispose()
    assert ask(app, "SELECT pg_backend_pid()") == before


# the app's own way of connecting


@pytest.mark.parametrize("driver", DRIVERS)
def test_connects_with_the_apps_connect_args(make, own, driver):
    app = make(driver, connect_args={"application_name": "shop", "options": "-c statement_timeout=4321"})
    assert ask(own(app), "SHOW application_name") == "shop"
    assert ask(own(app), "SHOW statement_timeout") == "4321ms"


def test_connects_with_the_apps_creator(make, own, database_url):
    import psycopg

    made = []

    def creator():
        made.append(1)
        return psycopg.connect(database_url.set(drivername="postgresql").render_as_string(False), application_name="by hand")

    app = create_engine("postgresql+psycopg://", creator=creator)
    assert ask(own(app), "SHOW application_name") == "by hand"
    assert made == [1]


def test_connects_through_the_apps_do_connect_hook(make, own):
    # as passwords that expire are given to an engine
    app = make()

    @event.listens_for(app, "do_connect")
    def give_token(dialect, record, arguments, parameters):
        parameters["application_name"] = "with a token"

    assert ask(own(app), "SHOW application_name") == "with a token"


@pytest.mark.parametrize("target", ["engine", "pool"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_the_apps_connect_listeners_prepare_its_connections(make, own, target, driver):
    app = make(driver)

    @event.listens_for(app if target == "engine" else app.pool, "connect")
    def prepare(dbapi_connection, record):
        with dbapi_connection.cursor() as cursor:
            cursor.execute("SET search_path TO tenant_7")
        dbapi_connection.commit()

    assert ask(own(app), "SHOW search_path") == "tenant_7"


def test_the_apps_engine_events_count_also_when_they_are_added_later(make, own):
    app = make()
    seen = []
    event.listen(app, "before_cursor_execute", lambda *arguments: seen.append("before"))
    worker = own(app)
    event.listen(app, "after_cursor_execute", lambda *arguments: seen.append("after"))
    ask(worker, "SELECT 1")
    assert seen.count("before") == seen.count("after") >= 1


def test_events_of_the_worker_do_not_reach_the_app(make, own):
    app = make()
    seen = []
    event.listen(own(app), "before_cursor_execute", lambda *arguments: seen.append("worker"))
    ask(app, "SELECT 1")
    assert seen == []


def test_the_apps_execution_options_apply(make, own):
    app = make(execution_options={"schema_translate_map": {None: "tenant_7"}, "logging_token": "app"})
    assert own(app).get_execution_options()["schema_translate_map"] == {None: "tenant_7"}


# how its transactions are


@pytest.mark.parametrize("level", [None, "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_is_read_committed_whatever_the_app_or_the_database_prefers(make, own, administration, database_url, driver, level):
    with administration.connect() as connection:
        connection.execute(
            text(f"ALTER DATABASE {database_url.database} SET default_transaction_isolation = 'repeatable read'")
        )
    app = make(driver, **({"isolation_level": level} if level else {}))
    assert ask(own(app), "SHOW transaction_isolation") == "read committed"
    assert ask(app, "SHOW transaction_isolation") == (level or "repeatable read").lower(), "the app keeps its own"


AUTOCOMMIT_ENGINES = {
    "isolation_level of the engine": lambda make: make(isolation_level="AUTOCOMMIT"),
    "in small letters": lambda make: make(isolation_level="autocommit"),
    "execution_options of create_engine": lambda make: make(execution_options={"isolation_level": "AUTOCOMMIT"}),
    "execution_options of the engine": lambda make: make().execution_options(isolation_level="AUTOCOMMIT"),
}


@pytest.mark.parametrize("form", AUTOCOMMIT_ENGINES)
def test_refuses_an_engine_in_autocommit_before_it_connects(make, form):
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT, in which a claim holds no lock"):
        own_engine(AUTOCOMMIT_ENGINES[form](make), size=1)


def test_refuses_autocommit_in_connect_args_when_it_connects_and_leaves_nothing_open(make, own):
    app = make(connect_args={"autocommit": True})
    opened = []
    event.listen(app, "connect", lambda dbapi_connection, record: opened.append(dbapi_connection))
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        own(app).connect()
    assert [connection.closed for connection in opened] == [True]


@pytest.mark.parametrize("driver", DRIVERS)
def test_refuses_autocommit_that_a_listener_sets_when_it_connects(make, own, driver):
    app = make(driver)
    event.listen(app, "connect", lambda dbapi_connection, record: setattr(dbapi_connection, "autocommit", True))
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        own(app).connect()


def test_refuses_another_database():
    with pytest.raises(ConfigurationError, match="needs PostgreSQL, MariaDB or MySQL; the engine's dialect is 'sqlite'"):
        own_engine(create_engine("sqlite://"), size=1)


def test_refuses_what_is_no_engine(make, database_url):
    for other in (database_url, str(database_url), None, make):
        with pytest.raises(TypeError, match="a worker takes an Engine or an AsyncEngine"):
            own_engine(other, size=1)


# its errors


@pytest.mark.parametrize("driver", DRIVERS)
def test_its_errors_hide_parameters_and_rows(make, own, driver):
    worker = own(make(driver))
    with worker.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE account (email text UNIQUE)"))
        connection.execute(text("INSERT INTO account VALUES ('canary-7f3a')"))
        with pytest.raises(Exception, match="duplicate key") as failure:
            connection.execute(text("INSERT INTO account VALUES (:email)"), {"email": "canary-7f3a"})
    assert "canary" not in str(failure.value)
    assert "canary" not in repr(failure.value)


# dead networks


def test_no_file_descriptor_is_left_open(make, own):
    import os

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    def use():
        worker = own_engine(app, size=1)
        worker.connect().close()
        worker.dispose()

    app = make()
    use()
    before = descriptors()
    for _ in range(20):
        use()
    assert descriptors() <= before + 1


# which binds are the worker's database


def test_an_engine_is_the_same_database_with_other_options_and_its_connections_are(make):
    app = make()
    assert same_database(app, app)
    assert same_database(app.execution_options(logging_token="x"), app)
    with app.connect() as connection:
        assert same_database(connection, app)
    assert not same_database(make(), app)
    assert not same_database(None, app)
