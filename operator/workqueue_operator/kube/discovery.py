"""Wait for the CRD and the configured namespaces before kopf starts.

kopf with its discovery disabled never notices a later CRD, and a missing or forbidden namespace stops kopf after a
minute (both tried). So both are checked first, and unusable namespaces are logged and left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster, deployments_path, pods_path, workqueues_path
from workqueue_operator.names import GROUP, LABEL_WORKQUEUE, PLURAL, VERSION

logger = logging.getLogger(__name__)

PAUSE: Final = 2.0


async def wait_for_resource(cluster: Cluster) -> None:
    """Return when the API server serves WorkQueues."""
    said = ""
    while True:
        try:
            group = await cluster.get(f"/apis/{GROUP}/{VERSION}")
            if any(resource["name"] == PLURAL for resource in group["resources"]):
                return
            problem = f"{GROUP}/{VERSION} has no {PLURAL}"
        except ClusterError as error:
            problem = error.message
        if problem != said:
            logger.warning(
                "Waiting for the CRD: the API server does not serve WorkQueues yet.",
                extra={"detail": problem},
            )
            said = problem
        await asyncio.sleep(PAUSE)


async def usable_namespaces(
    cluster: Cluster, wanted: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the configured namespaces that the operator can list and watch. Waits until there is at least one.

    Returns:
        The usable namespaces in the given order, and the problem of each other namespace.
    """
    if not wanted:
        return (), {}
    said: dict[str, str] = {}
    while True:
        answers = {namespace: await _problem(cluster, namespace) for namespace in wanted}
        usable = tuple(namespace for namespace, problem in answers.items() if problem is None)
        left_out = {namespace: problem for namespace, problem in answers.items() if problem is not None}
        if left_out != said:
            for namespace, problem in left_out.items():
                logger.warning(
                    "The namespace is left out.", extra={"namespace": namespace, "detail": problem}
                )
            said = left_out
        if usable:
            return usable, left_out
        await asyncio.sleep(PAUSE)


async def _problem(cluster: Cluster, namespace: str) -> str | None:
    """Return why a namespace is not usable, or None.

    With cluster-wide permissions, a missing namespace lists as empty, which is harmless.
    """
    try:
        await cluster.get(workqueues_path(namespace), limit="1")
        await cluster.get(deployments_path(namespace), limit="1")
        await cluster.get(pods_path(namespace), limit="1", labelSelector=LABEL_WORKQUEUE)
    except ClusterError as error:
        return error.message
    return None
