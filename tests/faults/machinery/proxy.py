"""A TCP proxy in front of a server, which breaks the wire at a moment that can be chosen.

It reads just enough of the protocols to know a COMMIT when it passes: with PostgreSQL a simple query, as psycopg sends it,
which is that COMMIT or ends with it; with MariaDB and MySQL a packet of seven bytes that asks for it alone.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

COMMITS = (b"COMMIT\x00", b"\x07\x00\x00\x00\x03COMMIT")
CHUNK = 65536


class Wire(StrEnum):
    """How the wire can break."""

    COMMIT_ANSWER_DROPPED = "answer of a COMMIT dropped"
    COMMIT_DROPPED = "request of a COMMIT dropped"
    RESET = "connection reset at a random byte"
    STALL = "connection stalled"


@dataclass
class Armed:
    """A fault that waits for its moment: the COMMIT or the byte with this number."""

    kind: Wire
    after: int
    seconds: float = 0.0


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to a port there or to a socket; breaks what it is told to break."""

    def __init__(self, target: int | str, chance: random.Random) -> None:
        self._target = target
        self._chance = chance
        self._armed: deque[Armed] = deque()
        self._fired = threading.Condition()
        self.fired: Counter[Wire] = Counter()
        self._stalled = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._links: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(20)

    def arm(self, kind: Wire, *, seconds: float = 0.0) -> None:
        """Break the wire once, soon, in the way of ``kind``."""
        after = self._chance.randrange(4000) if kind in (Wire.RESET, Wire.STALL) else self._chance.randrange(8)
        self._armed.append(Armed(kind, after, seconds))

    def freeze(self) -> None:
        """Pass nothing on any more, and close nothing: as a network does that has vanished, or a server that is stalled."""
        self._loop.call_soon_threadsafe(self.flows.clear)

    def thaw(self) -> None:
        """Go on with what was held back."""
        self._loop.call_soon_threadsafe(self.flows.set)

    def wait_until_fired(self, count: int, timeout: float = 120) -> None:
        """Wait until so many faults have happened."""
        with self._fired:
            assert self._fired.wait_for(lambda: self.fired.total() >= count, timeout), (
                f"{self.fired} of {count} in {timeout} s"
            )

    def wait_until_calm(self, timeout: float = 120) -> None:
        """Wait until no connection is stalled any more."""
        with self._fired:
            assert self._fired.wait_for(lambda: not self._stalled, timeout), f"stalled for {timeout} s"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # on the loop ------------------------------------------------------------------------------------------------------

    async def _serve(self) -> asyncio.Server:
        self.flows = asyncio.Event()
        self.flows.set()
        server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self) -> None:
        self._server.close()
        for link in [*self._links]:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _link(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._links.add(task)
        try:
            await self.flows.wait()
            server, to_server = await self._connect()
        except (OSError, asyncio.CancelledError):
            to_client.transport.abort()
            self._links.discard(task)
            return
        link = Link(self, to_client, to_server)
        try:
            pumps = [asyncio.create_task(link.up(client)), asyncio.create_task(link.down(server))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            link.close()
            self._links.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    def due(self, *kinds: Wire, passed: int) -> Armed | None:
        """Give the next fault if it is of one of ``kinds`` and its moment has come; else count down."""
        if not self._armed or self._armed[0].kind not in kinds:
            return None
        if self._armed[0].after >= passed:
            self._armed[0].after -= passed
            return None
        return self._armed.popleft()

    async def stall(self, seconds: float) -> None:
        with self._fired:
            self._stalled += 1
        self.tell(Wire.STALL)
        try:
            await asyncio.sleep(seconds)
        finally:
            with self._fired:
                self._stalled -= 1
                self._fired.notify_all()

    def tell(self, kind: Wire) -> None:
        with self._fired:
            self.fired[kind] += 1
            self._fired.notify_all()


def is_commit(data: bytes) -> bool:
    return any(commit in data for commit in COMMITS)


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._to_client = to_client
        self._to_server = to_server
        self._dropping_answer = False

    async def up(self, client: asyncio.StreamReader) -> None:
        while data := await client.read(CHUNK):
            if is_commit(data) and (armed := self._proxy.due(Wire.COMMIT_DROPPED, Wire.COMMIT_ANSWER_DROPPED, passed=1)):
                if armed.kind is Wire.COMMIT_DROPPED:
                    self._reset(armed.kind)
                    return
                self._dropping_answer = True
            await self._pass_on(data, self._to_server)

    async def down(self, server: asyncio.StreamReader) -> None:
        while data := await server.read(CHUNK):
            if self._dropping_answer:  # it is there, so the COMMIT has been carried out
                self._reset(Wire.COMMIT_ANSWER_DROPPED)
                return
            await self._pass_on(data, self._to_client)

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        await self._proxy.flows.wait()
        armed = self._proxy.due(Wire.RESET, Wire.STALL, passed=len(data))
        if armed is not None:
            writer.write(data[: armed.after])
            await writer.drain()
            if armed.kind is Wire.RESET:
                self._reset(armed.kind)
                raise ConnectionResetError
            await self._proxy.stall(armed.seconds)
            data = data[armed.after :]
        writer.write(data)
        await writer.drain()

    def _reset(self, kind: Wire) -> None:
        """Close both ends, with an RST where they are TCP."""
        self.close()
        self._proxy.tell(kind)

    def close(self) -> None:
        for writer in (self._to_client, self._to_server):
            with suppress(OSError):
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
