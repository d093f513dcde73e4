"""A message of the operator's own whose publishing is given up, such as during a memory alarm of RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pika.exceptions import NoFreeChannels

from tests.support.wait import until
from workqueue_operator.broker.channel import ChannelLostError
from workqueue_operator.broker.confirmed import OwnMessage, publish
from workqueue_operator.broker.token_publisher import TokenPublisher

TOKEN = OwnMessage("jobs.limit.handlers", "token", b"", None, {})


class FakeChannel:
    """A channel that opens, and selects confirms, when the test says so."""

    def __init__(self, on_open: Callable[[Any], None]) -> None:
        self.on_open = on_open
        self.on_selected: Callable[[Any], None] | None = None
        self.is_open = self.is_closing = self.is_closed = False
        self.closes = self.published = 0

    def add_on_close_callback(self, _callback: Any) -> None: ...

    def add_on_return_callback(self, _callback: Any) -> None: ...

    def confirm_delivery(self, _on_confirm: Any, callback: Callable[[Any], None]) -> None:
        self.on_selected = callback

    def basic_publish(self, *_: Any, **__: Any) -> None:
        self.published += 1

    def close(self) -> None:
        self.closes += 1
        self.is_open = False
        self.is_closing = True

    def open(self) -> None:
        self.is_open = True
        self.on_open(self)


class FakeConnection:
    params = SimpleNamespace(frame_max=131_072)
    has_channels = True

    def channel(self, on_open_callback: Callable[[Any], None]) -> FakeChannel:
        if not self.has_channels:
            raise NoFreeChannels
        self.opened = FakeChannel(on_open_callback)
        return self.opened


@pytest.mark.parametrize("is_open", [False, True], ids=["before its channel opens", "before confirms"])
async def test_message_given_up_is_not_published_later(is_open: bool) -> None:
    connection: Any = FakeConnection()
    publishing = asyncio.create_task(publish(connection, TOKEN))
    await asyncio.sleep(0)
    channel = connection.opened
    if is_open:
        channel.open()

    publishing.cancel()
    await asyncio.wait([publishing])
    if not is_open:
        channel.open()
    if channel.on_selected is not None:
        channel.on_selected(None)

    assert (channel.published, channel.closes) == (0, 1)


async def test_tokens_are_published_after_no_channel_was_free() -> None:
    """Messages without a confirm, such as to a queue without a majority, may keep all channels."""
    connection: Any = FakeConnection()
    tokens = TokenPublisher(connection)
    connection.has_channels = False
    with pytest.raises(ChannelLostError, match="no free channel"):
        await tokens.publish("jobs.limit.starts", b"1", 1)
    connection.has_channels = True

    publishing = asyncio.create_task(tokens.publish("jobs.limit.starts", b"1", 1))
    await asyncio.sleep(0)
    connection.opened.open()
    connection.opened.on_selected(None)
    await until(lambda: connection.opened.published == 1)

    publishing.cancel()
