from __future__ import annotations

import io
import random
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from sa_proletarian import demo, demo_story
from sa_proletarian.embedded import EmbeddedPostgres, EmbeddedPostgresError


class Fate(random.Random):
    """A chance that is none: jobs take no time, and fail when and as told."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self._fails = fails

    def uniform(self, a, b):
        assert (a, b) == (0.5, 1.5)
        return 0.001

    def random(self):
        return 0.0 if self._fails else 0.99

    def randrange(self, start, *_):
        assert start == 1000
        return 7


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def on_our_server(postgres):
    """Run the demo in a database that it makes on the server of the tests; starting one of its own takes seconds."""
    return partial(demo.main, url=postgres.url().render_as_string(hide_password=False))


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "50")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_jobs_that_always_fail_are_tried_three_times_and_reported(on_our_server, capsys):
    assert on_our_server(chance=Fate(fails=True)) == 0
    said = capsys.readouterr().out
    assert "Number of successful jobs: 0\nNumber of failed jobs: 10\n" in said
    assert re.search(r"^Wall time: \d+\.\d s", said, re.MULTILINE)
    for attempt in (1, 2, 3):
        assert len(re.findall(rf"job [ \d]\d  attempt {attempt}  begins$", said, re.MULTILINE)) == 10
    assert said.count("failed, retry_after 7 ms, retries left: 2") == 10
    assert said.count("failed, retry_after 7 ms, retries left: 1") == 10
    assert said.count("on_failed: Job ") == 10


def test_jobs_that_never_fail_are_done_at_once(on_our_server, capsys):
    assert on_our_server(chance=Fate(fails=False)) == 0
    said = capsys.readouterr().out
    assert "Number of successful jobs: 10\nNumber of failed jobs: 0\n" in said
    assert said.count("succeeded: archived as success") == 10
    assert "on_failed" not in said


@pytest.mark.parametrize(("fails", "state"), [(True, "failure"), (False, "success")])
def test_a_terminal_gets_a_table_with_a_row_for_each_job(on_our_server, terminal, monkeypatch, fails, state):
    monkeypatch.setattr(sys, "stdout", terminal)
    assert on_our_server(chance=Fate(fails=fails)) == 0
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    last = said[said.rindex("attempt 1") :]
    for number in range(1, 11):
        assert re.search(rf"^ +{number} .* {state} *$", last, re.MULTILINE)
    assert "rows in the job table: 0, in the archive: 10" in last
    assert last.count("on_failed: Job") == (10 if fails else 0)
    assert "begins" not in said


def test_plain_gives_lines_to_a_terminal_as_well(on_our_server, terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal)
    assert on_our_server(plain=True, chance=Fate(fails=False)) == 0
    assert "\x1b" not in terminal.getvalue()
    assert terminal.getvalue().count("begins") == 10


@pytest.mark.parametrize(("name", "value"), [("COLUMNS", "60"), ("TERM", "dumb")])
def test_a_terminal_that_cannot_show_the_table_gets_lines(monkeypatch, terminal, name, value):
    monkeypatch.setenv(name, value)
    assert isinstance(demo.view_of(terminal), demo_story.Lines)


def test_without_rich_a_terminal_gets_lines(monkeypatch, terminal):
    monkeypatch.delitem(sys.modules, "sa_proletarian.demo_table", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert isinstance(demo.view_of(terminal), demo_story.Lines)


def test_on_a_given_server_it_leaves_no_database_behind(on_our_server, capsys, administration):
    assert on_our_server(chance=Fate(fails=False)) == 0
    assert "The database and its data are gone." in capsys.readouterr().out
    with administration.connect() as connection:
        assert connection.scalars(text("SELECT datname FROM pg_database WHERE datname LIKE 'sa\\_proletarian%'")).all() == []


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://me:secret@127.0.0.1:1/app", "sqlite://", "postgresql+nothing://me:secret@host/app"]
)
def test_a_server_that_cannot_be_had_is_said_without_its_password(url, capsys):
    assert demo.main(url=url) == 1
    said = capsys.readouterr()
    assert "secret" not in said.err + said.out
    assert re.search("no database could be made on|must be a PostgreSQL", said.err)


def test_a_missing_postgresql_is_said_and_is_exit_code_1(monkeypatch, capsys):
    def missing():
        raise EmbeddedPostgresError("PostgreSQL 18 is not here")

    monkeypatch.setattr(demo, "EmbeddedPostgres", missing)
    assert demo.main() == 1
    assert capsys.readouterr().err == "PostgreSQL 18 is not here\n"


@pytest.mark.slow
def test_ctrl_c_leaves_no_server_behind(monkeypatch, capsys):
    folders = []

    class Watched(EmbeddedPostgres):
        def start(self):
            super().start()
            folders.append(Path(self.url().query["host"]))
            return self

    def interrupted(engine: Engine, model):
        assert folders[0].exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "EmbeddedPostgres", Watched)
    monkeypatch.setattr(demo, "_count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.main()
    assert not folders[0].exists()
    assert "Interrupted" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("line", ["Starting a PostgreSQL", "attempt 1  begins"])
def test_ctrl_c_ends_the_command_at_any_moment(line):
    with subprocess.Popen(
        [sys.executable, "-m", "sa_proletarian.cli", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background of a shell has inherited that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert any(line in said for said in process.stdout)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert rest.endswith("Interrupted. The server and its data are gone.\n")
    assert errors == ""


@pytest.mark.slow
def test_the_real_thing_takes_seconds_and_ends_well():
    done = subprocess.run(
        [sys.executable, "-m", "sa_proletarian.cli", "demo"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    successful = int(re.search(r"Number of successful jobs: (\d+)", done.stdout)[1])
    failed = int(re.search(r"Number of failed jobs: (\d+)", done.stdout)[1])
    assert successful + failed == 10
    assert done.stdout.count("on_failed: ") == failed
