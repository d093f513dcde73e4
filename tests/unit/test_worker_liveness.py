"""The endpoint: where it listens, and that /livez fails only when a restart helps."""

from __future__ import annotations

import errno
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tests.support.wait import eventually
from workqueue.worker.endpoint import Endpoint
from workqueue.worker.endpoint_port import EndpointPort, listen
from workqueue.worker.runtime import Runtime

CASES = {
    "its loops turn": (0.1, 2, 0, None),
    "a loop has not turned for half a minute": (31.0, 2, 0, "an I/O loop has not turned for 31 s"),
    "some handlers ignore their cancellation": (0.1, 2, 1, None),
    "all handlers ignore their cancellation": (
        0.1,
        2,
        2,
        "every slot is held by a handler that ignores its cancellation",
    ),
}


@pytest.mark.parametrize(("age", "slots", "stuck", "expected"), CASES.values(), ids=CASES)
def test_livez_fails_only_when_a_restart_helps(
    age: float, slots: int, stuck: int, expected: str | None
) -> None:
    with listen(0, any_port_will_do=True) as listener:
        made = Endpoint(runtime(age, slots, stuck), listener)
        assert made.dead_because() == expected


def runtime(age: float = 0.1, slots: int = 1, stuck: int = 0) -> Runtime:
    return SimpleNamespace(  # type: ignore[return-value]
        tick_age=age,
        consumer=SimpleNamespace(slots=[object()] * slots, slot_count=slots),
        deliveries=SimpleNamespace(stuck=stuck),
        config=SimpleNamespace(pod_uid=None),
    )


@contextmanager
def endpoint(port: int = 0) -> Iterator[EndpointPort]:
    made = EndpointPort(runtime(), port, any_port_will_do=not port)
    made.start()
    yield made
    made.close()


def get(host: str, port: int) -> int:
    with urllib.request.urlopen(f"http://{host}:{port}/livez", timeout=20) as answer:
        code: int = answer.status
        return code


def test_endpoint_responds_over_ipv4_and_ipv6() -> None:
    with endpoint() as made:
        assert get("127.0.0.1", made.port) == 200
        assert get("[::1]", made.port) == 200


def test_endpoint_responds_over_ipv4_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.socket.__init__

    def create_ipv4(self: socket.socket, family: int = -1, *rest: object, **named: object) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        create(self, family, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "__init__", create_ipv4)
    with endpoint() as made:
        assert get("127.0.0.1", made.port) == 200


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_port_in_use_in_either_family_is_an_error(family: socket.AddressFamily) -> None:
    with socket.socket(family) as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"), endpoint(port=taken.getsockname()[1]):
            pass


def test_endpoint_without_a_request_can_be_closed() -> None:
    with endpoint():
        pass

    eventually(lambda: all(thread.name != "endpoint" for thread in threading.enumerate()))
