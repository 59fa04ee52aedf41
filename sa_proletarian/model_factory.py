"""The two models as classes made by a call: for bases that the mixins cannot share, and for several instances.

It owns where the tables go and what the classes are called. It refuses to take anything from the app's base but its
``registry`` and its ``MetaData``: neither columns nor constructors nor dataclass options.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar, overload

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, registry

from .models import ArchivedJobMixin, JobMixin
from .tables import worker_table_name

DEFAULT_PREFIX = "proletarian_"

_WORDS = re.compile(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*", re.ASCII)

J = TypeVar("J", bound=JobMixin)
A = TypeVar("A", bound=ArchivedJobMixin)


@overload
def models_for(
    base: type[Any] | registry | MetaData, *, prefix: str = ..., schema: str | None = ...
) -> tuple[type[JobMixin], type[ArchivedJobMixin]]: ...


@overload
def models_for(
    base: type[Any] | registry | MetaData,
    *,
    prefix: str = ...,
    schema: str | None = ...,
    mixins: tuple[type[J], type[A]],
) -> tuple[type[J], type[A]]: ...


def models_for(
    base: type[Any] | registry | MetaData,
    *,
    prefix: str = DEFAULT_PREFIX,
    schema: str | None = None,
    mixins: tuple[type[JobMixin], type[ArchivedJobMixin]] = (JobMixin, ArchivedJobMixin),
) -> tuple[type[JobMixin], type[ArchivedJobMixin]]:
    """Make the job model and the archive model on an app's base.

    ``Job, ArchivedJob = models_for(Base)`` is for a base of dataclasses (``MappedAsDataclass``) or of pydantic models
    (``SQLModel``), for one that brings a primary key of its own, and for several instances beside each other. Elsewhere
    a class of :class:`JobMixin` says the same and can be named in annotations.

    :param base: a declarative base of any kind, a ``registry``, or a ``MetaData``. The tables join its ``MetaData``, so your
        Alembic sees them. The classes join its ``registry``, so that relationships find them by name, and they find your
        models; a ``MetaData`` alone gives them a registry of their own. Nothing else is taken from the base.
    :param prefix: goes before ``job``, ``archived_job`` and ``worker`` in the tables' names; default ``"proletarian_"``.
    :param schema: the tables' schema; default that of the ``MetaData``.
    :param mixins: subclasses of :class:`JobMixin` and :class:`ArchivedJobMixin`, not mapped, that add columns or change the
        serializer or the ids.

    The classes are named after their tables: ``ProletarianJob``, with the schema ``queues`` ``Queues_ProletarianJob``.
    ``TypeError`` or ``ValueError`` for what cannot be a base or a mixin, or a table that the ``MetaData`` has already.
    """
    metadata = _metadata_of(base)
    _check_names(metadata, prefix, schema)
    job, archived = _checked_mixins(mixins)
    plain = _plain_base(_registry_of(base, metadata), metadata)
    return (
        _model(job, plain, f"{prefix}job", schema),
        _model(archived, plain, f"{prefix}archived_job", schema),
    )


def _metadata_of(base: Any) -> MetaData:
    metadata = base if isinstance(base, MetaData) else getattr(base, "metadata", None)
    if not isinstance(metadata, MetaData) or not isinstance(base, type | registry | MetaData):
        raise TypeError(f"models_for takes a declarative base, a registry or a MetaData, got {base!r}")
    return metadata


def _registry_of(base: Any, metadata: MetaData) -> registry:
    # SQLModel keeps its registry under SQLAlchemy's own, private name only
    candidates = (base, getattr(base, "registry", None), getattr(base, "_sa_registry", None))
    return next((found for found in candidates if isinstance(found, registry)), None) or registry(metadata=metadata)


def _check_names(metadata: MetaData, prefix: object, schema: object) -> None:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a text, got {prefix!r}")
    if not isinstance(schema, str | None):
        raise TypeError(f"schema must be a text or None, got {schema!r}")
    place = metadata.schema if schema is None else schema
    for name in (f"{prefix}job", f"{prefix}archived_job", worker_table_name(f"{prefix}job")):
        if (key := f"{place}.{name}" if place else name) in metadata.tables:
            raise ValueError(f"the MetaData has a table {key} already: give another prefix or schema")


def _checked_mixins(mixins: Any) -> tuple[type[JobMixin], type[ArchivedJobMixin]]:
    match mixins:
        case (type() as job, type() as archived) if issubclass(job, JobMixin) and issubclass(archived, ArchivedJobMixin):
            pass
        case _:
            raise TypeError(f"mixins must be a subclass of JobMixin and one of ArchivedJobMixin, got {mixins!r}")
    for mixin in (job, archived):
        if hasattr(mixin, "__table__"):
            raise TypeError(f"mixins must not be mapped, but {mixin.__name__} is a model already")
    return job, archived


def _plain_base(registry_: registry, metadata: MetaData) -> type[DeclarativeBase]:
    """Make a base that shares registry and MetaData with the app's, and none of its attributes."""
    constructor = registry().constructor
    return type("Base", (DeclarativeBase,), {"registry": registry_, "metadata": metadata, "__init__": constructor})


def _model(mixin: type[Any], base: type[DeclarativeBase], table_name: str, schema: str | None) -> Any:
    """Map ``mixin``; the schema is put where it leaves the mixin's own ``__table_args__`` alone."""

    def make_table(cls: type[Any], *args: Any, **options: Any) -> Any:
        return mixin.__table_cls__.__func__(cls, *args, **options | {"schema": schema})

    name = _class_name(table_name)
    namespace: dict[str, Any] = {"__tablename__": table_name, "__module__": mixin.__module__, "__doc__": mixin.__doc__}
    if schema is not None:
        name = f"{_class_name(schema)}_{name}"
        namespace["__table_cls__"] = classmethod(make_table)
    return type(name, (mixin, base), namespace)


def _class_name(name: str) -> str:
    """Write ``mail_job`` as ``MailJob``, and leave what two names could share: one registry may hold them both."""
    return "".join(map(str.capitalize, name.split("_"))) if _WORDS.fullmatch(name) else name
