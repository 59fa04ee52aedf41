"""The benchmarks' pieces work; what they would measure here means nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmarks_report", BENCHMARKS / "report.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
def test_groups_run_from_the_command_and_write_what_they_found(tmp_path):
    command = [sys.executable, BENCHMARKS, "--tiny", "--no-peers", "--out", tmp_path, "enqueue", "memory"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=570, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "performance.json").read_text())
    single = found["tables"]["Enqueue, one in a transaction, wake-ups off"]["seen"]
    assert {name: len(series["runs"]) for name, series in single.items()} == {
        "session.add of a plain model": 1,
        "jobs.enqueue": 1,
    }
    assert all(series["median"] > 0 for series in single.values())
    assert {goal["met"] for goal in found["goals"]} <= {True, False}
    assert "Resident memory of a worker" in ran.stdout


def test_an_unknown_group_is_refused():
    ran = subprocess.run([sys.executable, BENCHMARKS, "nothing"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "no such group: nothing" in ran.stderr


def test_a_ratio_is_that_of_the_runs_and_not_of_the_medians(report):
    from measuring import Series, percentile

    fast, slow = Series((10.0, 40.0, 90.0)), Series((5.0, 10.0, 30.0))
    assert fast.over(slow) == 3.0
    assert [percentile(range(1, 101), percent) for percent in (50, 95, 99)] == [50, 95, 99]


def test_findings_become_a_page_between_its_marks_and_a_chart(report, tmp_path):
    from chart import Panel
    from measuring import Series

    seen = {"ours": Series((2.0, 4.0, 3.0)), "a < peer": Series((1.0, 2.0, 1.5))}
    findings = report.Findings({"form": "tiny"})
    findings.add(
        tables=[report.Table("Drain", "jobs/s", seen, "ours")],
        goals=[report.at_least("drain", 1.5, 2.0), report.at_most("memory", 5, 6.0, "%")],
        panels=[Panel("Drain", seen, ["ours"])],
    )
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # writing again replaces what was written
        findings.write(tmp_path)
        findings.write_page(page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("**Drain**") == 1
    assert [line.rsplit("|", 2)[1].strip() for line in text.splitlines() if line.startswith(("| drain", "| memory"))] == [
        "met",
        "**not met**",
    ]
    assert "a &lt; peer" in (tmp_path / "performance.svg").read_text()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold the marks"):
        findings.write_page(page)


def test_pgbench_and_the_proxy_work_by_our_tables(report, tmp_path):
    code = """
import drains, measuring
with measuring.server() as postgres:
    one = drains.Drains(postgres, print)
    assert one.pgbench_noop(20, 10) > 0
    assert one.pgbench_write(20) > 0
    [way] = [way for way in drains.write_ways() if way.name == "naive ORM loop, 1 thread"]
    assert 3 < one.trips(drains.replace(way, count=30)) < 12
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
