"""The health that Argo CD shows for a WorkQueue: the script in manifests/argocd, run by a Lua interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lupa
import pytest

from workqueue_operator.api import crd

SCRIPT = Path(__file__).parents[2] / "manifests/argocd/health.lua"
Object = dict[str, Any]


def conditions(ready: str, reason: str, generation: int = 2) -> Object:
    declared = {"type": "QueueDeclared", "status": "True", "reason": "Declared", "message": ""}
    return {
        "observedGeneration": generation,
        "conditions": [declared, {"type": "Ready", "status": ready, "reason": reason, "message": "so it is"}],
    }


def health(status: Object | None, spec: Object | None = None, **metadata: Any) -> tuple[str, str]:
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    made = {"metadata": {"generation": 2, **metadata}, "spec": spec or {}, "status": status}
    lua.globals().obj = lua.table_from({k: v for k, v in made.items() if v is not None}, recursive=True)
    found = lua.execute(SCRIPT.read_text())
    return found.status, found.message


CASES = {
    "Ready is True": ((conditions("True", "AsExpected"),), "Healthy"),
    "Ready is False": ((conditions("False", "SecretNotFound"),), "Degraded"),
    "Ready is Unknown": ((conditions("Unknown", "BrokerTimeout"),), "Progressing"),
    "no status yet": ((None,), "Progressing"),
    "unseen by an operator": (
        (crd.schema()["properties"]["status"]["default"],),
        "Progressing",
    ),
    "the status is of an older spec": ((conditions("True", "AsExpected", 1),), "Progressing"),
    "it is suspended": ((conditions("True", "Suspended"), {"suspend": True}), "Suspended"),
}


@pytest.mark.parametrize(("arguments", "expected"), CASES.values(), ids=CASES)
def test_argocd_health_follows_ready_condition(arguments: tuple[Any, ...], expected: str) -> None:
    assert health(*arguments)[0] == expected


def test_workqueue_in_deletion_is_progressing() -> None:
    found = health(conditions("True", "AsExpected"), deletionTimestamp="2030-01-01T00:00:00Z")
    assert found == ("Progressing", "It is being deleted.")


def test_health_message_is_that_of_the_condition() -> None:
    assert health(conditions("False", "SecretNotFound"))[1] == "SecretNotFound: so it is"
