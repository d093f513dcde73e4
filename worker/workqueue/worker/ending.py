"""End a process although threads and exit hooks of the user's code may never return.

Place in the flow: `commands.run` leaves through here, and so does a child process that a handler has forked.
"""

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
"""How long everything that is to be flushed and Python's exit hooks may take."""

logger = logging.getLogger(__name__)


def leave(code: int, *closers: Callable[[], None]) -> NoReturn:
    """End the worker's process.

    Python itself would wait for every thread that is not a daemon, also for the idle ones of an executor.

    Args:
        code: the exit code.
        closers: called first, in this order, such as what sends the last traces.
    """

    def finish() -> None:
        _flush()  # first: a hook that never returns must not cost what was printed
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
    """End a child process that a handler forked, when the handler has ended in it too.

    The child has copies of our connections: it must not settle messages over them.
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
