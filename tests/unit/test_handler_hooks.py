"""Lifespan, middleware, failure hook, typed payload and answers of a handler, without a broker."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

import workqueue
from workqueue import Message, Reject, UndecodableError
from workqueue.testing import Ack, DeadLetter, Outcome, Retry, Runner, run, run_async
from workqueue.worker.errors import HandlerLoadError
from workqueue.worker.handlers import inspection
from workqueue.worker.handlers import lifespan as lifespans

if TYPE_CHECKING:
    from tests.support.typed import Unknown  # type: ignore[attr-defined]

events: list[Any] = []


@pytest.fixture(autouse=True)
def _no_events() -> None:
    events.clear()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Make a module of a user from functions, and nothing of this module."""

    def make(**members: Any) -> ModuleType:
        made = ModuleType("module_of_a_user")
        for name, value in members.items():
            setattr(made, name, value)
        monkeypatch.setattr(inspection.innermost(members["handle"]), "__module__", made.__name__)
        monkeypatch.setitem(sys.modules, made.__name__, made)
        return made

    return make


Make = Callable[..., ModuleType]
NAME = "module_of_a_user:handle"


def handle(message: Message) -> None:
    events.append(("handle", message.context))
    if message.body == b"fail":
        raise ValueError("it went wrong")
    if message.body == b"reject":
        raise Reject("never")


async def handle_async(message: Message) -> None:
    await asyncio.sleep(0)
    handle(message)


both = pytest.mark.parametrize("handler", [handle, handle_async], ids=["sync", "async"])


# -- lifespan -------------------------------------------------------------------------------------


def opened() -> Iterator[str]:
    events.append("open")
    yield "pool"
    events.append("close")


async def opened_async() -> AsyncIterator[str]:
    events.append("open")
    yield "pool"
    await asyncio.sleep(0)
    events.append("close")


class Pool:
    async def __aenter__(self) -> str:
        events.append("open")
        return "pool"

    async def __aexit__(self, *_: object) -> None:
        events.append("close")


FORMS: dict[str, tuple[Any, Any]] = {
    "generator": (handle, opened),
    "context-manager": (handle, contextlib.contextmanager(opened)),
    "partial-of-a-generator": (handle, functools.partial(opened)),
    "generator-of-an-async-handler": (handle_async, opened),
    "async-generator": (handle_async, opened_async),
    "async-context-manager": (handle_async, contextlib.asynccontextmanager(opened_async)),
    "function-that-returns-an-async-context-manager": (handle_async, Pool),
}


@pytest.mark.parametrize(("handler", "lifespan"), FORMS.values(), ids=FORMS.keys())
def test_lifespan_is_open_for_all_messages(module: Make, handler: Any, lifespan: Any) -> None:
    module(handle=handler, pool=workqueue.lifespan(lifespan))

    with Runner(NAME) as runner:
        runner.run()
        runner.run()

    assert events == ["open", ("handle", "pool"), ("handle", "pool"), "close"]


async def test_lifespan_is_open_in_the_asyncio_loop_of_the_caller(module: Make) -> None:
    module(handle=handle_async, pool=workqueue.lifespan(opened_async))

    assert await run_async(NAME) == Ack()

    assert events == ["open", ("handle", "pool"), "close"]


def raises() -> Iterator[None]:
    raise ConnectionRefusedError("no database")
    yield


def exits() -> Iterator[None]:
    sys.exit(4)
    yield


async def returns() -> None:
    """A coroutine function that does not yield."""


def starts_twice() -> Iterator[None]:
    yield from ()


UNUSABLE: dict[str, tuple[Any, Any, str]] = {
    "raises": (
        handle,
        raises,
        r"its lifespan raises failed: ConnectionRefusedError: no database \(.*line \d+\)",
    ),
    "raises-in-a-loop": (
        handle_async,
        raises,
        "its lifespan raises failed: ConnectionRefusedError: no database",
    ),
    "exits": (handle, exits, "its lifespan exits failed: SystemExit: 4"),
    "exits-in-a-loop": (handle_async, exits, "its lifespan exits failed: SystemExit: 4"),
    "never-yields": (
        handle,
        starts_twice,
        "its lifespan starts_twice failed: RuntimeError: generator didn't yield",
    ),
    "is-a-coroutine-function": (handle_async, returns, "must yield once, or return a context manager"),
    "async-for-a-sync-handler": (handle, opened_async, "is not async, and its lifespan opened_async is"),
}


