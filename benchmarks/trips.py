"""Round trips, counted: a proxy between a worker and the server that sees who speaks when.

It owns the counting. A round trip begins when a client sends something after the server has spoken; what it sends before
the server's next word, pipelined or in pieces, belongs to the same one. It refuses to understand what is said.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Trips:
    """Counts the round trips of all connections that go through ``port``."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.count = 0
        self._counting = threading.Lock()
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = socket.create_connection(self._to)
                for one in (client, upstream):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, upstream]
                _Conversation(self, client, upstream).begin()

    def add(self) -> None:
        with self._counting:
            self.count += 1


class _Conversation:
    """One connection; ``_answered`` tells whether the server spoke last."""

    def __init__(self, trips: Trips, client: socket.socket, upstream: socket.socket) -> None:
        self._trips, self._client, self._upstream = trips, client, upstream
        self._answered = True

    def begin(self) -> None:
        threading.Thread(target=self._pass, args=(self._client, self._upstream, self._asked), daemon=True).start()
        threading.Thread(target=self._pass, args=(self._upstream, self._client, self._told), daemon=True).start()

    def _asked(self) -> None:
        if self._answered:
            self._answered = False
            self._trips.add()

    def _told(self) -> None:
        self._answered = True

    def _pass(self, source: socket.socket, target: socket.socket, heard) -> None:
        with suppress(OSError):
            while said := source.recv(65536):
                heard()
                target.sendall(said)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def counted(host: str, port: int) -> Iterator[Trips]:
    trips = Trips(host, port)
    try:
        yield trips
    finally:
        trips.close()
