"""What is written down about an error: enough to mend it, and nothing of anybody's data."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, insert, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import Cancel, Interrupted, Job, ProletarianError, Snooze, errors
from sa_proletarian.dialects import Trouble, sqlstate, trouble
from sa_proletarian.errors import ControlFlow, describe, describe_with_frames, frames, printable

CANARY = "canary-7f3a"


def caught(call):
    with pytest.raises(BaseException) as info:  # noqa: PT011
        call()
    return info.value


def storable(text):
    return "\x00" not in text and text.encode().decode() == text


# texts


def test_an_error_is_described_by_type_and_message():
    assert describe(ValueError("no stock")) == "ValueError: no stock"
    assert describe(KeyError("sku")) == "KeyError: 'sku'"
    assert describe(ValueError()) == "ValueError: "


@given(st.text(st.characters(exclude_categories=())))
def test_any_description_can_be_stored(message):
    assert storable(describe(ValueError(message)))
    assert storable(describe_with_frames(ValueError(message)))


def test_nul_and_lone_surrogates_are_shown_and_not_stored():
    assert describe(ValueError("a\x00b\ud800c")) == r"ValueError: a\x00b\ud800c"
    assert printable("naïve 🙂") == "naïve 🙂"


def test_a_described_error_can_be_stored(engine):
    with engine.connect() as connection:
        described = describe(ValueError("".join(map(chr, range(0xD7F0, 0xE010))) + "\x00"))
        assert connection.scalar(text("SELECT CAST(:it AS text)"), {"it": described}) == described


def test_a_long_message_is_cut():
    assert len(describe(ValueError("x" * 1_000_000))) <= 4_000


class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Silent(Exception):
    def __str__(self):
        return None


@pytest.mark.parametrize("error", [Unreadable(), Silent()])
def test_an_error_that_cannot_be_read_is_still_described(error):
    assert describe(error) == f"{type(error).__name__}: (its message could not be read)"


def test_frames_show_the_handler_and_not_the_library():
    def handler():
        Snooze(5)

    shown = frames(caught(handler))
    assert "in handler" in shown
    assert "errors.py" not in shown.replace("test_errors.py", "")


def test_an_error_that_was_never_raised_has_no_frames():
    assert frames(ValueError()) == ""
    assert describe_with_frames(ValueError("x")) == "ValueError: x"


def test_endless_recursion_is_described_in_a_few_frames():
    def handler(n):
        return handler(n + 1)

    assert len(describe_with_frames(caught(lambda: handler(0))).splitlines()) < 60


def test_a_handler_does_not_swallow_an_interruption_by_accident():
    assert not issubclass(Interrupted, Exception)
    assert not issubclass(ControlFlow, ProletarianError)


def test_control_flow_reads_well():
    assert describe(Cancel("customer left")) == "Cancel: customer left"


def test_the_tree_in_the_docstring_is_the_tree_in_the_code():
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, BaseException):
            assert f" {kind.__name__} " in errors.__doc__ or f"{kind.__name__}\n" in errors.__doc__


# database errors: each statement makes PostgreSQL quote the canary somewhere

SCHEMA = """
    CREATE TYPE mood AS ENUM ('fine');
    CREATE DOMAIN short AS text CHECK (length(value) < 5);
    CREATE TABLE account (
        email text NOT NULL UNIQUE, age int CHECK (age > 0), mood mood, parent text REFERENCES account (email)
    );
    CREATE TABLE deferred (email text REFERENCES account (email) DEFERRABLE INITIALLY DEFERRED);
    CREATE FUNCTION complain() RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'no luck' USING DETAIL = 'canary-7f3a', HINT = 'canary-7f3a'; END $$;
    INSERT INTO account VALUES ('canary-7f3a');
