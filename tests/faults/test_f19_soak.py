"""F19: all of this together, for as long as one likes, and two workers that live through it: do they grow, do they leak?

``--soak SECONDS`` says how long; in the long form it is a quarter of an hour by default, and the short form leaves it out.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections import deque
from pathlib import Path

import pytest
from test_f02_server_crashes import crash, end_backend, kill_backend
from test_f03_wire import behind

from machinery.proxy import Wire

SCENARIO = "F19"
FORMS = ("threads", "async")
LEASE = 1.0
MEGABYTE = 1 << 20


class Scene:
    """A server, workers on both sides of a proxy, and what can happen to them."""

    def __init__(self, trial, server, make_proxy):
        self.trial, self.server = trial, server
        self.of_worker, self.of_app = make_proxy(), make_proxy()
        self.survivors = [self.start(form) for form in FORMS]
        self.mortals = deque(self.start(form, url=behind(server.url(), self.of_worker)) for form in FORMS)
        self.app = trial.make_engine(behind(server.url(), self.of_app), pool_pre_ping=True)
        self.kinds = (self.kill, self.terminate, self.pause, self.break_wire, self.break_wire, self.end_connection)

    def start(self, form, **given):
        worker = self.trial.start(form, up=False, slots=3, lease=LEASE, **given)
        self.trial.unlocked.add(worker.pid)
        return worker

    def hit(self, number):
        """Do the next harm; every tenth time to the server, which harms all."""
        if number % 10 == 9:
            self.trial.chance.choice((crash, kill_backend))(self.trial, self.server)
            return
        self.trial.chance.choice(self.kinds)()

    def kill(self):
        self.trial.fault("kill -9 of a worker")
        worker = self._next_mortal()
        worker.kill()
        self._replace(worker)

    def terminate(self):
        self.trial.fault("SIGTERM")
        worker = self._next_mortal()
        worker.signal(signal.SIGTERM)
        worker.wait()
        self._replace(worker)

    def pause(self):
        self.trial.fault("SIGSTOP beyond the lease")
        worker = self._next_mortal()
        worker.signal(signal.SIGSTOP)
        time.sleep(1.5 * LEASE)  # the fault itself
        worker.signal(signal.SIGCONT)
        self.mortals.append(worker)

    def break_wire(self):
        kind, (proxy, where) = (
            self.trial.chance.choice([*Wire]),
            self.trial.chance.choice(((self.of_worker, "worker"), (self.of_app, "app"))),
        )
        self.trial.fault(f"{kind} ({where})")
        before = proxy.fired.total()
        proxy.arm(kind, seconds=self.trial.chance.uniform(0.3, 2.0))
        proxy.wait_until_fired(before + 1)

    def end_connection(self):
        end_backend(self.trial, self.server)

    def _next_mortal(self):
        worker = self.mortals.popleft()
        worker.wait_until_up()
        return worker

    def _replace(self, worker):
        self.mortals.append(self.start(worker.form, url=behind(self.server.url(), self.of_worker)))


class Gauge:
    """The memory and the open files of some processes, from time to time."""

    def __init__(self, workers):
        self._workers = workers
        self.memory = {worker.form: [] for worker in workers}
        self.files = {worker.form: [] for worker in workers}

    def read(self):
        for worker in self._workers:
            process = Path(f"/proc/{worker.pid}")
            [resident] = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS")]
            self.memory[worker.form].append(int(resident.split()[1]) * 1024)
            self.files[worker.form].append(len([*(process / "fd").iterdir()]))

    def growth(self):
        """Compare the last quarter of the readings with the second, when everything had been used once."""
        quarter = max(1, len(self.memory["threads"]) // 4)
        middles = {
            (what, form): (
                statistics.median(readings[quarter : 2 * quarter] or readings),
                statistics.median(readings[-quarter:]),
            )
            for what, of in (("memory", self.memory), ("files", self.files))
            for form, readings in of.items()
        }
        return {
            **{f"megabytes_{form}": [round(size / MEGABYTE, 1) for size in middles["memory", form]] for form in self.memory},
            **{f"files_{form}": [*middles["files", form]] for form in self.files},
        }


@pytest.fixture
def seconds(pytestconfig, long):
    """Return for how long; ask for this before anything is started."""
    if not long and pytestconfig.option.soak is None:
        pytest.skip("a soak takes its time: --soak SECONDS, or --faults=long")
    return pytestconfig.option.soak or 900


@pytest.mark.slow
def test_workers_neither_grow_nor_leak_while_everything_happens(seconds, make_trial, proxies):
    server, make_proxy = proxies
    trial = make_trial(server.url(), SCENARIO)
    scene = Scene(trial, server, make_proxy)
    gauge = Gauge(scene.survivors)
    with trial.filled(60, trial.enqueuer(scene.app), until_certain=True):
        for worker in scene.survivors:
            worker.wait_until_up()
        number, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            trial.pause(0.1, seconds / 450 + 0.5)
            trial.wait_for("SELECT count(*) > 0 FROM proletarian_job")  # it answers, and there is work
            scene.hit(number)
            gauge.read()
            number += 1
    trial.finish()
    trial.record.counts |= {"soaked_seconds": seconds, **gauge.growth()}
    trial.check()
    assert trial.record.counts["unknown_enqueues"] == 0
    for form in FORMS:
        before, after = trial.record.counts[f"files_{form}"]
        assert after <= before + 5, trial.record.counts
        before, after = trial.record.counts[f"megabytes_{form}"]
        assert after <= 1.05 * before + (0 if seconds >= 600 else 20), trial.record.counts
