"""What must be there before the watch can start: the resource itself, and each listed namespace.

Place in the flow: `__main__` waits here before kopf runs. A CRD that is made later is never seen by kopf
with its own discovery off, and a listed namespace that is missing or forbidden ends all of kopf after a
minute (both tried): so each is asked for first, and what cannot be used is left out and said.
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
            logger.warning("WorkQueues are not served yet: waiting for the CRD.", extra={"detail": problem})
            said = problem
        await asyncio.sleep(PAUSE)


async def usable_namespaces(
    cluster: Cluster, wanted: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Which listed namespaces can be listed and watched.

    Returns:
        Those that can, in the order given, and for each other one why not. Waits while none can.
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
                logger.warning("A namespace is left out.", extra={"namespace": namespace, "detail": problem})
            said = left_out
        if usable:
            return usable, left_out
        await asyncio.sleep(PAUSE)


async def _problem(cluster: Cluster, namespace: str) -> str | None:
    """A missing namespace lists as empty for whoever may list everywhere, so it does no harm either."""
    try:
        await cluster.get(workqueues_path(namespace), limit="1")
        await cluster.get(deployments_path(namespace), limit="1")
        await cluster.get(pods_path(namespace), limit="1", labelSelector=LABEL_WORKQUEUE)
    except ClusterError as error:
        return error.message
    return None
