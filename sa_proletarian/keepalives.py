"""How soon the two ends of a connection notice that the network between them, or the other machine, is gone.

It owns the settings of both ends: of our sockets, and of the server's sessions, which hold our jobs for us until the server
notices. It refuses to touch what somebody has set for this client, and a unix socket, whose other end cannot vanish.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from .wires import fileno

KEEPALIVE_IDLE = 5
KEEPALIVE_INTERVAL = 2
KEEPALIVE_COUNT = 3
USER_TIMEOUT_MILLISECONDS = 15_000

# the limit on unacknowledged data ends the probes as well: the third is the last
SERVER_KEEPALIVES: Mapping[str, str] = {
    "tcp_keepalives_idle": str(KEEPALIVE_IDLE),
    "tcp_keepalives_interval": str(KEEPALIVE_INTERVAL),
    "tcp_keepalives_count": str(KEEPALIVE_COUNT),
    "tcp_user_timeout": "8000",
}
# while a statement runs the server does not read from its socket; on some systems it cannot look otherwise
SERVER_CHECK: Mapping[str, str] = {"client_connection_check_interval": "2000"}

_ASK = """
SELECT pg_catalog.set_config(asked.name, asked.value, false)
  FROM (VALUES {values}) AS asked (name, value) JOIN pg_catalog.pg_settings AS found ON found.name = asked.name
 WHERE found.source NOT IN ('client', 'user', 'database', 'database user')
"""


def watch_server(dbapi_connection: Any, record: Any) -> None:
    """Let this end notice that the server's machine is gone: a listener for a pool's ``connect``."""
    with _tcp_socket(record.driver_connection) as tcp:
        if tcp is not None:
            _set_keepalives(tcp)


def let_server_watch(dbapi_connection: Any, record: Any) -> None:
    """Let the server notice that this machine is gone; needs no right, and leaves settings on the server's session."""
    with _tcp_socket(record.driver_connection) as tcp:
        if tcp is None:
            return
    if not _ask(dbapi_connection, {**SERVER_KEEPALIVES, **SERVER_CHECK}):
        _ask(dbapi_connection, SERVER_KEEPALIVES)


def _ask(dbapi_connection: Any, settings: Mapping[str, str]) -> bool:
    values = ", ".join(f"('{name}', '{value}')" for name, value in settings.items())
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute(_ASK.format(values=values))
        dbapi_connection.commit()
        return True
    except Exception:
        with suppress(Exception):  # one that is dead shows it at its first use
            dbapi_connection.rollback()
        return False
    finally:
        cursor.close()


@contextmanager
def _tcp_socket(driver_connection: Any) -> Generator[socket.socket | None, None, None]:
    """Give the connection's socket; ``None`` for a unix socket, and for a driver that does not give it away."""
    try:
        found = socket.socket(fileno=os.dup(fileno(driver_connection)))
    except Exception:
        yield None
        return
    with found:
        yield found if found.family in (socket.AF_INET, socket.AF_INET6) else None


def _set_keepalives(tcp: socket.socket) -> None:
    with suppress(OSError):
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_MILLISECONDS),
    ):
        with suppress(OSError, AttributeError):  # a platform without the option
            tcp.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
