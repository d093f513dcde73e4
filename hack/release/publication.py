"""Push the image for all platforms and the chart, and sign them without a key.

cosign signs with the identity of the workflow, or of the person who signs in. buildx attaches the bill of materials
of the whole image and its provenance.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Final

from hack.cluster import toolchain
from hack.cluster.commands import run, run_with_lines
from hack.cluster.console import step
from hack.cluster.errors import ClusterError
from hack.release.checks import CHECKOUT
from hack.release.plugin import repository

NAME: Final = "workqueue-operator"
PLATFORMS: Final = ("linux/amd64", "linux/arm64")


class Image:
    """The image of a release.

    Args:
        registry: where it is pushed, such as `registry.example.com/workqueue-dev`; None if it is not.

    Attributes:
        digest: of the index of all platforms, once it was pushed.
    """

    def __init__(self, registry: str | None, version: str) -> None:
        self.repository: Final = f"{registry}/{NAME}" if registry else NAME
        self.version: Final = version
        self.digest = ""

    @property
    def name(self) -> str:
        """Return its name with the tag, which is never pushed twice."""
        return f"{self.repository}:{self.version}"

    @property
    def reference(self) -> str:
        """Return its name with the digest, if it is known."""
        return f"{self.name}@{self.digest}" if self.digest else self.name

    def publish(self, output: Path) -> None:
        """Build it for all platforms, push it, sign it, and write its bill of materials for each platform.

        Raises:
            ClusterError: docker or cosign failed, or the tag exists already.
        """
        self._refuse_existing()
        revision = run(["git", "rev-parse", "HEAD"], doing="Asking git", folder=CHECKOUT).strip()
        with tempfile.TemporaryDirectory() as temporary, step("building all platforms") as current:
            metadata = Path(temporary) / "metadata.json"

            def show(line: str) -> None:
                current.detail = line[:60]

            run_with_lines(
                [
                    *("docker", "buildx", "build", f"--platform={','.join(PLATFORMS)}"),
                    *("--provenance=mode=max", "--sbom=true", "--push", f"--metadata-file={metadata}"),
                    *(f"--build-arg=VERSION={self.version}", f"--build-arg=REVISION={revision}"),
                    *(f"--build-arg=SOURCE={repository()}", f"--tag={self.name}", CHECKOUT),
                ],
                doing=f"Building {self.name}",
                on_line=show,
            )
            self.digest = json.loads(metadata.read_text())["containerimage.digest"]
        sign(f"{self.repository}@{self.digest}")
        for platform in PLATFORMS:
            template = f'{{{{ json (index .SBOM "{platform}").SPDX }}}}'
            inspect = ["docker", "buildx", "imagetools", "inspect", f"{self.repository}@{self.digest}"]
            bill = run([*inspect, "--format", template], doing="Reading the bill of materials")
            (output / f"{NAME}-{self.version}_{platform.replace('/', '_')}.spdx.json").write_text(bill)

    def _refuse_existing(self) -> None:
        try:
            run(["docker", "buildx", "imagetools", "inspect", self.name], doing="Looking for the image")
        except ClusterError:
            return
        raise ClusterError(f"{self.name} exists already. Never replace an image: release the next version.")


def publish_chart(file: Path, registry: str) -> None:
    """Push the chart as an OCI artifact, and sign it.

    Raises:
        ClusterError: helm or cosign failed.
    """
    address = f"{registry}/charts"
    said = run([toolchain.helm(), "push", file, f"oci://{address}"], doing="Pushing the chart")
    found = re.search(r"sha256:[0-9a-f]{64}", said)
    if found is None:
        raise ClusterError(f"helm pushed the chart but printed no digest, so it is not signed: {said}")
    sign(f"{address}/{NAME}@{found[0]}")


def sign(reference: str) -> None:
    """Sign an image or a chart by its digest."""
    run(["cosign", "sign", "--yes", reference], doing=f"Signing {reference}")


def sign_file(file: Path) -> None:
    """Sign a file. The bundle beside it has the signature, the certificate and the proof of the public log."""
    bundle = file.with_name(f"{file.name}.sigstore.json")
    run(["cosign", "sign-blob", "--yes", f"--bundle={bundle}", file], doing=f"Signing {file.name}")
