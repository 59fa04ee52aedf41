"""A primary and a standby that change places: the standby is promoted, and what was the primary is made anew from it."""

from __future__ import annotations

import os
import signal
from typing import Any

from sqlalchemy import URL, create_engine, text

from sa_proletarian.embedded import EmbeddedPostgres
from sa_proletarian.embedded_cluster import _free_port

from .waiting import until


class Pair:
    """Two servers on two ports; every connection goes to the one that takes writes."""

    def __init__(self, server: EmbeddedPostgres, *, synchronous: bool) -> None:
        assert server._cluster is not None
        self._cluster: Any = server._cluster
        self._server_url = server.url()
        self._synchronous = synchronous
        self._port, self._other_port = self._server_url.port, _free_port()
        self._data, self._other_data = self._cluster.folder / "data", None
        self._count = 0

    def url(self) -> URL:
        """Return a URL that finds whichever of the two takes writes."""
        hosts = tuple(f"127.0.0.1:{port}" for port in sorted((self._port, self._other_port)))
        query = {"host": hosts, "target_session_attrs": "read-write", "connect_timeout": "5"}
        return URL.create("postgresql+psycopg", "postgres", self._server_url.password, database="postgres", query=query)

    def add_standby(self) -> None:
        """Copy the primary and let the copy follow it."""
        self._count += 1
        self._other_data = self._cluster.folder / f"standby{self._count}"
        self._do(
            "pg_basebackup",
            f"--pgdata={self._other_data}",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--write-recovery-conf",
            f"--dbname=host={self._cluster.folder} port={self._port} user=postgres",
        )
        self._set(self._other_data, f"port = {self._other_port}\nsynchronous_standby_names = ''\n")
        self._start(self._other_data)
        self._wait_for("SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")
        if self._synchronous:
            self._sql(self._port, "ALTER SYSTEM SET synchronous_standby_names = '*'")
            self._sql(self._port, "SELECT pg_reload_conf()")
            self._wait_for("SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'")

    def stop_streaming(self) -> None:
        """Let the standby fall behind from now on."""
        os.kill(self._receiver(), signal.SIGSTOP)

    def fail_over(self) -> None:
        """Crash the primary, promote the standby."""
        stopped = None if self._synchronous else self._receiver()
        self._do("pg_ctl", "stop", "--mode=immediate", f"--pgdata={self._data}")
        if stopped is not None:
            os.kill(stopped, signal.SIGCONT)
        self._do("pg_ctl", "promote", f"--pgdata={self._other_data}")
        self._port, self._other_port = self._other_port, self._port
        self._data, self._other_data = self._other_data, None

    def close(self) -> None:
        """Stop what the server's owner does not know of."""
        for data in (self._data, self._other_data):
            if data is not None and data.name != "data":
                self._cluster._call("pg_ctl", "stop", "--mode=immediate", f"--pgdata={data}")

    def _receiver(self) -> int:
        return int(self._sql(self._other_port, "SELECT pid FROM pg_stat_wal_receiver"))

    def _start(self, data: Any) -> None:
        self._do("pg_ctl", "start", f"--log={data.parent / (data.name + '.log')}", f"--pgdata={data}")

    def _do(self, program: str, *arguments: str) -> None:
        done = self._cluster._call(program, *arguments)
        assert done.returncode == 0, done.stdout

    def _set(self, data: Any, lines: str) -> None:
        for name in ("postgresql.conf", "postgresql.auto.conf"):
            with (data / name).open("a") as file:
                file.write(lines)

    def _sql(self, port: int, sql: str) -> Any:
        engine = create_engine(self._server_url.set(port=port), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                result = connection.execute(text(sql))
                return result.scalar() if result.returns_rows else None
        finally:
            engine.dispose()

    def _wait_for(self, condition: str, within: float = 60) -> None:
        until(lambda: self._sql(self._port, condition), within, lambda: condition)
