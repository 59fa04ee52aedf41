"""Both ends of a worker's TCP connections are set to notice in seconds that the other is gone."""

from __future__ import annotations

import asyncio
import socket

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util.concurrency import greenlet_spawn

from sa_proletarian import keepalives
from sa_proletarian.connections import own_engine
from sa_proletarian.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow  # it starts a server

SYNC = ["psycopg", "psycopg2"]
ASYNC = ["psycopg", "asyncpg"]
OURS = [1, 5, 2, 3, 15_000]
SERVERS = ["5", "2", "3", "8000", "2s"]


@pytest.fixture(scope="module")
def server(pytestconfig):
    with EmbeddedPostgres(pytestconfig.option.postgresql, tcp=True) as server:
        yield server


def our_end(connection):
    raw = connection.connection.driver_connection
    number = raw.fileno() if hasattr(raw, "fileno") else raw._transport.get_extra_info("socket").fileno()
    tcp = socket.socket(fileno=number)
    options = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    )
    try:
        return [tcp.getsockopt(*option) for option in options]
    finally:
        tcp.detach()


def servers_end(connection):
    names = [*keepalives.SERVER_KEEPALIVES, *keepalives.SERVER_CHECK]
    return [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]


def look(own):
    """Give the settings of both ends, in a later transaction than the first, which is rolled back."""
    with own.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.rollback()
        found = our_end(connection), servers_end(connection)
    own.dispose()
    return found


@pytest.mark.parametrize("driver", SYNC)
def test_both_ends_watch(server, driver):
    engine = create_engine(server.url(drivername=f"postgresql+{driver}"))
    assert look(own_engine(engine, size=1)) == (OURS, SERVERS)


@pytest.mark.parametrize("driver", ASYNC)
def test_both_ends_watch_under_an_async_engine_too(server, driver):
    engine = create_async_engine(server.url(drivername=f"postgresql+{driver}"))

    async def on_the_loop():
        return await greenlet_spawn(look, own_engine(engine, size=1, on_this_loop=True))

    assert look(own_engine(engine, size=1)) == (OURS, SERVERS)
    assert asyncio.run(on_the_loop()) == (OURS, SERVERS)


def test_what_the_client_has_set_itself_stays(server):
    options = "-c tcp_keepalives_idle=77 -c client_connection_check_interval=0"
    engine = create_engine(server.url(), connect_args={"options": options})
    assert look(own_engine(engine, size=1))[1] == ["77", "2", "3", "8000", "0"]


@pytest.mark.parametrize("unasked", [{"pooler": "transaction"}, {"server_watches": False}])
def test_behind_a_pooler_nothing_is_left_on_the_server(server, unasked):
    ours, servers = look(own_engine(create_engine(server.url()), size=1, **unasked))
    assert ours == OURS
    assert servers[3:] == ["0", "0"] and servers[0] != "5"


def test_a_server_that_cannot_look_while_a_statement_runs_takes_the_rest(server, monkeypatch):
    monkeypatch.setattr(keepalives, "SERVER_CHECK", {"client_connection_check_interval": "no number"})
    assert look(own_engine(create_engine(server.url()), size=1))[1] == ["5", "2", "3", "8000", "0"]


def test_a_unix_socket_is_left_as_it_is(postgres):
    own = own_engine(create_engine(postgres.url()), size=1)
    with own.connect() as connection:
        assert servers_end(connection)[3:] == ["0", "0"]
    own.dispose()
