"""A user's pod template over the operator's, by the rules of a strategic merge."""

from __future__ import annotations

from typing import Any

import pytest

from workqueue_operator.workers.merge import laid_over

ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "another field": ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    "another value": ({"a": 1}, {"a": 2}, {"a": 2}),
    "an object": ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
    "a removed field": ({"a": {"b": 1, "c": 2}}, {"a": {"c": None}}, {"a": {"b": 1}}),
    "a list without keys": ({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}),
    "tolerations": (
        {"tolerations": [{"key": "a"}]},
        {"tolerations": [{"key": "b"}]},
        {"tolerations": [{"key": "b"}]},
    ),
    "a container by its name": (
        {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]},
        {"containers": [{"name": "c"}, {"name": "a", "tty": True}]},
        {"containers": [{"name": "a", "image": "1", "tty": True}, {"name": "b"}, {"name": "c"}]},
    ),
    "a mount by its path": (
        {"volumeMounts": [{"mountPath": "/a", "name": "a"}]},
        {"volumeMounts": [{"mountPath": "/a", "name": "b"}, {"mountPath": "/b", "name": "b"}]},
        {"volumeMounts": [{"mountPath": "/a", "name": "b"}, {"mountPath": "/b", "name": "b"}]},
    ),
    "a volume as a whole": (
        {"volumes": [{"name": "tmp", "emptyDir": {}}]},
        {"volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "a"}}]},
        {"volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "a"}}]},
    ),
    "a variable as a whole": (
        {"env": [{"name": "A", "value": "1"}]},
        {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]},
        {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]},
    ),
}


@pytest.mark.parametrize(("base", "template", "expected"), ROWS.values(), ids=ROWS)
def test_template_is_merged(base: dict[str, Any], template: dict[str, Any], expected: dict[str, Any]) -> None:
    before = repr(base)
    assert laid_over(base, template) == expected
    assert repr(base) == before
