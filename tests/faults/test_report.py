"""The report is what the records of runs add up to."""

from __future__ import annotations

import json

import mutants
import report


def run(scenario, **further):
    counts = {"jobs": 10, "starts": 12, "lost": 0, "duplicates": 0, "seconds_to_empty": 1.5}
    usual = {"test": "t", "seed": 1, "at": "2026", "commit": "c", "postgresql": 18, "passed": True, "faults": {"kill": 30}}
    return {"scenario": scenario, "counts": counts, **usual, **further}


def test_faults_and_counts_are_summed_over_runs_that_passed():
    page = report.draw([run("F1"), run("F1", seed=2), run("F2", passed=False)])
    assert "2 runs that passed, 60 faults, 20 jobs with 24 starts" in page
    assert "fewer than 5.00% of such" in page
    assert "| F1 | `kill -9` of workers | 2 | 60 | 20 | 24 | 0 | 0 | 1.5 s |" in page
    assert "| F1 | kill | 60 | 5.0% |" in page
    assert "| F2 | `t` | 1 | c |" in page


def test_a_run_is_counted_once(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(run("F1")))
    runs = report.add([], tmp_path)
    assert report.add(runs, tmp_path) == runs and len(runs) == 1


def test_the_report_in_the_docs_is_what_the_records_say():
    assert report.REPORT.read_text() == report.draw(report.known_runs())


def test_of_each_mutant_the_last_run_with_the_most_seeds_is_shown():
    usual = {"test": "tests/faults/test_stateful.py::test_it", "at": "2026", "commit": "c", "seed": 1}
    mutant = {**usual, "mutant": "no fence", "room": "statements"}
    as_it_is = {**usual, "mutant": None, "passed": 20, "runs": 20}
    runs = [as_it_is, {**mutant, "caught": 19, "runs": 20}, {**mutant, "caught": 0, "runs": 1}]
    runs += [{**mutant, "mutant": "of old", "caught": 0, "runs": 20}, {**mutant, "test": "another", "caught": 1, "runs": 20}]
    page = report.draw_mutants(runs, dict.fromkeys(["no fence", "no lock"], usual["test"]))
    assert "**1 of 2 mutants were caught**; 1 of them" in page
    assert "Not tried: no lock." in page
    assert "| no fence | `statements` | `stateful.py` | 19/20 | 20/20 | 2026 | c |" in page
    assert "of old" not in page


def test_the_page_of_the_mutants_in_the_docs_is_what_the_records_say():
    runs = [json.loads(line) for line in report.MUTANT_RUNS.read_text().splitlines()]
    assert report.MUTANTS.read_text() == report.draw_mutants(runs, {mutant.name: mutant.test for mutant in mutants.MUTANTS})
