"""A MariaDB server of the tests' own: on a unix socket in a folder of its own, as an ordinary user, gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import URL

PROGRAM = "mariadbd"
MISSING = "MariaDB is not installed (Debian: apt-get install mariadb-server-core)"

_SCRIPTS = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")
_NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
_OPTIONS = ("--no-defaults", "--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M", "--skip-innodb-use-native-aio")
_READY = "ready for connections"


def find_program() -> str | None:
    """Give the server's program, where it is installed."""
    return shutil.which(PROGRAM, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class MariaDB:
    """A server; its user ``root`` needs no password.

    :param address: where it takes TCP connections as well, on port 3306; default: nowhere.
    """

    def __init__(self, program: str, *options: str, address: str | None = None) -> None:
        self._program = program
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
    def _command(self) -> list[str]:
        # in a folder that they share, one server removes the temporary tables of another
        return [self._program, *_OPTIONS, f"--datadir={self.folder / 'data'}", f"--tmpdir={self.folder / 'tmp'}"]

    def _fill(self) -> None:
        """Make the server's own tables."""
        folder = Path("/usr/share/mysql")
        head = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\nSET @current_hostname = 'localhost';\n"
        script = head + "\n".join((folder / name).read_text() for name in _SCRIPTS)
        made = subprocess.run(
            [*self._command, "--bootstrap"], input=script, text=True, capture_output=True, cwd="/", check=False, **_user()
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
        query = {"unix_socket": str(self.folder / "socket")}
        return URL.create(drivername, "root", host="localhost", database=database, query=query)


def _user() -> dict[str, Any]:
    return _NOBODY if os.geteuid() == 0 else {}
