"""A plugin of pytest for mutants.py: the chosen tests have a turn with each of several seeds, in one process, on one server.

``pytest -p machinery.turns --seed 5 --turns 20 --turns-to FILE …`` writes down what came of each turn. A turn ends at the
first test that fails. Only a failure in the test itself counts: one while its scene is set up or taken down, or a time-out
that pytest had to set, is called trouble.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import hypothesis.core
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--turns", type=int, default=1, help="run the chosen tests with so many seeds, from --seed upwards")
    parser.addoption("--turns-to", type=Path, help="write down here what came of each")
    parser.addoption("--turns-room", help="the changed room, to see that it is it that is tested")
    parser.addoption("--turns-of", type=Path, help="the folder that it must come from")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Turns(config), "turns")


class Turns:
    """What came of the turns."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.turns: list[dict[str, object]] = []

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Let nobody take a room that cannot be read for one whose mistake was noticed."""
        module = importlib.import_module(self.config.option.turns_room)
        if not Path(module.__file__).is_relative_to(self.config.option.turns_of):
            raise pytest.UsageError(f"{module.__file__} is not the copy in {self.config.option.turns_of}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed or not session.items:
            raise session.Interrupted("what is chosen cannot be collected")
        first = self.config.option.seed
        for seed in range(first, first + self.config.option.turns):
            self.config.option.seed = seed
            hypothesis.core.global_force_seed = seed
            self.turns.append({"seed": seed, "came": "nothing"})
            for item in session.items:
                # what comes next is said to be the session: so each test's own things go, and the server stays
                self.config.hook.pytest_runtest_protocol(item=item, nextitem=session)
                if self.turns[-1]["came"] == "caught":
                    break
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        turn = self.turns[-1]
        if report.failed:
            timed_out = "from pytest-timeout" in report.longreprtext
            if report.when == "call" and not timed_out:
                turn |= {"came": "caught", "by": report.nodeid}
            elif turn["came"] != "caught":
                turn |= {"came": "trouble", "by": report.nodeid}
            turn["said"] = report.longreprtext[-800:]
        elif report.passed and report.when == "call" and turn["came"] == "nothing":
            turn["came"] = "passed"
        elif report.skipped and turn["came"] in ("nothing", "passed"):
            turn |= {"came": "trouble", "by": report.nodeid, "said": f"skipped: {report.longreprtext}"}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.config.option.turns_to.write_text(json.dumps(self.turns))
