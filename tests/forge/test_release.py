"""The files of a release, and the calls that publish and sign them."""

from __future__ import annotations

import http.server
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from hack.cluster import toolchain
from hack.cluster.errors import ClusterError
from hack.generate.files import ROOT
from hack.release import __main__ as command_line
from hack.release import archives, checks, deployment, distribution, notes, plugin, publication
from hack.release.publication import Image
from workqueue import __version__

DIGEST = "sha256:" + "ab" * 32
COMPLETE = {
    "tags": ["v1.2.3"],
    "changes": "",
    "changelog": "## [Unreleased]\n\n## [1.2.3] - 2026-12-01\n\n### Added\n\n- A thing.\n\n## [1.2.2] - 2026-11-01\n",
    "contracts": {"1.2.3"},
}


@pytest.mark.parametrize(
    ("lacks", "sentence"),
    [
        ({}, None),
        ({"tags": ["v1.2.2"]}, "HEAD has no tag v1.2.3; its tags are v1.2.2."),
        ({"changes": " M Makefile\n"}, "uncommitted changes"),
        ({"changelog": "## [Unreleased]\n"}, "no heading `## [1.2.3] - DATE`"),
        ({"contracts": {"1.2.2"}}, "contracts/1.2.3.json is missing"),
    ],
    ids=["complete", "another-tag", "uncommitted-change", "no-changelog", "no-contract"],
)
def test_release_needs_tag_changelog_and_contract(lacks: dict[str, object], sentence: str | None) -> None:
    found = checks.problems("1.2.3", **{**COMPLETE, **lacks})  # type: ignore[arg-type]
    assert len(found) == (0 if sentence is None else 1)
    assert sentence is None or sentence in found[0]


def test_notes_are_the_entries_of_the_version() -> None:
    assert notes.notes(str(COMPLETE["changelog"]), "1.2.3") == "### Added\n\n- A thing.\n"
    assert notes.notes(str(COMPLETE["changelog"]), "1.2") == ""


def test_untagged_commit_is_refused_with_all_reasons(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["release", "--output", str(tmp_path / "release")])
    monkeypatch.setattr(command_line, "__version__", "99.0.0")
    assert command_line.main() == 1
    assert "HEAD has no tag v99.0.0" in capsys.readouterr().err
    assert not (tmp_path / "release").exists()


def test_worker_needs_two_pure_libraries() -> None:
    """So that its wheel can be added to any image, whatever its C library and processor."""
    assert distribution.needed(distribution.PROJECT) == {"pika", "prometheus-client"}


def test_locked_requirements_are_complete_and_have_digests() -> None:
    lines = distribution.locked(distribution.PROJECT, ["kubectl"])
    assert {"pika", "prometheus-client", "pydantic", "pydantic-core", "rich", "cronsim", "tzdata"} <= set(
        lines
    )
    assert "kopf" not in lines
    assert all("--hash=sha256:" in text for text in lines.values())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel, source distribution and workqueue.pyz."""
    folder = tmp_path_factory.mktemp("built")
    distribution.worker_file(distribution.wheel_and_source(folder), folder)
    return folder


def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.mark.slow
def test_wheel_runs_on_every_platform_and_source_has_what_it_is_built_from(built: Path) -> None:
    assert wheel(built).name == f"workqueue_operator-{__version__}-py3-none-any.whl"
    with tarfile.open(built / f"workqueue_operator-{__version__}.tar.gz") as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "worker/workqueue/__init__.py", "PKG-INFO"} <= names


@pytest.mark.slow
def test_worker_file_runs_without_the_project_and_its_environment(built: Path, tmp_path: Path) -> None:
    file = built / distribution.WORKER_FILE
    assert file.stat().st_mode & stat.S_IXUSR
    done = subprocess.run(
        [sys._base_executable, "-I", file, "--version"],  # type: ignore[attr-defined]
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == __version__
    with zipfile.ZipFile(file) as content:
        names = content.namelist()
    assert not [
        name for name in names if name.startswith(("workqueue_operator/", "workqueue_web/")) or ".so" in name
    ]


@pytest.mark.slow
def test_built_files_have_the_same_bytes_every_time(built: Path, tmp_path: Path) -> None:
    distribution.worker_file(distribution.wheel_and_source(tmp_path), tmp_path)
    for file in tmp_path.iterdir():
        assert archives.sha256(file) == archives.sha256(built / file.name), file.name


@pytest.fixture(scope="module")
def plugins(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archives of kubectl's plugin for every platform."""
    folder = tmp_path_factory.mktemp("plugins")
    for platform in plugin.PLATFORMS:
        plugin.archive(wheel(built), platform, folder)
    return folder


