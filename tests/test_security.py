"""What a row can do: choose a registered handler and its arguments. And what nobody gets to read: payloads."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import MetaData, text
from sqlalchemy.orm import Session

from sa_proletarian import Cancel, Job, Outcome, Retry, Snooze, Worker, metadata, models_for
from sa_proletarian.events import log_event
from sa_proletarian.grants import grants
from sa_proletarian.quoting import quoted
from sa_proletarian.schema import check

CANARY = "canary-2c9e51"

# a row names no code -----------------------------------------------------------------------------------------------------

HOSTILE = """
import json, sys
from datetime import timedelta
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sa_proletarian import Proletarian, metadata

engine = create_engine(sys.argv[1])
metadata.create_all(engine)
jobs = Proletarian()
jobs.handler("work")(lambda session, job: session.execute(text("SELECT 1")))
PAYLOADS = [
    {"py/object": "antigravity.Thing"}, {"py/reduce": [{"py/function": "os.system"}, ["true"]]},
    {"__class__": "antigravity:Thing", "__reduce__": ["os.system", ["true"]]}, {"$type": "antigravity"},
    "cos\\nsystem\\n(S'true'\\ntR.", "gASVBQAAAAAAAACMAm9zlC4=", "__import__('antigravity')",
    "!!python/object:antigravity.Thing",
    ["antigravity", "os.system"], {"job_type": "antigravity:fly", "handler": "antigravity.fly"},
]
ROW = text(
    "INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes, last_error)"
    " VALUES (gen_random_uuid(), 'default', :type, CAST(:payload AS jsonb), 0, now(), now(), 0, 'antigravity.Error: x')"
)
TYPES = ["antigravity:fly", "antigravity.fly", "os.system", "work\\n", "../work", "work;import antigravity"]

def add(payload, job_type="work"):
    with engine.begin() as connection:
        connection.execute(ROW, {"type": job_type, "payload": json.dumps(payload)})

add(None)
assert str(jobs.process_next(engine)) == "returned"  # what is imported late has been, from now on

seen = []
def hook(event, arguments):
    watched = {"import", "exec", "compile", "marshal.loads", "pickle.find_class", "os.system", "subprocess.Popen",
               "os.exec", "os.posix_spawn", "ctypes.dlopen"}
    if event in watched or (event == "open" and "antigravity" in str(arguments)):
        seen.append((event, str(arguments)[:200]))

for payload in PAYLOADS:
    add(payload)
for job_type in TYPES:
    add({"n": 1}, job_type)
sys.addaudithook(hook)
outcomes = [str(jobs.process_next(engine)) for _ in range(len(PAYLOADS) + 1)]
found = [one for one in seen if "antigravity" in one[1] or not one[0] in {"compile", "exec", "import"}]
code = [one for one in seen if one[0] in {"exec", "compile"}]
print(outcomes == ["returned"] * len(PAYLOADS) + ["None"], found, code, "antigravity" in sys.modules)
with engine.begin() as connection:
    print(connection.scalar(text("SELECT count(*) FROM proletarian_job")))
