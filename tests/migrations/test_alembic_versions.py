"""The releases of Alembic that load plugins in different ways: the command works, and so does the plugin."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import alembic, sys
assert alembic.__version__ == sys.argv[1], alembic.__file__
from alembic import command
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from sa_proletarian import metadata

plugins = ["alembic.autogenerate.*", "sa_proletarian.migrations"]
with create_engine(sys.argv[2], poolclass=NullPool).connect() as connection:
    context = MigrationContext.configure(connection, opts={"target_metadata": metadata, "autogenerate_plugins": plugins})
    with context.begin_transaction():
        first = produce_migrations(context, metadata)
        print(first.upgrade_ops.as_diffs(), first.downgrade_ops.as_diffs())
        print("op.proletarian_migrate(0, 2)" in render_python_code(first.upgrade_ops, migration_context=context))
        op = Operations(context)
        op.proletarian_migrate(0, 1)
        print(produce_migrations(context, metadata).upgrade_ops.as_diffs())
        op.proletarian_migrate(1, 2)
        print(produce_migrations(context, metadata).upgrade_ops.as_diffs())
"""
SAID = """[('proletarian_migrate', 0, 2)] [('proletarian_migrate', 2, 0)]
True
[('proletarian_migrate', 1, 2)]
[]
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.18.0", "1.20.0", "1.20.1"])
def test_the_plugin_works_with(version, tmp_path, database_url):
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path),
        f"alembic=={version}",
    ]
    subprocess.run(install, check=True, timeout=100)

    def run(*arguments):
        command = [sys.executable, "-W", "error", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-m", "alembic", "--version") == f"alembic {version}\n"
    assert run("-c", PROGRAM, version, database_url.render_as_string(hide_password=False)) == SAID
