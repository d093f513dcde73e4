"""Whether two connections lead to the same broker, when one of them does not answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker.connection import Broker, QueueMissingError
from workqueue_operator.errors import ReconcileError


class OneOfTwo(Broker):
    """A connected broker with a common cluster name, whose answer about an exclusive queue is given."""

    def __init__(self, display: str, answer: Exception | None = None) -> None:
        self.binding: Any = SimpleNamespace(display=display, virtual_host="/")
        self.cluster = "rabbit@rabbitmq-0"
        self._declarations = None
        self._answer = answer

    @property
    def connected(self) -> bool:
        return True

    async def _call(self, *_: Any) -> None: ...  # type: ignore[override]

    async def delete_queue(self, queue: str, **_: Any) -> None: ...

    async def counts(self, queue: str, **_: Any) -> Any:
        if self._answer is not None:
            raise self._answer
        return None


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        (QueueMissingError("queue"), False),
        (ReconcileError(Reason.QUEUE_REFUSED, "405 RESOURCE_LOCKED"), True),
        (ReconcileError(Reason.PERMISSION_DENIED, "403 ACCESS_REFUSED"), True),
        (ReconcileError(Reason.BROKER_TIMEOUT, "no answer within 2 s"), None),
        (ReconcileError(Reason.BROKER_UNREACHABLE, "the connection is closed"), None),
    ],
)
async def test_no_answer_does_not_make_two_brokers_one(answer: Exception, same: bool | None) -> None:
    assert await OneOfTwo("a").is_same_as(OneOfTwo("b", answer), "jobs") is same
