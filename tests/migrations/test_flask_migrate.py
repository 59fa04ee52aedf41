"""The plugin under Flask-Migrate, which has no env.py to edit: it is named where Migrate is made."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

APP = """
import os

from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

from sa_proletarian import ArchivedJobMixin, JobMixin

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
db = SQLAlchemy(app)
Migrate(app, db, autogenerate_plugins=["alembic.autogenerate.*", "sa_proletarian.migrations"])


class Tenant(db.Model):
    id = db.Column(db.Integer, primary_key=True)


class Job(JobMixin, db.Model):
    pass


class ArchivedJob(ArchivedJobMixin, db.Model):
    pass
"""


@pytest.mark.slow
def test_flask_migrate_writes_the_operation_and_finds_nothing_to_do_afterwards(tmp_path, database_url):
    (tmp_path / "app.py").write_text(APP)
    url = database_url.render_as_string(hide_password=False)

    def flask(*command):
        done = subprocess.run(
            [sys.executable, "-m", "flask", "db", *command],
            cwd=tmp_path,
            env={**os.environ, "DATABASE_URL": url},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    flask("init")
    flask("migrate", "-m", "jobs")
    [revision] = (tmp_path / "migrations/versions").glob("*.py")
    operations = re.findall(r"^    (op\.\w+\(.*?)[,)]$", revision.read_text(), re.MULTILINE)
    assert "op.proletarian_migrate(0, 2" in operations
    assert "op.proletarian_migrate(2, 0" in operations
    assert not [operation for operation in operations if "create_table" in operation and "proletarian" in operation]
    flask("upgrade")
    assert "No new upgrade operations detected" in flask("check")
    flask("downgrade")
