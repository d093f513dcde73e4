"""Build the project's image from its Dockerfile, and load it into the local cluster.

    python -m hack.image [--tag workqueue-operator:dev] [--load | --up]

docker or podman builds the image if one answers, otherwise buildah. If no registry is reachable, the base image is
built here too. pip inside the build uses this machine's pip configuration. The archive's name contains a digest of
the sources, so an unchanged image is neither built nor loaded again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from hack.cluster import images, kind, packages, plan
from hack.cluster.clusters import Cluster, selected
from hack.cluster.commands import run, run_with_lines
from hack.cluster.console import say, step
from hack.cluster.errors import ClusterError
from hack.cluster.images import Archive
from hack.cluster.locks import locked
from hack.cluster.plan import Part
from hack.cluster.rootfs import cache_folder

CHECKOUT: Final = Path(__file__).parents[2]
DOCKERFILE: Final = CHECKOUT / "Dockerfile"
DIGITS: Final = 16
DEFAULT_TAG: Final = "workqueue-operator:dev"
PART: Final = "the image of operator and workers"
BASE_PART: Final = "its base image"
LOADED_PART: Final = "the image, loaded into the cluster"
CERTIFICATES: Final = Path("/etc/ssl/certs")
PIP_CONFIGURATION: Final = "/etc/pip.conf"
VERSION_FILE: Final = CHECKOUT / "worker/workqueue/__init__.py"


def build(tag: str = DEFAULT_TAG) -> Archive:
    """Return the archive of this checkout's image. Build it if it is not in the cache.

    Raises:
        ClusterError: the build failed.
    """
    name = full_name(tag)
    with (
        locked(_folder() / f".{_slug(name)}.lock", f"Another process builds {tag}; waiting for it."),
        tempfile.TemporaryDirectory(prefix="workqueue-image-") as context,
    ):
        # Build from a copy, because an edit during the build would not match the digest in the name.
        file = _file(name, copy_sources(Path(context)))
        if file.exists():
            say(f"The image {tag} is already built from these sources.")
        else:
            _build(name, Path(context), file)
            for older in _folder().glob(f"{_slug(name)}-{'?' * DIGITS}.tar"):
                if older != file:
                    older.unlink()
    return Archive(name, file)


def build_in(cluster: Cluster, tag: str = DEFAULT_TAG) -> None:
    """Build the image while the cluster starts, and load it.

    Raises:
        ClusterError: the build failed, or the cluster cannot start.
    """
    made: list[Archive] = []

    def make() -> None:
        made.append(build(tag))

    def load() -> None:
        cluster.load_once(made[0] if made else build(tag))

    if not cluster.takes_images:
        cluster.up()
        say(f"CLUSTER=current loads no image: push {tag} to a registry that the cluster can pull from.")
        return
    parts = [] if _is_built(tag) else _parts(make)
    cluster.up([*parts, Part(LOADED_PART, 10.0, load, needs=(PART, plan.CLUSTER))])


def _parts(make: Callable[[], None]) -> list[Part]:
    """Return the parts of a build. Without an engine, it needs Debian packages and a base image."""
    if kind.engine() is not None:
        return [Part(PART, 60.0, make)]
    base = Part(BASE_PART, 75.0, _make_base, needs=(packages.PART,))
    return [base, Part(PART, 40.0, make, needs=(BASE_PART,))]


def _make_base() -> None:
    require_buildah()
    _base()


def _is_built(tag: str) -> bool:
    with tempfile.TemporaryDirectory() as context:
        return _file(full_name(tag), copy_sources(Path(context))).exists()


def _folder() -> Path:
    return cache_folder() / "images"


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name)


def _file(name: str, digest: str) -> Path:
    return _folder() / f"{_slug(name)}-{digest}.tar"


def full_name(tag: str) -> str:
    """Return an image's name as Kubernetes completes it: `a:1` is docker.io/library/a:1."""
    first, slash, _ = tag.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return tag
    return f"docker.io/{tag}" if slash else f"docker.io/library/{tag}"