"""


def test_nothing_is_imported_executed_or_unpickled_for_a_row(database_url):
    """An audit hook sees every import, exec and unpickling of the process; rows of unknown types stay where they are."""
    url = database_url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", HOSTILE, url], capture_output=True, text=True, check=False, timeout=100)
    assert (done.stdout, done.stderr) == ("True [] [] False\n6\n", "")


# a payload stays where it is ---------------------------------------------------------------------------------------------


def writes_twice(session, job):
    session.execute(text("INSERT INTO unique_effect VALUES (:what)"), {"what": job.payload["secret"]})
    session.execute(text("INSERT INTO unique_effect VALUES (:what)"), {"what": job.payload["secret"]})


def flushes_a_copy(session, job):
    session.add(Job("fine", job.payload, job_id=job.job_id))


def snoozes_once(session, job):
    session.execute(text("SELECT CAST(:what AS text)"), {"what": job.payload["secret"]})
    raise Snooze(timedelta(days=1))


def cancels(session, job):
    raise Cancel("not wanted")


def deletes_itself(session, job):
    session.execute(text("DELETE FROM proletarian_job WHERE job_id = :id"), {"id": job.job_id})


PATHS = {
    "fine": lambda session, job: None,
    "looks up a key": lambda session, job: job.payload["missing"],
    "writes twice": writes_twice,
    "casts": lambda session, job: session.execute(text("SELECT CAST(:what AS int)"), {"what": job.payload["secret"]}),
    "writes bad SQL": lambda session, job: session.execute(text(f"SELECT '{job.payload['secret']}' FROM WHERE")),
    "asks for no table": lambda session, job: session.execute(text("SELECT * FROM nowhere WHERE :x = ''"), job.payload),
    "is refused by a deferred key": lambda session, job: session.execute(
        text("INSERT INTO deferred VALUES (:what)"), {"what": job.payload["secret"]}
    ),
    "flushes a copy": flushes_a_copy,
    "snoozes": snoozes_once,
    "cancels": cancels,
    "deletes itself": deletes_itself,
    "returns the payload": lambda session, job: job.payload,
    "is unreadable": lambda session, job: None,
    "is archived already": lambda session, job: None,
    "dies": lambda session, job: None,
}


def test_no_payload_is_in_logs_events_or_errors_whatever_goes_wrong(tables, jobs, rows, recorder, caplog):
    rows("CREATE TABLE unique_effect (what text UNIQUE)")
    rows("CREATE TABLE deferred (what text REFERENCES unique_effect (what) DEFERRABLE INITIALLY DEFERRED)")
    given = {}
    for path, handler in PATHS.items():
        name = path.replace(" ", "_")
        jobs.handler(name, retry=Retry(1, [timedelta(0)]), on_failed=lambda job, error: None)(handler)
        with Session(tables) as session, session.begin():
            given[path] = jobs.enqueue(session, name, {"secret": CANARY, CANARY: [CANARY]}).job_id
    unreadable = f"payload = jsonb_build_object('{CANARY}', CAST('1' || repeat('0', 5000) AS numeric))"
    rows(f"UPDATE proletarian_job SET {unreadable} WHERE job_id = :id", id=given["is unreadable"])
    expired = "claim_id = gen_random_uuid(), claimed_until = now(), crashes = 4, attempts = 1"
    rows(f"UPDATE proletarian_job SET {expired} WHERE job_id = :id", id=given["dies"])
    shared = "job_id, queue, job_type, payload, attempts, enqueued_at, process_at"
    archived = f"INSERT INTO proletarian_archived_job ({shared}, status, finished_at) SELECT {shared}, 'success', now()"
    rows(f"{archived} FROM proletarian_job WHERE job_id = :id", id=given["is archived already"])

    def listener(event):
        recorder(event)
        log_event(event)

    with caplog.at_level(logging.DEBUG, "sa_proletarian"):
        outcomes = set()
        while (outcome := jobs.process_next(tables, listener=listener)) is not None:
            outcomes.add(outcome)
        for arguments in ({"payload": object()}, {"payload": {CANARY: {CANARY}}}, {"payload": CANARY + "\x00"}):
            with tables.connect() as connection, pytest.raises((TypeError, ValueError)) as refusal:
                jobs.enqueue(connection, "fine", **arguments)
            assert CANARY not in str(refusal.value)
    some = {Outcome.RETURNED, Outcome.RETRIED, Outcome.GAVE_UP, Outcome.SNOOZED, Outcome.CANCELLED, Outcome.PARKED}
    assert some | {Outcome.CRASHED} <= outcomes
    told = [record.getMessage() + str(record.__dict__.get("proletarian")) for record in caplog.records]
    told += [str(event) for event in recorder.events]
    told += [str(row) for row in rows("SELECT last_error FROM proletarian_job")]
    told += [str(row) for row in rows("SELECT error FROM proletarian_archived_job")]
    assert len(told) > 100
    assert [line for line in told if CANARY in line] == []


def on_mariadb(sql):
    return lambda session, job: session.execute(text(sql), {"what": job.payload["secret"]})


PATHS_ON_MARIADB = {
    "writes_twice": writes_twice,
    "writes_for_a_number": on_mariadb("INSERT INTO number VALUES (:what)"),
    "reads_for_a_number": on_mariadb("UPDATE number SET what = 1 WHERE what = :what + 1 OR 1 = CAST(:what AS int)"),
    "takes_it_for_an_instant": on_mariadb("INSERT INTO instant VALUES (:what)"),
    "writes_bad_SQL": lambda session, job: session.execute(text(f"SELECT '{job.payload['secret']}' FROM WHERE")),
    "calls_by_its_name": lambda session, job: session.execute(text(f"SELECT no_function('{job.payload['secret']}')")),
    "asks_JSON": on_mariadb("SELECT JSON_VALUE(:what, :what)"),
    "asks_for_no_table": on_mariadb("SELECT * FROM nowhere WHERE :what = ''"),
    "flushes_a_copy": flushes_a_copy,
    "looks_up_a_key": lambda session, job: job.payload["missing"],
    "says_what_it_was_told": lambda session, job: say_again(session, job),
}


def say_again(session, job):
    """Raise what a handler makes of the text of an error."""
    try:
        writes_twice(session, job)
    except Exception as error:
        raise RuntimeError(f"{error} {error.orig}") from None


@pytest.mark.slow
def test_no_payload_is_in_logs_events_or_errors_on_mariadb_whose_messages_quote_values(
    mariadb_engine, jobs, recorder, caplog
):
    metadata.create_all(mariadb_engine)
    with mariadb_engine.begin() as connection:
        connection.execute(text("CREATE TABLE unique_effect (what varchar(100) UNIQUE)"))
        connection.execute(text("CREATE TABLE number (what int)"))
        connection.execute(text("CREATE TABLE instant (what datetime)"))
    for name, handler in PATHS_ON_MARIADB.items():
        jobs.handler(name, on_failed=lambda job, error: None)(handler)
        with Session(mariadb_engine) as session, session.begin():
            jobs.enqueue(session, name, {"secret": f"{CANARY}' for key 'x"})

    def listener(event):
        recorder(event)
        log_event(event)

    with caplog.at_level(logging.DEBUG, "sa_proletarian"):
        while jobs.process_next(mariadb_engine, listener=listener) is not None:
            pass
    told = [record.getMessage() + str(record.__dict__.get("proletarian")) for record in caplog.records]
    told += [str(event) for event in recorder.events]
    with mariadb_engine.connect() as connection:
        found = connection.execute(text("SELECT job_type, error FROM proletarian_archived_job"))
        errors = {row.job_type: row.error for row in found}
    assert errors["writes_twice"].startswith("IntegrityError: Duplicate entry '…' for key 'what' [1062]")
    assert sum(error is not None for error in errors.values()) >= len(PATHS_ON_MARIADB) - 2
    assert [line for line in [*told, *map(str, errors.values())] if CANARY in line] == []


def test_a_job_shows_no_payload_of_itself():
    assert CANARY not in repr(Job("work", CANARY))


# names -------------------------------------------------------------------------------------------------------------------

NAMES = [
    "",
    " ",
    "a b",
    "a'b",
    'a"b',
    "a;b",
    "a --b",
    "a/*b",
    "a\\b",
    "a%sb",
    "a%(b)s",
    "a$1",
    "a\x00b",
    "a\nb",
    "a\tb",
    "a\u2028b",
    "ünïcode",
    "\u0430dmin",
    "a\u200bb",
    "\U0001f600",
    "'; DROP TABLE proletarian_job; --",
    "x" * 201,
    "${jndi:x}",
    "{0.__class__}",
    "../../etc/passwd",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_queues_and_types_with_other_characters_are_refused_wherever_one_gives_them(tables, jobs, name):
    with tables.connect() as connection:
        calls = [
            lambda: Job(name),
            lambda: Job("work", queue=name),
            lambda: jobs.enqueue(connection, name),
            lambda: jobs.enqueue(connection, "work", queue=name),
            lambda: jobs.enqueue_many(connection, [(name, None)]),
            lambda: jobs.enqueue_many(connection, [("work", None)], queue=name),
            lambda: jobs.handler(name),
            lambda: Worker(jobs, tables, queue=name),
            lambda: jobs.process_next(tables, queue=name),
            lambda: jobs.prune(tables, older_than=timedelta(0), queue=name),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="must be 1 to 200"):
                call()


@pytest.mark.parametrize("name", [name for name in NAMES if name and name.isprintable() and len(name) < 60], ids=ascii)
def test_names_of_schemas_and_roles_are_quoted_whatever_is_in_them(tables, rows, name):
    """What ``grants`` prints is run as it stands, in a schema and for a role of that name."""
    role = f"{name} {tables.url.database[:12]}"
    models = models_for(MetaData(), schema=name)
    with tables.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {quoted(name)}".replace("%", "%%"))
        connection.exec_driver_sql(f"CREATE ROLE {quoted(role)}".replace("%", "%%"))
    models[0].metadata.create_all(tables)
    with tables.begin() as connection:
        for statement in grants("worker", *models, to=role).statements():
            connection.exec_driver_sql(statement.replace("%", "%%"))
        may = connection.execute(
            text(
                "SELECT has_table_privilege(CAST(:role AS name), c.oid, 'DELETE') FROM pg_class c JOIN pg_namespace n"
                " ON n.oid = relnamespace WHERE nspname = :schema AND relname = 'proletarian_job'"
            ),
            {"role": role, "schema": name},
        ).scalar_one()
        assert may and check(connection, *models).ok
        connection.exec_driver_sql(f"DROP OWNED BY {quoted(role)}".replace("%", "%%"))
        connection.exec_driver_sql(f"DROP ROLE {quoted(role)}".replace("%", "%%"))
    assert rows("SELECT count(*) FROM proletarian_job") == [(0,)]


# releases ----------------------------------------------------------------------------------------------------------------


def test_the_release_pins_every_action_by_commit_and_only_publishing_gets_a_right():
    workflow = (Path(__file__).parents[1] / ".github" / "workflows" / "release.yml").read_text()
    used = re.findall(r"uses: (.*)", workflow)
    assert len(used) == 5 and all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v[\d.]+.*", one) for one in used)
    assert "\npermissions: {}\n" in workflow and workflow.count(": write") == 1
    build, publish = workflow.split("\n  publish:\n")
    assert "id-token: write" in publish and "secrets." not in workflow and "contents: read" in build
