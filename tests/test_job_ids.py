from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_proletarian import database_generated, job_ids, uuid7


@pytest.fixture
def clock(monkeypatch):
    """Let the test say what time it is, in nanoseconds, as if no id had been made before."""
    monkeypatch.setattr(job_ids, "_last", 0)
    return lambda *times: monkeypatch.setattr(job_ids, "unix_nanoseconds", iter(times).__next__)


def milliseconds(made: uuid.UUID) -> int:
    return made.int >> 80


def finer(made: uuid.UUID) -> int:
    return made.int >> 64 & 0xFFF


def test_has_the_layout_of_rfc_9562():
    made = uuid7()
    assert type(made) is uuid.UUID
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


@given(st.integers(0, (1 << 48) * 1_000_000 - 1))
def test_starts_with_the_milliseconds_and_goes_on_with_what_they_leave(nanoseconds):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_ids, "_last", 0)
        patch.setattr(job_ids, "unix_nanoseconds", lambda: nanoseconds)
        made = uuid7()
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    if nanoseconds >= 1_000_000:
        assert milliseconds(made) == nanoseconds // 1_000_000
        assert finer(made) == nanoseconds % 1_000_000 * 4096 // 1_000_000


def test_a_known_instant_gives_a_known_beginning(clock):
    clock(1_645_557_742_000_000_000)  # the example of RFC 9562, appendix A.6
    assert str(uuid7()).startswith("017f22e2-79b0-7")


def test_the_rest_is_random(clock):
    clock(*[10**18] * 1000)
    assert len({uuid7().int & (1 << 62) - 1 for _ in range(1000)}) == 1000


def test_ascends_faster_than_any_clock_ticks(clock):
    clock(*[10**18] * 10_000)
    made = [uuid7() for _ in range(10_000)]
    assert made == sorted(made)
    assert [value.bytes for value in made] == sorted({value.bytes for value in made}), "PostgreSQL compares the bytes"


def test_ascends_when_the_clock_steps_back_and_catches_up_with_it_later(clock):
    clock(2 * 10**18, 10**18, 10**18 + 1, 3 * 10**18)
    made = [uuid7() for _ in range(4)]
    assert made == sorted(made)
    assert milliseconds(made[2]) == 2 * 10**12
    assert milliseconds(made[3]) == 3 * 10**12


@given(st.lists(st.integers(10**15, 3 * 10**18), min_size=2, max_size=50))
def test_ascends_whatever_the_clock_does(times):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_ids, "_last", 0)
        patch.setattr(job_ids, "unix_nanoseconds", iter(times).__next__)
        made = [uuid7() for _ in times]
    assert all(earlier < later for earlier, later in zip(made, made[1:], strict=False))


def test_ascends_within_and_across_threads():
    together = threading.Barrier(8)

    def make(_):
        together.wait()
        return [uuid7() for _ in range(2000)]

    before = uuid7()
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(make, range(8)))
    after = uuid7()
    for batch in batches:
        assert batch == sorted(batch)
    made = [value for batch in batches for value in batch]
    assert len({value.int >> 64 for value in made}) == len(made), "no two share even their time part"
    assert before < min(made)
    assert max(made) < after


def test_a_process_forked_while_an_id_is_being_made_can_make_its_own():
    script = """
import os, signal, sys, warnings
from sa_proletarian import job_ids
warnings.simplefilter("ignore")
with job_ids._lock:
    child = os.fork()
    if not child:
        signal.alarm(10)
        job_ids.uuid7()
        os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=20, check=False).returncode == 7


def test_a_database_generated_id_is_left_to_the_database():
    assert database_generated() is None
