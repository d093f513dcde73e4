"""Which autoscaler scales a Deployment: one LIST per namespace for all that ask."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.clock import FakeClock
from workqueue_operator.errors import ClusterError
from workqueue_operator.workers.autoscalers import Autoscalers


class Silent:
    """An API server that answers no LIST."""

    def __init__(self, clock: FakeClock) -> None:
        self.asked = 0
        self._clock = clock

    async def get(self, _: str, **__: str) -> dict[str, Any]:
        self.asked += 1
        await self._clock.sleep(8.0)
        raise ClusterError(0, "the API server did not answer")


async def test_workqueues_that_wait_for_one_list_share_its_error() -> None:
    """Hundreds would otherwise wait for one timeout after the other, and their passes count as stuck."""
    clock = FakeClock()
    server: Any = Silent(clock)
    autoscalers = Autoscalers(server, clock)
    asking = [asyncio.create_task(autoscalers.of("team", f"workers-{number}")) for number in range(40)]
    await clock.advance(10)

    assert {type(error) for error in await asyncio.gather(*asking, return_exceptions=True)} == {ClusterError}
    assert server.asked == 1

    later = asyncio.create_task(autoscalers.of("team", "workers-0"))
    await clock.advance(10)
    await asyncio.gather(later, return_exceptions=True)
    assert server.asked == 2
