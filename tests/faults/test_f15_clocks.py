"""F15: workers whose clock is a day off, either way; the database's clock alone decides when a job is due."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

SCENARIO = "F15"
PLACES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.fixture
def library():
    if not PLACES:
        missing = "libfaketime is not installed (on Debian: apt-get install libfaketime)"
        (pytest.fail if os.environ.get("SA_PROLETARIAN_REQUIRE_ALL") else pytest.skip)(missing)
    return str(PLACES[0])


@pytest.mark.slow
def test_workers_with_wrong_clocks_begin_nothing_early_and_nothing_late(trial, library):
    """The checker compares the database's clock at each effect with the time at which the job was due."""
    enqueuer = trial.enqueuer()
    for number in range(trial.amount(60, 1000)):
        due = timedelta(seconds=trial.chance.uniform(0, trial.amount(6, 30)))
        enqueuer.put({"does": "write", "fails": int(number % 10 == 0)}, process_in=due)
    for form, shift in zip(("threads", "async"), trial.chance.sample(["+1d", "-1d"], 2), strict=True):
        environment = {"LD_PRELOAD": library, "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        trial.fault(f"worker with its clock {shift}")
        trial.start(form, environment=environment)
    trial.finish()
    trial.check()
    late = "SELECT max(finished_at - process_at) FROM proletarian_archived_job WHERE attempts = 1"
    trial.wait_for(f"SELECT ({late}) < interval '150 s'", 1)
