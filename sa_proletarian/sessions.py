"""The handler's session, and the transaction that holds its job.

It owns the lazily begun hold: nothing is opened until the session is first used; then one connection begins, locks the
job's row under its fence, and keeps both until the job is settled. It refuses to settle anything, and to give a
connection to a session whose job is over.

The session is of the app's own class, with the app's own options. A subclass of it, made once for each class, asks the
app's ``get_bind`` first and puts the held connection where the worker's engine would be used; ``create_savepoint``
then lets a handler commit, roll back or close as it likes, without ending the transaction that holds the job.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, NestedTransaction
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from . import simple_protocol
from .claims import Claim, Held
from .connections import same_database
from .errors import ClaimLost, ConfigurationError, SessionClosed
from .lifecycle import Lifecycle
from .scripts import HeldConnection

SessionSource = sessionmaker[Any] | scoped_session[Any] | None
"""Where an app's sessions come from, as far as a worker is told."""

FIRST_USE_LOCK_TIMEOUT = timedelta(seconds=5)
_SAVEPOINTS = ("sa_proletarian_lock", "sa_proletarian_session")
"""The worker's own, and the first that the session will ask for."""


class Hold:
    """The transaction that holds one claimed job, from the session's first use to the settling.

    :ivar held: pid and transaction of the server process that holds the job; ``None`` before first use.
    :ivar lost: the claim was somebody else's at first use, whatever the handler makes of that.
    :ivar unavailable: why the transaction could not be opened, whatever the handler makes of that.
    :ivar spoilt: nobody shall have the connection next: a cancel was sent to the server process, which may arrive late, or
        the transaction was ended behind its back, and who knows what else was done (LOCK TABLES, SET autocommit).
    """

    __slots__ = (
        "_claim",
        "_connection",
        "_engine",
        "_lifecycle",
        "_opening",
        "_options",
        "_over",
        "_savepoint",
        "held",
        "lost",
        "scripted",
        "spoilt",
        "unavailable",
    )
    _may_script = True

    def __init__(self, engine: Engine, lifecycle: Lifecycle, claim: Claim) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._claim = claim
        self._opening: AbstractContextManager[bool]
        self._connection: Connection | None = None
        self._savepoint: NestedTransaction | None = None
        self._options: Any = None
        self._over = False
        self.held: Held | None = None
        self.lost: bool = False
        self.unavailable: BaseException | None = None
        self.spoilt: bool = False
        self.scripted: bool = False

    def get_ready(self) -> None:
        """Get ready for the handler, which may hand its session to a thread pool: two first uses must not open twice."""
        self._opening = self._make_lock()

    def _make_lock(self) -> AbstractContextManager[bool]:
        return threading.Lock()

    @property
    def opened(self) -> bool:
        """Whether the session has been used."""
        return self._connection is not None

    @property
    def is_untouched(self) -> bool:
        """Whether the session has not been used, nor was tried to be."""
        return self._connection is None and not self.lost and self.unavailable is None

    @property
    def died(self) -> bool:
        """Whether the connection that held the job is gone."""
        connection = self._connection
        return connection is not None and (connection.invalidated or connection.closed)

    def connection(self) -> Connection:
        """Give the connection that holds the job; open it on first use."""
        with self._opening:
            if self._over:
                raise SessionClosed(f"the session of job {self._claim.job_id} was used after the job was over")
            if self._connection is None:
                self._connection = self._open()
            return self._connection

    @property
    def in_coroutine(self) -> bool:
        """Whether an ``async def`` handler runs, which must not wait as a function in a thread may."""
        return False

    def cancel_call(self) -> None:
        """Cancel the handler, where one can be cancelled from outside: a function in a thread cannot."""

    def seal(self) -> None:
        """Give no connection to the session any more; a thread that outlives its handler must not join the settling."""
        with self._opening:
            self._over = True

    def abandon(self) -> None:
        """Do the same from another thread, without waiting for one that is just opening: its fence will not hold."""
        self._over = True

    def for_settling(self) -> Connection:
        """Give the open connection, with its own execution options, whatever the handler has set on it."""
        assert self._connection is not None
        self.restore_options()
        if isinstance(self._connection, HeldConnection):
            self._connection.send_releases()
        return self._connection

    def commit_session(self, session: Any) -> None:
        """Commit the session's own transaction, for good: nobody asks it for anything after that."""
        if self.scripted:
            connection: Any = self._connection
            connection.delays_releases = True
        session.commit()

    def finish(self, limits: Mapping[str, str]) -> str:
        """Archive the job as ``success`` and COMMIT, in one round trip; give the id of the transaction."""
        connection: Any = self._connection
        assert self.held is not None
        self.restore_options()
        transaction_id = self._lifecycle.finish_by_script(connection, self._claim, self.held, limits=limits)
        connection.commit()  # for SQLAlchemy, which has not seen it
        return transaction_id

    def has_ended(self) -> bool:
        """Whether no transaction is open any more on the connection that has held the job."""
        connection: Any = self._connection
        return simple_protocol.has_ended(connection)

    def reason_of(self, error: Exception) -> BaseException:
        """Give the error that undid the transaction, where a later ``error`` only says that it must be rolled back."""
        return error if self._connection is None else self._lifecycle.undone_by(self._connection) or error

    def restore_options(self) -> None:
        """Take back what the handler has set: a RELEASE cannot be streamed, nor our tables found in another schema."""
        if self._connection is not None:
            self._connection._execution_options = self._options

    def roll_back_to_lock(self) -> None:
        """Undo everything that the handler has done, and keep the lock on the job."""
        assert self._savepoint is not None
        if isinstance(self._connection, HeldConnection):
            self._connection.to_release.clear()
        if self._savepoint.is_active:  # else this has been done, and nothing since
            self._savepoint.rollback()
            self._lifecycle.watch(self.for_settling())

    def renew(self, lease: timedelta) -> None:
        """Extend the job's lease, for good, and undo everything else; the lock is gone then."""
        self.roll_back_to_lock()
        connection = self.for_settling()
        self._lifecycle.renew(connection, [self._claim], lease=lease)
        connection.commit()

    def close(self) -> None:
        """Roll back what is not committed and give the connection back; later use raises."""
        with self._opening:
            self._over = True
            self._release()

    def reset(self) -> None:
        """Roll everything back, so that the handler can be called again in the same claim."""
        with self._opening:
            self._release()
            self._over = False
            self.held = self.unavailable = None

    def _open(self) -> Connection:
        if self.lost:
            raise self._claim_lost()
        try:
            connection = self._connect()
        except Exception as error:
            self.unavailable = error
            raise
        try:
            self._lock(connection)
        except BaseException as error:
            self.unavailable = error
            throw_away(connection)
            raise
        if self.held is None:
            self.lost = True
            connection.close()
            raise self._claim_lost()
        self._options = connection.get_execution_options()
        return connection

    def _connect(self) -> Connection:
        if not self._may_script or not self._lifecycle.has_scripts:
            return self._engine.connect()
        connection = HeldConnection(self._engine)
        self.scripted = simple_protocol.understands(connection)
        return connection

    def _lock(self, connection: Connection) -> None:
        if isinstance(connection, HeldConnection) and self.scripted:
            self.held = self._lifecycle.hold_by_script(
                connection, self._claim, lock_timeout=FIRST_USE_LOCK_TIMEOUT, savepoints=_SAVEPOINTS
            )
            connection.made = [*_SAVEPOINTS]
        else:
            self.held = self._lifecycle.hold(connection, self._claim, lock_timeout=FIRST_USE_LOCK_TIMEOUT)
        self._savepoint = connection.begin_nested()
        self._lifecycle.watch(connection)

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self.held is not None and not self.spoilt:
                self._lifecycle.let_go(connection, self.held)
            throw_away(connection) if self.spoilt else _discard(connection)

    def _claim_lost(self) -> ClaimLost:
        return ClaimLost(f"the claim on job {self._claim.job_id} belongs to somebody else now")