def copy_sources(context: Path) -> str:
    """Copy the image's sources to a folder and return their digest, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sources():
        name = file.relative_to(CHECKOUT)
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
        copy = context / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        shutil.copystat(file, copy)
    return digest.hexdigest()[:DIGITS]


def sources() -> Iterator[Path]:
    """Yield the files that the build sees, which are the exceptions in .dockerignore."""
    ignore = CHECKOUT / ".dockerignore"
    yield CHECKOUT / "Dockerfile"
    yield ignore
    for line in ignore.read_text().splitlines():
        if line.startswith("!"):
            path = CHECKOUT / line[1:]
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            yield from (file for file in files if file.is_file() and "__pycache__" not in file.parts)


def _build(name: str, context: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind.engine() is not None:
        with_engine(name, context, file, _arguments())
        return
    require_buildah()
    base = f"--build-arg=BASE_IMAGE={_base()}"
    with step(f"building {name} with buildah", "about 30 s, later about 10 s"):
        with_buildah(name, context, file, [base, *_arguments()])


def with_engine(name: str, context: Path, file: Path, arguments: Sequence[str] = ()) -> None:
    """Build an image from the Dockerfile in a folder with docker or podman, and save it to a file.

    Raises:
        ClusterError: the build failed.
    """
    engine = kind.engine()
    assert engine is not None
    with step(f"building {name} with {engine}", "about 1 minute, later less") as current:

        def show(line: str) -> None:
            current.detail = line[:60]

        command = [engine, "build", "--network=host", *arguments, "--tag", name, str(context)]
        run_with_lines(command, doing=f"Building {name}", on_line=show)
        unfinished = file.with_suffix(".unfinished")
        unfinished.unlink(missing_ok=True)
        run([engine, "save", "--output", unfinished, name], doing=f"Saving {name}")
        unfinished.rename(file)


def require_buildah() -> None:
    """Install buildah if it is missing.

    Raises:
        ClusterError: this process is not root, or the installation failed.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            "There is no container engine, and buildah needs root. Start docker or podman, or run this as root."
        )
    packages.install()


def with_buildah(name: str, context: Path, file: Path, arguments: Sequence[str] = ()) -> None:
    """The same with buildah."""
    images.buildah(
        *("build", "--isolation=chroot", "--network=host", "--layers", "--quiet"),
        *(*arguments, *_volumes()),
        *("--tag", name, context),
        doing=f"Building {name}",
    )
    images.save(name, file)


def pinned_base() -> str:
    """Return the base image that the Dockerfile names with its digest."""
    found = re.search(r"^FROM (\S+@sha256:[0-9a-f]{64}) AS pinned$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found, "The Dockerfile has no stage with a pinned base image."
    return found[1]


def _base() -> str:
    """Return the base image: the pinned one, or one that is built here if no registry is reachable."""
    if not images.is_in_store(images.BASE_IMAGE) and images.pull(pinned_base()):
        return pinned_base()
    archive = images.base()
    if not images.is_in_store(archive.name):
        images.buildah("pull", "--quiet", f"docker-archive:{archive.file}", doing="Reading the base image")
    return archive.name


def _arguments() -> list[str]:
    version = re.search(r'^__version__ = "(.+)"', VERSION_FILE.read_text(), re.MULTILINE)
    arguments = [f"--build-arg=VERSION={version[1]}"] if version else []
    try:
        revision = run(["git", "rev-parse", "HEAD"], doing="Asking git", folder=CHECKOUT).strip()
    except ClusterError:
        return arguments
    return [*arguments, f"--build-arg=REVISION={revision}"]


def _volumes() -> list[str]:
    """Return the mounts that give pip in the build this machine's pip configuration and certificates."""
    configuration = cache_folder() / "pip.conf"
    settings = _pip_settings()
    configuration.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
            for section, values in settings.items()
        )
    )
    volumes = {PIP_CONFIGURATION: configuration, str(CERTIFICATES): CERTIFICATES}
    words = " ".join(value for values in settings.values() for value in values.values()).split()
    for path in (Path(word) for word in words if word.startswith("/")):
        if path.exists() and not path.is_relative_to(CERTIFICATES):
            volumes[str(path)] = path
    return [f"--volume={source}:{target}:ro" for target, source in volumes.items() if source.exists()]


def _pip_settings() -> dict[str, dict[str, str]]:
    """Return this machine's pip configuration by section. PIP_ variables override the files."""
    listed = run([sys.executable, "-m", "pip", "config", "list"], doing="Reading pip's configuration")
    settings: dict[str, dict[str, str]] = {}
    variables: dict[str, str] = {}
    for section, key, value in re.findall(r"^([^.]+)\.([^=]+)='(.*)'$", listed, re.MULTILINE):
        (variables if section == ":env:" else settings.setdefault(section, {}))[key] = value
    settings.setdefault("global", {}).update(variables)
    return settings


def main() -> int:
    """Build the image, and load it with `--load`, into a cluster that is started with `--up`."""
    parser = argparse.ArgumentParser(prog="python -m hack.image", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tag", default=DEFAULT_TAG, help="the image's name (default: %(default)s)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--load", action="store_true", help="load it into the cluster")
    target.add_argument("--up", action="store_true", help="start the cluster at the same time, and load it")
    arguments = parser.parse_args()
    try:
        if arguments.up:
            build_in(selected(), arguments.tag)
            return 0
        archive = build(arguments.tag)
        if arguments.load:
            selected().load_once(archive)
    except ClusterError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
