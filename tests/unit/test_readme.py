"""What the README shows runs, and its figures are those in docs/benchmarks."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import yaml

from hack.bench.report import read, results_file
from workqueue.testing import Ack, DeadLetter, run
from workqueue_operator.api.workqueue import WorkQueue

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The only block of the README in this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return str(found)


def results(name: str) -> Any:
    return read(results_file(ROOT / "docs/benchmarks", name))


def row(beginning: str) -> str:
    """The row of the table of figures that begins like this."""
    (found,) = re.findall(rf"^\| {re.escape(beginning)}.*$", README, re.MULTILINE)
    return str(found)


def raw(beginning: str) -> Any:
    (found,) = [one["raw"] for one in results("operator")["rows"] if one["figure"].startswith(beginning)]
    return found


def async_rate() -> float:
    samples = results("worker")["worker"][0]["runs"]["ours, async"]
    return statistics.median(sample["rate"] for sample in samples)


def test_readme_fits_on_a_screen_or_three() -> None:
    assert len(README.splitlines()) < 130


def test_workqueue_of_the_readme_has_11_lines_and_runs_its_handler() -> None:
    made = WorkQueue.model_validate(yaml.safe_load(block("yaml")))

    assert len(block("yaml").splitlines()) == 11
    assert made.spec.worker is not None
    assert made.spec.worker.handler.python == f"{made.metadata.name}:resize"


@pytest.fixture
def handler() -> Any:
    module = ModuleType("thumbs")
    exec(compile(block("python"), "thumbs.py", "exec"), module.__dict__)
    return module.resize


def test_handler_of_the_readme_has_5_lines_and_runs(handler: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([line for line in block("python").splitlines() if line]) == 5
    assert run(handler, {"picture": 7, "width": 200}) == Ack()
    assert capsys.readouterr().out == "Resizing 7 to 200 pixels.\n"


def test_body_that_is_not_json_becomes_a_dead_letter_as_the_readme_says(handler: Any) -> None:
    assert isinstance(run(handler, b"no JSON"), DeadLetter)


def test_two_commands_of_the_readme_are_a_run_and_the_tests() -> None:
    section = README.partition("## Two commands\n")[2].partition("\n## ")[0]
    assert re.findall(r"^ {4}(make \w+)", section, re.MULTILINE) == ["make demo", "make test"]


@pytest.mark.parametrize(
    ("beginning", "figure"),
    [
        pytest.param(
            "One message at 0 workers",
            lambda: f"{1000 * statistics.median(raw('wake, 1 WorkQueue:')['seconds']):.0f} ms",
            id="wake",
        ),
        pytest.param(
            "Backlog for 20 workers",
            lambda: (
                "1 write"
                if {len(one["writes"]) for one in raw("backlog at 0 replicas that needs 20,")["samples"]}
                == {1}
                else "writes"
            ),
            id="backlog",
        ),
        pytest.param(
            "Busy workers stopped",
            lambda: " | ".join(
                str(results("simulation")["compared"]["diurnal"][name]["interrupted"])
                for name in ("workqueue-operator", "KEDA, defaults")
            ),
            id="interrupted",
        ),
        pytest.param(
            "1,000 idle queues",
            lambda: f"{raw('at rest, 1,000 WorkQueues,')['resident_mib']:.0f} MiB",
            id="memory",
        ),
        pytest.param(
            "Messages per second",
            lambda: f"{async_rate():,.0f} (async)",
            id="rate",
        ),
    ],
)
def test_figure_of_the_readme_is_the_measured_one(beginning: str, figure: Any) -> None:
    assert figure() in row(beginning)
