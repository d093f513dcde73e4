"""The depths that the page remembers."""

from __future__ import annotations

import tracemalloc

from workqueue_web import history as history_module
from workqueue_web.history import BYTES_PER_WORKQUEUE, SAMPLES, History


def test_page_memory_stays_below_documented_bound() -> None:
    history, count = History(), 200
    uids = [f"uid-{number}" for number in range(count)]
    tracemalloc.start()
    try:
        for round_ in range(SAMPLES + 10):
            history.record((uid, round_) for uid in uids)
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    # Threads of other tests allocate at the same time.
    own = snapshot.filter_traces(
        [tracemalloc.Filter(inclusive=True, filename_pattern=history_module.__file__)]
    )
    used = sum(trace.size for trace in own.traces)
    assert BYTES_PER_WORKQUEUE / 2 < used / count < BYTES_PER_WORKQUEUE
    assert len(history.depths("uid-1")) == SAMPLES
    history.record([])
    assert history.depths("uid-1") == []
