"""A WorkQueue after many changes is like a fresh one with the same spec.

`make sequences SEED=7` replays a seed and shrinks what fails. A defect that was found stays in `FOUND`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Final

import pytest

from hack.cluster import toolchain
from tests.generated.changes import EXAMPLES, paths
from tests.generated.seeds import BATCH, run
from tests.generated.sequences import How, Step, check
from tests.generated.stage import Stage, stage

BY_NIGHT: Final = 500

FOUND: Final = {
    "worker-replaced-by-workload-ref": [
        Step({"scaling": {"minReplicas": 2}}),
        Step({"worker": None, "workloadRef": {"name": "mine"}}),
    ],
    "service-account-removed": [
        Step({"worker": {"serviceAccountName": "a"}}),
        Step({"worker": {"serviceAccountName": None}}),
    ],
    "classic-workqueue-on-a-quorum-queue-deleted": [
        Step({"queue": {"type": "Classic", "deletionPolicy": "Delete"}}, How.RECREATE),
        Step({"queue": {"type": "Quorum"}}, How.RECREATE),
    ],
    "binding-removed-while-on-another-virtual-host": [
        Step({"queue": {"bindings": [{"exchange": "amq.topic", "routingKey": "a"}]}}),
        Step({"connectionSecretRef": {"name": "other"}, "queue": {"bindings": None}}),
        Step({"connectionSecretRef": {"name": "rabbitmq"}}),
    ],
    "secret-that-does-not-exist": [Step({"connectionSecretRef": {"name": "missing"}, "replicas": 2})],
    "pin-of-zero-without-a-secret": [
        Step({"replicas": 3}),
        Step({"connectionSecretRef": {"name": "missing"}, "replicas": 0}),
    ],
    "exchange-of-another-type-while-no-operator-runs": [
        Step(
            {
                "queue": {
                    "exchange": {"name": "uploads", "type": "Headers", "routingKeys": None},
                    "bindings": [{"exchange": "uploads", "arguments": {"a": 1}}],
                }
            }
        ),
        Step({}, How.BACK, waits=False),
        Step(
            {
                "queue": {"exchange": {"name": "uploads", "type": "Topic", "routingKeys": ["a.*"]}},
                "replicas": 2,
            },
            How.RESTART,
        ),
    ],
    "recreated-while-the-operator-starts": [
        Step({}, How.RESTART, waits=False),
        Step({"replicas": 3}, How.RECREATE, waits=False),
    ],
}


@pytest.fixture(scope="module")
def place() -> Iterator[Stage]:
    """The API server, RabbitMQ and the operator."""
    with stage() as made:
        yield made


def test_every_example_is_of_a_field() -> None:
    known = list(paths())

    assert [
        end for end in EXAMPLES if not any(path.endswith(f".{end}") or path == end for path in known)
    ] == []


@pytest.mark.slow
def test_control_plane_is_of_the_wanted_minor(place: Stage) -> None:
    minor = os.environ.get(toolchain.MINOR) or toolchain.KUBERNETES

    found = json.loads(place.api.text("/version"))["gitVersion"]

    assert found.split(".")[:2] == f"v{minor.lstrip('v')}".split(".")[:2]


@pytest.mark.slow
@pytest.mark.parametrize("steps", FOUND.values(), ids=FOUND)
def test_known_sequence_ends_as_a_fresh_workqueue(place: Stage, steps: list[Step]) -> None:
    check(place, steps)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_generated_sequences_end_as_fresh_workqueues(place: Stage) -> None:
    batches = [run(place, number) for number in range(BY_NIGHT // BATCH)]

    assert not [str(batch) for batch in batches if batch.failure]
