"""F1: ``kill -9`` of worker processes at random moments, threads and async, while jobs of all kinds run."""

from __future__ import annotations

import pytest

SCENARIO = "F1"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["threads", "async"])
def test_killed_workers_lose_nothing_and_double_nothing(trial, form):
    workers = [trial.start(form, up=False) for _ in range(trial.amount(2, 4))]
    with trial.filled(200):
        for _ in range(trial.amount(5, 100)):
            victim = trial.chance.choice(workers)
            victim.wait_until_up()
            trial.pause(0.05, 0.5)
            victim.kill()
            trial.fault("kill -9 of a worker")
            workers[workers.index(victim)] = trial.start(form, up=False)
    trial.finish()
    trial.check()
    assert trial.record.counts["starts"] > trial.record.counts["jobs"], "the kills have hit running jobs"
