"""What the commands ``check``, ``grants``, ``prune`` and ``partitions`` do.

It owns the way from arguments to models and to a database, the words for what is wrong with them, and the exit codes. It
refuses to parse arguments (``cli``), and to print a password, whoever would quote it.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Engine, MetaData, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from . import grants as rights
from . import partitions, prune_bar, schema, verbs
from .connections import own_engine, plain
from .dialects import MYSQL, SUPPORTED, Trouble, trouble
from .errors import ProletarianError, without_details
from .model_factory import models_for
from .models import ArchivedJobMixin
from .references import ModuleUnusable, ReferenceMistake, look_up

OK, DRIFT, USAGE, NO_CONNECTION = 0, 1, 2, 3
REFUSED = 1

_CONNECT_TIMEOUT = 10
_VARIABLE = "SA_PROLETARIAN_DATABASE_URL"


class UsageError(Exception):
    """The arguments do not mean anything that can be done; the message says why."""


def check(arguments: Namespace) -> int:
    """Print in one line whether the tables are what this version needs.

    0: they are. 1: they are not. 2: the arguments are wrong. 3: the database could not be asked.
    """
    return _explained(_check, arguments)


def grants(arguments: Namespace) -> int:
    """Print the GRANT statements for a role; 2 if the arguments are wrong."""
    return _explained(_grants, arguments)


def prune(arguments: Namespace) -> int:
    """Delete archived jobs that ended long ago, and say how many.

    0: done. 1: the database refused it. 2: the arguments are wrong. 3: there is no connection to the database.
    """
    return _explained(_prune, arguments)


def keep_months(arguments: Namespace) -> int:
    """Make the coming months of a partitioned archive, drop those that are over, and say which.

    0: done. 1: the database refused it. 2: the arguments are wrong. 3: there is no connection to the database.
    """
    return _explained(_keep_months, arguments)


def _explained(command: Callable[[Namespace], int], arguments: Namespace) -> int:
    try:
        return command(arguments)
    except (UsageError, ProletarianError) as error:
        return _complain(str(error), USAGE)


def _complain(message: str, code: int) -> int:
    print(f"sa-proletarian: {message}", file=sys.stderr)  # noqa: T201
    return code


def _check(arguments: Namespace) -> int:
    url = _url(arguments.url)
    models = _models(arguments)
    engine = _engine(url)
    try:
        with engine.execution_options(schema_translate_map=_schemas(arguments)).connect() as connection:
            result = schema.check(connection, *models)
    except SQLAlchemyError as error:
        return _complain(_without_password(_first_line(error), url), NO_CONNECTION)
    finally:
        engine.dispose()
    print(result.message)  # noqa: T201
    return OK if result.ok else DRIFT


def _grants(arguments: Namespace) -> int:
    models = _models(arguments)
    try:
        given = rights.grants(arguments.role, *models, to=arguments.to, schema_translate_map=_schemas(arguments))
        print(given.script())  # noqa: T201
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return OK


def _prune(arguments: Namespace) -> int:
    _, archived = _models(arguments)
    if not issubclass(archived, ArchivedJobMixin):
        raise UsageError(f"only an archive made with ArchivedJobMixin can be pruned, not {archived.__name__}")
    engine = _engine_of_app(arguments.engine) if arguments.engine else _engine(_url(arguments.url, *MYSQL))
    own = own_engine(engine.execution_options(schema_translate_map=_schemas(arguments)), size=1)
    filters = {"queue": arguments.queue, "status": arguments.status}
    try:
        with prune_bar.shown(sys.stdout, plain=arguments.plain) as progress:
            count = verbs.prune(own, archived, arguments.older_than, **filters, dry_run=arguments.dry_run, progress=progress)
    except SQLAlchemyError as error:
        return _complain_of(error, engine.url)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    finally:
        engine.dispose()
    print(f"{archived.__tablename__}: {count} rows {'would be ' if arguments.dry_run else ''}pruned")  # noqa: T201
    return OK


def _keep_months(arguments: Namespace) -> int:
    url = _url(arguments.url)
    _, archived = _models(arguments)
    table = archived.__table__
    place: dict[str, Any] = {"table": table.name, "schema": table.schema}
    engine = _engine(url)
    try:
        with engine.execution_options(schema_translate_map=_schemas(arguments)).begin() as connection:
            connection.execute(text("SELECT set_config('lock_timeout', '5s', true)"))
            made = partitions.make(connection, **place, months=arguments.months)
            age = arguments.older_than
            dropped = [] if age is None else partitions.drop(connection, **place, older_than=age)
    except SQLAlchemyError as error:
        return _complain_of(error, url)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    finally:
        engine.dispose()
    print(f"{table.name}: made {', '.join(made) or 'none'}; dropped {', '.join(dropped) or 'none'}")  # noqa: T201
    return OK


def _complain_of(error: SQLAlchemyError, url: URL) -> int:
    away = trouble(error) in (Trouble.DISCONNECTED, Trouble.TRANSIENT)
    return _complain(_without_password(_first_line(error), url), NO_CONNECTION if away else REFUSED)


def _engine_of_app(place: str) -> Engine:
    found = _object("--engine", place)
    made: Any = found() if callable(found) else found
    engine: Any = plain(made)
    if not isinstance(engine, Engine):
        raise UsageError(f"--engine: {place} is a {type(engine).__name__}, not an Engine or an AsyncEngine")
    return engine


# the database ---------------------------------------------------------------------------------------------------------


def _url(given: str | None, *others: str) -> URL:
    """Read the URL of a database that is PostgreSQL, or one of ``others``."""
    if not given:
        raise UsageError(f"give --url, or set {_VARIABLE}")
    try:
        url = make_url(given)
        url.get_dialect()
    except (ArgumentError, ValueError):  # its message may quote what it was given
        raise UsageError("the URL cannot be read; write it as postgresql+psycopg://user:password@host/database") from None
    except ImportError as missing:
        raise UsageError(f"the URL's driver is not installed ({missing.name})") from None
    if url.get_backend_name() in others:
        return url.set(drivername=f"{url.get_backend_name()}+pymysql") if url.get_dialect().is_async else url
    if url.get_backend_name() not in SUPPORTED:
        raise UsageError(f"only PostgreSQL's catalog can be read, not that of {url.get_backend_name()}")
    # one that needs an event loop is not needed to ask a question; psycopg is there, for it is a dependency
    return url.set(drivername="postgresql+psycopg") if url.get_dialect().is_async else url


def _engine(url: URL) -> Engine:
    arguments: dict[str, Any] = {}
    if url.get_dialect().driver.startswith("psycopg") and "connect_timeout" not in url.query:
        arguments["connect_timeout"] = _CONNECT_TIMEOUT
    try:
        return create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=arguments)
    except ImportError as missing:
        raise UsageError(f"the URL's driver is not installed ({missing.name})") from None


def _first_line(error: SQLAlchemyError) -> str:
    original = getattr(error, "orig", None) or error
    return without_details(str(original)).strip().split("\n")[0]


def _without_password(message: str, url: URL) -> str:
    return message.replace(url.password, "***") if url.password else message


# the models -----------------------------------------------------------------------------------------------------------


def _models(arguments: Namespace) -> tuple[Any, Any]:
    if arguments.models is None:
        return models_for(MetaData(), prefix=arguments.prefix or "proletarian_")
    if arguments.prefix is not None:
        raise UsageError("give --models or --prefix: models have their tables' names")
    found = [_object("--models", place) for place in arguments.models.split(",", maxsplit=1)]
    try:
        return schema.models_of(*found)
    except TypeError:
        raise UsageError(
            f"--models takes module:jobs or module:Job,module:ArchivedJob, but {arguments.models} is not that"
        ) from None


def _object(option: str, place: str) -> Any:
    try:
        return look_up(place.strip())
    except (ReferenceMistake, ModuleUnusable) as error:
        raise UsageError(f"{option}: {error}") from error


def _schemas(arguments: Namespace) -> dict[str | None, str | None]:
    return {} if arguments.schema is None else {None: arguments.schema}
