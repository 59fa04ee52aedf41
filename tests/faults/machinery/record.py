"""The record of one run: scenario, seed, commit, faults injected, counts, outcome; one JSON file each."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy


@dataclass
class Record:
    """What is written down of one run."""

    scenario: str
    test: str
    form: str
    seed: int
    server: dict[str, Any]
    faults: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    begun_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def as_dict(self, *, passed: bool) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "test": self.test,
            "form": self.form,
            "seed": self.seed,
            "commit": _git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"),
            "library": _git("rev-parse", "HEAD:sa_proletarian")[:12],
            "at": self.begun_at.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.begun, 1),
            "python": platform.python_version(),
            "sqlalchemy": sqlalchemy.__version__,
            **self.server,
            "faults": dict(sorted(self.faults.items())),
            "counts": self.counts,
            "passed": passed,
        }

    def write(self, folder: Path, *, passed: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = self.begun_at.strftime("%Y%m%dT%H%M%S%f")
        name = f"{self.scenario.replace(' ', '-')}-{stamp}-{self.seed}.json"
        (folder / name).write_text(json.dumps(self.as_dict(passed=passed)) + "\n")


def _git(*arguments: str) -> str:
    """Ask git; ``+`` after the commit says that the files are no longer quite that commit's."""
    call = ["git", "-C", str(Path(__file__).parent), *arguments]
    said = subprocess.run(call, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"
