from __future__ import annotations

import dataclasses
import logging
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from sa_proletarian import event_log, events
from sa_proletarian.events import Emitter, Event, JobEvent, log_event
from sa_proletarian.retry import RetrySpec

CANARY = "canary-7f3a"

ORIGIN = {"worker_id": "proletarian[default]@host:1:ab12", "queue": "default", "thread": "MainThread"}
JOB = {"job_id": uuid.UUID(int=7), "job_type": "welcome", "attempt": 2}
AT = datetime(2026, 3, 1, 12, 30, 0, 123_456, tzinfo=UTC)


class Diagnostics:
    message_primary = 'duplicate key value violates unique constraint "users_email"'
    constraint_name = "users_email"


class Duplicate(Exception):
    """What a driver raises: its text quotes the row."""

    diag = Diagnostics()
    sqlstate = "23505"


QUOTING = IntegrityError(
    "INSERT INTO users …", {"email": CANARY}, Duplicate(f"duplicate key\nDETAIL:  Key (email)=({CANARY}) already exists.")
)

# a value for every field that an event may have
FIELDS = {
    **JOB,
    "delay": timedelta(seconds=90),
    "reason": "customer left",
    "error": QUOTING,
    "retry_at": AT,
    "retries_left": 3,
    "rows": 1200,
    "holder": "transaction of pid 7 user app",
    "age": timedelta(minutes=7),
    "retry_spec": RetrySpec(0),
    "crashes": 5,
    "job_types": ("export", "import"),
    "hint": "run alembic upgrade head",
    "signal": "SIGTERM",
    "job_ids": (JOB["job_id"],),
}


def kinds(base=Event):
    # dataclass(slots=True) makes each class anew: the one that the module names is the one that counts
    found = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, base)]
    return [kind for kind in found if kind not in (Event, JobEvent)]


def made(kind):
    names = {field.name for field in dataclasses.fields(kind)} - set(ORIGIN)
    return kind(**ORIGIN, **{name: FIELDS[name] for name in names})


def by_name(name):
    return made(next(kind for kind in kinds() if kind.name == name))


PROLETARIANS = [
    "polling_for_jobs",
    "handling_job",
    "job_finished",
    "job_interrupted",
    "handle_job_exception",
    "handle_job_exception_with_interrupt",
    "retrying",
    "not_retrying",
    "sql_transient_exception",
    "worker_interrupted",
    "job_worker_error",
    "queue_worker_shutdown_error",
    "shutting_down",
    "already_shut_down",
    "completed_shutdown",
    "interrupted_while_shutting_down",
]


@pytest.mark.parametrize("name", PROLETARIANS)
def test_proletarians_events_keep_their_names(name):
    assert name in [kind.name for kind in kinds()]


def test_every_event_has_a_name_of_its_own():
    names = [kind.name for kind in kinds()]
    assert len(set(names)) == len(names) >= 25


@pytest.mark.parametrize("name", ["retrying", "not_retrying"])
def test_events_carry_what_proletarians_carry(name):
    expected = {"retrying": {"retry_at", "retries_left"}, "not_retrying": {"retry_spec"}}[name]
    assert expected <= {field.name for field in dataclasses.fields(by_name(name))}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_every_event_is_frozen_and_says_where_it_happened(kind):
    event = made(kind)
    assert (event.worker_id, event.queue, event.thread) == tuple(ORIGIN.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.queue = "other"


@pytest.mark.parametrize("kind", kinds(JobEvent), ids=lambda kind: kind.name)
def test_every_event_of_a_job_names_the_job_its_type_and_the_attempt(kind):
    assert {"job_id", "job_type", "attempt"} <= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_no_event_has_room_for_a_payload(kind):
    assert "payload" not in {field.name for field in dataclasses.fields(kind)}
    assert "job" not in {field.name for field in dataclasses.fields(kind)}


# the default listener


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("polling_for_jobs", "DEBUG"),
        ("handling_job", "INFO"),
        ("job_finished", "INFO"),
        ("job_interrupted", "INFO"),
        ("retrying", "INFO"),
        ("job_snoozed", "INFO"),
        ("job_cancelled", "INFO"),
        ("conflict_retried", "INFO"),
        ("worker_interrupted", "INFO"),
        ("shutting_down", "INFO"),
        ("already_shut_down", "INFO"),
        ("completed_shutdown", "INFO"),
        ("sql_transient_exception", "ERROR"),
        ("unknown_job_types", "INFO"),
        ("dead_rows_kept", "WARNING"),
        ("connection_died", "ERROR"),
        ("connection_unavailable", "ERROR"),
        ("process_died", "ERROR"),
        ("executor_replaced", "ERROR"),
        ("interrupted_while_shutting_down", "INFO"),
        ("timed_out", "ERROR"),
        ("handle_job_exception", "ERROR"),
        ("handle_job_exception_with_interrupt", "ERROR"),
        ("not_retrying", "ERROR"),
        ("job_worker_error", "ERROR"),
        ("queue_worker_shutdown_error", "ERROR"),
        ("retry_strategy_error", "ERROR"),
        ("on_failed_error", "ERROR"),
        ("job_crashed", "ERROR"),
        ("claim_lost", "ERROR"),
        ("job_parked", "ERROR"),
        ("transaction_escaped", "ERROR"),
    ],
)
def test_the_default_listener_writes_each_event_at_its_level(caplog, name, level):
    caplog.set_level("DEBUG", "sa_proletarian")
    log_event(by_name(name))
    [record] = caplog.records
    assert (record.name, record.levelname) == ("sa_proletarian", level)
    assert record.getMessage().split()[0] == name


