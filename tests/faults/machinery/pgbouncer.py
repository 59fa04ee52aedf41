"""A PgBouncer on a socket of its own, as an ordinary user, in front of one database."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from sqlalchemy import URL

NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}


class PgBouncer:
    """One that can be killed, and started again."""

    def __init__(self, program: str, behind: URL, mode: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sa-proletarian-pgbouncer-", dir="/tmp"))
        self._program = program
        self._behind = behind
        settings = {
            "listen_port": 6432,
            "unix_socket_dir": self.folder,
            "auth_type": "trust",
            "auth_file": self.folder / "users",
            "pool_mode": mode,
            "default_pool_size": 20,
            "max_client_conn": 100,
            "ignore_startup_parameters": "extra_float_digits",
        }
        lines = ["[databases]", f"* = host={behind.query['host']} port=5432 user=postgres", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        (self.folder / "users").write_text('"app" ""\n')
        if os.geteuid() == 0:  # which PgBouncer refuses to be
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, NOBODY["user"], NOBODY["group"])
        self.start()

    def start(self) -> None:
        user = NOBODY if os.geteuid() == 0 else {}
        log = self.folder / "log"
        command = [self._program, "-v", str(self.folder / "pgbouncer.ini")]
        with log.open("w") as said:
            self._process = subprocess.Popen(command, cwd="/", stdout=said, stderr=said, **user)
        while "process up" not in log.read_text():
            assert self._process.poll() is None, log.read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for left in self.folder.glob(".s.PGSQL*"):
            left.unlink()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def url(self) -> URL:
        address = {"host": str(self.folder), "port": "6432"}
        return URL.create("postgresql+psycopg", "app", database=self._behind.database, query=address)
