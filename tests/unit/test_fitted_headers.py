"""The headers of a copy that must fit into one frame, and which are dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workqueue.amqp import field_table
from workqueue.contract import headers
from workqueue.worker.settlement import LEAST_ROOM, ROOM, fitted

OURS = {
    headers.ATTEMPT: 3,
    headers.FAILURE_REASON: "Exception",
    headers.FAILURE_MESSAGE: "m" * 2_000,
    headers.FAILURE_TRACEBACK: "t" * 4_000,
}


def size(kept: dict[str, object]) -> int:
    return len(field_table.table(kept))


def test_headers_that_fit_are_unchanged() -> None:
    assert fitted(OURS | {"a": "b"}, ROOM) == OURS | {"a": "b"}


def test_traceback_is_dropped_first_then_the_largest() -> None:
    kept = fitted(OURS | {"small": "s", "large": "l" * 5_000}, 9_000)
    assert kept.keys() == OURS.keys() - {headers.FAILURE_TRACEBACK} | {"small", "large", headers.DROPPED}
    kept = fitted(OURS | {"small": "s", "large": "l" * 5_000}, 4_000)
    assert kept.keys() == OURS.keys() - {headers.FAILURE_TRACEBACK} | {"small", headers.DROPPED}
    assert kept[headers.DROPPED] == f"{headers.FAILURE_TRACEBACK}, large"


def test_header_without_encoding_is_dropped_and_named() -> None:
    kept = fitted({"object": object(), "number": 2**80, "a": 1}, ROOM)
    assert kept == {"a": 1, headers.DROPPED: "object, number"}


def test_name_of_a_header_without_encoding_has_room() -> None:
    wanted = {"number": 2**63, "a": "a" * 2_000, "b": "b" * 500}
    room = field_table.size("a", wanted["a"]) + field_table.size("b", wanted["b"])  # type: ignore[operator]
    kept = fitted(wanted, room)
    assert kept.keys() == {"b", headers.DROPPED}
    assert size(kept) <= room + 4


def test_names_of_earlier_dropped_headers_are_kept() -> None:
    assert fitted({headers.DROPPED: "first", "second": object()}, ROOM) == {headers.DROPPED: "first, second"}


@given(
    st.dictionaries(
        st.text(max_size=20), st.text(max_size=3_000) | st.binary(max_size=3_000) | st.integers()
    ),
    st.integers(LEAST_ROOM, 20_000),
)
def test_headers_always_fit_and_keep_the_attempt(wanted: dict[str, object], room: int) -> None:
    kept = fitted(wanted | OURS, room)
    assert kept[headers.ATTEMPT] == 3
    assert size(kept) <= room + 4
