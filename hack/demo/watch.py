"""Watch the workers and the writes of the replica count."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hack.demo.following import Following
from workqueue_operator import names


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers at one moment: desired replicas, existing pods, Ready pods, and busy workers."""

    desired: int = 0
    existing: int = 0
    ready: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """A change of the replica count. `at` is when the watch saw it, on the clock of `time.monotonic()`."""

    at: float
    before: int
    after: int


class Watch:
    """Follows a WorkQueue and its Deployment inside a `with` block.

    Args:
        kubectl: the command, up to and including the namespace.
        workqueue: its name.
    """

    def __init__(self, kubectl: Sequence[str | Path], workqueue: str) -> None:
        self._kubectl = kubectl
        self._name = workqueue
        self._open = ExitStack()
        self._changed = threading.Condition()
        self._deployment: Mapping[str, Any] | None = None
        self._workqueue: Mapping[str, Any] | None = None
        self.writes: list[Write] = []
        """Every change of the replica count since the watch began."""

    def __enter__(self) -> Self:
        self._follow("deployments.apps", names.workload_name(self._name), self._on_deployment)
        self._follow(f"{names.PLURAL}.{names.GROUP}", self._name, self._on_workqueue)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def workers(self) -> Workers:
        """Return the last known state of the workers."""
        spec, status = (self._deployment or {}).get("spec", {}), (self._deployment or {}).get("status", {})
        # `replicas` does not include terminating pods, but they still exist.
        existing = status.get("replicas", 0) + (status.get("terminatingReplicas") or 0)
        busy = (self._workqueue or {}).get("status", {}).get("busyReplicas", 0)
        return Workers(spec.get("replicas", 0), existing, status.get("readyReplicas", 0), busy)

    def conditions(self) -> str:
        """Return the conditions of the WorkQueue that are not as they should be, as a sentence."""
        conditions = (self._workqueue or {}).get("status", {}).get("conditions", [])
        bad = [one for one in conditions if one["status"] != "True"] or conditions[-1:]
        return " ".join(f"{one['type']} is {one['status']}: {one['message']}" for one in bad) or "nothing"

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until the condition is true, and return whether it is. Check on each change and twice a second."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition():
                if time.monotonic() >= deadline:
                    return False
                self._changed.wait(0.5)
        return True

    def is_known(self) -> bool:
        """Return whether both objects were seen."""
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

    def _follow(self, kind: str, name: str, on_change: Callable[[Mapping[str, Any]], None]) -> None:
        def on_line(line: str) -> None:
            if line.startswith("{"):  # any other line is an error, and kubectl ends after it
                with self._changed:
                    on_change(json.loads(line))
                    self._changed.notify_all()

        where = f"--field-selector=metadata.name={name}"
        command = [*self._kubectl, "get", kind, where, "--watch", '--output=jsonpath={@}{"\\n"}']
        self._open.enter_context(Following(command, on_line))
