"""One PostgreSQL server in one temporary folder: made, started, stopped and taken away.

It owns the folder: data, socket, log, and a link to the programs. Only the user who made it can reach that folder, so
connections through the socket need no password. PostgreSQL refuses to run as root; root's servers run as the unprivileged
uid 65534, from a copy of the wheel's programs, because that uid may not reach the original. It refuses to know how long a
server is wanted.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypedDict

from sqlalchemy import URL

from .embedded_programs import EmbeddedPostgresError, copy_of_wheel, is_from_wheel

Setting: TypeAlias = str | int | bool

_PREFIX = "sa-proletarian-"
_NOBODY = 65534
_LONGEST_PARENT = 70  # a socket's path may have about 100 bytes, and ours adds less than 30 to its parent's

# Waits for the end of its standard input, which comes when the process that holds the other end is dead.
_WATCH = 'read -r _; "$1/bin/pg_ctl" stop --silent --mode=immediate --pgdata="$1/data"; rm -rf "$1"'


@dataclass(frozen=True, slots=True)
class Cluster:
    """The server in one folder, whoever started it; with a port, it listens to TCP and asks there for a password."""

    folder: Path
    port: int | None = None

    @classmethod
    def in_new_folder(cls, *, tcp: bool = False) -> Self:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
        _hand_over(folder)
        return cls(folder, _free_port() if tcp else None)

    def initialize(self, programs: Path, settings: Mapping[str, Setting]) -> None:
        if _is_root() and is_from_wheel(programs):
            programs = copy_of_wheel(programs, self.folder)
        (self.folder / "bin").symlink_to(programs)
        self._password.touch(mode=0o600)
        self._password.write_text(secrets.token_urlsafe())
        _hand_over(self.folder)
        self._run(
            *("initdb", "--no-sync", "--encoding=UTF8", "--no-locale", "--username=postgres"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={self._password}", self._pgdata),
        )
        settings = {
            "listen_addresses": "127.0.0.1" if self.port else "",
            "port": self.port or 5432,
            "unix_socket_directories": str(self.folder),
            "timezone": "UTC",
            "log_timezone": "UTC",
            **settings,
        }
        with (self.folder / "data" / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = {_quoted(value)}\n" for name, value in settings.items())

    def start(self) -> None:
        if not self.is_running():
            self._run("pg_ctl", "start", f"--log={self.folder / 'log'}", self._pgdata)

    def stop(self, mode: Literal["fast", "immediate"]) -> None:
        self._run("pg_ctl", "stop", f"--mode={mode}", self._pgdata)

    def is_running(self) -> bool:
        return (self.folder / "data").exists() and self._call("pg_ctl", "status", self._pgdata).returncode == 0

    def is_ours(self) -> bool:
        """Whether the folder was made here, for this user: nothing else may ever be removed."""
        mine = _NOBODY if _is_root() else os.geteuid()
        return self.folder.name.startswith(_PREFIX) and self.folder.lstat().st_uid == mine

    def remove(self) -> None:
        if self.is_running():
            self.stop("fast")
        shutil.rmtree(self.folder)

    def watch(self) -> subprocess.Popen[bytes]:
        """Start the process that outlives ours by the moment it takes to stop the server and remove its folder."""
        return subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", self.folder],
            cwd=self.folder.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=False,
            **_server_user(),
        )

    def url(self, database: str, drivername: str) -> URL:
        if self.port:
            return URL.create(drivername, "postgres", self._password.read_text(), "127.0.0.1", self.port, database)
        address = {"host": str(self.folder), "port": "5432"}  # said aloud, or PGPORT would decide
        return URL.create(drivername, "postgres", database=database, query=address)

    @property
    def _password(self) -> Path:
        return self.folder / "password"

    @property
    def _pgdata(self) -> str:
        return f"--pgdata={self.folder / 'data'}"

    def _run(self, program: str, *arguments: str) -> None:
        done = self._call(program, *arguments)
        if done.returncode:
            log = self.folder / "log"
            said = done.stdout + (log.read_text(errors="replace")[-2000:] if log.exists() else "")
            raise EmbeddedPostgresError(f"PostgreSQL's {program} failed and said:\n{said}")

    def _call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / program), *arguments]
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **_server_user(),
        ) as process:
            try:
                said, _ = process.communicate()
            except BaseException:  # Ctrl-C: a killed initdb would leave its single-user server at work in our folder
                process.wait()
                raise
        return subprocess.CompletedProcess(command, process.returncode, said)


class _User(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _is_root() -> bool:
    return os.geteuid() == 0


def _server_user() -> _User:
    """Return the arguments of a subprocess that runs as the server's user, which only root has to change."""
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if _is_root() else {}


def _hand_over(folder: Path) -> None:
    """Give a folder with all that is in it to the server's user."""
    if _is_root():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


def _parent() -> Path:
    """Return the folder for temporary files, or another if that is too long for a socket or closed to the server."""
    usual = Path(tempfile.gettempdir()).resolve()
    candidates = (usual, Path("/tmp"), Path("/var/tmp"))  # noqa: S108 (mkdtemp makes what is in them ours alone)
    return next((path for path in candidates if len(str(path)) <= _LONGEST_PARENT and _lets_through(path)), usual)


def _lets_through(path: Path) -> bool:
    return not _is_root() or all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _quoted(value: Setting) -> str:
    text = ("off", "on")[value] if isinstance(value, bool) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
