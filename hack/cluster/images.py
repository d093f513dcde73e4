"""Make container images from root file systems, and keep them as archives in the cache folder.

If a registry is reachable, the official RabbitMQ image is used instead.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hack.cluster.commands import run
from hack.cluster.console import step
from hack.cluster.daemons import PAUSE_IMAGE
from hack.cluster.errors import ClusterError
from hack.cluster.locks import locked
from hack.cluster.mounts import overlays_stack_on
from hack.cluster.packages import PART as PACKAGES_PART
from hack.cluster.plan import Part
from hack.cluster.rootfs import RootfsError, cache_folder, rootfs

RABBITMQ_PART: Final = "RabbitMQ's image"
RABBITMQ_IMAGE: Final = "docker.io/library/rabbitmq:4-management"
BASE_IMAGE: Final = "localhost/workqueue-base:trixie"
RELEASE: Final = "trixie"
RABBITMQ_PACKAGES: Final = ("rabbitmq-server", "ca-certificates")
BASE_PACKAGES: Final = ("python3", "python3-venv", "ca-certificates")
PULL_SECONDS: Final = 300

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RABBITMQ_PROGRAMS: Final = "/usr/lib/rabbitmq/bin"
RABBITMQ_HOME: Final = "/var/lib/rabbitmq"
# The user ID in the official RabbitMQ image. Manifests name it in runAsUser and fsGroup.
RABBITMQ_USER: Final = "999"
RABBITMQ_FILES: Final = {
    "enabled_plugins": "[rabbitmq_management,rabbitmq_prometheus].\n",
    "rabbitmq.conf": (
        "loopback_users = none\nlisteners.tcp.default = 5672\nlog.console = true\nlog.file = false\n"
    ),
}
BASE_CONFIG: Final = ("--env", f"PATH={SYSTEM_PATH}", "--env", "LANG=C.UTF-8", "--cmd", "python3")
RABBITMQ_SCRIPT: Final = f"""\
set -e
usermod --uid {RABBITMQ_USER} rabbitmq
groupmod --gid {RABBITMQ_USER} rabbitmq
rm -f {RABBITMQ_HOME}/.erlang.cookie
chown -R rabbitmq:rabbitmq {RABBITMQ_HOME} /var/log/rabbitmq /etc/rabbitmq
"""
RABBITMQ_CONFIG: Final = (
    *("--env", f"PATH={RABBITMQ_PROGRAMS}:{SYSTEM_PATH}", "--env", f"HOME={RABBITMQ_HOME}"),
    *("--env", "LANG=C.UTF-8", "--user", f"{RABBITMQ_USER}:{RABBITMQ_USER}", "--volume", RABBITMQ_HOME),
    *("--port", "5672", "--port", "15672", "--port", "15692"),
    *("--entrypoint", f'["{RABBITMQ_PROGRAMS}/rabbitmq-server"]'),
)


@dataclass(frozen=True)
class Archive:
    """An image in a file, in the format of `docker save`."""

    name: str
    file: Path

    def image_id(self) -> str:
        """Return the digest of the image's configuration, in hexadecimal."""
        with tarfile.open(self.file) as archive:
            manifest = archive.extractfile("manifest.json")
            assert manifest is not None
            configuration: str = json.load(manifest)[0]["Config"]
        return Path(configuration).name.removesuffix(".json")


INCOMPLETE: Final = "locating item named"
"""What buildah says of an image whose files are missing. It then lists no image at all."""


def buildah(*arguments: str | Path, doing: str, timeout: float | None = None) -> str:
    """Run buildah on a separate store, in a mount namespace so that no mounts remain.

    Raises:
        ClusterError: buildah failed.
    """
    store = cache_folder() / "containers"
    store.mkdir(parents=True, exist_ok=True)
    # Without this setting, buildah makes a folder for networks in /etc, although no network is used.
    configuration = store / "containers.conf"
    configuration.write_text(f'[network]\nnetwork_config_dir = "{store / "networks"}"\n')
    command = [
        *("unshare", "--mount", "buildah", "--root", store / "storage", "--runroot", store / "run"),
        *("--storage-driver", "overlay" if overlays_stack_on(store) else "vfs"),
    ]
    environment = {"CONTAINERS_CONF": str(configuration)}
    try:
        return run([*command, *arguments], doing=doing, environment=environment, timeout=timeout).strip()
    except ClusterError as error:
        if INCOMPLETE not in str(error):
            raise
        raise ClusterError(
            f"{error}\nA build that was interrupted has left an incomplete image. Remove {store}, and repeat."
        ) from error


def parts() -> list[Part]:
    """Return a part if the image of RabbitMQ is missing."""
    return (
        []
        if _file(RABBITMQ_IMAGE, _rabbitmq_recipe()).exists()
        else [Part(RABBITMQ_PART, 75.0, rabbitmq, needs=(PACKAGES_PART,))]
    )


