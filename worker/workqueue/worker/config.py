"""The configuration of `workqueue run`: flags and environment variables, with all mistakes in one error.

The operator sets the environment of its pods. People use flags, which override the environment.
"""

from __future__ import annotations

import json
import os
import socket
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from workqueue.contract import binding as bindings
from workqueue.contract.binding import Binding
from workqueue.contract.errors import BindingError
from workqueue.contract.topology import (
    DEFAULT_DELIVERY_LIMIT,
    DEFAULT_MAX_AGE_SECONDS,
    DEFAULT_RETRY_DELAYS,
    LONGEST_DELAY_SECONDS,
    LONGEST_QUEUE_NAME_BYTES,
    Exchange,
    Jitter,
    QueueSettings,
    QueueType,
    RetryBackoff,
    check_queue_name,
)
from workqueue.contract.worker_api import (
    DEFAULT_STARTUP_TIMEOUT_SECONDS,
    LONGEST_STARTUP_TIMEOUT_SECONDS,
    PORT,
    Isolation,
    Variable,
)
from workqueue.worker.errors import ConfigurationError
from workqueue.worker.handlers.outcome import RetryPolicy

DEFAULT_TIMEOUT_SECONDS: Final = 300.0
DEFAULT_TERMINATION_LOG: Final = Path("/dev/termination-log")
MAX_CONCURRENCY: Final = 1_000
LONGEST_NAME_BYTES: Final = 255
"""AMQP's limit for the name of a queue or an exchange."""

LONGEST_SECONDS: Final = 30 * 86_400.0
UNITS: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

T = TypeVar("T")


class PythonHandler(NamedTuple):
    """`module:function`."""

    name: str


class ExecHandler(NamedTuple):
    """A command and its arguments."""

    command: tuple[str, ...]


class HTTPHandler(NamedTuple):
    """A URL to POST to."""

    url: str


class RunConfig(NamedTuple):
    """The configuration of one worker process. Times are in seconds.

    Attributes:
        delivery_limit: how often a message may come back without an answer; None for no limit.
        wake_deliveries: how many of the deliveries that RabbitMQ before 4.3 counts may be wake-ups.
        heartbeat_seconds: of the connections; None for the URL's, or the default.
        log_level: a level of the logging module.
        port: of the endpoint; 0 for none.
        port_is_default: no port was configured, so that another one is used when this one is taken.
        pod_uid: None outside a cluster.
        worker_name: the pod, or host and process.
        retirement_key_file: the key for the operator's calls; None in a pod of an operator release that
            signed calls with the password.
        isolation: where a Python handler runs.
        startup_timeout_seconds: how long loading or reaching the handler may take.
        recycle_messages: after how many messages a handler's process is replaced; None for never.
        recycle_memory: from how many bytes of resident memory; None for never.
        until_empty: whether to end when the queue is empty.
        max_messages: after how many settled messages to end; None for never.
        limit_queue: the queue of the tokens; each handler needs one. None without a limit.
        hears_cancels: whether the worker learns of cancelled messages. Models of RabbitMQ have no streams.
        limit_rate_queue: the queue of the tokens that starts of handlers use up; None without a limit.
    """

    handler: PythonHandler | ExecHandler | HTTPHandler
    queue_settings: QueueSettings
    declare: bool
    retry: RetryPolicy
    delivery_limit: int | None
    wake_deliveries: int
    timeout_seconds: float
    concurrency: int
    grace_seconds: float
    port: int
    port_is_default: bool
    url: str | None
    binding_folder: Path | None
    pod_uid: str | None
    worker_name: str
    log_format: str | None
    log_level: str
    heartbeat_seconds: int | None
    termination_log: Path
    retirement_key_file: Path | None = None
    isolation: Isolation = Isolation.THREAD
    startup_timeout_seconds: float = DEFAULT_STARTUP_TIMEOUT_SECONDS
    recycle_messages: int | None = None
    recycle_memory: int | None = None
    until_empty: bool = False
    max_messages: int | None = None
    limit_queue: str | None = None
    hears_cancels: bool = False
    limit_rate_queue: str | None = None

    @property
    def queue(self) -> str:
        """The work queue."""
        return self.queue_settings.name

    def read_binding(self) -> Binding:
        """Return the connection data, read again at each call.

        Raises:
            BindingError: it cannot be read.
        """
        if self.url is None and self.binding_folder is not None:
            binding = bindings.from_folder(self.binding_folder)
        else:
            binding = bindings.from_url(self.url or bindings.DEFAULT_URL)
        if self.heartbeat_seconds is None:
            return binding
        return binding._replace(heartbeat_seconds=self.heartbeat_seconds)

    def connection_environment(self) -> dict[str, str]:
        """Return the variables from which a program that this worker starts makes the same connection."""
        folder = "" if self.url is not None or self.binding_folder is None else str(self.binding_folder)
        url = self.url or ("" if folder else bindings.DEFAULT_URL)
        return {Variable.URL: url, Variable.BINDING: folder}

    def read_retirement_key(self) -> bytes:
        """Return the key for the operator's calls, read again at each call, so that it can be rotated.

        Raises:
            BindingError: it cannot be read.
        """
        if self.retirement_key_file is None:
            return self.read_binding().signing_key
        try:
            return self.retirement_key_file.read_bytes().strip()
        except OSError as error:
            raise BindingError(
                f"The retirement key {self.retirement_key_file} cannot be read: {error.strerror}."
            ) from error


