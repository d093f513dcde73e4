"""The recording of a demo run, and the moving picture that is drawn from it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from hack.demo import animation, recording
from hack.demo.board import Row
from hack.demo.recording import Recorder, Recording, Sample
from hack.demo.watch import Workers

SVG = "{http://www.w3.org/2000/svg}"
LARGEST_BYTES = 100_000


def run(*waiting: int | None) -> Recording:
    """A run with one sample per second."""
    workers = Workers(desired=2, existing=2, ready=2, busy=1)
    return Recording(
        "3 jobs & more", [Sample(float(n), Row(count, workers, 0)) for n, count in enumerate(waiting)]
    )


def test_recorder_keeps_changed_rows_with_their_time() -> None:
    times = iter((5.0, 5.0, 6.5))
    recorder = Recorder(lambda: next(times))
    idle, asked = Row(0, Workers(), 0), Row(1, Workers(desired=1), 0)

    for row in (idle, idle, asked, asked):
        recorder.note(row)

    assert recorder.samples == [Sample(0.0, idle), Sample(1.5, asked)]


def test_recording_is_read_as_written(tmp_path: Path) -> None:
    file = tmp_path / "recording.json"
    made = run(0, None, 3)
    recording.write(file, made)
    assert recording.read(file) == made


def test_picture_is_small_well_formed_and_moves_without_scripts() -> None:
    drawn = animation.svg(run(*range(400, -1, -1)))
    assert len(drawn.encode()) < LARGEST_BYTES
    assert {element.tag for element in ET.fromstring(drawn).iter()}.isdisjoint(
        {f"{SVG}script", f"{SVG}image"}
    )
    assert "animation:" in drawn


@pytest.mark.parametrize("preference", ["prefers-color-scheme: dark", "prefers-reduced-motion: reduce"])
def test_picture_follows_the_readers_preference(preference: str) -> None:
    assert f"@media ({preference})" in animation.svg(run(1, 0))


def test_counters_end_with_the_last_sample() -> None:
    drawn = ET.fromstring(animation.svg(run(0, 3, 1)))
    (last,) = drawn.findall(f"{SVG}g[@class='last']")
    assert [text.text for text in last] == ["1", "2", "0", "2.0"]


def test_unknown_count_is_a_question_mark_and_a_gap() -> None:
    drawn = animation.svg(run(3, None, 2, 0))
    assert ">?<" in drawn
    assert drawn.count('class="backlog"') == 2


@pytest.mark.parametrize(
    ("workers", "states"),
    [
        pytest.param(Workers(), "none none none", id="no worker"),
        pytest.param(Workers(desired=2), "changing changing none", id="asked for, no pod yet"),
        pytest.param(Workers(3, 3, 2, 1), "busy idle changing", id="busy, idle, starting"),
        pytest.param(Workers(0, 2, 0, 0), "changing changing none", id="stopping"),
        pytest.param(Workers(1, 1, 1, 3), "busy none none", id="the count of busy ones is older"),
    ],
)
def test_place_of_a_pod_shows_its_state(workers: Workers, states: str) -> None:
    drawn = animation.svg(Recording("", [Sample(0, Row(0, Workers(3), 0)), Sample(1, Row(0, workers, 0))]))
    last = [re.findall(r"var\(--(\w+)\)", line)[-1] for line in re.findall(r"@keyframes pod.*", drawn)]
    assert last == states.split()


@pytest.mark.parametrize("waiting", [(), (1,)], ids=["empty", "one-moment"])
def test_recording_without_duration_is_refused(waiting: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two samples"):
        animation.svg(run(*waiting))
