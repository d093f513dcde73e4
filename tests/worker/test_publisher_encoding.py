"""The frames that we encode equal those of pika, byte for byte."""

import struct
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, frame, spec
from pika.compat import long

from workqueue.amqp.field_table import properties, table
from workqueue.amqp.outgoing import Outgoing

short_text = st.text(alphabet=st.characters(codec="utf-8"), max_size=60)
header_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | short_text
    | st.binary(max_size=20)
    | st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
    | st.integers(-(2**31), 2**31 - 1).map(lambda digits: Decimal(digits).scaleb(-3)),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(short_text, values, max_size=3),
    max_leaves=5,
)

outgoings = st.builds(
    Outgoing,
    routing_key=short_text,
    body=st.binary(max_size=300),
    exchange=short_text,
    headers=st.none() | st.dictionaries(short_text, header_values, max_size=4),
    content_type=st.none() | short_text,
    content_encoding=st.none() | short_text,
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | short_text,
    reply_to=st.none() | short_text,
    expiration=st.none() | short_text,
    timestamp=st.none() | st.integers(0, 2**40),
    type=st.none() | short_text,
    user_id=st.none() | short_text,
    app_id=st.none() | short_text,
    persistent=st.booleans(),
)


@given(
    outgoing=outgoings,
    channel=st.integers(1, 65535),
    frame_max=st.integers(16, 200),
    message_id=short_text,
    now=st.integers(0, 2**40),
)
def test_encoded_frames_equal_those_of_pika(outgoing, channel, frame_max, message_id, now):
    properties = BasicProperties(
        content_type=outgoing.content_type,
        content_encoding=outgoing.content_encoding,
        headers=outgoing.headers,
        delivery_mode=2 if outgoing.persistent else 1,
        priority=outgoing.priority,
        correlation_id=outgoing.correlation_id,
        reply_to=outgoing.reply_to,
        expiration=outgoing.expiration,
        message_id=message_id,
        timestamp=now if outgoing.timestamp is None else outgoing.timestamp,
        type=outgoing.type,
        user_id=outgoing.user_id,
        app_id=outgoing.app_id,
    )
    publish = spec.Basic.Publish(exchange=outgoing.exchange, routing_key=outgoing.routing_key, mandatory=True)
    body, most = outgoing.body, frame_max - 8
    expected = [
        frame.Method(channel, publish).marshal(),
        frame.Header(channel, len(body), properties).marshal(),
        *(frame.Body(channel, body[at : at + most]).marshal() for at in range(0, len(body), most)),
    ]
    if len(expected[1]) > frame_max:  # RabbitMQ would close the connection
        with pytest.raises(ValueError, match="a frame has room for"):
            outgoing.encode(channel, frame_max, message_id, now)
    else:
        assert outgoing.encode(channel, frame_max, message_id, now) == b"".join(expected)


@given(outgoing=outgoings, message_id=short_text)
def test_received_properties_are_decoded_like_pika(outgoing, message_id):
    raw = outgoing._asdict() | {"message_id": message_id, "timestamp": outgoing.timestamp or 0}
    given = BasicProperties(**{name: value for name, value in raw.items() if name in vars(BasicProperties())})
    encoded = b"".join(given.encode())

    assert properties(encoded) == BasicProperties().decode(encoded)


def test_continued_property_flags_are_decoded_like_pika():
    encoded = struct.pack(">HH", 0xA001, 0) + b"\x01t" + table({"a": 1})

    assert properties(encoded) == BasicProperties().decode(encoded)
    assert properties(encoded).headers == {"a": 1}


def read(headers):
    """The headers of a message without other properties."""
    return properties(struct.pack(">H", BasicProperties.FLAG_HEADERS) + headers).headers


@given(value=st.floats(allow_nan=False))
def test_floating_point_number_survives_round_trip(value):
    assert read(table({"a": value, "b": [value]})) == {"a": value, "b": [value]}


def test_long_number_stays_long_and_non_text_string_stays_bytes():
    assert table({"a": long(1)}) == struct.pack(">I2scq", 11, b"\x01a", b"l", 1)
    outgoing = Outgoing("q", b"", correlation_id=b"\xff")
    assert b"\x01\xff" in outgoing.encode(1, 4096, "m", 0)


UNENCODABLE = [
    ("a type that AMQP does not have", {"a": object()}, TypeError),
    ("one deep inside", {"a": [{"b": {1, 2}}]}, TypeError),
    ("a number beyond 64 bits", {"a": 2**63}, struct.error),
    ("a name that is too long", {"a" * 256: 1}, ValueError),
]


@pytest.mark.parametrize(
    ("headers", "error"), [row[1:] for row in UNENCODABLE], ids=[row[0] for row in UNENCODABLE]
)
def test_unencodable_headers_are_refused(headers, error):
    with pytest.raises(error):
        table(headers)


def test_single_precision_number_is_decoded():
    assert read(struct.pack(">I2scf", 7, b"\x01a", b"f", 0.5)) == {"a": 0.5}
