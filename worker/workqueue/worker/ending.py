"""End a process even if threads and exit hooks of the user's code never return."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

HOOKS_SECONDS: Final = 3.0
"""How long flushing and Python's exit hooks may take."""

CLOSING_SECONDS: Final = 5.0
"""How long the closing part of a lifespan may take, before the hooks."""

logger = logging.getLogger(__name__)


def leave(code: int, *closers: Callable[[], None]) -> NoReturn:
    """End the worker's process.

    Python itself waits for all threads that are not daemons, including idle threads of an executor.

    Args:
        code: the exit code.
        closers: called first, in this order, such as the function that sends the last traces.
    """

    def finish() -> None:
        _flush()  # first, since a hook may never return
        for close in (*closers, atexit._run_exitfuncs):  # noqa: SLF001 - as multiprocessing does
            try:
                close()
            except BaseException:
                logger.exception("An exit hook failed.")
        _flush()

    thread = threading.Thread(target=finish, name="exit-hooks", daemon=True)
    thread.start()
    thread.join(HOOKS_SECONDS)
    os._exit(code)


def leave_forked_child(error: BaseException | None) -> NoReturn:
    """End a child process that a handler forked, after the handler has returned in it too.

    The child has copies of the worker's connections and must not settle messages over them.
    """
    code = 0
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        code = error.code or 0
    elif error is not None:
        code = 1
        if isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)  # noqa: T201 - as Python does
        else:
            traceback.print_exception(error)
    _flush()
    os._exit(code & 0xFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
