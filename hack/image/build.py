"""Build the project's image from its Dockerfile, and load it into the local cluster.

    python -m hack.image [--tag workqueue-operator:dev] [--load]

A docker engine builds the image if one answers, otherwise buildah. If no registry is reachable, the base image is
built here too. pip inside the build uses this machine's pip configuration. The archive's name contains a digest of
the sources, so an unchanged image is neither built nor loaded again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hack.cluster import images, lifecycle, packages
from hack.cluster.commands import run, run_with_lines
from hack.cluster.console import say, step
from hack.cluster.errors import ClusterError
from hack.cluster.images import Archive
from hack.cluster.instance import Instance
from hack.cluster.locks import locked
from hack.cluster.rootfs import cache_folder

CHECKOUT: Final = Path(__file__).parents[2]
DIGITS: Final = 16
DEFAULT_TAG: Final = "workqueue-operator:dev"
PUBLIC_BASE: Final = "docker.io/library/python:3.13-slim"
CERTIFICATES: Final = Path("/etc/ssl/certs")
PIP_CONFIGURATION: Final = "/etc/pip.conf"
VERSION_FILE: Final = CHECKOUT / "worker/workqueue/__init__.py"


def build(tag: str = DEFAULT_TAG) -> Archive:
    """Return the archive of this checkout's image. Build it if it is not in the cache.

    Raises:
        ClusterError: the build failed.
    """
    name = full_name(tag)
    folder = cache_folder() / "images"
    slug = re.sub("[^a-z0-9]+", "-", name)
    with (
        locked(folder / f".{slug}.lock", f"Another process builds {tag}; waiting for it."),
        tempfile.TemporaryDirectory(prefix="workqueue-image-") as context,
    ):
        # Build from a copy, because an edit during the build would not match the digest in the name.
        file = folder / f"{slug}-{copy_sources(Path(context))}.tar"
        if file.exists():
            say(f"The image {tag} is already built from these sources.")
        else:
            _build(name, Path(context), file)
            for older in folder.glob(f"{slug}-{'?' * DIGITS}.tar"):
                if older != file:
                    older.unlink()
    return Archive(name, file)


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
    if docker_answers():
        with_docker(name, context, file, _arguments())
        return
    require_buildah()
    base = f"--build-arg=BASE_IMAGE={_base()}"
    with step(f"building {name} with buildah", "about 30 s, later about 10 s"):
        with_buildah(name, context, file, [base, *_arguments()])


def with_docker(name: str, context: Path, file: Path, arguments: Sequence[str] = ()) -> None:
    """Build an image from the Dockerfile in a folder with docker, and save it to a file.

    Raises:
        ClusterError: the build failed.
    """
    with step(f"building {name} with docker", "about 1 minute, later less") as current:

        def show(line: str) -> None:
            current.detail = line[:60]

        command = ["docker", "build", "--network=host", *arguments, "--tag", name, str(context)]
        run_with_lines(command, doing=f"Building {name}", on_line=show)
        unfinished = file.with_suffix(".unfinished")
        run(["docker", "save", "--output", unfinished, name], doing=f"Saving {name}")
        unfinished.rename(file)


def require_buildah() -> None:
    """Install buildah if it is missing.

    Raises:
        ClusterError: this process is not root, or the installation failed.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            "There is no docker engine, and buildah needs root. Start docker, or run this as root."
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


def docker_answers() -> bool:
    """Return whether there is a docker engine."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "version"], capture_output=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def _base() -> str:
    """Return the base image: the public one, or one that is built here if no registry is reachable."""
    if not images.is_in_store(images.BASE_IMAGE) and images.pull(PUBLIC_BASE):
        return PUBLIC_BASE
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
    """Build the image, and load it with `--load`."""
    parser = argparse.ArgumentParser(prog="python -m hack.image", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tag", default=DEFAULT_TAG, help="the image's name (default: %(default)s)")
    parser.add_argument("--load", action="store_true", help="load it into the local cluster")
    arguments = parser.parse_args()
    try:
        archive = build(arguments.tag)
        if arguments.load:
            lifecycle.load_once(Instance.from_environment(), archive)
    except ClusterError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
