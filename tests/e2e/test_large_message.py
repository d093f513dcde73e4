"""A message that is larger than the operator's memory budget, on an idle queue."""

from __future__ import annotations

import pytest

from tests.support.kubernetes import kubectl
from tests.support.operators import OperatorRelease
from tests.support.workqueues import Lab

MIB = 1024 * 1024


def peak_rss(operator: OperatorRelease) -> int:
    """The largest resident size of the leader's process since `forget_peak`, in bytes."""
    status = _in_leader(operator, "print(open('/proc/1/status').read())")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert "workqueue-operator" in _in_leader(operator, "print(open('/proc/1/cmdline').read())")
    return int(fields["VmHWM"].split()[0]) * 1024


def forget_peak(operator: OperatorRelease) -> None:
    """The kernel measures the largest resident size from now on."""
    _in_leader(operator, "open('/proc/1/clear_refs', 'w').write('5')")


def _in_leader(operator: OperatorRelease, code: str) -> str:
    where = f"--namespace={operator.namespace}"
    return kubectl("exec", where, operator.wait_leader(), "--", "python3", "-c", code)


@pytest.mark.slow
def test_large_message_wakes_queue_and_costs_operator_no_memory(lab: Lab, operator: OperatorRelease) -> None:
    workqueue = lab.workqueue("large", scaling={"minReplicas": 0, "wake": "Push"})
    workqueue.apply().wait_ready()
    forget_peak(operator)
    before = peak_rss(operator)
    workqueue.publish([{"id": 1, "padding": "x" * (100 * MIB)}])
    assert len(workqueue.results(1)) == 1
    assert peak_rss(operator) - before < 8 * MIB
    workqueue.delete()
