"""Lay a user's pod template over the operator's, by the rules of Kubernetes' strategic merge. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Object = dict[str, Any]

MERGE_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "env": "name",
    "hostAliases": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "topologySpreadConstraints": "topologyKey",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists of a pod whose entries are merged by a key. Every other list is replaced.

Source: the tags patchStrategy and patchMergeKey of PodSpec and Container in k8s.io/api/core/v1.
"""

REPLACED_ENTRIES: Final = frozenset({"volumes", "env"})
"""Lists whose entries are replaced as a whole: two sources in one volume or variable would be invalid."""


def laid_over(base: Mapping[str, Any], template: Mapping[str, Any]) -> Object:
    """Return `base` with the fields of `template`. Objects are merged, and null removes a field."""
    merged = dict(base)
    for name, value in template.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = laid_over(merged[name], value)
        elif isinstance(value, list) and isinstance(merged.get(name), list) and name in MERGE_KEYS:
            merged[name] = _lists(merged[name], value, name)
        else:
            merged[name] = value
    return merged


def _lists(base: list[Any], template: list[Any], name: str) -> list[Any]:
    """The entries of both. An entry of the template changes the one with its key, or comes behind."""
    key = MERGE_KEYS[name]
    merged = {entry[key]: entry for entry in base}
    for entry in template:
        before = merged.get(entry[key])
        merged[entry[key]] = entry if before is None or name in REPLACED_ENTRIES else laid_over(before, entry)
    return list(merged.values())
