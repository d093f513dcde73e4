"""The parts of the tool that need no cluster."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hack.cluster import __main__ as command_line
from hack.cluster import checkout, commands, packages, toolchain
from hack.cluster.console import step
from hack.cluster.errors import ClusterError
from hack.cluster.instance import DEFAULT_NAME, NAME_VARIABLE, Instance
from hack.cluster.locks import locked
from hack.cluster.processes import Process, with_arguments
from hack.image import build
from hack.image import load as image_load
from tests.support.wait import eventually


def test_process_is_distinguished_from_later_one_with_same_pid() -> None:
    own = Process.of(os.getpid())
    assert own is not None
    assert own.is_alive()
    assert not replace(own, started=own.started + 1).is_alive()
    assert not replace(own, boot="another").is_alive()


def test_zombie_process_is_not_alive() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        process = Process.of(child.pid)
        assert process is not None
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.is_alive()


def test_process_search_matches_adjacent_arguments_only() -> None:
    script = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script, "mark-a", "mark-b"], stdin=subprocess.PIPE) as child:
        eventually(lambda: [process.pid for process in with_arguments("mark-a", "mark-b")] == [child.pid])
        assert with_arguments("mark-b", "mark-a") == []
        assert with_arguments("mark-a", "mark-") == []
        assert child.stdin is not None
        child.stdin.close()


def test_lock_excludes_others_and_leaves_no_file(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    inside: list[int] = []
    most: list[int] = []

    def hold() -> None:
        for turn in range(50):
            with locked(file, "Waiting."):
                inside.append(turn)
                most.append(len(inside))
                inside.pop()

    holders = [threading.Thread(target=hold) for _ in range(4)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join()
    assert max(most) == 1
    assert len(most) == 200
    assert not file.exists()


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        pytest.param("a:1", "docker.io/library/a:1", id="bare-name-in-library"),
        pytest.param("a/b:1", "docker.io/a/b:1", id="owner-in-default-registry"),
        pytest.param("localhost/a:1", "localhost/a:1", id="localhost-registry"),
        pytest.param("registry.test/a:1", "registry.test/a:1", id="registry-with-dot"),
        pytest.param("registry:5000/a", "registry:5000/a", id="registry-with-port"),
    ],
)
def test_image_names_are_normalized_like_kubernetes(tag: str, name: str) -> None:
    assert build.full_name(tag) == name


def test_image_is_built_from_and_named_by_copied_sources(tmp_path: Path) -> None:
    names = {str(path.relative_to(build.CHECKOUT)) for path in build.sources()}
    assert {"Dockerfile", ".dockerignore", "pyproject.toml", "requirements.lock"} <= names
    assert "worker/workqueue/contract/topology.py" in names
    assert not [name for name in names if name.startswith(("tests", "hack", "docs")) or "__pycache__" in name]
    digest = build.copy_sources(tmp_path)
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == names


def test_image_build_uses_local_pip_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\ntimeout = 7\nretries = 3\n[install]\nprefer-binary = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_TIMEOUT", "9")
    settings = build._pip_settings()
    assert settings["global"]["timeout"] == "9"
    assert settings["global"]["retries"] == "3"
    assert settings["install"]["prefer-binary"] == "true"


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    """A folder with a Dockerfile."""
    (tmp_path / "Dockerfile").write_text("FROM workqueue-operator:dev\nCOPY thumbs.py /app/\n")
    return tmp_path


@pytest.mark.parametrize("name", ["mine:1", "mine:dev", "registry.example.com:5000/shop/thumbs:1.4"])
def test_image_with_handlers_may_have_any_name_with_a_tag(name: str, handlers: Path) -> None:
    assert image_load.check(name, str(handlers)) == handlers


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("workqueue-operator:dev", "is the image of this project"),
        ("docker.io/library/workqueue-operator:dev", "is the image of this project"),
        ("mine", "no image name with a tag"),
        ("Mine:1", "lower-case letters"),
        ("mine:latest", "its tag is latest"),
        ("--tag=x:1", "no image name"),
    ],
)
def test_unusable_name_of_an_image_is_refused_with_advice(name: str, sentence: str, handlers: Path) -> None:
    with pytest.raises(ClusterError, match=sentence) as refused:
        image_load.check(name, str(handlers))
    assert "make load IMAGE=mine:1" in str(refused.value)


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("", "No folder is given"),
        ("no-such-folder", "no-such-folder is not a folder"),
        ("empty", r"empty has no Dockerfile. Write one of two lines: `FROM workqueue-operator:dev`"),
    ],
)
def test_folder_without_a_dockerfile_is_refused_with_advice(
    folder: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClusterError, match=sentence):
        image_load.check("mine:1", folder)


def test_load_without_a_folder_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["load", "mine:1", ""])
    assert image_load.main() == 1
    assert capsys.readouterr().err.startswith("No folder is given.")


@pytest.mark.parametrize("name", ["Upper", "-dash", "dash-", "a/b", "a" * 33, "..", "a b"])
def test_cluster_name_unfit_for_a_path_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME_VARIABLE, name)
    with pytest.raises(ClusterError, match="lower-case letters"):
        Instance.from_environment()


def test_empty_name_selects_default_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME_VARIABLE, raising=False)
    assert Instance.from_environment() == Instance(DEFAULT_NAME)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cluster", *arguments])
    return command_line.main()


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a cluster that does not exist."""
    monkeypatch.setenv(NAME_VARIABLE, "does-not-exist")
    monkeypatch.delenv("CLUSTER", raising=False)


