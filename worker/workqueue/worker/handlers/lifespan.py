"""The lifespan of a handler's module: open before the first message, closed after the last.

In an asyncio loop one task opens and closes it, since task groups and timeouts must be left by the task that entered
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from workqueue.hooks import name_of
from workqueue.worker.ending import CLOSING_SECONDS
from workqueue.worker.errors import HandlerLoadError, summary

_FAILED: Final = "A lifespan has failed."
_SLOW: Final = "A lifespan does not close; going on without it."

logger = logging.getLogger(__name__)


class Lifespan:
    """A function that yields once, or that returns a context manager.

    Args:
        handler: the name of the handler.
        function: sync or async. An async handler may have either, a sync handler only a sync one.

    Attributes:
        name: of the function.
        context: what it yields, once it is open.
    """

    def __init__(self, handler: str, function: Callable[[], Any]) -> None:
        self.name = name_of(function)
        self.context: Any = None
        self._handler = handler
        self._function = function
        self._manager: Any = None
        self._task: asyncio.Task[None] | None = None
        self._is_open = False
        self._closing = asyncio.Event()

    # For a sync handler -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Open it.

        Raises:
            HandlerLoadError: it cannot be opened.
        """
        try:
            manager = self._make()
            if not hasattr(manager, "__enter__"):
                raise HandlerLoadError(  # noqa: TRY301 - as every other reason
                    f"The handler {self._handler} is not async, and its lifespan {self.name} is."
                    " Make both async, or neither."
                )
            self.context = manager.__enter__()
        except HandlerLoadError:
            raise
        except BaseException as error:
            raise self._failure(error) from error
        self._manager = manager

    def close(self, on_late: Callable[[], object] | None = None) -> None:
        """Close it. An exception is logged and changes nothing.

        Args:
            on_late: called in another thread if this takes longer than `CLOSING_SECONDS`.
        """

        def late() -> None:
            logger.error(_SLOW, extra={"lifespan": self.name})
            if on_late is not None:
                on_late()

        timer = threading.Timer(CLOSING_SECONDS, late)
        timer.daemon = True
        timer.start()
        try:
            self._manager.__exit__(None, None, None)
        except BaseException:  # also SystemExit: the worker ends as it would without
            logger.exception(_FAILED, extra={"lifespan": self.name})
        timer.cancel()

    # For an async handler, in its asyncio loop ------------------------------------------------------------

    async def open_async(self, on_early_end: Callable[[str], object]) -> None:
        """Open it in a task.

        Args:
            on_early_end: called with a sentence when it ends before `close_async`, as with a failed task group.

        Raises:
            HandlerLoadError: it cannot be opened.
        """
        opened = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(opened, on_early_end), name="lifespan")
        await opened

    async def close_async(self) -> None:
        """Close it. An exception is logged and changes nothing. It is cancelled after `CLOSING_SECONDS`."""
        if self._task is None:
            return
        self._closing.set()
        if not self._is_open:
            self._task.cancel()
        done, _ = await asyncio.wait({self._task}, timeout=CLOSING_SECONDS)
        if not done:
            logger.error(_SLOW, extra={"lifespan": self.name})
            self._task.cancel()

    async def _live(self, opened: asyncio.Future[None], on_early_end: Callable[[str], object]) -> None:
        try:
            manager = self._make()
            if hasattr(manager, "__aenter__"):
                async with manager as self.context:
                    await self._stay_open(opened)
            else:
                with manager as self.context:
                    await self._stay_open(opened)
        except BaseException as error:  # also SystemExit, which would end the asyncio loop
            if opened.done():
                logger.exception(_FAILED, extra={"lifespan": self.name})
            else:
                opened.set_exception(self._failure(error))
        if opened.done() and not opened.cancelled() and not self._closing.is_set() and self._is_open:
            on_early_end(f"The lifespan {self.name} has ended before the worker.")

    async def _stay_open(self, opened: asyncio.Future[None]) -> None:
        self._is_open = True
        opened.set_result(None)
        await self._closing.wait()

    # ------------------------------------------------------------------------------------------------------

    def _make(self) -> Any:
        """Return the context manager."""
        if inspect.isasyncgenfunction(self._function):
            return contextlib.asynccontextmanager(self._function)()
        if inspect.isgeneratorfunction(self._function):
            return contextlib.contextmanager(self._function)()
        made = self._function()
        if not hasattr(made, "__enter__") and not hasattr(made, "__aenter__"):
            if inspect.iscoroutine(made):
                made.close()  # otherwise Python warns later that it was never awaited
            raise HandlerLoadError(
                f"The handler {self._handler} cannot be loaded: its lifespan {self.name} must yield once, or return a"
                f" context manager. It returns a {type(made).__name__}."
            )
        return made

    def _failure(self, error: BaseException) -> HandlerLoadError:
        if isinstance(error, HandlerLoadError):
            return error
        return HandlerLoadError(
            f"The handler {self._handler} cannot be loaded: its lifespan {self.name} failed: {summary(error)}."
        )
