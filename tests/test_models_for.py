"""Three ways to the models: the mixins, the default models and models_for, on every kind of base, with the same tables."""

# ruff: noqa: N803, N806 (the classes of an app are made in the tests)

import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    BigInteger,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    inspect,
    text,
)
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    DeclarativeBase,
    DeclarativeBaseNoMeta,
    Mapped,
    MappedAsDataclass,
    Session,
    configure_mappers,
    declarative_base,
    declared_attr,
    mapped_column,
    registry,
    relationship,
)

import sa_proletarian
from sa_proletarian import ArchivedJobMixin, JobMixin, Outcome, Proletarian, models_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from advanced_alchemy import base as advanced
    from sqlmodel import SQLModel


def mixed(Base, **attributes):
    """Make the models with the mixins."""
    return type("Job", (JobMixin, Base), attributes), type("ArchivedJob", (ArchivedJobMixin, Base), attributes)


def assert_works(engine, Job, ArchivedJob, **columns):
    """Create the tables, enqueue two jobs, work them, and find them archived."""
    Job.metadata.create_all(engine)
    jobs = Proletarian(Job, ArchivedJob)
    jobs.handler("work")(lambda session, job: seen.append(session.get_one(Job, job.job_id).payload))
    seen = []
    with Session(engine) as session, session.begin():
        jobs.enqueue(session, "work", {"n": 1}, **columns)
        session.add(Job("work", {"n": 2}, **columns))
    assert jobs.process_next(engine) is Outcome.RETURNED
    assert jobs.process_next(engine) is Outcome.RETURNED
    with Session(engine) as session:
        archived = session.query(ArchivedJob).order_by(ArchivedJob.process_at, ArchivedJob.job_id).all()
        assert [(job.payload, job.status) for job in archived] == [({"n": 1}, "success"), ({"n": 2}, "success")]
        assert session.query(Job).count() == 0
    assert seen == [{"n": 1}, {"n": 2}]
    return archived


def described(engine, schema=None):
    """Give all that PostgreSQL knows of the tables: columns, constraints, indexes, comments."""
    query = """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
          LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE c.relnamespace = CAST(:schema AS regnamespace) AND c.relkind = 'r' ORDER BY c.relname, a.attnum;
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
         WHERE connamespace = CAST(:schema AS regnamespace) ORDER BY 1, 2;
        SELECT tablename, indexname, replace(indexdef, :schema || '.', '') FROM pg_indexes
         WHERE schemaname = :schema ORDER BY 1, 2;
        SELECT relname, obj_description(oid) FROM pg_class WHERE relnamespace = CAST(:schema AS regnamespace)
         AND relkind = 'r' ORDER BY 1"""
    schema = schema or "public"
    with engine.connect() as connection:
        connection.execute(text(f"SET search_path TO {schema}"))
        return [connection.execute(text(part), {"schema": schema}).all() for part in query.split(";")]


# Every kind of base


def plain_base():
    return type("Base", (DeclarativeBase,), {})


def base_without_metaclass():
    return type("Base", (DeclarativeBaseNoMeta,), {})


def base_of_another_constructor():
    return registry(constructor=None).generate_base()


def dataclass_base():
    return type("Base", (MappedAsDataclass, DeclarativeBase), {})


def strict_dataclass_base():
    class Base(MappedAsDataclass, DeclarativeBase, kw_only=True, repr=False, eq=False):
        pass

    return Base


def base_with_a_primary_key():
    class Base(DeclarativeBase):
        id: Mapped[int] = mapped_column(primary_key=True)

    return Base


def flask_model(**options):
    import flask_sqlalchemy

    return flask_sqlalchemy.SQLAlchemy(**options).Model


def fresh(Base):
    """Make an abstract base below a library's shared one, with MetaData and registry of its own."""
    own = registry(metadata=MetaData())
    attributes = {"__abstract__": True, "registry": own, "_sa_registry": own, "metadata": own.metadata}
    return type(Base)("Fresh", (Base,), attributes)


def sqlmodel_base():
    return type(SQLModel)("Fresh", (SQLModel,), {"__module__": __name__}, registry=registry())


