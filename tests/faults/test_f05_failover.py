"""F5: the primary dies and a standby is promoted, under load; workers and app find it by a URL with both hosts."""

from __future__ import annotations

import pytest

from machinery.replication import Pair

SCENARIO = "F5"


@pytest.mark.slow
@pytest.mark.parametrize("synchronous", [True, False], ids=["synchronous", "asynchronous"])
def test_after_a_failover_to_a_standby_jobs_and_business_agree(make_trial, own_server, synchronous):
    """A synchronous standby has everything. An asynchronous one may miss the last moments, of jobs and business alike."""
    pair = Pair(own_server(tcp=True), synchronous=synchronous)
    try:
        trial = make_trial(pair.url(), SCENARIO)
        workers = [trial.start(form, slots=3) for form in ("threads", "async")]
        trial.unlocked |= {worker.pid for worker in workers}
        with trial.filled(60, trial.enqueuer(most_ms=40)):
            for _ in range(trial.amount(1, 20 if synchronous else 10)):
                pair.add_standby()
                trial.pause(0.3, 1.0)
                if not synchronous:
                    pair.stop_streaming()
                    trial.pause(0.1, 0.3)
                trial.fault("failover to a promoted standby" + ("" if synchronous else " (asynchronous)"))
                pair.fail_over()
                trial.resume()
                trial.wait_for("SELECT count(*) > 0 FROM proletarian_job")
        trial.finish()
        verdict = trial.verdict()
        if not synchronous:
            trial.record.counts["lost_by_asynchronous_replication"] = trial.record.counts.pop("lost")
            for kind in ("lost", "told that it finished, and did not"):
                verdict.wrong.pop(kind, None)
        assert verdict, f"seed {trial.record.seed}: {verdict}"
    finally:
        pair.close()
