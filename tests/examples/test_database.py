import shutil

import pytest
from sqlalchemy import inspect, select, text
from sqlalchemy.orm import Session

from sa_proletarian import Job

from .conftest import CLONE, Script

TABLES = {"proletarian_job", "proletarian_archived_job", "proletarian_worker"}


def succeed(script):
    printed = script.end()
    assert script.exit_code == 0, printed
    return printed


def tables(engine):
    return set(inspect(engine).get_table_names())


def test_a_named_database_gets_the_tables_and_loses_only_them(engine, start):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE precious (what text)"))
    succeed(start("database.py", "install"))
    assert tables(engine) == {"precious"} | TABLES
    succeed(start("database.py", "remove"))
    assert tables(engine) == {"precious"}


def test_recreate_empties_the_tables(example_database, start):
    with Session(example_database) as session, session.begin():
        session.add(Job("echo"))
    succeed(start("database.py", "recreate"))
    with Session(example_database) as session:
        assert session.scalars(select(Job)).all() == []


def test_the_scripts_say_how_to_install_what_is_missing(database_url, start):
    script = start("a_basics/worker.py")
    assert "python examples/database.py install" in script.end()
    assert script.exit_code == 1


@pytest.mark.slow
def test_without_a_named_database_a_server_runs_until_it_is_removed(tmp_path, environment, scripts):
    shutil.copytree(CLONE / "examples", tmp_path / "examples")

    def run(name, *arguments):
        scripts.append(Script(tmp_path / "examples" / name, *arguments, environment=environment))
        printed = scripts[-1].end()
        return scripts[-1].exit_code, printed

    try:
        first = run("database.py", "install")
        assert first[0] == 0
        assert run("database.py", "install")[1].splitlines()[-1] == first[1].splitlines()[-1]  # the same server
        assert run("a_basics/enqueue.py")[0] == 0
        assert "proletarian_job table: 1" in run("a_basics/enqueue.py")[1]
        assert run("database.py", "recreate")[0] == 0
        assert "proletarian_job table: 0" in run("a_basics/enqueue.py")[1]
    finally:
        assert run("database.py", "remove")[0] == 0
    assert not (tmp_path / ".postgresql").exists()
    exit_code, printed = run("a_basics/enqueue.py")
    assert (exit_code, "python examples/database.py install" in printed) == (1, True)
