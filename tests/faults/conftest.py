"""Fixtures of the fault matrix: the report, and what its tests stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.report import Report, from_environment
from tests.faults.site import Site, site
from tests.faults.work import Work
from tests.support.rabbitmq import DEFAULT, RELEASES, Broker
from tests.support.worker import Workers


@pytest.fixture(scope="session")
def report() -> Report:
    """Where each injected fault is written down, and held to what is promised."""
    return from_environment()


@pytest.fixture(scope="module")
def place(
    rabbitmq: Broker, crd: None, report: Report, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A namespace with an operator of its own for the tests of one module; each test starts the operator."""
    with site(rabbitmq, tmp_path_factory.mktemp("site"), report) as made:
        yield made


@pytest.fixture(autouse=True)
def _operator_ends(request: pytest.FixtureRequest) -> Iterator[None]:
    """The operator process of a test ends with it; when the test failed, pytest shows the end of its log."""
    yield
    if "place" in request.fixturenames:
        used: Site = request.getfixturevalue("place")
        used.operator.kill()
        print(used.operator.tail())


SERIES = [
    DEFAULT if series == DEFAULT else pytest.param(series, marks=pytest.mark.nightly) for series in RELEASES
]


@pytest.fixture(scope="session", params=SERIES, ids=lambda series: f"RabbitMQ {series}")
def each_rabbitmq(request: pytest.FixtureRequest) -> Broker:
    """One RabbitMQ, and every supported one in the nightly form."""
    broker: Broker = request.getfixturevalue(f"rabbitmq_{request.param.replace('.', '')}")
    return broker


@pytest.fixture
def work(each_rabbitmq: Broker, workers: Workers, report: Report) -> Iterator[Work]:
    """Work in a virtual host of its own, on each RabbitMQ."""
    with each_rabbitmq.new_vhost() as vhost:
        yield Work(vhost, workers, report)