def parse(flags: Namespace, environment: Mapping[str, str]) -> RunConfig:
    """Check all settings and build the configuration.

    Raises:
        ConfigurationError: one sentence per mistake.
    """
    reader = _Reader(flags, environment)
    handler = reader.handler()
    queue = reader.text("queue", Variable.QUEUE)
    if not queue:
        swallowed = isinstance(handler, ExecHandler) and any(
            word.partition("=")[0] == "--queue" for word in handler.command
        )
        reader.mistakes.append(
            "No queue is given; use --queue or WORKQUEUE_QUEUE."
            + (
                " --exec takes everything after it, including --queue, so put --exec last."
                if swallowed
                else ""
            )
        )
    else:
        reader.check_queue_name(queue)
    queue_type = reader.read("queue_type", Variable.QUEUE_TYPE, QueueType.QUORUM, _queue_type)
    exchange = reader.text("exchange", Variable.EXCHANGE)
    declare = reader.read("declare", Variable.DECLARE, False, _boolean)
    delivery_limit = reader.read("delivery_limit", Variable.DELIVERY_LIMIT, None, _count)
    if queue_type is QueueType.CLASSIC and delivery_limit is not None:
        reader.mistakes.append(
            "A Classic queue has no delivery limit, since RabbitMQ counts deliveries on quorum queues only. "
            "Remove --delivery-limit and WORKQUEUE_DELIVERY_LIMIT."
        )
    elif delivery_limit is None and declare and queue_type is QueueType.QUORUM:
        delivery_limit = DEFAULT_DELIVERY_LIMIT
    timeout = reader.read("timeout", Variable.TIMEOUT_SECONDS, DEFAULT_TIMEOUT_SECONDS, _seconds)
    port = reader.read("port", Variable.PORT, None, _port)
    max_messages = reader.read("max_messages", Variable.MAX_MESSAGES, None, _count)
    pod_uid = environment.get(Variable.POD_UID) or None
    key_file = environment.get(Variable.RETIREMENT_KEY_FILE)
    url, folder = reader.place()
    config = RunConfig(
        handler=handler,
        queue_settings=QueueSettings(
            name=queue or "",
            type=queue_type,
            exchange=Exchange(exchange) if exchange else None,
            delivery_limit=delivery_limit,
            dead_letter_queue=reader.text("dead_letter_queue", Variable.DEAD_LETTER_QUEUE),
        ),
        declare=declare,
        retry=reader.retry(),
        delivery_limit=delivery_limit,
        wake_deliveries=reader.read("wake_deliveries", Variable.WAKE_DELIVERIES, 0, _count),
        timeout_seconds=timeout,
        concurrency=min(
            reader.read("concurrency", Variable.CONCURRENCY, 1, _concurrency), max_messages or MAX_CONCURRENCY
        ),
        grace_seconds=reader.read("grace", Variable.GRACE_SECONDS, timeout, _seconds_or_none),
        port=PORT if port is None else port,
        port_is_default=port is None,
        url=url,
        binding_folder=folder,
        pod_uid=pod_uid,
        worker_name=environment.get(Variable.POD_NAME) or f"{socket.gethostname()}:{os.getpid()}",
        log_format=reader.read("log_format", Variable.LOG_FORMAT, None, _log_format),
        log_level=reader.read("log_level", Variable.LOG_LEVEL, "INFO", _log_level),
        heartbeat_seconds=reader.read("heartbeat", Variable.HEARTBEAT_SECONDS, None, _heartbeat),
        termination_log=Path(environment.get(Variable.TERMINATION_LOG) or DEFAULT_TERMINATION_LOG),
        retirement_key_file=Path(key_file) if key_file else None,
        isolation=reader.read("isolation", Variable.ISOLATION, Isolation.THREAD, _isolation),
        startup_timeout_seconds=reader.read(
            "startup_timeout",
            Variable.STARTUP_TIMEOUT_SECONDS,
            float(DEFAULT_STARTUP_TIMEOUT_SECONDS),
            _startup_seconds,
        ),
        recycle_messages=reader.read("recycle_messages", Variable.RECYCLE_MESSAGES, None, _count),
        recycle_memory=reader.read("recycle_memory", Variable.RECYCLE_MEMORY, None, _memory),
        until_empty=reader.read("until_empty", Variable.UNTIL_EMPTY, False, _boolean),
        max_messages=max_messages,
        limit_queue=reader.text("limit_queue", Variable.LIMIT_QUEUE),
        hears_cancels=True,
        limit_rate_queue=reader.text("limit_rate_queue", Variable.LIMIT_RATE_QUEUE),
    )
    for flag, name in (
        ("exchange", exchange),
        ("dead-letter-queue", config.queue_settings.dead_letter_queue),
        ("limit-queue", config.limit_queue),
        ("limit-rate-queue", config.limit_rate_queue),
    ):
        reader.check_name(flag, name or "")
    if queue and config.queue_settings.dead_letter_queue == queue:
        reader.mistakes.append("The dead-letter queue is the work queue. Name another one.")
    _check_recycling(reader, config)
    if getattr(flags, "reload", False):
        _check_reload(reader, config)
    if reader.mistakes:
        raise ConfigurationError(reader.mistakes)
    return config


