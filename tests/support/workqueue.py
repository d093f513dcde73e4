"""WorkQueues for unit tests, as the API server would give them."""

from __future__ import annotations

import zlib
from typing import Any

from workqueue_operator.api.workqueue import WorkQueue


def workqueue(
    *,
    name: str = "jobs",
    metadata: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    worker: dict[str, Any] | None = None,
    **spec: Any,
) -> WorkQueue:
    """A WorkQueue with a python handler; `worker` and `spec` are laid over it."""
    # The API server counts the changes of a spec.
    generation = 3 + (zlib.crc32(repr((spec, worker)).encode()) if spec or worker else 0)
    body: dict[str, Any] = {
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": "uid-1",
            "generation": generation,
            **(metadata or {}),
        },
        "spec": {"connectionSecretRef": {"name": "rabbitmq"}, **spec},
        "status": status or {},
    }
    if "workloadRef" not in spec:
        body["spec"]["worker"] = {"image": "jobs:1", "handler": {"python": "jobs:handle"}, **(worker or {})}
    return WorkQueue.model_validate(body)