def open_session(source: SessionSource, engine: Engine, hold: Hold) -> Session:
    """Make the handler's session: of the app's class and options, on the held connection where it would use ``engine``."""
    if source is None:
        session: Session = _plain_session(bind=engine, join_transaction_mode="create_savepoint")
    else:
        maker: sessionmaker[Any] = maker_of(source)
        options: dict[str, Any] = maker.kw
        if options.get("bind") is None:
            options = {**options, "bind": engine}
        session_class: Any = maker.class_
        session = held_class(session_class)(**held_options(options))
    hold_in(session, engine, hold)
    return session


def close_session(session: Session) -> None:
    """Close the handler's session, if it has been used: for most short jobs this would cost more than the job."""
    if is_used(session):
        with suppress(Exception):
            session.close()


def is_used(session: Session) -> bool:
    """Whether closing ``session`` does anything."""
    return session.in_transaction() or bool(session.identity_map) or type(session).close is not Session.close


def held_options(options: dict[str, Any]) -> dict[str, Any]:
    """Give the app's session options with those that let a handler commit and roll back as it likes."""
    return {**options, "join_transaction_mode": "create_savepoint", "twophase": False}


def hold_in(session: Any, engine: Engine, hold: Hold) -> None:
    """Let a session of a :func:`held_class` use ``hold`` where it would use ``engine``."""
    session.proletarian_hold = hold
    session.proletarian_engine = engine


