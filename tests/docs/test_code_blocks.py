"""The code of README and docs runs as it stands there, each page as one program on a database of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ON_AN_APP = ROOT / "docs" / "how-to" / "add_it_to_your_app.md"  # its blocks are the files of an app: test_existing_app.py
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
URL = "postgresql+psycopg://user:password@localhost/app"
BLOCK = re.compile(r"^```python\n(.*?)^```$|^<!-- in the test: (.*?) -->$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def program(page: Path) -> str:
    return "\n".join(code or hidden for code, hidden in BLOCK.findall(page.read_text()))


@pytest.fixture
def run(database_url, tmp_path):
    processes = []

    def run(page):
        script = tmp_path / "page.py"
        script.write_text(program(page).replace(URL, database_url.render_as_string(hide_password=False)))
        process = subprocess.Popen([sys.executable, "-u", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_the_readme_works_as_a_program(run, engine):
    process = run(ROOT / "README.md")
    assert process.stdout.readline() == "Dear ada@example.org, welcome! (attempt 1)\n", process.communicate()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT welcomed FROM users").scalars().all() == [True]
        assert connection.exec_driver_sql("SELECT status FROM proletarian_archived_job").scalars().all() == ["success"]


PROGRAMS = [page for page in PAGES[1:] if page != ON_AN_APP and program(page)]


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_every_page_runs(run, page):
    process = run(page)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = [page.parent / target for target in LINK.findall(page.read_text())]
    assert [str(target) for target in targets if not target.exists()] == []
