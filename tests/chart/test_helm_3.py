"""helm 3 renders the chart as helm 4 does, so that all other tests hold for both."""

from __future__ import annotations

from typing import Any

import pytest

from hack.cluster import toolchain
from hack.generate.files import CHART
from tests.chart.test_chart import VALUES
from tests.support import helm


@pytest.fixture(scope="module", autouse=True)
def _these_are_two_versions() -> None:
    versions = [helm.run("version", "--short", program=of()) for of in (toolchain.helm, toolchain.helm_3)]
    assert [version[:3] for version in versions] == ["v4.", "v3."]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_helm_3_renders_the_same_objects(values: dict[str, Any]) -> None:
    made = helm.template(values, tests=True, program=toolchain.helm_3())
    assert made == helm.template(values, tests=True)


def test_chart_passes_helm_3_lint() -> None:
    said = helm.run("lint", "--strict", CHART, program=toolchain.helm_3())
    assert "0 chart(s) failed" in said
    assert "[WARNING]" not in said


def test_helm_3_refuses_unknown_value() -> None:
    with pytest.raises(helm.HelmError, match="additional properties 'replicas' not allowed"):
        helm.template({"replicas": 3}, program=toolchain.helm_3())
