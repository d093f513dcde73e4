"""Handlers in other languages: one command or one POST for each message."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.httpserver import say, server
from tests.support.rabbitmq import VirtualHost
from tests.support.tiers import some_slow
from tests.support.wait import eventually
from tests.support.worker import Worker, Workers, publish, take_all
from workqueue import Message
from workqueue.worker.errors import HandlerLoadError
from workqueue.worker.handlers.exec import run
from workqueue.worker.handlers.http import load, post
from workqueue.worker.handlers.outcome import HandlerFailed, HandlerTimeout, HandlerUnavailable

UNAVAILABLE = "The handler cannot be reached; keeping its messages and taking no others."


def exec_worker(workers: Workers, vhost: VirtualHost, script: str, *arguments: str) -> Worker:
    return workers.start(vhost.url, *arguments, "--exec", "sh", "-c", script, handler=None).wait_consuming()


EXIT_CODES = {
    "0 is done": ("exit 0", {"acked": 1}, None),
    "65 is rejected, with the end of standard error": (
        "echo no image >&2; exit 65",
        {"dead_lettered": 1},
        ("Rejected", "exit code 65: no image"),
    ),
    "75 is tried again": (
        'test "$WORKQUEUE_MESSAGE_ATTEMPT" = 2 || exit 75',
        {"acked": 1, "retried": 1},
        None,
    ),
    "any other is tried again": (
        "echo oops >&2; exit 3",
        {"retried": 1, "dead_lettered": 1},
        ("Exception", "exit code 3: oops"),
    ),
    "a signal is tried again": (
        "kill -9 $$",
        {"retried": 1, "dead_lettered": 1},
        ("Exception", "ended by SIGKILL"),
    ),
}


@pytest.mark.parametrize("title", some_slow(EXIT_CODES, {"a signal is tried again"}))
def test_exit_code_decides_the_outcome(vhost: VirtualHost, workers: Workers, title: str) -> None:
    script, outcomes, failure = EXIT_CODES[title]
    worker = exec_worker(workers, vhost, script, "--max-attempts", "2")
    publish(vhost, b"body")
    eventually(lambda: worker.outcomes() == outcomes)
    dead = [
        (
            properties.headers["x-workqueue-failure-reason"],
            properties.headers["x-workqueue-failure-message"],
        )
        for properties, _ in take_all(vhost, "jobs.dead")
    ]
    assert dead == ([failure] if failure else [])


def test_command_gets_body_headers_and_properties(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    script = f"cat > {tmp_path}/body; env | grep ^WORKQUEUE_ > {tmp_path}/env"
    worker = exec_worker(workers, vhost, script)
    body = b"\0\xff" * 200_000
    publish(vhost, body, headers={"Tenant-Name": "blue", "n": 7}, message_id="m-1", content_type="a/b")
    eventually(lambda: worker.outcomes() == {"acked": 1})
    assert (tmp_path / "body").read_bytes() == body
    environment = (tmp_path / "env").read_text().splitlines()
    for line in (
        "WORKQUEUE_HEADER_TENANT_NAME=blue",
        "WORKQUEUE_HEADER_N=7",
        "WORKQUEUE_MESSAGE_MESSAGE_ID=m-1",
        "WORKQUEUE_MESSAGE_CONTENT_TYPE=a/b",
        "WORKQUEUE_MESSAGE_ATTEMPT=1",
        "WORKQUEUE_MESSAGE_QUEUE=jobs",
    ):
        assert line in environment


def test_command_may_ignore_its_input(vhost: VirtualHost, workers: Workers) -> None:
    worker = exec_worker(workers, vhost, "exit 0")
    publish(vhost, b"x" * 1_000_000)
    eventually(lambda: worker.outcomes() == {"acked": 1})


def test_timeout_ends_the_whole_process_group(vhost: VirtualHost, workers: Workers, tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 300 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/parent; sleep 300"
    worker = exec_worker(workers, vhost, script, "--timeout", "1", "--max-attempts", "1")
    publish(vhost, b"body")
    eventually(lambda: worker.outcomes() == {"timed_out": 1})
    pids = [int((tmp_path / name).read_text()) for name in ("child", "parent")]
    eventually(lambda: not any(_alive(pid) for pid in pids))
    eventually(lambda: worker.status()["consuming"])


def test_processes_left_by_a_command_are_ended(vhost: VirtualHost, workers: Workers, tmp_path: Path) -> None:
    worker = exec_worker(workers, vhost, f"sleep 300 & echo $! > {tmp_path}/child")
    publish(vhost, b"body")
    eventually(lambda: worker.outcomes() == {"acked": 1})
    eventually(lambda: not _alive(int((tmp_path / "child").read_text())))


def test_expired_shutdown_ends_command_and_requeues_message(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    worker = exec_worker(workers, vhost, f"echo $$ > {tmp_path}/parent; sleep 300", "--grace", "1")
    publish(vhost, b"body")
    eventually((tmp_path / "parent").exists)
    assert worker.stop() == 0
    assert vhost.depth("jobs") == (1, 0)
    eventually(lambda: not _alive(int((tmp_path / "parent").read_text())))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


STATUS_CODES = {
    "2xx is done": (say(204), {"acked": 1}, None),
    "4xx is rejected": (say(422, "no image"), {"dead_lettered": 1}, ("Rejected", "422", "no image")),
    "5xx is tried again": (
        say(500, "oops"),
        {"retried": 1, "dead_lettered": 1},
        ("Exception", "500", "oops"),
    ),
    **{
        f"{code} is tried again": (
            say(code, Retry_After="1"),
            {"retried": 1, "dead_lettered": 1},
            ("RetryRequested", str(code), ""),
        )
        for code in (408, 425)
    },
    **{
        f"{code} without Retry-After is tried again": (
            say(code),
            {"retried": 1, "dead_lettered": 1},
            ("RetryRequested", str(code), ""),
        )
        for code in (429, 503)
    },
    "3xx is a failure": (
        say(302, Location="/"),
        {"retried": 1, "dead_lettered": 1},
        ("Exception", "302", ""),
    ),
}


@pytest.mark.parametrize("title", some_slow(STATUS_CODES, {"408 is tried again", "425 is tried again"}))
def test_status_code_decides_the_outcome(vhost: VirtualHost, workers: Workers, title: str) -> None:
    answer, outcomes, failure = STATUS_CODES[title]
    with server(answer) as requests:
        worker = workers.start(vhost.url, "--http", requests.url, "--max-attempts", "2", handler=None)
        worker.wait_consuming()
        publish(vhost, b"body")
        eventually(lambda: worker.outcomes() == outcomes)
    dead = take_all(vhost, "jobs.dead")
    assert len(dead) == (failure is not None)
    if failure:
        headers = dead[0][0].headers
        reason, *parts = failure
        assert headers["x-workqueue-failure-reason"] == reason
        assert all(part in headers["x-workqueue-failure-message"] for part in parts)


def test_retry_after_is_honoured(vhost: VirtualHost, workers: Workers) -> None:
    def answer(request: BaseHTTPRequestHandler, number: int) -> None:
        times.append(time.monotonic())
        (say(503, Retry_After="2") if number == 1 else say(200))(request, number)

    times: list[float] = []
    with server(answer) as requests:
        worker = workers.start(vhost.url, "--http", requests.url, "--delays", "3600", handler=None)
        worker.wait_consuming()
        publish(vhost, b"body")
        eventually(lambda: worker.outcomes() == {"acked": 1, "retried": 1})
    assert times[1] - times[0] > 1.9


@pytest.mark.parametrize("code", [429, 503])
def test_overload_with_retry_after_costs_no_attempt(vhost: VirtualHost, workers: Workers, code: int) -> None:
    def answer(request: BaseHTTPRequestHandler, number: int) -> None:
        attempts.append(request.headers["Workqueue-Attempt"])
        (say(code, Retry_After="1") if number < 3 else say(200))(request, number)

    attempts: list[str] = []
    with server(answer) as requests:
        worker = workers.start(vhost.url, "--http", requests.url, "--max-attempts", "1", handler=None)
        worker.wait_consuming()

        publish(vhost, b"body")

        eventually(lambda: worker.outcomes() == {"acked": 1, "retried": 2})
    assert attempts == ["1", "1", "1"]


def test_http_handler_gets_body_headers_and_properties(vhost: VirtualHost, workers: Workers) -> None:
    with server(say(200)) as requests:
        worker = workers.start(vhost.url, "--http", requests.url, handler=None).wait_consuming()
        publish(vhost, b"\0body", headers={"Tenant": "blüe\r\n"}, message_id="m-1", content_type="a/b")
        eventually(lambda: worker.outcomes() == {"acked": 1})
    [(headers, body)] = requests.seen
    assert body == b"\0body"
    assert headers["Content-Type"] == "a/b"
    assert (headers["Workqueue-Attempt"], headers["Workqueue-Queue"]) == ("1", "jobs")
    assert headers["Workqueue-Message-Id"] == "m-1"
    assert json.loads(headers["Workqueue-Headers"]) == {"Tenant": "blüe\r\n"}


def test_slow_http_handler_is_disconnected(vhost: VirtualHost, workers: Workers) -> None:
    ended = threading.Event()
    with server(lambda request, number: ended.wait(10) and None) as requests:
        worker = workers.start(
            vhost.url, "--http", requests.url, "--timeout", "1", "--max-attempts", "1", handler=None
        ).wait_consuming()
        publish(vhost, b"body")
        eventually(lambda: worker.outcomes() == {"timed_out": 1})
        eventually(lambda: worker.status()["consuming"])
        ended.set()


def test_missing_response_by_the_deadline_is_a_timeout() -> None:
    """No cancellation here: the socket's own timeout comes first, as on an overloaded machine."""
    ended = threading.Event()
    with server(lambda request, number: ended.wait(10) and None) as requests:
        with pytest.raises(HandlerTimeout, match="before the deadline"):
            post(urlsplit(requests.url), Message(b"body", deadline=time.monotonic() + 0.2))
        ended.set()


