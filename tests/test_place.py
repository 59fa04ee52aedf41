"""Where a claim begins to look, what its query reads, and that nobody waits for ever before the place that was reached."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, text

from sa_proletarian import ArchivedJob, Job, clock, scripts
from sa_proletarian.connections import own_engine
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.polling import LATE, Place
from sa_proletarian.scripts import set_local
from sa_proletarian.transactions import CLAIM_SETTINGS, Transactions

MANY = 1_000_000


def transactions_of(jobs, engine):
    jobs.handler("work")(lambda session, job: None)
    lifecycle = Lifecycle(Job, ArchivedJob)
    return Transactions(jobs, lifecycle, engine, "default", "me", timedelta(seconds=30), 5, lambda claim: None)


class One:
    def __init__(self, second):
        self.process_at = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


def test_a_look_begins_where_the_last_one_ended_until_the_next_sweep_is_due():
    place, line = Place(), [One(1), One(2)]
    assert place.begin(100.0) is None
    place.came(line, line, swept=True, short=False, now=100.0)
    assert place.begin(100.5) == line[1].process_at
    assert place.begin(101.0) is None


def test_what_was_left_behind_is_looked_at_again():
    place, line = Place(), [One(1), One(2), One(3)]
    place.came(line, [line[0], line[2]], swept=True, short=False, now=100.0)
    assert place.begin(100.5) == line[1].process_at


def test_who_keeps_up_with_the_line_looks_back_a_little():
    """Transactions that are open side by side are not committed in the order of their jobs."""
    place, line = Place(), [One(1)]
    place.came(line, line, swept=True, short=True, now=100.0)
    assert place.begin(100.1) == line[0].process_at - LATE
    assert place.unseen_until == float("inf")
    place.came([], [], swept=False, short=True, now=100.2)
    assert place.begin(100.3) == line[0].process_at - LATE
    assert place.unseen_until == 101.0
    assert place.begin(101.0) is None


def test_what_is_due_since_the_beginning_of_time_is_no_place_to_look_back_from():
    place = Place()
    place.came_to(datetime.min.replace(tzinfo=UTC), swept=True, short=True, now=100.0)
    assert place.begin(100.1) is None


def test_when_something_has_come_free_everything_is_looked_at():
    place, line = Place(), [One(1)]
    place.came(line, line, swept=True, short=True, now=100.0)
    place.forget()
    assert place.begin(100.1) is None


EARLIER = st.integers(min_value=0, max_value=20)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(EARLIER, min_size=1, max_size=6)),
        st.tuples(st.just("claim"), st.integers(min_value=1, max_value=3)),
        st.tuples(st.just("reschedule"), EARLIER),
        st.tuples(st.just("wait"), st.sampled_from([0.3, 1.0])),
    ),
    max_size=25,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_no_job_waits_longer_than_a_sweep_for_its_turn(jobs, tables, rows, steps):
    """Jobs are committed late and rescheduled to earlier times; after a second a claim brings the oldest of all."""
    rows("DELETE FROM proletarian_job")
    jobs._registrations.clear()
    transactions = transactions_of(jobs, tables)
    begun, numbers = datetime(2020, 1, 1, tzinfo=UTC), count(1)
    waiting, now, last_sweep = {}, [1000.0], None
    with pytest.MonkeyPatch.context() as patch, tables.connect() as connection:
        patch.setattr(clock, "monotonic", lambda: now[0])
        for step, value in [*steps, ("wait", 1.0), ("claim", 200)]:
            if step == "add":
                made = {next(numbers): begun + timedelta(seconds=second) for second in value}
                with tables.begin() as other:
                    made = {_insert(other, due): due for due in made.values()}
                waiting |= made
            elif step == "reschedule" and waiting:
                job_id = max(waiting, key=lambda one: (waiting[one], one))
                waiting[job_id] = begun + timedelta(seconds=value)
                rows("UPDATE proletarian_job SET process_at = :due WHERE job_id = :id", due=waiting[job_id], id=job_id)
            elif step == "wait":
                now[0] += value
            elif step == "claim":
                whole = transactions.place.begin(now[0]) is None
                assert whole or now[0] < last_sweep + 1.0
                claimed = [run.claim.job_id for run in transactions.claim(connection, limit=value, idle=False).runs]
                line = sorted(waiting, key=lambda one: (waiting[one], one))
                assert claimed == [one for one in line if one in claimed]
                if whole:
                    assert claimed == line[:value]
                    last_sweep = now[0]
                assert len(claimed) == min(value, len(line)) or transactions.place.unseen_until <= last_sweep + 1.0
                for job_id in claimed:
                    del waiting[job_id]
    assert waiting == {}


def _insert(connection, due):
    job = Job("work", process_at=due, enqueued_at=due)
    names = ("job_id", "queue", "job_type", "payload", "attempts", "enqueued_at", "process_at", "crashes")
    connection.execute(insert(Job), [{name: getattr(job, name) for name in names}])
    return job.job_id


FILL = """
INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes)
SELECT gen_random_uuid(), 'default', 'work', '{}', 0, now(), now() + CAST(:due AS interval) - n * interval '1 ms', 0
FROM generate_series(1, :count) AS n
"""


@pytest.mark.parametrize("due", ["-1 s", "1 day"], ids=["due", "future"])
@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "never analyzed"])
@pytest.mark.parametrize(
    ("count", "form"),
    [(0, "script"), (1000, "script"), (1000, "statements"), pytest.param(MANY, "script", marks=pytest.mark.slow)],
)
def test_the_claim_walks_the_index_and_stops_where_it_has_enough(
    jobs, tables, rows, monkeypatch, count, form, analyzed, due
):
    """With a volatile clock, or before the first ANALYZE, it would read and sort what it does not want."""
    rows("ALTER TABLE proletarian_job SET (autovacuum_enabled = off)")
    rows(FILL, count=count, due=due)
    if analyzed:
        with tables.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE proletarian_job"))
    transactions = transactions_of(jobs, tables)
    if form == "statements":
        monkeypatch.setattr(Lifecycle, "claims_by_script", lambda self, connection: False)
    engine = own_engine(tables, size=1)
    with engine.connect() as connection:
        plans = (_plans_of_statements if form == "statements" else _plans_of_scripts)(transactions, connection, monkeypatch)
    engine.dispose()
    assert len(plans) >= 2
    for plan in plans:
        assert "Index Scan using ix_proletarian_job_due" in plan, plan
        assert "Seq Scan on proletarian_job" not in plan, plan
        assert re.sub("Sort Key: found.*", "", plan).count("Sort Key") == 0, plan
        assert due == "-1 s" or "Rows Removed by Filter" not in plan, plan


def _plans_of_statements(transactions, connection, monkeypatch):
    plans = []

    def explain(connection, cursor, statement, parameters, context, executemany):
        if "SKIP LOCKED" in statement:
            with cursor.connection.cursor() as other:
                other.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {statement}", parameters)
                plans.append("\n".join(line for (line,) in other))

    event.listen(connection, "before_cursor_execute", explain)
    for _ in range(2):  # from the beginning of the line, and from where that look has ended
        transactions.claim(connection, limit=10, idle=False)
    return plans


def _plans_of_scripts(transactions, connection, monkeypatch):
    """Explain what was prepared, with a plan made for its values and with one that is kept for all values."""
    called, sent = [], scripts.said

    def keep(connection, driver, script, place):
        called.extend(statement for statement in script.split(";") if statement.startswith("EXECUTE"))
        return sent(connection, driver, script, place)

    monkeypatch.setattr(scripts, "said", keep)
    for _ in range(5):  # each of the two forms is met, prepared and called
        transactions.claim(connection, limit=10, idle=False)
    driver, plans = connection.connection.driver_connection, []
    for call in called[-2:]:
        for mode in ("force_custom_plan", "force_generic_plan"):
            driver.execute(f"SET LOCAL plan_cache_mode = {mode}")
            for setting in set_local(CLAIM_SETTINGS):
                driver.execute(setting)
            plans.append("\n".join(line for (line,) in driver.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {call}")))
            driver.rollback()
    return plans
