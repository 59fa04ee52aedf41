"""F8: stricter isolation levels as the database's default, and handlers that deadlock each other."""

from __future__ import annotations

import pytest
from sqlalchemy import text

SCENARIO = "F8"


@pytest.mark.slow
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_under_a_strict_default_deadlocking_jobs_all_take_effect_once(trial, database_url, administration, level):
    with administration.connect() as connection:
        for setting in (f"default_transaction_isolation = '{level}'", "deadlock_timeout = '20ms'"):
            connection.execute(text(f"ALTER DATABASE {database_url.database} SET {setting}"))
    trial.engine.dispose()
    assert trial._is_true(f"SELECT current_setting('transaction_isolation') = '{level}'")
    enqueuer = trial.enqueuer()
    jobs = trial.amount(80, 5000)
    for _ in range(jobs):
        enqueuer.put({"does": "updates", "rows": trial.chance.sample(range(1, 5), 2)})
    for form in ("threads", "async"):
        trial.start(form)
    trial.finish(1800 if trial.long else 120)
    trial.check_but_for_beaten(jobs / 20)
    history = trial.history()
    assert {job: status for job, (status, *_) in history.archived.items()} == dict.fromkeys(history.archived, "success")
    events = [event["name"] for event in history.events]
    trial.record.faults[f"deadlock ({level})"] += events.count("conflict_retried")
    assert events.count("conflict_retried") > 0 or not trial.long, "they have deadlocked"
    trial.wait_for(f"SELECT sum(value) = {2 * jobs} FROM counter", 1)