MIXIN_BASES = {
    "plain": plain_base,
    "no metaclass": base_without_metaclass,
    "declarative_base()": declarative_base,
    "Flask-SQLAlchemy": flask_model,
    "Flask-SQLAlchemy on 2.0 style": lambda: flask_model(model_class=plain_base()),
    "advanced-alchemy DefaultBase": lambda: fresh(advanced.DefaultBase),
}
BASES = {
    **MIXIN_BASES,
    "constructor=None": base_of_another_constructor,
    "MappedAsDataclass": dataclass_base,
    "MappedAsDataclass with options": strict_dataclass_base,
    "own primary key": base_with_a_primary_key,
    "SQLModel": sqlmodel_base,
    "advanced-alchemy UUIDAuditBase": lambda: fresh(advanced.UUIDAuditBase),
    "advanced-alchemy BigIntBase": lambda: fresh(advanced.BigIntBase),
    "advanced-alchemy AdvancedDeclarativeBase": lambda: fresh(advanced.AdvancedDeclarativeBase),
    "registry": registry,
    "MetaData": MetaData,
}


@pytest.fixture(scope="module")
def expected(postgres):
    """Return the description of the default models' tables."""
    engine = create_engine(postgres.url())
    sa_proletarian.metadata.create_all(engine)
    found = described(engine)
    sa_proletarian.metadata.drop_all(engine)
    engine.dispose()
    return found


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_models_for_makes_the_default_tables_on_every_base(engine, expected, make):
    models = models_for(make())
    assert_works(engine, *models)
    assert described(engine) == expected


@pytest.mark.parametrize("make", MIXIN_BASES.values(), ids=MIXIN_BASES)
def test_the_mixins_make_the_default_tables_on_every_base_without_constructor_or_key(engine, expected, make):
    # Flask-SQLAlchemy and advanced-alchemy name tables after classes; the mixin's name comes first
    assert_works(engine, *mixed(make()))
    assert described(engine) == expected


def test_plain_classes_of_registry_mapped_make_the_default_tables(engine, expected):
    mappers = registry()

    @mappers.mapped
    class Job(JobMixin):
        metadata = mappers.metadata

    @mappers.mapped
    class ArchivedJob(ArchivedJobMixin):
        pass

    assert_works(engine, Job, ArchivedJob)
    assert described(engine) == expected
    with pytest.raises(TypeError, match="no_such_column"):
        Job("work", no_such_column=1)


def test_the_default_models_work(tables):
    assert_works(tables, sa_proletarian.Job, sa_proletarian.ArchivedJob)


@pytest.mark.parametrize("way", ["mixins", "models_for"])
def test_the_apps_naming_convention_default_schema_and_type_map_change_nothing(engine, expected, way):
    class Base(DeclarativeBase):
        metadata = MetaData(
            schema="app", naming_convention={kind: f"{kind}_app_%(table_name)s" for kind in ("ix", "uq", "ck", "fk", "pk")}
        )
        type_annotation_map = {  # noqa: RUF012
            str: String(5),
            int: BigInteger(),
            datetime: DateTime(),
            UUID: String(40),
            Any: Text(),
        }

    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA app"))
    assert_works(engine, *(mixed(Base) if way == "mixins" else models_for(Base)))
    found = described(engine, "app")
    primary_keys = {(f"proletarian_{table}", f"pk_app_proletarian_{table}") for table in ("job", "archived_job", "worker")}
    assert {row[:2] for row in found[1]} - {row[:2] for row in expected[1]} == primary_keys
    assert found[0] == expected[0], "columns"
    assert found[3] == expected[3], "comments"


def test_a_worker_runs_the_jobs_of_models_for(engine, recorder):
    Job, ArchivedJob = models_for(dataclass_base())
    Job.metadata.create_all(engine)
    jobs = Proletarian(Job, ArchivedJob)
    jobs.handler("work")(lambda session, job: None)
    with Session(engine) as session, session.begin():
        jobs.enqueue(session, "work")
    with sa_proletarian.Worker(jobs, engine, listener=recorder):
        recorder.wait_for("job_finished")
    with Session(engine) as session:
        assert session.query(ArchivedJob.status).all() == [("success",)]


# Frameworks, as they are


def test_flask_sqlalchemys_create_all_and_its_session_take_several_instances(database_url):
    import flask
    import flask_sqlalchemy

    db = flask_sqlalchemy.SQLAlchemy(model_class=plain_base())

    class User(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)

    Job, ArchivedJob = models_for(db.Model)
    Mail, ArchivedMail = models_for(db.Model, prefix="mail_")
    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url
    db.init_app(app)
    with app.app_context():
        db.create_all()
        jobs = Proletarian(Job, ArchivedJob)
        jobs.handler("work")(lambda session, job: session.get_one(User, job.payload["user_id"]))
        db.session.add(user := User())
        db.session.flush()
        jobs.enqueue(db.session, "work", {"user_id": user.id})
        Proletarian(Mail, ArchivedMail).enqueue(db.session, "send")
        db.session.commit()
        assert jobs.process_next(db.engine) is Outcome.RETURNED
        assert db.session.query(ArchivedJob.status).all() == [("success",)]
        assert db.session.query(Mail.job_type).all() == [("send",)]
        db.session.remove()
        db.engine.dispose()


