"""F13: workers that stand still for longer than their lease, and go on as if nothing had happened."""

from __future__ import annotations

import signal

import pytest

SCENARIO = "F13"


@pytest.mark.slow
def test_workers_that_were_paused_beyond_their_lease_do_nothing_twice(trial_on_either):
    trial = trial_on_either
    workers = [trial.start(form, lease=0.5) for form in ("threads", "async")]
    trial.unlocked |= {worker.pid for worker in workers}
    with trial.filled(100):
        for _ in range(trial.amount(4, 50)):
            trial.pause(0.0, 0.3)
            sleeper = trial.chance.choice(workers)
            sleeper.signal(signal.SIGSTOP)
            trial.fault("SIGSTOP beyond the lease")
            trial.pause(0.7, 1.5)
            sleeper.signal(signal.SIGCONT)
    trial.finish()
    trial.check()
