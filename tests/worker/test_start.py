"""The start of a worker: an error is reported immediately, in one place, with its own exit code."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.support import process
from tests.support.limits import NAME
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import THREADS, Workers, publish


def test_all_configuration_errors_are_reported_together(workers: Workers) -> None:
    worker = workers.start(
        "http://nowhere",
        *("--concurrency", "0", "--timeout", "soon", "--delays", "1,x"),
        handler="no colon",
        queue=None,
        environment={"WORKQUEUE_MAX_ATTEMPTS": "-1"},
    )
    assert worker.wait() == 2
    said = worker.termination_log.read_text()
    assert said in worker.log
    for part in (
        "MODULE:FUNCTION",
        "No queue is given",
        "--concurrency is '0'",
        "--timeout is 'soon'",
        "--delays is '1,x'",
        "WORKQUEUE_MAX_ATTEMPTS is '-1'",
        "amqp:// or amqps://",
    ):
        assert part in said
    assert len(said.splitlines()) == 7


BROKEN = {
    "a module that does not exist": ("", "broken.nothing:handle", "No module named"),
    "a function that does not exist": ("", "broken:handle", "broken has no 'handle'"),
    "an import that fails": ("import nothing_like_this", "broken:handle", "broken.py, line 1"),
    "a syntax error": ("def handle(", "broken:handle", "line 1"),
    "exit-at-import": ("import sys\nsys.exit()", "broken:handle", "cannot be loaded: SystemExit ("),
    "generator-function": ("def handle(message):\n    yield", "broken:handle", "is a generator function"),
    "something that cannot be called": ("handle = 3", "broken:handle", "cannot be called; it is a int"),
    "a function of two arguments": ("def handle(a, b): ...", "broken:handle", "must take one argument"),
}


@pytest.mark.parametrize(("source", "name", "expected"), BROKEN.values(), ids=BROKEN)
def test_unloadable_handler_ends_process_with_one_sentence(
    workers: Workers, tmp_path: Path, source: str, name: str, expected: str
) -> None:
    (tmp_path / "broken.py").write_text(source)
    worker = workers.start(None, handler=name, environment={"PYTHONPATH": f"{tmp_path}:worker"})
    assert worker.wait() == 3
    said = worker.termination_log.read_text()
    assert expected in said
    assert len(said.splitlines()) == 1
    assert said.strip() in worker.log
    assert "Traceback" not in worker.log


def test_missing_exec_handler_ends_the_process(workers: Workers) -> None:
    worker = workers.start(None, "--exec", "./no-such-command", handler=None)
    assert worker.wait() == 3
    assert "'./no-such-command' is not an executable file" in worker.termination_log.read_text()


def test_slots_beyond_broker_channel_limit_are_a_named_error(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    with every_vhost.broker.channel_max(3):
        worker = workers.start(every_vhost.url, "--concurrency", "5").wait_consuming()

    [entry] = [entry for entry in worker.log_entries if entry["level"] == "error"]
    assert "3 channels per connection (channel_max)" in entry["reason"]
    eventually(lambda: "channel_max" in (worker.status()["lastError"] or ""))
    assert "leaves 2 for 5 slots" in entry["reason"]
    assert worker.status()["slots"] == 2
    assert "workqueue_worker_slots{" in worker.request("/metrics")[1]

    jobs = [{"id": number, "do": "sleep", "seconds": 60} for number in range(5)]
    publish(every_vhost, *jobs)
    eventually(lambda: worker.status()["busy"] == 2 and every_vhost.depth("jobs") == (3, 2))


def test_worker_without_a_channel_for_a_slot_says_so(vhost: VirtualHost, workers: Workers) -> None:
    with vhost.broker.channel_max(1):
        worker = workers.start(vhost.url, "--concurrency", "3", "--limit-queue", NAME, declare=False)
        eventually(lambda: worker.status()["slots"] == 0)

    [entry] = [entry for entry in worker.log_entries if entry["level"] == "error"]
    assert "leaves 0 for 3 slots: raise channel_max." in entry["reason"]


def test_two_workers_on_one_machine_get_different_ports(vhost: VirtualHost, workers: Workers) -> None:
    first = workers.start(vhost.url).wait_consuming()
    second = workers.start(vhost.url).wait_consuming()
    assert first.port != second.port


def test_requested_port_in_use_is_reported(workers: Workers) -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        worker = workers.start("amqp://127.0.0.1:1", "--port", str(port))
        assert worker.wait() == 1
        assert f"port {port} cannot be used" in worker.termination_log.read_text()
        assert worker.termination_log.read_text() in worker.log
        assert "Traceback" not in worker.log


def test_worker_whose_port_is_taken_takes_no_message(vhost: VirtualHost, workers: Workers) -> None:
    workers.start(vhost.url).wait_consuming().stop()
    publish(vhost, {"id": 1})
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        for _ in range(3):
            worker = workers.start(vhost.url, "--port", str(listener.getsockname()[1]))
            assert worker.wait() == 1

    with vhost.connect() as connection:
        method, properties, _ = connection.channel().basic_get("jobs")
    assert (method.redelivered, worker.events) == (False, [])
    assert not properties.headers


def test_environment_alone_configures_a_worker(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(
        None,
        handler=None,
        queue=None,
        declare=False,
        environment={
            "WORKQUEUE_HANDLER_PYTHON": THREADS,
            "WORKQUEUE_QUEUE": "from-environment",
            "WORKQUEUE_DECLARE": "true",
            "WORKQUEUE_URL": vhost.url,
            "WORKQUEUE_CONCURRENCY": "2",
        },
    ).wait_consuming()
    status = worker.status()
    assert (status["queue"], status["slots"]) == ("from-environment", 2)
    assert vhost.exists("from-environment.dead")


def test_worker_declares_and_binds_an_exchange(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--exchange", "images").wait_consuming()
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("images", "jobs", b'{"id": 1}', mandatory=True)
    eventually(lambda: worker.events_of("end") == [1])


def test_endpoint_answers_kubelet_and_prometheus(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    assert worker.request("/livez")[0] == worker.request("/readyz")[0] == 200
    assert worker.request("/nothing")[0] == 404
    code, metrics = worker.request("/metrics")
    assert code == 200
    for line in (
        'workqueue_worker_slots{queue="jobs"} 1.0',
        'workqueue_worker_busy_slots{queue="jobs"} 0.0',
        'workqueue_worker_stuck_slots{queue="jobs"} 0.0',
        'workqueue_worker_connected{queue="jobs"} 1.0',
        'workqueue_worker_messages_total{outcome="acked",queue="jobs"} 0.0',
        'workqueue_worker_handler_seconds_count{queue="jobs"} 0.0',
    ):
        assert line in metrics
    assert "process_resident_memory_bytes" in metrics


def test_idle_worker_is_small_and_starts_quickly(vhost: VirtualHost, workers: Workers) -> None:
    """Loose bounds against regressions; the benchmark measures the figures."""
    worker = workers.start(vhost.url).wait_consuming()
    assert process.processor_seconds(worker.process.pid) < 5, "seconds of processor time"
    assert process.memory(worker.process.pid) < 48 * 1024 * 1024


UNNEEDED: Final = {
    "asyncio",
    "dataclasses",
    "encodings.idna",
    "hashlib",
    "http.server",
    "inspect",
    "prometheus_client",
    "random",
    "ssl",
    "workqueue.amqp.publish_pipeline",
}


@pytest.mark.parametrize(
    ("isolation", "unneeded"),
    [("Thread", UNNEEDED), ("Process", UNNEEDED | {"pika", "workqueue.worker.slot"})],
)
def test_process_of_a_handler_imports_only_what_its_first_message_needs(
    vhost: VirtualHost, workers: Workers, tmp_path: Path, isolation: str, unneeded: set[str]
) -> None:
    found = tmp_path / "found"
    (tmp_path / "imported.py").write_text(
        "import json, pathlib, sys\n"
        "def handle(message):\n"
        f"    file = pathlib.Path({str(found)!r})\n"
        "    file.with_suffix('.new').write_text(json.dumps(sorted(sys.modules)))\n"
        "    file.with_suffix('.new').rename(file)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:worker"}
    workers.start(vhost.url, "--isolation", isolation, handler="imported:handle", environment=environment)
    eventually(lambda: vhost.exists("jobs"))

    publish(vhost, {"id": 1})

    assert not unneeded & set(eventually(lambda: json.loads(found.read_text()) if found.exists() else None))
