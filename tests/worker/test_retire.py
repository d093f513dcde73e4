"""The operator asks a worker to retire. Only an idle worker agrees, and then takes no messages."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import POD_UID, Workers, is_empty, publish
from workqueue.contract.signing import Purpose, sign
from workqueue.worker.retirement import LEASE_SECONDS


def test_idle_worker_retires_and_resumes_on_cancellation(every_vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(every_vhost.url, "--concurrency", "2").wait_consuming()
    assert worker.retire() == (200, {"leaseSeconds": 30.0})
    assert (worker.status()["retired"], worker.status()["consuming"]) == (True, False)
    publish(every_vhost, {"id": 1})
    assert worker.retire() == (200, {"leaseSeconds": 30.0}), "asking again renews the lease"
    assert every_vhost.depth("jobs") == (1, 0)
    assert worker.retire(Purpose.RESUME) == (200, {})
    eventually(lambda: worker.events_of("end") == [1])
    assert (worker.status()["retired"], worker.status()["consuming"]) == (False, True)


@pytest.mark.slow
def test_retired_worker_resumes_when_its_lease_expires(vhost: VirtualHost, workers: Workers) -> None:
    """As when the operator died between the request and the removal."""
    worker = workers.start(vhost.url).wait_consuming()
    assert worker.retire() == (200, {"leaseSeconds": LEASE_SECONDS})
    retired = time.monotonic()
    publish(vhost, {"id": 1})
    eventually(lambda: worker.events_of("end") == [1], 3 * LEASE_SECONDS)
    assert time.monotonic() - retired > LEASE_SECONDS - 1, "and not before"
    assert not worker.status()["retired"]


def test_busy_worker_refuses_retirement(vhost: VirtualHost, workers: Workers, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    worker = workers.start(vhost.url, "--concurrency", "3").wait_consuming()
    publish(vhost, *({"id": number, "do": "wait", "sign": str(sign)} for number in range(2)))
    eventually(lambda: worker.status()["busy"] == 2)
    assert worker.retire() == (409, {"busy": 2})
    assert worker.status()["consuming"]
    sign.touch()
    eventually(lambda: len(worker.events_of("end")) == 2)
    eventually(lambda: worker.retire()[0] == 200)


def test_handler_of_lost_message_does_not_prevent_retirement(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, {"id": "deaf", "do": "ignore", "seconds": 600})
    eventually(lambda: worker.events_of("start") == ["deaf"])
    vhost.broker.close_connections()
    eventually(lambda: worker.outcomes() == {"lost": 1})

    assert worker.retire()[0] == 200


def test_disconnected_worker_retires_and_stays_retired(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start("amqp://127.0.0.1:1")
    eventually(lambda: worker.request("/readyz")[0] == 200)
    assert worker.retire()[0] == 200


def test_retired_worker_does_not_consume_after_a_reconnect(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    assert worker.retire()[0] == 200
    vhost.broker.close_connections()
    eventually(lambda: worker.count_log("Connected to RabbitMQ.") == 2)
    publish(vhost, {"id": 1})
    time.sleep(0.3)  # that nothing happens cannot be waited for
    assert worker.events == []
    worker.retire(Purpose.RESUME)
    eventually(lambda: worker.events_of("end") == [1])


def test_only_fresh_signature_for_this_pod_and_purpose_is_accepted(
    vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    now = time.time()
    assert worker.request("/retire", "POST") == (401, {"error": "Missing"})
    assert worker.retire(header="nonsense") == (401, {"error": "Malformed"})
    assert worker.retire(key=b"another") == (401, {"error": "Wrong"})
    assert worker.retire(now=now - 61) == (401, {"error": "Expired"})
    assert worker.retire(header=sign(Purpose.RESUME, POD_UID, b"guest", now)) == (401, {"error": "Wrong"})
    assert worker.retire(header=sign(Purpose.RETIRE, "other", b"guest", now)) == (401, {"error": "Wrong"})
    assert worker.status()["consuming"]
    good = sign(Purpose.RETIRE, POD_UID, b"guest", now)
    assert worker.retire(header=good)[0] == 200
    assert worker.retire(header=good) == (401, {"error": "Replayed"})


def test_retirement_key_replaces_password_and_can_be_rotated(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    worker = workers.start(vhost.url, environment={"WORKQUEUE_RETIREMENT_KEY_FILE": str(file)})
    worker.wait_consuming()
    assert worker.retire()[0] == 503, "the key has not come yet"

    file.write_text("first\n")
    assert worker.retire() == (401, {"error": "Wrong", "retirementKey": True}), "signed with the password"
    assert worker.retire(key=b"") == (401, {"error": "Wrong", "retirementKey": True})
    assert worker.retire(key=b"first")[0] == 200

    file.write_text("second")
    assert worker.retire(key=b"first")[0] == 401
    assert worker.retire(Purpose.RESUME, b"second")[0] == 200
    eventually(lambda: worker.status()["consuming"])


def test_worker_outside_a_cluster_cannot_be_retired(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, environment={"WORKQUEUE_POD_UID": ""}).wait_consuming()
    assert worker.retire()[0] == 404


def test_retirement_racing_with_deliveries_loses_and_duplicates_nothing(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    """While messages trickle in, the worker is retired and resumed as fast as it responds."""
    worker = workers.start(every_vhost.url, "--concurrency", "2").wait_consuming()
    count = 500
    done = threading.Event()

    def trickle() -> None:
        with every_vhost.connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for number in range(count):
                channel.basic_publish("", "jobs", json.dumps({"id": number}).encode(), mandatory=True)
                if number % 3 == 0:  # so that the worker is also idle, however slow it is
                    eventually(lambda: worker.status()["busy"] == 0)
        done.set()

    thread = threading.Thread(target=trickle)
    thread.start()
    answers = set()
    while not done.is_set():
        answers.add(worker.retire()[0])
        worker.retire(Purpose.RESUME)
    thread.join()
    eventually(lambda: is_empty(every_vhost))
    assert every_vhost.depth("jobs.dead") == (0, 0)
    eventually(lambda: worker.outcomes() == {"acked": count})
    assert sorted(worker.events_of("end")) == list(range(count))
    assert 200 in answers
