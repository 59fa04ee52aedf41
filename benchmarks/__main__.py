"""All benchmarks, or some: measured in turn, printed as tables, written as JSON and as a chart.

    python benchmarks [--quick] [--docs] [GROUP …]

``nox -s bench`` installs what the peers need, and passes on what stands after ``--``. A PostgreSQL is started that waits for
the disk (fsync, synchronous_commit, full_page_writes). The quick form takes under twelve minutes on two idle cores, the long
one, with more runs and more jobs, about three quarters of an hour.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from groups import GROUPS, LONG, QUICK, TINY, Bench
from measuring import fresh_engine, machine, server
from report import Findings

ROOT = Path(__file__).parents[1]
SIZES = {"long": LONG, "quick": QUICK, "tiny": TINY}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; default: all of them")
    parser.add_argument("--quick", action="store_const", dest="form", const="quick", default="long")
    parser.add_argument(
        "--tiny", action="store_const", dest="form", const="tiny", help="whether the pieces work; no figures"
    )
    parser.add_argument(
        "--docs", action="store_true", help="write docs/performance.{json,svg}, and into docs/performance.md"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="where else performance.{json,svg} go")
    parser.add_argument("--no-peers", action="store_false", dest="peers", help="only this library and the naive loop")
    parser.add_argument("--graphile", type=Path, help="where benchmarks/workers/package.json was installed")
    parser.add_argument("--postgresql", type=int, default=18)
    given = parser.parse_args()
    if unknown := {*given.groups} - {*GROUPS}:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    findings = measured(given)
    print(f"\n{findings.shown()}")
    given.out.mkdir(parents=True, exist_ok=True)
    findings.write(given.out)
    if given.docs:
        findings.write(ROOT / "docs")
        findings.write_page(ROOT / "docs" / "performance.md")
    if findings.failed:
        sys.exit(f"failed: {', '.join(findings.failed)}")


def measured(given: argparse.Namespace) -> Findings:
    begun = time.monotonic()
    with server(given.postgresql) as postgres:
        with fresh_engine(postgres) as engine:
            findings = Findings(about(given.form, machine(engine), given.graphile))
        bench = Bench(postgres, SIZES[given.form], findings, tell, given.peers, given.graphile)
        for name, group in GROUPS.items():
            if name in given.groups or not given.groups:
                tell(f"{name}: {group.__doc__}")
                try:
                    group(bench)
                except Exception:  # what the other groups find shall not be lost
                    findings.failed.append(name)
                    traceback.print_exc()
    findings.about["minutes"] = round((time.monotonic() - begun) / 60, 1)
    return findings


def about(form: str, machine: dict[str, Any], graphile: Path | None) -> dict[str, Any]:
    size = SIZES[form]
    versions: dict[str, str] = {name: found for name in ("pgqueuer", "procrastinate") if (found := installed(name))}
    if graphile is not None and (found := graphile / "node_modules" / "graphile-worker" / "package.json").exists():
        versions["graphile-worker"] = json.loads(found.read_text())["version"]
    return {"form": form, "runs": size.runs, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **machine, **versions}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tell(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)


if __name__ == "__main__":
    main()
