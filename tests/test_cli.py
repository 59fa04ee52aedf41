from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import MetaData, text

from sa_proletarian import cli, demo, models_for, partitions, worker_command


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("sa-proletarian ")


def test_without_a_command_it_says_what_there_is(capsys):
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().err


def test_an_unknown_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["dance"])
    assert end.value.code == 2
    assert "dance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "plain", "url"),
    [(["demo"], False, None), (["demo", "--plain"], True, None), (["demo", "--url", "given"], False, "given")],
)
def test_demo_gets_its_options_and_gives_the_exit_code(monkeypatch, arguments, plain, url):
    asked = []
    monkeypatch.setattr(demo, "main", lambda **options: asked.append(options) or 7)
    assert cli.main(arguments) == 7
    assert asked == [{"plain": plain, "url": url}]


def test_worker_gets_its_arguments_and_what_was_given_for_its_children(monkeypatch):
    asked = []
    monkeypatch.setattr(worker_command, "work", lambda arguments: asked.append(arguments) or 7)
    given = ["worker", "app:jobs", "--url", "postgresql://", "--queue", "a", "--queue", "b", "--lease", "1.5"]
    given += ["--retention", "14d"]
    assert cli.main(given) == 7
    assert (asked[0].given, asked[0].queue, asked[0].lease) == (given, ["a", "b"], timedelta(seconds=1.5))
    assert asked[0].retention == timedelta(days=14)


def test_the_help_of_worker_says_what_its_exit_codes_mean(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["worker", "--help"])
    assert end.value.code == 0
    help_text = capsys.readouterr().out
    assert "exit codes: 0" in help_text
    assert "--child" not in help_text


