"""One connection to RabbitMQ that reconnects until it is closed.

A worker consumes over one connection and publishes over another, so that it can acknowledge while RabbitMQ's memory
alarm blocks publishing. Each attempt to connect reads the binding again (rotated credentials) and tries the next
address.

Every use of pika, here and above, happens under `exclusive()`. Callbacks hold it already; other threads take
it or use `call()`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pika
import pika.exceptions
from pika.adapters.select_connection import SelectConnection

from workqueue import __version__
from workqueue.amqp import tls
from workqueue.amqp.backoff import STEADY_SECONDS, Backoff
from workqueue.amqp.errors import BrokerError, describe
from workqueue.amqp.frame_limits import BoundedFrames, receive_in_large_parts
from workqueue.amqp.io_loop import Loop, Timer, does_io
from workqueue.amqp.parameters import connection_parameters
from workqueue.amqp.short_paths import ShortPaths
from workqueue.contract.binding import Binding
from workqueue.contract.errors import BindingError
from workqueue.contract.topology import BrokerVersion

HEARTBEAT_SECONDS: Final = 60
"""The default, as in RabbitMQ. A handler that holds Python's lock (the GIL) in a C extension stops the heartbeats.
With 10 s, such a worker lost its connection every half minute.

A peer that no longer answers is noticed after 65 to 130 s, since pika checks every 65 s.
"""

KEEPALIVE: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""The kernel notices within 25 s that the host of an idle connection is gone, even while Python is blocked."""

BLOCKED_TIMEOUT_SECONDS: Final = 300.0
"""A connection that the broker's memory or disk alarm blocks for this long is opened again.

Heartbeats continue while it is blocked, so that publishers would otherwise wait for their confirms without end.
"""

CONNECT_TIMEOUT_SECONDS: Final = 5.0
HANDSHAKE_TIMEOUT_SECONDS: Final = 10.0
FIRST_WAIT_SECONDS: Final = 0.2
LONGEST_WAIT_SECONDS: Final = 15.0

CLOSED: Final = "closed by this process"

logger = logging.getLogger(__name__)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Return False for pika's log records about our connections, since each event is logged once, here.

    Critical records are bugs of pika and stay. So do records about other connections, those of the user's code.
    """
    return record.levelno >= logging.CRITICAL or not does_io()


for _name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "pika"]:
    # A filter on the parent logger would not see their records.
    logging.getLogger(_name).addFilter(_is_wanted)


class _PikaConnection(ShortPaths, SelectConnection):  # type: ignore[misc]
    """pika's connection with limits on what it reads, and less work for each message."""


class _BodilessConnection(BoundedFrames, SelectConnection):  # type: ignore[misc]
    """pika's connection with limits on what it reads, for callers that read only the headers of messages."""

    keeps_bodies = False