def _check_recycling(reader: _Reader, config: RunConfig) -> None:
    """Add a mistake if processes are to be replaced, but the handler has none."""
    recycles = config.recycle_messages is not None or config.recycle_memory is not None
    isolated = config.isolation is Isolation.PROCESS and isinstance(config.handler, PythonHandler)
    if recycles and not isolated:
        reader.mistakes.append(
            "Only the processes of a Python handler can be recycled. Use --isolation Process, or remove the limits."
        )


def _check_reload(reader: _Reader, config: RunConfig) -> None:
    """Add a mistake if --reload cannot be combined with another flag."""
    if not isinstance(config.handler, PythonHandler):
        reader.mistakes.append(
            "--reload is for Python handlers, since the worker loads no code of a command or an HTTP server. "
            "Remove --reload."
        )
    if config.until_empty or config.max_messages is not None:
        reader.mistakes.append(
            "--reload starts the worker again until you stop it. Remove --reload, or --until-empty and "
            "--max-messages."
        )


class _Reader:
    """Looks up each setting, and collects mistakes."""

    def __init__(self, flags: Namespace, environment: Mapping[str, str]) -> None:
        self.mistakes: list[str] = []
        self._flags = flags
        self._environment = environment

    def text(self, flag: str, variable: str) -> str | None:
        """Return the flag, else the variable, else None. An empty variable counts as not set."""
        value = getattr(self._flags, flag, None)
        return value if value not in {None, ""} else (self._environment.get(variable) or None)

    def read(self, flag: str, variable: str, default: T, convert: Callable[[str], T]) -> T:
        """Return the same, converted. A mistake names the flag or variable."""
        given = getattr(self._flags, flag, None)
        text = given if given not in {None, ""} else self._environment.get(variable)
        if text is None or text == "":
            return default
        try:
            return convert(str(text))
        except ValueError as error:
            place = variable if given in {None, ""} else f"--{flag.replace('_', '-')}"
            self.mistakes.append(f"{place} is {text!r}; it must be {error}.")
            return default

    def handler(self) -> PythonHandler | ExecHandler | HTTPHandler:
        """Return the one handler that is configured."""
        flags = {kind: getattr(self._flags, kind, None) or None for kind in ("handler", "exec", "http")}
        if not any(flags.values()):
            flags = {
                "handler": self._environment.get(Variable.HANDLER_PYTHON) or None,
                "exec": self._command(),
                "http": self._environment.get(Variable.HANDLER_HTTP) or None,
            }
        named = [kind for kind, value in flags.items() if value]
        if len(named) != 1:
            self.mistakes.append(
                "Give exactly one handler: MODULE:FUNCTION, --exec COMMAND or --http URL"
                + (f"; {len(named)} are given." if named else ".")
            )
            return PythonHandler("")
        if flags["exec"]:
            return ExecHandler(tuple(flags["exec"]))
        if flags["http"]:
            return self._http(str(flags["http"]))
        name = str(flags["handler"])
        module, colon, function = name.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), *function.split(".")]):
            self.mistakes.append(
                f"The handler is {name!r}; it must be MODULE:FUNCTION, such as thumbnails:resize."
            )
        return PythonHandler(name)

    def retry(self) -> RetryPolicy:
        """Return how messages are retried."""
        delays: Sequence[int] = self.read("delays", Variable.DELAYS_SECONDS, DEFAULT_RETRY_DELAYS, _delays)
        backoff = self.read("backoff", Variable.BACKOFF, None, RetryBackoff.parse)
        flags = [name for name in ("delays", "backoff") if getattr(self._flags, name, None)]
        variables = [
            name for name in (Variable.DELAYS_SECONDS, Variable.BACKOFF) if self._environment.get(name)
        ]
        both = (
            "--delays or --backoff" if len(flags) > 1 else f"{Variable.DELAYS_SECONDS} or {Variable.BACKOFF}"
        )
        if len(flags) > 1 or (not flags and len(variables) > 1):
            self.mistakes.append(f"Use either {both}, not both.")
        jitter = Jitter.NONE
        if backoff is not None and flags != ["delays"]:
            delays, jitter = backoff.delays_seconds, backoff.jitter
        return RetryPolicy(
            self.read("max_attempts", Variable.MAX_ATTEMPTS, 5, _count),
            delays,
            jitter,
            self.read("max_age", Variable.MAX_AGE_SECONDS, float(DEFAULT_MAX_AGE_SECONDS), _seconds),
        )

    def place(self) -> tuple[str | None, Path | None]:
        """Return the broker's URL, or the folder of a Service Binding."""
        flag_url, flag_folder = getattr(self._flags, "url", None), getattr(self._flags, "binding", None)
        folder_text = flag_folder or (None if flag_url else self._environment.get(Variable.BINDING))
        url = flag_url or (None if folder_text else self._environment.get(Variable.URL)) or None
        if flag_url and flag_folder:
            self.mistakes.append("Use either --url or --binding, not both.")
        # Read again at each connection: a handler may change the working directory.
        folder = Path(folder_text).absolute() if folder_text else None
        if url is None and folder is None:
            folder = self._service_binding()
        try:
            if url is not None:
                bindings.from_url(url)
            elif folder is not None:
                bindings.from_folder(folder)
        except BindingError as error:
            self.mistakes.append(str(error))
        return url, folder

    def _service_binding(self) -> Path | None:
        root = self._environment.get(Variable.SERVICE_BINDING_ROOT)
        if not root:
            return None
        types = sorted(Path(root).glob("*/type"))
        try:
            found = [file.parent for file in types if file.read_bytes().strip().lower() == b"rabbitmq"]
        except OSError as error:
            self.mistakes.append(f"SERVICE_BINDING_ROOT cannot be read: {error}.")
            return None
        if len(found) > 1:
            self.mistakes.append(
                f"SERVICE_BINDING_ROOT {root} has {len(found)} RabbitMQ bindings; choose with --binding."
            )
        return found[0] if len(found) == 1 else None

    def check_queue_name(self, queue: str) -> None:
        """Add a mistake if no work queue can have this name."""
        try:
            check_queue_name(queue)
        except UnicodeError:
            self.mistakes.append(f"The queue's name {queue!r} is not UTF-8.")
        except ValueError:
            self.mistakes.append(f"The queue's name is longer than {LONGEST_QUEUE_NAME_BYTES} bytes.")

    def check_name(self, flag: str, name: str) -> None:
        """Add a mistake if AMQP cannot carry a name: RabbitMQ would never be asked."""
        try:
            size = len(name.encode())
        except UnicodeError:
            self.mistakes.append(f"--{flag} {name!r} is not UTF-8.")
            return
        if size > LONGEST_NAME_BYTES:
            self.mistakes.append(f"--{flag} is longer than {LONGEST_NAME_BYTES} bytes.")

    def _command(self) -> list[str] | None:
        text = self._environment.get(Variable.HANDLER_EXEC)
        if not text:
            return None
        try:
            command = json.loads(text)
        except ValueError:
            command = None
        if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
            self.mistakes.append(
                'WORKQUEUE_HANDLER_EXEC must be a JSON list of strings, such as ["./resize", "--fast"].'
            )
            return ["invalid"]
        return command

    def _http(self, url: str) -> HTTPHandler:
        try:
            parts = urlsplit(url)
            good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
            path = parts.path + parts.query
            if good and (not path.isascii() or not path.isprintable() or " " in path):
                self.mistakes.append(
                    f"The handler's URL is {url!r}; write characters in it that are not ASCII, and spaces, as %20 and"
                    " so on."
                )
        except ValueError:
            good = False
        if not good:
            self.mistakes.append(f"The handler's URL is {url!r}; it must be like http://localhost:8080/jobs.")
        return HTTPHandler(url)