def test_http_call_cancelled_before_connecting_sends_nothing() -> None:
    message = Message(b"body", deadline=time.monotonic() + 60)
    message.cancelled.set()
    with server(say(200)) as requests, pytest.raises(HandlerFailed, match="cancelled"):
        post(urlsplit(requests.url), message)
    assert requests.seen == []


def test_message_that_waits_for_its_server_keeps_nothing_of_the_calls_that_failed() -> None:
    with server(say(200)) as gone:
        url = gone.url
    message = Message(b"body", deadline=time.monotonic() + 60)

    for _ in range(3):
        with pytest.raises(HandlerUnavailable):
            post(urlsplit(url), message)

    assert message.cancelled._callbacks is None


def test_http_handler_that_never_listens_is_named() -> None:
    with server(say(200)) as gone:
        url = gone.url
    pauses: list[float] = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return False

    with pytest.raises(
        HandlerLoadError, match=r"127\.0\.0\.1.* cannot be reached: .*refused.* \(tried for 0\.05 s\)"
    ):
        load(url, pause, patience=0.05)
    assert pauses


def test_worker_stopped_while_waiting_for_http_handler_reports_it(workers: Workers) -> None:
    with server(say(200)) as gone:
        url = gone.url
    worker = workers.start(None, "--http", url, handler=None)
    eventually(lambda: _waits_in(worker.process.pid))
    assert worker.stop() == 3
    assert worker.termination_log.read_text() == f"Stopped while waiting for the handler {url}.\n"


