"""Parse the command line `python -m hack.release`."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final

from hack.cluster.console import say, step
from hack.cluster.errors import ClusterError
from hack.release import archives, checks, deployment, distribution, plugin, publication
from workqueue import __version__

OUTPUT: Final = checks.CHECKOUT / "build/release"


def main() -> int:
    """Make all files of the release. An error becomes one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m hack.release", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the files (%(default)s)")
    parser.add_argument(
        "--push",
        metavar="REGISTRY",
        help="push image and chart there and sign them, such as registry.example.com/workqueue-dev",
    )
    parser.add_argument(
        "--untagged", action="store_true", help="try it out: skip the checks of tag and version"
    )
    arguments = parser.parse_args()
    try:
        if not arguments.untagged:
            checks.check(__version__)
        make(arguments.output, arguments.push)
    except ClusterError as error:
        say(str(error))
        return 1
    print(f"{arguments.output}: {len(list(arguments.output.iterdir()))} files of version {__version__}")
    return 0


def make(output: Path, registry: str | None) -> None:
    """Make the files of the release, and publish image and chart if there is a registry.

    Raises:
        ClusterError: a program is missing or failed.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with step("building wheel, source distribution and workqueue.pyz", "about 10 s"):
        wheel = distribution.wheel_and_source(output)
        distribution.worker_file(wheel, output)
    with step("building the archives of kubectl's plugin", "about 1 minute"):
        plugin.make(wheel, output)
    image = publication.Image(registry, __version__)
    if registry:
        with step(f"building, pushing and signing {image.name}", "about 5 minutes"):
            image.publish(output)
    with step("packaging the chart and install.yaml", "a few seconds"):
        chart = deployment.chart(image, output)
        deployment.install_yaml(image, output)
    if registry:
        publication.publish_chart(chart, registry)
    checksums = archives.checksums(output)
    if registry:
        publication.sign_file(checksums)


if __name__ == "__main__":
    sys.exit(main())
