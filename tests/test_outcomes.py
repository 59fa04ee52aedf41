"""Every line of the table of fates: what leads to it, and what it then says."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_proletarian import Cancel, Outcome, Retry, Snooze, Status, StrategyFailed, exponential, outcomes
from sa_proletarian.errors import Interrupted, JobCrashed
from sa_proletarian.outcomes import FATES, Fate, Move, Ruling, rule

MINUTE = timedelta(minutes=1)
ONCE_MORE = Retry(1, [MINUTE])
LIFECYCLE = Path(__file__).parents[1] / "docs" / "lifecycle.md"


def job(attempts=1):
    return SimpleNamespace(attempts=attempts)


def raised(error):
    """Give ``error`` as it looks when a handler has raised it."""
    try:
        raise error
    except BaseException as caught:
        return caught


# outcome, what leads to it: (move, status, attempt counts, crash counts, ended by itself), delay
TABLE = {
    Outcome.RETURNED: (rule(None, job(), ONCE_MORE), (Move.ARCHIVE, "success", True, False, True), None),
    Outcome.RETRIED: (rule(ValueError(), job(), ONCE_MORE), (Move.RESCHEDULE, None, True, False, True), MINUTE),
    Outcome.GAVE_UP: (rule(ValueError(), job(2), ONCE_MORE), (Move.ARCHIVE, "failure", True, False, True), None),
    Outcome.SNOOZED: (rule(Snooze(MINUTE), job(), None), (Move.RESCHEDULE, None, False, False, True), MINUTE),
    Outcome.CANCELLED: (rule(Cancel("gone"), job(), ONCE_MORE), (Move.ARCHIVE, "cancelled", True, False, True), None),
    Outcome.INTERRUPTED: (rule(Interrupted(), job(), ONCE_MORE), (Move.RELEASE, None, False, False, False), None),
    Outcome.UNAVAILABLE: (
        outcomes.unavailable(OSError("full")),
        (Move.RESCHEDULE, None, False, False, False),
        timedelta(seconds=1),
    ),
    Outcome.CONNECTION_DIED: (
        outcomes.connection_died(OSError("reset")),
        (Move.RESCHEDULE, None, False, True, False),
        timedelta(seconds=1),
    ),
    Outcome.PROCESS_DIED: (
        outcomes.process_died(OSError("gone")),
        (Move.RESCHEDULE, None, False, True, False),
        timedelta(seconds=1),
    ),
    Outcome.CRASHED: (outcomes.crashed(5), (Move.ARCHIVE, "crashed", True, False, True), None),
    Outcome.CLAIM_LOST: (outcomes.claim_lost(), (Move.LEAVE, None, True, False, True), None),
    Outcome.PARKED: (outcomes.parked(ValueError("fk"), 1), (Move.RESCHEDULE, None, True, False, True), MINUTE),
}


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_one_fate(outcome):
    ruling, expected, delay = TABLE[outcome]
    assert ruling.outcome is outcome
    fate = ruling.fate
    assert (fate.move, fate.status, fate.attempt, fate.crash, fate.reported) == expected
    assert ruling.delay == delay


def test_the_table_is_complete_and_consistent():
    assert set(FATES) == set(Outcome)
    assert {fate.status for fate in FATES.values()} - {None} == set(Status)
    for fate in FATES.values():
        assert (fate.move is Move.ARCHIVE) == (fate.status is not None)
        assert not (fate.attempt and fate.crash), "a run is an attempt or a crash, not both"


def test_on_failed_is_due_after_failure_and_crash_only():
    assert {outcome for outcome, (ruling, _, _) in TABLE.items() if ruling.failed} == {Outcome.GAVE_UP, Outcome.CRASHED}


def test_archived_statuses_are_plain_words():
    assert [str(status) for status in Status] == ["success", "failure", "cancelled", "crashed"]


# the words that are kept


def test_the_error_of_a_failed_run_is_kept_with_the_frames_of_the_handler():
    ruling = rule(raised(ValueError("no stock")), job(), ONCE_MORE)
    assert ruling.error.startswith("ValueError: no stock\n\nTraceback (most recent call last):\n")
    assert "test_outcomes.py" in ruling.error
    assert isinstance(ruling.cause, ValueError)


def test_the_reason_of_a_cancelled_job_is_kept():
    assert rule(Cancel("customer left"), job(), None).error == "Cancel: customer left"


def test_what_leaves_no_trace_leaves_the_last_error_as_it_was():
    for outcome in (Outcome.RETURNED, Outcome.SNOOZED, Outcome.INTERRUPTED, Outcome.CLAIM_LOST):
        assert TABLE[outcome][0].error is None


def test_a_crashed_job_says_how_often_its_process_died():
    ruling = outcomes.crashed(5)
    assert "died 5 times" in ruling.error
    assert isinstance(ruling.cause, JobCrashed)


def test_a_parked_job_names_what_refuses_it_and_waits_longer_from_time_to_time_up_to_a_day():
    delays = [outcomes.parked(ValueError("fk_invoice"), attempts).delay for attempts in (0, 1, 2, 3, 11, 12, 2**31)]
    day = timedelta(days=1)
    assert delays == [MINUTE, MINUTE, 2 * MINUTE, 4 * MINUTE, 1024 * MINUTE, day, day]
    assert "fk_invoice" in outcomes.parked(ValueError("fk_invoice"), 1).error


# what counts as failure


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RecursionError(), MemoryError(), BaseException("odd")]
)
def test_whatever_a_handler_raises_is_its_failure(error):
    assert rule(error, job(), None).outcome is Outcome.GAVE_UP
    assert rule(error, job(), ONCE_MORE).outcome is Outcome.RETRIED


@pytest.mark.parametrize(
    "make", [lambda: Snooze(5), lambda: Snooze(1.5), lambda: Snooze(None), lambda: Cancel(7), lambda: Cancel(None)]
)
def test_control_flow_takes_spans_and_texts_only(make):
    with pytest.raises(TypeError, match="Snooze takes a timedelta|Cancel takes a text"):
        make()


def test_nobody_snoozes_into_the_past():
    with pytest.raises(ValueError, match="non-negative"):
        Snooze(timedelta(seconds=-1))
    assert rule(Snooze(timedelta(0)), job(), None).delay == timedelta(0)


# strategies


def test_no_strategy_gives_up_and_has_no_spec():
    ruling = rule(ValueError(), job(), None)
    assert (ruling.outcome, ruling.spec) == (Outcome.GAVE_UP, None)


def test_a_function_is_asked_with_the_job_and_the_error():
    asked = []
    failed, error = job(3), ValueError("x")

    def strategy(*arguments):
        asked.append(arguments)
        return Retry(3, [MINUTE])

    ruling = rule(error, failed, strategy)
    assert asked == [(failed, error)]
    assert (ruling.outcome, ruling.delay, ruling.spec.retries_left) == (Outcome.RETRIED, MINUTE, 1)


def test_a_function_that_answers_none_gives_up():
    ruling = rule(ValueError(), job(), lambda job, error: None)
    assert (ruling.outcome, ruling.strategy_error) == (Outcome.GAVE_UP, None)


def test_a_strategy_that_has_run_out_tells_that_no_retries_are_left():
    assert rule(ValueError(), job(2), ONCE_MORE).spec.retries_left == 0


@pytest.mark.parametrize("answer", [True, 3, "again", MINUTE, [MINUTE], (1, MINUTE), {"retries": 1}, Retry, object()])
def test_a_strategy_that_answers_nonsense_gives_up_and_is_reported(answer):
    error = raised(ValueError("the real one"))
    ruling = rule(error, job(), lambda job, error: answer)
    assert (ruling.outcome, ruling.cause) == (Outcome.GAVE_UP, error)
    assert ruling.error.startswith("ValueError: the real one"), "the archive keeps the handler's error, not the strategy's"
    assert isinstance(ruling.strategy_error, StrategyFailed)
    assert f"it returned a {type(answer).__name__}" in str(ruling.strategy_error)


@pytest.mark.parametrize("failure", [ValueError("oops"), SystemExit(2), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_strategy_that_raises_gives_up_and_is_reported(failure):
    def strategy(job, error):
        raise failure

    ruling = rule(ValueError("the real one"), job(), strategy)
    assert ruling.outcome is Outcome.GAVE_UP
    assert ruling.strategy_error.__cause__ is failure
    assert type(failure).__name__ in str(ruling.strategy_error)


def test_a_strategy_that_takes_other_arguments_gives_up_and_is_reported():
    assert isinstance(rule(ValueError(), job(), lambda: None).strategy_error, StrategyFailed)


@pytest.mark.parametrize("attempts", [0, -1, None, "many"])
@pytest.mark.parametrize("strategy", [ONCE_MORE, lambda job, error: ONCE_MORE, exponential(3)])
def test_a_handler_that_spoils_the_count_of_its_job_ends_in_failure_and_not_in_an_error_of_ours(attempts, strategy):
    ruling = rule(ValueError("the real one"), job(attempts), strategy)
    assert ruling.outcome in (Outcome.GAVE_UP, Outcome.RETRIED)
    assert ruling.error.startswith("ValueError: the real one")


@given(st.integers(0, 20), st.integers(1, 30))
def test_a_job_is_retried_exactly_as_often_as_its_strategy_says(retries, attempts):
    ruling = rule(ValueError(), job(attempts), Retry(retries, [MINUTE]))
    assert ruling.outcome is (Outcome.RETRIED if attempts <= retries else Outcome.GAVE_UP)


# the docs


def drawn(fates):
    """Draw the table of the docs."""
    head = "| outcome | when | the row | due again | attempt | crash |\n|---|---|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(cells(outcome, fate))} |\n" for outcome, fate in fates.items())


def cells(outcome: Outcome, fate: Fate):
    row = {
        Move.ARCHIVE: f"archived as `{fate.status}`",
        Move.RESCHEDULE: "stays, with a new due time",
        Move.RELEASE: "stays as it was",
        Move.LEAVE: "not touched",
    }[fate.move]
    counts = ["yes" if count else "no" for count in (fate.attempt, fate.crash)]
    if outcome in (Outcome.CRASHED, Outcome.CLAIM_LOST):  # nothing was run to its end here that could count
        counts = ["–", "–"]
    return [f"`{outcome}`", fate.when, row, fate.due, *counts]


def test_the_docs_show_the_table_that_the_worker_acts_by():
    _, rest = LIFECYCLE.read_text().split("<!-- the table of FATES -->\n")
    shown, _ = rest.split("<!-- the end of the table -->")
    assert shown == "\n" + drawn(FATES) + "\n", "paste this into docs/lifecycle.md:\n\n" + drawn(FATES)


def test_a_ruling_is_a_value():
    assert Ruling(Outcome.RETURNED) == outcomes.RETURNED
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcomes.RETURNED.delay = MINUTE