class Connection:
    """A connection that reconnects until it is closed.

    Args:
        binding_source: called at each attempt. A BindingError counts as a failed attempt.
        name: the connection's name in RabbitMQ's lists.
        on_open: called with the generation, 1 for the first, each time the connection is open.
        on_lost: called with the reason exactly once for each `on_open`, also after `close()`.
        keeps_bodies: if False, messages arrive with empty bodies (see BoundedFrames).

    Attributes:
        generation: how often it was opened. A channel of an older generation is closed.
        version: RabbitMQ's version; None before the first connect.
        last_error: why it is not open, or None.
        blocked: whether an alarm of the broker blocks publishing.
    """

    def __init__(
        self,
        binding_source: Callable[[], Binding],
        name: str,
        *,
        on_open: Callable[[int], None] = lambda _generation: None,
        on_lost: Callable[[str], None] = lambda _reason: None,
        blocked_timeout_seconds: float = BLOCKED_TIMEOUT_SECONDS,
        keeps_bodies: bool = True,
    ) -> None:
        self.name = name
        self.generation = 0
        self.version: BrokerVersion | None = None
        self.last_error: str | None = None
        self.blocked = False
        self.loop = Loop(self._on_callback_error)
        self._binding_source = binding_source
        self._on_open = on_open
        self._on_lost = on_lost
        self._blocked_timeout_seconds = blocked_timeout_seconds
        self._keeps_bodies = keeps_bodies
        self._pika: SelectConnection | None = None
        self._is_open = False
        self._opened_at = 0.0
        self._address = 0
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
        self._retry: Timer | None = None
        self._told: set[tuple[str | None, str]] = set()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._done = threading.Event()

    # For any thread --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect in an I/O thread. Returns immediately."""
        self.begin()
        self._thread = threading.Thread(target=self.loop.start, name=f"io-{self.name}", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Connect when the caller's threads run `loop`."""
        self.loop.add_callback(self._attempt)

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` soon, under the lock. Thread-safe; never blocks."""
        self.loop.add_callback(function)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock, so that the calling thread may use pika. Written data is sent at the end."""
        with self.loop:
            yield

    @property
    def is_open(self) -> bool:
        """Whether it is open, as far as this process knows."""
        return self._is_open

    @property
    def channel_max(self) -> int:
        """How many channels the connection may have, as negotiated with the broker. Read it while open."""
        assert self._pika is not None  # noqa: S101 - open
        return int(self._pika.params.channel_max or pika.channel.MAX_CHANNELS)

    @property
    def tick_age(self) -> float:
        """Seconds since the I/O loop last turned. It turns at least every 5 s."""
        return time.monotonic() - self.loop.last_turn

    def close(self, timeout: float = 3.0) -> None:
        """Close it, with a closing handshake if the broker answers within `timeout` seconds. Not for I/O callbacks.

        After `begin()` the caller's threads may still run the loop. The caller then calls `loop.close()`.
        """
        self.loop.add_callback(self._close)
        if self._thread is None:
            deadline = time.monotonic() + timeout
            while not self._done.is_set() and time.monotonic() < deadline:
                self.loop.run_once(0.05)
            return
        self._done.wait(timeout)
        self.loop.stop()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self.loop.close()

    # Under the lock -------------------------------------------------------------------------------------

    def channel(self, on_open: Callable[[Any], None]) -> Any:
        """Open a pika channel. `on_open` is called with it.

        Raises:
            BrokerError: the connection is not open, or has no free channel.
        """
        if self._pika is None or not self._is_open:
            raise BrokerError("The connection to RabbitMQ is not open.")
        try:
            return self._pika.channel(on_open_callback=on_open)
        except pika.exceptions.NoFreeChannels as error:
            raise BrokerError(
                f"All {self.channel_max} channels of the connection are in use (channel_max of RabbitMQ)."
            ) from error
        except pika.exceptions.AMQPError as error:
            raise BrokerError(describe(error)) from error

    def call_later(self, seconds: float, function: Callable[[], None]) -> Timer:
        """Run `function` after `seconds`. Cancel it with `loop.remove_timeout`."""
        return self.loop.call_later(seconds, function)

    def flush(self) -> None:
        """Send written data now, and not only at the end of `exclusive()`."""
        self.loop.flush()

    def abort(self, reason: str) -> None:
        """Drop the connection without a closing handshake, and connect again."""
        if self._pika is None:
            return
        if not self._pika.is_closed:
            self._pika._terminate_stream(pika.exceptions.StreamLostError(reason))  # noqa: SLF001
        elif self._is_open:
            # A callback failed before pika could report the loss.
            self._lost(reason)

    # Connecting ------------------------------------------------------------------------------------------

    def _attempt(self) -> None:
        self._retry = None
        if self._closing:
            return
        try:
            binding = self._binding_source()
            host, port = binding.addresses[self._address % len(binding.addresses)]
            parameters = self._parameters(binding, (host, port))
        except (BindingError, OSError, *tls.UNUSABLE) as error:
            self._failed(f"the connection data cannot be used: {error}", 1, None)
            return
        addresses = len(binding.addresses)
        kind = _PikaConnection if self._keeps_bodies else _BodilessConnection
        self._pika = kind(
            parameters,
            on_open_callback=lambda opened: self._opened(opened, binding),
            on_open_error_callback=lambda _, error: self._failed(
                describe(error), addresses, f"{host}:{port}"
            ),
            on_close_callback=self._closed,
            custom_ioloop=self.loop,
        )

    def _parameters(self, binding: Binding, address: tuple[str, int]) -> pika.ConnectionParameters:
        parameters = connection_parameters(
            binding,
            address,
            tls.context(binding.tls) if binding.tls else None,
            {"connection_name": self.name, "product": "workqueue-operator", "version": __version__},
            heartbeat=binding.heartbeat_seconds or HEARTBEAT_SECONDS,
            tcp_options=KEEPALIVE,
            blocked_connection_timeout=self._blocked_timeout_seconds,
            socket_timeout=CONNECT_TIMEOUT_SECONDS,
            stack_timeout=HANDSHAKE_TIMEOUT_SECONDS,
        )
        if parameters.host.isascii():
            # For text, `getaddrinfo` imports Python's codec for international names, which takes 2 ms.
            parameters._host = parameters.host.encode()  # noqa: SLF001
        return parameters

    def _opened(self, opened: SelectConnection, binding: Binding) -> None:
        self.generation += 1
        self.version = BrokerVersion.parse(str(opened.server_properties.get("version", "")))
        self.last_error = None
        self._told.clear()
        self.blocked = False
        self._is_open = True
        self._opened_at = time.monotonic()
        self.loop.send_at_once = True
        receive_in_large_parts(opened, tls=binding.tls is not None)
        if isinstance(opened, ShortPaths):
            opened.send_together(self.loop.send_later, tls=binding.tls is not None)
        if self._closing:
            opened.close()
        opened.add_on_connection_blocked_callback(lambda _, frame: self._set_blocked(frame.method.reason))
        opened.add_on_connection_unblocked_callback(lambda _, _frame: self._set_blocked(None))
        logger.info(
            "Connected to RabbitMQ.",
            extra={
                "connection": self.name,
                "broker": binding.display,
                "version": f"{self.version.major}.{self.version.minor}",
                "generation": self.generation,
            },
        )
        self._on_open(self.generation)

    def _set_blocked(self, reason: object) -> None:
        self.blocked = reason is not None
        if reason is None:
            logger.info("RabbitMQ accepts messages again.", extra={"connection": self.name})
        else:
            logger.warning(
                "RabbitMQ blocks publishing.", extra={"connection": self.name, "reason": str(reason)}
            )

    def _closed(self, closed: SelectConnection, error: BaseException) -> None:
        if closed is self._pika:
            self._lost(describe(error))

    def _lost(self, reason: str) -> None:
        self._pika = None
        was_open, self._is_open = self._is_open, False
        self.loop.send_at_once = False
        self.blocked = False
        if self._closing:
            reason = CLOSED
        else:
            self.last_error = reason
            logger.warning(
                "Connection to RabbitMQ lost; connecting again.",
                extra={"connection": self.name, "reason": reason},
            )
            if time.monotonic() - self._opened_at >= STEADY_SECONDS:
                self._backoff.reset()
        if was_open:
            self._on_lost(reason)
        if self._closing:
            self._done.set()
        else:
            self._retry = self.loop.call_later(self._backoff.next(), self._attempt)

    def _failed(self, reason: str, addresses: int, address: str | None) -> None:
        self._pika = None
        self.last_error = reason
        if self._closing:
            self._done.set()
            return
        # One log line per reason, not per attempt: an outage may last for hours.
        if (address, reason) not in self._told:
            self._told.add((address, reason))
            extra = {"connection": self.name, "reason": reason}
            logger.warning(
                "RabbitMQ cannot be reached; trying again.",
                extra=extra | ({"address": address} if address else {}),
            )
        self._address += 1
        # The other addresses are tried immediately. The delay comes after all have failed.
        wait = 0.0 if self._address % addresses else self._backoff.next()
        self._retry = self.loop.call_later(wait, self._attempt)

    def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._retry is not None:
            self.loop.remove_timeout(self._retry)
        if self._pika is None:
            self._done.set()
        elif not self._pika.is_closing and not self._pika.is_closed:
            self._pika.close()

    def _on_callback_error(self, error: Exception) -> None:
        if self._closing and not self._is_open:
            # pika 1.4 fails when a connection is closed before it is open: it takes a class for an exception.
            self.abort(CLOSED)
            self._done.set()
            return
        # The failure may have left pika in any state. Only a new connection is known to be good.
        logger.error("An I/O callback failed; connecting again.", exc_info=error)
        self.abort(f"an I/O callback failed: {error!r}")
