"""F6: the same load as in F1 through PgBouncer, in both of its modes, while workers and the bouncer itself are killed."""

from __future__ import annotations

import os
import shutil

import pytest

from machinery.pgbouncer import PgBouncer

SCENARIO = "F6"


@pytest.fixture
def program():
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        missing = "PgBouncer is not installed (on Debian: apt-get install pgbouncer)"
        (pytest.fail if os.environ.get("SA_PROLETARIAN_REQUIRE_ALL") else pytest.skip)(missing)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_through_pgbouncer_nothing_is_lost_when_it_is_killed(trial, program, database_url, mode):
    bouncer = PgBouncer(program, database_url, mode)
    try:
        given = {"pooler": "transaction", "connect_args": {"prepare_threshold": None}} if mode == "transaction" else {}
        url = bouncer.url().render_as_string(hide_password=False)
        workers = [trial.start(form, url=url, slots=3, **given) for form in ("threads", "async")]
        trial.unlocked |= {worker.pid for worker in workers}
        app = trial.make_engine(bouncer.url(), pool_pre_ping=True, connect_args={"prepare_threshold": None})
        with trial.filled(60, trial.enqueuer(app), until_certain=True):
            for number in range(trial.amount(3, 30)):  # every third one is a worker's
                trial.pause(0.2, 0.8)
                if number % 3 == 2:
                    trial.fault(f"kill -9 of a worker behind PgBouncer ({mode})")
                    workers[0].kill()
                    workers[0] = trial.start(workers[0].form, url=url, slots=3, **given)
                    trial.unlocked.add(workers[0].pid)
                else:
                    trial.fault(f"kill -9 of PgBouncer ({mode})")
                    bouncer.kill()
                    bouncer.start()
        trial.finish()
    finally:
        bouncer.close()
    trial.check()
