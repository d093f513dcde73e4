"""Options of the publishers that are wrong: the caller learns it before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from workqueue import Publisher

URL = "amqp://localhost"

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "queue that is a number": ({"queue": 7}, TypeError, "queue is of the type int; it must be text"),
    "queue that is a path": ({"queue": Path("jobs")}, TypeError, "queue is of the type PosixPath"),
    "id that is a UUID": (
        {"queue": "jobs", "message_id": UUID(int=7)},
        TypeError,
        "message_id is of the type UUID; it must be text",
    ),
    "priority that is text": ({"queue": "jobs", "priority": "5"}, TypeError, "it must be a whole number"),
    "priority that is a fraction": (
        {"queue": "jobs", "priority": 1.5},
        TypeError,
        "it must be a whole number",
    ),
    "delay that is text": ({"queue": "jobs", "delay": "5"}, TypeError, "delay is of the type str"),
    "expiry that is nothing": (
        {"queue": "jobs", "expires": None},
        TypeError,
        "expires is of the type NoneType",
    ),
    "headers that are a list": ({"queue": "jobs", "headers": [("a", 1)]}, TypeError, "it must be a mapping"),
    "delayed message to a queue with a long name": (
        {"queue": "q" * 250, "delay": 5},
        ValueError,
        "has 250 bytes; a work queue's has at most 230",
    ),
}


@pytest.mark.parametrize(("options", "kind", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_option_is_named(options: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        Publisher(URL).publish("x", **options)


@pytest.mark.parametrize("queue", ["q" * 250, 7], ids=["long name", "number"])
def test_cancel_in_a_queue_that_cannot_exist_is_refused(queue: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="queue"):
        Publisher(URL).cancel("id", queue=queue)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), "5", None])
def test_timeout_that_is_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="timeout_seconds"):
        Publisher(URL, timeout_seconds=seconds)


def test_folder_of_the_binding_does_not_follow_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "uri").write_text("amqp://u:p@broker/v")
    monkeypatch.chdir(tmp_path)
    publisher = Publisher(binding="secret")

    monkeypatch.chdir("/")

    assert publisher._source().virtual_host == "v"
