"""Describe a write that the API server or an admission policy denied."""

from __future__ import annotations

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.errors import ClusterError, ReconcileError


def why_denied(error: ClusterError, what: str, reason: Reason) -> Unknown:
    """Describe a denied write in the API server's words.

    Args:
        what: the object and the field that were written.
        reason: for any cause but missing rights of the operator.
    """
    if error.forbidden and "forbidden: User" in error.message:
        return Unknown(
            Reason.API_FORBIDDEN,
            f"The operator may not write the {what}: {error.message}. Compare its roles with those of the chart.",
        )
    return Unknown(reason, f"The API server refuses the {what}: {error.message}")


def why_count_denied(error: ClusterError, deployment: str, replicas: int) -> Unknown:
    """Describe a denied write of a Deployment's count."""
    counted = "1 replica" if replicas == 1 else f"{replicas} replicas"
    return why_denied(error, f"{counted} of the Deployment {deployment!r}", Reason.COUNT_REFUSED)


def as_refusal(error: ClusterError, what: str) -> Exception:
    """Return a denied write as a ReconcileError; another error as it is."""
    if not error.denied:
        return error
    why = why_denied(error, what, Reason.WORKLOAD_REFUSED)
    return ReconcileError(why.reason, why.message)
