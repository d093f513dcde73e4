"""The supervisor: a process, its group, and how both end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tests.support.wait import eventually
from workqueue.worker.supervisor import SupervisedProcess, describe_end


def shell(script: str, folder: Path) -> SupervisedProcess:
    process = SupervisedProcess(["sh", "-c", f"{script}\n"], cwd=folder, stdin=subprocess.DEVNULL)
    eventually((folder / "ready").exists)
    return process


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("code", [0, 3])
def test_process_that_ends_is_reaped_with_its_exit_code(tmp_path: Path, code: int) -> None:
    process = shell(f"touch ready; exit {code}", tmp_path)

    assert process.wait() == code
    assert not Path(f"/proc/{process.pid}").exists()


def test_processes_left_in_the_group_are_killed(tmp_path: Path) -> None:
    process = shell("trap '' TERM; sleep 600 & echo $! > child; touch ready", tmp_path)
    child = int((tmp_path / "child").read_text())

    process.wait()

    eventually(lambda: not is_alive(child))


def test_process_ignoring_sigterm_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    process = shell("trap '' TERM; touch ready; while :; do sleep 0.1; done", tmp_path)
    begun = time.monotonic()

    process.terminate()
    process.terminate()

    assert process.wait() == -9
    assert time.monotonic() - begun > 1.9


def test_ended_process_is_not_signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = shell("touch ready", tmp_path)
    process.wait()
    monkeypatch.setattr("os.killpg", lambda *_: pytest.fail("another process may have its number"))

    process.terminate()
    process.kill()


def test_watcher_is_told_how_the_process_ended(tmp_path: Path) -> None:
    codes: list[int] = []

    shell("touch ready; kill -9 $$", tmp_path).watch(codes.append).join()

    assert [describe_end(code) for code in codes] == ["ended by SIGKILL"]


def test_end_is_described_in_words() -> None:
    assert describe_end(3) == "exit code 3"
    assert describe_end(-11) == "ended by SIGSEGV"
    assert describe_end(-63) == "ended by signal 63"


REAPER: Final = """
import ctypes, subprocess
from workqueue.worker.supervisor import SupervisedProcess

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0  # as process 1 of a pod is
process = SupervisedProcess(["sh", "-c", "sleep 600 & sleep 600 & exit 3"])
assert process.wait() == 3
subprocess.run(["ps", "-o", "state,args", "--no-headers", "--ppid", str(__import__("os").getpid())])
"""


def test_killed_processes_of_the_group_leave_no_zombies_in_a_pod() -> None:
    left = subprocess.run(
        [sys.executable, "-c", REAPER], check=True, capture_output=True, text=True, timeout=60
    )

    assert "sleep" not in left.stdout
