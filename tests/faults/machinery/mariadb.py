"""A MariaDB server of the tests' own: on a unix socket in a folder of its own, as an ordinary user, gone at the end.

``SA_PROLETARIAN_MYSQLD`` names the program of MySQL that is to stand in its place.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

PROGRAM = "mariadbd"
MYSQL = "SA_PROLETARIAN_MYSQLD"
MISSING = "MariaDB is not installed (Debian: apt-get install mariadb-server-core)"

_SCRIPTS = ("system_tables.sql", "performance_tables.sql", "system_tables_data.sql")
_NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
_OPTIONS = ("--no-defaults", "--innodb-buffer-pool-size=64M", "--skip-innodb-use-native-aio")
_MARIADBS = ("--innodb-log-file-size=16M",)
_MYSQLS = ("--innodb-redo-log-capacity=32M", "--mysqlx=OFF", "--disable-log-bin", "--secure-file-priv=NULL")
_READY = "ready for connections"


def find_program() -> str | None:
    """Give the server's program, where it is installed."""
    return os.environ.get(MYSQL) or shutil.which(PROGRAM, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def required_program() -> str:
    """Give the server's program; without one the test is skipped, or fails where ``SA_PROLETARIAN_REQUIRE_ALL`` is set."""
    program = find_program()
    if program is None:
        (pytest.fail if os.environ.get("SA_PROLETARIAN_REQUIRE_ALL") else pytest.skip)(MISSING)
    return program


@contextmanager
def running(*options: str) -> Iterator[MariaDB]:
    """Have a server for as long as the context lasts."""
    server = MariaDB(required_program(), *options)
    try:
        yield server
    finally:
        server.close()


class MariaDB:
    """A server; its user ``root`` needs no password.

    :param address: where it takes TCP connections as well, on port 3306; default: nowhere.
    """

    def __init__(self, program: str, *options: str, address: str | None = None) -> None:
        self._program = program
        self._address = address
        self._options = (*options, "--skip-networking" if address is None else f"--bind-address={address}")
        self.folder = Path(tempfile.mkdtemp(prefix="sa-proletarian-mariadb-", dir="/tmp"))
        folders = (self.folder, self.folder / "data", self.folder / "tmp")
        for path in folders[1:]:
            path.mkdir()
        if os.geteuid() == 0:  # which the server refuses to be
            for path in folders:
                os.chown(path, _NOBODY["user"], _NOBODY["group"])
        self._fill()
        self.start()

    @property
    def is_mysql(self) -> bool:
        return self._program == os.environ.get(MYSQL)

    @property
    def _command(self) -> list[str]:
        # in a folder that they share, one server removes the temporary tables of another
        own = _MYSQLS if self.is_mysql else _MARIADBS
        if self._address is None:  # what comes to the socket through a proxy is to be read there
            own += ("--tls-version=" if self.is_mysql else "--skip-ssl",)
        return [self._program, *_OPTIONS, *own, f"--datadir={self.folder / 'data'}", f"--tmpdir={self.folder / 'tmp'}"]

    def _fill(self) -> None:
        """Make the server's own tables."""
        if self.is_mysql:
            self._bootstrap("--initialize-insecure", "")
            return
        name = "mysql" if Path("/usr/share/mysql/mysql_system_tables.sql").exists() else "mariadb"  # from MariaDB 11 on
        head = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\nSET @current_hostname = 'localhost';\n"
        script = head + "\n".join(Path(f"/usr/share/{name}/{name}_{script}").read_text() for script in _SCRIPTS)
        self._bootstrap("--bootstrap", script)

    def _bootstrap(self, how: str, script: str) -> None:
        made = subprocess.run(
            [*self._command, how], input=script, text=True, capture_output=True, cwd="/", check=False, **_user()
        )
        if made.returncode:
            raise AssertionError(made.stderr[-5000:])

    def start(self) -> None:
        """Start it; return when it takes connections."""
        options = [
            *self._options,
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
        ]
        self._process = subprocess.Popen(
            [*self._command, *options], stderr=subprocess.PIPE, text=True, errors="replace", cwd="/", **_user()
        )
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if _READY in line:
                break
        else:
            raise AssertionError("".join(said))
        # it tells of each connection that was cut, and would wait for somebody to listen
        self._listener = threading.Thread(target=self._process.stderr.read)
        self._listener.start()

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def pause(self) -> None:
        """Let it answer nothing any more; only :meth:`kill` and :meth:`close` still work."""
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it, and leave nothing behind."""
        if self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder)

    def url(self, database: str = "mysql", drivername: str = "mariadb+pymysql") -> URL:
        """Give the URL of one of its databases."""
        if self.is_mysql:
            drivername = drivername.replace("mariadb+", "mysql+")
        query = {"unix_socket": str(self.folder / "socket")}
        return URL.create(drivername, "root", host="localhost", database=database, query=query)


def _user() -> dict[str, Any]:
    return _NOBODY if os.geteuid() == 0 else {}
