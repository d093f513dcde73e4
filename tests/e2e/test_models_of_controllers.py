"""The models of Kubernetes' controllers end each step of a scenario in the same state as a real cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from tests.simulation.apiserver import Object
from tests.simulation.controller_steps import MARKED, NAME, QUOTA, STEPS, ModelSite, deployment, state
from tests.simulation.world import World
from tests.support.kubernetes import apply, kubectl, kubectl_json, temporary_namespace
from tests.support.wait import eventually

SETTLES_SECONDS = 180.0


class RealSite:
    """A Deployment on the cluster."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._where = f"--namespace={namespace}"
        apply(deployment(), namespace=namespace)

    def scale(self, replicas: int) -> None:
        kubectl("scale", "deployment", NAME, f"--replicas={replicas}", self._where)

    def mark(self, numbers: Sequence[int]) -> None:
        pods = self.objects("pods")
        for number in numbers:
            self._patch("pod", pods[number]["metadata"]["name"], MARKED)

    def delete_pod(self, number: int) -> None:
        kubectl("delete", "pod", self.objects("pods")[number]["metadata"]["name"], self._where)

    def change_template(self, value: str) -> None:
        annotations = {"metadata": {"annotations": {"generation": value}}}
        self._patch("deployment", NAME, {"spec": {"template": annotations}})

    def limit_pods(self, most: int | None) -> None:
        if most is None:
            kubectl("delete", "resourcequota", QUOTA, self._where)
        else:
            kubectl("create", "quota", QUOTA, f"--hard=pods={most}", self._where)
            # Before the controller has counted, the quota refuses every pod.
            eventually(self._quota_is_counted, SETTLES_SECONDS)

    def _quota_is_counted(self) -> bool:
        found = kubectl_json("get", "resourcequota", QUOTA, self._where)
        return "pods" in found.get("status", {}).get("used", {})

    def objects(self, plural: str) -> list[Object]:
        if plural == "deployments":
            return [kubectl_json("get", "deployment", NAME, self._where)]
        found: list[Object] = kubectl_json("get", plural, f"--selector=app={NAME}", self._where)["items"]
        return found

    def _patch(self, kind: str, name: str, body: dict[str, Any]) -> None:
        kubectl("patch", kind, name, f"--patch={json.dumps(body)}", "--type=merge", self._where)


def test_models_agree_with_the_controllers_of_a_real_cluster() -> None:
    world = World("controllers")
    asyncio.set_event_loop(world.loop)
    try:
        model = ModelSite(world)
        model.rest()
        with temporary_namespace("models") as namespace:
            real = RealSite(namespace)
            _require_agreement(real, model, "created")
            for name, carry_out in STEPS.items():
                carry_out(real)
                carry_out(model)
                model.rest()
                _require_agreement(real, model, name)
    finally:
        asyncio.set_event_loop(None)
        world.loop.close()


def _require_agreement(real: RealSite, model: ModelSite, step: str) -> None:
    expected = state(model)
    last: dict[str, Any] = {}

    def agrees() -> bool:
        last.update(state(real))
        return last == expected

    try:
        eventually(agrees, SETTLES_SECONDS)
    except TimeoutError:
        assert last == expected, step