def test_a_line_reads_as_name_and_pairs(caplog):
    caplog.set_level("INFO", "sa_proletarian")
    log_event(by_name("retrying"))
    [line] = caplog.messages
    assert line == (
        "retrying worker_id=proletarian[default]@host:1:ab12 queue=default thread=MainThread"
        " job_id=00000000-0000-0000-0000-000000000007 job_type=welcome attempt=2"
        " retry_at=2026-03-01T12:30:00.123+00:00 retries_left=3"
    )


def test_structured_formatters_find_the_fields_in_the_record(caplog):
    caplog.set_level("INFO", "sa_proletarian")
    log_event(by_name("retrying"))
    assert caplog.records[0].proletarian == {
        "event": "retrying", **ORIGIN, **JOB, "retry_at": AT, "retries_left": 3
    }  # fmt: skip


def test_polling_costs_nothing_where_nobody_listens(caplog):
    caplog.set_level("INFO", "sa_proletarian")
    log_event(by_name("polling_for_jobs"))
    assert caplog.records == []


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_nothing_that_is_logged_or_printed_quotes_a_row_or_a_parameter(caplog, kind):
    caplog.set_level("DEBUG", "sa_proletarian")
    event = made(kind)
    log_event(event)
    [record] = caplog.records
    everything = [record.getMessage(), repr(record.__dict__), str(event), caplog.text]
    assert [text for text in everything if CANARY in text] == []
    if "error" in {field.name for field in dataclasses.fields(kind)}:
        assert "users_email" in record.getMessage(), "the constraint is named"


def test_the_frames_of_a_handlers_error_are_logged_with_it(caplog):
    def handler():
        raise ValueError("no stock")

    caplog.set_level("ERROR", "sa_proletarian")
    with pytest.raises(ValueError, match="no stock") as caught:
        handler()
    log_event(events.HandleJobException(**ORIGIN, **JOB, error=caught.value))
    [line] = caplog.messages
    assert "error='ValueError: no stock'" in line
    assert re.search(r"\nTraceback .*\n.*test_events.py.*in handler", line, re.DOTALL)


@pytest.mark.parametrize(
    ("name", "field"), [("job_cancelled", "reason"), ("handling_job", "job_type"), ("job_worker_error", "hint")]
)
def test_a_text_from_outside_cannot_forge_a_second_line(caplog, name, field):
    # job types are checked when enqueued, but a row may have been inserted by hand
    caplog.set_level("DEBUG", "sa_proletarian")
    log_event(dataclasses.replace(by_name(name), **{field: "x\n2026-03-01 ERROR not_retrying\x1b[31m"}))
    [line] = caplog.messages
    assert "\n" not in line
    assert "\x1b" not in line


def test_an_error_from_outside_cannot_forge_a_second_line(caplog):
    caplog.set_level("DEBUG", "sa_proletarian")
    log_event(dataclasses.replace(by_name("not_retrying"), error=ValueError("x\n2026-03-01 INFO job_finished")))
    assert "\n" not in caplog.messages[0]


# the emitter


def test_the_emitter_says_who_and_where_and_passes_on_the_rest():
    seen = []
    Emitter(seen.append, worker_id="w", queue="mail")(events.HandlingJob, **JOB)
    [event] = seen
    assert event == events.HandlingJob(worker_id="w", queue="mail", thread="MainThread", **JOB)


@pytest.mark.parametrize("failure", [ValueError(f"about {CANARY[:6]}"), SystemExit(1), QUOTING])
def test_a_listener_that_raises_is_logged_and_harms_nothing(caplog, failure):
    def listener(event):
        raise failure

    Emitter(listener, worker_id="w", queue="mail")(events.ShuttingDown)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "the listener failed on shutting_down" in record.getMessage()
    assert type(failure).__name__ in record.getMessage()
    assert CANARY not in caplog.text


def test_a_keyboard_interrupt_in_a_listener_is_the_users_own():
    def listener(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Emitter(listener, worker_id="w", queue="mail")(events.ShuttingDown)


# the docs

PAGE = Path(__file__).parents[1] / "docs" / "events.md"


def drawn():
    """Draw the table of all events, from their classes."""
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]
    lines = ["| event | level | fields of its own | when |", "|---|---|---|---|"]
    for kind in [kind for kind in kinds if kind not in (Event, JobEvent)]:
        own = [field.name for field in dataclasses.fields(kind) if field.name not in (*ORIGIN, *JOB)]
        about = "job" if issubclass(kind, JobEvent) else "worker"
        level = logging.getLevelName(event_log.level_of(kind))
        fields = " ".join(f"`{name}`" for name in own)
        lines.append(f"| `{kind.name}` ({about}) | {level} | {fields} | {kind.__doc__.replace('``', '`')} |")
    return "\n".join(lines)


def test_the_docs_show_every_event():
    _, rest = PAGE.read_text().split("<!-- the table of events -->\n")
    shown, _ = rest.split("<!-- the end of the table -->")
    assert shown == "\n" + drawn() + "\n\n", "paste this into docs/events.md:\n\n" + drawn()
