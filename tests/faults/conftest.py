"""Fixtures of the fault suite: trials, whose seed and counts are written down."""

from __future__ import annotations

import gc
import math
import random
import secrets
from pathlib import Path

import pytest

from machinery.mariadb import running
from machinery.proxy import Proxy
from machinery.record import Record
from machinery.trial import Trial
from sa_proletarian.embedded import EmbeddedPostgres


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the scenarios their time: they wait for processes, which on a busy machine take long to come up."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(7200 if config.option.faults == "long" else 300))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what takes a seed with several, if that is asked for."""
    if metafunc.config.option.seeds and "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", [secrets.randbelow(1 << 32) for _ in range(metafunc.config.option.seeds)])


@pytest.fixture
def seed(pytestconfig):
    given = pytestconfig.option.seed
    seed = secrets.randbelow(1 << 32) if given is None else given
    print(f"--seed {seed}")
    return seed


@pytest.fixture
def make_trial(request, pytestconfig, tmp_path, seed):
    """Return a function that makes a trial on the database with a URL; each is recorded when the test is over."""
    trials = []

    def make(url, scenario, *, tables=True):
        option = pytestconfig.option
        record = Record(scenario, request.node.name, option.faults, seed, {"postgresql": option.postgresql})
        folder = tmp_path / f"trial{len(trials)}"
        folder.mkdir()
        patience = 6 if pytestconfig.getoption("turns", 0) else math.inf  # so many seconds, for mutants.py
        trial = Trial(url, folder, record, long=option.faults == "long", scale=option.scale, patience=patience)
        trials.append(trial)
        if tables:
            trial.set_up()
        if (name := trial.engine.dialect.name) != "postgresql":
            with trial.engine.connect():
                record.server = {name: ".".join(str(part) for part in trial.engine.dialect.server_version_info[:3])}
            if name == "mysql":
                record.scenario = record.scenario.replace("MariaDB", "MySQL")
        return trial

    yield make
    report = getattr(request.node, "report_of_call", None)
    for trial in trials:
        trial.close()
        if pytestconfig.option.faults_to is not None and report is not None and not report.skipped:
            trial.record.write(Path(pytestconfig.option.faults_to), passed=report.passed)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call":
        item.report_of_call = outcome.get_result()


@pytest.fixture
def long(pytestconfig):
    return pytestconfig.option.faults == "long"


@pytest.fixture
def trial(request, make_trial, database_url):
    """Return a trial on the database of this test; the module's ``SCENARIO`` or a marker names the scenario."""
    return make_trial(database_url, request.module.SCENARIO)


@pytest.fixture(
    params=[
        "PostgreSQL",
        # PyMySQL leaves a socket open when the wire breaks while it connects
        pytest.param("MariaDB", marks=pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")),
    ]
)
def either(request):
    """Return the name of a database; what asks for it runs on both."""
    yield request.param
    gc.collect()  # those sockets: afterwards nobody ignores them


@pytest.fixture
def trial_on_either(request, either, make_trial):
    """Return a trial on one of the two databases, on MariaDB at half the counts."""
    if either == "PostgreSQL":
        return request.getfixturevalue("trial")
    trial = make_trial(request.getfixturevalue("mariadb_engine").url, f"{request.module.SCENARIO} MariaDB")
    trial.scale /= 2
    return trial


@pytest.fixture
def own_server(pytestconfig):
    """Return a function that starts a server of this test's own, whose commits survive its ``crash()``."""
    servers = []

    def start(*, tcp=False, **settings):
        settings = {"synchronous_commit": True, **settings}
        server = EmbeddedPostgres(pytestconfig.option.postgresql, tcp=tcp, settings=settings).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def own_mariadb():
    """Return a MariaDB server of this test's own; without one the test is skipped, or fails where all is required."""
    with running() as server:
        yield server


@pytest.fixture
def make_proxy(seed):
    """Return a function that makes a proxy in front of a port or a socket."""
    made = []

    def make(target):
        made.append(Proxy(target, random.Random(seed + len(made))))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def proxies(own_server, make_proxy):
    """Return a server of PostgreSQL and a function that makes a proxy in front of it."""
    server = own_server(tcp=True)
    return server, lambda: make_proxy(server.url().port)
