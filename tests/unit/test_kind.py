"""CLUSTER=kind, with programs that record their calls in place of kind, docker, podman, kubectl and helm."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hack.cluster import __main__ as command_line
from hack.cluster import checkout, clusters, kind, lifecycle, toolchain
from hack.cluster.plan import Part
from hack.image import build
from hack.image import load as image_load

NAME = "stub"
ENGINE = """case "$1 $2" in
  "save --output") echo image >"$3";;
esac"""
KIND = """case "$1 $2" in
  "get clusters") cat "$STATE" 2>/dev/null;;
  "create cluster") echo stub >"$STATE";;
  "delete cluster") rm "$STATE";;
  "get kubeconfig") echo "kind: Config";;
esac
exit 0"""


class Programs:
    """Stub programs on PATH, and the calls that they got."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "bin"
        self._folder.mkdir()
        self._log = folder / "calls"

    def install(self, name: str, script: str = "") -> None:
        """Put a program on PATH that records its arguments and then runs a script."""
        file = self._folder / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self._log}"\n{script}\n')
        file.chmod(0o755)

    def calls(self) -> list[str]:
        """Return the calls since the last time, without this machine's paths."""
        text = self._log.read_text() if self._log.exists() else ""
        self._log.unlink(missing_ok=True)
        return [re.sub(r"(^| |=)/\S*/", r"\1", line) for line in text.splitlines()]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """docker, kind, kubectl and helm."""
    made = Programs(tmp_path)
    made.install("docker", ENGINE)
    made.install("kind", KIND)
    made.install("kubectl", 'echo "clientVersion v1.36.3."')
    made.install("helm", "echo v4.3.1.")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("STATE", str(tmp_path / "kind"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CLUSTER", "kind")
    monkeypatch.setenv("WORKQUEUE_CLUSTER_NAME", NAME)
    monkeypatch.setattr(checkout, "FOLDER", tmp_path / ".cluster")
    for cached in (kind.engine, toolchain.kubectl, toolchain.helm):
        cached.cache_clear()
        monkeypatch.setattr(sys.modules[cached.__module__], cached.__name__, cached.__wrapped__)
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command line in this process."""

    def call(main: Callable[[], int], *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        return main()

    return call


def test_start_makes_the_cluster_and_loads_the_image(
    programs: Programs, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(build.main, "--up") == 0

    calls = programs.calls()
    tag = "docker.io/library/workqueue-operator:dev"
    created = calls.index(f"kind create cluster --name={NAME} --kubeconfig=kubeconfig --wait=120s")
    [built] = [call for call in calls if re.match(rf"docker build --network=host .*--tag {tag} ", call)]
    loaded = (
        f"kind load image-archive docker-io-library-workqueue-operator-dev-[0-9a-f]{{16}}.tar --name={NAME}"
    )
    [load] = [call for call in calls if re.fullmatch(loaded, call)]
    assert max(created, calls.index(built)) < calls.index(load)
    folder = tmp_path / ".cluster" / NAME
    assert (folder / "kubeconfig").read_text() == "kind: Config\n"
    assert {path.name for path in (folder / "bin").iterdir()} == {"kubectl", "helm"}
    assert "Ready: export KUBECONFIG=" in capsys.readouterr().err


def test_second_start_keeps_the_cluster_and_builds_nothing(
    programs: Programs, run: Callable[..., int]
) -> None:
    assert run(build.main, "--up") == 0
    programs.calls()
    assert run(build.main, "--up") == 0
    calls = programs.calls()
    assert not [call for call in calls if call.startswith(("kind create", "docker build"))]
    assert [call for call in calls if call.startswith("kind load image-archive")]


def test_status_and_down_speak_to_kind(
    programs: Programs, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_line.main, "status") == 1
    assert run(command_line.main, "up") == 0
    assert run(command_line.main, "status") == 0
    assert f"{NAME}: up, kind with docker" in capsys.readouterr().out
    assert run(command_line.main, "down") == 0
    assert programs.calls()[-1] == f"kind delete cluster --name={NAME}"
    assert not (tmp_path / ".cluster").exists()


def test_image_with_handlers_is_built_and_loaded(
    programs: Programs, run: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM workqueue-operator:dev\n")
    assert run(image_load.main, "mine:1", str(tmp_path)) == 0
    calls = programs.calls()
    assert [call for call in calls if call.startswith("docker load --quiet --input ")]
    assert [call for call in calls if "--tag docker.io/library/mine:1" in call]
    assert calls[-1] == f"kind load image-archive image.tar --name={NAME}"


def test_podman_is_used_where_docker_does_not_answer(programs: Programs, run: Callable[..., int]) -> None:
    programs.install("docker", "exit 1")
    programs.install("podman", ENGINE)
    programs.install("kind", f'echo "provider $KIND_EXPERIMENTAL_PROVIDER" >>"$STATE.provider"\n{KIND}')
    assert run(build.main, "--up") == 0
    assert set(Path(os.environ["STATE"] + ".provider").read_text().split("\n")) == {"provider podman", ""}
    assert [call for call in programs.calls() if call.startswith("podman build")]


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (
            {"docker": "exit 1", "podman": "exit 1"},
            "neither docker nor podman answers. Start one, or leave CLUSTER unset",
        ),
        ({"kind": "echo no space left on device >&2; exit 1"}, "the disk is full"),
    ],
    ids=["engine-that-does-not-answer", "kind-that-fails"],
)
def test_failed_start_ends_with_a_sentence(
    broken: dict[str, str],
    sentence: str,
    programs: Programs,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, script in broken.items():
        programs.install(name, script)
    assert run(build.main, "--up") == 1
    assert sentence in capsys.readouterr().err


def test_missing_kind_is_named_with_the_alternative(
    programs: Programs, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin/kind").unlink()
    assert run(command_line.main, "up") == 1
    assert "needs kind on PATH. Install it, or leave CLUSTER unset" in capsys.readouterr().err


@pytest.mark.usefixtures("programs")
def test_first_local_start_names_the_faster_way(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CLUSTER")
    monkeypatch.setattr(lifecycle, "require_linux_root", lambda: None)
    monkeypatch.setattr(lifecycle, "up", lambda instance, more: None)
    monkeypatch.setattr(lifecycle, "parts", lambda: [Part("Kubernetes", 300.0, lambda: None)])
    clusters.selected().up()
    assert "has docker and kind: with CLUSTER=kind" in capsys.readouterr().err
    monkeypatch.setattr(lifecycle, "parts", list)
    clusters.selected().up()
    assert capsys.readouterr().err == ""