@pytest.mark.nightly
def test_plugin_archive_has_its_compiled_library_for_every_python(plugins: Path) -> None:
    for platform in plugin.PLATFORMS:
        with tarfile.open(plugins / platform.archive) as archive:
            names = archive.getnames()
        compiled = [name for name in names if "_pydantic_core.c" in name]
        assert {re.findall(r"cpython-(\d)(\d+)", name)[0] for name in compiled} == {
            tuple(version.split(".")) for version in plugin.PYTHONS
        }
        assert {plugin.PROGRAM, "kubectl_complete-workqueue", "LICENSE"} <= set(names)
        assert "lib/workqueue_kubectl/cli.py" in names
        assert "lib/workqueue_web/server.py" not in names


@pytest.mark.nightly
def test_plugin_runs_from_its_archive(plugins: Path, tmp_path: Path) -> None:
    linux = next(one for one in plugin.PLATFORMS if (one.os, one.arch) == ("linux", "amd64"))
    with tarfile.open(plugins / linux.archive) as archive:
        archive.extractall(tmp_path / "plugin", filter="data")
    link = tmp_path / plugin.PROGRAM
    link.symlink_to(tmp_path / "plugin" / plugin.PROGRAM)
    done = subprocess.run(
        [sys._base_executable, link, "--version"],  # type: ignore[attr-defined]
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == __version__


@pytest.fixture
def served(plugins: Path) -> Iterator[str]:
    """The address of a server with the archives."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(plugins))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_krew_accepts_and_installs_the_plugin_for_every_platform(
    plugins: Path, served: str, tmp_path: Path
) -> None:
    manifest = tmp_path / f"{plugin.NAME}.yaml"
    manifest.write_text(plugin.manifest(plugins, served))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl-krew").symlink_to(toolchain.tool(toolchain.KREW))
    (programs / "kubectl").symlink_to(toolchain.kubectl())
    done = subprocess.run(
        [toolchain.tool(toolchain.KREW_VALIDATOR), f"-manifest={manifest}"],
        env={**os.environ, "PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"all {len(plugin.PLATFORMS)} spec.platforms installed fine" in done.stderr


def test_manifest_of_krew_names_each_archive_with_its_digest(tmp_path: Path) -> None:
    for platform in plugin.PLATFORMS:
        (tmp_path / platform.archive).write_text(platform.archive)
    made = yaml.safe_load(plugin.manifest(tmp_path, "https://example.com"))
    assert made["spec"]["version"] == f"v{__version__}"
    for found, platform in zip(made["spec"]["platforms"], plugin.PLATFORMS, strict=True):
        assert found["uri"] == f"https://example.com/{platform.archive}"
        assert found["sha256"] == archives.sha256(tmp_path / platform.archive)
        assert found["selector"]["matchLabels"] == {"os": platform.os, "arch": platform.arch}


def test_archive_depends_on_the_files_alone(tmp_path: Path) -> None:
    for number, moment in enumerate((1.0, 2e9)):
        folder = tmp_path / str(number)
        (folder / "lib").mkdir(parents=True)
        for name in ("b", "lib/a"):
            (folder / name).write_text(name)
            os.utime(folder / name, (moment, moment))
        (folder / "b").chmod(0o700 if number else 0o755)
        archives.tar(folder, tmp_path / f"{number}.tar.gz")
    assert archives.sha256(tmp_path / "0.tar.gz") == archives.sha256(tmp_path / "1.tar.gz")


# -- image, chart and install.yaml ---------------------------------------------------------------------------------


@pytest.fixture
def image() -> Image:
    """An image that was pushed."""
    made = Image("ghcr.io/workqueue-dev", __version__)
    made.digest = DIGEST
    return made


def test_chart_and_manifest_of_a_release_name_the_pushed_image(image: Image, tmp_path: Path) -> None:
    values = yaml.safe_load(deployment.values_for(image, (deployment.CHART / "values.yaml").read_text()))
    chart = yaml.safe_load(deployment.metadata_for(image, (deployment.CHART / "Chart.yaml").read_text()))
    assert values["image"]["repository"] == "ghcr.io/workqueue-dev/workqueue-operator"
    assert chart["annotations"]["workqueue.dev/image"].endswith(f"/workqueue-operator@{DIGEST}")
    deployment.install_yaml(image, tmp_path)
    objects = yaml.safe_load_all((tmp_path / "install.yaml").read_text())
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    containers = [
        container for one in deployments for container in one["spec"]["template"]["spec"]["containers"]
    ]
    assert [container["image"] for container in containers] == [
        f"ghcr.io/workqueue-dev/workqueue-operator:{__version__}@{DIGEST}"
    ]


@pytest.mark.slow
def test_packaged_chart_renders_the_pushed_image(image: Image, tmp_path: Path) -> None:
    file = deployment.chart(image, tmp_path)
    rendered = subprocess.run(
        [toolchain.helm(), "template", file], capture_output=True, text=True, check=True
    ).stdout
    assert f"ghcr.io/workqueue-dev/workqueue-operator@{DIGEST}" in rendered
    assert "image: workqueue-operator:" not in rendered


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        pytest.param("tag=7", "ghcr.io/workqueue-dev/workqueue-operator:7", id="own-tag"),
        pytest.param("repository=mirror/jobs", f"mirror/jobs:{__version__}", id="own-repository"),
        pytest.param(f"digest=sha256:{'f' * 64}", f"operator@sha256:{'f' * 64}", id="own-digest"),
    ],
)
def test_released_chart_uses_the_image_that_a_user_chooses(
    chosen: str, expected: str, image: Image, tmp_path: Path
) -> None:
    file = deployment.chart(image, tmp_path)

    rendered = subprocess.run(
        [toolchain.helm(), "template", file, "--set-string", f"image.{chosen}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert f'{expected}"\n' in rendered
    assert DIGEST not in rendered


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docker, helm and cosign that record their calls, and a registry without this image."""
    log = tmp_path / "calls"
    scripts = {
        "docker": (
            'case "$*" in *"inspect"*"--format"*) echo "{}";; *inspect*) exit 1;; esac\n'
            f'for word in "$@"; do case "$word" in --metadata-file=*) '
            f"""echo '{{"containerimage.digest": "{DIGEST}"}}' >"${{word#*=}}";; esac; done"""
        ),
        "helm": f"echo v4.1.4.; echo 'Digest: {DIGEST}'",
        "cosign": 'for word in "$@"; do case "$word" in --bundle=*) echo {} >"${word#*=}";; esac; done',
    }
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{log}"\n{script}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(toolchain, "helm", lambda: folder / "helm")
    return log


def test_image_is_built_for_all_platforms_with_bill_of_materials_and_provenance(
    calls: Path, tmp_path: Path
) -> None:
    image = Image("ghcr.io/workqueue-dev", "1.2.3")
    image.publish(tmp_path)
    looked, built, signed, *inspected = calls.read_text().splitlines()
    assert looked.endswith("imagetools inspect ghcr.io/workqueue-dev/workqueue-operator:1.2.3")
    for option in (
        *("--platform=linux/amd64,linux/arm64", "--provenance=mode=max", "--sbom=true", "--push"),
        *("--build-arg=VERSION=1.2.3", f"--build-arg=SOURCE={plugin.repository()}"),
    ):
        assert option in built.split()
    assert "latest" not in built
    assert signed == f"cosign sign --yes ghcr.io/workqueue-dev/workqueue-operator@{DIGEST}"
    assert len(inspected) == 2
    assert {file.name for file in tmp_path.glob("*.spdx.json")} == {
        f"workqueue-operator-1.2.3_linux_{arch}.spdx.json" for arch in ("amd64", "arm64")
    }


def test_existing_image_is_never_replaced(calls: Path, tmp_path: Path) -> None:
    docker = tmp_path / "programs/docker"
    docker.write_text('#!/bin/sh\necho "docker $*" >>"' + str(calls) + '"\n')
    with pytest.raises(
        ClusterError, match=r"exists already\. Never replace an image: release the next version"
    ):
        Image("ghcr.io/workqueue-dev", "1.2.3").publish(tmp_path)
    assert len(calls.read_text().splitlines()) == 1


def test_chart_and_checksums_are_signed_by_digest(calls: Path, tmp_path: Path) -> None:
    file = tmp_path / "workqueue-operator-1.2.3.tgz"
    file.write_text("chart")
    publication.publish_chart(file, "ghcr.io/workqueue-dev")
    checksums = tmp_path / "checksums.txt"
    checksums.write_text("")
    publication.sign_file(checksums)
    assert calls.read_text().splitlines() == [
        f"helm push {file} oci://ghcr.io/workqueue-dev/charts",
        f"cosign sign --yes ghcr.io/workqueue-dev/charts/workqueue-operator@{DIGEST}",
        f"cosign sign-blob --yes --bundle={checksums}.sigstore.json {checksums}",
    ]


def test_checksums_can_be_checked(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    archives.checksums(tmp_path)
    subprocess.run(
        ["sha256sum", "--check", "--strict", "checksums.txt"], cwd=tmp_path, check=True, capture_output=True
    )


def test_base_image_is_pinned_by_digest() -> None:
    text = (ROOT / "Dockerfile").read_text()
    sources = re.findall(r"(?m)^FROM (\S+)", text)
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim@sha256:[0-9a-f]{64}", sources[0])
    stages = set(re.findall(r"(?m)^FROM \S+ AS (\S+)$", text))
    assert set(sources[1:]) <= {"${BASE_IMAGE}", *stages}
    assert re.findall(r"(?m)^ARG BASE_IMAGE=(.+)$", text) == ["pinned"]


def test_project_names_its_addresses() -> None:
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+", plugin.repository())
    metadata = json.dumps(checks.CHECKOUT.joinpath("pyproject.toml").read_text())
    assert all(name in metadata for name in ("Homepage", "Documentation", "Source", "Issues", "Changelog"))
