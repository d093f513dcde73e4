"""The configuration of `workqueue run`: flags, environment variables, and all mistakes in one error."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from workqueue.cli.run import add_arguments
from workqueue.contract.topology import QueueType
from workqueue.contract.worker_api import Isolation, Variable
from workqueue.worker import config as config_module
from workqueue.worker.config import ExecHandler, HTTPHandler, PythonHandler, RunConfig, parse
from workqueue.worker.errors import ConfigurationError

GOOD = ["thumbs:resize", "--queue", "q"]


def read(*flags: str, environment: Mapping[str, str] | None = None) -> RunConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parse(parser.parse_args(flags), environment or {})


def mistakes(*flags: str, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        read(*flags, environment=environment)
    return caught.value.mistakes


def test_defaults_of_all_settings() -> None:
    config = read(*GOOD)
    assert config.handler == PythonHandler("thumbs:resize")
    assert config.queue_settings.type is QueueType.QUORUM
    assert (config.retry.max_attempts, tuple(config.retry.delays_seconds)) == (5, (1, 10, 60))
    assert (config.timeout_seconds, config.grace_seconds, config.concurrency) == (300, 300, 1)
    assert (config.port, config.port_is_default, config.declare) == (8090, True, False)
    assert config.read_binding().addresses == (("localhost", 5672),)
    assert config.pod_uid is None
    assert config.read_binding().heartbeat_seconds is None
    assert config.log_level == "INFO"


def test_heartbeat_flag_overrides_url() -> None:
    url = "amqp://rabbit/?heartbeat=20"
    assert read(*GOOD, "--url", url).read_binding().heartbeat_seconds == 20
    assert read(*GOOD, "--url", url, "--heartbeat", "30").read_binding().heartbeat_seconds == 30
    environment = {"WORKQUEUE_HEARTBEAT_SECONDS": "40"}
    assert read(*GOOD, environment=environment).read_binding().heartbeat_seconds == 40
    assert mistakes(*GOOD, "--heartbeat", "0") == (
        "--heartbeat is '0'; it must be a whole number of seconds from 1 to 65535.",
    )


def test_log_level_is_read_from_flag_and_environment() -> None:
    environment = {"WORKQUEUE_LOG_LEVEL": "warning"}
    assert read(*GOOD, environment=environment).log_level == "WARNING"
    assert read(*GOOD, "--log-level", "DEBUG", environment=environment).log_level == "DEBUG"
    assert mistakes(*GOOD, "--log-level", "loud") == (
        "--log-level is 'loud'; it must be debug, info, warning or error.",
    )


def test_isolation_is_read_from_flag_and_environment() -> None:
    environment = {"WORKQUEUE_ISOLATION": "Process", "WORKQUEUE_RECYCLE_MEMORY": "2Gi"}
    assert read(*GOOD).isolation is Isolation.THREAD
    assert read(*GOOD, environment=environment).isolation is Isolation.PROCESS
    assert read(*GOOD, environment=environment).recycle_memory == 2 * 2**30
    assert read(*GOOD, "--isolation", "process", "--recycle-memory", "1024").recycle_memory == 1024


def test_flag_overrides_environment() -> None:
    environment = {
        "WORKQUEUE_QUEUE": "other",
        "WORKQUEUE_CONCURRENCY": "7",
        "WORKQUEUE_TIMEOUT_SECONDS": "60",
        "WORKQUEUE_HANDLER_EXEC": '["x"]',
    }
    config = read(*GOOD, "--concurrency", "2", environment=environment)
    assert (config.queue, config.concurrency, config.timeout_seconds) == ("q", 2, 60)
    assert config.handler == PythonHandler("thumbs:resize")
    assert config.grace_seconds == 60, "the grace follows the timeout"


def test_each_kind_of_handler_is_read_from_flag_and_environment() -> None:
    assert read("--queue", "q", "--exec", "sh", "-c", "x").handler == ExecHandler(("sh", "-c", "x"))
    assert read("--queue", "q", "--http", "http://localhost:1/x").handler == HTTPHandler(
        "http://localhost:1/x"
    )
    for variable, value, expected in (
        ("WORKQUEUE_HANDLER_PYTHON", "a.b:c.d", PythonHandler("a.b:c.d")),
        ("WORKQUEUE_HANDLER_EXEC", '["./resize", "--fast"]', ExecHandler(("./resize", "--fast"))),
        ("WORKQUEUE_HANDLER_HTTP", "https://h/", HTTPHandler("https://h/")),
    ):
        assert read("--queue", "q", environment={variable: value}).handler == expected


def test_delivery_limit_defaults_to_that_of_the_declared_queue() -> None:
    assert read(*GOOD).delivery_limit is None
    assert read(*GOOD, "--declare").delivery_limit == 10
    assert read(*GOOD, "--declare", "--queue-type", "Classic").delivery_limit is None
    assert read(*GOOD, "--delivery-limit", "3").queue_settings.delivery_limit == 3
    assert read(*GOOD, environment={"WORKQUEUE_DELIVERY_LIMIT": "3"}).delivery_limit == 3


def test_help_names_the_environment_variable_of_every_flag() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    unnamed = [
        action.dest
        for action in parser._actions
        if action.dest not in {"help", "reload"} and "[WORKQUEUE_" not in (action.help or "")
    ]

    assert unnamed == []


def test_every_environment_variable_in_the_help_is_read() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    named = set(re.findall(r"WORKQUEUE_[A-Z_]+", parser.format_help()))

    source = Path(config_module.__file__).read_text()

    assert {name for name in named if f"Variable.{Variable(name).name}" not in source} == set()


WRONG = {
    "a queue behind --exec": (
        ["--exec", "./x", "--queue", "q"],
        {},
        "--exec takes everything after it, including --queue, so put --exec last",
    ),
    "a delivery limit on a Classic queue": (
        ["a:b", "--queue-type", "Classic", "--delivery-limit", "3"],
        {},
        "A Classic queue has no delivery limit",
    ),
    "no handler": ([], {}, "Give exactly one handler"),
    "two handlers": (["a:b", "--http", "http://x"], {}, "2 are given"),
    "two handlers in the environment": (
        [],
        {"WORKQUEUE_HANDLER_PYTHON": "a:b", "WORKQUEUE_HANDLER_HTTP": "http://x"},
        "2 are given",
    ),
    "a handler without a function": (["thumbs"], {}, "MODULE:FUNCTION"),
    "a command that is no list": ([], {"WORKQUEUE_HANDLER_EXEC": "ls"}, "JSON list of strings"),
    "an empty command": ([], {"WORKQUEUE_HANDLER_EXEC": "[]"}, "JSON list of strings"),
    "a URL without a scheme": (["--http", "localhost:80"], {}, "it must be like http://"),
    "an unknown queue type": (["a:b", "--queue-type", "Stream"], {}, "Quorum or Classic"),
    "no attempts": (["a:b", "--max-attempts", "0"], {}, "--max-attempts is '0'"),
    "a delay of nothing": (["a:b"], {"WORKQUEUE_DELAYS_SECONDS": "0"}, "WORKQUEUE_DELAYS_SECONDS is '0'"),
    "delays and a backoff": (
        ["a:b", "--delays", "1", "--backoff", "factor=2"],
        {},
        "Use either --delays or --backoff, not both",
    ),
    "delays and a backoff in the environment": (
        ["a:b"],
        {"WORKQUEUE_DELAYS_SECONDS": "1", "WORKQUEUE_BACKOFF": "factor=2"},
        "Use either WORKQUEUE_DELAYS_SECONDS or WORKQUEUE_BACKOFF, not both",
    ),
    "a backoff that is no settings": (["a:b", "--backoff", "2"], {}, "initialSeconds=1,factor=2"),
    "a backoff with an unknown setting": (["a:b", "--backoff", "steps=2"], {}, "initialSeconds=1,factor=2"),
    "a backoff with a fraction": (["a:b", "--backoff", "factor=1.5"], {}, "initialSeconds=1,factor=2"),
    "a backoff that does not grow": (["a:b", "--backoff", "factor=1"], {}, "factor is from 2 to 10"),
    "a backoff above its maximum": (
        ["a:b", "--backoff", "initialSeconds=9,maxSeconds=8"],
        {},
        "maxSeconds from",
    ),
    "a backoff beyond 30 days": (["a:b", "--backoff", "maxSeconds=2592001"], {}, "to 2592000"),
    "an unknown jitter": (["a:b", "--backoff", "jitter=Some"], {}, "jitter None or Full"),
    "a delay beyond 30 days": (["a:b", "--delays", "2592001"], {}, "from 1 to 2592000"),
    "no time": (["a:b", "--timeout", "0"], {}, "above 0"),
    "a time that is no number": (["a:b", "--timeout", "nan"], {}, "from 0 to 2592000"),
    "too many slots": (["a:b", "--concurrency", "1001"], {}, "from 1 to 1000"),
    "a port that is none": (["a:b", "--port", "65536"], {}, "a port from 1 to 65535"),
    "a broker of another kind": (["a:b", "--url", "redis://x"], {}, "amqp://"),
    "a folder that is missing": (["a:b", "--binding", "/nowhere"], {}, "/nowhere cannot be read"),
    "two places": (["a:b", "--binding", "/", "--url", "amqp://x"], {}, "not both"),
    "a log format": (["a:b", "--log-format", "xml"], {}, "json or text"),
    "a truth value": (["a:b"], {"WORKQUEUE_DECLARE": "maybe"}, "true or false"),
    "an unknown isolation": (["a:b", "--isolation", "Container"], {}, "Process or Thread"),
    "a start of two hours": (["a:b", "--startup-timeout", "7200"], {}, "at most 3600"),
    "memory without a number": (
        ["a:b", "--isolation", "Process", "--recycle-memory", "Mi"],
        {},
        "a number of bytes, such as 500Mi",
    ),
    "recycling without processes": (
        ["a:b", "--recycle-messages", "5"],
        {},
        "Only the processes of a Python handler can be recycled",
    ),
    "dead letters in the queue itself": (
        ["a:b", "--queue", "q", "--dead-letter-queue", "q"],
        {},
        "The dead-letter queue is the work queue",
    ),
    "no message at all": (["a:b", "--max-messages", "0"], {}, "--max-messages is '0'"),
    "reloading a command": (["--reload", "--exec", "./x"], {}, "--reload is for Python handlers"),
    "reloading until the queue is empty": (["a:b", "--reload", "--until-empty"], {}, "until you stop it"),
    "reloading until some messages are settled": (
        ["a:b", "--reload", "--max-messages", "3"],
        {},
        "until you stop it",
    ),
    "a name that is no text": (["a:b", "--queue", os.fsdecode(b"\xff")], {}, "is not UTF-8"),
    "an exchange that is no text": (["a:b", "--exchange", os.fsdecode(b"\xff")], {}, "is not UTF-8"),
    "a limit with a long name": (
        ["a:b", "--limit-queue", "q" * 256],
        {},
        "--limit-queue is longer than 255 bytes",
    ),
    "a URL with a space": (
        ["--http", "http://localhost:8080/a b"],
        {},
        "write characters in it that are not ASCII",
    ),
    "a URL with an umlaut": (["--http", "http://localhost:8080/jöbs"], {}, "write characters in it"),
    "a name that is too long": (["a:b", "--queue", "ä" * 128], {}, "longer than 230 bytes"),
}


@pytest.mark.parametrize(("flags", "environment", "expected"), WRONG.values(), ids=WRONG)
def test_each_mistake_gets_one_sentence(flags: list[str], environment: dict[str, str], expected: str) -> None:
    words = flags if "--queue" in flags else [*flags, "--queue", "q"]
    found = mistakes(*words, environment=environment)
    assert len(found) >= 1
    assert any(expected in sentence for sentence in found)


@pytest.mark.parametrize(
    ("flags", "environment", "delays"),
    [
        (["--backoff", "maxSeconds=4"], {"WORKQUEUE_DELAYS_SECONDS": "7"}, (1, 2, 4)),
        (["--delays", "7"], {"WORKQUEUE_BACKOFF": "maxSeconds=4"}, (7,)),
        ([], {"WORKQUEUE_BACKOFF": "initialSeconds=3, maxSeconds=4, factor=3"}, (3, 4)),
    ],
    ids=["backoff-flag-over-delays", "delays-flag-over-backoff", "backoff-in-the-environment"],
)
def test_delays_come_from_delays_or_backoff(
    flags: list[str], environment: dict[str, str], delays: tuple[int, ...]
) -> None:
    config = read(*GOOD, *flags, environment=environment)

    assert config.retry.delays_seconds == delays


def test_all_mistakes_are_reported_together() -> None:
    assert len(mistakes("a", "--concurrency", "x", "--timeout", "y")) == 4


def test_folder_of_the_binding_does_not_follow_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "uri").write_text("amqp://u:p@broker/v")
    monkeypatch.chdir(tmp_path)
    config = read(*GOOD, "--binding", "secret")

    monkeypatch.chdir("/")

    assert config.read_binding().virtual_host == "v"


@pytest.mark.parametrize("kind", [b"RabbitMQ", b"\xff"], ids=["capitals", "bytes"])
def test_type_of_a_service_binding_may_be_anything(kind: bytes, tmp_path: Path) -> None:
    for name, content in (("broker", b"rabbitmq"), ("other", kind)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_bytes(content)
        (tmp_path / name / "uri").write_text("amqp://u:p@broker/v")

    if kind == b"RabbitMQ":
        assert (
            "2 RabbitMQ bindings" in mistakes(*GOOD, environment={"SERVICE_BINDING_ROOT": str(tmp_path)})[0]
        )
    else:
        config = read(*GOOD, environment={"SERVICE_BINDING_ROOT": str(tmp_path)})
        assert config.read_binding().virtual_host == "v"


def test_service_binding_is_found_by_its_type(tmp_path: Path) -> None:
    for name, kind in (("db", "postgresql"), ("broker", "rabbitmq")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(f"{kind}\n")
        (tmp_path / name / "uri").write_text("amqp://u:p@broker/v")
    config = read(*GOOD, environment={"SERVICE_BINDING_ROOT": str(tmp_path)})
    assert config.read_binding().virtual_host == "v"
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "type").write_text("rabbitmq")
    (said,) = mistakes(*GOOD, environment={"SERVICE_BINDING_ROOT": str(tmp_path)})
    assert "2 RabbitMQ bindings" in said
