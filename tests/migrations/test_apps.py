"""An app's own revisions, written and run by the command ``alembic`` in a folder that ``alembic init`` has made."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from alembic.config import main as command_line
from sqlalchemy import URL, Engine, MetaData, inspect, text

Alembic = Callable[..., str]

PLAIN = """
class Base(DeclarativeBase):
    pass
"""
NAMING_CONVENTION = """
class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    })
"""
SCHEMA = """
class Base(DeclarativeBase):
    metadata = MetaData(schema="queues")
"""
MODELS = """
from sa_proletarian import ArchivedJobMixin, JobMixin
from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
{base}
class Tenant(Base):
    __tablename__ = "tenant"
    id: Mapped[int] = mapped_column(primary_key=True)

class Job(JobMixin, Base):
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey(Tenant.id), index=True)

class ArchivedJob(ArchivedJobMixin, Base):
    tenant_id: Mapped[int | None]

class Mail(JobMixin, Base):
    __tablename__ = "mail"

class ArchivedMail(ArchivedJobMixin, Base):
    __tablename__ = "archived_mail"
"""


def app(folder: Path, database_url: URL, base: str) -> MetaData:
    """Make an app with ``alembic init``, and edit what its template asks to be edited; return its metadata."""
    (folder / "models.py").write_text(MODELS.format(base=base))
    command_line(["--config", str(folder / "alembic.ini"), "init", str(folder / "alembic")])
    url = database_url.render_as_string(hide_password=False).replace("%", "%%")
    edit(folder / "alembic.ini", "sqlalchemy.url = .*", f"sqlalchemy.url = {url}")
    edit(folder / "alembic/env.py", "= None", "= __import__('models').Base.metadata")
    metadata: MetaData = load(folder / "models.py").Base.metadata
    if metadata.schema is not None:
        edit(folder / "alembic/env.py", "target_metadata=target_metadata", r"\g<0>, include_schemas=True")
    return metadata


def edit(path: Path, pattern: str, replacement: str) -> None:
    edited, times = re.subn(pattern, replacement, path.read_text())
    assert times, f"nothing to edit in {path}"
    path.write_text(edited)


def load(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("base", [PLAIN, NAMING_CONVENTION, SCHEMA], ids=["plain", "naming convention", "schema"])
def test_autogenerate_in_an_app_needs_no_edit(
    base: str,
    tmp_path: Path,
    engine: Engine,
    database_url: URL,
    in_app: Alembic,
    dump: Callable[[], str],
    created: Callable[[MetaData], str],
    by_alembic_alone: Callable[[str], str],
) -> None:
    metadata = app(tmp_path, database_url, base)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA queues"))
    expected = created(metadata)

    said = in_app("revision --autogenerate -m jobs", "upgrade head", "check")

    assert "No new upgrade operations detected" in said
    assert dump() == by_alembic_alone(expected)
    [revision] = (tmp_path / "alembic/versions").glob("*.py")
    assert not re.search(r"import sa_proletarian|\bsa_proletarian\.", revision.read_text())
    in_app("downgrade base")
    assert inspect(engine).get_table_names(metadata.schema) == (["alembic_version"] if metadata.schema is None else [])


def revisions(folder: Path) -> list[str]:
    """Give what the app's revisions do, in their order."""
    files = sorted((folder / "alembic/versions").glob("*.py"), key=lambda path: path.stat().st_mtime_ns)
    return [path.read_text().split("def upgrade()")[1] for path in files]


@pytest.mark.slow
def test_with_the_plugin_an_app_takes_a_new_version_of_the_library_by_one_line(
    tmp_path: Path, engine: Engine, database_url: URL, in_app: Alembic, dump: Callable[[], str], created: Any
) -> None:
    metadata = app(tmp_path, database_url, PLAIN)
    expected = created(metadata)
    plugins = 'autogenerate_plugins=["alembic.autogenerate.*", "sa_proletarian.migrations"]'
    edit(tmp_path / "alembic/env.py", "target_metadata=target_metadata", rf"\g<0>, {plugins}")

    in_app("revision --autogenerate -m jobs")
    [first] = revisions(tmp_path)
    upgrade, downgrade = first.split("def downgrade()")
    assert upgrade.index("op.proletarian_migrate(0, 2, job_table='mail', archived_table='archived_mail')\n") < upgrade.index(
        "op.proletarian_migrate(0, 2)\n"
    )
    assert downgrade.index("op.proletarian_migrate(2, 0)\n") > downgrade.index("op.drop_column('proletarian_job'")
    assert "No new upgrade operations detected" in in_app("upgrade head", "check")
    assert dump() == expected

    with engine.begin() as connection:
        connection.execute(text("DROP TABLE proletarian_worker"))
        for table in ("proletarian_job", "proletarian_archived_job"):
            connection.execute(text(f"COMMENT ON TABLE {table} IS 'sa_proletarian schema v1'"))
    assert "New upgrade operations detected: [('proletarian_migrate', 1, 2)]" in in_app("check", fails=True)
    in_app("revision --autogenerate -m newer", "upgrade head", "check")
    assert dump() == expected
    code = [line.strip() for line in revisions(tmp_path)[-1].splitlines()]
    assert [line for line in code if "op." in line] == ["op.proletarian_migrate(1, 2)", "op.proletarian_migrate(2, 1)"]
