"""F11: jobs that kill their process, again and again, among others."""

from __future__ import annotations

from collections import Counter

import pytest

from machinery import ledger

SCENARIO = "F11"
CEILING = 3
FORMS = ("threads", "async")
OPTIONS = {"crash_ceiling": CEILING, "lease": 1.0}


@pytest.mark.slow
def test_jobs_that_kill_their_process_are_archived_and_take_no_other_along(trial_on_either):
    trial = trial_on_either
    enqueuer = trial.enqueuer()
    killers = trial.amount(1, 5)
    jobs = [None] * trial.amount(100, 2000) + [{"does": "kills", "status": "crashed"}] * killers
    trial.chance.shuffle(jobs)
    for payload in jobs:
        enqueuer.put(payload)
    worker = trial.start(trial.chance.choice(FORMS), **OPTIONS)
    deaths = 0

    def is_done():
        nonlocal worker, deaths
        if not worker.is_running():
            deaths += 1
            worker = trial.start(trial.chance.choice(FORMS), **OPTIONS)
        return trial._is_true("SELECT count(*) = 0 FROM proletarian_job")

    trial.wait_until(is_done, 300)
    trial.record.faults["job that kills its process"] += killers
    trial.record.faults["death of a worker by its job"] += deaths
    trial.finish()
    trial.check()
    starts = Counter(line["job"] for line in ledger.read(trial.ledger.path) if line["what"] == "start")
    crashed = [job for job, (status, *_) in trial.history().archived.items() if status == "crashed"]
    assert len(crashed) == killers
    assert all(1 <= starts[job] <= CEILING for job in crashed)
