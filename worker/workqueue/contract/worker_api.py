"""The contract between a worker process and its environment: HTTP endpoint, environment variables, exit codes.

Worker, operator, Helm test and kubectl plugin import these names instead of repeating them.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

PORT: Final = 8090
"""The default port of the endpoint, and its port in a pod."""

LIVE_PATH: Final = "/livez"
READY_PATH: Final = "/readyz"
STATUS_PATH: Final = "/status"
METRICS_PATH: Final = "/metrics"
RETIRE_PATH: Final = "/retire"


class StatusField(StrEnum):
    """A field of the JSON object that `GET /status` returns."""

    QUEUE = "queue"
    SLOTS = "slots"
    BUSY = "busy"
    BUSY_SECONDS = "busySeconds"
    WAITING_FOR_TOKEN = "waitingForToken"  # noqa: S105 - a name
    """Busy slots whose message waits for a token of a limit."""
    CONSUMING = "consuming"
    QUEUE_ANSWERS = "queueAnswers"
    """Whether RabbitMQ has answered each request about a consumer. A queue without a leader answers none."""
    RETIRED = "retired"
    HANDLED = "handled"
    RECEIVED = "received"
    """Messages received since the start."""
    HANDLER_TIMES = "handlerTimes"
    """How many handlers returned since the start, by the bucket of `handler_times`."""
    MEAN_HANDLER_SECONDS = "meanHandlerSeconds"
    RECENT_HANDLER_SECONDS = "recentHandlerSeconds"
    ARRIVAL_PER_SECOND = "arrivalPerSecond"
    CONNECTED = "connected"
    LAST_ERROR = "lastError"
    RETRY_DELAYS_SECONDS = "retryDelaysSeconds"
    """Only from a worker of an earlier release: the delays whose queues it has declared."""
    DELAY_QUEUES = "delayQueues"
    """The delay queues that the worker knows, in the order in which messages pass them."""
    UPTIME_SECONDS = "uptimeSeconds"
    VERSION = "version"


class Variable(StrEnum):
    """An environment variable of `workqueue run`. The operator sets most of them in the pods of its workers."""

    HANDLER_PYTHON = "WORKQUEUE_HANDLER_PYTHON"
    HANDLER_EXEC = "WORKQUEUE_HANDLER_EXEC"
    HANDLER_HTTP = "WORKQUEUE_HANDLER_HTTP"
    QUEUE = "WORKQUEUE_QUEUE"
    QUEUE_TYPE = "WORKQUEUE_QUEUE_TYPE"
    EXCHANGE = "WORKQUEUE_EXCHANGE"
    DEAD_LETTER_QUEUE = "WORKQUEUE_DEAD_LETTER_QUEUE"
    DECLARE = "WORKQUEUE_DECLARE"
    MAX_ATTEMPTS = "WORKQUEUE_MAX_ATTEMPTS"
    DELAYS_SECONDS = "WORKQUEUE_DELAYS_SECONDS"
    BACKOFF = "WORKQUEUE_BACKOFF"
    MAX_AGE_SECONDS = "WORKQUEUE_MAX_AGE_SECONDS"
    DELIVERY_LIMIT = "WORKQUEUE_DELIVERY_LIMIT"
    WAKE_DELIVERIES = "WORKQUEUE_WAKE_DELIVERIES"
    TIMEOUT_SECONDS = "WORKQUEUE_TIMEOUT_SECONDS"
    GRACE_SECONDS = "WORKQUEUE_GRACE_SECONDS"
    CONCURRENCY = "WORKQUEUE_CONCURRENCY"
    LIMIT_QUEUE = "WORKQUEUE_LIMIT_QUEUE"
    LIMIT_RATE_QUEUE = "WORKQUEUE_LIMIT_RATE_QUEUE"
    ISOLATION = "WORKQUEUE_ISOLATION"
    STARTUP_TIMEOUT_SECONDS = "WORKQUEUE_STARTUP_TIMEOUT_SECONDS"
    RECYCLE_MESSAGES = "WORKQUEUE_RECYCLE_MESSAGES"
    RECYCLE_MEMORY = "WORKQUEUE_RECYCLE_MEMORY"
    UNTIL_EMPTY = "WORKQUEUE_UNTIL_EMPTY"
    MAX_MESSAGES = "WORKQUEUE_MAX_MESSAGES"
    PORT = "WORKQUEUE_PORT"
    URL = "WORKQUEUE_URL"
    BINDING = "WORKQUEUE_BINDING"
    SERVICE_BINDING_ROOT = "SERVICE_BINDING_ROOT"
    HEARTBEAT_SECONDS = "WORKQUEUE_HEARTBEAT_SECONDS"
    LOG_FORMAT = "WORKQUEUE_LOG_FORMAT"
    LOG_LEVEL = "WORKQUEUE_LOG_LEVEL"
    RETIREMENT_KEY_FILE = "WORKQUEUE_RETIREMENT_KEY_FILE"
    TERMINATION_LOG = "WORKQUEUE_TERMINATION_LOG"
    POD_NAME = "WORKQUEUE_POD_NAME"
    POD_UID = "WORKQUEUE_POD_UID"


class Isolation(StrEnum):
    """Where a Python handler runs."""

    PROCESS = "Process"
    """In processes of its own."""
    THREAD = "Thread"
    """In threads of the worker's process, or in its asyncio loop."""


DEFAULT_STARTUP_TIMEOUT_SECONDS: Final = 60
LONGEST_STARTUP_TIMEOUT_SECONDS: Final = 3_600
"""Seconds that loading a handler may take."""


class ExitCode(IntEnum):
    """How a worker process ends."""

    DONE = 0
    FAILED = 1
    CONFIGURATION = 2
    HANDLER = 3
    """The handler cannot be loaded or reached."""
