"""What a broker can do to a worker: the worker reconnects, loses nothing, and logs it once."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.rabbitmq import Broker, VirtualHost
from tests.support.wait import eventually
from tests.support.worker import ASYNC, THREADS, Workers, is_empty, publish
from workqueue.amqp.connection import Connection
from workqueue.contract.binding import from_url
from workqueue.contract.topology import QueueSettings, QueueType, dead_letter_queue, work_queue

BOTH = pytest.mark.parametrize("handler", [THREADS, ASYNC], ids=["in a thread", "as a coroutine"])


@BOTH
def test_delivery_of_lost_connection_is_cancelled_and_redelivered(
    every_vhost: VirtualHost, workers: Workers, handler: str
) -> None:
    worker = workers.start(every_vhost.url, handler=handler).wait_consuming()
    publish(every_vhost, {"id": 1, "do": "sleep", "seconds": 60, "again": 0})
    eventually(lambda: worker.events_of("start") == [1])
    every_vhost.broker.close_connections()
    eventually(lambda: worker.events_of("end") == [1])
    assert worker.events_of("start") == [1, 1]
    assert worker.events_of("cancelled") == [1]
    eventually(lambda: worker.outcomes() == {"lost": 1, "acked": 1})
    eventually(lambda: is_empty(every_vhost))
    assert worker.count_log("Connection to RabbitMQ lost; connecting again.") == 1
    assert "Traceback" not in worker.log
    assert 'workqueue_worker_reconnects_total{queue="jobs"} 1.0' in worker.request("/metrics")[1]


def test_slot_stays_closed_until_handler_of_lost_delivery_returns(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, {"id": "deaf", "do": "ignore", "sign": str(sign)})
    eventually(lambda: worker.events_of("start") == ["deaf"])
    vhost.broker.close_connections()
    eventually(lambda: worker.count_log("Connected to RabbitMQ.") == 2)
    sign.touch()
    eventually(lambda: worker.events_of("end") == ["deaf", "deaf"])
    moments = [event["at"] for event in worker.events]
    kinds = [event["event"] for event in worker.events]
    assert kinds == ["start", "end", "start", "end"]
    assert moments == sorted(moments)


def test_queue_recreated_as_another_type_is_consumed_again(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(every_vhost.url).wait_consuming()
    with every_vhost.connect() as connection:
        channel = connection.channel()
        channel.queue_delete("jobs")
        eventually(lambda: not worker.status()["consuming"])
        eventually(lambda: worker.status()["lastError"] and "404" in worker.status()["lastError"])
        queue = work_queue(QueueSettings("jobs", QueueType.CLASSIC))
        channel.queue_declare("jobs", durable=True, arguments=dict(queue.arguments))
    publish(every_vhost, {"id": 1})
    eventually(lambda: worker.events_of("end") == [1])
    assert worker.status()["lastError"] is None
    assert worker.status()["connected"]
    assert worker.count_log("Connected to RabbitMQ.") == 1
    assert worker.count_log("The queue does not exist; trying again.") == 1


def test_worker_waits_for_missing_queue(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, declare=False)
    eventually(lambda: worker.status()["lastError"])
    assert worker.request("/readyz")[0] == 200
    with vhost.connect() as connection:
        connection.channel().queue_declare("jobs", durable=True)
    publish(vhost, {"id": 1})
    eventually(lambda: worker.events_of("end") == [1])


def test_foreign_classic_queue_is_consumed_on_every_version(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    with every_vhost.connect() as connection:
        connection.channel().queue_declare("jobs", durable=True)
    worker = workers.start(every_vhost.url, declare=False).wait_consuming()
    publish(every_vhost, {"id": 1})
    eventually(lambda: worker.events_of("end") == [1])
    assert not [entry for entry in worker.log_entries if entry["level"] == "warning"]


def test_conflicting_queue_is_reported_and_retried(vhost: VirtualHost, workers: Workers) -> None:
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.queue_declare("jobs", durable=True, arguments={"x-max-length": 5})
        worker = workers.start(vhost.url)
        eventually(lambda: worker.status()["lastError"] and "406" in worker.status()["lastError"])
        channel.queue_delete("jobs")
    eventually(lambda: worker.status()["consuming"])


def test_message_held_past_consumer_timeout_is_redelivered(
    every_rabbitmq: Broker, every_vhost: VirtualHost, workers: Workers
) -> None:
    """RabbitMQ closes the channel before 4.3, and cancels the consumer since."""
    if every_rabbitmq.series == "4.0":
        return  # as 3.10
    worker_arguments = []
    arguments = {**work_queue(QueueSettings("jobs")).arguments}
    if every_rabbitmq.series == "4.3":
        arguments["x-consumer-timeout"] = 2000
        worker_arguments = ["--queue-type", "Classic"]  # so that it brings no timeout of its own
    with every_rabbitmq.consumer_timeout(2):
        with every_vhost.connect() as connection:
            connection.channel().queue_declare("jobs", durable=True, arguments=arguments)
        worker = workers.start(every_vhost.url, *worker_arguments, declare=False).wait_consuming()
        publish(every_vhost, {"id": 1, "do": "sleep", "seconds": 8})
        eventually(lambda: worker.outcomes()["lost"] == 1, 30)
    assert worker.status()["connected"]
    assert worker.count_log("Connected to RabbitMQ.") == 1
    eventually(lambda: len(worker.events_of("start")) >= 2)


@pytest.mark.slow
def test_memory_alarm_delays_retries_but_not_acknowledgements(
    every_rabbitmq: Broker, every_vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    worker = workers.start(every_vhost.url, "--concurrency", "2").wait_consuming()
    publish(every_vhost, {"id": 0, "do": "fail once"})  # so that the publishing connection exists
    eventually(lambda: worker.outcomes() == {"retried": 1, "acked": 1})
    jobs = [{"id": number, "do": "wait", "sign": str(sign)} for number in range(1, 4)]
    publish(every_vhost, *jobs, {"id": 4, "do": "fail once"}, {"id": 5})
    with every_rabbitmq.memory_alarm():
        sign.touch()
        eventually(lambda: worker.outcomes()["acked"] == 5)
        eventually(lambda: every_vhost.depth("jobs") == (0, 1))
        assert worker.outcomes()["retried"] == 1, "its copy cannot be published, so that it is kept"
        assert worker.status()["busy"] == 1
    eventually(lambda: worker.outcomes() == {"retried": 2, "acked": 6})
    eventually(lambda: is_empty(every_vhost))


@pytest.mark.slow
def test_missing_delay_queue_is_redeclared(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, {"id": 1, "do": "fail once"})
    eventually(lambda: worker.events_of("end") == [1])
    with vhost.connect() as connection:
        connection.channel().queue_delete("jobs.retry.step.1s")
        connection.channel().queue_delete(dead_letter_queue("jobs").name)
    publish(vhost, {"id": 2, "do": "fail once"}, {"id": 3, "do": "reject"})
    eventually(lambda: worker.events_of("end") == [1, 2])
    eventually(lambda: vhost.depth("jobs.dead").ready == 1)
    assert worker.count_log("A copy could not be published; the message stays unacknowledged, trying again.")
    eventually(lambda: worker.outcomes() == {"acked": 2, "retried": 2, "dead_lettered": 1})


def test_refused_copy_leaves_message_unacknowledged(vhost: VirtualHost, workers: Workers) -> None:
    """The dead-letter queue is foreign, and full."""
    with vhost.connect() as connection:
        channel = connection.channel()
        full = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
        channel.queue_declare("jobs.dead", durable=True, arguments=full)
        queue = work_queue(QueueSettings("jobs"))
        channel.queue_declare("jobs", durable=True, arguments=dict(queue.arguments))
        publish(vhost, b"in the way", b"in the way too", queue="jobs.dead")
        worker = workers.start(vhost.url, declare=False).wait_consuming()
        publish(vhost, {"id": 1, "do": "reject"})
        eventually(
            lambda: worker.count_log(
                "A copy could not be published; the message stays unacknowledged, trying again."
            )
        )
        assert vhost.depth("jobs") == (0, 1)
        assert worker.outcomes() == {}
        channel.queue_delete("jobs.dead")
    eventually(lambda: vhost.exists("jobs.dead") and vhost.depth("jobs.dead").ready == 1)
    eventually(lambda: worker.outcomes() == {"dead_lettered": 1})


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["in order", "by a crash"])
def test_broker_restart_loses_no_message(
    rabbitmq: Broker, vhost: VirtualHost, workers: Workers, kill: bool
) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    rabbitmq.save_queues()
    publish(vhost, {"id": 1, "do": "sleep", "seconds": 60}, {"id": 2}, {"id": 3})
    eventually(lambda: worker.events_of("start") == [1])
    rabbitmq.restart(kill=kill)
    eventually(lambda: worker.status()["connected"], 30)
    eventually(lambda: "cancelled" in {event["event"] for event in worker.events})
    assert worker.request("/livez")[0] == 200
    eventually(lambda: worker.events_of("start").count(1) == 2)
    losses = [entry for entry in worker.log_entries if "lost; connecting" in entry["message"]]
    assert len(losses) == 1
    assert "Traceback" not in worker.log


@pytest.mark.slow
def test_half_open_connection_is_detected_by_heartbeat(rabbitmq: Broker, vhost: VirtualHost) -> None:
    connection = Connection(lambda: from_url(f"{vhost.url}?heartbeat=1"), "test")
    connection.start()
    try:
        eventually(lambda: connection.is_open)
        with rabbitmq.frozen():
            eventually(lambda: not connection.is_open)
            assert "heartbeat" in (connection.last_error or "")
        eventually(lambda: connection.is_open)
        assert connection.generation >= 2
    finally:
        connection.close()


def test_rotated_credentials_are_read_at_next_connect(
    rabbitmq: Broker, vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    folder = tmp_path / "binding"
    folder.mkdir()
    rabbitmq.add_user("rotating", "old", vhost.name)
    for key, value in {
        "type": "rabbitmq",
        "host": "127.0.0.1",
        "port": str(rabbitmq.port),
        "username": "rotating",
        "password": "old\n",
        "virtual-host": vhost.name,
    }.items():
        (folder / key).write_text(value)
    worker = workers.start(None, environment={"WORKQUEUE_BINDING": str(folder)}).wait_consuming()
    rabbitmq.change_password("rotating", "new")
    rabbitmq.close_connections()
    eventually(lambda: "ACCESS_REFUSED" in (worker.status()["lastError"] or ""))
    (folder / "password").write_text("new")
    eventually(lambda: worker.status()["consuming"])
    assert worker.retire(key=b"old")[0] == 401
    assert worker.retire(key=b"new")[0] == 200
    assert worker.count_log("RabbitMQ cannot be reached; trying again.") == 1
    rabbitmq.delete_user("rotating")


def test_unreadable_queue_is_reported_once_and_retried(
    every_rabbitmq: Broker, every_vhost: VirtualHost, workers: Workers
) -> None:
    every_rabbitmq.add_user("reader", "secret", every_vhost.name, read="nothing")
    with every_vhost.connect() as connection:
        connection.channel().queue_declare("jobs", durable=True)
    try:
        url = every_vhost.url.replace("guest:guest@", "reader:secret@")
        worker = workers.start(url, declare=False)
        eventually(lambda: "403" in (worker.status()["lastError"] or ""))
        assert worker.status()["connected"]
        assert worker.request("/readyz")[0] == worker.request("/livez")[0] == 200
        publish(every_vhost, {"id": 1})
        every_rabbitmq.allow("reader", every_vhost.name, ".*", ".*", ".*")
        eventually(lambda: worker.events_of("end") == [1])
        assert worker.status()["lastError"] is None
        assert worker.count_log("Connected to RabbitMQ.") == 1
        assert worker.count_log("The broker closed the channel; opening another.") == 1
        assert "Traceback" not in worker.log
    finally:
        every_rabbitmq.delete_user("reader")


def test_worker_connects_over_tls_with_private_ca_and_client_certificate(
    rabbitmq: Broker, vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    folder = tmp_path / "binding"
    folder.mkdir()
    files = rabbitmq.certificates
    (folder / "uri").write_text(f"amqps://localhost:{rabbitmq.tls_port}/{vhost.name}".replace("//", "//:@"))
    (folder / "ca.crt").write_text(files.authority.read_text())
    (folder / "tls.crt").write_text(files.client_certificate.read_text())
    (folder / "tls.key").write_text(files.client_key.read_text())
    worker = workers.start(None, "--binding", str(folder)).wait_consuming()
    publish(vhost, {"id": 1, "do": "fail once"}, {"id": "x" * 300_000})
    eventually(lambda: worker.outcomes() == {"acked": 2, "retried": 1})


def test_certificate_of_unknown_ca_is_refused(rabbitmq: Broker, vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(rabbitmq.url_of(vhost.name, tls=True))
    eventually(lambda: "certificate verify failed" in (worker.status()["lastError"] or ""))
    assert "Traceback" not in worker.log


def test_broker_addresses_are_tried_in_order(rabbitmq: Broker, vhost: VirtualHost, workers: Workers) -> None:
    url = vhost.url.replace("@127.0.0.1", "@127.0.0.1:1,127.0.0.1:2,127.0.0.1")
    worker = workers.start(url).wait_consuming()
    assert worker.count_log("RabbitMQ cannot be reached; trying again.") == 2


def test_outage_is_reported_once_and_worker_recovers(workers: Workers, vhost: VirtualHost) -> None:
    """Nothing listens at first; then a proxy to the real broker does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        url = vhost.url.replace(f":{vhost.broker.port}/", f":{port}/")
        worker = workers.start(url)
        eventually(lambda: worker.status()["lastError"])
        time.sleep(1.0)  # several attempts
        assert worker.count_log("RabbitMQ cannot be reached; trying again.") == 1
        assert worker.request("/readyz")[0] == worker.request("/livez")[0] == 200
        listener.listen()
        threading.Thread(target=_proxy, args=(listener, vhost.broker.port), daemon=True).start()
        eventually(lambda: worker.status()["consuming"])
        worker.stop()