@pytest.mark.parametrize(("handler", "lifespan", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_lifespan_that_cannot_be_opened_is_a_load_error(
    module: Make, handler: Any, lifespan: Any, reason: str
) -> None:
    module(handle=handler, pool=workqueue.lifespan(lifespan))

    with pytest.raises(HandlerLoadError, match=f"^The handler {NAME} .*{reason}"):
        run(NAME)


def test_second_lifespan_is_a_load_error(module: Make) -> None:
    module(
        handle=handle,
        one=workqueue.lifespan(opened),
        two=workqueue.lifespan(contextlib.contextmanager(opened)),
    )

    with pytest.raises(HandlerLoadError, match="more than one lifespan: opened and opened"):
        run(NAME)


def fails_to_close() -> Iterator[None]:
    yield
    raise OSError("the pool is gone")


@both
def test_failure_while_closing_is_logged(
    module: Make, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    module(handle=handler, pool=workqueue.lifespan(fails_to_close))

    assert run(NAME) == Ack()

    assert "OSError: the pool is gone" in caplog.text


def test_slow_close_is_reported_and_does_not_block(
    module: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_closes() -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    monkeypatch.setattr(lifespans, "CLOSING_SECONDS", 0.05)
    module(handle=handle_async, pool=workqueue.lifespan(never_closes))

    assert run(NAME) == Ack()

    assert "A lifespan does not close" in caplog.text


def test_slow_close_of_a_sync_handler_calls_back(module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    late = threading.Event()

    def waits_for_the_call() -> Iterator[None]:
        yield
        assert late.wait(60)

    monkeypatch.setattr(lifespans, "CLOSING_SECONDS", 0.05)
    lifespan = lifespans.Lifespan(NAME, waits_for_the_call)
    lifespan.open()

    lifespan.close(late.set)

    assert late.is_set()


async def test_lifespan_that_ends_early_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    reasons: list[str] = []

    async def fails_in_background() -> None:
        raise OSError("the listener is gone")

    async def listens() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails_in_background())
            yield

    lifespan = lifespans.Lifespan(NAME, listens)
    await lifespan.open_async(reasons.append)

    async with asyncio.timeout(60):
        while not reasons:  # noqa: ASYNC110 - a callback of the lifespan's task fills it
            await asyncio.sleep(0.01)

    assert reasons == [f"The lifespan {lifespan.name} has ended before the worker."]
    assert "the listener is gone" in caplog.text


# -- middleware -----------------------------------------------------------------------------------


@workqueue.middleware
def outer(message: Message, call_next: Callable[[Message], None]) -> None:
    events.append("outer")
    call_next(message)
    events.append("outer ends")


@workqueue.middleware
def inner(message: Message, call_next: Callable[[Message], None]) -> None:
    events.append("inner")
    call_next(message)


@workqueue.middleware
async def outer_async(message: Message, call_next: Callable[[Message], Any]) -> None:
    events.append("outer")
    await call_next(message)
    events.append("outer ends")


@workqueue.middleware
async def inner_async(message: Message, call_next: Callable[[Message], Any]) -> None:
    events.append("inner")
    await call_next(message)


MIDDLEWARE: dict[str, tuple[Any, Any, Any]] = {
    "sync": (handle, outer, inner),
    "async": (handle_async, outer_async, inner_async),
}


@pytest.mark.parametrize(("handler", "first", "second"), MIDDLEWARE.values(), ids=MIDDLEWARE.keys())
def test_middleware_runs_around_the_handler_in_order(
    module: Make, handler: Any, first: Any, second: Any
) -> None:
    module(handle=handler, first=first, second=second)

    assert run(NAME) == Ack()

    assert events == ["outer", "inner", ("handle", None), "outer ends"]


@pytest.mark.parametrize(("handler", "first", "second"), MIDDLEWARE.values(), ids=MIDDLEWARE.keys())
def test_failure_passes_through_middleware(module: Make, handler: Any, first: Any, second: Any) -> None:
    module(handle=handler, first=first, second=second)

    assert run(NAME, b"fail") == Retry(1)

    assert events == ["outer", "inner", ("handle", None)]


def test_middleware_may_turn_a_failure_into_another(module: Make) -> None:
    @workqueue.middleware
    def gives_up(message: Message, call_next: Callable[[Message], None]) -> None:
        try:
            call_next(message)
        except ValueError as error:
            raise Reject("a value is wrong") from error

    module(handle=handle, gives_up=gives_up)

    assert run(NAME, b"fail") == DeadLetter("Rejected")


def test_middleware_that_forgets_await_is_a_failure(module: Make) -> None:
    @workqueue.middleware
    async def forgets(message: Message, call_next: Callable[[Message], Any]) -> Any:
        return call_next(message)

    module(handle=handle_async, forgets=forgets)

    outcome = run(NAME)

    assert outcome == Retry(1)
    assert "returned a coroutine" in str(outcome.error)


MIXED: dict[str, tuple[Any, Any, str]] = {
    "async-middleware": (handle, outer_async, "The middleware outer_async is async and the handler"),
    "sync-middleware": (handle_async, outer, "The middleware outer is not async and the handler"),
}


@pytest.mark.parametrize(("handler", "layer", "reason"), MIXED.values(), ids=MIXED.keys())
def test_middleware_of_the_other_kind_is_a_load_error(
    module: Make, handler: Any, layer: Any, reason: str
) -> None:
    module(handle=handler, layer=layer)

    with pytest.raises(HandlerLoadError, match=reason):
        run(NAME)


PARAMETERS: dict[str, tuple[Any, str]] = {
    "middleware": (
        workqueue.middleware(lambda message: None),
        r"The middleware <lambda> must take \(message, call_next\): too many positional arguments",
    ),
    "failure-hook": (
        workqueue.on_failure(lambda message, error: None),
        r"The failure hook <lambda> must take \(message, error, final\): too many positional arguments",
    ),
}


@pytest.mark.parametrize(("hook", "reason"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_hook_with_other_parameters_is_a_load_error(module: Make, hook: Any, reason: str) -> None:
    module(handle=handle, hook=hook)

    with pytest.raises(HandlerLoadError, match=reason):
        run(NAME)


# -- failure hook ---------------------------------------------------------------------------------


@workqueue.on_failure
def noted(message: Message, error: BaseException, final: bool) -> None:
    events.append((type(error).__name__, final))


@workqueue.on_failure
async def noted_async(message: Message, error: BaseException, final: bool) -> None:
    await asyncio.sleep(0)
    noted(message, error, final)


HOOKED: dict[str, tuple[Any, Any]] = {
    "sync": (handle, noted),
    "sync-hook-of-an-async-handler": (handle_async, noted),
    "async": (handle_async, noted_async),
}
FAILURES: dict[str, tuple[bytes, dict[str, Any], list[tuple[str, bool]]]] = {
    "first-attempt": (b"fail", {}, [("ValueError", False)]),
    "last-attempt": (b"fail", {"attempt": 5}, [("ValueError", True)]),
    "rejection": (b"reject", {}, [("Reject", True)]),
    "no-time-for-another-attempt": (b"fail", {"expiration": "500"}, [("ValueError", True)]),
    "success": (b"", {}, []),
}


@pytest.mark.parametrize(("body", "options", "expected"), FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize(("handler", "hook"), HOOKED.values(), ids=HOOKED.keys())
def test_failure_hook_learns_whether_there_is_another_attempt(
    module: Make, handler: Any, hook: Any, body: bytes, options: Any, expected: list[tuple[str, bool]]
) -> None:
    module(handle=handler, hook=hook)

    outcome = run(NAME, body, **options)

    assert events[1:] == expected
    assert isinstance(outcome, DeadLetter) == any(final for _, final in expected)


@both
@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(3)], ids=["exception", "exit"])
def test_failing_failure_hook_is_logged_and_changes_nothing(
    module: Make, handler: Any, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    @workqueue.on_failure
    def fails(message: Message, error: BaseException, final: bool) -> None:
        raise failure

    failure = error
    module(handle=handler, fails=fails, noted=noted)

    outcome = run(NAME, b"reject")

    assert outcome == DeadLetter("Rejected")
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "A failure hook has failed."
    ]
    assert events[-1] == ("Reject", True), "the other hooks run"


def test_async_failure_hook_of_a_sync_handler_is_a_load_error(module: Make) -> None:
    module(handle=handle, hook=noted_async)

    with pytest.raises(HandlerLoadError, match="The failure hook noted_async is async"):
        run(NAME)


def test_cancelled_handler_has_no_failure_unless_it_timed_out(module: Make) -> None:
    def is_cancelled(message: Message) -> None:
        message.cancelled.set()
        if message.body == b"late":
            message.deadline = 0.0
        raise ValueError

    module(handle=is_cancelled, hook=noted)

    run(NAME)
    run(NAME, b"late")

    assert events == [("HandlerTimeout", False)]


def test_hooks_of_the_module_that_defines_the_handler_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_of_a_user").mkdir()
    (tmp_path / "shop_of_a_user/__init__.py").write_text("from shop_of_a_user.jobs import handle\n")
    (tmp_path / "shop_of_a_user/jobs.py").write_text(
        "import workqueue\n"
        "@workqueue.lifespan\n"
        "def pool():\n    yield 'pool'\n"
        "def handle(message):\n    message.reply(message.context)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    [answer] = run("shop_of_a_user:handle", reply_to="answers").replies

    assert answer.body == b"pool"


# -- typed payload --------------------------------------------------------------------------------


class Invoice(BaseModel):
    number: int
    lines: list[int]


@dataclass
class Order:
    number: int


class Job(TypedDict):
    number: int


def takes_model(invoice: Invoice) -> None:
    events.append(invoice)


def takes_dataclass(order: Order) -> None:
    events.append(order)


def takes_typed_dict(job: Job) -> None:
    events.append(job)


def takes_union(job: Order | None) -> None:
    events.append(job)


def takes_list(orders: list[Order], /) -> None:
    events.append(orders)


async def takes_model_async(invoice: Invoice) -> None:
    events.append(invoice)


def takes_both(invoice: Invoice, message: Message) -> None:
    events.append((invoice.number, message.attempt))


def takes_both_by_keyword(invoice: Invoice, *, context: workqueue.Message) -> None:
    events.append((invoice.number, context.attempt))


def takes_both_for_its_own_tests(invoice: Invoice, message: Message | None = None) -> None:
    events.append((invoice.number, message and message.attempt))


class Handlers:
    def method(self, invoice: Invoice, message: Message) -> None:
        events.append((invoice.number, message.attempt))


INVOICE = {"number": 7, "lines": [1, 2]}
TYPED: dict[str, tuple[Any, Any, Any]] = {
    "model": (takes_model, INVOICE, Invoice(number=7, lines=[1, 2])),
    "model-of-an-async-handler": (takes_model_async, INVOICE, Invoice(number=7, lines=[1, 2])),
    "dataclass": (takes_dataclass, {"number": 7}, Order(7)),
    "typed-dict": (takes_typed_dict, {"number": 7}, {"number": 7}),
    "union": (takes_union, None, None),
    "list": (takes_list, [{"number": 7}], [Order(7)]),
    "model-and-message": (takes_both, INVOICE, (7, 1)),
    "model-and-message-by-keyword": (takes_both_by_keyword, INVOICE, (7, 1)),
    "model-and-optional-message": (takes_both_for_its_own_tests, INVOICE, (7, 1)),
    "method": (Handlers().method, INVOICE, (7, 1)),
    "partial": (functools.partial(takes_both), INVOICE, (7, 1)),
}


@pytest.mark.parametrize(("handler", "body", "expected"), TYPED.values(), ids=TYPED.keys())
def test_typed_handler_gets_the_payload(module: Make, handler: Any, body: Any, expected: Any) -> None:
    module(handle=handler)

    assert run(NAME, body) == Ack()

    assert events == [expected]


INVALID: dict[str, tuple[Any, Any, str]] = {
    "missing-field": (takes_model, {"number": 7}, "The body is not a valid Invoice: lines: Field required."),
    "nested-field": (
        takes_model,
        {"number": 7, "lines": ["x"]},
        "The body is not a valid Invoice: lines.0: Input should be a valid integer, unable to parse",
    ),
    "no-json": (takes_model, b"{", "The body is not a valid Invoice: Invalid JSON: EOF"),
    "dataclass": (takes_dataclass, {}, "The body is not a valid Order: number: Field required."),
    "typed-dict": (takes_typed_dict, {}, "The body is not a valid Job: number: Field required."),
    "async": (takes_model_async, {"number": 7}, "The body is not a valid Invoice: lines: Field required."),
}


@pytest.mark.parametrize(("handler", "body", "reason"), INVALID.values(), ids=INVALID.keys())
def test_invalid_body_is_a_dead_letter_with_the_mistake(
    module: Make, handler: Any, body: Any, reason: str
) -> None:
    module(handle=handler)

    outcome = run(NAME, body)

    assert outcome == DeadLetter("Undecodable")
    assert isinstance(outcome, DeadLetter)
    assert outcome.message.startswith(reason)
    assert events == []


def test_many_mistakes_are_cut(module: Make) -> None:
    module(handle=takes_model)

    outcome = run(NAME, {"number": 7, "lines": ["x" * 1000] * 5000})

    assert isinstance(outcome, DeadLetter)
    assert outcome.message.endswith("; and 4990 more.")
    assert len(outcome.message) < 2_000


def test_message_is_parsed_in_the_handler() -> None:
    assert Message(b'{"number": 7}').parse(Order) == Order(7)
    with pytest.raises(UndecodableError, match="not a valid Order: number: Field required"):
        Message(b"{}").parse(Order)


class MessageLike(Message):
    """A class of a user that is a Message."""


def takes_unknown_return_type(message: Message) -> Unknown: ...


def takes_any(message: Any) -> None: ...


def takes_subclass(message: MessageLike) -> None: ...


def takes_optional(message: Message | None) -> None: ...


def takes_unresolved_message(message: wq.Message) -> None:  # type: ignore[name-defined] # noqa: F821
    ...


UNTYPED = {
    "no-annotation": lambda message: None,
    "any": takes_any,
    "message": handle,
    "subclass": takes_subclass,
    "optional": takes_optional,
    "message-with-another-unresolved-annotation": takes_unknown_return_type,
    "message-imported-for-type-checkers": takes_unresolved_message,
    "arguments": lambda *arguments: None,
}


@pytest.mark.parametrize("handler", UNTYPED.values(), ids=UNTYPED.keys())
def test_handler_without_a_payload_type_gets_the_message(module: Make, handler: Any) -> None:
    module(handle=handler)

    assert run(NAME, b"no json") == Ack()


def takes_text(text: str) -> None: ...


def takes_unresolved(payload: Unknown) -> None: ...


class Opaque:
    """pydantic has no schema for it."""


def takes_opaque(payload: Opaque) -> None: ...


def takes_three(invoice: Invoice, message: Message, other: int) -> None: ...


REFUSED = {
    "text": (takes_text, "takes str. Take a Message, and use message.text"),
    "unresolved-type": (takes_unresolved, "the type 'Unknown' of its parameter payload cannot be resolved"),
    "type-without-a-schema": (takes_opaque, "its payload's type Opaque cannot be validated"),
    "third-argument": (takes_three, "must take one argument, the message, or a typed payload"),
}


@pytest.mark.parametrize(("handler", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_unusable_payload_type_is_a_load_error(module: Make, handler: Any, reason: str) -> None:
    module(handle=handler)

    with pytest.raises(HandlerLoadError, match=reason):
        run(NAME)


WITHOUT_PYDANTIC = """
import sys
sys.modules["pydantic"] = None
from dataclasses import dataclass
from pathlib import Path
from workqueue.testing import run
from workqueue.worker.errors import HandlerLoadError
@dataclass
class Order:
    number: int
def handle(order: Order): ...
def plain(message): ...
print(run(plain))
try:
    run(handle)
except HandlerLoadError as error:
    print(error)
"""


def test_missing_pydantic_is_named_only_when_a_handler_needs_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYDANTIC], capture_output=True, text=True, check=True, timeout=120
    )

    first, second = done.stdout.splitlines()
    assert first.startswith("Ack(")
    assert second == (
        "The handler __main__:handle cannot be loaded. A payload of the type Order needs pydantic 2, which is not"
        " installed. Install it, or take a Message and use message.json()."
    )


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, workqueue; workqueue.lifespan; "
        "print(*sorted({'asyncio', 'pika', 'pydantic', 'typing_extensions'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )

    assert done.stdout == "\n"


# -- answers --------------------------------------------------------------------------------------


def answers(message: Message) -> None:
    message.reply({"size": len(message.body)}, headers={"unit": "bytes"})


async def answers_async(message: Message) -> None:
    await message.reply({"size": len(message.body)}, headers={"unit": "bytes"})


async def answers_without_await(message: Message) -> None:
    message.reply({"size": len(message.body)}, headers={"unit": "bytes"})


ANSWERS = {"sync": answers, "async": answers_async, "async-without-await": answers_without_await}


@pytest.mark.parametrize("handler", ANSWERS.values(), ids=ANSWERS.keys())
def test_answer_goes_to_reply_to_with_the_correlation_id(module: Make, handler: Any) -> None:
    module(handle=handler)

    [answer] = run(NAME, b"four", reply_to="answers", correlation_id="c-1").replies

    assert answer.json() == {"size": 4}
    assert (answer.to, answer.correlation_id, answer.content_type) == ("answers", "c-1", "application/json")
    assert answer.headers == {"unit": "bytes"}


def test_answer_without_a_correlation_id_has_the_message_id(module: Make) -> None:
    module(handle=answers)

    [answer] = run(NAME, reply_to="answers", message_id="m-1").replies

    assert answer.correlation_id == "m-1"


@pytest.mark.parametrize("handler", ANSWERS.values(), ids=ANSWERS.keys())
def test_answer_without_reply_to_is_an_error(module: Make, handler: Any) -> None:
    module(handle=handler)

    outcome = run(NAME)

    assert outcome == Retry(1)
    assert "The message has no reply_to" in str(outcome.error)


def test_failure_hook_may_answer(module: Make) -> None:
    @workqueue.on_failure
    async def tells(message: Message, error: BaseException, final: bool) -> None:
        message.reply({"error": str(error)})

    module(handle=handle_async, tells=tells)

    [answer] = run(NAME, b"reject", reply_to="answers").replies

    assert answer.json() == {"error": "never"}


# -- the test kit itself --------------------------------------------------------------------------


OUTCOMES: dict[str, tuple[bytes, dict[str, Any], Outcome]] = {
    "success": (b"", {}, Ack()),
    "first-failure": (b"fail", {}, Retry(1)),
    "second-failure": (b"fail", {"attempt": 2}, Retry(10)),
    "last-failure": (b"fail", {"attempt": 5}, DeadLetter("Exception")),
    "one-attempt-only": (b"fail", {"max_attempts": 1}, DeadLetter("Exception")),
    "other-delays": (b"fail", {"delays_seconds": [7]}, Retry(7)),
    "rejection": (b"reject", {}, DeadLetter("Rejected")),
}


@both
@pytest.mark.parametrize(("body", "options", "expected"), OUTCOMES.values(), ids=OUTCOMES.keys())
def test_outcome_of_a_message(
    module: Make, handler: Any, body: bytes, options: Any, expected: Outcome
) -> None:
    module(handle=handler, pool=workqueue.lifespan(opened))

    assert run(handler, body, context="given", **options) == expected

    assert events == [("handle", "given")]


def test_message_has_the_given_properties(module: Make) -> None:
    def compares(message: Message) -> None:
        assert (message.attempt, message.redelivered, message.queue) == (3, True, "jobs")
        assert (message.properties.type, message.headers["tenant"]) == ("resize", "a")
        assert 0 < message.remaining <= 300

    module(handle=compares)

    outcome = run(NAME, attempt=3, redelivered=True, queue="jobs", type="resize", headers={"tenant": "a"})

    assert outcome.error is None


async def test_async_handler_is_not_run_inside_an_asyncio_loop(module: Make) -> None:
    module(handle=handle_async)

    with pytest.raises(RuntimeError, match=r"Use `await run_async"):
        run(NAME)
    assert await run_async(NAME) == Ack()


def test_retry_with_a_delay_that_is_no_number_is_a_failure(module: Make) -> None:
    def retries(message: Message) -> None:
        raise workqueue.Retry(after="30")  # type: ignore[arg-type]

    module(handle=retries)

    outcome = run(NAME)

    assert outcome == Retry(1)
    assert str(outcome.error) == "Retry(after=...) is a number of seconds, not a str."


class Kind(Enum):
    SHORT = "short"


@dataclass
class Appointment:
    at: datetime
    day: date
    price: Decimal
    number: UUID
    kind: Kind
    tags: set[str]


def test_dataclass_is_published_and_handled_unchanged(module: Make) -> None:
    appointment = Appointment(
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        date(2026, 1, 2),
        Decimal("19.90"),
        UUID(int=7),
        Kind.SHORT,
        {"a", "b"},
    )

    def keeps(appointment: Appointment) -> None:
        events.append(appointment)

    module(handle=keeps)

    assert run(NAME, appointment) == Ack()
    assert events == [appointment]


def test_context_without_a_lifespan_is_an_error(module: Make) -> None:
    module(handle=handle)

    with pytest.raises(ValueError, match="has no lifespan"):
        run(NAME, context="pool")


def test_fixture_opens_the_lifespan_once(module: Make, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager is not None
    module(handle=handle, pool=workqueue.lifespan(opened))

    with contextlib.contextmanager(fixture())() as run_handler:
        assert run_handler(NAME) == Ack()
        assert run_handler(NAME, b"reject") == DeadLetter("Rejected")
        assert events == ["open", ("handle", "pool"), ("handle", "pool")]

    assert events[-1] == "close"


def fixture() -> Any:
    from workqueue.pytest_plugin import run_handler

    return inspect.unwrap(run_handler)
