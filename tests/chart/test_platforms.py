"""The values of docs/platforms.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support import helm

PAGE: Final = (Path(__file__).parents[2] / "docs/platforms.md").read_text()


def test_openshift_values_name_no_user(tmp_path: Path) -> None:
    (values,) = re.findall(r"^```yaml\n# openshift.yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    file = tmp_path / "openshift.yaml"
    file.write_text(values)

    rendered = helm.run("template", helm.RELEASE, helm.CHART, "--set", "page.enabled=true", "--values", file)

    pods: list[dict[str, Any]] = [
        made["spec"]["template"]["spec"]
        for made in yaml.safe_load_all(rendered)
        if made["kind"] == "Deployment"
    ]
    assert len(pods) == 2
    for pod in pods:
        assert set(pod["securityContext"]) == {"runAsNonRoot", "seccompProfile"}
        assert all("runAsUser" not in one["securityContext"] for one in pod["containers"])
    assert '\\"podSecurity\\":\\"Platform\\"' in rendered, "also the worker of helm test"
