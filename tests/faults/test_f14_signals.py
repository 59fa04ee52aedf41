"""F14: signals at random moments, once, twice and more; also to a worker that is PID 1."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

SCENARIO = "F14"
TERMINATION = 1.0
FORMS = ("threads", "async")
MIX = ((60, "write", {}), (20, "idles", {}), (5, "write", {"ms_after": 20_000}), (5, "sleeps", {"seconds": 20}))
"""Some jobs take longer than any stop waits. They are left in the queue, free, and with all their attempts."""
SENT = ([signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM] * 2, [signal.SIGTERM, signal.SIGINT], [signal.SIGTERM] * 4)


@pytest.mark.slow
def test_signals_stop_a_worker_in_time_and_free_what_it_had(trial):
    slowest = 0.0
    with trial.filled(60, trial.enqueuer(mix=MIX)):
        for form in FORMS * trial.amount(2, 20):
            worker = trial.start(form, termination=TERMINATION)
            trial.pause(0.1, 1.0)
            signals = trial.chance.choice(SENT)
            begun = time.monotonic()
            for number in signals:
                if worker.is_running():
                    worker.signal(number)
                    trial.fault(signal.Signals(number).name)
                    trial.pause(0.0, 0.8)
            worker.wait(TERMINATION + 60)  # a busy machine's seconds; the record has what it took
            slowest = max(slowest, time.monotonic() - begun)
            trial.wait_for("SELECT count(*) = 0 FROM proletarian_job WHERE claim_id IS NOT NULL", 0.1)
            trial.wait_for("SELECT count(*) = 0 FROM proletarian_job WHERE attempts <> 0 OR crashes <> 0", 0.1)
    trial.record.counts["slowest_stop"] = round(slowest, 2)
    trial.unlocked |= trial.ended.keys()
    trial.check(all_done=False)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="a process namespace needs root and unshare")
def test_a_worker_that_is_pid_1_heeds_signals(trial):
    with trial.filled(60):
        for _ in range(trial.amount(1, 5)):
            alone = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
            worker = trial.start(wrapper=alone, termination=TERMINATION)
            trial.pause(0.1, 0.5)
            [child] = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGTERM)
            trial.fault("SIGTERM to PID 1")
            assert worker.wait() == 0
    trial.start()
    trial.finish()
    trial.unlocked.add(1)
    trial.check()
