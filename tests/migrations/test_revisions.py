"""The revisions in the package, applied from a clone, and listed by an app in its ``version_locations``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from alembic.config import main as command_line
from sqlalchemy import inspect, text

import sa_proletarian

CLONE = Path(sa_proletarian.__file__).parents[1]


def test_the_revisions_give_the_tables_that_the_models_describe(in_clone, created, dump):
    expected = created(sa_proletarian.metadata)
    in_clone("upgrade head")
    assert dump() == expected
    for what in ("ix_proletarian_job_due", "ck_proletarian_job_crashes", "COMMENT ON TABLE", "PRIMARY KEY"):
        assert what in expected


def test_check_finds_nothing_to_change_after_the_upgrade(in_clone):
    in_clone("upgrade head")
    in_clone("check")  # exits with an error if there is something


def test_check_reports_tables_of_another_schema_version(engine, in_clone):
    in_clone("upgrade head")
    with engine.begin() as connection:
        connection.execute(text("COMMENT ON TABLE proletarian_job IS 'sa_proletarian schema v0'"))
    with pytest.raises(SystemExit):
        in_clone("check")


def test_the_downgrade_takes_everything_away_and_the_upgrade_brings_it_back(engine, in_clone, dump):
    in_clone("upgrade head")
    upgraded = dump()
    in_clone("downgrade base")
    assert inspect(engine).get_table_names() == ["proletarian_version"]
    in_clone("upgrade head")
    assert dump() == upgraded


def test_offline_sql_needs_no_database_and_gives_the_same_tables(engine, in_clone, created, dump, monkeypatch):
    monkeypatch.setenv("SA_PROLETARIAN_DATABASE_URL", "postgresql+psycopg://192.0.2.1/")
    upgrade = in_clone("upgrade head --sql")
    downgrade = in_clone("downgrade head:base --sql")
    expected = created(sa_proletarian.metadata)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(upgrade)
        assert dump() == expected
        connection.exec_driver_sql(downgrade)
        assert not {"proletarian_job", "proletarian_archived_job"} & {*inspect(connection).get_table_names()}


def test_the_version_table_does_not_meet_the_one_of_an_app_in_the_same_database(engine, in_clone):
    in_clone("upgrade head")
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT version_num FROM proletarian_version")).all() == ["proletarian_v2"]
    assert not inspect(engine).has_table("alembic_version")


def test_the_revisions_are_in_the_package():
    versions = resources.files("sa_proletarian") / "migrations" / "versions"
    names = {entry.name for entry in versions.iterdir()}
    assert {"proletarian_v1_job_and_archive.py", "proletarian_v2_worker.py"} <= names


def test_one_revision_after_the_other_and_back(engine, in_clone):
    in_clone("upgrade +1")
    assert not inspect(engine).has_table("proletarian_worker")
    in_clone("upgrade +1")
    assert inspect(engine).has_table("proletarian_worker")
    in_clone("check")
    in_clone("downgrade -1")
    assert not inspect(engine).has_table("proletarian_worker")
    with pytest.raises(SystemExit):
        in_clone("check")


def test_without_a_database_and_without_a_server_of_its_own_a_clone_says_what_to_set(tmp_path):
    """Neither the wheel with PostgreSQL's programs nor any of the system: as after ``pip install -e .``."""
    shutil.copytree(CLONE / "alembic", tmp_path / "alembic")
    shutil.copy(CLONE / "pyproject.toml", tmp_path)
    program = (
        "from sa_proletarian import embedded_programs; embedded_programs._places = lambda version: iter(()); "
        "from alembic.config import main; main(['upgrade', 'head'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "SA_PROLETARIAN_DATABASE_URL"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "FAILED: Set SA_PROLETARIAN_DATABASE_URL" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_an_app_can_list_the_revisions_beside_its_own(tmp_path, engine, database_url, in_app):
    url = database_url.render_as_string(hide_password=False).replace("%", "%%")
    command_line(["--config", str(tmp_path / "alembic.ini"), "init", str(tmp_path / "alembic")])
    settings = (tmp_path / "alembic.ini").read_text()
    settings = re.sub(r"sqlalchemy.url = .*", f"sqlalchemy.url = {url}", settings)
    settings = re.sub(r"path_separator = os", "path_separator = newline", settings)
    settings = re.sub(
        r"# version_locations = .*",
        "version_locations =\n    %(here)s/alembic/versions\n    sa_proletarian:migrations/versions",
        settings,
    )
    (tmp_path / "alembic.ini").write_text(settings)
    in_app("revision --head base -m own --version-path alembic/versions", "upgrade heads")
    assert inspect(engine).has_table("proletarian_worker")
    assert "proletarian_v2 (head)" in in_app("current")
    in_app("downgrade proletarian_v2@base")
    assert not inspect(engine).has_table("proletarian_job")
