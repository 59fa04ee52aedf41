"""Prove the suite: change one thing at a time in a copy of the library, and see whether the smallest fitting test notices.

    python tests/faults/mutants.py [--seeds 20] [--jobs 2] [--record] [name …]

For each mutant it prints in how many of the seeds it was caught. A test without a seed of its own runs once. It ends with 1
if a mutant was caught in fewer than 19 of 20 seeds, or no longer applies to the code; and it checks first that the tests
pass on the library as it is. With ``--record`` what came of it goes into docs/mutant-runs.jsonl, from which report.py draws
docs/mutants.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
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
PAUSES = "tests/test_pauses.py"
ISOLATION = "tests/test_execution.py::test_the_handlers_session_is_read_committed_whatever_the_database_says"
ONE_EACH = "tests/faults/test_processes.py"


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
        STATEFUL,
    ),
    Mutant(
        "a group's end without a fence",
        "statements",
        '.cte("fences")\n        mine = (job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)',
        '.cte("fences")\n        mine = (job.job_id == fences.c.job_id,)',
        STATEFUL,
    ),
    Mutant(
        "a reschedule without a fence",
        "statements",
        "update(self.job)\n            .where(job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)",
        "update(self.job)\n            .where(job.job_id == fences.c.job_id)",
        STATEFUL,
    ),
    Mutant(
        "a hold without a fence",
        "statements",
        ".where(job.job_id == job_id, job.claim_id == claim_id)\n            .with_for_update(key_share=True, of=self.job)",
        ".where(job.job_id == job_id, or_(claim_id.is_not(None)))\n"
        "            .with_for_update(key_share=True, of=self.job)",
        STATEFUL,
    ),
    Mutant(
        "a renewal without a fence",
        "statements",
        ".where(job.claim_id == fences.c.claim_id)\n            .with_for_update(key_share=True, skip_locked=True",
        ".with_for_update(key_share=True, skip_locked=True",
        STATEFUL,
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
        STATEFUL,
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
        "a swallowed SQL error taken for a success",
        "execution",
        "        run.hold.commit_session(session)\n",
        "        try:\n            run.hold.commit_session(session)\n        except Exception:\n"
        "            session.rollback()\n            run.hold.roll_back_to_lock()\n",
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
        ONE_EACH,
    ),
    Mutant(
        "no second look after a COMMIT without an answer",
        "execution",
        "return Report(run, outcomes.connection_died(error), committed=ruling)",
        "return Report(run, outcomes.connection_died(error))",
        ONE_EACH,
    ),
    Mutant(
        "a script's error taken for a failure",
        "execution",
        "            if trouble(error) is Trouble.DISCONNECTED:\n"
        "                return Report(run, outcomes.connection_died(error), committed=outcomes.RETURNED)\n",
        "",
        ONE_EACH,
    ),
    Mutant(
        "no second look after a script without an answer",
        "execution",
        "return Report(run, outcomes.connection_died(error), committed=outcomes.RETURNED)",
        "return Report(run, outcomes.connection_died(error))",
        ONE_EACH,
    ),
    Mutant(
        "a lost connection counted as an attempt",
        "outcomes",
        'the job is not committed",\n        Move.RESCHEDULE,\n        "now + 1 s",\n        attempt=False,\n',
        'the job is not committed",\n        Move.RESCHEDULE,\n        "now + 1 s",\n',
        ONE_EACH,
    ),
    Mutant(
        "an interruption counted as an attempt",
        "outcomes",
        'Move.RELEASE, "at once, place in line kept", attempt=False',
        'Move.RELEASE, "at once, place in line kept", attempt=True',
        "tests/faults/test_f14_signals.py::test_signals_stop_a_worker_in_time_and_free_what_it_had",
    ),
    Mutant(
        "AUTOCOMMIT accepted",
        "connections",
        'if any(str(level).upper() == "AUTOCOMMIT" for level in levels):',
        "if False:",
        "tests/test_connections.py",
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
        "tests/faults/test_f08_isolation.py",
    ),
    Mutant(
        "an idle timeout that ends the held transaction",
        "statements",
        '_said("idle_in_transaction_session_timeout"), "0", True',
        '_said("idle_in_transaction_session_timeout"), "1s", True',
        "tests/faults/test_f07_server_timeouts.py",
    ),
    Mutant(
        "now() for retries",
        "dialects",
        'return "clock_timestamp()"',
        'return "now()"',
        "tests/test_execution.py",
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
        "tests/test_worker.py",
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
        "tests/test_mariadb.py",
    ),
    Mutant(
        "a settling without a fence on MariaDB",
        "mysql/lifecycle",
        "for job_id, fence in found.items() if fence == fences[job_id]}",
        "for job_id, fence in found.items()}",
        "tests/test_mariadb.py",
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
        "tests/test_execution.py",
    ),
    Mutant(
        "a stale claim that is begun",
        "execution",
        "if renewed_at and now - renewed_at > STALE * self.transactions.lease.total_seconds():",
        "if False:",
        PAUSES,
    ),
    Mutant(
        "a stale claim that is renewed",
        "feeder",
        "        self._take_back(lambda run: run.claim.renewed_at < stale, lambda run: INTERRUPTED)\n",
        "",
        PAUSES,
        also=("        old = [run for run in old if run.started_at is not None or run.claim.renewed_at >= stale]\n", ""),
    ),
    Mutant(
        "a claim whose age counts from the answer",
        "transactions",
        "        # since it was asked for: if",
        "        now = clock.monotonic()\n        # if",
        PAUSES,
    ),
    Mutant(
        "a claim by script whose age counts from the answer",
        "transactions",
        "        # since it was asked for, as above",
        "        now = clock.monotonic()",
        PAUSES,
    ),
    Mutant(
        "a renewal whose age counts from the answer",
        "transactions",
        "        for run in runs:\n            run.claim.renewed_at = now",
        "        now = clock.monotonic()\n        for run in runs:\n            run.claim.renewed_at = now",
        PAUSES,
    ),
    Mutant(
        "an unanswered COMMIT that is always believed",
        "transactions",
        "self.lifecycle.has_committed(connection, held) is False",
        "False",
        "tests/test_transactions.py",
    ),
    Mutant(
        "wake-ups without polls",
        "rest",
        "self._next_poll = min(now + jittered(wait), until)",
        "self._next_poll = now + jittered(1e6 if hears and self._lit is not None else wait)",
        "tests/test_waking.py::test_a_worker_that_can_be_woken_polls_all_the_same",
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
        "tests/faults/test_f18_bloat.py::test_claims_do_not_step_over_the_dead_rows_that_a_held_claim_keeps",
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
        "__import__('sa_proletarian').clock.system_clock),\n            or_(job.claimed_until",
        "tests/faults/test_f15_clocks.py::test_workers_with_wrong_clocks_begin_nothing_early_and_nothing_late",
    ),
    Mutant(
        "the living taken for dead",
        "vigil",
        "alive = beacons.burning(connection, LIFE, [replace(self._place, subject=name) for name in names])",
        "alive: set[str] = set()",
        "tests/faults/test_recovery.py",
    ),
]


def run_tests(mutant: Mutant | None, test: str, seeds: int) -> tuple[int, int, str]:
    """Run ``test`` on a copy of the library; give how many runs failed, how many there were, and the end of what it said."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        package = Path(folder) / "sa_proletarian"
        shutil.copytree(ROOT / "sa_proletarian", package, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            room = package / f"{mutant.room}.py"
            text = room.read_text().replace(mutant.old, mutant.new)
            room.write_text(text.replace(*mutant.also) if mutant.also[0] else text)
        options = ["-q", "-p", "no:cacheprovider", f"--seeds={seeds}", *(() if has_seed(test) else ("-x",))]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", *options, test],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)", done.stdout)}
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    return failed, failed + counts.get("passed", 0), done.stdout[-1500:]


