"""The status of an object for tools that wait for it: the generic rules of kstatus, which Flux uses.

Source of the rules: `pkg/kstatus/status` of sigs.k8s.io/cli-utils 0.37, `Compute` for kinds without rules of their
own.
"""

from __future__ import annotations

from tests.support.objects import Object


def kstatus(body: Object) -> str:
    """Terminating, InProgress, Failed or Current."""
    metadata, status = body["metadata"], body.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if status.get("observedGeneration", metadata["generation"]) != metadata["generation"]:
        return "InProgress"
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    # An object without conditions counts as done.
    return "Current" if conditions.get("Ready", "True") == "True" else "InProgress"