def _waits_in(pid: int) -> bool:
    """Whether the process has its own handler for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:\t", 1)[1].split("\n", 1)[0], 16)
    return bool(caught & 1 << signal.SIGTERM - 1)


def test_worker_waits_for_late_http_handler(vhost: VirtualHost, workers: Workers) -> None:
    with server(say(200)) as first:
        url = first.url
    worker = workers.start(vhost.url, "--http", url, handler=None)
    eventually(lambda: "The endpoint is up." in worker.log)
    assert (worker.request("/livez")[0], worker.request("/readyz")[0]) == (200, 503)
    with server(say(200), first.port):
        worker.wait_consuming()


def test_http_handler_that_refuses_connections_costs_no_attempts(
    every_vhost: VirtualHost, workers: Workers
) -> None:
    with server(say(200)) as first:
        worker = workers.start(
            every_vhost.url, "--http", first.url, "--concurrency", "3", "--max-attempts", "1", handler=None
        ).wait_consuming()

    publish(every_vhost, *(b"body" for _ in range(50)))
    eventually(lambda: worker.count_log(UNAVAILABLE))
    eventually(lambda: not worker.status()["consuming"])
    depth = every_vhost.depth("jobs")
    time.sleep(1)  # several attempts to connect; that nothing happens cannot be waited for

    assert depth.ready >= 50 - 3
    assert every_vhost.depth("jobs") == depth
    assert worker.outcomes() == {}
    assert "refused" in worker.status()["lastError"]
    assert worker.request("/livez")[0] == 200

    with server(say(200), first.port) as second:
        eventually(lambda: worker.outcomes() == {"acked": 50})
    assert {headers["Workqueue-Attempt"] for headers, _ in second.seen} == {"1"}
    assert worker.count_log(UNAVAILABLE) == 1
    assert worker.count_log("The handler can be reached again.") == 1
    assert worker.status()["lastError"] is None


def test_message_awaiting_http_handler_is_requeued_at_shutdown(vhost: VirtualHost, workers: Workers) -> None:
    with server(say(200)) as gone:
        worker = workers.start(vhost.url, "--http", gone.url, handler=None).wait_consuming()
    publish(vhost, b"body")
    eventually(lambda: worker.count_log(UNAVAILABLE))

    assert worker.stop() == 0

    assert vhost.depth("jobs") == (1, 0)
    assert not vhost.exists("jobs.retry.step.1s")


@pytest.mark.slow
def test_message_that_waited_for_http_handler_has_its_full_timeout(
    vhost: VirtualHost, workers: Workers
) -> None:
    with server(say(200)) as first:
        worker = workers.start(
            vhost.url, "--http", first.url, "--timeout", "3", "--max-attempts", "1", handler=None
        ).wait_consuming()
    publish(vhost, b"body")
    eventually(lambda: worker.count_log(UNAVAILABLE))
    time.sleep(4)  # longer than the timeout

    with server(say(200), first.port) as second:
        eventually(lambda: worker.outcomes() == {"acked": 1})
    assert float(second.seen[0][0]["Workqueue-Remaining-Seconds"]) > 0


def test_command_unstarted_for_lack_of_resources_costs_no_attempts(
    vhost: VirtualHost, workers: Workers
) -> None:
    worker = exec_worker(workers, vhost, "exit 0", "--max-attempts", "1")
    soft, hard = resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (3, hard))
    publish(vhost, b"body", b"body")
    eventually(lambda: worker.count_log(UNAVAILABLE))
    [entry] = [entry for entry in worker.log_entries if entry["message"] == UNAVAILABLE]
    assert "Too many open files" in entry["reason"]

    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (soft, hard))

    eventually(lambda: worker.outcomes() == {"acked": 2})


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_command_without_memory_to_fork_was_not_started(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", fail)

    with pytest.raises(HandlerUnavailable, match=os.strerror(number)):
        run(["true"], Message(b"body", deadline=time.monotonic() + 60))


def test_command_that_cannot_receive_its_input_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        started.append(process.pid)
        return process

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(threading.Thread, "start", fail)

    with pytest.raises(HandlerFailed, match="can't start new thread"):
        run(["sleep", "600"], Message(b"body", deadline=time.monotonic() + 60))

    assert not _alive(started[0])


def test_deleted_command_fails_its_message() -> None:
    with pytest.raises(HandlerFailed, match="No such file"):
        run(["/no/such/command"], Message(b"body", deadline=time.monotonic() + 60))
