"""The handler matrix: a handler in a process of its own can only cost its own message.

In each row the other slot goes on, the connection is never lost, the worker is not restarted, the message ends as
docs/handlers.md says, and both slots take messages afterwards.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Final

import pytest

from tests.support.cgroup import memory_limit
from tests.support.rabbitmq import VirtualHost
from tests.support.tiers import some_slow
from tests.support.wait import eventually
from tests.support.worker import Worker, Workers, is_empty, publish, take_all

SYNC: Final = "tests.support.misbehaviour:handle"
ASYNC: Final = "tests.support.misbehaviour:handle_async"
PATIENCE: Final = 60.0
OTHERS: Final = 20

# What the handler does: reason and part of the message in the failure headers. None: it is acknowledged.
ROWS: Final[dict[str, tuple[str, str] | None]] = {
    "segfault": ("Exception", "ended by SIGSEGV"),
    "be killed": ("Exception", "ended by SIGKILL"),
    "run out of memory": ("Exception", "MemoryError"),
    "allocate 1 GiB": None,
    "os._exit": ("Exception", "exit code 3"),
    "sys.exit": ("Exception", "SystemExit: 3"),
    "hold the interpreter": ("TimedOut", "more than 3 s"),
    "loop": ("TimedOut", "more than 3 s"),
    "fork 100 children": None,
    "fork and return": None,
    "close all descriptors": ("Exception", "The handler's process has ended"),
    "ignore signals": ("TimedOut", "more than 3 s"),
    "flood standard output": None,
    "raise an unreadable exception": (
        "Exception",
        "UnreadableError: <its text cannot be read: RuntimeError>",
    ),
    "raise an unpicklable exception": ("Exception", "UnpicklableError: it went wrong"),
    "return a coroutine": ("Exception", "returned a coroutine, which nothing runs"),
    "return a generator": ("Exception", "returned a generator, which nothing runs"),
}
HANGS: Final = {"hold the interpreter", "loop", "ignore signals", "block", "swallow the cancellation"}
ASYNC_ROWS: Final[dict[str, tuple[str, str] | None]] = {
    "exit in a task": ("Exception", "SystemExit: 3"),
    "exit in a callback": None,
    "stop the loop": None,
    "sys.exit": ("Exception", "SystemExit: 3"),
    "swallow the cancellation": ("TimedOut", "more than 3 s"),
    "block": ("TimedOut", "more than 3 s"),
    "hold the interpreter": ("TimedOut", "more than 3 s"),
    "segfault": ("Exception", "ended by SIGSEGV"),
    "flood standard output": None,
}
# "hold the interpreter" and "return a coroutine" are the harder forms of these, except for the wait for SIGKILL.
SLOW: Final = {
    "ignore signals",
    "loop",
    "return a generator",
    "close all descriptors",
    "raise an unpicklable exception",
}
SLOW_ASYNC: Final = {"hold the interpreter", "flood standard output", "block", "segfault"}
"""These repeat a row of sync handlers."""


def start(workers: Workers, vhost: VirtualHost, handler: str, *arguments: str, slots: int = 2) -> Worker:
    worker = workers.start(
        vhost.url,
        *("--isolation", "Process", "--concurrency", str(slots), "--max-attempts", "1", *arguments),
        handler=handler,
    )
    eventually(lambda: vhost.exists("jobs") and consumers(vhost) == slots, PATIENCE)
    return worker


def consumers(vhost: VirtualHost) -> int:
    with vhost.connect() as connection:
        count: int = connection.channel().queue_declare("jobs", passive=True).method.consumer_count
    return count


def judge(worker: Worker, vhost: VirtualHost, ending: tuple[str, str] | None, others: int) -> None:
    """The message has ended as expected, all others are done, and the worker has gone on."""
    eventually(lambda: is_empty(vhost), PATIENCE)
    dead = [properties.headers for properties, _ in take_all(vhost, "jobs.dead")]
    found = [(one["x-workqueue-failure-reason"], one["x-workqueue-failure-message"]) for one in dead]
    assert len(found) == (ending is not None), found
    for reason, message in found:
        assert ending is not None
        assert reason == ending[0]
        assert ending[1] in message
    eventually(lambda: worker.outcomes()["acked"] == others + (ending is None), PATIENCE)
    assert worker.process.poll() is None
    assert worker.status()["connected"]
    assert worker.request("/livez")[0] == 200
    assert 'workqueue_worker_reconnects_total{queue="jobs"} 0.0' in worker.request("/metrics")[1]


def require_own_cost_only(
    worker: Worker, vhost: VirtualHost, what: str, ending: tuple[str, str] | None
) -> None:
    """Let one message misbehave. The others are done, every slot consumes again, and the worker stops in order."""
    publish(vhost, {"id": "bad", "do": what})
    eventually(lambda: "bad" in worker.events_of("start"), PATIENCE)
    publish(vhost, *({"id": number} for number in range(OTHERS)))

    judge(worker, vhost, ending, OTHERS)
    eventually(lambda: consumers(vhost) == 2, PATIENCE)
    assert worker.stop() == 0


@pytest.mark.parametrize("what", some_slow(ROWS, SLOW))
def test_sync_handler_costs_only_its_own_message(vhost: VirtualHost, workers: Workers, what: str) -> None:
    worker = start(workers, vhost, SYNC, "--timeout", "3" if what in HANGS else "120")
    require_own_cost_only(worker, vhost, what, ROWS[what])


@pytest.mark.parametrize("what", some_slow(ASYNC_ROWS, SLOW_ASYNC))
def test_async_handler_costs_only_its_own_message(vhost: VirtualHost, workers: Workers, what: str) -> None:
    worker = start(workers, vhost, ASYNC, "--timeout", "3" if what in HANGS else "120")
    require_own_cost_only(worker, vhost, what, ASYNC_ROWS[what])


def test_handler_that_fills_the_memory_of_the_container_costs_only_its_own_message(
    vhost: VirtualHost, workers: Workers
) -> None:
    """The kernel ends one process, as in a pod with `singleProcessOOMKill`. It must not be the worker itself."""
    worker = start(workers, vhost, SYNC, "--timeout", "120")
    with memory_limit(worker.process.pid, 2**28):
        publish(vhost, {"id": "bad", "do": "fill the memory"})
        # Another process that asks for memory until the first one has ended may be ended, too.
        eventually(lambda: vhost.depth("jobs.dead").ready == 1, PATIENCE)
        publish(vhost, *({"id": number} for number in range(OTHERS)))

        judge(worker, vhost, ("Exception", "ended by SIGKILL"), OTHERS)
        eventually(lambda: consumers(vhost) == 2, PATIENCE)
        assert worker.stop() == 0


LIMITED: Final = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, (2**28, 2**28))
def handle(message):
    kept = []
    while message.body == b"fill":
        kept.append(b"x" * 2**20)
"""


