"""The end of a worker process: which messages finish, which are requeued, and that none is lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import ASYNC, IN_THREADS, THREADS, Workers, is_empty, publish

BOTH = pytest.mark.parametrize("handler", [THREADS, ASYNC], ids=["in a thread", "as a coroutine"])


@BOTH
def test_running_handler_finishes_after_sigterm_and_no_message_follows(
    vhost: VirtualHost, workers: Workers, handler: str, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    worker = workers.start(vhost.url, handler=handler).wait_consuming()
    publish(vhost, {"id": 1, "do": "wait", "sign": str(sign)}, {"id": 2})
    eventually(lambda: worker.events_of("start") == [1])
    worker.signal()
    eventually(lambda: worker.count_log("Shutting down; handlers may finish."))
    sign.touch()
    assert worker.wait() == 0
    assert worker.events_of("end") == [1]
    assert vhost.depth("jobs") == (1, 0)
    assert worker.log_entries[-1]["message"] == "Shut down."


def test_stopping_worker_reports_its_messages_until_exit(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, {"id": 1, "do": "sleep", "seconds": 60})
    eventually(lambda: worker.events_of("start") == [1])
    worker.signal()
    eventually(lambda: worker.count_log("Shutting down; handlers may finish."))

    status = worker.status()

    assert (status["busy"], status["consuming"]) == (1, False)


@BOTH
def test_handler_exceeding_the_grace_period_is_cancelled_and_requeued(
    vhost: VirtualHost, workers: Workers, handler: str
) -> None:
    worker = workers.start(vhost.url, "--grace", "1", handler=handler).wait_consuming()
    publish(vhost, {"id": 1, "do": "sleep", "seconds": 600})
    eventually(lambda: worker.events_of("start") == [1])
    begun = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - begun > 0.8
    assert worker.events_of("cancelled") == [1]
    assert vhost.depth("jobs") == (1, 0), "the message is on the queue again"
    with vhost.connect() as connection:
        method, properties, _ = connection.channel().basic_get("jobs")
        assert method.redelivered
        assert "x-workqueue-attempt" not in (properties.headers or {}), "it was no attempt"


def test_handler_ignoring_cancellation_does_not_keep_process_alive(
    vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(vhost.url, "--grace", "0.5").wait_consuming()
    publish(vhost, {"id": 1, "do": "ignore", "seconds": 600})
    eventually(lambda: worker.events_of("start") == [1])
    assert worker.stop() == 0
    assert vhost.depth("jobs") == (1, 0)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_grace_period(
    vhost: VirtualHost, workers: Workers, second: signal.Signals
) -> None:
    worker = workers.start(vhost.url, "--grace", "600").wait_consuming()
    publish(vhost, {"id": 1, "do": "sleep", "seconds": 600})
    eventually(lambda: worker.events_of("start") == [1])
    worker.signal()
    eventually(lambda: worker.count_log("Shutting down; handlers may finish."))
    worker.signal(second)
    assert worker.wait() == 0
    assert vhost.depth("jobs") == (1, 0)


def test_thread_left_by_handler_does_not_keep_process_alive(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, {"id": 1, "do": "start a thread", "seconds": 600})
    eventually(lambda: worker.events_of("end") == [1])

    assert worker.stop() == 0

    assert worker.log_entries[-1]["message"] == "Shut down."


def test_hanging_exit_hook_does_not_keep_process_alive(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "hooked.py").write_text(
        "import atexit, pathlib, time\n"
        f"atexit.register(time.sleep, 600)\n"
        f"atexit.register(pathlib.Path({str(tmp_path / 'ran')!r}).touch)\n"
        "def handle(message): ...\n"
    )
    worker = workers.start(
        "amqp://127.0.0.1:1", handler="hooked:handle", environment={"PYTHONPATH": f"{tmp_path}:worker"}
    )
    eventually(lambda: worker.request("/readyz")[0] == 200)

    assert worker.stop() == 0

    assert (tmp_path / "ran").exists()


def test_thread_of_unloadable_module_does_not_keep_process_alive(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=[600]).start()\n1 / 0\n"
    )
    worker = workers.start(None, handler="threaded:handle", environment={"PYTHONPATH": f"{tmp_path}:worker"})

    assert worker.wait() == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl-c"])
def test_worker_that_loads_its_handler_ends_with_the_first_signal(
    workers: Workers, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "slow.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'importing')!r}).touch()\ntime.sleep(600)\n"
    )
    worker = workers.start(
        None, *IN_THREADS, handler="slow:handle", environment={"PYTHONPATH": f"{tmp_path}:worker"}
    )
    eventually((tmp_path / "importing").exists)

    worker.signal(number)

    assert worker.wait() == 0


def test_handler_that_sets_signal_handlers_does_not_keep_the_worker_from_ending(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    (tmp_path / "deaf.py").write_text(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef handle(message): ...\n"
    )
    worker = workers.start(
        vhost.url, *IN_THREADS, handler="deaf:handle", environment={"PYTHONPATH": f"{tmp_path}:worker"}
    ).wait_consuming()

    assert worker.stop() == 0


def test_third_signal_ends_the_process_immediately(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, *IN_THREADS).wait_consuming()
    publish(vhost, {"id": "long", "do": "sleep", "seconds": 600})
    eventually(lambda: worker.events_of("start") == ["long"])

    def interrupt_again() -> bool:
        worker.signal(signal.SIGINT)  # signals of one kind merge until Python has seen them
        return worker.process.poll() is not None

    eventually(interrupt_again)

    assert worker.wait() == 128 + signal.SIGINT


EXITS = ["exit in a task", "exit in a callback", "stop the loop"]


@pytest.mark.parametrize("what", EXITS)
def test_worker_with_ended_asyncio_loop_requeues_and_fails(
    vhost: VirtualHost, workers: Workers, what: str
) -> None:
    worker = workers.start(vhost.url, *IN_THREADS, "--concurrency", "2", handler=ASYNC).wait_consuming()
    publish(vhost, {"id": "other", "do": "sleep", "seconds": 600})
    eventually(lambda: worker.events_of("start") == ["other"])

    publish(vhost, {"id": "exits", "do": what})

    assert worker.wait() == 1
    assert worker.events_of("cancelled") == ["other"]
    assert (
        sum(vhost.depth(queue).ready for queue in ("jobs", "jobs.retry.step.1s") if vhost.exists(queue)) == 2
    )
    [entry] = [entry for entry in worker.log_entries if entry["level"] == "error"]
    assert "asyncio loop" in entry["reason"]
    assert "asyncio loop" in worker.termination_log.read_text()


@BOTH
def test_child_forked_by_handler_exits_with_its_own_code(
    vhost: VirtualHost, workers: Workers, handler: str
) -> None:
    worker = workers.start(vhost.url, handler=handler).wait_consuming()

    publish(vhost, {"id": 1, "do": "fork and exit"}, {"id": 2})

    eventually(lambda: worker.outcomes() == {"acked": 2})
    assert worker.events_of("child ended with 7") == [1]
    assert worker.count_log("Connected to RabbitMQ.") == 1


@pytest.mark.slow
def test_stuck_handler_ends_worker_after_other_slots_finish(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(
        vhost.url, *IN_THREADS, "--timeout", "4", "--concurrency", "2", "--max-attempts", "1"
    ).wait_consuming()
    publish(vhost, {"id": "hung", "do": "ignore", "seconds": 600})
    eventually(lambda: worker.outcomes() == {"timed_out": 1})
    publish(vhost, *({"id": number, "do": "sleep", "seconds": 1} for number in range(20)))

    assert worker.wait() == 1

    assert worker.events_of("start")[1:] == worker.events_of("end"), "the other slot's handler has finished"
    assert vhost.depth("jobs").ready == 20 - len(worker.events_of("end"))
    assert vhost.depth("jobs.dead").ready == 1
    [entry] = [
        one for one in worker.log_entries if one["message"] == "The worker cannot go on; shutting down."
    ]
    assert "has not returned" in entry["reason"]
    assert entry["reason"] in worker.termination_log.read_text()


@pytest.mark.slow
def test_first_signal_does_not_end_the_grace_of_a_worker_that_ends_by_itself(
    vhost: VirtualHost, workers: Workers
) -> None:
    worker = workers.start(
        vhost.url, *IN_THREADS, "--timeout", "4", "--concurrency", "2", "--max-attempts", "1"
    ).wait_consuming()
    publish(vhost, {"id": "hung", "do": "ignore", "seconds": 600})
    eventually(lambda: worker.outcomes() == {"timed_out": 1})
    publish(vhost, *({"id": number, "do": "sleep", "seconds": 3} for number in range(10)))
    eventually(lambda: worker.count_log("The worker cannot go on; shutting down."), 30)

    worker.signal()

    assert worker.wait() == 1
    assert worker.events_of("start")[1:] == worker.events_of("end"), "the other slot's handler has finished"


def test_pending_retry_is_finished_before_exit(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--delays", "30").wait_consuming()
    publish(vhost, {"id": 1, "do": "fail"})
    eventually(lambda: worker.events_of("start") == [1])
    assert worker.stop() == 0
    eventually(lambda: is_empty(vhost))
    assert vhost.depth("jobs.retry.step.16s").ready == 1


def test_idle_worker_exits_without_waiting(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--grace", "600").wait_consuming()

    assert worker.stop() == 0


def test_never_connected_worker_exits_on_sigterm(workers: Workers) -> None:
    worker = workers.start("amqp://127.0.0.1:1")
    eventually(lambda: worker.request("/readyz")[0] == 200)
    assert worker.stop() == 0


def test_killed_worker_loses_nothing(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url).wait_consuming()
    publish(vhost, {"id": 1, "do": "sleep", "seconds": 60, "again": 0})
    eventually(lambda: worker.events_of("start") == [1])
    worker.kill()
    second = workers.start(vhost.url).wait_consuming()
    eventually(lambda: second.events_of("end") == [1])
    assert [event["redelivered"] for event in second.events if event["event"] == "start"] == [False, True]


def test_message_that_kills_its_workers_is_dead_lettered(every_vhost: VirtualHost, workers: Workers) -> None:
    with every_vhost.connect() as connection:  # a small limit, so that the test is short
        channel = connection.channel()
        channel.queue_declare("poison.dead", durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_declare(
            "poison",
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": 2,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "poison.dead",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )
    publish(every_vhost, {"id": 1, "do": "die"}, queue="poison")
    for _ in range(3):
        worker = workers.start(every_vhost.url, *IN_THREADS, queue="poison", declare=False)
        assert worker.wait() == 70
    eventually(lambda: every_vhost.depth("poison.dead").ready == 1)
    eventually(lambda: is_empty(every_vhost, "poison"))
