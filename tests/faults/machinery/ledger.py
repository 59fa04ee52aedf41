"""Append-only ledgers: what happened, told by those to whom it happened, in a file that no rollback reaches.

A line is one JSON object, written by one call to a file opened with O_APPEND, so lines of many processes do not mix.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Ledger:
    """One file; every process opens it for itself."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, **line: Any) -> None:
        stamped = {"at": time.monotonic(), "pid": os.getpid(), **line}
        os.write(self._file, (json.dumps(stamped) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)


def read(path: str | Path) -> list[dict[str, Any]]:
    """Give the lines; of a writer that was killed in the middle of one, that one is left out."""
    if not Path(path).exists():
        return []
    lines = []
    for line in Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
