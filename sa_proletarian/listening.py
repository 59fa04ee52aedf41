"""The ear of one worker: a thread with a connection of its own, on which the server says that something was enqueued.

It owns that connection, and its healing: a lost one is replaced after a pause, and then the worker polls, for what it may
have missed. It refuses to claim. What it waits for differs by driver: a readable socket, or asyncpg's own callback.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, text

from . import beacons, events, waking, wires
from .beacons import IDLE, LIFE, Address
from .connections import Pooler, own_engine
from .errors import ConfigurationError
from .polling import back_off
from .sessions import throw_away

LAST_CALL = 0.25


class Ears:
    """All by which one worker learns of enqueues at ``place``, besides polling.

    :param engine: the app's, whose commits in this process are heard of; ``None``: nothing is.
    :param own: an engine to listen with, as for :class:`Listening`; ``None``: no server is listened to.
    """

    def __init__(
        self, engine: Engine | None, own: Engine | None, place: Address, emit: events.Emitter, *, worker_id: str
    ) -> None:
        self._engine = engine
        self.place: Address = place
        self._listening = Listening(own, place, emit, worker_id=worker_id) if own is not None else None

    @property
    def listen(self) -> bool:
        """Whether the worker has, or will have, a session to listen with."""
        return self._listening is not None

    @property
    def hear(self) -> bool:
        """Whether a notification by the server would be heard now."""
        return self._listening is not None and self._listening.hears

    def end(self) -> None:
        """Begin to end: the worker is stopping, and nobody need wake it."""
        if self._listening is not None:
            self._listening.end()

    def cut(self) -> None:
        """Let it wait for the server no longer; any thread may."""
        if self._listening is not None:
            self._listening.cut()

    @contextmanager
    def open(self, ring: Callable[[], None]) -> Generator[None, None, None]:
        """Call ``ring`` when something was enqueued, or may have been, for as long as the context lasts."""
        with ExitStack() as stack:
            if self._engine is not None:
                stack.callback(waking.sleep(self._engine, self.place, ring))
            if self._listening is not None:
                self._listening.start(ring)
                stack.callback(self._listening.close)
            yield


def ears(
    engine: Engine, table: Any, queue: str, emit: events.Emitter, *, name: str, wake: bool, pooler: Pooler | None = None
) -> Ears:
    """Make what a worker on ``engine`` hears by; elsewhere than on PostgreSQL itself only commits of this process."""
    listens = wake and pooler is None and engine.dialect.name == "postgresql"
    own = own_engine(engine, size=1, on_this_loop=engine.dialect.is_async) if listens else None
    place = beacons.address(engine, table, queue)
    return Ears(engine if wake else None, own, place, emit, worker_id=name)


class Listening:
    """Listens for one worker.

    :param engine: an engine of its own, of one connection, which it disposes of at its end; of an async driver one that
        serves greenlets of one event loop.
    :param place: the queue.
    """

    def __init__(self, engine: Engine, place: Address, emit: events.Emitter, *, worker_id: str) -> None:
        self._engine = engine
        self._place = place
        self._emit = emit
        self._worker_id = worker_id
        self._hears = False
        self._failures = 0
        self._ring: Callable[[], None] = _nobody
        self._closing = threading.Event()
        self._alarm, self._raise_alarm = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"{worker_id}-ears", daemon=True)

    @property
    def hears(self) -> bool:
        """Whether a notification would arrive here now."""
        return self._hears

    def start(self, ring: Callable[[], None]) -> None:
        """Begin to listen, and call ``ring`` when something was enqueued, or may have been."""
        self._ring = ring
        self._thread.start()

    def end(self) -> None:
        """Begin to end."""
        self._closing.set()
        with suppress(OSError):  # the thread has ended
            self._raise_alarm.send(b"x")

    def cut(self) -> None:
        """Shut the socket: a driver that parts from a stalled server takes seconds for that."""
        wires.cut(self._engine)

    def close(self) -> None:
        """End; a connection that hangs in the network is left behind."""
        self.end()
        self._thread.join(LAST_CALL)

    def _run(self) -> None:
        try:
            if self._engine.dialect.is_async:
                from sqlalchemy.util.concurrency import greenlet_spawn  # noqa: PLC0415 (it needs greenlet)

                asyncio.run(greenlet_spawn(self._listen))
            else:
                self._listen()
        finally:
            self._alarm.close()
            self._raise_alarm.close()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen_once()
            except Exception as error:
                self._fail(error)
            finally:
                self._hears = False
            if self._failures:
                self._closing.wait(back_off(self._failures))
        self._engine.dispose()

    def _listen_once(self) -> None:
        connection = self._engine.connect()
        try:
            if self._closing.is_set():
                return
            channel = self._begin(connection)
            raw: Any = connection.connection.driver_connection
            if hasattr(raw, "add_termination_listener"):
                self._hear_callbacks(raw, channel)
            else:
                self._hear_socket(raw)
        finally:
            throw_away(connection)

    def _begin(self, connection: Connection) -> str:
        """Listen, and give the name of the channel."""
        with connection.begin():
            key = beacons.key_of(connection, IDLE, self._place)
            if key is None:
                raise ConfigurationError(f"there is no table {self._place.table} whose queues could be listened to")
            life = beacons.key_of(connection, LIFE, replace(self._place, subject=self._worker_id))
            if life is not None:
                beacons.light(connection, life)
            connection.execute(text("SELECT set_config('idle_session_timeout', '0', false)"))
            beacons.listen(connection, key)
        return beacons.channel(key)

    def _begun(self) -> None:
        self._failures, self._hears = 0, True
        self._ring()  # something may have been missed

    def _hear_socket(self, raw: Any) -> None:
        """Ring for each notification, until told to end; raise what the loss of the connection raises."""
        with selectors.DefaultSelector() as selector:
            selector.register(raw.fileno(), selectors.EVENT_READ)
            selector.register(self._alarm, selectors.EVENT_READ)
            self._begun()
            while not self._closing.is_set():
                if _notified(raw):
                    self._ring()
                selector.select()

    def _hear_callbacks(self, raw: Any, channel: str) -> None:
        from sqlalchemy.util.concurrency import await_only  # noqa: PLC0415 (it needs greenlet)

        await_only(self._await_callbacks(raw, channel))

    async def _await_callbacks(self, raw: Any, channel: str) -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def ended(connection: Any) -> None:
            over.set()

        def notified(*notification: Any) -> None:
            self._ring()

        raw.add_termination_listener(ended)
        await raw.add_listener(channel, notified)
        loop.add_reader(self._alarm, over.set)
        self._begun()
        try:
            await over.wait()
        finally:
            loop.remove_reader(self._alarm)
        if not self._closing.is_set():
            raise ConnectionResetError("the connection on which the worker listens was closed")

    def _fail(self, error: Exception) -> None:
        """Say once, until it works again, that it cannot be made to work; a connection that is replaced at once is none."""
        self._failures += 1
        if self._failures == 2:
            self._emit(events.WakeUpsUnavailable, error=error)


def _notified(raw: Any) -> bool:
    """Read what has arrived; give whether that was a notification."""
    if hasattr(raw, "pgconn"):
        raw.pgconn.consume_input()
        return bool([*iter(raw.pgconn.notifies, None)])
    raw.poll()  # psycopg2
    heard = bool(raw.notifies)
    raw.notifies.clear()
    return heard


def _nobody() -> None:
    """Nobody has asked to be told."""
