"""Which message a basic.return is about, when RabbitMQ confirms several messages with one frame."""

from types import SimpleNamespace

import pytest
from pika import BasicProperties, frame, spec

from workqueue_worker.binding import from_url
from workqueue_worker.broker.outgoing import Outgoing
from workqueue_worker.broker.publisher import Publisher
from workqueue_worker.errors import Returned

PAIRS = {
    "another-queue": (Outgoing("jobs", b"", message_id="m"), Outgoing("deleted", b"", message_id="m")),
    "another-exchange": (
        Outgoing("jobs", b"", exchange="a", message_id="m"),
        Outgoing("jobs", b"", exchange="b", message_id="m"),
    ),
    "another-id": (Outgoing("jobs", b"", message_id="m"), Outgoing("jobs", b"", message_id="n")),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_return_fails_the_message_that_was_returned(pair):
    publisher = Publisher(lambda: from_url("amqp://127.0.0.1:1"), "test")
    connection = SimpleNamespace(
        params=SimpleNamespace(frame_max=131072),
        add_on_connection_unblocked_callback=lambda _callback: None,
        _output_marshaled_frames=lambda _frames: None,
    )
    publisher._use_channel(SimpleNamespace(is_open=True, channel_number=1, connection=connection))
    futures = [publisher.publish(outgoing) for outgoing in pair]
    publisher.connection.loop.turn(0)
    publisher.connection.loop.close()
    lost = pair[1]

    publisher._on_return(
        None,
        spec.Basic.Return(312, "NO_ROUTE", lost.exchange, lost.routing_key),
        BasicProperties(message_id=lost.message_id),
        b"",
    )
    publisher._on_confirm(frame.Method(1, spec.Basic.Ack(2, multiple=True)))

    assert futures[0].result(0) is None
    with pytest.raises(Returned, match="312 NO_ROUTE"):
        futures[1].result(0)
