"""Add the records of runs to the total, and draw docs/fault-report.md from it; and docs/mutants.md.

    python tests/faults/report.py .faults

The total is docs/fault-runs.jsonl, one line a run; a run that is there already is not added again. Without a folder the
report is only drawn anew. What did not run is not in it. The mutants are in docs/mutant-runs.jsonl, where mutants.py writes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import mutants

DOCS = Path(__file__).parents[2] / "docs"
RUNS, REPORT = DOCS / "fault-runs.jsonl", DOCS / "fault-report.md"
MUTANT_RUNS, MUTANTS = DOCS / "mutant-runs.jsonl", DOCS / "mutants.md"
MUTANT_HEAD = """# Mutants

What shows that the tests could fail: `tests/faults/mutants.py` changes one thing at a time in a copy of the library, and the
test that is named must notice, in 19 of 20 seeds. A test that makes no choices by its seed runs as often all the same: there
may be threads in it. With the same seeds the same test must pass on the library as it is: how often it did stands beside it.
Drawn by `tests/faults/report.py` from [mutant-runs.jsonl](mutant-runs.jsonl): of each mutant the last run with the most
seeds. Only what ran is here, at the commit that is named.

"""
TITLES = {
    "F1": "`kill -9` of workers",
    "F2": "crashes of the server",
    "F3": "broken wires",
    "F4": "hosts that vanish from the network",
    "F5": "failover",
    "F6": "PgBouncer",
    "F7": "timeouts of the server",
    "F8": "strict isolation, deadlocks",
    "F9": "handler abuse",
    "F10": "poison",
    "F11": "crash loops",
    "F12": "exhaustion",
    "F13": "pauses beyond the lease",
    "F14": "signals",
    "F15": "wrong clocks",
    "F17": "migrations under load",
    "F18": "dead rows beside a held claim",
    "F19": "everything together",
    "F20": "two versions side by side",
    "F1 MariaDB": "`kill -9` of workers",
    "F2 MariaDB": "crashes of the server, connections killed",
    "F3 MariaDB": "broken wires",
    "F4 MariaDB": "hosts that vanish from the network",
    "F8 MariaDB": "deadlocks, locks not had in time",
    "F9 MariaDB": "handler abuse",
    "F10 MariaDB": "poison",
    "F11 MariaDB": "crash loops",
    "F13 MariaDB": "pauses beyond the lease",
    "stateful": "interleavings of the verbs",
}
HEAD = """# Fault report

