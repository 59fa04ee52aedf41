"""The page "Add it to your app", block by block, on an app that has been running for a while."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add_it_to_your_app.md"
APP = Path(__file__).parent / "existing_app"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+?)(, at its end)?\n")


class Shell:
    """The folder of the app, in which files are written and commands run."""

    def __init__(self, folder: Path, url: URL) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        address = url.render_as_string(hide_password=False)
        self._environment = {**os.environ, "DATABASE_URL": address, "PATH": path, "PYTHONUNBUFFERED": "1"}
        self.background: list[subprocess.Popen[str]] = []

    def write(self, block: str) -> None:
        """Write the file that the block's first line names, or add to it."""
        name, at_its_end = FILE.match(block).groups()
        file = self.folder / name
        assert file.exists() or not at_its_end
        file.write_text((file.read_text() + "\n\n" if at_its_end else "") + block)

    def run(self, command: str) -> str:
        """Run a command to its end, and give what it prints; one that ends in ``&`` goes on."""
        if command.endswith("&"):
            self.background.append(self._start(command.removesuffix("&")))
            return ""
        process = self._start(command)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0, printed
        return printed

    def _start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            shlex.split(command),
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def shell(tmp_path: Path, database_url: URL) -> Iterator[Shell]:
    """Return a shell in the app as it was before, with a customer."""
    shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shell = Shell(tmp_path / "app", database_url)
    yield shell
    for process in shell.background:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_page_leads_from_the_apps_last_revision_to_a_worked_job(shell: Shell, engine: Engine) -> None:
    shell.run("alembic upgrade head")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO customers (email) VALUES ('ada@example.org')"))

    for language, block in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            shell.write(block)
        else:
            for command in block.splitlines():
                shell.run(command)

    [worker] = shell.background
    lines = iter(worker.stdout.readline, "")
    greetings = []
    while len(greetings) < 2:
        # two threads print: two greetings may come on one line
        greetings += re.findall("Dear ada@example.org, we have your order: (?:cake|tea)", next(lines))
    worker.send_signal(signal.SIGTERM)
    rest, _ = worker.communicate(timeout=30)

    assert worker.returncode == 0, rest
    assert sorted(greetings) == [f"Dear ada@example.org, we have your order: {item}" for item in ("cake", "tea")]
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders WHERE confirmed_at IS NOT NULL")) == 2
        assert connection.scalars(text("SELECT status FROM proletarian_archived_job")).all() == ["success"] * 2
        assert connection.scalar(text("SELECT count(*) FROM proletarian_job")) == 0
    assert [path.name[:4] for path in sorted((shell.folder / "migrations/versions").glob("0*.py"))] == ["0001", "0002"]
    assert len([*(shell.folder / "migrations/versions").glob("*_background_jobs.py")]) == 1
