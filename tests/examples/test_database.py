import shutil

import pytest
from sqlalchemy import create_engine, inspect, select, text
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


def test_the_url_of_a_named_database_is_not_printed(database_url, environment, start):
    """It may hold a password in two places, and one with stars in the place of a password is of no use."""
    secret = database_url.set(password="hush-4711").update_query_dict({"password": "hush-4711"})
    environment["EXAMPLES_DATABASE_URL"] = secret.render_as_string(hide_password=False)
    printed = succeed(start("database.py", "install"))
    assert printed.splitlines()[-1].endswith("Database: the one that EXAMPLES_DATABASE_URL names")
    assert "hush" not in printed + succeed(start("database.py", "remove"))


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
        engine = create_engine(first[1].rpartition("Database: ")[2].strip())
        assert tables(engine) == TABLES
        engine.dispose()
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
