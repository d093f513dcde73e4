"""Find the HorizontalPodAutoscaler (KEDA's included) that scales a Deployment.

`target` asks before it scales the Deployment of a workloadRef. The managed fields of the Deployment do not help: they
keep an autoscaler's entry after the autoscaler is deleted, and a 0 leaves no entry.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Final

from workqueue_operator.api.reasons import Reason
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import Object, autoscalers_path
from workqueue_operator.ports import Clock, Kubernetes

FRESH: Final = 30.0
"""Seconds for which a LIST of a namespace is used again."""


class Autoscalers:
    """Lists autoscalers, one LIST per namespace at a time."""

    def __init__(self, kubernetes: Kubernetes, clock: Clock) -> None:
        self._kubernetes = kubernetes
        self._clock = clock
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._listed: dict[str, tuple[float, dict[str, str]]] = {}
        self._failed: dict[str, tuple[float, ClusterError]] = {}

    async def of(self, namespace: str, deployment: str) -> str | None:
        """Describe what scales that Deployment; None when nothing does.

        Raises:
            ReconcileError: the operator may not list them.
            ClusterError: the API server did not answer.
        """
        begun = self._clock.monotonic()
        async with self._turns[namespace]:
            known = self._listed.get(namespace)
            if known is None or self._clock.monotonic() - known[0] > FRESH:
                failed = self._failed.get(namespace)
                if failed is not None and failed[0] > begun:
                    # For all that waited for it: one after the other would wait for a timeout of its own.
                    raise failed[1].with_traceback(None)
                known = self._listed[namespace] = self._clock.monotonic(), await self._list(namespace)
        return known[1].get(deployment)

    async def _list(self, namespace: str) -> dict[str, str]:
        try:
            listed = await self._kubernetes.get(autoscalers_path(namespace))
        except ClusterError as error:
            if not error.forbidden:
                self._failed[namespace] = self._clock.monotonic(), error
                raise
            raise ReconcileError(
                Reason.API_FORBIDDEN,
                f'The operator may not list HorizontalPodAutoscalers in namespace "{namespace}", so that it cannot '
                "see whether one of them scales the Deployment of spec.workloadRef. Give it the roles of the chart.",
            ) from error
        targets = ((body["spec"]["scaleTargetRef"], body) for body in listed["items"])
        return {target["name"]: _words(body) for target, body in targets if target["kind"] == "Deployment"}


def _words(autoscaler: Object) -> str:
    metadata = autoscaler["metadata"]
    owners = [f" of the {owner['kind']} {owner['name']!r}" for owner in metadata.get("ownerReferences", ())]
    return f"the HorizontalPodAutoscaler {metadata['name']!r}{''.join(owners)}"
