"""F17: the schema goes back and forth between its versions under load, beside claims that are held."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import text

SCENARIO = "F17"
MIX = ((60, "write", {}), (20, "idles", {}), (20, "write", {"ms_after": 400}))


@pytest.mark.slow
def test_migrations_back_and_forth_make_no_enqueue_wait_and_lose_nothing(trial):
    for form in ("threads", "async"):
        trial.start(form)
    slowest, over = [0.0], threading.Event()
    watched = trial.enqueuer()

    def watch():
        while not over.is_set():
            begun = time.monotonic()
            watched.put({"does": "write"})
            slowest[0] = max(slowest[0], time.monotonic() - begun)

    watcher = threading.Thread(target=watch)
    with trial.filled(60, trial.enqueuer(mix=MIX)):
        watcher.start()
        try:
            for _ in range(trial.amount(2, 20)):
                for before, after in ((2, 1), (1, 2)):
                    trial.pause(0.1, 0.4)
                    with trial.engine.begin() as connection:
                        operations: Any = Operations(MigrationContext.configure(connection))
                        operations.proletarian_migrate(before, after, lock_timeout=timedelta(seconds=2))
                    trial.fault(f"migration from version {before} to {after} under load")
        finally:
            over.set()
            watcher.join()
    trial.finish()
    trial.check()
    trial.record.counts["slowest_enqueue"] = round(slowest[0], 2)
    with trial.engine.connect() as connection:
        invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
        assert connection.scalar(text(invalid)) == 0
    assert slowest[0] < 30, "a busy machine's seconds; the record has what it was"
