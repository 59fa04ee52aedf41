"""The checker itself: a history that holds passes, and each thing that cannot be is named."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta

import pytest

from machinery.checker import History, check

EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)


def line(what, job, pid, at, attempt=1):
    return {"what": what, "job": job, "pid": pid, "at": at, "attempt": attempt}


def good():
    """Job a fails once and then succeeds; b is killed with process 2 and runs again; c fails for good; d does nothing."""
    return History(
        enqueued=[
            ("a", {"does": "write", "fails": 1}, "ok"),
            ("b", {"does": "write"}, "unknown"),
            ("c", {"does": "write", "status": "failure"}, "ok"),
            ("d", {"does": "idles"}, "ok"),
            ("e", {"does": "write"}, "fail"),
        ],
        business={"a", "b", "c", "d"},
        archived={
            "a": ("success", 2, EARLY, LATE),
            "b": ("success", 1, EARLY, LATE),
            "c": ("failure", 1, EARLY, LATE),
            "d": ("success", 1, EARLY, LATE),
        },
        effects=[("a", 2, LATE), ("b", 1, LATE)],
        ledger=[
            line("start", "a", 1, 1.0),
            line("end", "a", 1, 1.1),
            line("start", "b", 2, 1.2),
            line("start", "c", 1, 1.3),
            line("end", "c", 1, 1.4),
            line("start", "a", 1, 1.5, 2),
            line("end", "a", 1, 1.6, 2),
            line("start", "d", 1, 1.6),
            line("end", "d", 1, 1.7),
            line("start", "b", 1, 3.0),
            line("end", "b", 1, 3.1),
        ],
        events=[{"name": "job_finished", "job": "a"}, {"name": "job_finished", "job": "d"}],
        ended={1: 9.0, 2: 2.0},
        killed={2},
    )


def test_what_holds_passes():
    verdict = check(good())
    assert verdict, str(verdict)
    assert verdict.counts == {
        "jobs": 4,
        "starts": 6,
        "effects": 2,
        "unknown_enqueues": 1,
        "lost": 0,
        "duplicates": 0,
    }


SPOILT = {
    "lost": lambda h: (h.archived.pop("d"), h.business.discard("d")),
    "in both tables": lambda h: h.left.add("d"),
    "left in the queue": lambda h: (h.archived.pop("d"), h.left.add("d"), h.events.pop()),
    "there although its transaction failed": lambda h: (
        h.archived.update(e=("success", 1, EARLY, LATE)),
        h.business.add("e"),
    ),
    "parted from its business row": lambda h: h.business.discard("b"),
    "from nowhere": lambda h: (h.left.add("f"), h.business.add("f")),
    "ended otherwise": lambda h: h.archived.update(d=("crashed", 1, EARLY, LATE)),
    "miscounted attempts": lambda h: h.archived.update(d=("success", 2, EARLY, LATE)),
    "finished before it was due": lambda h: h.archived.update(d=("success", 1, LATE, EARLY)),
    "took effect without an end": lambda h: h.effects.append(("e", 1, LATE)),
    "took effect more than once": lambda h: h.effects.append(("b", 1, LATE)),
    "took effect against its end": lambda h: h.effects.append(("c", 1, LATE)),
    "took no effect": lambda h: h.effects.pop(),
    "took effect by another attempt": lambda h: h.effects.__setitem__(0, ("a", 1, LATE)),
    "started before it was due": lambda h: h.effects.__setitem__(0, ("a", 2, EARLY - timedelta(seconds=1))),
    "numbered an attempt backwards": lambda h: h.ledger.append(line("start", "a", 2, 9.0, 1)),
    "ended without a start": lambda h: h.ledger.__delitem__(slice(7, 9)),
    "started more often than explained": lambda h: h.killed.clear(),
    "ran twice at once": lambda h: h.ended.update({2: 3.5}),
    "told twice that it finished": lambda h: h.events.append({"name": "job_finished", "job": "d"}),
    "told that it finished, and did not": lambda h: h.events.append({"name": "job_finished", "job": "c"}),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_cannot_be_is_named(kind):
    history = deepcopy(good())
    SPOILT[kind](history)
    assert kind in check(history).wrong


def test_who_tells_that_it_has_lost_its_claim_may_meet_its_successor():
    history = good()
    history.ended[2] = 3.5
    history.killed.clear()
    history.events.append({"name": "claim_lost", "job": "b", "pid": 2})
    assert check(history)


def test_a_paused_process_may_meet_its_successor():
    history = good()
    history.ended[2] = 3.5
    history.unlocked.add(2)
    assert check(history)
