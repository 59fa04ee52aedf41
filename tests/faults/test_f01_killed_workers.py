"""F1: ``kill -9`` of worker processes at random moments, threads and async, while jobs of all kinds run."""

from __future__ import annotations

import pytest

SCENARIO = "F1"
FORMS = ["threads", "async"]


@pytest.mark.slow
def test_killed_workers_lose_nothing_and_double_nothing(trial):
    # a dead worker's jobs do not wait for its lease, and a living one keeps it on a busy machine
    workers = [trial.start(form, up=False, lease=30.0) for form in FORMS * (4 if trial.long else 1)]
    kills, jobs = trial.amount(6, 200), trial.amount(1, 100_000)
    with trial.filled(500 if trial.long else 100, together=25 if trial.long else 1) as enqueuer:
        for number in range(kills):
            trial.wait_until(lambda due=jobs * number // kills: enqueuer.count >= due, 600)
            victim = trial.chance.choice(workers)
            victim.wait_until_up()
            trial.pause(0.05, 0.5)
            victim.kill()
            trial.fault("kill -9 of a worker")
            workers[workers.index(victim)] = trial.start(victim.form, up=False, lease=30.0)
    trial.finish()
    trial.check()
    assert trial.record.counts["starts"] > trial.record.counts["jobs"], "the kills have hit running jobs"