"""

STATEMENTS = {
    "unique violation": "INSERT INTO account (email) VALUES (:canary)",
    "check violation": "INSERT INTO account (email, age) VALUES ('x' || :canary, -1)",
    "not-null violation": "INSERT INTO account (email, mood) SELECT NULL, 'fine' WHERE :canary <> ''",
    "foreign key violation": "INSERT INTO account (email, parent) VALUES ('x', 'x' || :canary)",
    "invalid number": "SELECT CAST(:canary AS int)",
    "invalid date": "SELECT CAST(:canary AS date)",
    "invalid uuid": "SELECT CAST(:canary AS uuid)",
    "invalid enum": "SELECT CAST(:canary AS mood)",
    "invalid json": "SELECT CAST(:canary AS jsonb)",
    "invalid boolean": "SELECT CAST(:canary AS boolean)",
    "domain": "SELECT CAST(:canary AS short)",
    "raised by a trigger": "SELECT complain() WHERE :canary <> ''",
    "literal in the statement": "SELECT no_such_column, 'canary-7f3a' WHERE :canary <> ''",
    "syntax": "SELECT 'canary-7f3a' WHER :canary <> ''",
    "number out of range": "SELECT CAST(repeat('7', 20) || :digits AS int)",
}


@pytest.fixture
def schema(engine):
    with engine.begin() as connection:
        connection.execute(text(SCHEMA))
    return engine


def parameters(statement):
    return {"canary": CANARY} if ":canary" in statement else {"digits": "73"}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_database_error_is_described_without_what_it_quotes(schema, name, driver):
    other = create_engine(schema.url.set(drivername=f"postgresql+{driver}"))
    statement = STATEMENTS[name]
    with other.connect() as connection:
        error = caught(lambda: connection.execute(text(statement), parameters(statement)))
    other.dispose()
    assert CANARY in str(error) or "7777" in str(error), "the test would show nothing otherwise"
    for described in (describe(error), describe(error.orig), describe_with_frames(error)):
        assert CANARY not in described
        assert "7777" not in described
        assert error.orig.diag.sqlstate in described, "the SQLSTATE says what happened"


async def described_by_asyncpg(url, statement):
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    try:
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError) as info:
                await connection.execute(text(statement), parameters(statement))
        return info.value
    finally:
        await engine.dispose()


def test_asyncpgs_errors_are_described_without_what_they_quote(schema):
    import asyncio

    for name in ("unique violation", "check violation", "foreign key violation", "invalid number", "raised by a trigger"):
        # asyncpg wants the type of every parameter: give it as text
        statement = STATEMENTS[name].replace(":canary", "CAST(:canary AS text)")
        error = asyncio.run(described_by_asyncpg(schema.url, statement))
        native = error.orig.__cause__
        assert CANARY in str(error)
        for described in (describe(error), describe(error.orig), describe(native)):
            assert CANARY not in described
            assert native.sqlstate in described


def test_the_constraint_is_named(schema):
    with schema.connect() as connection:
        error = caught(lambda: connection.execute(text(STATEMENTS["unique violation"]), {"canary": CANARY}))
    message = 'duplicate key value violates unique constraint "account_email_key"'
    assert describe(error) == f"IntegrityError: {message} [23505] (constraint account_email_key)"


def test_a_deferred_constraint_is_described_without_what_it_quotes(schema):
    with schema.connect() as connection:
        connection.execute(text("INSERT INTO deferred VALUES ('x' || :canary)"), {"canary": CANARY})
        error = caught(connection.commit)
    assert CANARY in str(error)
    assert CANARY not in describe(error)


def test_a_job_that_the_database_refuses_is_described_without_its_payload(tables):
    job = Job("welcome", {"secret": CANARY})
    values = {column.key: getattr(job, column.key) for column in Job.__table__.c}
    values["attempts"] = -1
    with tables.connect() as connection:
        error = caught(lambda: connection.execute(insert(Job.__table__).values(values)))
    assert CANARY in str(error)
    assert "ck_proletarian_job_attempts" in describe(error)
    assert CANARY not in describe(error)


def test_a_session_used_after_a_failed_flush_is_described_without_what_made_it_fail(tables):
    with Session(tables) as session:
        first, second = Job("welcome", {"secret": CANARY}), Job("welcome", {"secret": CANARY})
        second.job_id = first.job_id
        session.add(first)
        session.flush()
        session.expunge(first)
        session.add(second)
        caught(session.flush)
        error = caught(lambda: session.execute(text("SELECT 1")))
    assert isinstance(error, PendingRollbackError)
    assert CANARY in str(error)
    assert CANARY not in describe(error)
    assert "rolled back due to a previous exception during flush" in describe(error)


def test_a_value_that_cannot_be_bound_is_described_without_the_other_parameters(engine):
    class Odd:
        pass

    with engine.connect() as connection:
        error = caught(lambda: connection.execute(text("SELECT :a, :b"), {"a": CANARY, "b": Odd()}))
    assert CANARY in str(error)
    assert CANARY not in describe(error)
    error = caught(lambda: raise_statement_error())
    assert CANARY in str(error)
    assert describe(error) == "StatementError: cannot be serialized"


def raise_statement_error():
    raise StatementError("wrapped", "INSERT …", {"payload": CANARY}, TypeError("cannot be serialized"))


def test_a_driver_error_of_the_users_own_connection_is_described_without_what_it_quotes(schema):
    with psycopg.connect(schema.url.set(drivername="postgresql").render_as_string(False)) as connection:
        error = caught(lambda: connection.execute("INSERT INTO account (email) VALUES (%s)", [CANARY]))
    assert CANARY in str(error)
    assert CANARY not in describe(error)


def test_sqlalchemys_own_mistakes_keep_their_words():
    assert describe(SQLAlchemyError("no such thing")) == "SQLAlchemyError: no such thing"


# what an error means


@pytest.mark.parametrize(
    ("name", "meaning", "state"),
    [
        ("unique violation", Trouble.CONSTRAINT, "23505"),
        ("foreign key violation", Trouble.CONSTRAINT, "23503"),
        ("invalid number", Trouble.OTHER, "22P02"),
        ("raised by a trigger", Trouble.OTHER, "P0001"),
        ("literal in the statement", Trouble.MISSING_TABLE, "42703"),
    ],
)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_errors_are_classified_by_sqlstate_whatever_the_driver(schema, name, meaning, state, driver):
    other = create_engine(schema.url.set(drivername=f"postgresql+{driver}"))
    with other.connect() as connection:
        error = caught(lambda: connection.execute(text(STATEMENTS[name]), {"canary": CANARY}))
    other.dispose()
    assert (trouble(error), sqlstate(error)) == (meaning, state)


def test_an_idle_in_transaction_timeout_is_a_disconnection(engine):
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 1"))
        with engine.connect() as watcher:
            while watcher.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}):
                watcher.rollback()
        error = caught(lambda: connection.execute(text("SELECT 1")))
    assert trouble(error) is Trouble.DISCONNECTED


def test_a_server_that_is_not_there_is_transient(database_url):
    away = create_engine(database_url.update_query_dict({"host": "/nowhere"}))
    assert trouble(caught(away.connect)) is Trouble.TRANSIENT


def test_what_is_no_database_error_is_none_of_these():
    assert (trouble(ValueError("x")), sqlstate(ValueError("x"))) == (Trouble.OTHER, None)
