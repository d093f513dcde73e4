"""A connection Secret that changes while its old broker stays up, as in a migration.

Slow: the operator and the kubelet may take a minute to see a changed Secret.
"""

from __future__ import annotations

import base64
import json
import secrets

import pytest

from tests.support.kubernetes import kubectl
from tests.support.wait import eventually
from tests.support.workqueues import Lab

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "scaling",
    [{"minReplicas": 0, "wake": "Push"}, {"minReplicas": 0, "wake": "Poll"}, {"minReplicas": 1}],
    ids=["idle", "polled", "active"],
)
def test_changed_secret_takes_effect_while_old_broker_runs(lab: Lab, scaling: dict[str, object]) -> None:
    name = f"moving-{secrets.token_hex(3)}"
    workqueue = lab.workqueue(name, connectionSecretRef={"name": name}, scaling=scaling)
    lab.secret(name)
    workqueue.apply().wait_ready()
    moved = f"moved-{secrets.token_hex(3)}"
    lab.rabbit.add_vhost(moved, moved, lab.password)

    keys = {"username": moved, "virtual-host": moved}
    data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
    patch = json.dumps({"data": data})
    kubectl("patch", "secret", name, f"--namespace={lab.namespace}", f"--patch={patch}")

    eventually(lambda: name in lab.rabbit.queues(moved), 180, "the queue is on the new virtual host")
    channel = lab.rabbit.channel(moved, moved, lab.password)
    try:
        channel.queue_declare(f"{name}.results", durable=True)
        lab.rabbit.publish(channel, name, [{"id": 1}])
        eventually(
            lambda: channel.queue_declare(f"{name}.results", passive=True).method.message_count == 1,
            240,
            "a worker handles a message on the new virtual host",
        )
    finally:
        channel.connection.close()
    workqueue.wait_ready()
    workqueue.delete()


def test_rotated_credentials_need_no_restart(lab: Lab) -> None:
    """The password changes at the broker and in the Secret while messages are handled."""
    user, old, new = "rotating", "the-old-password", "the-new-password"
    lab.rabbit.ctl("add_user", user, old)
    lab.rabbit.ctl("set_permissions", "--vhost", lab.vhost, user, ".*", ".*", ".*")
    lab.secret("rotating", username=user, password=old)
    workqueue = lab.workqueue(
        "rotated", connectionSecretRef={"name": "rotating"}, scaling={"minReplicas": 1}
    ).apply()
    workqueue.wait_condition("WorkersAvailable", "True", "WorkersReady")
    before = {pod["metadata"]["uid"] for pod in workqueue.pods()}
    lab.rabbit.ctl("change_password", user, new)
    change = {"stringData": {"password": new}}
    where = f"--namespace={lab.namespace}"
    kubectl("patch", "secret", "rotating", f"--patch={json.dumps(change)}", where)
    lab.rabbit.ctl("close_all_user_connections", user, "rotated")
    workqueue.publish([{"id": 1}])
    # The kubelet updates a changed Secret in a pod within about a minute.
    assert [result["id"] for result in workqueue.results(1, seconds=300)] == [1]
    workqueue.wait_condition("Ready", "True")
    assert {pod["metadata"]["uid"] for pod in workqueue.pods()} == before, "no pod was restarted"
    workqueue.delete()
