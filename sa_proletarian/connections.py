"""The worker's own connections.

It owns a pool that connects exactly as the app's engine does (same creator, same ``connect_args``, same events) but shares
no connection with the app. It refuses to rebuild an engine from its URL, which would lose all of that, and it refuses
engines on which a claim would hold no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from sqlalchemy.pool.base import _AdhocProxiedConnection
from sqlalchemy.util import immutabledict

from . import mysql_errors, simple_protocol, wires
from .dialects import MYSQL, SUPPORTED
from .errors import ConfigurationError, without_details
from .keepalives import let_server_watch, watch_server

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

Pooler: TypeAlias = Literal["transaction"]
"""The mode of a pooler between the worker and the server, such as PgBouncer; in session mode it is none to us."""

_AUTOCOMMIT = (
    "the engine is in AUTOCOMMIT, in which a claim holds no lock and a job could be run twice; "
    "give the worker an engine without isolation_level='AUTOCOMMIT'"
)

_POOLED_MYSQL = (
    "no pooler may stand between a worker and MariaDB or MySQL that gives another server's connection to each transaction: "
    "what ends the connection of a handler that hangs is a lock of that connection"
)

_NO_CANCEL = (
    "what waits for this driver of MariaDB or MySQL cannot be cancelled from an event loop; "
    "for async def handlers give the worker an AsyncEngine: create_async_engine('mariadb+asyncmy://…')"
)

_ASYNCPG_CACHES = (
    "behind a pooler in transaction mode asyncpg must not keep prepared statements; "
    "make the engine with connect_args={'statement_cache_size': 0}"
)


def own_engine(
    engine: Engine | AsyncEngine,
    *,
    size: int,
    pooler: Pooler | None = None,
    timeout: float | None = 30,
    on_this_loop: bool = False,
    server_watches: bool = True,
) -> Engine:
    """Make an engine that connects as ``engine`` does, with a pool of its own of ``size`` connections.

    Any thread may use it, also where ``engine`` is an ``AsyncEngine``: its driver then works on an event loop beside them;
    or, with ``on_this_loop``, only greenlets of one event loop may, also where ``engine`` is a plain one: its driver then
    works in threads beside the loop.
    With ``pooler="transaction"`` no prepared statement gets a name, for a pooler would give it to another client's server.
    Who asks for one connection more waits up to ``timeout`` seconds for it; ``None``: for ever.

    Its transactions are READ COMMITTED, whatever the database's default; its errors hide parameters, and what the server
    quotes from rows (``error.orig.diag.message_detail`` still has it, for a handler that wants it); both ends of its
    TCP connections notice a dead network in seconds (see ``keepalives``; the server's end only with ``server_watches``,
    and without a pooler). ``ConfigurationError`` for an AUTOCOMMIT engine and for a database that is not supported.
    """
    app = plain(engine)
    _check(app, pooler)
    parent = app.pool
    pool_class, creator, dialect = _way_of_connecting(app, on_this_loop=on_this_loop)
    pool = pool_class(
        creator,
        pool_size=size,
        max_overflow=0,
        timeout=timeout,  # type: ignore[arg-type]  # the queue below takes None for "no limit"
        use_lifo=True,
        _dispatch=parent.dispatch,
        dialect=dialect,
    )
    wires.watch(pool)
    event.listen(pool, "connect", _refuse_autocommit)
    event.listen(pool, "connect", watch_server)
    if pooler is not None:
        event.listen(pool, "connect", _name_no_statements, insert=True)
    elif dialect.name in MYSQL:
        event.listen(pool, "connect", _read_committed)
        event.listen(pool, "checkin", _keep_no_autocommit)
    elif server_watches:
        event.listen(pool, "connect", let_server_watch)
    own = Engine(pool, dialect, app.url, hide_parameters=True)
    if not _knows_its_server(dialect):
        event.listen(pool, "connect", partial(_get_to_know_server, own))
    _share_events(own, app)
    event.listen(own, "handle_error", _leave_out_details)
    simple_protocol.listen_to(own)
    if dialect.name in MYSQL:
        event.listen(own, "handle_error", mysql_errors.note)
    else:
        event.listen(pool, "connect", partial(_begin_read_committed, dialect))
    options = {name: value for name, value in app.get_execution_options().items() if name != "isolation_level"}
    own.update_execution_options(**options)
    return own


def _knows_its_server(dialect: Dialect) -> bool:
    return hasattr(dialect, "default_isolation_level")


def _get_to_know_server(own: Engine, dbapi_connection: Any, record: Any) -> None:
    """Ask what SQLAlchemy asks on an engine's first connection, unless the answers are there.

    It asks once for all pools that connect as that engine does, and a second pool would not wait for the answers.
    """
    if _knows_its_server(own.dialect):
        return
    connection = Connection(
        own,
        connection=_AdhocProxiedConnection(dbapi_connection, record),
        _has_events=False,
        _allow_revalidate=False,
        _allow_autobegin=False,
    )
    connection._execution_options = immutabledict()
    own.dialect.initialize(connection)
    own.dialect.do_rollback(dbapi_connection)


def _share_events(own: Any, engine: Engine) -> None:
    """Let the app's engine events count for the worker too, also those added later; as an engine with options does it."""
    own.dispatch = own.dispatch._join(engine.dispatch)