def test_sqlmodels_tables_and_session_go_with_jobs(engine):
    import sqlmodel

    Base = sqlmodel_base()

    class Hero(Base, table=True):
        id: int | None = sqlmodel.Field(default=None, primary_key=True)

    class HeroJobMixin(JobMixin):
        hero_id: Mapped[int] = mapped_column(ForeignKey("hero.id"))

        @declared_attr
        def hero(cls) -> Mapped[Any]:  # noqa: N805
            return relationship("Hero")

    Job, ArchivedJob = models_for(Base, mixins=(HeroJobMixin, ArchivedJobMixin))
    Base.metadata.create_all(engine)
    jobs = Proletarian(Job, ArchivedJob)
    with sqlmodel.Session(engine) as session:
        jobs.enqueue(session, "work", hero=(hero := Hero()))
        session.commit()
        assert session.exec(sqlmodel.select(Job)).one().hero is hero


# What the mixins refuse


def dataclass_job(Base):
    class Job(JobMixin, Base):
        pass


def dataclass_archive(Base):
    class ArchivedJob(ArchivedJobMixin, Base):
        pass


@pytest.mark.parametrize("declare", [dataclass_job, dataclass_archive])
@pytest.mark.parametrize("make", [dataclass_base, strict_dataclass_base, sqlmodel_base])
def test_the_mixins_refuse_a_base_that_writes_constructors_and_name_models_for(declare, make):
    with pytest.raises(TypeError, match=r"Job: a dataclass or an SQLModel .* write Job, ArchivedJob = models_for\(Base\)"):
        declare(make())


def test_the_mixins_refuse_an_sqlmodel_table():
    with pytest.raises(TypeError, match=r"models_for\(Base\)"):

        class Job(JobMixin, sqlmodel_base(), table=True):
            pass


@pytest.mark.filterwarnings("ignore")  # SQLAlchemy 2.0 also warns
@pytest.mark.parametrize("way", ["base first", "mapped_as_dataclass", "dataclass"])
def test_other_ways_to_a_dataclass_are_refused_too(way):
    # 2.1 refuses the first two itself, before we can
    with pytest.raises((TypeError, InvalidRequestError), match=r"JobMixin"):
        if way == "base first":
            type("Job", (dataclass_base(), JobMixin), {})
        elif way == "mapped_as_dataclass":
            registry().mapped_as_dataclass(type("Job", (JobMixin,), {}))
        else:
            registry().mapped(dataclass(type("Job", (JobMixin,), {})))


@pytest.mark.parametrize("make", [base_with_a_primary_key, BASES["advanced-alchemy UUIDAuditBase"]])
def test_a_mixin_on_a_base_with_a_primary_key_is_refused_in_words(make):
    with pytest.raises(TypeError, match="primary key besides job_id.*models_for"):
        Proletarian(*mixed(make()))


# Several instances


def test_instances_differ_by_prefix_and_schema_in_one_base(engine):
    class Base(DeclarativeBase):
        pass

    class Job(Base):
        """Something of the app's own."""

        __tablename__ = "job_offer"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Candidate(Base):
        __tablename__ = "candidate"
        id: Mapped[int] = mapped_column(primary_key=True)
        job_id: Mapped[int] = mapped_column(ForeignKey("job_offer.id"))
        job: Mapped[Job] = relationship("Job")

    pairs = [
        models_for(Base),
        models_for(Base, prefix="mail_"),
        models_for(Base, prefix="", schema="mail"),
        models_for(Base, schema="mail"),
        models_for(Base, prefix="Büro-"),
    ]
    assert [job.__name__ for job, _ in pairs] == ["ProletarianJob", "MailJob", "Mail_Job", "Mail_ProletarianJob", "Büro-job"]
    assert [job.__worker_table__.fullname for job, _ in pairs] == [
        "proletarian_worker",
        "mail_worker",
        "mail.worker",
        "mail.proletarian_worker",
        "Büro-worker",
    ]
    assert [archived.__tablename__ for _, archived in pairs] == [
        "proletarian_archived_job",
        "mail_archived_job",
        "archived_job",
        "proletarian_archived_job",
        "Büro-archived_job",
    ]
    configure_mappers()
    assert Candidate.job.property.mapper.class_ is Job
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA mail"))
    for pair in pairs:
        assert_works(engine, *pair)
    found = set(inspect(engine).get_table_names("mail"))
    assert found == {f"{prefix}{table}" for prefix in ("", "proletarian_") for table in ("job", "archived_job", "worker")}


