"""The call of a Python handler: its failure hooks around its middleware around the function.

Each part has a sync and an async form, because a sync handler has no asyncio loop.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from workqueue.contract import headers
from workqueue.hooks import Hooks, name_of
from workqueue.message import Message, Replier, Reply
from workqueue.worker.handlers.outcome import (
    GiveUp,
    HandlerFailed,
    HandlerTimeout,
    RetryPolicy,
    Verdict,
    verdict,
)
from workqueue.worker.replies import AsyncReplier

if TYPE_CHECKING:
    from workqueue.worker.handlers.lifespan import Lifespan

Call: TypeAlias = Callable[[Message], Any]

_ITERABLE_COROUTINE: Final = 0x100
"""The flag of a generator that `types.coroutine` has made awaitable."""

logger = logging.getLogger(__name__)


class ReplyPublisher(Protocol):
    """Publishes answers. Both methods return when RabbitMQ has stored the answer."""

    def reply(self, reply: Reply) -> Awaitable[None]:
        """For a sync handler."""

    async def publish(self, reply: Reply) -> None:
        """For an async handler."""


def build(
    function: Call,
    hooks: Hooks,
    retry: RetryPolicy,
    lifespan: Lifespan | None,
    replies: ReplyPublisher | None,
    *,
    is_async: bool,
) -> Call:
    """Return the function that runs everything for one message, and that raises if the attempt has failed."""
    if is_async:
        call: Call = partial(_call_async, function) if hooks.middleware else function
        for layer in reversed(hooks.middleware):
            call = partial(_through_async, layer, call)
        call = partial(_complete, call)
        if hooks.on_failure:
            call = partial(_watch_async, call, hooks, retry, os.getpid())
        make = None if replies is None else partial(AsyncReplier, replies.publish)
        return partial(_begin, call, lifespan, make)
    call = partial(_call, function)
    for layer in reversed(hooks.middleware):
        call = partial(_through, layer, call)
    if hooks.on_failure:
        call = partial(_watch, call, hooks, retry, os.getpid())
    return partial(_begin, call, lifespan, None if replies is None else lambda: replies)


def _begin(
    call: Call, lifespan: Lifespan | None, make_replier: Callable[[], Replier] | None, message: Message
) -> Any:
    replier = None if make_replier is None else make_replier()
    message.attach(None if lifespan is None else lifespan.context, replier)
    return call(message)


# The function ---------------------------------------------------------------------------------------------


def _call(function: Call, message: Message) -> None:
    _refuse_unfinished(function(message))


async def _call_async(function: Call, message: Message) -> None:
    result = function(message)
    if _is_awaitable(result):  # a decorator around a coroutine function may return None instead
        result = await result
    _refuse_unfinished(result)


async def _complete(call: Call, message: Message) -> None:
    """Call an async handler, and await the replies that it has not awaited."""
    await _call_async(call, message)
    for reply in message.replies_in_progress():
        await reply


def _through(layer: Callable[..., Any], call: Call, message: Message) -> None:
    _refuse_unfinished(layer(message, call))


async def _through_async(layer: Callable[..., Any], call: Call, message: Message) -> None:
    _refuse_unfinished(await layer(message, call))


def _is_awaitable(result: object) -> bool:
    """As `inspect.isawaitable`, whose module takes 4 ms to import."""
    return isinstance(result, Awaitable) or (
        isinstance(result, GeneratorType) and bool(result.gi_code.co_flags & _ITERABLE_COROUTINE)
    )


def _refuse_unfinished(result: object) -> None:
    """Raise if a handler returned work that has not run.

    Raises:
        HandlerFailed: the result is an awaitable or a generator.
    """
    if result is None:
        return
    if not isinstance(result, (Awaitable, GeneratorType, AsyncGeneratorType)):
        return
    if isinstance(result, CoroutineType):
        result.close()  # otherwise Python warns later that it was never awaited
    raise HandlerFailed(
        f"The handler returned a {type(result).__name__}, which nothing runs. Make the handler `async def`,"
        " or await what it returns."
    )


# Failures -------------------------------------------------------------------------------------------------


def _watch(call: Call, hooks: Hooks, retry: RetryPolicy, process: int, message: Message) -> None:
    begun_at = time.time()
    failure: BaseException | None = None
    try:
        call(message)
    except BaseException as error:
        failure = error
        raise
    finally:
        decided = _decided(failure, message, process)
        if decided is not None:
            final = _is_final(decided, message, retry, begun_at)
            for hook in hooks.on_failure:
                try:
                    hook(message, decided, final)
                except BaseException:  # also SystemExit: a hook changes nothing
                    logger.exception("A failure hook has failed.", extra={"hook": name_of(hook)})
        failure = decided = None  # its traceback refers to this frame, and so to the body


async def _watch_async(call: Call, hooks: Hooks, retry: RetryPolicy, process: int, message: Message) -> None:
    begun_at = time.time()
    failure: BaseException | None = None
    try:
        await call(message)
    except BaseException as error:
        failure = error
        raise
    finally:
        decided = _decided(failure, message, process)
        if decided is not None:
            final = _is_final(decided, message, retry, begun_at)
            for hook in hooks.on_failure:
                try:
                    result = hook(message, decided, final)
                    if _is_awaitable(result):
                        await result
                        for reply in message.replies_in_progress():
                            await reply
                except BaseException:  # also SystemExit: a hook changes nothing
                    logger.exception("A failure hook has failed.", extra={"hook": name_of(hook)})
        failure = decided = None  # its traceback refers to this frame, and so to the body


def _decided(failure: BaseException | None, message: Message, process: int) -> BaseException | None:
    """Return the failure that the worker decides about, or None.

    After a timeout the result of the handler no longer counts. The same is true if the delivery is lost, and if the
    worker shuts down, but then there is no failure.
    """
    if os.getpid() != process:  # the handler has forked a child, which ends now
        return None
    if not message.cancelled:
        return failure
    return HandlerTimeout("the handler timed out") if message.remaining <= 0 else None


def _is_final(error: BaseException, message: Message, retry: RetryPolicy, begun_at: float) -> bool:
    return isinstance(decide(error, message, retry, begun_at), GiveUp)


def decide(error: BaseException | None, message: Message, retry: RetryPolicy, begun_at: float) -> Verdict:
    """Return what the worker will do with the message, except for the random part of a delay.

    Args:
        error: of the attempt.
        begun_at: when the attempt began, in Unix seconds.
    """
    expires_at = headers.expires_at(message.properties, message.headers, begun_at)
    expires_in = None if expires_at is None else expires_at - time.time()
    age = time.time() - headers.first_attempt_at(message.headers, begun_at)
    return verdict(error, message.attempt, retry, 0.0, expires_in, age)
