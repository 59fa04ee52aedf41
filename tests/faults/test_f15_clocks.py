"""F15: workers whose clock is a day off, either way; the database's clock alone decides when a job is due.

That clock goes through the nights in which summer time begins and ends, and leaps by hours.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

SCENARIO = "F15"
BERLIN = ZoneInfo("Europe/Berlin")
HOUR = timedelta(hours=1)
CHANGES = {"begins": datetime(2027, 3, 28, 1, tzinfo=UTC), "ends": datetime(2027, 10, 31, 1, tzinfo=UTC)}
"""When summer time does so in Berlin."""
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
    for form, shift in zip(("threads", "async"), trial.chance.sample(["+1d", "-1d"], 2), strict=True):
        environment = {"LD_PRELOAD": library, "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        trial.fault(f"worker with its clock {shift}")
        trial.start(form, environment=environment)
    enqueuer = trial.enqueuer()  # while they poll: what is due by a wrong clock would be begun at once
    for number in range(trial.amount(60, 1000)):
        due = timedelta(seconds=trial.chance.uniform(0, trial.amount(6, 30)))
        enqueuer.put({"does": "write", "fails": int(number % 10 == 0)}, process_in=due)
    trial.finish()
    trial.check()
    late = "SELECT max(finished_at - process_at) FROM proletarian_archived_job WHERE attempts = 1"
    trial.wait_for(f"SELECT ({late}) < interval '150 s'", 1)


@pytest.fixture
def moved_server(library, own_server, monkeypatch):
    """Return a server with a clock of its own, and a function that sets it."""
    with TemporaryDirectory(prefix="clock-") as name:  # no folder of pytest's: the server is another user
        folder = Path(name)
        folder.chmod(0o755)
        yield from make_moved_server(library, own_server, monkeypatch, folder)


def make_moved_server(library, own_server, monkeypatch, folder):
    offset = folder / "offset"

    def set_clock(moment):
        seconds = (moment - datetime.now(UTC)).total_seconds()
        (folder / "next").write_text(f"{seconds:+f}\n")
        (folder / "next").chmod(0o644)
        (folder / "next").rename(offset)  # the server reads it all the time

    set_clock(datetime.now(UTC))
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", library)
        patch.setenv("FAKETIME_TIMESTAMP_FILE", str(offset))
        patch.setenv("FAKETIME_NO_CACHE", "1")
        patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        server = own_server()
    yield server, set_clock
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize("summer_time", CHANGES)
def test_in_the_night_of_a_change_of_clocks_nothing_begins_early_and_nothing_twice(make_trial, moved_server, summer_time):
    """Each time on the clock of that night comes to pass an hour later as well, or so one could think."""
    server, set_clock = moved_server
    change = CHANGES[summer_time]
    set_clock(change - HOUR)
    trial = make_trial(server.url(), SCENARIO)
    with trial.engine.begin() as connection:
        connection.execute(text("ALTER DATABASE postgres SET timezone = 'Europe/Berlin'"))
    trial.engine.dispose()
    enqueuer = trial.enqueuer()
    jobs = trial.amount(30, 500)
    for number in range(jobs):
        due = change + timedelta(seconds=trial.chance.uniform(-2, 2))
        for moment in (due, due + HOUR):
            enqueuer.put({"does": "write", "fails": int(number % 10 == 0)}, process_at=moment.astimezone(BERLIN))
    for form in ("threads", "async"):
        trial.start(form, polling=0.2)
    for change_, left in ((change, jobs), (change + HOUR, 0)):
        set_clock(change_ - timedelta(seconds=3))
        trial.fault(f"clocks on the day on which summer time {summer_time}")
        trial.wait_for(f"SELECT count(*) <= {left} FROM proletarian_job")
        trial.wait_for(f"SELECT count(*) = {left} FROM proletarian_job WHERE attempts = 0", 20)
    trial.finish()
    trial.check()


@pytest.mark.slow
def test_a_server_whose_clock_leaps_loses_nothing_and_doubles_nothing(make_trial, moved_server):
    """All leases end at once, or last for hours; whoever works at a job then does so in vain, or is done before."""
    server, set_clock = moved_server
    now = datetime.now(UTC)
    set_clock(now + 3 * HOUR)
    trial = make_trial(server.url(), SCENARIO)
    trial.unlocked |= {trial.start(form, polling=0.2).pid for form in ("threads", "async")}
    with trial.filled(60):
        for _ in range(trial.amount(3, 40)):
            trial.pause(0.3, 1.0)
            set_clock(now + trial.chance.uniform(1, 5) * HOUR)
            trial.fault("leap of the server's clock")
    set_clock(now + 6 * HOUR)  # whatever waits for its next attempt is due
    trial.finish()
    verdict = trial.verdict()
    # it went back while the job ran; or a claim that still waited for its slot was somebody else's after the leap, as if
    # hours had passed, and what then began with it was in vain
    for kind in ("started before it was due", "finished before it was due", "numbered an attempt backwards"):
        verdict.wrong.pop(kind, None)
    assert verdict, f"seed {trial.record.seed}: {verdict}"