def judge(mutant: Mutant, seeds: int) -> tuple[Mutant, bool, str]:
    source = (ROOT / "sa_proletarian" / f"{mutant.room}.py").read_text()
    if source.count(mutant.old) != 1:
        return mutant, False, f"no longer applies: {mutant.room} has its text {source.count(mutant.old)} times"
    failed, ran, said = run_tests(mutant, mutant.test, seeds)
    if not ran:
        return mutant, False, f"the tests did not run: {said}"
    if not has_seed(mutant.test):  # several tests, of which one must notice
        return mutant, failed > 0, f"{int(failed > 0)}/1"
    return mutant, failed >= ran * 19 / 20, f"{failed}/{ran}"


def record(mutant: Mutant, how: str) -> None:
    """Write down in how many runs a mutant was caught; of one that did not run there is nothing to say."""
    if re.fullmatch(r"\d+/\d+", how) is None:
        return
    caught, runs = map(int, how.split("/"))
    line: dict[str, Any] = {"mutant": mutant.name, "room": mutant.room, "test": mutant.test, "caught": caught, "runs": runs}
    line |= {"at": datetime.now(UTC).isoformat(timespec="seconds"), "library": _git("rev-parse", "HEAD:sa_proletarian")[:12]}
    line["commit"] = _git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")
    with RUNS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def has_seed(test: str) -> bool:
    """Say whether each failure is one seed's: the file has one test, which takes a seed, or one is named in tests/faults."""
    return test == STATEFUL or ("::" in test and "/faults/" in test)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of the names of the mutants to try; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    parser.add_argument("--record", action="store_true", help="write it down in docs/mutant-runs.jsonl")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests on the library as it is")
    given = parser.parse_args()
    chosen = [one for one in MUTANTS if not given.names or any(name in one.name for name in given.names)]
    bad = 0
    for test in () if given.no_baseline else sorted({one.test for one in chosen}):
        failed, ran, said = run_tests(None, test, 1)
        print(f"{'as it is':50} {ran - failed}/{ran} pass   {test}", flush=True)
        if failed or not ran:
            print(said)
            return 2
    with ThreadPoolExecutor(given.jobs) as pool:
        for judged in as_completed([pool.submit(judge, one, given.seeds) for one in chosen]):
            mutant, caught, how = judged.result()
            bad += not caught
            if given.record:
                record(mutant, how)
            print(f"{mutant.name:50} {'caught' if caught else 'MISSED'} {how:6} {mutant.test}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutants caught")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