def _queue_type(text: str) -> QueueType:
    for kind in QueueType:
        if text.lower() == kind.lower():
            return kind
    raise ValueError("Quorum or Classic")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number from 1")
    return int(text)


def _concurrency(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CONCURRENCY:
        raise ValueError(f"a whole number from 1 to {MAX_CONCURRENCY}")
    return int(text)


def _isolation(text: str) -> Isolation:
    for kind in Isolation:
        if text.lower() == kind.lower():
            return kind
    raise ValueError("Process or Thread")


def _startup_seconds(text: str) -> float:
    seconds = _seconds(text)
    if seconds > LONGEST_STARTUP_TIMEOUT_SECONDS:
        raise ValueError(f"a number of seconds of at most {LONGEST_STARTUP_TIMEOUT_SECONDS}")
    return seconds


def _memory(text: str) -> int:
    number, unit = (text[:-2], text[-2:]) if text[-2:] in UNITS else (text, "")
    if not number.isdecimal() or int(number) < 1:
        raise ValueError("a number of bytes, such as 500Mi or 2Gi")
    return int(number) * UNITS.get(unit, 1)


def _delays(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= LONGEST_DELAY_SECONDS for word in words):
        raise ValueError(
            f"whole seconds from 1 to {LONGEST_DELAY_SECONDS}, separated by commas, such as 1,10,60"
        )
    return tuple(map(int, words))


def _seconds(text: str) -> float:
    seconds = _seconds_or_none(text)
    if seconds == 0:
        raise ValueError("a number of seconds above 0")
    return seconds


def _seconds_or_none(text: str) -> float:
    message = f"a number of seconds from 0 to {LONGEST_SECONDS:.0f}"
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(message) from None
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise ValueError(message)
    return seconds


def _port(text: str) -> int | None:
    if not text.isdecimal() or int(text) > 65_535:  # noqa: PLR2004 - the range of TCP ports
        raise ValueError("a port from 1 to 65535, or 0 for no endpoint")
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() in {"true", "1", "yes"}:
        return True
    if text.lower() in {"false", "0", "no"}:
        return False
    raise ValueError("true or false")


def _heartbeat(text: str) -> int | None:
    return bindings.parse_heartbeat(text)


def _log_level(text: str) -> str:
    if text.lower() not in {"debug", "info", "warning", "error"}:
        raise ValueError("debug, info, warning or error")
    return text.upper()


def _log_format(text: str) -> str | None:
    if text not in {"json", "text"}:
        raise ValueError("json or text")
    return text
