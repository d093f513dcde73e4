"""Python handlers: which callables are loaded, and which results are failures."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from workqueue import Message
from workqueue.worker.errors import HandlerLoadError
from workqueue.worker.handlers import python
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import HandlerFailed

run_to_its_end = asyncio.run

handled: list[bytes] = []


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """As prometheus_client's `@SUMMARY.time()`: a synchronous wrapper that copies the metadata."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper that hides what it wraps."""

    def wrapper(message: Message) -> Any:
        return function(message)

    return wrapper


def runs(function: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper that runs the coroutine itself."""

    @functools.wraps(function)
    def wrapper(message: Message) -> Any:
        return asyncio.run(function(message))

    return wrapper


def runs_in_a_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `runs`, with a loop of its own."""

    @functools.wraps(function)
    def wrapper(message: Message) -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(function(message))
        finally:
            loop.close()

    return wrapper


def seems_to_run(function: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper that looks like `runs`, but returns the coroutine."""

    @functools.wraps(function)
    def wrapper(message: Message) -> Any:
        return function(message) if message.body else asyncio.run(function(message))

    return wrapper


def runs_hidden(function: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper that runs the coroutine in a way that its own code does not show."""

    @functools.wraps(function)
    def wrapper(message: Message) -> Any:
        coroutine = function(message)
        try:
            return run_to_its_end(coroutine)
        finally:
            coroutine.close()

    return wrapper


class RunningCallable:
    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def __call__(self, message: Message) -> None:
        asyncio.run(self._function(message))


class CountedCalls:
    """A decorator that is a class, such as functools.lru_cache."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def __call__(self, message: Message) -> Any:
        return self._function(message)


class Handlers:
    def method(self, message: Message) -> None:
        handled.append(message.body)

    async def async_method(self, message: Message) -> None:
        await asyncio.sleep(0)
        handled.append(message.body)

    @timed
    async def decorated_method(self, message: Message) -> None:
        await asyncio.sleep(0)
        handled.append(message.body)

    def generator_method(self, message: Message) -> Iterator[None]:
        handled.append(message.body)
        yield


class SyncCallable:
    def __call__(self, message: Message) -> None:
        handled.append(message.body)


class AsyncCallable:
    async def __call__(self, message: Message) -> None:
        await asyncio.sleep(0)
        handled.append(message.body)


class DecoratedCallable:
    @timed
    async def __call__(self, message: Message) -> None:
        await asyncio.sleep(0)
        handled.append(message.body)


class GeneratorCallable:
    def __call__(self, message: Message) -> Iterator[None]:
        handled.append(message.body)
        yield


def sync(message: Message, extra: object = None) -> None:
    handled.append(message.body)


async def coroutine(message: Message, extra: object = None) -> None:
    await asyncio.sleep(0)
    handled.append(message.body)


def generator(message: Message, extra: object = None) -> Iterator[None]:
    handled.append(message.body)
    yield


async def async_generator(message: Message) -> AsyncIterator[None]:
    handled.append(message.body)
    yield


@timed
def skips_without_a_coroutine(message: Message) -> Awaitable[None] | None:
    return None


skips_without_a_coroutine.__wrapped__ = coroutine  # type: ignore[attr-defined]


def load(value: object, monkeypatch: pytest.MonkeyPatch) -> Handler:
    module = ModuleType("handler_of_a_user")
    module.handle = value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return python.load(f"{module.__name__}:handle")


def call(handler: Handler, message: Message) -> None:
    if handler.is_async:
        asyncio.run(handler.call(message))
    else:
        handler.call(message)


LOADED = {
    "function": (sync, False),
    "decorated-function": (timed(sync), False),
    "partial": (functools.partial(sync, extra=1), False),
    "bound-method": (Handlers().method, False),
    "callable-object": (SyncCallable(), False),
    "coroutine-function": (coroutine, True),
    "decorated-coroutine-function": (timed(coroutine), True),
    "twice-decorated-coroutine-function": (timed(timed(coroutine)), True),
    "class-decorated-coroutine-function": (CountedCalls(coroutine), True),
    "partial-of-a-coroutine-function": (functools.partial(coroutine, extra=1), True),
    "partial-of-a-decorated-coroutine-function": (functools.partial(timed(coroutine)), True),
    "decorated-partial-of-a-coroutine-function": (timed(functools.partial(coroutine, extra=1)), True),
    "bound-coroutine-method": (Handlers().async_method, True),
    "bound-decorated-coroutine-method": (Handlers().decorated_method, True),
    "async-callable-object": (AsyncCallable(), True),
    "decorated-async-callable-object": (DecoratedCallable(), True),
    "wrapper-that-runs-a-coroutine-function": (runs(coroutine), False),
    "wrapper-that-runs-a-coroutine-function-in-a-loop": (runs_in_a_loop(coroutine), False),
    "decorated-wrapper-that-runs-a-coroutine-function": (timed(runs(timed(coroutine))), False),
    "partial-of-a-wrapper-that-runs-a-coroutine-function": (functools.partial(runs(coroutine)), False),
    "object-that-runs-a-coroutine-function": (RunningCallable(coroutine), False),
}


@pytest.mark.parametrize(("value", "is_async"), LOADED.values(), ids=LOADED)
def test_loaded_handler_runs_its_body(value: object, is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    handled.clear()

    handler = load(value, monkeypatch)
    call(handler, Message(b"body"))

    assert handler.is_async is is_async
    assert handled == [b"body"]


REFUSED = {
    "generator-function": (generator, "is a generator function"),
    "decorated-generator-function": (timed(generator), "is a generator function"),
    "partial-of-a-generator-function": (functools.partial(generator, extra=1), "is a generator function"),
    "context-manager": (contextlib.contextmanager(generator), "is a generator function"),
    "bound-generator-method": (Handlers().generator_method, "is a generator function"),
    "generator-callable-object": (GeneratorCallable(), "is a generator function"),
    "async-generator-function": (async_generator, "is a generator function"),
    "decorated-async-generator-function": (timed(async_generator), "is a generator function"),
    "class": (CountedCalls, "is a class"),
}


@pytest.mark.parametrize(("value", "reason"), REFUSED.values(), ids=REFUSED)
def test_callable_that_runs_nothing_is_refused_at_load(
    value: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HandlerLoadError, match=f"handler_of_a_user:handle {reason}"):
        load(value, monkeypatch)


async def returns_a_coroutine(message: Message) -> Any:
    return coroutine(message)


async def returns_a_task(message: Message) -> Any:
    return asyncio.get_running_loop().create_task(coroutine(message))


UNFINISHED = {
    "coroutine-of-a-hidden-coroutine-function": (bare(coroutine), "coroutine"),
    "generator-of-a-hidden-generator-function": (bare(generator), "generator"),
    "async-generator-of-a-hidden-function": (bare(async_generator), "async_generator"),
    "coroutine-returned-by-a-coroutine-function": (returns_a_coroutine, "coroutine"),
    "task-returned-by-a-coroutine-function": (returns_a_task, "Task"),
    "coroutine-of-a-wrapper-that-seems-to-run-it": (seems_to_run(coroutine), "coroutine"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("value", "kind"), UNFINISHED.values(), ids=UNFINISHED)
def test_returned_unrun_coroutine_is_a_failure(
    value: object, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = load(value, monkeypatch)

    with pytest.raises(HandlerFailed, match=f"returned a {kind}, which nothing runs"):
        call(handler, Message(b"body"))


def test_decorator_may_return_without_calling_its_coroutine_function(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = load(skips_without_a_coroutine, monkeypatch)

    call(handler, Message(b"body"))

    assert handler.is_async


def test_wrapper_that_runs_its_coroutine_function_unrecognised_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = load(runs_hidden(coroutine), monkeypatch)

    with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
        call(handler, Message(b"body"))

    assert handler.is_async


def test_other_results_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    call(load(lambda message: [message.body], monkeypatch), Message(b"body"))


@pytest.mark.parametrize(
    "source",
    ["import sys; sys.exit()", "raise SystemExit('no configuration')", "raise KeyboardInterrupt", "1 / 0"],
)
def test_import_that_raises_is_a_load_error(
    source: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_at_import.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(HandlerLoadError, match=r"cannot be loaded: .* \(.*exits_at_import.py, line 1\)"):
        python.load("exits_at_import:handle")


class Proxy:
    """Like Flask's `current_app`: every attribute is that of an object that does not exist now."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("Working outside of application context.")


def test_module_may_contain_an_object_that_raises_for_every_attribute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("handler_of_a_user")
    vars(module).update(current_app=Proxy(), handle=lambda message: message.body)
    monkeypatch.setitem(sys.modules, module.__name__, module)

    assert python.load("handler_of_a_user:handle").name == "handler_of_a_user:handle"


def test_handler_that_raises_for_every_attribute_is_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class App(Proxy):
        def __call__(self, message: Message) -> None: ...

    module = ModuleType("handler_of_a_user")
    vars(module).update(handle=App())
    monkeypatch.setitem(sys.modules, module.__name__, module)

    with pytest.raises(HandlerLoadError, match="cannot be loaded: RuntimeError: Working outside"):
        python.load("handler_of_a_user:handle")


def test_module_attribute_that_raises_is_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("handler_of_a_user")

    def get(_name: str) -> object:
        raise RuntimeError("no database")

    module.__getattr__ = get  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, module.__name__, module)

    with pytest.raises(HandlerLoadError, match="cannot be loaded: RuntimeError: no database"):
        python.load("handler_of_a_user:handle")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "error = RuntimeError('no database'); error.add_note('a hint'); raise error",
            "RuntimeError: no database",
        ),
        ("raise RuntimeError('no database')", "RuntimeError: no database"),
        ("raise RuntimeError('x' * 2**21)", "RuntimeError: xxx"),
        ("def handle(:", "SyntaxError: invalid syntax"),
    ],
    ids=["note", "text", "2-MiB-text", "syntax"],
)
def test_failed_import_says_why_in_a_few_lines(
    source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unloadable_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(HandlerLoadError) as caught:
        python.load("unloadable_module:handle")

    text = str(caught.value)
    assert expected in text
    assert "unloadable_module.py, line 1" in text
    assert len(text) < 2_500
