"""The restricted Pod Security Standard, as far as a pod of this project can break it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def violations(pod: Object) -> list[str]:
    """The violations that the admission controller would refuse in a pod's spec."""
    return list(_of_pod(pod)) + [
        f"{container['name']}: {found}"
        for container in (*pod.get("initContainers", ()), *pod["containers"])
        for found in _of_container(container.get("securityContext", {}), pod.get("securityContext", {}))
    ]


def _of_pod(pod: Object) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    for volume in pod.get("volumes", ()):
        if set(volume) - {"name"} - _VOLUMES:
            yield f"volume {volume['name']}"
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"hostPort of {container['name']}"


def _of_container(own: Object, pods: Object) -> Iterator[str]:
    both = {**pods, **own}
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if both.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if both.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if both.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "seccompProfile"
