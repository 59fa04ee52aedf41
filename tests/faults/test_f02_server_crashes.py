"""F2: the server crashes under the workers, one of its processes is killed, or connections are ended one by one."""

from __future__ import annotations

import os
import signal

import pytest
from sqlalchemy import text

SCENARIO = "F2"
BACKENDS = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    " AND pid <> pg_backend_pid() ORDER BY pid"
)


def crash(trial, server):
    trial.fault("crash of the server")
    server.crash()
    server.start()
    trial.resume()


def kill_backend(trial, server):
    """The death of one process makes the server end all sessions and recover."""
    trial.wait_until(lambda: kill_one(trial))
    trial.fault("kill -9 of a server process")


def kill_one(trial):
    """Kill the process of somebody's connection, if just now there is one."""
    with trial.engine.connect() as connection:
        pids = list(connection.scalars(BACKENDS))
    try:
        os.kill(trial.chance.choice(pids), signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


def end_backend(trial, server):
    with trial.engine.connect() as connection:
        pids = list(connection.scalars(BACKENDS))
        if pids:
            trial.fault("connection ended by the server")
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": trial.chance.choice(pids)})


@pytest.mark.slow
def test_a_server_that_crashes_loses_nothing_and_doubles_nothing(make_trial, own_server):
    server = own_server(max_connections=60)
    trial = make_trial(server.url(), SCENARIO)
    workers = [trial.start(form, slots=4) for form in ("threads", "async")]
    trial.unlocked |= {worker.pid for worker in workers}  # a crash may forget a claim whose handler still runs
    faults = [crash] * trial.amount(1, 50) + [kill_backend] * trial.amount(1, 20) + [end_backend] * trial.amount(5, 60)
    trial.suffer(faults, server, trial.enqueuer(most_ms=60))
    trial.finish()
    trial.check()
