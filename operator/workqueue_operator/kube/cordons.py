"""The names of the cordoned nodes, if the operator may list nodes."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import nodes_path
from workqueue_operator.ports import Kubernetes

logger = logging.getLogger(__name__)

LOOK_EVERY: Final = 15.0
"""Seconds between two reads. The API server returns only the cordoned nodes."""


class Cordons:
    """Reads which nodes are cordoned. Without an answer the previous ones stay.

    Attributes:
        nodes: their names; empty before the first answer.
    """

    def __init__(self, kubernetes: Kubernetes) -> None:
        self._kubernetes = kubernetes
        self.nodes: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Read periodically until cancelled."""
        while True:
            try:
                await self.look()
            except ClusterError as error:
                logger.warning(
                    "The cordoned nodes could not be read.",
                    extra={"status": error.status, "detail": error.message},
                )
            except Exception:
                logger.exception("The cordoned nodes could not be read.")
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Read once.

        Raises:
            ClusterError: the API server refused or did not answer.
        """
        found = await self._kubernetes.get(
            nodes_path(), fieldSelector="spec.unschedulable=true", resourceVersion="0"
        )
        self.nodes = frozenset(node["metadata"]["name"] for node in found["items"])
