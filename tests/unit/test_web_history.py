"""The depths that the page remembers."""

from __future__ import annotations

import tracemalloc

from workqueue_web.history import BYTES_PER_WORKQUEUE, SAMPLES, History


def test_page_memory_stays_below_documented_bound() -> None:
    history, count = History(), 200
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        uids = [f"uid-{number}" for number in range(count)]
        for round_ in range(SAMPLES + 10):
            history.record((uid, round_) for uid in uids)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / count < BYTES_PER_WORKQUEUE
    assert len(history.depths("uid-1")) == SAMPLES
    history.record([])
    assert history.depths("uid-1") == []
