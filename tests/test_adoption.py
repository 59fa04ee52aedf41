"""Every style of app × every form of the models × every path of migration: the tables come, and a job is worked.

Each test is a cell of the table in docs/adoption.md, which is held to be complete here too.
"""

# ruff: noqa: N803, N806 (the classes of an app are made in the tests)

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column, registry

import sa_proletarian
from sa_proletarian import ArchivedJobMixin, JobMixin, Outcome, Proletarian, Retry, models_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import flask
    import flask_sqlalchemy
    import sqlmodel
    from advanced_alchemy import base as advanced

PAGE = Path(__file__).parents[1] / "docs" / "adoption.md"
OURS = "tests/test_adoption.py"
PLUGIN = ["alembic.autogenerate.*", "sa_proletarian.migrations"]

# The styles: an app with a model of its own, and how it makes a session ------------------------------------------------


@contextmanager
def plain_session(engine: Engine) -> Iterator[Any]:
    with Session(engine) as session:
        yield session


@dataclass
class App:
    """An app, as far as a library meets it."""

    base: Any  # what is given to models_for
    thing: Any  # the app's own table
    session: Callable[[Engine], Any] = plain_session


def plain() -> App:
    class Base(DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)

    return App(Base, Thing.__table__)


def dataclasses() -> App:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)

    return App(Base, Thing.__table__)


def flask_sqlalchemy_app() -> App:
    db = flask_sqlalchemy.SQLAlchemy()

    class Thing(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)

    @contextmanager
    def session(engine: Engine) -> Iterator[Any]:
        app = flask.Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
        db.init_app(app)
        with app.app_context():
            yield db.session
            db.session.remove()
            db.engine.dispose()

    return App(db.Model, Thing.__table__, session)


def sqlmodel_app() -> App:
    Base = type(sqlmodel.SQLModel)("Base", (sqlmodel.SQLModel,), {"__module__": __name__}, registry=registry())

    class Thing(Base, table=True):
        id: int | None = sqlmodel.Field(default=None, primary_key=True)

    @contextmanager
    def session(engine: Engine) -> Iterator[Any]:
        with sqlmodel.Session(engine) as session:
            yield session

    return App(Base, Thing.__table__, session)


def advanced_alchemy() -> App:
    # the library's bases share one registry: a fresh one, as its users make who have several databases
    own = registry(metadata=MetaData())
    shared = {"__abstract__": True, "registry": own, "_sa_registry": own, "metadata": own.metadata}
    Base = type(advanced.DefaultBase)("Base", (advanced.DefaultBase,), shared)
    WithId = type(advanced.BigIntBase)("WithId", (advanced.BigIntBase,), shared)
    Thing = type("Thing", (WithId,), {"__tablename__": "thing"})
    return App(Base, Thing.__table__)


def no_base() -> App:
    own = registry()
    return App(own, sa.Table("thing", own.metadata, sa.Column("id", sa.Integer(), primary_key=True)))


STYLES = {
    "Declarative": plain,
    "MappedAsDataclass": dataclasses,
    "Flask-SQLAlchemy": flask_sqlalchemy_app,
    "SQLModel": sqlmodel_app,
    "advanced-alchemy": advanced_alchemy,
    "no base": no_base,
}

# The forms: both models --------------------------------------------------------------------------------------------------


def mixins(Base: Any) -> tuple[Any, Any]:
    if isinstance(Base, registry):
        return Base.mapped(type("Job", (JobMixin,), {})), Base.mapped(type("ArchivedJob", (ArchivedJobMixin,), {}))
    return type("Job", (JobMixin, Base), {}), type("ArchivedJob", (ArchivedJobMixin, Base), {})


def default_models(Base: Any) -> tuple[Any, Any]:
    return sa_proletarian.Job, sa_proletarian.ArchivedJob


FORMS = {"mixins": mixins, "models_for": models_for, "default models": default_models}
REFUSED = {("MappedAsDataclass", "mixins"), ("SQLModel", "mixins")}

# The paths: how the tables come ------------------------------------------------------------------------------------------


def create_all(engine: Engine, metadata: list[MetaData]) -> None:
    for each in metadata:
        each.create_all(engine)


def autogenerate(engine: Engine, metadata: list[MetaData]) -> str:
    return generate(engine, metadata)


def plugin(engine: Engine, metadata: list[MetaData]) -> None:
    code = generate(engine, metadata, autogenerate_plugins=PLUGIN)
    assert "op.proletarian_migrate(0, 2)" in code
    assert "proletarian_job" not in code
    assert differences(engine, metadata, autogenerate_plugins=PLUGIN) == []


def operation(engine: Engine, metadata: list[MetaData]) -> None:
    migrate(engine, "op.proletarian_migrate(0, 2)")


def shipped_revisions(engine: Engine, metadata: list[MetaData]) -> None:
    config = Config()
    config.set_main_option("script_location", "sa_proletarian:migrations")
    script = ScriptDirectory.from_config(config)
    environment = EnvironmentContext(config, script, fn=lambda revision, _: script._upgrade_revs("heads", revision))
    with engine.connect() as connection, environment:
        environment.configure(connection=connection)
        with environment.begin_transaction():
            environment.run_migrations()


