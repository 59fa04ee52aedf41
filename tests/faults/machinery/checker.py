"""The offline checker: reads what all the witnesses of a run say, and names everything that cannot be.

It asks the library nothing and knows nothing of how it works; the witnesses are rows, ledgers and events.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """What the witnesses say.

    :ivar enqueued: ``(job, payload, outcome)`` for each enqueuing transaction; the outcome is ok, fail or unknown.
    :ivar business: the ids whose business row, written in the same transactions, is there.
    :ivar archived: ``{job: (status, attempts, process_at, finished_at)}``.
    :ivar left: the ids in the job table.
    :ivar effects: ``(job, attempt, at)`` for each row that a handler has written.
    :ivar ledger: starts and ends, told by the handlers.
    :ivar ended: the pids whose processes have ended, and when.
    :ivar killed: those of them that were killed.
    :ivar unlocked: the pids that may have lost a claim while they ran: they were paused, or their connections were cut.
    """

    enqueued: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    business: set[str] = field(default_factory=set)
    archived: dict[str, tuple[str, int, Any, Any]] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    effects: list[tuple[str, int, Any]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[int, float] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    unlocked: set[int] = field(default_factory=set)


EXPLAINED = {"claim_lost", "connection_unavailable", "connection_died", "conflict_retried", "job_interrupted"}
"""Events after which a job starts once more."""


@dataclass
class Verdict:
    """What the checker has found: the sentences name the first few of each kind."""

    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, what: object) -> None:
        self.wrong[kind].append(str(what))

    def __bool__(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {len(those)}, as {those[:3]}" for kind, those in self.wrong.items())


def check(history: History, *, all_done: bool = True) -> Verdict:
    """Check everything; ``all_done`` says that the queue should be empty by now."""
    verdict = Verdict()
    payloads = {job: payload for job, payload, _ in history.enqueued}
    _check_enqueued(history, verdict)
    _check_ends(history, payloads, verdict)
    _check_effects(history, payloads, verdict)
    _check_starts(history, payloads, verdict)
    _check_overlaps(history, verdict)
    _check_events(history, verdict)
    if all_done and history.left:
        for job in history.left:
            verdict.add("left in the queue", job)
    verdict.counts = {
        "jobs": len(history.archived) + len(history.left),
        "starts": sum(line["what"] == "start" for line in history.ledger),
        "effects": len(history.effects),
        "unknown_enqueues": sum(outcome == "unknown" for _, _, outcome in history.enqueued),
        "lost": len(verdict.wrong.get("lost", ())),
        "duplicates": len(verdict.wrong.get("took effect more than once", ())),
    }
    return verdict


def _check_enqueued(history: History, verdict: Verdict) -> None:
    there = {*history.archived, *history.left}
    for job in set(history.archived) & history.left:
        verdict.add("in both tables", job)
    for job, _, outcome in history.enqueued:
        if outcome == "ok" and job not in there:
            verdict.add("lost", job)
        if outcome == "fail" and job in there:
            verdict.add("there although its transaction failed", job)
        if (job in there) != (job in history.business):
            verdict.add("parted from its business row", job)
    for job in there - {job for job, _, _ in history.enqueued}:
        verdict.add("from nowhere", job)


def _check_ends(history: History, payloads: dict[str, Any], verdict: Verdict) -> None:
    for job, (status, attempts, process_at, finished_at) in history.archived.items():
        expected = payloads[job].get("status", "success")
        if status != expected:
            verdict.add("ended otherwise", f"{job}: {status}, not {expected}")
        elif status == "success" and attempts != payloads[job].get("fails", 0) + 1:
            verdict.add("miscounted attempts", f"{job}: {attempts} for {payloads[job]}")
        if finished_at < process_at:
            verdict.add("finished before it was due", job)


def _check_effects(history: History, payloads: dict[str, Any], verdict: Verdict) -> None:
    count = Counter(job for job, _, _ in history.effects)
    for job in count.keys() - history.archived.keys():
        verdict.add("took effect without an end", job)
    for job, (status, *_) in history.archived.items():
        expected = int(status == "success" and payloads[job]["does"] not in ("idles", "reads"))
        if count[job] > expected:
            verdict.add("took effect more than once" if expected else "took effect against its end", job)
        if count[job] < expected:
            verdict.add("took no effect", job)
    for job, attempt, at in history.effects:
        status, attempts, process_at, _ = history.archived.get(job, (None, attempt, at, at))
        if attempt != attempts:
            verdict.add("took effect by another attempt", f"{job}: {attempt} instead of {attempts}")
        if at < process_at:
            verdict.add("started before it was due", job)


def _check_starts(history: History, payloads: dict[str, Any], verdict: Verdict) -> None:
    """Every start is the last one, a planned failure, one whose process was killed or cut off, or one that was explained."""
    starts: dict[str, list[int]] = defaultdict(list)
    highest: dict[str, int] = defaultdict(int)
    explained = Counter(event["job"] for event in history.events if event["name"] in EXPLAINED)
    for line in history.ledger:
        if line["what"] == "start":
            starts[line["job"]].append(line["pid"])
            if line["attempt"] < highest[line["job"]]:
                verdict.add("numbered an attempt backwards", line["job"])
            highest[line["job"]] = max(highest[line["job"]], line["attempt"])
    for job in history.archived:
        if not starts[job] and payloads[job].get("status") not in ("crashed", "cancelled"):
            verdict.add("ended without a start", job)
        excusable = history.killed | history.unlocked
        unexcused = sum(pid not in excusable for pid in starts[job])
        if unexcused > 1 + payloads[job].get("fails", 0) + explained[job]:
            verdict.add("started more often than explained", f"{job}: {starts[job]}")


def _check_overlaps(history: History, verdict: Verdict) -> None:
    """No job runs twice at once, unless the first process was paused or cut off, or noticed that it has lost its claim."""
    running: dict[str, dict[str, Any]] = {}
    for line in history.ledger:
        if line["what"] == "end":
            if running.get(line["job"], {}).get("pid") == line["pid"]:
                del running[line["job"]]
            continue
        if line["what"] != "start":
            continue
        before = running.get(line["job"])
        if before is not None and not _is_over(before, line, history):
            ended = history.ended.get(before["pid"])
            end = "goes on" if ended is None else f"ended after {ended - before['at']:.3f} s"
            first = f"{before['pid']} ({end})"
            second = f"{line['pid']} ({line['at'] - before['at']:.3f} s later)"
            verdict.add("ran twice at once", f"{line['job']}: {first} and {second}")
        running[line["job"]] = line


def _is_over(before: dict[str, Any], line: dict[str, Any], history: History) -> bool:
    lost = any(
        event["name"] == "claim_lost" and event["job"] == before["job"] and event["pid"] == before["pid"]
        for event in history.events
    )
    return lost or before["pid"] in history.unlocked or history.ended.get(before["pid"], line["at"]) < line["at"]


def _check_events(history: History, verdict: Verdict) -> None:
    finished = Counter(event["job"] for event in history.events if event["name"] == "job_finished")
    # who cannot know whether its COMMIT or another's was carried out says that the job has finished
    in_doubt = {event["job"] for event in history.events if event.get("pid") in history.unlocked}
    for job, count in finished.items():
        if count > 1 and job not in in_doubt:
            verdict.add("told twice that it finished", job)
        if history.archived.get(job, ("",))[0] != "success":
            verdict.add("told that it finished, and did not", job)
