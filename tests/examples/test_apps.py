"""The four shops, each as a process that is driven over HTTP: every order that was kept gets one receipt, no other any."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL, Engine, text

from .conftest import CLONE, Script

APPS = CLONE / "examples" / "apps"
KEPT = 201
REFUSED = 409


@dataclass(frozen=True)
class Style:
    """How an example's tables are made, by what revision, and how its worker is started as a process of its own."""

    folder: str
    tables: tuple[str, ...] = ("models.py",)
    revision: str = ""
    worker: str = "jobs.py"
    driver: str = "postgresql+psycopg"


FLASK = "-m flask --app=app"
LITESTAR = "-m litestar --app=app:app database"
STYLES = {
    "FastAPI": Style("fastapi_sync"),
    "FastAPI async, psycopg": Style("fastapi_async"),
    "FastAPI async, asyncpg": Style("fastapi_async", driver="postgresql+asyncpg"),
    "Flask": Style(
        "flask_app",
        (f"{FLASK} db init", f"{FLASK} db migrate -m jobs", f"{FLASK} db upgrade"),
        revision="op.proletarian_migrate(0, 2)",
        worker=f"{FLASK} work",
    ),
    "Litestar": Style(
        "litestar_app",
        (
            f"{LITESTAR} init migrations --no-prompt",
            f"{LITESTAR} make-migrations -m jobs --no-prompt",
            f"{LITESTAR} upgrade --no-prompt",
        ),
        revision="op.create_table('proletarian_job'",
    ),
}

Start = Callable[..., Script]


@pytest.fixture(params=STYLES.values(), ids=STYLES)
def style(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def start_in_app(
    style: Style, tmp_path: Path, database_url: URL, environment: dict[str, str], scripts: list[Script]
) -> Start:
    """Return a function that starts a script in a copy of the example, whose tables are there."""
    folder = tmp_path / "shop"
    shutil.copytree(APPS / style.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
    url = database_url.set(drivername=style.driver)
    environment |= {"DATABASE_URL": url.render_as_string(hide_password=False), "PORT": "0"}

    def start(command: str, **variables: str) -> Script:
        scripts.append(Script(*command.split(), environment=environment | variables, folder=folder))
        return scripts[-1]

    for command in style.tables:
        script = start(command)
        script.end()
        assert script.exit_code == 0, script.text
    assert style.revision in "".join(path.read_text() for path in folder.glob("migrations/versions/*.py"))
    return start


def place_orders(address: str, day: str) -> set[str]:
    """Place 50 orders, eight at a time: 30 that can be kept, 10 of them twice, and 10 of more than there is."""
    orders = [(f"{day} {number}", 1 + number) for number in range(30)]
    orders += [*orders[:10], *((f"{day} too much {number}", 1000) for number in range(10))]

    def place(order: tuple[str, int]) -> tuple[str, int]:
        number, quantity = order
        return number, client.post("/orders", json={"number": number, "quantity": quantity}).status_code

    with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(8) as customers:
        answers = list(customers.map(place, reversed(orders)))
    assert Counter(status for _, status in answers) == {KEPT: 30, REFUSED: 20}
    return {number for number, status in answers if status == KEPT}


def stop(script: Script) -> None:
    script.terminate()
    script.end()
    # uvicorn shuts down, and then ends by the signal that it was given
    assert script.exit_code in {0, -signal.SIGTERM}, script.text


@pytest.mark.slow
def test_every_order_that_was_kept_gets_one_receipt(style: Style, start_in_app: Start, engine: Engine) -> None:
    def read(query: str) -> list[Any]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def sell(web: Script, worker: Script, day: str) -> set[str]:
        kept = place_orders(web.wait_for(r"[Rr]unning on (http://\S+)")[1], day)
        for _ in kept:
            worker.wait_for("job_finished")
        assert read("SELECT subject FROM proletarian_worker WHERE kind = 'queue'") == [("default",)]
        for script in {web, worker}:
            stop(script)
        return kept

    web = start_in_app("app.py")
    kept = sell(web, web, "with the worker inside")
    kept |= sell(start_in_app("app.py", WORKER="outside"), start_in_app(style.worker), "with the worker outside")

    orders = read("SELECT number, id::text FROM orders")
    assert {number for number, _ in orders} == kept
    assert sorted(read("SELECT order_id::text FROM receipts")) == sorted((order_id,) for _, order_id in orders)
    archive = read("SELECT payload ->> 'order_id', status, attempts FROM proletarian_archived_job")
    assert sorted(archive) == sorted((order_id, "success", 1) for _, order_id in orders)
    assert read("SELECT * FROM proletarian_job") == []
    assert read("SELECT * FROM proletarian_worker") == []  # the workers have said good-bye


@pytest.mark.parametrize("folder", sorted({style.folder for style in STYLES.values()}))
def test_an_app_gets_its_jobs_in_at_most_40_lines(folder: str) -> None:
    added = sum(len(code(path)) for path in (APPS / folder).glob("*.py"))
    assert 20 < added <= 40


def code(path: Path) -> list[str]:
    """Give the lines of a file that an app gets with its jobs, but for empty ones and the docstring."""
    lines = [line for line in path.read_text().split('"""', 2)[2].splitlines() if line.strip()]
    return lines if path.name == "jobs.py" else [line for line in lines if "# added" in line]
