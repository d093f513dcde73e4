"""Orders of frames that a real RabbitMQ does not send on demand: returns, and nacks on a closing channel."""

import threading
import time
from decimal import Decimal
from types import SimpleNamespace

import pytest
from pika import BasicProperties, frame, spec
from pika.exceptions import ChannelClosedByClient

from workqueue.amqp.errors import NotSent, Refused, Returned, Unencodable
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract.binding import from_url

PAIRS = {
    "another-queue": (Outgoing("jobs", b"", message_id="m"), Outgoing("deleted", b"", message_id="m")),
    "another-exchange": (
        Outgoing("jobs", b"", exchange="a", message_id="m"),
        Outgoing("jobs", b"", exchange="b", message_id="m"),
    ),
    "another-id": (Outgoing("jobs", b"", message_id="m"), Outgoing("jobs", b"", message_id="n")),
}


def publisher_on(channel, **options):
    """A publisher whose I/O loop is turned by the test."""
    publisher = PublishPipeline(lambda: from_url("amqp://127.0.0.1:1"), "test", **options)
    channel.channel_number = 1
    channel.is_open = True
    channel.connection = SimpleNamespace(
        params=SimpleNamespace(frame_max=131072),
        add_on_connection_unblocked_callback=lambda _callback: None,
        _output_marshaled_frames=lambda _frames: None,
    )
    publisher._use_channel(channel)
    return publisher


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_returned_message_fails(pair):
    publisher = publisher_on(SimpleNamespace())
    futures = [publisher.publish(outgoing) for outgoing in pair]
    publisher.connection.loop.run_once(0)
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


def test_refusal_on_closing_channel_is_left_to_the_close():
    """A channel that refuses is replaced; a late one is closed, and must be replaced when that is confirmed."""
    channel = SimpleNamespace(close=lambda: setattr(channel, "is_open", False))
    publisher = publisher_on(channel, timeout_seconds=0.0)
    future = publisher.publish(Outgoing("jobs", b""))
    publisher.connection.loop.run_once(0)
    publisher._channel_since -= 60

    publisher._check_time()
    assert not channel.is_open
    publisher._on_confirm(frame.Method(1, spec.Basic.Nack(1)))
    assert isinstance(future.exception(0), Refused)
    assert publisher._channel is channel
    publisher._on_channel_closed(channel, ChannelClosedByClient(0, "Normal shutdown"))

    assert publisher._channel is None
    assert not publisher._late
    publisher.connection.loop.close()


ENDLESS: dict[str, object] = {}
ENDLESS["itself"] = ENDLESS

UNENCODABLE = {
    "queue-that-is-no-text": Outgoing(7, b""),
    "header-that-is-no-number": Outgoing("jobs", b"", headers={"a": Decimal("NaN")}),
    "header-that-contains-itself": Outgoing("jobs", b"", headers=ENDLESS),
}


@pytest.mark.parametrize("outgoing", UNENCODABLE.values(), ids=UNENCODABLE)
def test_message_that_cannot_be_encoded_fails_and_costs_no_other(outgoing):
    publisher = publisher_on(SimpleNamespace())
    futures = [publisher.publish(one) for one in (Outgoing("jobs", b""), outgoing, Outgoing("jobs", b""))]
    publisher.connection.loop.run_once(0)
    publisher.connection.loop.close()

    publisher._on_confirm(frame.Method(1, spec.Basic.Ack(2, multiple=True)))

    assert futures[0].result(0) is None
    assert isinstance(futures[1].exception(0), Unencodable)
    assert futures[2].result(0) is None


def test_interrupted_thread_does_not_keep_the_others_waiting_at_the_end():
    publisher = PublishPipeline(lambda: from_url("amqp://127.0.0.1:1"), "test").start()
    errors = []

    def publish():
        try:
            publisher.publish_and_wait(Outgoing("jobs", b""))
        except NotSent as error:
            errors.append(error)

    # An interrupted thread no longer waits for its lock.
    gone = threading.Lock()
    gone.acquire()
    publisher.publish_then(Outgoing("jobs", b""), lambda _error: publisher._answered.append(gone))
    threads = [threading.Thread(target=publish, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while publisher.pending < 4 and time.monotonic() < deadline:
        time.sleep(0.01)

    publisher.close(0)
    for thread in threads:
        thread.join(10)

    assert len(errors) == 3


@pytest.mark.parametrize("part", ["call", "wake"])
def test_interrupted_publish_does_not_keep_later_messages_unsent(part, monkeypatch):
    publisher = publisher_on(SimpleNamespace())
    loop = publisher.connection.loop

    class Interrupted:
        def send(self, _data):
            raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        if part == "call":
            interrupted.setattr(publisher.connection, "call", lambda _: Interrupted().send(b""))
        else:
            interrupted.setattr(loop, "_alarm_sender", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            publisher.publish(Outgoing("jobs", b""))
    publisher.publish(Outgoing("jobs", b""))
    loop.run_once(0)

    assert len(publisher._unconfirmed) == 2
    publisher.publish(Outgoing("jobs", b""))
    assert loop._woken
    loop.run_once(0)
    assert not loop._woken
    loop.close()
