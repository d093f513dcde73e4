"""Wait for the CRD and the configured namespaces before kopf starts.

kopf with its discovery disabled never notices a later CRD, and a missing or forbidden namespace stops kopf after a
minute (both tried). So both are checked first, and unusable namespaces are logged and left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Cluster
from workqueue_operator.kube.resync import PATHS
from workqueue_operator.names import GROUP, LABEL_WORKQUEUE, PLURAL, VERSION

logger = logging.getLogger(__name__)

PAUSE: Final = 2.0

LOOK_AGAIN: Final = 30.0
"""Seconds between two checks of the namespaces that are left out."""


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
    cluster: Cluster, wanted: Sequence[str], kinds: Iterable[str] = PATHS
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the configured namespaces whose objects this process can list. Waits until there is at least one.

    Args:
        kinds: keys of `PATHS`.

    Returns:
        The usable namespaces in the given order, and the problem of each other namespace.
    """
    if not wanted:
        return (), {}
    said: dict[str, str] = {}
    while True:
        answers = {namespace: await _problem(cluster, namespace, kinds) for namespace in wanted}
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


async def usable_namespaces_change(
    cluster: Cluster, wanted: Sequence[str], usable: Sequence[str], kinds: Iterable[str] = PATHS
) -> None:
    """Return when other namespaces are usable. The process must restart then: kopf cannot watch them later."""
    now_usable = tuple(usable)
    while set(now_usable) == set(usable):
        await asyncio.sleep(LOOK_AGAIN)
        now_usable, _ = await usable_namespaces(cluster, wanted, kinds)
    logger.info("The usable namespaces changed: the process restarts.", extra={"namespaces": now_usable})


async def _problem(cluster: Cluster, namespace: str, kinds: Iterable[str]) -> str | None:
    """Return why a namespace is not usable, or None.

    With cluster-wide permissions, a missing namespace lists as empty, which is harmless.
    """
    try:
        for kind in kinds:
            selector = {"labelSelector": LABEL_WORKQUEUE} if kind == "pods" else {}
            await cluster.get(PATHS[kind](namespace), limit="1", **selector)
    except ClusterError as error:
        return error.message
    return None