Drawn by `tests/faults/report.py` from [fault-runs.jsonl](fault-runs.jsonl), which has a line for each run: its commit (with
`+` where the files were not quite that commit's), the hash of the library's tree in it, its seed, its faults and its counts.
Only what ran is here. What the scenarios do stands in [the promises](promises.md); `nox -s faults` runs them all in their
long form, and `pytest tests/faults --seed N -k NAME` runs one again with the choices of a seed.

"""


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["scenario"], run["test"], run["seed"], run["at"]


def place(scenario: str) -> tuple[str, int]:
    """Give the place in the tables: PostgreSQL's by number, then those of other databases; what has no number comes last."""
    number, _, database = scenario.removeprefix("F").partition(" ")
    return (database, int(number)) if number.isdigit() else ("~", 0)


def known_runs() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def add(runs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    there = {key(run) for run in runs}
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted([*runs, *(run for run in found if key(run) not in there)], key=lambda run: run["at"])


def draw(runs: list[dict[str, Any]]) -> str:
    passed = [run for run in runs if run["passed"]]
    faults: Counter[str] = Counter()
    for run in passed:
        faults.update(run["faults"])
    return "".join([HEAD, total(passed, faults), recovery(passed), by_scenario(passed), by_fault(passed), failed(runs)])


def total(runs: list[dict[str, Any]], faults: Counter[str]) -> str:
    injected, jobs = faults.total(), sum(run["counts"].get("jobs", 0) for run in runs)
    starts, lost = (sum(run["counts"].get(what, 0) for run in runs) for what in ("starts", "lost"))
    twice = sum(run["counts"].get("duplicates", 0) for run in runs)
    versions = ", ".join(sorted({str(run["postgresql"]) for run in runs if "postgresql" in run}))
    others = "".join(
        f" and {name} {version}"
        for name in ("MariaDB", "MySQL")
        for version in sorted({run[name.lower()] for run in runs if name.lower() in run})
    )
    bound = f"{3 / injected:.2%}" if injected else "–"
    return (
        f"**In total:** {len(runs)} runs that passed, {injected:,} faults, {jobs:,} jobs with {starts:,} starts, on"
        f" PostgreSQL {versions}{others}. Lost: {lost}. Database effects taken twice: {twice}.\n\n"
        f"No failure in {injected:,} faults does not prove that there is none: it says, at 95 %, that fewer than {bound} of"
        " such faults (3/n) do harm, each kind taken alone correspondingly less surely.\n\n"
    )


def recovery(runs: list[dict[str, Any]]) -> str:
    def slowest(what: str, *scenarios: str) -> str:
        seconds = [run["counts"][what] for run in runs if run["scenario"] in scenarios and what in run["counts"]]
        return f"{max(seconds):.2f} s" if seconds else "–"

    vanished, on_mariadb = slowest("seconds_to_empty", "F4"), slowest("seconds_to_empty", "F4 MariaDB")
    resumed = slowest("seconds_to_resume", "F2", "F5")
    return (
        f"**Recovery:** at most {vanished} after its host had vanished a job had run elsewhere, on MariaDB {on_mariadb};"
        f" at most {resumed} after a server that had crashed, or was promoted, accepted writes, the next job had ended.\n\n"
    )


def by_scenario(runs: list[dict[str, Any]]) -> str:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        rows[run["scenario"]].append(run)
    lines = [
        "## By scenario\n\n",
        "| | scenario | runs | faults | jobs | starts | lost | twice | slowest to empty |\n",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    ]
    for scenario in sorted(rows, key=place):
        these = rows[scenario]

        def count(what: str, of: list[dict[str, Any]] = these) -> str:
            numbers = [run["counts"][what] for run in of if what in run["counts"]]
            return f"{sum(numbers):,}" if numbers else "–"

        slowest = [run["counts"]["seconds_to_empty"] for run in these if "seconds_to_empty" in run["counts"]]
        injected = sum(sum(run["faults"].values()) for run in these)
        faults = f"{injected:,}"
        if scenario == "stateful":
            faults = f"{count('examples')} examples, {count('steps')} steps"
        if count("payloads") != "–":
            faults += f", {count('payloads')} payloads"
        title = TITLES.get(scenario.replace("MySQL", "MariaDB"), "")
        cells = [scenario, title, str(len(these)), faults, count("jobs"), count("starts"), count("lost")]
        cells += [count("duplicates"), f"{max(slowest)} s" if slowest else "–"]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join([*lines, "\n"])


def by_fault(runs: list[dict[str, Any]]) -> str:
    faults: Counter[tuple[str, str]] = Counter()
    for run in runs:
        for kind, number in run["faults"].items():
            faults[run["scenario"], kind] += number
    lines = ["## By fault\n\n", "| | fault | injected | bound (3/n) |\n", "|---|---|---:|---:|\n"]
    for (scenario, kind), number in sorted(faults.items(), key=lambda item: (place(item[0][0]), item[0][1])):
        if number:
            lines.append(f"| {scenario} | {kind} | {number:,} | {min(1, 3 / number):.1%} |\n")
    return "".join([*lines, "\n"])


def failed(runs: list[dict[str, Any]]) -> str:
    lines = [
        f"| {run['scenario']} | `{run['test']}` | {run['seed']} | {run['commit']} | {run.get('found', '')} |\n"
        for run in runs
        if not run["passed"]
    ]
    if not lines:
        return "## Runs that failed\n\nNone of those that were recorded.\n"
    return "".join(
        ["## Runs that failed\n\n", "| | test | seed | commit | what it was |\n", "|---|---|---:|---|---|\n", *lines]
    )


def draw_mutants(runs: list[dict[str, Any]], tests: dict[str, str]) -> str:
    """Draw the page of the mutants with these names and tests; those of others are history."""
    best: dict[str, dict[str, Any]] = {}
    as_it_is: dict[Any, str] = {}
    for run in runs:
        if run["mutant"] is None:
            as_it_is[control_of(run)] = f"{run['passed']}/{run['runs']}"
        elif tests.get(run["mutant"]) == run["test"] and run["runs"] >= best.get(run["mutant"], run)["runs"]:
            best[run["mutant"]] = run
    caught = sum(run["caught"] >= run["runs"] * 19 / 20 for run in best.values())
    twenty = sum(run["runs"] >= 20 for run in best.values())
    missing = ", ".join(name for name in tests if name not in best)
    missing = f" Not tried: {missing}." if missing else ""
    lines = [
        MUTANT_HEAD,
        f"**{caught} of {len(tests)} mutants were caught**; {twenty} of them were tried with 20 seeds.{missing}\n\n",
        "| what is changed | in | noticed by | caught | passes as it is | on | commit |\n",
        "|---|---|---|---:|---:|---|---|\n",
    ]
    for name in sorted(best):
        run = best[name]
        test = run["test"].split("::")[0].split("/")[-1].removeprefix("test_")
        cells = [name, f"`{run['room']}`", f"`{test}`", f"{run['caught']}/{run['runs']}", as_it_is.get(control_of(run), "–")]
        lines.append(f"| {' | '.join([*cells, run['at'][:10], run['commit']])} |\n")
    return "".join(lines)


def control_of(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["test"], run.get("seed"), run["runs"], run["commit"]


def main() -> None:
    runs = known_runs()
    for folder in sys.argv[1:]:
        runs = add(runs, Path(folder))
    RUNS.write_text("".join(json.dumps(run) + "\n" for run in runs))
    REPORT.write_text(draw(runs))
    if MUTANT_RUNS.exists():
        tests = {mutant.name: mutant.test for mutant in mutants.MUTANTS}
        MUTANTS.write_text(draw_mutants([json.loads(line) for line in MUTANT_RUNS.read_text().splitlines()], tests))


if __name__ == "__main__":
    main()
