"""Retry strategies: Proletarian's own published tables first, then the exponential curve."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_proletarian import Retry, exponential
from sa_proletarian.retry import LONGEST_DELAY, RetrySpec, retry_spec, unjittered

ZERO = timedelta(0)
ONE = timedelta(seconds=1)
TWO = timedelta(seconds=2)

spans = st.timedeltas(min_value=ZERO, max_value=LONGEST_DELAY)
factors = st.one_of(st.integers(1, 10), st.floats(1, 1e300))
attempts = st.one_of(st.integers(1, 100), st.integers(1, 2**31 - 1))


def milliseconds(values):
    return None if values is None else [timedelta(milliseconds=value) for value in values]


# the table of retry-data-test: (strategy, attempts) -> retries left, delay until the next run
@pytest.mark.parametrize(
    ("retries", "delays", "attempts", "retries_left", "delay"),
    [
        (2, [1000, 2000], 2, 1, TWO),
        # instant retries
        (0, None, 1, 0, None),
        (1, None, 1, 1, ZERO),
        (2, None, 1, 2, ZERO),
        (1, None, 2, 0, None),
        (5, None, 2, 4, ZERO),
        (5, None, 3, 3, ZERO),
        # instant retries, with no delays or zero as the only one
        (1, None, 1, 1, ZERO),
        (1, [], 1, 1, ZERO),
        (1, [0], 1, 1, ZERO),
        # future retries
        (1, [1000], 1, 1, ONE),
        (2, [1000], 1, 2, ONE),
        (2, [1000], 2, 1, ONE),
        (2, [1000, 2000], 2, 1, TWO),
        (10, [1000, 2000], 3, 8, TWO),
        (10, [1000, 2000], 4, 7, TWO),
    ],
)
def test_retry_spec_is_proletarians_retry_data(retries, delays, attempts, retries_left, delay):
    assert retry_spec(Retry(retries, milliseconds(delays)), attempts) == RetrySpec(retries_left, delay)


@pytest.mark.parametrize(
    ("retries", "delays"),
    [(0, None), (1, None), (10, None), (10, []), (10, [0]), (10, [1000]), (2, [2000, 4000]), (2, [2000, 4000, 8000, 8000])],
)
def test_what_proletarian_calls_a_valid_strategy_is_one(retries, delays):
    Retry(retries, milliseconds(delays))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry(None),
        lambda: Retry(),
        lambda: Retry({}),
        lambda: Retry(1.1),
        lambda: Retry(-1),
        lambda: Retry(1, delays=(span for span in ())),  # Proletarian: '() is no vector
        lambda: Retry(1, delays=[timedelta(milliseconds=-1)]),
    ],
)
def test_what_proletarian_calls_an_invalid_strategy_is_refused(make):
    with pytest.raises((TypeError, ValueError)):
        make()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Retry(True), TypeError, "retries must be an int, got True"),
        (lambda: Retry("3"), TypeError, "retries must be an int, got '3'"),
        (lambda: Retry(-2), ValueError, "must not be negative, got -2"),
        (lambda: Retry(1, [1.5]), TypeError, "a delay must be a timedelta, got 1.5"),
        (lambda: Retry(1, [5]), TypeError, "a delay must be a timedelta, got 5"),
        (lambda: Retry(1, ONE), TypeError, "delays must be a list or tuple"),
        (lambda: Retry(1, [timedelta.max]), ValueError, "between 0 and 3650 days"),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_came(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_no_job_has_been_attempted_less_than_once():
    with pytest.raises(ValueError, match="at least 1"):
        retry_spec(Retry(1), 0)


def test_later_changes_to_the_list_of_delays_do_not_change_the_strategy():
    delays = [ONE]
    retry = Retry(1, delays)
    delays.append("nonsense")
    assert retry.delays == (ONE,)
    assert hash(retry) == hash(Retry(1, (ONE,)))


@given(st.integers(0, 50), st.lists(spans, max_size=5), st.integers(1, 60))
def test_a_job_runs_once_and_then_as_often_as_there_are_retries(retries, delays, attempts):
    spec = retry_spec(Retry(retries, delays), attempts)
    assert (spec.delay is not None) == (attempts <= retries)
    if spec.delay is not None:
        assert spec.retries_left == retries - attempts + 1 > 0
        assert spec.delay == (delays[min(attempts, len(delays)) - 1] if delays else ZERO)


# exponential


@given(attempts, spans, factors, spans)
def test_the_exponential_curve_never_exceeds_its_cap_and_never_overflows(attempts, initial, factor, cap):
    assert ZERO <= unjittered(attempts, initial=initial, factor=factor, cap=cap) <= cap


@given(attempts, spans, factors, spans)
def test_the_exponential_curve_never_falls(attempts, initial, factor, cap):
    shorter = unjittered(attempts, initial=initial, factor=factor, cap=cap)
    assert shorter <= unjittered(attempts + 1, initial=initial, factor=factor, cap=cap)


@given(attempts, spans, factors, spans, st.floats(0, 1), st.floats(0, 1))
def test_jitter_stays_within_its_share_and_below_the_cap(attempts, initial, factor, cap, jitter, chance):
    strategy = exponential(7, initial=initial, factor=factor, cap=cap, jitter=jitter, chance=lambda: chance)
    retry = strategy(SimpleNamespace(attempts=attempts), ValueError())
    exact = unjittered(attempts, initial=initial, factor=factor, cap=cap)
    [delay] = retry.delays
    a_rounding = timedelta(microseconds=1) + exact / 10**12
    assert retry.retries == 7
    assert ZERO <= exact * (1 - jitter) - a_rounding <= delay or exact * (1 - jitter) < a_rounding
    assert delay <= min(cap, exact * (1 + jitter) + a_rounding)


def test_without_jitter_the_delays_are_exact():
    strategy = exponential(10, initial=ONE, factor=2, cap=timedelta(seconds=10), jitter=0)
    delays = [strategy(SimpleNamespace(attempts=attempts), ValueError()).delays[0] for attempts in range(1, 7)]
    assert delays == [timedelta(seconds=seconds) for seconds in (1, 2, 4, 8, 10, 10)]


def test_with_jitter_the_extremes_of_chance_are_the_extremes_of_the_delay():
    def delay(chance):
        strategy = exponential(3, initial=TWO, jitter=0.25, chance=lambda: chance)
        return strategy(SimpleNamespace(attempts=1), ValueError()).delays[0]

    assert [delay(0.0), delay(0.5), delay(1.0)] == [timedelta(seconds=1.5), TWO, timedelta(seconds=2.5)]


def test_jobs_that_failed_together_do_not_come_back_together():
    strategy = exponential(3, initial=timedelta(minutes=1))
    assert len({strategy(SimpleNamespace(attempts=1), ValueError()).delays[0] for _ in range(100)}) > 90


def test_the_defaults_reach_an_hour_after_twelve_doublings():
    curve = [unjittered(n, initial=ONE, factor=2.0, cap=timedelta(hours=1)) for n in (1, 2, 12, 13, 10**6)]
    assert curve == [ONE, TWO, timedelta(seconds=2048), timedelta(hours=1), timedelta(hours=1)]


def test_a_whole_factor_and_the_most_attempts_there_can_be_take_no_time_and_no_memory():
    # 2 ** 2147483646 as an int would be 256 MB
    assert unjittered(2**31 - 1, initial=ONE, factor=2, cap=TWO) == TWO


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"retries": -1}, ValueError),
        ({"retries": 1.5}, TypeError),
        ({"initial": 1}, TypeError),
        ({"initial": -ONE}, ValueError),
        ({"cap": timedelta.max}, ValueError),
        ({"cap": 60}, TypeError),
        ({"factor": 0.5}, ValueError),
        ({"factor": float("nan")}, ValueError),
        ({"jitter": -0.1}, ValueError),
        ({"jitter": 1.1}, ValueError),
        ({"jitter": float("nan")}, ValueError),
    ],
)
def test_exponential_refuses_nonsense_when_it_is_made_not_when_a_job_has_failed(options, error):
    with pytest.raises(error):
        exponential(**{"retries": 3, **options})
