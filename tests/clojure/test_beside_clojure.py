"""Beside the real Proletarian, on a JVM: its serializer, its ``enqueue!``, its ``process-next-job!`` and its queue worker.

Runs where ``PROLETARIAN_CLASSPATH`` holds a class path with Proletarian 1.0.109 and what it needs (Clojure, transit-clj,
PostgreSQL's JDBC driver), as ``clojure -Spath`` prints it in a clone of Proletarian; elsewhere it is skipped. What it
found is pinned by the texts in the other modules.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sa_proletarian import Outcome, Retry
from sa_proletarian.clojure import (
    URI,
    Char,
    ClojureProletarian,
    ClojureWorker,
    Keyword,
    Symbol,
    TaggedValue,
    TransitSerializer,
)
from sa_proletarian.embedded import EmbeddedPostgres

CLASSPATH = os.environ.get("PROLETARIAN_CLASSPATH")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLASSPATH, reason="PROLETARIAN_CLASSPATH names no Proletarian"),
]

transit = TransitSerializer()


class Clojure:
    """The other side of the pipe."""

    def __init__(self, url) -> None:
        jdbc = f"jdbc:postgresql://{url.host}:{url.port}/{url.database}"
        script = Path(__file__).with_name("beside.clj")
        self.process = subprocess.Popen(
            ["java", "-cp", str(CLASSPATH), "clojure.main", str(script), jdbc, url.username, url.password],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "JAVA_TOOL_OPTIONS": "-Dfile.encoding=UTF-8"},
        )

    def ask(self, verb: str, *arguments: str) -> str:
        """Send a request of EDN forms, and give the EDN form of the answer."""
        self.process.stdin.write(f"[:{verb} {' '.join(arguments)}]\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().rstrip("\n")
        assert answer.startswith("[:answer "), answer
        return answer.removeprefix("[:answer ").removesuffix("]")

    def again(self, written: str) -> str:
        """Let Clojure read a Transit text, and write it again."""
        return unquoted(self.ask("again", quoted(written)))


def quoted(string: str) -> str:
    """Write a text as EDN does, in ASCII."""
    return json.dumps(string)


def unquoted(form: str) -> str:
    return re.sub(r"\\(.)", r"\1", form[1:-1])


@pytest.fixture(scope="module")
def server(pytestconfig):
    with EmbeddedPostgres(pytestconfig.option.postgresql, tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def clojure(server):
    clojure = Clojure(server.url())
    yield clojure
    clojure.process.stdin.close()
    clojure.process.stdout.close()
    clojure.process.wait(20)


@pytest.fixture
def engine(server):
    engine = create_engine(server.url())
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA IF EXISTS proletarian CASCADE")
        connection.exec_driver_sql("DROP TABLE IF EXISTS effect")
    engine.dispose()


# Transit --------------------------------------------------------------------------------------------------------------

WRITTEN_ALIKE = [
    [None, True, "text", "~a", "^b", "`c", "^ ", 1, 2**53, 2**63, Decimal("0.10"), Decimal("1E+3")],
    {Keyword("email"): "ada@example.org", Keyword("my.app/other"): Keyword("email"), "text-key": Symbol("a/symbol")},
    [{"long": 1, "abc": 1}, {"long": 2, "abc": 2}, {"😀😀": 1}, {"😀😀": 1}],
    [UUID(int=5), URI("http://x.no/"), Char("c"), b"bytes", datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)],
    {None: 1, True: 2, 3: 4, "~a": 6},
    {(1, 2): [{(3,): frozenset({4})}]},
    [Fraction(1, 3), TaggedValue("point", [1, 2]), TaggedValue("X", "x")],
    [Keyword(f"name-{number}") for number in range(2000)] + [Keyword(f"name-{number}") for number in range(2000)],
    "alone",
    None,
    [],
    {},
]


@pytest.mark.parametrize("value", WRITTEN_ALIKE, ids=range(len(WRITTEN_ALIKE)))
def test_clojure_reads_what_python_writes_and_writes_the_same(clojure, value):
    written = transit.encode(value)
    assert json.loads(clojure.again(written)) == json.loads(written)


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    texts,
    st.sampled_from(["~", "^", "^ ", "~#set", "^0", "name", "other-name"]),
    st.binary(max_size=4),
    # Clojure keeps neither the exponents of zeros nor more than an int of digits after the point
    st.decimals(allow_nan=False, allow_infinity=False, places=3),
    st.uuids(),
    st.datetimes(timezones=st.just(UTC)).map(lambda at: at.replace(microsecond=0, fold=0)),
    st.sampled_from([Keyword("name"), Keyword("my.app/name"), Keyword("a"), Symbol("name"), Symbol("my/name")]),
)
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=3)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.frozensets(keys, max_size=3),
    max_leaves=10,
)


@settings(max_examples=500)
@given(values)
def test_any_value_comes_back_from_clojure(clojure, value):
    # -0.0 and 0.0 are two members of a set there, and one here; nothing else is
    assert transit.decode(clojure.again(transit.encode(value))) == value


def test_what_clojure_writes_is_read(clojure):
    written = unquoted(
        clojure.ask(
            "write",
            '{:email "ada@example.org" :at #instant "2026-02-03T04:05:06.789Z" :date #inst "2026-02-03" :list (1 2)'
            ' :set #{:a} :id #uuid "00000000-0000-0000-0000-000000000005" :char \\c :big 123N'
            ' :dec 1.50M :nested {[1 2] "x"}}',
        )
    )
    assert transit.decode(written) == {
        "email": "ada@example.org",
        "at": datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC),
        "date": datetime(2026, 2, 3, tzinfo=UTC),
        "list": [1, 2],
        "set": {"a"},
        "id": UUID(int=5),
        "char": "c",
        "big": 123,
        "dec": Decimal("1.50"),
        "nested": {(1, 2): "x"},
    }


@pytest.mark.parametrize("name", ["a", "my.app/echo", "a-b_c*d+e!f?g$h%i&j=k<l>m", "a:b/c", "a'b#c", "blåbær/øl", "-1", "*"])
def test_clojure_reads_every_name_that_we_take(clojure, name):
    job = ClojureProletarian().job_model(name, queue=name)
    assert unquoted(clojure.ask("keyword", quoted(job.queue))) == job.queue == f":{name}"


# jobs -----------------------------------------------------------------------------------------------------------------


def test_a_job_of_clojure_is_worked_by_python(clojure, tables, rows):
    job_id = unquoted(clojure.ask("enqueue", ":my.app/confirm", '{:email "ada@example.org"}'))
    jobs, seen = ClojureProletarian(), []
    jobs.handler("my.app/confirm")(lambda session, job: seen.append((str(job.job_id), job.payload["email"])))
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert seen == [(job_id, "ada@example.org")]
    assert rows("SELECT status, attempts FROM proletarian.archived_job") == [(":success", 1)]


def test_a_job_of_python_is_worked_by_clojure(clojure, tables, rows):
    with Session(tables) as session, session.begin():
        ClojureProletarian().enqueue(session, "my.app/echo", {Keyword("text"): "hei"}, queue="mail")
    assert clojure.ask("work-one", ":proletarian/default") == "nil"
    seen = clojure.ask("work-one", ":mail")
    assert seen == '[:my.app/echo "[\\"^ \\",\\"~:text\\",\\"hei\\"]"]'
    assert rows("SELECT status, attempts, job_type FROM proletarian.archived_job") == [(":success", 1, ":my.app/echo")]


def test_what_one_side_has_tried_the_other_goes_on_with(clojure, tables, rows):
    jobs = ClojureProletarian()
    jobs.handler("my/job", retry=Retry(2))(lambda session, job: 1 / job.payload["zero"])
    for _ in range(2):
        with Session(tables) as session, session.begin():
            jobs.enqueue(session, "my/job", {Keyword("fail"): True, Keyword("zero"): 0})
    assert jobs.process_next(tables) is Outcome.RETRIED
    assert jobs.process_next(tables) is Outcome.RETRIED
    assert rows("SELECT attempts FROM proletarian.job") == [(1,), (1,)]
    assert (
        clojure.ask("work-one", ":proletarian/default") != "nil"
    )  # the second attempt; Clojure's strategy allows one retry
    assert rows("SELECT status, attempts FROM proletarian.archived_job") == [(":failure", 2)]
    assert jobs.process_next(tables) is Outcome.RETRIED
    assert jobs.process_next(tables) is Outcome.GAVE_UP
    assert sorted(rows("SELECT status, attempts FROM proletarian.archived_job")) == [(":failure", 2), (":failure", 3)]


def test_instants_are_the_same_on_both_sides(clojure, tables, rows):
    # whatever the session's time zone is: Proletarian writes UTC into timestamptz
    clojure.ask("enqueue", ":my/job", "{}")
    with Session(tables) as session, session.begin():
        ClojureProletarian().enqueue(session, "my/job")
    assert rows("SELECT max(enqueued_at) - min(enqueued_at) < interval '1 minute' FROM proletarian.job") == [(True,)]


def test_both_work_on_one_queue_and_each_job_is_done_once(clojure, tables, rows):
    jobs = ClojureProletarian()
    seen = []
    jobs.handler("*")(lambda session, job: seen.append(job.payload))
    with Session(tables) as session, session.begin():
        for number in range(150):
            jobs.enqueue(session, "my/job", number)
    with ClojureWorker(jobs, tables, threads=2, polling_interval=timedelta(milliseconds=20)):
        clojure.ask("start", ":proletarian/default")
        while rows("SELECT 1 FROM proletarian.job LIMIT 1"):
            pass
    theirs = [int(number) for number in clojure.ask("stop").strip("[]").split()]
    assert sorted(seen + theirs) == list(range(150))
    assert rows("SELECT status, count(*) FROM proletarian.archived_job GROUP BY status") == [(":success", 150)]
    assert min(len(seen), len(theirs)) > 0