def test_ctrl_c_is_130_without_a_traceback(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "main", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_is_no_traceback():
    script = (
        "from sa_proletarian import cli, demo\n"
        "demo.main = lambda **_: print('x' * 1_000_000) or 0\n"
        "raise SystemExit(cli.main(['demo']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


# check and grants


VARIABLE = "SA_PROLETARIAN_DATABASE_URL"


@pytest.fixture
def url(tables):
    return tables.url.render_as_string(hide_password=False)


def execute(engine, statement):
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_check_says_in_one_line_that_all_is_well(url, capsys):
    assert cli.main(["check", "--url", url]) == 0
    out, err = capsys.readouterr()
    assert out == "proletarian_job, proletarian_archived_job, proletarian_worker: schema v2, as this version needs\n"
    assert err == ""


def test_check_says_in_one_line_what_is_wrong_and_how_to_get_there(tables, url, capsys):
    execute(tables, "DROP TABLE proletarian_worker")
    for table in ("job", "archived_job"):
        execute(tables, f"COMMENT ON TABLE proletarian_{table} IS 'sa_proletarian schema v1'")
    assert cli.main(["check", "--url", url]) == 1
    advice = "proletarian_job: schema v1, this version needs v2: run op.proletarian_migrate(1, 2)\n"
    assert capsys.readouterr() == (advice, "")


def test_check_asks_the_database_that_the_environment_names(url, capsys, monkeypatch):
    monkeypatch.setenv(VARIABLE, url)
    assert cli.main(["check"]) == 0
    assert "schema v2" in capsys.readouterr().out


def test_check_reaches_an_async_drivers_database_as_well(tables, capsys):
    url = tables.url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    assert cli.main(["check", "--url", url]) == 0


def test_prefix_and_schema_name_the_tables(tables, url, capsys):
    execute(tables, "CREATE SCHEMA queues")
    job, _ = models_for(MetaData(), prefix="mail_", schema="queues")
    job.metadata.create_all(tables)
    assert cli.main(["check", "--url", url, "--prefix", "mail_", "--schema", "queues"]) == 0
    assert capsys.readouterr().out.startswith("queues.mail_job, ")
    assert cli.main(["check", "--url", url, "--prefix", "mail_"]) == 1
    assert "but there is queues.mail_job" in capsys.readouterr().out


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Write the module of an app into the current directory, and give a reference to something in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"app_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from sqlalchemy import MetaData\n"
        "from sa_proletarian import Proletarian, models_for\n"
        "Job, ArchivedJob = models_for(MetaData(), prefix='mail_')\n"
        "jobs = Proletarian(Job, ArchivedJob)\n"
        "class Container:\n"
        "    jobs = jobs\n"
    )
    yield lambda *objects: ",".join(f"{name}:{each}" for each in objects)
    sys.modules.pop(name, None)


@pytest.mark.parametrize("objects", [["jobs"], ["Job", "ArchivedJob"], ["Container.jobs"]])
def test_the_apps_own_models_are_checked(app, url, capsys, objects):
    assert cli.main(["check", "--url", url, "--models", app(*objects)]) == 1
    assert "run op.proletarian_migrate(0, 2, prefix='mail_')" in capsys.readouterr().out


@pytest.mark.parametrize(
    "objects", [["Job"], ["Container"], ["Job", "Container"], ["nothing"], ["Job", "ArchivedJob", "jobs"]]
)
def test_what_are_no_models_is_wrong_usage(app, url, capsys, objects):
    assert cli.main(["check", "--url", url, "--models", app(*objects)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sa-proletarian: --models")


ME = "postgresql+psycopg://me:secret-4711@localhost/app"
USAGE = {
    "no URL": ([], "give --url, or set SA_PROLETARIAN_DATABASE_URL"),
    "no readable URL": (["--url", "secret-4711"], "the URL cannot be read"),
    "no readable port": (["--url", "postgresql+psycopg://me@localhost:secret-4711/app"], "the URL cannot be read"),
    "a driver that is not installed": (["--url", ME.replace("psycopg", "pg8000")], "driver is not installed (pg8000)"),
    "an unknown dialect": (["--url", ME.replace("postgresql+psycopg", "nosuch")], "the URL cannot be read"),
    "another database": (["--url", "sqlite://"], "only PostgreSQL's catalog can be read, not that of sqlite"),
    "another database's async driver": (["--url", "mysql+aiomysql://me:secret-4711@localhost/app"], "not that of mysql"),
    "models and a prefix": (["--url", ME, "--models", "app:jobs", "--prefix", "mail_"], "give --models or --prefix"),
    "no module": (["--url", ME, "--models", "no_such_module:jobs"], "there is no module 'no_such_module'"),
    "no reference": (["--url", ME, "--models", "app"], "'app' is not of the form package.module:attribute"),
}


@pytest.mark.parametrize("usage", USAGE)
def test_wrong_usage_of_check_is_explained_without_the_password(usage, capsys, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments, explanation = USAGE[usage]
    assert cli.main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sa-proletarian: ") and explanation in err
    assert "secret-4711" not in err


def test_a_database_that_cannot_be_reached_is_3_and_the_password_is_not_printed(capsys, tmp_path):
    """The server's folder is named like the password, so that the driver quotes it."""
    url = f"postgresql+psycopg://me:secret-4711@/app?host={tmp_path}/secret-4711"
    assert cli.main(["check", "--url", url]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "***" in err and "secret-4711" not in err


def test_a_database_that_is_not_there_is_3(tables, capsys):
    url = tables.url.set(database="nowhere").render_as_string(hide_password=False)
    assert cli.main(["check", "--url", url]) == 3
    assert 'database "nowhere" does not exist' in capsys.readouterr().err


def test_grants_prints_what_can_be_run(tables, capsys):
    assert cli.main(["grants", "--role", "enqueuer", "--to", "pg_monitor"]) == 0
    script = capsys.readouterr().out
    with tables.connect() as connection:
        connection.execute(text(script))
        granted = "SELECT has_table_privilege('pg_monitor', 'proletarian_job', 'INSERT')"
        assert connection.scalar(text(granted)) is True


def test_grants_are_for_the_models_and_schema_that_are_named(app, capsys):
    assert cli.main(["grants", "--role", "admin", "--models", app("jobs"), "--schema", "q"]) == 0
    out = capsys.readouterr().out
    assert "GRANT USAGE ON SCHEMA q TO proletarian_admin;" in out
    assert "DELETE ON TABLE q.mail_archived_job TO proletarian_admin;" in out


def test_grants_to_everybody_are_wrong_usage(capsys):
    assert cli.main(["grants", "--role", "worker", "--to", "public"]) == 2
    assert "to must name a role" in capsys.readouterr().err


# prune


OLD = """
    INSERT INTO {table} (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, status, finished_at)
    SELECT gen_random_uuid(), 'default', 'work', '1', 1, now(), now(), 'success', now() - interval '15 days'
      FROM generate_series(1, {count})
"""


def test_prune_deletes_what_is_old_and_says_how_many(tables, url, capsys, rows):
    execute(tables, OLD.format(table="proletarian_archived_job", count=20_000))
    assert cli.main(["prune", "--older-than", "14d", "--url", url, "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("\nproletarian_archived_job: 20000 rows would be pruned\n")
    assert cli.main(["prune", "--older-than", "16d", "--url", url]) == 0
    assert capsys.readouterr().out.endswith("\nproletarian_archived_job: 0 rows pruned\n")
    assert cli.main(["prune", "--older-than", "14d", "--url", url, "--status", "failure"]) == 0
    assert cli.main(["prune", "--older-than", "14d", "--url", url, "--queue", "mail"]) == 0
    assert rows("SELECT count(*) FROM proletarian_archived_job") == [(20_000,)]
    capsys.readouterr()
    assert cli.main(["prune", "--older-than", "2w", "--url", url]) == 0
    out, err = capsys.readouterr()
    assert "% looked at, " in out and out.endswith("\nproletarian_archived_job: 20000 rows pruned\n") and err == ""
    assert rows("SELECT count(*) FROM proletarian_archived_job") == [(0,)]


def test_prune_draws_a_bar_on_a_terminal(tables, url):
    """The other end of a pseudo-terminal reads what people would see."""
    execute(tables, OLD.format(table="proletarian_archived_job", count=5_000))
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "sa_proletarian.cli", "prune", "--older-than", "14d", "--url", url]
    with subprocess.Popen(command, stdout=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # EIO is how a terminal says that nobody is left
            while piece := os.read(ours, 1000):
                seen += piece
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[" in seen and b"100%" in seen and b"5000 rows pruned" in seen


def test_prune_takes_the_apps_engine_and_models_and_another_schema(app, tables, url, capsys, tmp_path, rows):
    rows("CREATE SCHEMA q")
    models_for(MetaData(), prefix="mail_", schema="q")[0].metadata.create_all(tables)
    execute(tables, OLD.format(table="q.mail_archived_job", count=3))
    module = app("x").split(":")[0]
    path = tmp_path / f"{module}.py"
    path.write_text(
        path.read_text() + f"from sqlalchemy import create_engine\ndef engine():\n    return create_engine({url!r})\n"
    )
    given = ["--models", app("jobs"), "--engine", app("engine"), "--schema", "q"]
    assert cli.main(["prune", "--older-than", "14d", *given]) == 0
    assert capsys.readouterr().out.endswith("mail_archived_job: 3 rows pruned\n")
    assert cli.main(["prune", "--older-than", "14d", "--models", app("jobs"), "--engine", app("Container")]) == 2
    assert "is a Container, not an Engine" in capsys.readouterr().err


@pytest.mark.parametrize("age", ["14", "d", "-1d", "14 d", "1y", "99999999d"])
def test_an_age_that_is_none_is_wrong_usage(age, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["prune", f"--older-than={age}", "--url", ME])
    assert end.value.code == 2
    assert "as in 14d, got" in capsys.readouterr().err


def test_prune_says_what_the_database_refuses_and_that_it_cannot_be_reached(tables, url, capsys, tmp_path):
    execute(tables, "DROP TABLE proletarian_archived_job")
    assert cli.main(["prune", "--older-than", "14d", "--url", url]) == 1
    assert 'relation "proletarian_archived_job" does not exist' in capsys.readouterr().err
    away = f"postgresql+psycopg://me:secret-4711@/app?host={tmp_path}/secret-4711"
    assert cli.main(["prune", "--older-than", "14d", "--url", away]) == 3
    err = capsys.readouterr().err
    assert "***" in err and "secret-4711" not in err
    assert cli.main(["prune", "--older-than", "14d", "--url", url, "--queue", "a b"]) == 2
    assert "queue must be" in capsys.readouterr().err


# partitions


def test_partitions_makes_the_coming_months_and_drops_old_ones(tables, url, capsys, rows):
    with tables.begin() as connection:
        partitions.split(connection, months=0)
    assert cli.main(["partitions", "--url", url, "--months", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("proletarian_archived_job: made proletarian_archived_job_2") and out.endswith("; dropped none\n")
    assert cli.main(["partitions", "--url", url, "--months", "2", "--older-than", "90d"]) == 0
    assert capsys.readouterr().out == "proletarian_archived_job: made none; dropped none\n"


def test_partitions_of_a_plain_archive_are_refused(tables, url, capsys):
    assert cli.main(["partitions", "--url", url]) == 2
    assert "is not split into months" in capsys.readouterr().err
