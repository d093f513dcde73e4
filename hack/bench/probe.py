"""Start `inside` in the probe pod and send it commands."""

from __future__ import annotations

import json
import subprocess
from types import TracebackType
from typing import Any, Final, Self

from hack.bench import site
from hack.bench.errors import BenchError
from hack.bench.site import Site

CLOSE_SECONDS: Final = 10


class Probe:
    """A connection to the process in the probe pod, inside a `with` block."""

    def __init__(self, place: Site) -> None:
        where = ("exec", "--stdin", f"--namespace={site.NAMESPACE}", f"deployment/{site.PROBE}")
        self._command = place.kubectl(*where, "--", "python3", "/bench/inside.py")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._exchange({"namespace": site.NAMESPACE, "system": site.SYSTEM, "amqp": site.amqp()})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send one command and return the answer. Its name is a `do_` method of `inside.Probe`.

        Raises:
            BenchError: the command failed, or the process has ended.
        """
        return self._exchange({"do": command, "with": arguments})

    def _exchange(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("The probe's process has ended. Its output is above.")
        answer = json.loads(line)
        if not answer["ok"]:
            raise BenchError(f"{answer['error']}\n{answer.get('trace', '')}")
        return answer["answer"]