def _proxy(listener: socket.socket, port: int) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        one.close()


@pytest.mark.slow
def test_handler_blocking_for_three_heartbeats_keeps_its_connection(
    vhost: VirtualHost, workers: Workers
) -> None:
    """In a thread, and as a coroutine that blocks its whole loop, simultaneously."""
    blocked_seconds = 32
    jobs = {THREADS: {"id": "thread", "do": "ignore"}, ASYNC: {"id": "loop", "do": "block"}}
    busy = []
    for handler, job in jobs.items():
        worker = workers.start(vhost.url, "--heartbeat", "10", handler=handler).wait_consuming()
        publish(vhost, {**job, "seconds": blocked_seconds})
        eventually(lambda worker=worker, job=job: job["id"] in worker.events_of("start"))
        busy.append((worker, job["id"]))
    for worker, name in busy:
        eventually(lambda worker=worker, name=name: name in worker.events_of("end"), blocked_seconds + 15)
        eventually(lambda worker=worker: worker.outcomes() == {"acked": 1})
        assert worker.count_log("Connected to RabbitMQ.") == 1
    eventually(lambda: is_empty(vhost))


@pytest.mark.slow
def test_handler_holding_the_interpreter_lock_keeps_its_connection(
    rabbitmq_310: Broker, rabbitmq_40: Broker, rabbitmq_43: Broker, workers: Workers
) -> None:
    """A C extension that never releases the GIL stops every thread; on all RabbitMQ versions simultaneously."""
    held_seconds = 40
    with ExitStack() as stack:
        running = {}
        for broker in (rabbitmq_310, rabbitmq_40, rabbitmq_43):
            vhost = stack.enter_context(broker.new_vhost())
            worker = workers.start(vhost.url).wait_consuming()
            publish(vhost, {"id": broker.series, "do": "hold the interpreter", "seconds": held_seconds})
            running[broker.series] = (vhost, worker)

        for series, (vhost, worker) in running.items():
            eventually(
                lambda series=series, worker=worker: series in worker.events_of("end"), 2 * held_seconds
            )
            eventually(lambda vhost=vhost: is_empty(vhost))
            eventually(lambda worker=worker: worker.outcomes() == {"acked": 1})
            assert worker.count_log("Connected to RabbitMQ.") == 1


