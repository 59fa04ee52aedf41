"""The pace of a worker, by numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_proletarian.polling import (
    LARGEST_BATCH,
    FinishRate,
    back_off,
    capacity,
    choose,
    is_last_chance,
    jittered,
    wanted,
)

chances = st.floats(0, 1, exclude_max=True)
rates = st.floats(0, 1e9)


@dataclass(frozen=True)
class Waiting:
    name: str
    crashes: int = 0


def waiting(*crashes: int) -> list[Waiting]:
    return [Waiting(f"job {number}", count) for number, count in enumerate(crashes)]


# how much


@pytest.mark.parametrize(
    ("slots", "per_second", "most"),
    [(1, 0, 1), (4, 0, 4), (4, 16, 8), (4, 100, 29), (4, 10_000, 500), (200, 800, 400), (600, 10_000, 600)],
)
def test_a_worker_may_hold_a_job_for_each_slot_and_a_quarter_seconds_work_behind_them(slots, per_second, most):
    assert capacity(slots, per_second) == most


@pytest.mark.parametrize(
    ("slots", "outstanding", "per_second", "count"),
    [
        (1, 0, 0, 1),
        (1, 1, 0, 0),
        (4, 3, 0, 1),
        (4, 4, 0, 0),
        (1, 14, 100, 0),  # more than half of the 25 behind the slot are still here
        (1, 13, 100, 13),
        (4, 2, 10_000, 498),
        (200, 301, 800, 0),  # many slots: the half is of what waits, not of what runs
        (200, 300, 800, 100),
    ],
)
def test_a_worker_claims_when_a_slot_is_free_or_half_of_what_waits_has_begun(slots, outstanding, per_second, count):
    assert wanted(slots, outstanding, per_second) == count


@given(st.integers(1, 200), st.integers(0, 1000), rates)
def test_a_worker_never_holds_more_than_its_capacity_and_never_leaves_a_slot_empty(slots, outstanding, per_second):
    count = wanted(slots, outstanding, per_second)
    if count > 0:
        assert outstanding + count == capacity(slots, per_second) <= max(slots, LARGEST_BATCH)
    if outstanding < slots:
        assert outstanding + count >= slots


# how fast


def test_the_finish_rate_of_a_steady_worker_comes_to_its_true_value():
    rate = FinishRate()
    for tick in range(1, 200):
        rate.finished(10, tick / 10)
    assert rate.per_second == pytest.approx(100, rel=0.02)


def test_the_finish_rate_forgets_half_in_a_half_life():
    rate = FinishRate(half_life=1.0, per_second=80.0)
    rate.finished(0, 0.0)
    rate.finished(0, 1.0)
    assert rate.per_second == pytest.approx(40)


def test_a_first_job_alone_says_nothing_about_the_rate():
    rate = FinishRate()
    rate.finished(1, 1000.0)
    assert rate.per_second == 0


def test_a_hundredth_of_a_second_says_enough_of_a_slot_that_ends_job_after_job():
    rate = FinishRate(slots=2)
    rate.finished(0, 0.0)
    rate.finished(10, 0.01)
    assert rate.per_second == pytest.approx(1_000)


def test_jobs_that_run_side_by_side_and_end_at_one_time_do_not_make_a_rate():
    rate = FinishRate(slots=20)
    rate.finished(0, 0.0)
    rate.finished(20, 0.02)
    assert rate.per_second == 0


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 100)), max_size=30))
def test_the_finish_rate_is_never_negative_nor_above_the_fastest_moment(steps):
    rate, now = FinishRate(), 0.0
    fastest = 0.0
    for count, span in steps:
        now += span
        rate.finished(count, now)
        fastest = max(fastest, 30_000 / 0.01)
        assert 0 <= rate.per_second <= fastest


# what


def test_jobs_without_crashes_are_claimed_together():
    jobs = waiting(0, 0, 0)
    choice = choose(jobs, ceiling=5, idle=True)
    assert (choice.run, choice.condemned, choice.solo, choice.wants_solitude) == (jobs, [], False, False)


def test_nothing_comes_of_nothing():
    choice = choose([], ceiling=5, idle=True)
    assert (choice.run, choice.condemned, choice.solo, choice.wants_solitude) == ([], [], False, False)


def test_a_suspect_whose_turn_it_is_is_claimed_alone():
    suspect, *_ = jobs = waiting(1, 0, 0)
    choice = choose(jobs, ceiling=5, idle=False)
    assert (choice.run, choice.solo) == ([suspect], False)


def test_a_suspect_further_back_in_line_is_left_for_its_turn():
    jobs = waiting(0, 3, 0)
    assert choose(jobs, ceiling=5, idle=True).run == [jobs[0], jobs[2]]


def test_a_last_chance_waits_until_nothing_else_runs_here():
    suspect, *_ = jobs = waiting(4, 0)
    busy = choose(jobs, ceiling=5, idle=False)
    assert (busy.run, busy.solo, busy.wants_solitude) == ([], False, True)
    idle = choose(jobs, ceiling=5, idle=True)
    assert (idle.run, idle.solo, idle.wants_solitude) == ([suspect], True, False)


def test_a_job_at_the_ceiling_is_condemned_and_holds_up_nobody():
    condemned, *rest = waiting(5, 0, 0)
    choice = choose([condemned, *rest], ceiling=5, idle=False)
    assert (choice.run, choice.condemned) == (rest, [condemned])


@given(st.lists(st.integers(0, 8), max_size=20), st.integers(1, 6), st.booleans())
def test_no_suspect_ever_shares_a_batch_and_every_job_has_its_turn(crashes, ceiling, idle):
    jobs = waiting(*crashes)
    choice = choose(jobs, ceiling=ceiling, idle=idle)
    assert choice.condemned == [job for job in jobs if job.crashes >= ceiling]
    assert not set(choice.run) & set(choice.condemned)
    if any(job.crashes for job in choice.run):
        assert len(choice.run) == 1
    if any(is_last_chance(job.crashes, ceiling) for job in choice.run):
        assert idle and choice.solo
    able = [job for job in jobs if job.crashes < ceiling]
    if able:
        assert choice.wants_solitude or choice.run[0] == able[0], "who is first in line is not passed over"
        assert not (choice.wants_solitude and idle), "an idle worker waits for nothing"


@pytest.mark.parametrize(
    ("crashes", "ceiling", "last"), [(0, 1, False), (3, 5, False), (4, 5, True), (5, 5, False), (1, 2, True)]
)
def test_the_last_chance_is_the_crash_before_the_ceiling(crashes, ceiling, last):
    assert is_last_chance(crashes, ceiling) is last


# how long


def test_back_off_doubles_up_to_two_seconds():
    waits = [back_off(failures, chance=lambda: 0.5) for failures in range(1, 9)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])


@given(st.integers(1, 10**9), chances)
def test_back_off_is_never_a_hot_loop_and_never_longer_than_half_more_than_two_seconds(failures, chance):
    assert 0.05 <= back_off(failures, chance=lambda: chance) <= 3.0


@given(st.integers(1, 1000), chances)
def test_back_off_never_falls_while_failures_go_on(failures, chance):
    assert back_off(failures, chance=lambda: chance) <= back_off(failures + 1, chance=lambda: chance)


@given(st.floats(0, 1e6), chances)
def test_a_wait_is_jittered_by_a_tenth_at_most(seconds, chance):
    assert seconds * 0.899999 <= jittered(seconds, chance=lambda: chance) <= seconds * 1.100001


def test_workers_that_started_together_do_not_stay_in_step():
    assert len({jittered(0.1) for _ in range(100)}) > 90
