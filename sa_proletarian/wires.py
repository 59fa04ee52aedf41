"""The wires of a worker's own pools, and how to cut them: whoever waits for an answer then hears that there will be none.

It owns which connections of a pool are open. A stop that a stalled server or network would hold up ends by this, and not
when the system gives the connection up. It refuses to choose the moment, and to close what a driver may still be at.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

_OPEN = "_sa_proletarian_wires"


def watch(pool: Pool) -> None:
    """Take note of every connection of ``pool`` for as long as it is open."""
    wires: dict[int, Any] = {}
    setattr(pool, _OPEN, wires)

    def opened(dbapi_connection: Any, record: Any) -> None:
        wires[id(record)] = record.driver_connection

    def closed(dbapi_connection: Any, record: Any) -> None:
        wires.pop(id(record), None)

    event.listen(pool, "connect", opened)
    event.listen(pool, "close", closed)


def cut(engine: Engine) -> None:
    """Shut the sockets of all open connections of an ``own_engine``; any thread may."""
    wires: dict[int, Any] = getattr(engine.pool, _OPEN, {})
    for driver_connection in [*wires.values()]:
        with suppress(Exception), socket.socket(fileno=os.dup(fileno(driver_connection))) as wire:
            wire.shutdown(socket.SHUT_RDWR)  # else it is closed, or its driver does not give the socket away


def fileno(driver_connection: Any) -> int:
    """Give the file descriptor of a driver's socket; raises where it does not give it away."""
    if hasattr(driver_connection, "fileno"):
        return int(driver_connection.fileno())
    if getattr(driver_connection, "_sock", None) is not None:  # PyMySQL's
        return int(driver_connection._sock.fileno())
    return int(driver_connection._transport.get_extra_info("socket").fileno())  # asyncpg's and asyncmy's
