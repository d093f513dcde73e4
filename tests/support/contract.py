"""The contract between operator and worker images, as data: `python -m tests.support.contract` prints it.

tests/support/contracts has the contracts of earlier releases. A later one may only add to them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from tests.support.workqueue import workqueue
from workqueue.contract import headers, signing, worker_api
from workqueue.contract.worker_api import ExitCode, StatusField, Variable
from workqueue_operator.names import WORKER_CONTAINER
from workqueue_operator.workers import render

EARLIER: Final = sorted(Path(__file__).with_name("contracts").glob("*.json"))


def shape() -> dict[str, Any]:
    """The present contract. `example` has values that may change."""
    container = _worker_container()
    environment = {one["name"]: one.get("value", "") for one in container["env"]}
    return {
        "port": worker_api.PORT,
        "paths": {name: getattr(worker_api, name) for name in dir(worker_api) if name.endswith("_PATH")},
        "status": sorted(StatusField),
        "variables": sorted(Variable),
        "pod": {"command": container["command"], "variables": sorted(environment)},
        "example": {"environment": environment},
        "exitCodes": {code.name: code.value for code in ExitCode},
        "signature": {
            "header": signing.HEADER,
            "toRetire": signing.sign(signing.Purpose.RETIRE, "uid", b"key", 1_800_000_000.0),
            "toResume": signing.sign(signing.Purpose.RESUME, "uid", b"key", 1_800_000_000.0),
        },
        "headers": sorted(headers.OURS),
    }


def _worker_container() -> dict[str, Any]:
    """The container of a worker that the operator starts."""
    made = render.deployment(workqueue(), render.Defaults("workqueue:1"), broker="", proven_hash=None)
    containers = made["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = next(one for one in containers if one["name"] == WORKER_CONTAINER)
    return found


if __name__ == "__main__":
    json.dump(shape(), sys.stdout, indent=2)
    sys.stdout.write("\n")