def test_command_without_root_advises_sudo(
    monkeypatch: pytest.MonkeyPatch, no_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run_main(monkeypatch, "up") == 1
    assert capsys.readouterr().err == "A local cluster needs root: run this with sudo, or as root.\n"


def test_command_outside_linux_names_alternative(
    monkeypatch: pytest.MonkeyPatch, no_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert run_main(monkeypatch, "up") == 1
    assert "CLUSTER=current" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("load", "x.tar"), ("exec", "--", "true")])
def test_missing_cluster_error_names_start_command(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    no_cluster: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, *arguments) == 1
    assert "start it with `python -m hack.cluster up`" in capsys.readouterr().err


def test_down_without_cluster_succeeds(monkeypatch: pytest.MonkeyPatch, no_cluster: None) -> None:
    assert run_main(monkeypatch, "down") == 0


def test_unsupported_cluster_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "production")
    with pytest.raises(ClusterError, match="'current'"):
        checkout.choice()


def test_current_context_mode_writes_and_removes_only_dot_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl = tmp_path / "programs/kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(
        '#!/bin/sh\necho "$@" >>"$CALLS"\ncase "$*" in *current-context) echo mine;; *) echo "{}";; esac\n'
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("CLUSTER", "current")
    monkeypatch.setattr(checkout, "FOLDER", tmp_path / ".cluster")
    monkeypatch.setattr(toolchain, "kubectl", lambda: kubectl)
    monkeypatch.setattr(toolchain, "helm", lambda: kubectl)

    assert run_main(monkeypatch, "up") == 0
    assert "for the context mine" in capsys.readouterr().err
    assert (tmp_path / ".cluster/kubeconfig").read_text() == "{}\n"
    assert run_main(monkeypatch, "down") == 0
    assert not (tmp_path / ".cluster").exists()
    assert run_main(monkeypatch, "load", "x.tar") == 1
    assert (tmp_path / "calls").read_text().splitlines() == [
        "config current-context",
        "get --raw /readyz --request-timeout=10s",
        "config view --minify --flatten --raw",
    ]


def test_missing_programs_are_reported_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert {"buildah", "containerd", "iproute2"} <= set(packages.missing())
    with pytest.raises(ClusterError, match="there is no apt-get"):
        packages.install()


def test_full_disk_is_distinguished_from_other_failures() -> None:
    with pytest.raises(ClusterError, match="Copying failed because the disk is full"):
        commands.run(["sh", "-c", "echo write: No space left on device >&2; exit 1"], doing="Copying")
    with pytest.raises(ClusterError, match="Copying failed: sh ended with exit code 3 and said:\n  why"):
        commands.run(["sh", "-c", "echo why >&2; exit 3"], doing="Copying")


def test_missing_program_is_named() -> None:
    with pytest.raises(ClusterError, match="Copying needs the program no-such-program"):
        commands.run(["no-such-program"], doing="Copying")


def test_build_checks_free_space_before_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(toolchain, "DISK_NEEDED", 2**60)
    with pytest.raises(ClusterError, match="make room, or name another folder with XDG_CACHE_HOME"):
        toolchain.binaries()


@pytest.mark.parametrize("folder", [".cluster/bin", ".cluster/pages/bin"], ids=["default", "named"])
def test_own_kubectl_link_is_not_mistaken_for_system_kubectl(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = tmp_path / folder
    programs.mkdir(parents=True)
    (programs / "kubectl").write_text("#!/bin/sh\necho v1.99.0\n")
    (programs / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}")
    assert toolchain._installed("kubectl", [], (1, 29)) is None


def test_step_without_terminal_prints_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with step("making tea", "about 3 minutes"):
        pass
    assert capsys.readouterr().err == "making tea: about 3 minutes\n"