def pause(binaries: Path) -> Archive:
    """Return the image of a pod's sandbox."""
    program = binaries / "pause"

    def make() -> None:
        with _container() as container:
            buildah("copy", "--quiet", container, program, "/pause", doing="Making the pause image")
            _commit(container, PAUSE_IMAGE, "--entrypoint", '["/pause"]')

    return _archive(PAUSE_IMAGE, program.read_bytes().hex(), make, "a few seconds, once")


def rabbitmq() -> Archive:
    """Return RabbitMQ 4 with the management and prometheus plugins, under the name that a real cluster pulls."""

    def make() -> None:
        if pull(RABBITMQ_IMAGE):
            return
        root = _rootfs(RABBITMQ_PACKAGES)
        with _container(root) as container:
            doing = "Making the RabbitMQ image"
            for name, text in RABBITMQ_FILES.items():
                with tempfile.NamedTemporaryFile("w") as file:
                    file.write(text)
                    file.flush()
                    target = f"/etc/rabbitmq/{name}"
                    buildah("copy", "--quiet", "--chmod", "644", container, file.name, target, doing=doing)
            buildah(
                *("run", "--isolation", "chroot", container, "--", "sh", "-c", RABBITMQ_SCRIPT), doing=doing
            )
            _commit(container, RABBITMQ_IMAGE, *RABBITMQ_CONFIG)

    return _archive(RABBITMQ_IMAGE, _rabbitmq_recipe(), make, "about 1 minute, once")


def _rabbitmq_recipe() -> str:
    return repr((RELEASE, *RABBITMQ_PACKAGES, *RABBITMQ_FILES.values(), RABBITMQ_SCRIPT, *RABBITMQ_CONFIG))


def base() -> Archive:
    """Return the base of the project's image where no registry is reachable: Debian with Python."""

    def make() -> None:
        with _container(_rootfs(BASE_PACKAGES)) as container:
            _commit(container, BASE_IMAGE, *BASE_CONFIG)

    return _archive(BASE_IMAGE, repr((RELEASE, *BASE_PACKAGES, *BASE_CONFIG)), make, "about 1 minute, once")


def _archive(name: str, recipe: str, make: Callable[[], None], expected: str) -> Archive:
    """Return the cached archive of this recipe, or archive the image that `make` leaves in buildah's store."""
    file = _file(name, recipe)
    if not file.exists():
        with locked(file.with_suffix(".lock"), f"Another process makes the image {name}; waiting for it."):
            if not file.exists():
                with step(f"making the image {name}", expected):
                    make()
                    save(name, file)
    return Archive(name, file)


def _file(name: str, recipe: str) -> Path:
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return cache_folder() / "images" / f"{re.sub('[^a-z0-9]+', '-', name)}-{key}.tar"


def save(name: str, file: Path) -> None:
    """Write an image from buildah's store to a file, which appears only when it is complete."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    buildah("push", "--quiet", name, f"docker-archive:{unfinished}:{name}", doing=f"Saving the image {name}")
    unfinished.rename(file)


def _rootfs(packages: Sequence[str]) -> Path:
    try:
        return rootfs(RELEASE, packages)
    except RootfsError as error:
        raise ClusterError(str(error)) from error


def pull(name: str) -> bool:
    """Pull the image from a registry and return whether that worked."""
    try:
        buildah("pull", "--quiet", name, doing=f"Pulling {name}", timeout=PULL_SECONDS)
    except ClusterError:
        return False
    return True


def is_in_store(name: str) -> bool:
    """Return whether buildah's store has the image."""
    return bool(buildah("images", "--quiet", "--filter", f"reference={name}", doing="Listing images"))


def image_id(name: str) -> str | None:
    """Return the digest of an image's configuration in buildah's store, in hexadecimal; None without the image."""
    listed = buildah(
        "images", "--quiet", "--no-trunc", "--filter", f"reference={name}", doing="Listing images"
    )
    return listed.split()[0].removeprefix("sha256:") if listed else None


@contextmanager
def _container(root: Path | None = None) -> Iterator[str]:
    """Make a container with only a root file system."""
    container = buildah("from", "scratch", doing="Making an image")
    try:
        if root:
            # A tar file keeps the owners of files. Copied from a folder, all files would belong to root.
            with tempfile.NamedTemporaryFile(suffix=".tar", dir=cache_folder()) as file:
                run(
                    ["tar", "--directory", root, "--create", "--file", file.name, "."],
                    doing="Making an image",
                )
                buildah("add", "--quiet", container, file.name, "/", doing="Making an image")
        yield container
    finally:
        buildah("rm", container, doing="Making an image")


def _commit(container: str, name: str, *configuration: str) -> None:
    buildah("config", *configuration, container, doing=f"Making the image {name}")
    buildah("commit", "--quiet", container, name, doing=f"Making the image {name}")
