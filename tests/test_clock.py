from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.orm import Session

import sa_proletarian
from sa_proletarian import Outcome, clock

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Nowhere(tzinfo):
    """A time zone that does not know its offset: Python calls such a datetime naive, tzinfo or not."""

    def utcoffset(self, moment):
        return None


def test_the_system_clock_is_aware_utc():
    before = datetime.now(UTC)
    now = clock.system_clock()
    assert before <= now <= datetime.now(UTC)
    assert now.tzinfo is UTC


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-3, minutes=-30)), ZoneInfo("Asia/Tokyo")])
def test_any_aware_instant_is_read_as_utc(zone):
    read = clock.read(lambda: NOON.astimezone(zone))
    assert read == NOON
    assert read.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "answer", [datetime(2026, 3, 1), datetime(2026, 3, 1, tzinfo=Nowhere()), 1_772_366_400, None, NOON.isoformat()]
)
def test_a_clock_that_gives_anything_else_is_refused(answer):
    with pytest.raises(TypeError, match="clock must return an aware datetime"):
        clock.read(lambda: answer)


def test_monotonic_seconds_never_go_back():
    seconds = [clock.monotonic() for _ in range(1000)]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("hours", [-48, 48])
def test_what_is_due_is_for_the_clock_of_the_database_to_say(jobs, tables, monkeypatch, hours):
    begun = []
    jobs.handler("work")(lambda session, job: begun.append(job.payload))
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "work", "due")
        jobs.enqueue(session, "work", "early", process_in=timedelta(hours=1))
    right = clock.system_clock
    monkeypatch.setattr(clock, "system_clock", lambda: right() + timedelta(hours=hours))
    assert (jobs.process_next(tables), jobs.process_next(tables)) == (Outcome.RETURNED, None)
    assert begun == ["due"]


def test_no_other_room_reads_a_clock():
    readers = {"now", "utcnow", "today", "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter"}
    rooms = Path(sa_proletarian.__file__).parent.rglob("*.py")
    found = [
        f"{room.name}:{node.lineno}"
        for room in rooms
        if room.name not in ("clock.py", "embedded.py")
        for node in ast.walk(ast.parse(room.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in readers
        and isinstance(node.value, ast.Name)
        and node.value.id in ("time", "datetime", "date")
    ]
    assert found == []