def test_handler_that_exceeds_the_limit_of_its_module_fails_with_a_memory_error(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text(LIMITED)
    worker = wait_consuming(start_loading(workers, vhost, module, "--max-attempts", "1"))

    publish(vhost, b"fill", b"next")

    judge(worker, vhost, ("Exception", "MemoryError"), 1)
    assert not any("process of the handler has ended" in one["message"] for one in worker.log_entries)


@pytest.mark.slow
def test_blocked_asyncio_loop_costs_its_neighbours_no_attempt(vhost: VirtualHost, workers: Workers) -> None:
    worker = start(workers, vhost, ASYNC, "--timeout", "6")
    publish(vhost, {"id": "bad", "do": "block"})
    eventually(lambda: worker.events_of("start") == ["bad"])

    publish(vhost, {"id": "neighbour"})

    judge(worker, vhost, ("TimedOut", "more than 6 s"), 1)
    assert worker.events_of("end") == ["neighbour"]


def test_processes_that_a_handler_forked_end_with_the_worker(vhost: VirtualHost, workers: Workers) -> None:
    worker = start(workers, vhost, SYNC, slots=1)
    publish(vhost, {"id": 1, "do": "fork 100 children"})
    eventually(lambda: worker.outcomes() == {"acked": 1}, PATIENCE)
    [group] = {event["pid"] for event in worker.events}

    assert worker.stop() == 0

    eventually(lambda: not members(group))


def members(group: int) -> list[str]:
    """The processes of a process group that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = file.read_text().rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _parent, of_group = rest.split()[:3]
        if int(of_group) == group and state != "Z":
            found.append(name)
    return found


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A handler's module, to be written by the test."""
    return tmp_path / "loaded.py"


def start_loading(workers: Workers, vhost: VirtualHost, module: Path, *arguments: str) -> Worker:
    return workers.start(
        vhost.url,
        *("--isolation", "Process", *arguments),
        handler="loaded:handle",
        environment={"PYTHONPATH": f"{module.parent}:worker"},
    )


def wait_consuming(worker: Worker) -> Worker:
    eventually(lambda: worker.status()["consuming"], PATIENCE)
    return worker


def test_worker_is_alive_and_not_ready_while_its_handler_is_imported(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    gate = module.with_name("gate")
    module.write_text(
        "import os, time\n"
        f"while not os.path.exists({str(gate)!r}):\n    time.sleep(0.05)\n"
        "def handle(message): ...\n"
    )
    worker = start_loading(workers, vhost, module)

    eventually(lambda: vhost.exists("jobs"), PATIENCE)
    assert worker.request("/livez")[0] == 200
    assert worker.request("/readyz")[0] == 503
    assert not worker.status()["consuming"]
    publish(vhost, {"id": 1})
    gate.touch()

    eventually(lambda: worker.outcomes() == {"acked": 1})
    assert worker.request("/readyz")[0] == 200


@pytest.mark.parametrize("isolation", some_slow(["Process", "Thread"], {"Thread"}))
def test_import_that_hangs_ends_the_worker_with_one_sentence(
    vhost: VirtualHost, workers: Workers, module: Path, isolation: str
) -> None:
    module.write_text(
        "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()\ndef handle(message): ...\n"
    )
    worker = start_loading(workers, vhost, module, "--isolation", isolation, "--startup-timeout", "2")

    assert worker.wait() == 3
    said = worker.termination_log.read_text()
    assert "loaded:handle cannot be loaded: its import and lifespan took longer than 2 s." in said
    assert len(said.splitlines()) == 1


def test_import_that_crashes_ends_the_worker_with_one_sentence(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text("import os\nos._exit(5)\n")

    worker = start_loading(workers, vhost, module)

    assert worker.wait() == 3
    said = worker.termination_log.read_text()
    assert said == "The handler loaded:handle cannot be loaded: its process ended, exit code 5.\n"


def test_worker_whose_handler_is_imported_ends_on_sigterm(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text("import time\ntime.sleep(600)\n")
    worker = start_loading(workers, vhost, module)
    eventually(lambda: worker.request("/readyz")[0] == 503)

    assert worker.stop() == 0


OUTPUT: Final = """
import logging, subprocess, sys
def handle(message):
    print("printed", end=" ")
    print("in two parts")
    print("to standard error", file=sys.stderr)
    logging.getLogger("mine").warning("logged")
    print("without an end", end="")
"""


def test_output_reaches_the_log_line_by_line_with_the_message_id(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text(OUTPUT)
    worker = wait_consuming(start_loading(workers, vhost, module))

    publish(vhost, {"id": 1}, message_id="m-1")

    eventually(lambda: worker.outcomes() == {"acked": 1})
    found = [(one["logger"], one["message"]) for one in worker.log_entries if one.get("message_id") == "m-1"]
    assert found == [
        ("stdout", "printed in two parts"),
        ("stderr", "to standard error"),
        ("mine", "logged"),
        ("stdout", "without an end"),
    ]


def test_process_is_recycled_after_its_messages_without_a_pause(vhost: VirtualHost, workers: Workers) -> None:
    worker = start(workers, vhost, SYNC, "--recycle-messages", "5", slots=1)
    numbers = itertools.count()

    def processes() -> list[int]:
        return [event["pid"] for event in worker.events if event["event"] == "end"]

    def is_recycled() -> bool:
        publish(vhost, {"id": next(numbers)})
        return len(set(processes())) > 2

    eventually(is_recycled, PATIENCE)

    eventually(lambda: is_empty(vhost), PATIENCE)
    assert set(worker.outcomes()) == {"acked"}
    in_order = processes()
    assert in_order == sorted(in_order, key=in_order.index), "a process gets no message after its successor"


def test_process_that_uses_much_memory_is_recycled(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text(
        "kept = []\ndef handle(message):\n    kept.append(bytearray(2**20 * 100))\n    print(len(kept))\n"
    )
    worker = wait_consuming(start_loading(workers, vhost, module, "--recycle-memory", "90Mi"))

    def has_started_again() -> bool:
        publish(vhost, {"id": 1})
        return [one["message"] for one in worker.log_entries if one["logger"] == "stdout"].count("1") > 1

    eventually(has_started_again, PATIENCE)


METRICS: Final = """
import os
from prometheus_client import Counter, Gauge
JOBS = Counter("my_jobs", "Jobs")
LIVE = Gauge("my_live", "Live", multiprocess_mode="livesum")
def handle(message):
    JOBS.inc()
    LIVE.set(1)
    if message.body == b"die":
        os._exit(1)
"""


def test_metrics_of_the_handler_are_shown_and_survive_its_process(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text(METRICS)
    worker = wait_consuming(start_loading(workers, vhost, module, "--max-attempts", "1"))

    publish(vhost, b"1", b"2", b"die", b"4")

    eventually(lambda: worker.outcomes() == {"acked": 3, "dead_lettered": 1}, PATIENCE)
    page = worker.request("/metrics")[1]
    assert "my_jobs_total 4.0" in page
    assert "my_live 1.0" in page
    assert "workqueue_worker_messages_total" in page


def test_large_body_and_every_type_of_header_reach_the_handler(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text(
        "import hashlib, json\n"
        "def handle(message):\n"
        "    print(json.dumps([len(message.body), hashlib.sha256(message.body).hexdigest(),"
        " repr(sorted(message.headers.items())), message.properties.correlation_id]))\n"
    )
    worker = wait_consuming(start_loading(workers, vhost, module))
    body = bytes(range(256)) * 4 * 1024 * 14

    publish(
        vhost, body, headers={"a": 1, "b": "text", "c": [1, {"d": True}], "e": None}, correlation_id="c-1"
    )

    eventually(lambda: worker.outcomes() == {"acked": 1}, PATIENCE)
    [line] = [one["message"] for one in worker.log_entries if one["logger"] == "stdout"]
    assert json.loads(line) == [
        len(body),
        hashlib.sha256(body).hexdigest(),
        repr([("a", 1), ("b", "text"), ("c", [1, {"d": True}]), ("e", None)]),
        "c-1",
    ]


ENDS_LATER: Final = """
import os, threading
def handle(message):
    print("handled")
    if message.body == b"later":
        threading.Timer(1, os._exit, [4]).start()
"""


def test_process_that_ends_between_two_messages_costs_no_attempt(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text(ENDS_LATER)
    worker = wait_consuming(start_loading(workers, vhost, module, "--max-attempts", "1"))
    publish(vhost, b"later")
    ended = "A process of the handler has ended between two messages; starting another."
    eventually(lambda: worker.count_log(ended) == 1)

    publish(vhost, *[b"next"] * 10)

    eventually(lambda: worker.outcomes() == {"acked": 11})


def test_worker_itself_never_imports_the_handler(vhost: VirtualHost, workers: Workers, module: Path) -> None:
    importers = module.with_name("importers")
    module.write_text(
        f"import os\nopen({str(importers)!r}, 'a').write(f'{{os.getpid()}}\\n')\ndef handle(message): ...\n"
    )
    worker = start_loading(workers, vhost, module, "--concurrency", "3")

    eventually(lambda: importers.exists() and len(importers.read_text().split()) == 3)

    assert str(worker.process.pid) not in importers.read_text().split()


def test_processes_end_when_their_worker_is_killed(
    vhost: VirtualHost, workers: Workers, module: Path
) -> None:
    module.write_text("import os, time\ndef handle(message):\n    print(os.getpid())\n    time.sleep(600)\n")
    worker = wait_consuming(start_loading(workers, vhost, module))
    publish(vhost, {"id": 1})
    pids = eventually(lambda: [one["message"] for one in worker.log_entries if one["logger"] == "stdout"])

    worker.kill()

    eventually(lambda: not members(int(pids[0])))