@contextmanager
def in_scope(source: Any, session: Any) -> Generator[None, None, None]:
    """Let the app's ``scoped_session``, if it gave one, be ``session`` in the scope in which this is entered.

    The scope gets back what it had before, so that whoever ends it does not close a session that is ours to settle.
    """
    if not hasattr(source, "session_factory"):
        yield
        return
    registry: Any = source.registry
    before = _current(registry)
    registry.set(session)
    try:
        yield
        if _current(registry) not in (session, None):
            raise RuntimeError(
                "the handler has called remove() on the scoped session and gone on with another one, whose writes do not "
                "commit with the job: use rollback() or close()"
            )
    finally:
        other = _current(registry)
        if other is not session and isinstance(other, Session):
            other.close()
        registry.clear() if before is None else registry.set(before)


def _current(registry: Any) -> Any:
    return registry() if registry.has() else None


def checked_maker(source: Any, engine: Engine, kind: type[Any] = sessionmaker) -> Any:
    """Give ``source`` if it is a ``sessionmaker``, the ``scoped_session`` of one, or ``None``.

    :param kind: ``sessionmaker`` or ``async_sessionmaker``.

    ``TypeError`` for anything else; ``ConfigurationError`` when it is bound to another engine than the worker's,
    because what handlers write would then not commit together with their jobs.
    """
    factory: Any = maker_of(source)
    if factory is None:
        return None
    if not isinstance(factory, kind):
        article = "an" if kind.__name__.startswith("a") else "a"
        raise TypeError(f"session must be {article} {kind.__name__}, got a {type(factory).__name__}")
    bind: Any = factory.kw.get("bind")
    bind = getattr(bind, "sync_engine", bind)
    if bind is not None and not same_database(bind, engine):
        raise ConfigurationError("session is bound to another engine than the worker's: give both the same engine")
    if isinstance(bind, Engine):
        _refuse_other_options(bind, engine)
    return source


def maker_of(source: Any) -> Any:
    """Give the ``sessionmaker`` itself, of whichever kind."""
    return getattr(source, "session_factory", source)


def _refuse_other_options(bind: Engine, engine: Engine) -> None:
    """One connection serves the handler and the settling, so both must mean the same schemas by the same names."""
    if bind.get_execution_options() != engine.get_execution_options():
        raise ConfigurationError(
            "the session's engine has other execution options than the worker's: give the worker that engine"
        )


@functools.cache
def held_class(session_class: Any) -> Callable[..., Any]:
    """Subclass the app's session class, once: a class for each job would cost more than the job."""

    def get_bind(self: Any, *args: Any, **kwargs: Any) -> Engine | Connection:
        bind: Engine | Connection = session_class.get_bind(self, *args, **kwargs)
        engine = self.proletarian_engine
        if not same_database(bind, engine):
            return bind
        if isinstance(bind, Engine):
            _refuse_other_options(bind, engine)
        return self.proletarian_hold.connection()  # type: ignore[no-any-return]

    return type(session_class.__name__, (session_class,), {"get_bind": get_bind, "__module__": session_class.__module__})


_plain_session = held_class(Session)


def _discard(connection: Connection) -> None:
    """Roll back and give the connection back; where that fails, throw it away. Never raises."""
    try:
        connection.close()
    except Exception:
        with suppress(Exception):
            connection.invalidate()
            connection.close()


def throw_away(connection: Connection) -> None:
    """Close the connection for good: what has failed once in this session of the server may always fail in it."""
    with suppress(Exception):
        connection.invalidate()
    _discard(connection)
