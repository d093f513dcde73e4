"""Write a bill of materials of the image in CycloneDX format: `make sbom`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from workqueue import __version__

ROOT: Final = Path(__file__).parents[2]
FILE: Final = ROOT / "build/sbom.cdx.json"


def main() -> None:
    """Write the file and print the number of packages."""
    FILE.parent.mkdir(exist_ok=True)
    command = [
        *(sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", "requirements.lock"),
        *("--output-reproducible", "--pyproject", "pyproject.toml", "--output-file", str(FILE)),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    bill = json.loads(FILE.read_text())
    # The version is in the code, not in pyproject.toml.
    bill["metadata"]["component"]["version"] = __version__
    FILE.write_text(json.dumps(bill, indent=2) + "\n")
    print(f"{FILE.relative_to(ROOT)}: {len(bill['components'])} packages")


if __name__ == "__main__":
    main()
