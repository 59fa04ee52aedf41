"""Everything that CI does, each by name: ``nox -l`` lists the sessions, ``nox -s tests`` runs one.

What follows ``--`` goes to pytest: ``nox -s tests -- --postgresql=16 -k retry`` runs just that.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"  # a newcomer has Python and pip
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "types", "docs", "examples"]

PYTHONS = ["3.11", "3.12", "3.13"]
QUICK = ("-m", "not slow")
# tests wait for databases and processes more than they compute
PARALLEL = ("-n", str(max(3, os.cpu_count() or 1)), "--dist", "worksteal")


def install(session: nox.Session, *requirements: str) -> None:
    """Install pinned files one over the other, then the project itself, without asking for anything else."""
    for name in requirements:
        pinned(session, name)
    session.install("--no-build-isolation", "--no-deps", "-e", ".")


def pinned(session: nox.Session, name: str) -> None:
    session.install("--require-hashes", "-r", f"requirements/{name}.txt")


def pytest(session: nox.Session, *arguments: str) -> None:
    session.run("python", "-m", "pytest", *PARALLEL, *arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite on SQLAlchemy 2.1 and PostgreSQL 18, then its quick part on SQLAlchemy 2.0 and PostgreSQL 16."""
    install(session, "tests")
    pytest(session, *session.posargs)
    if not session.posargs:
        pinned(session, "sqlalchemy20")
        pytest(session, "--postgresql=16", *QUICK)


@nox.session(python=PYTHONS)
@nox.parametrize("sqlalchemy", ["2.0", "2.1"])
def matrix(session: nox.Session, sqlalchemy: str) -> None:
    """The whole suite on each Python that is here, SQLAlchemy 2.0 and 2.1, PostgreSQL 15, 16 and 18."""
    install(session, "tests", *(["sqlalchemy20"] if sqlalchemy == "2.0" else []))
    for postgresql in (15, 16, 18):
        pytest(session, f"--postgresql={postgresql}", *session.posargs)


@nox.session
def minimums(session: nox.Session) -> None:
    """The quick part of the suite on the oldest dependencies that pyproject.toml allows."""
    install(session, "tests", "minimums")
    pytest(session, *(session.posargs or QUICK))


@nox.session
def faults(session: nox.Session) -> None:
    """The long form of the fault suite; .faults/ gets a JSON file for each run of a scenario."""
    install(session, "tests")
    pytest(session, "tests/faults", "--faults=long", "--faults-to=.faults", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and the floors of the house."""
    install(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types in the library, the typing tests, and the public names as a user's checker sees them."""
    install(session, "dev")
    session.run("mypy")
    # a .venv in the clone, such as the README makes, would be taken instead of the session's own environment
    pyright = ("basedpyright", "--pythonpath", f"{session.bin}/python")
    session.run(*pyright, "--warnings")
    session.run(*pyright, "--verifytypes", "sa_proletarian", "--ignoreexternal")


@nox.session
def audit(session: nox.Session) -> None:
    """Known weaknesses of everything that is pinned, of which the package index tells.

    What it cannot tell of is an error; after -- comes --where-possible, with which the session is then skipped instead.
    """
    session.install("pip-audit")
    untold = set()
    for name in ("dev", "sqlalchemy20"):
        report = Path(session.create_tmp()) / f"{name}.json"
        report.unlink(missing_ok=True)
        pins = ("--require-hashes", "--disable-pip", "-r", f"requirements/{name}.txt")
        session.run("pip-audit", *pins, "--format=json", f"--output={report}", success_codes=[0, 1], silent=True)
        packages = [{"name": name, "skip_reason": "nobody could be asked"}]
        if report.exists():
            packages = json.loads(report.read_text())["dependencies"]
        untold |= {one["name"] for one in packages if "skip_reason" in one}
        if weak := [one for one in packages if one.get("vulns")]:
            session.error(json.dumps(weak, indent=1))
    if untold:
        missing = f"NOT AUDITED, since the package index does not tell: {len(untold)} packages, such as {min(untold)}"
        (session.skip if "--where-possible" in session.posargs else session.error)(missing)


@nox.session
def docs(session: nox.Session) -> None:
    """Run the code blocks of the README and of docs/."""
    install(session, "tests")
    pytest(session, "tests/docs", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the examples as their tests do."""
    install(session, "tests")
    pytest(session, "tests/examples", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Every benchmark, beside pgbench and the peers; after -- come --quick, --docs, and the names of groups."""
    install(session, "bench")
    graphile = Path(session.virtualenv.location) / "graphile"
    graphile.mkdir(exist_ok=True)
    if shutil.which("npm"):
        shutil.copy("benchmarks/workers/package.json", graphile)
        npm = ("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent")
        session.run(*npm, "--prefix", str(graphile), external=True, success_codes=[*range(256)])
    session.run("python", "benchmarks", "--graphile", str(graphile), *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Ten jobs that fail half the time, on a PostgreSQL that is gone afterwards."""
    session.install(".[demo]")
    session.run("sa-proletarian", "demo", *session.posargs)
