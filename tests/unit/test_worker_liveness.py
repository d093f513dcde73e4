"""When a worker asks to be restarted: only when a restart would help."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workqueue_worker.endpoint import Endpoint

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


@pytest.mark.parametrize(("age", "slots", "stuck", "expected"), CASES.values(), ids=CASES.keys())
def test_a_worker_is_dead_when(age: float, slots: int, stuck: int, expected: str | None) -> None:
    runtime = SimpleNamespace(
        tick_age=age,
        slots=[object()] * slots,
        slot_count=slots,
        stuck=stuck,
        config=SimpleNamespace(pod_uid=None),
    )
    endpoint = Endpoint(runtime, 0, any_port_will_do=True)  # type: ignore[arg-type]
    try:
        assert endpoint.dead_because() == expected
    finally:
        endpoint._server.server_close()
