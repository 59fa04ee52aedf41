"""Prove the suite: change one thing at a time in a copy of the library, and see whether the smallest fitting test notices.

    python tests/faults/mutants.py [--seeds 20] [--seed 1] [--jobs 2] [--record] [name …]

For each mutant it prints in how many of the seeds it was caught. A test without choices of its own is run so often as well:
there may be threads in it. The tests that are named run first, with the same seeds, on the library as it is, where they must
pass. It ends with 1 if a mutant was caught in fewer than 19 of 20 seeds, or no longer applies to the code. What it tries is
a copy of the files as they were when it began. With ``--record`` what came of it goes into docs/mutant-runs.jsonl, from
which report.py draws docs/mutants.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "docs" / "mutant-runs.jsonl"
STATEFUL = "tests/faults/test_stateful.py"
ABUSE = "tests/faults/test_f09_handler_abuse.py::test_each_abuse_by_threads_ends_as_the_table_says"
ABUSE_BY_TASKS = "tests/faults/test_f09_handler_abuse.py::test_each_abuse_by_tasks_ends_as_the_table_says"
AGE = "tests/test_pauses.py::test_the_age_of_a_claim_counts_from_before_it_was_made"
BEHIND = "tests/test_pauses.py::test_after_a_pause_what_waits_behind_a_running_job_is_given_back_and_not_renewed"
ISOLATION = "tests/test_execution.py::test_the_handlers_session_is_read_committed_whatever_the_database_says"
REACHING = "tests/test_execution.py::test_settings_of_the_handler_do_not_reach_the_settling"
UNANSWERED = "tests/faults/test_processes.py::test_an_unanswered_commit_is_looked_into"


@dataclass(frozen=True)
class Mutant:
    """One change: in ``room``, ``old`` becomes ``new``, and what ``also`` says; ``test`` should fail then."""

    name: str
    room: str
    old: str
    new: str
    test: str
    also: tuple[str, str] = ("", "")


MUTANTS = [
    Mutant(
        "an archive without a fence",
        "statements",
        "error=Text())\n        mine = (job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)",
        "error=Text())\n        mine = (job.job_id == fences.c.job_id,)",
        "tests/test_lifecycle.py::test_no_settling_touches_what_has_another_fence",
    ),
    Mutant(
        "a group's end without a fence",
        "statements",
        '.cte("fences")\n        mine = (job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)',
        '.cte("fences")\n        mine = (job.job_id == fences.c.job_id,)',
        "tests/test_lifecycle.py::test_no_hold_and_no_end_in_a_group_takes_what_has_another_fence",
    ),
    Mutant(
        "a reschedule without a fence",
        "statements",
        "update(self.job)\n            .where(job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)",
        "update(self.job)\n            .where(job.job_id == fences.c.job_id)",
        "tests/test_lifecycle.py::test_no_settling_touches_what_has_another_fence",
    ),
    Mutant(
        "a hold without a fence",
        "statements",
        ".where(job.job_id == job_id, job.claim_id == claim_id)\n            .with_for_update(key_share=True, of=self.job)",
        ".where(job.job_id == job_id, or_(claim_id.is_not(None)))\n"
        "            .with_for_update(key_share=True, of=self.job)",
        "tests/test_lifecycle.py::test_no_hold_and_no_end_in_a_group_takes_what_has_another_fence",
    ),
    Mutant(
        "a renewal without a fence",
        "statements",
        ".where(job.claim_id == fences.c.claim_id)\n            .with_for_update(key_share=True, skip_locked=True",
        ".with_for_update(key_share=True, skip_locked=True",
        "tests/test_lifecycle.py::test_renewals_skip_what_a_handler_holds_and_name_the_fence",
    ),
    Mutant(
        "a hold without a lock",
        "statements",
        '            .with_for_update(key_share=True, of=self.job)\n            .cte("held")',
        '            .cte("held")',
        STATEFUL,
    ),
    Mutant(
        "a claim that waits for locks",
        "statements",
        ".limit(most)\n            .with_for_update(skip_locked=True, key_share=True",
        ".limit(most)\n            .with_for_update(key_share=True",
        "tests/test_lifecycle.py::test_what_others_hold_is_passed_over",
    ),
    Mutant(
        "a claim without a lease",
        "statements",
        "claimed_until=until,\n            attempts",
        "claimed_until=None,\n            attempts",
        STATEFUL,
    ),
    Mutant(
        "a claim that ignores leases",
        "statements",
        "            job.process_at <= statement_now(),\n"
        "            or_(job.claimed_until.is_(None), job.claimed_until <= statement_now()),",
        "            job.process_at <= statement_now(),",
        STATEFUL,
    ),
    Mutant(
        "one fence for all claims",
        "lifecycle",
        "token = uuid4()\n        until",
        "token = UUID(int=7)\n        until",
        STATEFUL,
    ),
    Mutant(
        "crashes that are not counted",
        "statements",
        "crashes=case((free, job.crashes), else_=func.least(job.crashes, MOST_ATTEMPTS) + 1)",
        "crashes=job.crashes",
        STATEFUL,
    ),
    Mutant(
        "attempts that are not counted",
        "statements",
        "attempts=case((free, func.least(job.attempts, MOST_ATTEMPTS) + 1), else_=job.attempts)",
        "attempts=job.attempts",
        STATEFUL,
    ),
    Mutant(
        "a plain begin_nested instead of create_savepoint",
        "sessions",
        '"join_transaction_mode": "create_savepoint"',
        '"join_transaction_mode": "control_fully"',
        ABUSE,
        also=("self._savepoint = connection.begin_nested()", "self._savepoint = connection.get_transaction()"),
    ),
    Mutant(
        "no savepoint under the handler",
        "sessions",
        "        self._savepoint.rollback()\n",
        "        pass\n",
        ABUSE,
    ),
    Mutant(
        "except Exception",
        "execution",
        "close_session(session)\n        except BaseException as error:",
        "close_session(session)\n        except Exception as error:",
        ABUSE,
    ),
    Mutant(
        "a thread that dies of what the worker raises",
        "shift",
        "        except BaseException as error:  # not the handler's",
        "        except ValueError as error:  # not the handler's",
        "tests/test_worker.py::test_an_error_of_the_workers_own_ends_no_thread_and_loses_no_job",
    ),
    Mutant(
        "a handler's work committed before its job is settled",
        "execution",
        "            in_one_trip = run.hold.scripted and ruling is outcomes.RETURNED\n",
        "            run.hold.for_settling().commit()\n            in_one_trip = False\n",
        ABUSE,
    ),
    Mutant(
        "a swallowed SQL error taken for a success",
        "execution",
        "            run.hold.commit_session(session)\n",
        "            try:\n                run.hold.commit_session(session)\n            except Exception:\n"
        "                session.rollback()\n                run.hold.roll_back_to_lock()\n",
        ABUSE,
    ),
    Mutant(
        "a deleted row taken for a lost claim",
        "execution",
        "if held is not None and self.transactions.lifecycle.still_holds(run.hold.for_settling(), held):",
        "if False:",
        ABUSE,
    ),
    Mutant(
        "decoding outside the guard",
        "execution",
        "        try:\n            prepare(run, self.transactions.lifecycle)\n            session, given",
        "        prepare(run, self.transactions.lifecycle)\n        try:\n            session, given",
        "tests/faults/test_f10_poison.py::test_rows_behind_the_apis_back_harm_nobody",
    ),
    Mutant(
        "a COMMIT's error taken for a failure",
        "execution",
        "            if trouble(error) is Trouble.DISCONNECTED:\n"
        "                return Report(run, outcomes.connection_died(error), committed=ruling)\n",
        "",
        UNANSWERED,
    ),
    Mutant(
        "no second look after a COMMIT without an answer",
        "execution",
        "return Report(run, outcomes.connection_died(error), committed=ruling)",
        "return Report(run, outcomes.connection_died(error))",
        UNANSWERED,
    ),
    Mutant(
        "a script's error taken for a failure",
        "execution",
        "            if trouble(error) is Trouble.DISCONNECTED:\n"
        "                return Report(run, outcomes.connection_died(error), committed=outcomes.RETURNED)\n",
        "",
        UNANSWERED,
    ),
    Mutant(
        "no second look after a script without an answer",
        "execution",
        "return Report(run, outcomes.connection_died(error), committed=outcomes.RETURNED)",
        "return Report(run, outcomes.connection_died(error))",
        UNANSWERED,
    ),
    Mutant(
        "a lost connection counted as an attempt",
        "outcomes",
        'the job is not committed",\n        Move.RESCHEDULE,\n        "now + 1 s",\n        attempt=False,\n',
        'the job is not committed",\n        Move.RESCHEDULE,\n        "now + 1 s",\n',
        UNANSWERED,
    ),
    Mutant(
        "an interruption counted as an attempt",
        "outcomes",
        'Move.RELEASE, "at once, place in line kept", attempt=False',
        'Move.RELEASE, "at once, place in line kept", attempt=True',
        "tests/test_worker.py::test_jobs_that_were_claimed_but_not_begun_are_released_on_stop",
    ),
    Mutant(
        "AUTOCOMMIT accepted",
        "connections",
        'if any(str(level).upper() == "AUTOCOMMIT" for level in levels):',
        "if False:",
        "tests/test_connections.py::test_refuses_an_engine_in_autocommit_before_it_connects",
    ),
    Mutant(
        "no READ COMMITTED",
        "connections",
        'dialect.set_isolation_level(dbapi_connection, "READ COMMITTED")',
        'dialect.set_isolation_level(dbapi_connection, "SERIALIZABLE")',
        "tests/test_execution.py::test_so_it_is_on_a_driver_that_takes_no_scripts",
    ),
    Mutant(
        "scripts that begin at the database's own level",
        "scripts",
        'BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"',
        'BEGIN = "BEGIN"',
        ISOLATION,
    ),
    Mutant(
        "conflicts that are not retried",
        "execution",
        "if error is None or trouble(error) is not Trouble.CONFLICT or run.interrupted():",
        "if True:",
        "tests/test_execution.py::test_a_deadlock_is_no_failure_but_another_try",
    ),
    Mutant(
        "an idle timeout that ends the held transaction",
        "statements",
        '_said("idle_in_transaction_session_timeout"), "0", True',
        '_said("idle_in_transaction_session_timeout"), "1s", True',
        "tests/faults/test_f07_server_timeouts.py::test_a_timeout_of_the_server_fails_what_it_cannot_let_finish_and_nothing_else"
        "[idle_in_transaction_session_timeout]",
    ),
    Mutant(
        "now() for retries",
        "dialects",
        'return "clock_timestamp()"',
        'return "now()"',
        "tests/test_execution.py::test_a_retry_delay_counts_from_the_finish",
    ),
    Mutant(
        "suspects claimed together",
        "polling",
        "    if not is_last_chance(first.crashes, ceiling):\n        return Choice([first], condemned)",
        "    if not is_last_chance(first.crashes, ceiling):\n        return Choice(able, condemned)",
        "tests/test_polling.py",
    ),
    Mutant(
        "no crash ceiling",
        "polling",
        "condemned = [candidate for candidate in candidates if candidate.crashes >= ceiling]",
        "condemned = [candidate for candidate in candidates if candidate.crashes >= 1_000]",
        "tests/test_polling.py",
    ),
    Mutant(
        "leases that are not renewed",
        "feeder",
        "now - self._lease / 3\n        # this",
        "now - self._lease * 1_000\n        # this",
        "tests/test_worker.py::test_leases_are_renewed_for_as_long_as_a_handler_runs",
    ),
    Mutant(
        "a script's hold without a fence",
        "statements",
        "self._hold(one, other, place(2, Text()))",
        "self._hold(one, self.job.c.claim_id, place(2, Text()))",
        "tests/test_scripts.py::test_a_claim_that_was_lost_before_the_first_use_of_the_session_is_not_held",
    ),
    Mutant(
        "a script's end without a fence",
        "statements",
        "mine = (job.job_id == job_id, job.claim_id == claim_id)\n        archived",
        "mine = (job.job_id == job_id,)\n        archived",
        ABUSE,
    ),
    Mutant(
        "a script that commits though it moved nothing",
        "statements",
        "else_=scripts.NOT_MOVED",
        'else_="1"',
        ABUSE,
    ),
    Mutant(
        "a job finished outside the transaction that its handler used",
        "execution",
        "        if run.hold.opened and not run.hold.died:\n",
        "        if False:\n",
        ABUSE,
    ),
    Mutant(
        "an escaped transaction that nobody tells of",
        "execution",
        'return sqlstate(error) == "3B001"',
        "return False",
        ABUSE,
    ),
    Mutant(
        "a deferred constraint's refusal taken for the archive's",
        "execution",
        "by_commit=run.hold.has_ended()",
        "by_commit=False",
        ABUSE,
    ),
    Mutant(
        "no tripwire on MariaDB",
        "mysql/lifecycle",
        'connection.exec_driver_sql(f"RELEASE SAVEPOINT {_TRIPWIRE}")',
        "pass",
        "tests/test_mariadb.py::test_a_deadlock_that_the_handler_swallows_undoes_the_job_as_it_undoes_what_was_written",
    ),
    Mutant(
        "a settling without a fence on MariaDB",
        "mysql/lifecycle",
        "for job_id, fence in found.items() if fence == fences[job_id]}",
        "for job_id, fence in found.items()}",
        "tests/test_mariadb.py::test_what_somebody_else_has_claimed_meanwhile_is_not_settled_though_nobody_locks_it",
    ),
    Mutant(
        "a task that ends its loop",
        "async_execution",
        "BaseException as error:\n            return error\n        return None\n\n    async def _await_handler(",
        "Exception as error:\n            return error\n        return None\n\n    async def _await_handler(",
        ABUSE_BY_TASKS,
    ),
    Mutant(
        "settings of the handler that reach the settling",
        "lifecycle",
        'limits["statement_timeout"], held.search_path, held.role)',
        'limits["statement_timeout"], "nowhere", held.role)',
        REACHING,
    ),
    Mutant(
        "the handler's statement timeout for the settling",
        "lifecycle",
        'limits["statement_timeout"], held.search_path, held.role)',
        '"500ms", held.search_path, held.role)',
        f"{REACHING}[threads-SET LOCAL statement_timeout = '500ms']",
    ),
    Mutant(
        "a stale claim that is begun",
        "execution",
        "if renewed_at and now - renewed_at > STALE * self.transactions.lease.total_seconds():",
        "if False:",
        "tests/test_pauses.py::test_a_job_whose_lease_is_nearly_over_is_released_instead_of_begun",
    ),
    Mutant(
        "a stale claim that is renewed",
        "feeder",
        "        self._take_back(lambda run: run.claim.renewed_at < stale, lambda run: INTERRUPTED)\n",
        "",
        f"{BEHIND}[a pause-threads]",
        also=("        old = [run for run in old if run.started_at is not None or run.claim.renewed_at >= stale]\n", ""),
    ),
    Mutant(
        "a claim whose age counts from the answer",
        "transactions",
        "        # since it was asked for: if",
        "        now = clock.monotonic()\n        # if",
        AGE,
    ),
    Mutant(
        "a claim by script whose age counts from the answer",
        "transactions",
        "        # since it was asked for, as above",
        "        now = clock.monotonic()",
        AGE,
    ),
    Mutant(
        "a renewal whose age counts from the answer",
        "transactions",
        "        for run in runs:\n            run.claim.renewed_at = now",
        "        now = clock.monotonic()\n        for run in runs:\n            run.claim.renewed_at = now",
        f"{BEHIND}[a pause while its lease was renewed-threads]",
    ),
    Mutant(
        "an unanswered COMMIT that is always believed",
        "transactions",
        "self.lifecycle.has_committed(connection, held) is False",
        "False",
        "tests/test_transactions.py::test_a_commit_that_was_not_carried_out_has_not_and_somebody_else_has_had_the_job",
    ),
    Mutant(
        "wake-ups without polls",
        "rest",
        "self._next_poll = min(now + jittered(wait), until)",
        "self._next_poll = now + jittered(1e6 if hears and self._lit is not None else wait)",
        "tests/test_waking.py::test_an_idle_worker_never_waits_longer_than_its_interval_for_a_poll",
    ),
    Mutant(
        "a place in the line that is never left",
        "polling",
        "return None if now >= self._next_sweep else self._reached",
        "return self._reached",
        "tests/test_place.py::test_a_look_begins_where_the_last_one_ended_until_the_next_sweep_is_due",
    ),
    Mutant(
        "every claim begins at the beginning of the line",
        "polling",
        "return None if now >= self._next_sweep else self._reached",
        "return None",
        "tests/test_place.py::test_a_look_begins_where_the_last_one_ended_until_the_next_sweep_is_due",
    ),
    Mutant(
        "a day that is as long as the session's time zone says",
        "dialects",
        "return func.timezone(utc, func.timezone(utc, now, type_=DateTime()) + span, type_=TIMESTAMP)",
        "return now + span",
        "tests/test_execution.py::test_a_day_of_delay_is_24_hours_though_the_clocks_change_meanwhile",
    ),
    Mutant(
        "the worker's clock decides what is due",
        "statements",
        "            job.process_at <= statement_now(),\n            or_(job.claimed_until",
        "            job.process_at <= bindparam('mine', type_=job.process_at.type, callable_="
        "lambda: __import__('sa_proletarian').clock.system_clock()),\n            or_(job.claimed_until",
        "tests/test_clock.py::test_what_is_due_is_for_the_clock_of_the_database_to_say",
    ),
    Mutant(
        "the living taken for dead",
        "vigil",
        "alive = self._life.burning(connection, [self._place_of(name) for name in names])",
        "alive: set[str] = set()",
        "tests/faults/test_recovery.py::test_a_worker_that_lives_is_not_taken_for_dead_by_one_that_looks_often",
    ),
]


Trying = tuple[str, Mutant | None]
"""A test, and the mutant that it is to notice; none for the library as it is."""


class Failed(Exception):
    """There is nothing to judge: what was to be changed is not there, or the tests did not run."""


@dataclass(frozen=True)
class Turns:
    """What came of one test with several seeds: on the library as it is, or with a mutant."""

    test: str
    mutant: Mutant | None
    came: Counter[str]
    by: list[str]
    said: str
    seconds: float

    @property
    def number(self) -> int:
        return self.came.total()

    @property
    def good(self) -> bool:
        if self.mutant is None:
            return self.came["passed"] == self.number
        return self.came["caught"] >= self.number * 19 / 20

    @property
    def counted(self) -> int:
        return self.came["passed" if self.mutant is None else "caught"]


class Bench:
    """A copy of all files, in which the mutants are tried while the files themselves may go on changing."""

    def __init__(self, folder: Path, first: int, seeds: int) -> None:
        self.files = folder / "files"
        self.folder = folder
        self.first = first
        self.seeds = seeds
        self.commit = _git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")
        self.library = _git("rev-parse", "HEAD:sa_proletarian")[:12]
        for name in _git("ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
            if (ROOT / name).is_file():
                (self.files / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.files / name)

    def run(self, test: str, mutant: Mutant | None = None) -> Turns:
        """Run ``test`` with every seed."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            shutil.copytree(self.files / "sa_proletarian", folder / "sa_proletarian")
            if mutant is not None:
                apply(mutant, folder / "sa_proletarian" / f"{mutant.room}.py")
            begun = time.monotonic()
            turns, said = self._have_run(test, mutant.room if mutant is not None else "worker", folder)
        if len(turns) != self.seeds:
            raise Failed(f"the tests did not run: {said[-3000:]}")
        said = "\n".join(
            turn["said"] for turn in turns if turn["came"] != ("caught" if mutant else "passed") and "said" in turn
        )
        by = sorted({turn["by"] for turn in turns if turn["came"] == "caught"})
        return Turns(test, mutant, Counter(turn["came"] for turn in turns), by, said, time.monotonic() - begun)

    def _have_run(self, test: str, room: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
        options = ["-q", "-p", "no:cacheprovider", "-p", "machinery.turns", f"--seed={self.first}", f"--turns={self.seeds}"]
        options += [f"--turns-to={folder}/turns", f"--turns-of={folder}", "--turns-room"]
        options.append(f"sa_proletarian.{room.replace('/', '.')}")
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", *options, test],
            cwd=self.files,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(self.files / "tests" / "faults")])},
            capture_output=True,
            text=True,
            check=False,
        )
        written = folder / "turns"
        return json.loads(written.read_text()) if written.exists() else [], done.stdout + done.stderr

    def record(self, turns: Turns) -> None:
        """Write down what came of them; those of the library as it is have no mutant."""
        line: dict[str, Any] = {"mutant": None, "test": turns.test, "passed": turns.counted}
        if turns.mutant is not None:
            line = {"mutant": turns.mutant.name, "room": turns.mutant.room, "test": turns.test, "caught": turns.counted}
            line["by"] = turns.by
        line |= {"runs": turns.number, "seed": self.first, "seconds": round(turns.seconds, 1)}
        line |= {"at": datetime.now(UTC).isoformat(timespec="seconds"), "library": self.library, "commit": self.commit}
        with RUNS.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def has_passed(self, test: str) -> bool:
        """Whether it is written down that ``test`` has passed with these seeds, at this very commit."""
        if self.commit.endswith("+"):
            return False
        same = {"mutant": None, "test": test, "passed": self.seeds, "runs": self.seeds, "seed": self.first}
        same["commit"] = self.commit
        return any(json.loads(line).items() >= same.items() for line in RUNS.read_text().splitlines())


