"""Events, as the API server takes them: those of the operator, and those of users of the web page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from workqueue_operator.kube.client import Object, micro_time
from workqueue_operator.names import API_VERSION, KIND

NOTE_BYTES: Final = 1024
"""Most bytes of a note that the API server accepts. Its error calls them characters."""


def workqueue_reference(namespace: str, name: str, uid: str) -> dict[str, str]:
    """Return what an Event about a WorkQueue is about."""
    return {"apiVersion": API_VERSION, "kind": KIND, "namespace": namespace, "name": name, "uid": uid}


def event_body(
    regarding: Mapping[str, str],
    at: datetime,
    reporter: tuple[str, str],
    *,
    reason: str,
    action: str,
    note: str,
    warning: bool,
    name: str = "",
) -> Object:
    """Return an Event.

    Args:
        regarding: the reference to the object that it is about.
        reporter: the controller, and the name of its process.
        note: cut to NOTE_BYTES.
        name: the API server refuses a second Event of this name; empty for a random one.
    """
    controller, instance = reporter
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            **({"name": name} if name else {"generateName": f"{regarding['name']}-"}),
            "namespace": regarding["namespace"],
        },
        "eventTime": micro_time(at),
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "action": action,
        "note": _cut(note),
        "reportingController": controller,
        "reportingInstance": instance,
        "regarding": dict(regarding),
    }


def _cut(note: str) -> str:
    return note.encode(errors="replace")[:NOTE_BYTES].decode(errors="ignore")
