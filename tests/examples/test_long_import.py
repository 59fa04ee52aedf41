"""An hour-long import that commits chunk by chunk: it is seen while it runs, and goes on after a stop where it was."""

from __future__ import annotations


def test_the_import_is_watched_stopped_and_finished_by_another_worker(start, environment, database_url, engine, rows_on):
    environment["DATABASE_URL"] = database_url.render_as_string(hide_password=False)
    rows = rows_on(engine)
    enqueue = start("long_import/enqueue.py", "3600")
    enqueue.wait_for("about 3600 s")
    enqueue.end()
    worker = start("long_import/worker.py")
    worker.wait_for("handling_job")
    while not rows("SELECT 1 FROM proletarian_worker WHERE kind = 'job'"):
        pass
    assert "of 3600000 readings of meter 7, by proletarian[default]@" in start("long_import/watch.py").end()
    worker.terminate()
    worker.wait_for("job_snoozed")
    worker.end()
    assert worker.exit_code == 0
    [(done, complete)] = rows("SELECT done, complete FROM import")
    assert 0 < done < 3_600_000 and not complete
    assert rows("SELECT count(*) FROM reading") == [(done,)]
    assert rows("SELECT attempts, claim_id FROM proletarian_job") == [(0, None)]

    rows("UPDATE import SET total = done + 250")
    worker = start("long_import/worker.py")
    worker.wait_for("job_finished")
    worker.terminate()
    worker.end()
    assert rows("SELECT done, complete FROM import") == [(done + 250, True)]
    assert rows("SELECT count(*), count(DISTINCT line), min(line), max(line) FROM reading") == [
        (done + 250, done + 250, 1, done + 250)
    ]
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("success", 1)]