def test_a_given_schema_wins_over_that_of_the_metadata():
    metadata = MetaData(schema="app")
    Job, ArchivedJob = models_for(metadata, schema="queues")
    assert (Job.__table__.schema, ArchivedJob.__table__.schema) == ("queues", "queues")
    assert models_for(metadata)[0].__table__.schema == "app"
    tables = ("job", "archived_job", "worker")
    assert set(metadata.tables) == {f"{schema}.proletarian_{table}" for schema in ("app", "queues") for table in tables}


def test_an_abstract_base_with_metadata_of_its_own_gets_the_tables_there():
    Base = plain_base()
    Other = type("Other", (Base,), {"__abstract__": True, "metadata": MetaData()})
    Job, _ = models_for(Other)
    assert Job.metadata is Other.metadata
    assert Job.registry is Base.registry
    assert not Base.metadata.tables


# Own mixins


class TenantJob(JobMixin):
    """A job of a tenant."""

    tenant_id: Mapped[int] = mapped_column(Integer())

    @declared_attr.directive
    def __table_args__(cls):  # noqa: N805
        return (UniqueConstraint("tenant_id", "job_id"), {"info": {"of": "a tenant"}})


class ArchivedTenantJob(ArchivedJobMixin):
    tenant_id: Mapped[int] = mapped_column(Integer())


@pytest.mark.parametrize("schema", [None, "tenants"])
def test_own_mixins_bring_columns_and_table_arguments(engine, schema):
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenants"))
    Job, ArchivedJob = models_for(dataclass_base(), schema=schema, mixins=(TenantJob, ArchivedTenantJob))
    assert [archived.tenant_id for archived in assert_works(engine, Job, ArchivedJob, tenant_id=7)] == [7, 7]
    assert Job.__table__.info == {"of": "a tenant"}
    assert (Job.__doc__, Job.__module__) == ("A job of a tenant.", __name__)
    [unique] = inspect(engine).get_unique_constraints("proletarian_job", schema)
    assert unique["column_names"] == ["tenant_id", "job_id"]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (["Base"], {}, TypeError, "models_for takes a declarative base, a registry or a MetaData, got 'Base'"),
        ([DeclarativeBase], {}, TypeError, "models_for takes a declarative base"),
        ([object], {}, TypeError, "models_for takes a declarative base"),
        ([MetaData()], {"prefix": None}, TypeError, "prefix must be a text, got None"),
        ([MetaData()], {"schema": 7}, TypeError, "schema must be a text or None, got 7"),
        ([MetaData()], {"mixins": TenantJob}, TypeError, "mixins must be a subclass of JobMixin and one of"),
        ([MetaData()], {"mixins": (ArchivedTenantJob, TenantJob)}, TypeError, "mixins must be a subclass of JobMixin and"),
        (
            [MetaData()],
            {"mixins": (sa_proletarian.Job, sa_proletarian.ArchivedJob)},
            TypeError,
            "mixins must not be mapped, but Job is a model already",
        ),
    ],
)
def test_mistakes_are_refused_in_words(arguments, options, error, message):
    with pytest.raises(error, match=message):
        models_for(*arguments, **options)


@pytest.mark.parametrize("options", [{}, {"schema": "app"}])
def test_tables_that_are_there_already_are_refused_before_anything_is_made(options):
    metadata = MetaData(schema="app")
    models_for(metadata)
    with pytest.raises(ValueError, match=r"a table app\.proletarian_job already: give another prefix or schema"):
        models_for(metadata, **options)
    Base = plain_base()
    type("ArchivedJob", (ArchivedJobMixin, Base), {})
    with pytest.raises(ValueError, match="a table proletarian_archived_job already"):
        models_for(Base)
    assert set(Base.metadata.tables) == {"proletarian_archived_job"}
    metadata = MetaData()
    Table("worker", metadata)
    with pytest.raises(ValueError, match="a table worker already"):
        models_for(metadata, prefix="")
    assert set(metadata.tables) == {"worker"}
