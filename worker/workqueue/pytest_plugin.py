"""A fixture for tests of handlers. pytest loads this module if the package is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from workqueue.testing import Outcome, Runner


@pytest.fixture
def run_handler() -> Iterator[Callable[..., Outcome]]:
    """`workqueue.testing.run` that opens the lifespan of a handler once, and closes it after the test."""
    from workqueue.testing import OPEN, Runner

    with ExitStack() as stack:
        runners: dict[tuple[object, ...], Runner] = {}

        def run(
            handler: Callable[..., Any] | str,
            body: Any = b"",
            *,
            context: Any = OPEN,
            max_attempts: int = 5,
            **options: Any,
        ) -> Outcome:
            key = (handler, id(context), max_attempts)
            if key not in runners:
                runners[key] = stack.enter_context(
                    Runner(handler, context=context, max_attempts=max_attempts)
                )
            return runners[key].run(body, **options)

        yield run
