"""Each example runs as its header says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
import yaml

from tests.support.ports import free_port
from tests.support.rabbitmq import VirtualHost
from tests.support.rates import add_tokens
from tests.support.wait import eventually
from tests.support.worker import ROOT, Worker, Workers, publish, take_all
from workqueue_operator.api.workqueue import WorkQueue

EXAMPLES = ROOT / "examples"


def test_two_workers_of_hello_example_share_a_queue(vhost: VirtualHost, workers: Workers) -> None:
    environment = {"PYTHONPATH": f"{ROOT / 'worker'}:{EXAMPLES / 'hello'}"}
    pair = [
        workers.start(vhost.url, handler="hello:handle", queue="hello", environment=environment)
        for _ in range(2)
    ]
    for worker in pair:
        worker.wait_consuming()
    for text in (b"Hello World!", b"Bonjour !", b"Ciao mondo!", b"Hallo"):
        publish(vhost, text, queue="hello")
    eventually(lambda: sum(worker.log.count(" [x] Done ") for worker in pair) == 4)
    assert all(worker.log.count(" [x] Received ") >= 1 for worker in pair), "work is shared out"


def test_async_handler_example_fetches_pages(vhost: VirtualHost, workers: Workers) -> None:
    environment = {"PYTHONPATH": f"{ROOT / 'worker'}:{EXAMPLES / 'async-handler'}"}
    worker = workers.start(
        vhost.url, "--concurrency", "50", handler="pages:fetch", environment=environment
    ).wait_consuming()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        publish(
            vhost,
            {"host": "127.0.0.1", "port": listener.getsockname()[1]},
            {"no": "host"},
            {"host": "127.0.0.1", "port": 1},
            b"no json",
        )
        client, _ = listener.accept()
        with client:
            client.recv(1000)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    eventually(lambda: worker.outcomes() == {"acked": 1, "dead_lettered": 2, "retried": 1})
    assert "127.0.0.1: HTTP/1.0 200 OK" in worker.log


def test_receipts_example_says_how_long_orders_waited(vhost: VirtualHost, workers: Workers) -> None:
    environment = {"PYTHONPATH": f"{ROOT / 'worker'}:{EXAMPLES / 'receipts'}"}
    worker = workers.start(vhost.url, handler="receipts:print_receipt", environment=environment)
    worker.wait_consuming()
    publish(vhost, {"number": 7, "at": time.time() - 9, "seconds": 0})
    eventually(lambda: worker.outcomes() == {"acked": 1})
    waited = re.search(r"Receipt 7: started after ([0-9.]+) s", worker.log)
    assert waited is not None
    assert float(waited[1]) >= 9


def test_exec_handler_example_counts_words(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(
        vhost.url, "--exec", str(EXAMPLES / "exec-handler/count-words.sh"), handler=None
    ).wait_consuming()
    publish(vhost, b"how many words are these")
    publish(vhost, b"one two", headers={"not-yet": "yes"})
    publish(vhost, b"")
    eventually(lambda: worker.outcomes() == {"acked": 2, "dead_lettered": 1, "retried": 1})
    assert "5 words in attempt 1" in worker.log
    assert "2 words in attempt 2" in worker.log


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1, id="a small message"),
        pytest.param(100_000, id="a large message", marks=pytest.mark.slow),
    ],
)
def test_http_handler_example_in_node_reverses_letters(
    vhost: VirtualHost, workers: Workers, size: int
) -> None:
    node = shutil.which("node")
    assert node, "this test needs Node.js on the PATH"
    port = free_port()
    server = subprocess.Popen(
        [node, str(EXAMPLES / "http-handler/server.js")],
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.PIPE,
    )
    try:
        worker = workers.start(
            vhost.url, "--http", f"http://localhost:{port}/jobs", handler=None
        ).wait_consuming()
        publish(vhost, b"stressed" * size, b"busy", b"")
        eventually(lambda: worker.outcomes() == {"acked": 2, "retried": 1, "dead_lettered": 1})
        worker.stop()
    finally:
        server.terminate()
        output = server.communicate()[0].decode()
    assert sorted(output.splitlines()) == ["desserts" * size, "ysub"]
    assert take_all(vhost, "jobs.dead")[0][0].headers["x-workqueue-failure-reason"] == "Rejected"


def run_example(vhost: VirtualHost, workers: Workers, name: str, handler: str) -> Worker:
    """Start a worker with the handler of an example, and run the example's program."""
    folder = EXAMPLES / name
    environment = {"PYTHONPATH": f"{ROOT / 'worker'}:{folder}"}
    worker = workers.start(
        vhost.url, handler=f"{name}:{handler}", queue=name, environment=environment
    ).wait_consuming()
    subprocess.run(
        [sys.executable, str(folder / f"{name}.py")],
        env=os.environ | environment | {"WORKQUEUE_URL": vhost.url},
        check=True,
    )
    return worker


def test_reminders_example_delivers_when_due(vhost: VirtualHost, workers: Workers) -> None:
    worker = run_example(vhost, workers, "reminders", "remind")

    eventually(lambda: worker.outcomes() == {"acked": 3}, 30)
    carts = re.findall(r"Cart (\d): you left something behind \(([\d.]+) s late\)", worker.log)
    assert {cart for cart, _ in carts} == {"1", "2", "3"}


def test_exports_example_cancels_the_running_export(vhost: VirtualHost, workers: Workers) -> None:
    worker = run_example(vhost, workers, "exports", "export")

    eventually(lambda: worker.outcomes() == {"cancelled": 1, "acked": 1})
    assert "Customer 1: cancelled" in worker.log
    assert "Customer 2: done" in worker.log


def test_mails_example_waits_for_tokens(vhost: VirtualHost, workers: Workers) -> None:
    made = yaml.safe_load((ROOT / "manifests/examples/rate-limit.yaml").read_text())
    made["metadata"] |= {"namespace": "shop", "uid": "uid-1"}
    limit = WorkQueue.model_validate(made).rate_limit
    assert limit is not None
    add_tokens(vhost, 2, name=limit.name)
    environment = {"PYTHONPATH": f"{ROOT / 'worker'}:{EXAMPLES / 'mails'}"}
    worker = workers.start(
        vhost.url,
        "--limit-rate-queue",
        limit.name,
        handler="mails:send",
        queue="mails",
        environment=environment,
    ).wait_consuming()

    publish(vhost, *({"to": f"{name}@example.com", "subject": "Hi"} for name in "abc"), queue="mails")

    eventually(lambda: worker.outcomes() == {"acked": 2})
    eventually(lambda: worker.status()["waitingForToken"] == 1)
    assert re.findall(r"To (.)@example.com: Hi", worker.log) == ["a", "b"]


def test_reports_example_makes_each_report_once(vhost: VirtualHost, workers: Workers) -> None:
    environment = {"PYTHONPATH": f"{ROOT / 'worker'}:{EXAMPLES / 'reports'}"}
    worker = workers.start(
        vhost.url, handler="reports:make", queue="reports", environment=environment
    ).wait_consuming()

    for _ in range(2):
        publish(vhost, {"kind": "daily"}, queue="reports", message_id="reports/nightly/2026-11-27T01:30:00Z")

    eventually(lambda: worker.outcomes() == {"acked": 2})
    assert worker.log.count("daily report for reports/nightly/2026-11-27T01:30:00Z") == 1
    assert worker.log.count("exists already") == 1
