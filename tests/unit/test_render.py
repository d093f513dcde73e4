"""The rendered objects: what the worker is told, what the cluster admits, what a hash depends on."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from tests.support.podsecurity import violations
from tests.support.workqueue import workqueue
from workqueue.contract.topology import Jitter, QueueType
from workqueue.contract.worker_api import Isolation
from workqueue.worker.config import ExecHandler, HTTPHandler, PythonHandler, RunConfig, parse
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.names import ANNOTATION_EVICTABLE_VOLUMES, ANNOTATION_TEMPLATE_HASH, LABEL_WORKQUEUE
from workqueue_operator.workers import render
from workqueue_operator.workers.render import Defaults

DEFAULTS = Defaults(worker_image="worker:1")

PYTHON = {"handler": {"python": "thumbs:resize"}}
EXEC = {"handler": {"exec": {"command": ["./resize", "--size=3 x 4", 'say "hi"']}}}
HTTP = {"image": None, "handler": {"http": {"image": "thumbs-go:1", "port": 9000, "path": "/jobs"}}}

HANDLERS = pytest.mark.parametrize("worker", [PYTHON, EXEC, HTTP], ids=["python", "exec", "http"])


def deployment(
    made: WorkQueue, *, proven: str | None = None, defaults: Defaults = DEFAULTS
) -> dict[str, Any]:
    return render.deployment(made, defaults, broker="amqp://rabbit:5672/", proven_hash=proven)


def pod(made: WorkQueue, *, defaults: Defaults = DEFAULTS) -> dict[str, Any]:
    spec: dict[str, Any] = deployment(made, defaults=defaults)["spec"]["template"]["spec"]
    return spec


def hashed(made: WorkQueue, defaults: Defaults = DEFAULTS) -> str:
    template = deployment(made, defaults=defaults)["spec"]["template"]
    found: str = template["metadata"]["annotations"][ANNOTATION_TEMPLATE_HASH]
    return found


# -- what the worker is told, read by the worker's own parser


def as_the_worker_reads_it(made: WorkQueue, folder: Path) -> RunConfig:
    """The environment of the container, in a pod `jobs-worker-1` with the Secret mounted in `folder`."""
    (folder / "uri").write_text("amqp://user:secret@rabbit/")
    container = next(one for one in pod(made)["containers"] if one["name"] == "worker")
    pod_fields = {"metadata.name": "jobs-worker-1", "metadata.uid": "pod-uid"}
    environment = {
        entry["name"]: entry.get("value") or pod_fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container["env"]
    }
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert environment["WORKQUEUE_BINDING"] in mounts
    assert environment["WORKQUEUE_BINDING"].startswith(environment["SERVICE_BINDING_ROOT"])
    assert container["command"] == ["workqueue", "run"]
    assert "args" not in container
    return parse(Namespace(), {**environment, "WORKQUEUE_BINDING": str(folder)})


@pytest.mark.parametrize(
    ("worker", "handler"),
    [
        (PYTHON, PythonHandler("thumbs:resize")),
        (EXEC, ExecHandler(("./resize", "--size=3 x 4", 'say "hi"'))),
        (HTTP, HTTPHandler("http://127.0.0.1:9000/jobs")),
    ],
    ids=["python", "exec", "http"],
)
def test_worker_parses_rendered_settings(tmp_path: Path, worker: dict[str, Any], handler: object) -> None:
    made = workqueue(
        worker={**worker, "concurrency": 4, "timeoutSeconds": 120},
        queue={"name": "thumbs.v2", "type": "Classic"},
        retry={"maxAttempts": 7, "delaysSeconds": [2, 30]},
    )
    config = as_the_worker_reads_it(made, tmp_path)
    assert config.handler == handler
    assert (config.queue, config.queue_settings.type) == ("thumbs.v2", QueueType.CLASSIC)
    assert (config.retry.max_attempts, config.retry.delays_seconds) == (7, (2, 30))
    assert (config.concurrency, config.timeout_seconds, config.grace_seconds) == (4, 120.0, 120.0)
    assert (config.port, config.port_is_default, config.declare) == (8090, False, False)
    assert (config.pod_uid, config.worker_name) == ("pod-uid", "jobs-worker-1")
    assert config.log_format == "json"
    assert config.read_binding().username == "user"


def test_defaults_reach_the_worker(tmp_path: Path) -> None:
    config = as_the_worker_reads_it(workqueue(), tmp_path)
    assert (config.queue, config.queue_settings.type) == ("jobs", QueueType.QUORUM)
    assert (config.retry.max_attempts, config.retry.delays_seconds) == (5, (1, 10, 60))
    assert config.retry.max_age_seconds == 86_400


@pytest.mark.parametrize("name", [None, "failed"], ids=["own", "existing"])
def test_dead_letter_queue_reaches_the_worker(tmp_path: Path, name: str | None) -> None:
    made = workqueue(queue={} if name is None else {"deadLetterQueue": name})

    config = as_the_worker_reads_it(made, tmp_path)

    assert config.queue_settings.dead_letter_queue == name
    assert (
        config.queue_settings.dead_letter_queue_name == made.dead_letter_queue_name == (name or "jobs.dead")
    )


@pytest.mark.parametrize(
    ("limits", "queues"),
    [
        (None, (None, None)),
        ({"concurrency": 5}, ("jobs.limit.handlers", None)),
        ({"concurrency": 5, "group": "shop-api"}, ("limit.team.shop-api.handlers", None)),
        ({"ratePerSecond": 5}, (None, "jobs.limit.starts")),
        ({"ratePerSecond": 5, "group": "shop-api"}, (None, "limit.team.shop-api.starts")),
        ({"concurrency": 5, "ratePerSecond": 5}, ("jobs.limit.handlers", "jobs.limit.starts")),
    ],
    ids=["none", "own", "group", "own rate", "rate of a group", "both"],
)
def test_limits_reach_the_worker(
    tmp_path: Path, limits: dict[str, Any] | None, queues: tuple[str | None, str | None]
) -> None:
    config = as_the_worker_reads_it(workqueue(limits=limits), tmp_path)

    assert (config.limit_queue, config.limit_rate_queue) == queues


def test_backoff_reaches_the_worker(tmp_path: Path) -> None:
    backoff = {"initialSeconds": 5, "factor": 3, "maxSeconds": 100, "jitter": "Full"}
    made = workqueue(retry={"backoff": backoff, "maxAgeSeconds": 60})

    config = as_the_worker_reads_it(made, tmp_path)

    assert config.retry.delays_seconds == made.spec.retry.delays == (5, 15, 45, 100)
    assert (config.retry.jitter, config.retry.max_age_seconds) == (Jitter.FULL, 60)


@pytest.mark.parametrize(
    ("queue", "wake", "limit", "wake_deliveries"),
    [
        ({}, None, 10, 1),
        ({"deliveryLimit": 3}, None, 3, 1),
        ({"deliveryLimit": 3}, "Poll", 3, 0),
        ({"type": "Classic"}, None, None, 0),
        ({"declare": False}, None, None, 0),
    ],
    ids=["default", "given", "without-doorbell", "classic", "declared-by-others"],
)
def test_worker_knows_the_delivery_limit(
    tmp_path: Path, queue: dict[str, Any], wake: str | None, limit: int | None, wake_deliveries: int
) -> None:
    made = workqueue(queue=queue, **({"scaling": {"wake": wake}} if wake else {}))

    config = as_the_worker_reads_it(made, tmp_path)

    assert (config.delivery_limit, config.wake_deliveries) == (limit, wake_deliveries)


def test_isolation_and_recycling_reach_the_worker(tmp_path: Path) -> None:
    made = workqueue(
        worker={
            **PYTHON,
            "isolation": "Process",
            "startupTimeoutSeconds": 900,
            "recycle": {"maxMessages": 1000, "maxMemory": "500Mi"},
        }
    )

    config = as_the_worker_reads_it(made, tmp_path)

    assert (config.isolation, config.startup_timeout_seconds) == (Isolation.PROCESS, 900.0)
    assert (config.recycle_messages, config.recycle_memory) == (1000, 500 * 2**20)


@pytest.mark.parametrize("worker", [PYTHON, EXEC, HTTP], ids=["python", "exec", "http"])
def test_isolation_is_thread_by_default(tmp_path: Path, worker: dict[str, Any]) -> None:
    config = as_the_worker_reads_it(workqueue(worker=worker), tmp_path)

    assert (config.isolation, config.startup_timeout_seconds) == (Isolation.THREAD, 60.0)
    assert (config.recycle_messages, config.recycle_memory) == (None, None)


def test_kubelet_waits_longer_for_the_start_than_the_worker(tmp_path: Path) -> None:
    [container] = pod(workqueue(worker={"startupTimeoutSeconds": 900}))["containers"]

    probe = container["startupProbe"]

    assert probe["httpGet"]["path"] == "/readyz"
    assert probe["periodSeconds"] * probe["failureThreshold"] > 900


def test_pod_grace_period_exceeds_handler_timeout() -> None:
    assert pod(workqueue(worker={"timeoutSeconds": 120}))["terminationGracePeriodSeconds"] > 120


# -- what the cluster admits


@HANDLERS
def test_pods_satisfy_restricted_standard(worker: dict[str, Any]) -> None:
    assert violations(pod(workqueue(worker=worker))) == []


@HANDLERS
@pytest.mark.parametrize(
    "given",
    [{}, {"capabilities": {"add": ["NET_BIND_SERVICE"]}}, {"capabilities": {"drop": ["CHOWN"]}}],
    ids=["nothing", "a capability", "only one dropped"],
)
def test_sidecars_and_settings_satisfy_restricted_standard(
    worker: dict[str, Any], given: dict[str, Any]
) -> None:
    sidecar = {"name": "proxy", "image": "proxy:1", **({"securityContext": given} if given else {})}
    spec = pod(workqueue(worker={**worker, "securityContext": given, "containers": [sidecar]}))
    assert violations(spec) == []


@pytest.mark.parametrize(
    "given",
    [{}, {"securityContext": {"runAsUser": 1000}}, {"podSecurityContext": {"runAsUser": 1000}}],
    ids=["nothing", "of the handler", "of the pod"],
)
def test_http_handler_runs_as_another_user_than_worker(given: dict[str, Any]) -> None:
    spec = pod(workqueue(worker={**HTTP, **given}))
    (worker,), (handler,) = spec["containers"], spec["initContainers"]
    users = [
        one["securityContext"].get("runAsUser", spec["securityContext"]["runAsUser"])
        for one in (worker, handler)
    ]
    assert users == ([1001, 1000] if given else [65533, 65532])


@HANDLERS
def test_container_env_and_volume_names_are_unique(worker: dict[str, Any]) -> None:
    parts = {
        "env": [{"name": "WORKQUEUE_LOG_FORMAT", "value": "text"}, {"name": "MINE", "value": "1"}],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
        "containers": [{"name": "proxy", "image": "proxy:1"}],
    }
    spec = pod(workqueue(worker={**worker, **parts}))
    everybody = [*spec.get("initContainers", []), *spec["containers"]]
    for names in (
        [one["name"] for one in everybody],
        [one["name"] for one in spec["volumes"]],
        *([entry["name"] for entry in one.get("env", [])] for one in everybody),
        *([mount["mountPath"] for mount in one.get("volumeMounts", [])] for one in everybody),
    ):
        assert len(names) == len(set(names))
    handler = next(one for one in everybody if one["name"] == ("handler" if worker is HTTP else "worker"))
    assert {"name": "scratch", "mountPath": "/tmp"} in handler["volumeMounts"]
    assert {"name": "MINE", "value": "1"} in handler["env"]


def test_user_pod_settings_apply_to_the_handler_container() -> None:
    parts = {"env": [{"name": "MINE", "value": "1"}], "resources": {"limits": {"memory": "1Gi"}}}
    spec = pod(workqueue(worker={**HTTP, **parts}))
    (worker,), (handler,) = spec["containers"], spec["initContainers"]
    assert worker["resources"] == render.BESIDE_HANDLER
    assert all(entry["name"] != "MINE" for entry in worker["env"])
    assert handler["resources"] == {"limits": {"memory": "1Gi"}}
    assert handler["restartPolicy"] == "Always"
    assert (handler["image"], worker["image"]) == ("thumbs-go:1", "worker:1")


def test_pull_secrets_of_operator_reach_workers_with_its_image() -> None:
    defaults = Defaults(worker_image="private/worker:1", pull_secrets=("registry", "mirror"))

    spec = pod(workqueue(worker={**HTTP, "imagePullSecrets": [{"name": "mirror"}]}), defaults=defaults)

    assert [secret["name"] for secret in spec["imagePullSecrets"]] == ["mirror", "registry"]


@pytest.mark.parametrize("worker", [{}, {**HTTP, "image": "mine:1"}], ids=["own-handler", "own-worker-image"])
def test_pull_secrets_of_operator_are_for_its_image_only(worker: dict[str, Any]) -> None:
    defaults = Defaults(worker_image="private/worker:1", pull_secrets=("registry",))

    assert "imagePullSecrets" not in pod(workqueue(worker=worker), defaults=defaults)


def test_pod_settings_are_passed_on() -> None:
    given: dict[str, Any] = {
        "serviceAccountName": "thumbs",
        "imagePullSecrets": [{"name": "registry"}],
        "imagePullPolicy": "Always",
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "jobs", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "priorityClassName": "low",
    }
    spec = pod(workqueue(worker=given))
    assert spec["containers"][0]["imagePullPolicy"] == given.pop("imagePullPolicy")
    assert {key: spec[key] for key in given} == given
    assert spec["automountServiceAccountToken"] is True
    assert pod(workqueue())["automountServiceAccountToken"] is False


def test_pod_without_service_account_names_the_default_one() -> None:
    """An apply without a name would keep an earlier one."""
    assert pod(workqueue())["serviceAccountName"] == "default"


TEMPLATE: dict[str, Any] = {
    "metadata": {
        "labels": {"team": "images", LABEL_WORKQUEUE: "other"},
        "annotations": {"example.com/note": "text"},
    },
    "spec": {
        "runtimeClassName": "gvisor",
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "initContainers": [{"name": "model", "image": "model:1"}],
        "containers": [
            {"name": "worker", "resources": {"limits": {"example.com/gpu": 1}}},
            {"name": "proxy", "image": "proxy:1"},
        ],
        "volumes": [{"name": "model", "emptyDir": {}}],
    },
}


@HANDLERS
def test_template_is_laid_over_the_pod(worker: dict[str, Any]) -> None:
    plain = deployment(workqueue(worker=worker))["spec"]["template"]
    merged = deployment(workqueue(worker={**worker, "template": TEMPLATE}))["spec"]["template"]
    assert merged["spec"]["runtimeClassName"] == "gvisor"
    (before,) = plain["spec"]["containers"]
    after, proxy = merged["spec"]["containers"]
    assert after == {**before, "resources": {**before.get("resources", {}), "limits": ANY}}
    assert after["resources"]["limits"]["example.com/gpu"] == 1
    assert merged["spec"]["volumes"] == [*plain["spec"]["volumes"], {"name": "model", "emptyDir": {}}]
    assert [one["name"] for one in merged["spec"]["initContainers"]][-1] == "model"
    assert proxy["securityContext"]["allowPrivilegeEscalation"] is False
    assert merged["metadata"]["labels"] == {**plain["metadata"]["labels"], "team": "images"}
    assert merged["metadata"]["annotations"]["example.com/note"] == "text"
    assert violations(merged["spec"]) == []


def test_changed_template_changes_the_hash() -> None:
    assert hashed(workqueue()) == hashed(workqueue(worker={"template": None}))
    assert hashed(workqueue()) != hashed(workqueue(worker={"template": {"spec": {"priority": 1}}}))


def test_platform_decides_user_and_group() -> None:
    spec = pod(workqueue(worker={**HTTP, "podSecurity": "Platform"}))
    contexts = [spec["securityContext"]] + [
        one["securityContext"] for one in (*spec["initContainers"], *spec["containers"])
    ]
    assert not [one for one in contexts if {"runAsUser", "runAsGroup", "fsGroup"} & one.keys()]
    assert violations(spec) == []


def test_worker_beside_http_handler_has_resources() -> None:
    given = {"limits": {"cpu": 2}}
    (default,) = pod(workqueue(worker=HTTP))["containers"]
    (chosen,) = pod(workqueue(worker={**HTTP, "workerResources": given}))["containers"]
    assert default["resources"].keys() == {"requests", "limits"}
    assert chosen["resources"] == given


def test_http_container_runs_the_given_command() -> None:
    http = {"image": "node:24", "command": ["node"], "args": ["/scripts/serve.js"]}
    (container,) = pod(workqueue(worker={"image": None, "handler": {"http": http}}))["initContainers"]
    assert (container["command"], container["args"]) == (["node"], ["/scripts/serve.js"])
    (plain,) = pod(workqueue(worker=HTTP))["initContainers"]
    assert not {"command", "args"} & plain.keys()


@pytest.mark.parametrize("most", [1, 5, "25%"])
def test_disruption_budget_admits_as_many_as_asked(most: int | str) -> None:
    made = workqueue(worker={"disruption": {"maxUnavailable": most}})
    assert render.disruption_budget(made)["spec"]["maxUnavailable"] == most


def test_operator_labels_override_user_labels() -> None:
    made = workqueue(
        worker={"podLabels": {LABEL_WORKQUEUE: "other", "team": "a"}, "podAnnotations": {"x": "y"}}
    )
    metadata = deployment(made)["spec"]["template"]["metadata"]
    assert metadata["labels"] == {**metadata["labels"], LABEL_WORKQUEUE: "jobs", "team": "a"}
    assert metadata["annotations"]["x"] == "y"
    selector = deployment(made)["spec"]["selector"]["matchLabels"]
    assert selector.items() <= metadata["labels"].items()


def test_rendered_deployment_has_no_replicas() -> None:
    assert "replicas" not in deployment(workqueue(replicas=3))["spec"]


@pytest.mark.parametrize(
    "made",
    [
        render.disruption_budget(workqueue()),
        render.network_policy(workqueue(), DEFAULTS),
        deployment(workqueue()),
    ],
)
def test_rendered_objects_are_owned_by_their_workqueue(made: dict[str, Any]) -> None:
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == (
        "WorkQueue",
        "jobs",
        "uid-1",
        True,
    )
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("jobs-worker", "team")


# -- the hash


def test_template_hash_is_stable_across_processes() -> None:
    """Not so if it came from a set or from hash()."""
    made = workqueue(worker={"podLabels": {"b": "1", "a": "2"}, "nodeSelector": {"d": "1", "c": "2"}})
    script = (
        "import json, sys\n"
        "from workqueue_operator.workers import render\n"
        "from workqueue_operator.api.workqueue import WorkQueue\n"
        "made = WorkQueue.model_validate(json.load(sys.stdin))\n"
        "rendered = render.deployment(\n"
        "    made, render.Defaults('worker:1'), broker='amqp://rabbit:5672/', proven_hash=None)\n"
        "template = rendered['spec']['template']\n"
        f"print(template['metadata']['annotations']['{ANNOTATION_TEMPLATE_HASH}'])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(made.to_wire()),
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == hashed(made)


@pytest.mark.parametrize(
    "other",
    [
        workqueue(scaling={"maxReplicas": 50}),
        workqueue(replicas=2),
        workqueue(metadata={"generation": 9, "annotations": {"workqueue.dev/x": "y"}}),
        workqueue(status={"messages": 7}),
        workqueue(queue={"maxLength": 10}),
        workqueue(worker={"env": []}),
    ],
    ids=["scaling", "a pin", "metadata", "status", "the queue's arguments", "a default spelled out"],
)
def test_irrelevant_change_keeps_template_hash(other: WorkQueue) -> None:
    assert hashed(other) == hashed(workqueue())


@pytest.mark.parametrize(
    "other",
    [
        workqueue(worker={"image": "jobs:2"}),
        workqueue(worker={"env": [{"name": "A", "value": "1"}]}),
        workqueue(worker={"concurrency": 2}),
        workqueue(retry={"maxAttempts": 2}),
        workqueue(queue={"name": "other"}),
        workqueue(connectionSecretRef={"name": "other"}),
    ],
    ids=["the image", "the environment", "concurrency", "retries", "another queue", "another Secret"],
)
def test_relevant_change_changes_template_hash(other: WorkQueue) -> None:
    assert hashed(other) != hashed(workqueue())


def test_operator_image_affects_hash_only_where_used() -> None:
    newer = Defaults(worker_image="worker:2")
    assert hashed(workqueue(), newer) == hashed(workqueue())
    assert hashed(workqueue(worker=HTTP), newer) != hashed(workqueue(worker=HTTP))


def test_never_ready_template_replaces_pods_one_at_a_time() -> None:
    made = workqueue()

    def surge(proven: str | None) -> object:
        rolling = deployment(made, proven=proven)["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxUnavailable"] == 0
        return rolling["maxSurge"]

    assert (surge(None), surge("another"), surge(hashed(made))) == (1, 1, "25%")


@HANDLERS
def test_worker_does_not_keep_its_node(worker: dict[str, Any]) -> None:
    """The cluster autoscaler never removes a node with a pod whose emptyDir is not listed."""
    template = deployment(workqueue(worker=worker))["spec"]["template"]
    own = {volume["name"] for volume in template["spec"]["volumes"] if "emptyDir" in volume}
    assert {template["metadata"]["annotations"][ANNOTATION_EVICTABLE_VOLUMES]} == own


# -- the NetworkPolicy


def test_worker_endpoint_admits_operator_and_metrics_and_other_ports_stay_open() -> None:
    operator = {"podSelector": {"matchLabels": {"app": "operator"}}}
    metrics = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    policy = render.network_policy(workqueue(), Defaults(metrics_from=(metrics,), operator_peer=operator))
    endpoint, others = policy["spec"]["ingress"]
    assert endpoint["ports"] == [{"port": 8090, "protocol": "TCP"}]
    assert endpoint["from"] == [operator, metrics]
    covered = [
        (entry["port"], entry.get("endPort", entry["port"]))
        for entry in others["ports"]
        if entry["protocol"] == "TCP"
    ]
    assert covered == [(1, 8089), (8091, 65535)]
    assert "from" not in others


def test_other_ports_of_workers_stay_closed_on_request() -> None:
    """In a namespace that denies all, a rule that opens them would be an exception."""
    policy = render.network_policy(
        workqueue(), Defaults(operator_peer={"podSelector": {}}, other_ports=False)
    )
    (endpoint,) = policy["spec"]["ingress"]
    assert endpoint["ports"] == [{"port": 8090, "protocol": "TCP"}]


def test_empty_metrics_peers_admit_only_the_operator() -> None:
    operator = {"podSelector": {"matchLabels": {"app": "operator"}}}
    policy = render.network_policy(workqueue(), Defaults(operator_peer=operator))
    assert policy["spec"]["ingress"][0]["from"] == [operator]
