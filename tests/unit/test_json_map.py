"""A mapping stored as packed JSON: like a dictionary of objects, but each access parses a new one."""

from __future__ import annotations

from typing import Any

import pytest

from workqueue_operator.kube.json_map import JsonMap

ONE, TWO = ("team", "one"), ("team", "two")


def texts(**objects: dict[str, Any]) -> JsonMap:
    made = JsonMap()
    for name, body in objects.items():
        made["team", name] = body
    return made


def test_stored_object_is_returned_equal() -> None:
    body = {"text": 'a "quoted" é 😀', "number": 3, "none": None, "list": [True, {"deep": 1.5}]}
    made = texts(one=body)
    assert made[ONE] == body
    assert made.get(TWO) is None
    assert (ONE in made, TWO in made, len(made), list(made)) == (True, False, 1, [ONE])
    with pytest.raises(KeyError):
        made[TWO]


def test_change_of_returned_object_is_not_stored() -> None:
    made = texts(one={"list": [1]})
    made[ONE]["list"].append(2)
    assert made[ONE] == {"list": [1]}


def test_deleted_object_is_gone() -> None:
    made = texts(one={}, two={})
    del made[ONE]
    assert list(made) == [TWO]