PATHS = {
    "create_all": create_all,
    "autogenerate": autogenerate,
    "plugin": plugin,
    "operation": operation,
    "shipped revisions": shipped_revisions,
}


def differences(engine: Engine, metadata: list[MetaData], **options: Any) -> list[Any]:
    """Give what ``alembic check`` would report."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": metadata, **options})
        return produce_migrations(context, metadata).upgrade_ops.as_diffs()  # type: ignore[arg-type]


def generate(engine: Engine, metadata: list[MetaData], **options: Any) -> str:
    """Do what ``alembic revision --autogenerate`` and ``alembic upgrade head`` do; give the body of the revision."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": metadata, **options})
        code = render_python_code(produce_migrations(context, metadata).upgrade_ops, migration_context=context)
    migrate(engine, code := re.sub("^ +(?=op|#)", "", code, flags=re.MULTILINE))
    return code


def migrate(engine: Engine, code: str) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            exec(code, {"op": Operations(context), "sa": sa, "postgresql": postgresql, "mysql": mysql})


# The cells ---------------------------------------------------------------------------------------------------------------

CELLS = [cell for cell in itertools.product(STYLES, FORMS, PATHS) if cell[:2] not in REFUSED]


@pytest.mark.parametrize(("style", "form", "path"), CELLS, ids=[", ".join(cell) for cell in CELLS])
def test_the_tables_come_and_a_job_is_worked(style: str, form: str, path: str, engine: Engine) -> None:
    app = STYLES[style]()
    app.thing.create(engine)
    Job, ArchivedJob = FORMS[form](app.base)
    metadata = list(dict.fromkeys([app.thing.metadata, Job.__table__.metadata]))
    PATHS[path](engine, metadata)
    assert [each for each in differences(engine, metadata) if "alembic_version" not in str(each)] == []

    jobs = Proletarian(Job, ArchivedJob)
    jobs.handler("count")(lambda session, job: session.execute(app.thing.insert().values(id=job.payload["id"] + 1)))
    with app.session(engine) as session:
        for end in (session.rollback, session.commit):
            session.execute(app.thing.insert().values(id=1))
            jobs.enqueue(session, "count", {"id": 1})
            end()
    assert jobs.process_next(engine) is Outcome.RETURNED
    assert jobs.process_next(engine) is None
    with Session(engine) as session:
        assert session.scalars(sa.select(app.thing.c.id).order_by(app.thing.c.id)).all() == [1, 2]
        assert session.scalars(sa.select(ArchivedJob.status)).all() == ["success"]


@pytest.mark.parametrize("style", [style for style, _ in sorted(REFUSED)])
def test_mixins_are_refused_in_favour_of_models_for(style: str) -> None:
    with pytest.raises(TypeError, match=r"models_for\(Base\)"):
        mixins(STYLES[style]().base)


def test_in_a_handler_flask_sqlalchemys_session_is_the_handlers_session(database_url: sa.URL) -> None:
    db = flask_sqlalchemy.SQLAlchemy()
    Job, ArchivedJob = mixins(db.Model)
    Thing = type("Thing", (db.Model,), {"id": db.Column(db.Integer, primary_key=True)})
    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    db.init_app(app)
    jobs = Proletarian(Job, ArchivedJob)

    @jobs.handler("write", retry=Retry(retries=1, delays=[timedelta(0)]))
    def write(session: Any, job: Any) -> None:
        assert db.session() is session
        db.session.add(Thing())
        db.session.commit()  # together with the job, so not in the first attempt
        db.session.add(Thing())  # flushed after the handler, which takes an app context to find the engine
        if job.attempts == 1:
            raise ValueError

    options = {"session": db.session, "around": lambda job: app.app_context()}
    with app.app_context():
        db.create_all()
        jobs.enqueue(db.session, "write")
        db.session.commit()
        engine = db.engine
    assert [jobs.process_next(engine, **options) for _ in range(2)] == [Outcome.RETRIED, Outcome.RETURNED]
    with app.app_context():
        assert db.session.query(Thing).count() == 2
        assert [archived.attempts for archived in db.session.query(ArchivedJob)] == [2]
    engine.dispose()


# The table in the docs ---------------------------------------------------------------------------------------------------


def test_each_cell_of_the_page_names_a_test_and_each_test_has_a_cell() -> None:
    cells = re.findall(r'\(\.\./(tests/\S+\.py) "(\w+)(?:\[([^\]]+)\])?"\)', PAGE.read_text())
    for file, test, case in cells:
        source = (PAGE.parents[1] / file).read_text()
        assert f"def {test}(" in source
        assert file == OURS or not case or f'"{case}": ' in source
    here = [(test, case) for file, test, case in cells if file == OURS]
    worked = [("test_the_tables_come_and_a_job_is_worked", ", ".join(cell)) for cell in CELLS]
    refused = [("test_mixins_are_refused_in_favour_of_models_for", style) for style, _ in REFUSED]
    assert sorted(here) == sorted(worked + refused)
