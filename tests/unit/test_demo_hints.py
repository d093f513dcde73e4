"""What `make demo` says before and after its run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hack.cluster import checkout
from hack.demo import __main__ as demo
from hack.demo import install
from workqueue_kubectl import cli

ROOT = Path(__file__).parents[2]
PLUGIN = re.compile(r"kubectl workqueue (.+)")


def test_three_commands_to_try_are_of_the_plugin_and_name_what_the_demo_installs() -> None:
    assert len(demo.HINTS) == 3
    for _, command in demo.HINTS:
        found = PLUGIN.search(command)
        assert found, command
        assert install.NAMESPACE in found[1]


@pytest.mark.parametrize("command", [command for _, command in demo.HINTS])
def test_command_to_try_has_arguments_that_the_plugin_takes(command: str) -> None:
    found = PLUGIN.search(command)
    assert found
    own, rest = cli.split(shlex.split(found[1]))
    assert own
    cli.build(word for word in rest if not word.startswith("-")).parse_args(rest)


@pytest.mark.parametrize("is_own", [True, False], ids=["own-cluster", "current-context"])
def test_access_leads_to_the_plugin_and_to_the_own_cluster(
    is_own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "FOLDER", tmp_path / ".cluster")
    (tmp_path / ".cluster").mkdir()
    (tmp_path / ".cluster/kubeconfig").touch()
    monkeypatch.delenv("WORKQUEUE_CLUSTER_NAME", raising=False)
    command = demo.access(install.Cluster(), is_own=is_own)
    assert ".venv/bin" in command
    assert ("KUBECONFIG=" in command) == is_own


@pytest.mark.parametrize("choice", list(checkout.Choice), ids=lambda choice: choice or "local")
def test_demo_announces_its_steps_with_their_durations(choice: checkout.Choice) -> None:
    name = f"announcement-{choice}.txt" if choice else "announcement.txt"
    steps = re.findall(r"(?m)^  \d\. .+$", (ROOT / "hack/demo" / name).read_text())
    assert len(steps) >= 3
    assert all("about" in step for step in steps)
