"""Frames for a channel that is not open."""

from __future__ import annotations

from typing import Any

import pytest
from pika import frame, spec

from workqueue.amqp.frame_limits import BoundedFrames


class Connection(BoundedFrames):
    """One without channels, which tells why it was broken off."""

    def __init__(self) -> None:
        self._channels: dict[int, Any] = {}
        self.reasons: list[str] = []

    def _terminate_stream(self, error: Exception) -> None:
        self.reasons.append(str(error))


def test_second_close_of_a_channel_does_not_cost_the_connection() -> None:
    connection = Connection()
    connection._deliver_frame_to_channel(frame.Method(1, spec.Channel.Close(406, "timed out", 0, 0)))
    assert connection.reasons == []


@pytest.mark.parametrize(
    "nonsense",
    [frame.Body(7, b"x"), frame.Method(7, spec.Basic.Deliver("tag", 1, False, "", "jobs"))],
    ids=["body", "delivery"],
)
def test_other_frames_for_no_channel_end_the_connection(nonsense: frame.Frame) -> None:
    connection = Connection()
    connection._deliver_frame_to_channel(nonsense)
    assert connection.reasons == ["a frame came for channel 7, which is not open"]
