"""Run the examples as a person does: as scripts, on a real server, with an eye on what they print."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine

from sa_proletarian import metadata

CLONE = Path(__file__).parents[2]
PATIENCE = 30


class Script:
    """A running script, and what it has printed so far."""

    def __init__(self, path: Path | str, *arguments: str, environment: dict[str, str], folder: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, path, *arguments],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # a test run in the background of a shell has inherited that SIGINT is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        self.printed: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "\n".join(self.printed)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until a line contains the pattern."""
        deadline = time.monotonic() + PATIENCE
        while (line := self._next(deadline)) is not None:
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended without {pattern!r}; it printed\n{self.text}")

    def press_enter(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def press_ctrl_c(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> str:
        """Let the script end, and give what it has printed since the last line that was waited for."""
        before = len(self.printed)
        if not self._process.stdin.closed:
            self._process.stdin.close()
        deadline = time.monotonic() + PATIENCE
        while self._next(deadline) is not None:
            pass
        self._process.wait(PATIENCE)
        return "\n".join(self.printed[before:])

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def kill(self) -> None:
        self._process.kill()
        with self._process:
            self._reader.join()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _next(self, deadline: float) -> str | None:
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"nothing more in {PATIENCE} s; it printed\n{self.text}") from None
        if line is not None:
            self.printed.append(line)
        return line


@pytest.fixture
def environment() -> dict[str, str]:
    """Return an environment in which the scripts find this clone, and no database of the developer's."""
    kept = {name: value for name, value in os.environ.items() if name != "EXAMPLES_DATABASE_URL"}
    return kept | {"PYTHONPATH": str(CLONE)}


@pytest.fixture
def scripts() -> Iterator[list[Script]]:
    """Return a list of running scripts, which are gone afterwards."""
    started: list[Script] = []
    yield started
    for script in started:
        script.kill()


@pytest.fixture
def start(database_url: URL, environment: dict[str, str], scripts: list[Script]) -> Callable[..., Script]:
    """Return a function that starts an example's script on the database of this test."""
    environment["EXAMPLES_DATABASE_URL"] = database_url.render_as_string(hide_password=False)

    def start(name: str, *arguments: str) -> Script:
        scripts.append(Script(CLONE / "examples" / name, *arguments, environment=environment))
        return scripts[-1]

    return start


@pytest.fixture
def example_database(engine: Engine) -> Engine:
    """Return an engine on the database of this test, in which the two tables are."""
    metadata.create_all(engine)
    return engine
