"""What a WorkQueue says of its pods reaches the cluster, and what the API server refuses leaves the workers alone."""

from __future__ import annotations

from tests.support.kubernetes import kubectl_json
from tests.support.wait import eventually
from tests.support.workqueues import IMAGE, Lab

WRITE = "open('/shared/model', 'w').write('ready')"
READ = "import os, sys; sys.exit(not os.path.exists('/shared/model'))"


def test_template_reaches_the_pods_and_a_refused_one_changes_nothing(lab: Lab) -> None:
    mount = {"name": "shared", "mountPath": "/shared"}
    template = {
        "metadata": {"annotations": {"example.com/note": "text"}},
        "spec": {
            "hostAliases": [{"ip": "10.0.0.7", "hostnames": ["models.example.com"]}],
            "initContainers": [
                {
                    "name": "model",
                    "image": IMAGE,
                    "command": ["python3", "-c", WRITE],
                    "volumeMounts": [mount],
                }
            ],
            "containers": [
                {
                    "name": "worker",
                    "volumeMounts": [mount],
                    "lifecycle": {"postStart": {"exec": {"command": ["python3", "-c", READ]}}},
                }
            ],
            "volumes": [{"name": "shared", "emptyDir": {}}],
        },
    }
    workqueue = lab.workqueue(
        "templated",
        worker={"template": template, "disruption": {"maxUnavailable": "50%"}},
        scaling={"scaleInDelaySeconds": 600},
    )
    workqueue.apply().wait_ready().publish([{"id": 1, "seconds": 1}])
    assert len(workqueue.results(1)) == 1
    (pod, *_) = workqueue.pods()
    assert pod["spec"]["hostAliases"] == template["spec"]["hostAliases"]
    assert pod["metadata"]["annotations"]["example.com/note"] == "text"
    where = f"--namespace={lab.namespace}"
    assert kubectl_json("get", "pdb", "templated-worker", where)["spec"]["maxUnavailable"] == "50%"

    workqueue.change(worker={"template": {"spec": {"containers": [{"name": "worker", "workingDir": 7}]}}})
    refused = workqueue.wait_condition("WorkloadApplied", "False", "WorkloadRefused")
    assert "workingDir" in refused["message"]
    workqueue.publish([{"id": 2}])
    assert len(workqueue.results(1)) == 1
    workqueue.change(worker={"template": None})
    workqueue.wait_condition("WorkloadApplied", "True")
    workqueue.delete()


def test_stock_image_with_a_script_handles_messages(lab: Lab) -> None:
    """With the worker's default resources, as a namespace with a quota requires."""
    serve = (
        "import http.server as h\n"
        "class S(h.BaseHTTPRequestHandler):\n"
        "    def do_POST(self): self.send_response(204); self.end_headers()\n"
        "h.HTTPServer(('127.0.0.1', 8080), S).serve_forever()"
    )
    workqueue = lab.workqueue(
        "stock",
        worker={
            "handler": {
                "python": None,
                "http": {"image": IMAGE, "command": ["python3"], "args": ["-c", serve]},
            }
        },
    )
    workqueue.apply().wait_ready().publish([{"id": number} for number in range(3)])
    eventually(
        lambda: workqueue.status().get("lastScaleReason", "").startswith("Idle"), 240, "the workers have gone"
    )
    assert (lab.ready("stock"), lab.ready("stock.dead")) == (0, 0)
    assert not [name for name in lab.queues() if name.startswith("stock.retry.")], (
        "no message waits for a retry"
    )
    workqueue.delete()