def same_database(bind: Any, engine: Engine) -> bool:
    """Say whether ``bind`` (what a session would use) is ``engine``, perhaps with other execution options."""
    return getattr(bind, "engine", bind) is engine or getattr(bind, "pool", None) is engine.pool


def only_postgresql(engine: Engine | AsyncEngine, what: str) -> None:
    """Refuse ``engine`` where ``what`` is not made for its database."""
    name = plain(engine).dialect.name
    if name in MYSQL:
        raise ConfigurationError(f"{what} needs PostgreSQL; the engine's dialect is {name!r}")


def _check(engine: Engine, pooler: str | None) -> None:
    if not isinstance(engine, Engine):
        raise TypeError(f"a worker takes an Engine or an AsyncEngine, got a {type(engine).__name__}")
    if pooler not in (None, "transaction"):
        raise ValueError(f'pooler is "transaction" or None, got {pooler!r}')
    if engine.dialect.name not in (*SUPPORTED, *MYSQL):
        raise ConfigurationError(
            f"a worker needs PostgreSQL, MariaDB or MySQL; the engine's dialect is {engine.dialect.name!r}"
        )
    if pooler is not None and engine.dialect.name in MYSQL:
        raise ConfigurationError(_POOLED_MYSQL)
    levels = (engine.get_execution_options().get("isolation_level"), engine.dialect._on_connect_isolation_level)
    if any(str(level).upper() == "AUTOCOMMIT" for level in levels):
        raise ConfigurationError(_AUTOCOMMIT)


def plain(engine: Engine | AsyncEngine) -> Engine:
    """Give the ``Engine`` inside an ``AsyncEngine``; anything else as it is."""
    given: Any = engine
    return getattr(given, "sync_engine", given)  # type: ignore[no-any-return]


def _way_of_connecting(engine: Engine, *, on_this_loop: bool) -> tuple[type[QueuePool], Callable[..., Any], Dialect]:
    creator, dialect = _creator(engine.pool), engine.dialect
    match dialect.is_async, on_this_loop:
        case False, False:
            return QueuePool, creator, dialect
        case True, True:
            return AsyncAdaptedQueuePool, creator, dialect
        case True, False:
            from .bridge import BridgedCreator, BridgedPool  # noqa: PLC0415 (it needs greenlet, as an AsyncEngine does)

            return BridgedPool, BridgedCreator(engine.pool), dialect
        case _ if dialect.name in MYSQL:
            raise ConfigurationError(_NO_CANCEL)
        case _:
            from .aside import AsidePool, aside_dialect  # noqa: PLC0415 (it needs greenlet, as async handlers do)

            return AsidePool, creator, aside_dialect(dialect)


def _creator(pool: Any) -> Callable[..., Any]:
    return pool._creator  # type: ignore[no-any-return]


def _leave_out_details(context: ExceptionContext) -> None:
    """Keep payloads out of errors that travel: what the server quotes is part of their text, whoever prints it."""
    original, wrapper = context.original_exception, context.sqlalchemy_exception
    quoting = str(original)
    if (message := mysql_errors.without_values(original)) is not None:
        original.args = (*original.args[:1], message)
    for error in (original, wrapper):
        if error is not None and error.args and isinstance(error.args[0], str):
            error.args = (without_details(error.args[0].replace(quoting, str(original))), *error.args[1:])


def _name_no_statements(dbapi_connection: Any, record: Any) -> None:
    driver_connection = record.driver_connection
    if hasattr(driver_connection, "prepare_threshold"):
        driver_connection.prepare_threshold = None
    elif hasattr(dbapi_connection, "_prepared_statement_name_func"):
        if driver_connection._config.statement_cache_size:
            dbapi_connection.terminate()
            raise ConfigurationError(_ASYNCPG_CACHES)
        dbapi_connection._prepared_statement_cache = None
        dbapi_connection._prepared_statement_name_func = str  # always ""
        # without this it would SET jit off and on again when it looks up a type
        driver_connection._server_caps = driver_connection._server_caps._replace(jit=False)


def _refuse_autocommit(dbapi_connection: Any, record: Any) -> None:
    if _is_autocommit(dbapi_connection, record.driver_connection):
        dbapi_connection.close()  # SQLAlchemy 2.0 leaves open what a listener refuses
        raise ConfigurationError(_AUTOCOMMIT)


def _is_autocommit(dbapi_connection: Any, driver_connection: Any) -> bool:
    if hasattr(driver_connection, "get_autocommit"):  # the drivers of MariaDB and MySQL
        return bool(driver_connection.get_autocommit())
    return bool(getattr(dbapi_connection, "autocommit", False))


def _begin_read_committed(dialect: Dialect, dbapi_connection: Any, record: Any) -> None:
    """Let the driver begin transactions so, for good: as an option of the engine it would be set at each checkout anew."""
    dialect.set_isolation_level(dbapi_connection, "READ COMMITTED")


def _read_committed(dbapi_connection: Any, record: Any) -> None:
    """Set what these servers keep for a session: an enqueue then waits for no claim."""
    cursor = dbapi_connection.cursor()
    cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    cursor.close()


def _keep_no_autocommit(dbapi_connection: Any, record: Any) -> None:
    """Close what a handler has left in autocommit, in which no claim would hold a lock; the driver knows, without asking."""
    if dbapi_connection is not None and _is_autocommit(dbapi_connection, record.driver_connection):
        record.invalidate()
