"""Build an image with your handlers, and load it into the local cluster: `make load IMAGE=mine:dev DIR=path`.

    python -m hack.image.load IMAGE FOLDER

The folder has a Dockerfile that begins with `FROM workqueue-operator:dev`. The image of this checkout is built first.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from hack.cluster import images, kind
from hack.cluster.clusters import Cluster, selected
from hack.cluster.commands import run
from hack.cluster.console import say, step
from hack.cluster.errors import ClusterError
from hack.cluster.images import Archive
from hack.cluster.rootfs import cache_folder
from hack.image import build

_NAME: Final = re.compile(
    r"([a-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})"
)
_EXAMPLE: Final = "make load IMAGE=mine:1 DIR=path/to/folder"


def check(name: str, folder: str) -> Path:
    """Return the folder with the Dockerfile.

    Raises:
        ClusterError: the name or the folder cannot be used.
    """
    if not folder:
        raise ClusterError(f"No folder is given. Name the one with your Dockerfile: {_EXAMPLE}")
    if build.full_name(name) == build.full_name(build.DEFAULT_TAG):
        raise ClusterError(f"{name} is the image of this project. Give yours another name: {_EXAMPLE}")
    found = _NAME.fullmatch(name)
    if found is None:
        raise ClusterError(f"{name!r} is no image name with a tag. Use lower-case letters, as in {_EXAMPLE}")
    if found["tag"] == "latest":
        raise ClusterError(
            f"The kubelet pulls {name} from a registry, because its tag is latest. Use another tag, as in {_EXAMPLE}"
        )
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ClusterError(f"{folder} is not a folder. DIR is the folder with your Dockerfile.")
    if not (path / "Dockerfile").is_file():
        raise ClusterError(
            f"{folder} has no Dockerfile. Write one of two lines: `FROM {build.DEFAULT_TAG}`, and "
            "`COPY handlers.py /app/` with the name of your module."
        )
    return path


def load(name: str, folder: Path, cluster: Cluster) -> None:
    """Build the image and load it into the cluster.

    Raises:
        ClusterError: the build failed, or there is no cluster that takes images.
    """
    if not cluster.takes_images:
        raise ClusterError(
            "CLUSTER=current is not a cluster of this machine. Build the image with docker, and push it to a "
            "registry that the cluster can pull from."
        )
    base = build.build()
    with tempfile.TemporaryDirectory(prefix="workqueue-load-", dir=cache_folder()) as target:
        file = Path(target) / "image.tar"
        full_name = build.full_name(name)
        if (engine := kind.engine()) is not None:
            run([engine, "load", "--quiet", "--input", base.file], doing=f"Reading {build.DEFAULT_TAG}")
            build.with_engine(full_name, folder, file)
        else:
            build.require_buildah()
            with step(f"building {name} with buildah", "a few seconds"):
                _keep_in_store(base)
                build.with_buildah(full_name, folder, file)
        cluster.load_once(Archive(full_name, file))


def _keep_in_store(base: Archive) -> None:
    """Read the base image into buildah's store, unless the store has exactly this one."""
    if images.image_id(base.name) != base.image_id():
        doing = f"Reading {build.DEFAULT_TAG}"
        images.buildah("pull", "--quiet", f"docker-archive:{base.file}", doing=doing)


def main() -> int:
    """Check the arguments, build and load."""
    parser = argparse.ArgumentParser(prog="python -m hack.image.load", description=__doc__.split("\n", 1)[0])
    parser.add_argument("image", help="the name of your image with a tag, such as mine:1")
    parser.add_argument("folder", help="the folder with your Dockerfile")
    arguments = parser.parse_args()
    try:
        folder = check(arguments.image, arguments.folder)
        load(arguments.image, folder, selected())
    except ClusterError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    say(
        f"The cluster has {arguments.image}: write it into `worker.image`. Workers that run keep their image. If the "
        "tag was loaded before, replace them with `kubectl rollout restart deployment/NAME-worker`."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