def apply(mutant: Mutant, room: Path) -> None:
    text = room.read_text()
    for old, new in ((mutant.old, mutant.new), mutant.also):
        if old and text.count(old) != 1:
            raise Failed(f"it no longer applies: {mutant.room} has {text.count(old)} times {old!r}")
        text = text.replace(old, new) if old else text
    compile(text, mutant.name, "exec")  # what cannot be read is noticed by everybody
    room.write_text(text)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of the names of the mutants to try; all by default")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    parser.add_argument("--record", action="store_true", help="write it down in docs/mutant-runs.jsonl")
    given = parser.parse_args()
    chosen = [one for one in MUTANTS if not given.names or any(name in one.name for name in given.names)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        Path(folder).chmod(0o755)  # a server may be another user
        bench = Bench(Path(folder), given.seed, given.seeds)
        controls: list[Trying] = [
            (test, None) for test in dict.fromkeys(one.test for one in chosen) if not bench.has_passed(test)
        ]
        broken = set(controls) - set(try_all(bench, controls, given.jobs, record=given.record))
        for test, _ in broken:
            print(f"fails on the library as it is, so that what it catches says nothing: {test}")
        to_try: list[Trying] = [(one.test, one) for one in chosen if (one.test, None) not in broken]
        caught = try_all(bench, to_try, given.jobs, record=given.record)
    print(f"{len(caught)} of {len(chosen)} mutants caught")
    return int(len(caught) < len(chosen))


def try_all(bench: Bench, what: list[Trying], jobs: int, *, record: bool) -> list[Trying]:
    """Run them, some at once; give those that came to what they should."""
    good = []
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(bench.run, *trying): trying for trying in what}
        for done in as_completed(running):
            test, mutant = trying = running[done]
            name = mutant.name if mutant is not None else "as it is"
            try:
                turns = done.result()
            except Failed as error:
                print(f"{name:60} BAD  {error}", flush=True)
                continue
            if turns.good:
                good.append(trying)
            if record:
                bench.record(turns)
            how = " ".join(f"{number} {came}" for came, number in turns.came.items())
            print(f"{name:60} {'good' if turns.good else 'BAD '} {turns.seconds:4.0f} s {how:20} {test}", flush=True)
            print(turns.said, end="\n" * bool(turns.said), flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