def test_idle_connection_has_tcp_keepalive(vhost: VirtualHost) -> None:
    connection = Connection(lambda: from_url(vhost.url), "test")
    connection.start()
    try:
        eventually(lambda: connection.is_open)
        remote = f"0100007F:{vhost.broker.port:04X}"
        keepalive_timer = "02:"

        def has_keepalive_timer() -> bool:
            rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()]
            return any(row[2] == remote and row[5].startswith(keepalive_timer) for row in rows)

        eventually(has_keepalive_timer)
    finally:
        connection.close()


def test_failing_callback_does_not_end_reconnecting(
    vhost: VirtualHost,
) -> None:
    """pika stops calling back when one callback raises, so it never reports the closed connection."""
    opened: list[int] = []
    connection = Connection(
        lambda: from_url(vhost.url), "test", on_open=opened.append, on_lost=lambda _: None
    )

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    def break_the_next_close() -> None:
        connection.channel(lambda _: None).add_on_close_callback(fail)

    connection.start()
    try:
        eventually(lambda: opened == [1])
        connection.call(break_the_next_close)
        eventually(lambda: vhost.broker.evaluate("rabbit_channel:list()") != "[]")
        vhost.broker.close_connections()
        eventually(lambda: opened == [1, 2])
        assert connection.is_open
    finally:
        connection.close()
