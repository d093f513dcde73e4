"""What the cluster shows of the workers, followed as it changes; and when the count of replicas was written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from workqueue_operator import names

AGAIN_SECONDS: Final = 0.2
SECONDS_OF_ONE_WATCH: Final = 300


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers at one moment: replicas asked for, pods that exist and are Ready, and that handle something."""

    desired: int = 0
    existing: int = 0
    ready: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """A change of the count of replicas. `at` is when it was seen, on the clock of `time.monotonic()`."""

    at: float
    before: int
    after: int


class Watch:
    """Follows a WorkQueue and its Deployment in threads, which end with the process."""

    def __init__(self, kubeconfig: Path, namespace: str, workqueue: str) -> None:
        api = config.new_client_from_config(str(kubeconfig))
        self._namespace = namespace
        self._changed = threading.Condition()
        self._deployment: Mapping[str, Any] | None = None
        self._workqueue: Mapping[str, Any] | None = None
        self.writes: list[Write] = []
        """Every change of the count since the watch began."""
        self._follow(
            client.AppsV1Api(api).list_namespaced_deployment,
            names.workload_name(workqueue),
            self._on_deployment,
        )
        self._follow(
            client.CustomObjectsApi(api).list_namespaced_custom_object,
            workqueue,
            self._on_workqueue,
            group=names.GROUP,
            version=names.VERSION,
            plural=names.PLURAL,
        )

    def workers(self) -> Workers:
        """The workers as seen last."""
        spec, status = (self._deployment or {}).get("spec", {}), (self._deployment or {}).get("status", {})
        # Pods that are being stopped are not among `replicas` any more, but still exist.
        existing = status.get("replicas", 0) + (status.get("terminatingReplicas") or 0)
        busy = (self._workqueue or {}).get("status", {}).get("busyReplicas", 0)
        return Workers(spec.get("replicas", 0), existing, status.get("readyReplicas", 0), busy)

    def conditions(self) -> str:
        """What the WorkQueue says of itself."""
        conditions = (self._workqueue or {}).get("status", {}).get("conditions", [])
        bad = [one for one in conditions if one["status"] != "True"] or conditions
        return " ".join(f"{one['type']} is {one['status']}: {one['message']}" for one in bad) or "nothing"

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until the condition is true, looking at each change and twice a second; whether it is."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition():
                if time.monotonic() >= deadline:
                    return False
                self._changed.wait(0.5)
        return True

    def is_known(self) -> bool:
        """Whether both objects were seen."""
        return self._deployment is not None and self._workqueue is not None

    def _on_deployment(self, seen: Mapping[str, Any]) -> None:
        now, before = time.monotonic(), self.workers().desired
        is_first = self._deployment is None
        self._deployment = seen
        after = self.workers().desired
        if after != before and not is_first:
            self.writes.append(Write(now, before, after))

    def _on_workqueue(self, seen: Mapping[str, Any]) -> None:
        self._workqueue = seen

    def _follow(
        self, listing: Any, name: str, on_change: Callable[[Mapping[str, Any]], None], **where: str
    ) -> None:
        def run() -> None:
            while True:
                try:
                    for event in watch.Watch().stream(
                        listing,
                        namespace=self._namespace,
                        field_selector=f"metadata.name={name}",
                        timeout_seconds=SECONDS_OF_ONE_WATCH,
                        deserialize=False,
                        **where,
                    ):
                        if event["type"] in {"ADDED", "MODIFIED"}:
                            with self._changed:
                                on_change(event["object"])
                                self._changed.notify_all()
                except (ApiException, HTTPError):
                    time.sleep(AGAIN_SECONDS)

        threading.Thread(target=run, name=f"watch {name}", daemon=True).start()
