"""F3: the wire breaks, between worker and server and between app and server; at the COMMIT above all."""

from __future__ import annotations

import pytest

from machinery.proxy import Wire

SCENARIO = "F3"


@pytest.fixture
def scene(request, either, make_trial, make_proxy):
    """Return a trial and a function that makes a proxy in front of its server."""
    if either == "PostgreSQL":
        server, make = request.getfixturevalue("proxies")
        return make_trial(server.url(), SCENARIO), make
    trial = request.getfixturevalue("trial_on_either")
    return trial, lambda: make_proxy(trial.url.query["unix_socket"])


@pytest.mark.slow
def test_a_wire_that_breaks_loses_nothing_and_doubles_nothing(scene):
    trial, make_proxy = scene
    of_worker, of_app = make_proxy(), make_proxy()
    workers = [trial.start(form, url=behind(trial.url, of_worker), slots=3) for form in ("threads", "async")]
    trial.unlocked |= {worker.pid for worker in workers}
    trial.start(slots=2)  # with a wire of its own, for what the others have lost meanwhile
    app = trial.make_engine(behind(trial.url, of_app), pool_pre_ping=True)
    long_stall = 10 if trial.long else 2
    with trial.filled(60, trial.enqueuer(app), until_certain=True):
        each = trial.amount(3, 150)  # on both sides: twice as many of each kind
        for number, kinds in enumerate(zip(shuffled(trial, each), shuffled(trial, each), strict=True), 1):
            for proxy, where, kind in ((of_worker, "worker", kinds[0]), (of_app, "app", kinds[1])):
                proxy.arm(kind, seconds=long_stall if number % 5 == 0 else 0.3)
                trial.fault(f"{kind} ({where})")
            of_worker.wait_until_fired(number)
            of_app.wait_until_fired(number)
        of_worker.wait_until_calm()
        of_app.wait_until_calm()
    trial.finish()
    trial.check()
    assert trial.record.counts["unknown_enqueues"] == 0, "a second try under the same id tells what became of the first"


def shuffled(trial, each):
    kinds = [*Wire] * each
    trial.chance.shuffle(kinds)
    return kinds


def behind(url, proxy):
    return url.set(host="127.0.0.1", port=proxy.port, query={})
