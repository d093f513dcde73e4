"""Real RabbitMQ servers for tests, benchmarks and people: 3.10, 4.0 and 4.3, side by side on loopback.

Each runs from a Debian root file system (hack/cluster/rootfs.py) in its own mount and process namespaces, so that
no mount and no process is left, however this process ends. By hand:

    python -m tests.support.rabbitmq 4.0        runs one until Ctrl-C and prints its URL
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import pika
import pika.exceptions
import pytest

from hack.cluster.rootfs import RootfsError, rootfs
from tests.support.certificates import Certificates, make_certificates
from tests.support.ports import free_ports
from tests.support.process import frozen
from tests.support.wait import eventually

RELEASES: Final = {"3.10": "bookworm", "4.0": "trixie", "4.3": "sid"}
"""The RabbitMQ series under test, and the Debian release of each."""

DEFAULT: Final = "4.0"
START_SECONDS: Final = 300.0
STOP_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 60.0

_HOME: Final = "/var/lib/rabbitmq"
_NODE: Final = "rabbit@localhost"
_NAMESPACES: Final = ("--mount", "--pid", "--uts")
_ORDINARY: Final = re.compile(
    r"\[(?:info|notice|debug)\]|Channel error on connection|channel exception (?:not_found|precondition_failed)"
)

# From the consensus library: the queue's own record may be stale after a failover.
_LEADER: Final = (
    "case ra:members({element(1, amqqueue:get_pid(Q)), node()}) of {ok, _, {_, Node}} -> Node; _ -> none end"
)

# Process 1 of the namespaces. It ends, and the kernel then kills all the others, when the server ends or
# when standard input reaches its end: the other end of that pipe dies with the process that started us.
# The host name inside is localhost: RabbitMQ looks up its host name for each connection, and a name that is
# missing in the hosts file sometimes makes it wait 5 s for a name server.
_FIRST_PROCESS: Final = """
set -e
root=$1 data=$2
shift 2
echo localhost >/proc/sys/kernel/hostname
mount --bind "$data" "$root/var/lib/rabbitmq"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
mount -t proc proc "$root/proc"
exec 3<&0
chroot "$root" "$@" </dev/null &
server=$!
cat <&3 >/dev/null &
wait -n "$server" "$!"
"""


def in_namespaces(root: Path, data: Path, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Run a command in a root file system and namespaces of its own, until it ends or its stdin is closed.

    Args:
        data: folder mounted over `/var/lib/rabbitmq`.
        log: receives the output.
    """
    outside = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "bash", "-c", _FIRST_PROCESS]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*outside, "rabbitmq", str(root), str(data), *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
        )


def installed(series: str) -> Path:
    """Return the root file system with this version of RabbitMQ. The first call makes it, and needs the network."""
    return rootfs(RELEASES[series], ["rabbitmq-server"])


class BrokerError(AssertionError):
    """RabbitMQ failed to do what the test needs; the message ends with the tail of its log."""


class _NotConnectedError(BrokerError):
    """The tool could not reach the server."""


class Depth(NamedTuple):
    """The message counts of a queue."""

    ready: int
    unacknowledged: int


class _Ports(NamedTuple):
    amqp: int
    amqps: int
    management: int
    distribution: int
    epmd: int


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """A virtual host made for one test."""

    broker: Broker
    name: str

    @property
    def url(self) -> str:
        """The AMQP URL, as guest."""
        return self.broker.url_of(self.name)

    def connect(self) -> pika.BlockingConnection:
        """A plain connection for the test itself."""
        return self.broker.connect(self.name)

    def depth(self, queue: str) -> Depth:
        """The counts of ready and of unacknowledged messages."""
        return self.broker.depth(queue, self.name)

    def exists(self, queue: str) -> bool:
        """Whether the queue is declared."""
        return self.broker.exists(queue, self.name)

    def cancel_consumers(self, queue: str) -> None:
        """Cancel the consumers of a queue, as when its leader moves."""
        self.broker.cancel_consumers(queue, self.name)


@dataclass(frozen=True, slots=True)
class Member:
    """The settings of a cluster node; see tests/support/rabbitmq_cluster.py.

    Attributes:
        node: its name as an Erlang node.
        epmd_port: the port of the name service of all nodes.
        cookie: the shared secret of the nodes.
        peers: all nodes of the cluster; empty for a server of its own.
    """

    node: str
    epmd_port: int
    cookie: str
    peers: tuple[str, ...]


class Broker:
    """One RabbitMQ server. Its ports and its data survive `stop`, `kill` and `restart`.

    Attributes:
        series: `3.10`, `4.0` or `4.3`.
        version: as reported by the server, such as `4.0.5`; empty before the first start.
        port, tls_port, management_port: on 127.0.0.1.
        certificates: of the TLS listener, and a client certificate for the user guest (EXTERNAL works).
        node: its name as an Erlang node.
        log: the server's log file.
    """

    def __init__(
        self, series: str, folder: Path, *, management: bool = True, member: Member | None = None
    ) -> None:
        self.series = series
        self.version = ""
        self.folder = folder
        self.log = folder / "server.log"
        self._ports = _Ports(*free_ports(len(_Ports._fields)))
        self._member = member or Member(_NODE, self._ports.epmd, uuid.uuid4().hex, ())
        self.node = self._member.node
        self.port, self.tls_port, self.management_port = self._ports[:3]
        self._root = installed(series)
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._data.mkdir(parents=True)
        self.certificates: Certificates = make_certificates(self._data / "tls")
        self._write_configuration(management=management)

    def __repr__(self) -> str:
        return f"<RabbitMQ {self.version or self.series} on port {self.port}>"

    # -- addresses

    @property
    def url(self) -> str:
        """The AMQP URL of the virtual host `/`, as guest."""
        return self.url_of("/")

    @property
    def management_url(self) -> str:
        """The base URL of the management API."""
        return f"http://127.0.0.1:{self.management_port}"

    def url_of(
        self, vhost: str, username: str = "guest", password: str = "guest", *, tls: bool = False
    ) -> str:
        """The AMQP URL of a virtual host for a user."""
        place = f"localhost:{self.tls_port}" if tls else f"127.0.0.1:{self.port}"
        who = f"{quote(username, safe='')}:{quote(password, safe='')}"
        return f"{'amqps' if tls else 'amqp'}://{who}@{place}/{quote(vhost, safe='')}"

    # -- life

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped or killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        self.spawn()
        self.wait_until_ready()

    def spawn(self) -> None:
        """Start the server without waiting; `wait_until_ready` must follow."""
        assert self._process is None, f"{self!r} is running already."
        command = [*self._in_chroot(), "/usr/lib/rabbitmq/bin/rabbitmq-server"]
        self._process = in_namespaces(self._root, self._data, command, self.log)

    def wait_until_ready(self) -> None:
        """Wait until a connection can be opened."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process is not None, f"{self!r} was not started."
            if self._process.poll() is not None:
                raise BrokerError(f"{self!r} ended while it started:\n{self.log_tail()}")
            with suppress(pika.exceptions.AMQPError, OSError), self.connect() as connection:
                self.version = connection._impl.server_properties["version"]
                return
            if time.monotonic() > deadline:
                raise BrokerError(f"{self!r} is not ready after {START_SECONDS} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Shut down cleanly, as for an upgrade. Do nothing when it is not running."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._server_process(), signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill it immediately (SIGKILL), as when a machine fails. Do nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError, IndexError):
            os.kill(_children(process.pid)[0], signal.SIGKILL)
        process.communicate()

    def save_queues(self) -> None:
        """Write to disk which queues exist. A server that is killed forgets those of the last half second."""
        self.evaluate("[dets:sync(Table) || Table <- dets:all()], catch mnesia:sync_log()")

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) it and start it again on the same ports with the same data."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def wipe(self) -> None:
        """Kill it and start it again without its data: an empty server on the same ports."""
        self.kill()
        shutil.rmtree(self._data / "mnesia")
        self.start()

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the server while its sockets stay open, as behind a network that drops packets."""
        with frozen(self._server_process()):
            yield

    # -- requests of a test

    def connect(self, vhost: str = "/") -> pika.BlockingConnection:
        """A plain connection for the test itself."""
        parameters = pika.URLParameters(self.url_of(vhost))
        parameters.heartbeat = 0  # a test may do something else for minutes
        parameters.socket_timeout = parameters.stack_timeout = CONNECT_SECONDS
        return pika.BlockingConnection(parameters)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl (takes a second or two) and return what it prints."""
        return self._run("/usr/lib/rabbitmq/bin/rabbitmqctl", "--quiet", "--node", self.node, *arguments)

    def evaluate(self, expression: str) -> str:
        """Evaluate Erlang expressions on the server (takes some milliseconds) and return the printed term."""
        command = ("erl_call", "-sname", self.node, "-c", self._member.cookie, "-e")

        def run() -> str:
            with suppress(_NotConnectedError):  # sometimes on a busy machine; nothing was evaluated
                return self._run(*command, input=f"{expression}.\n")
            return ""

        printed = eventually(run, what=f"{self!r} evaluates {expression!r}")
        found = re.fullmatch(r"\{ok, (.*)\}\s*", printed, re.DOTALL)
        if not found:
            raise BrokerError(f"{self!r} answered {printed!r} to {expression!r}.")
        return found[1]

    @contextmanager
    def new_vhost(self, name: str | None = None) -> Iterator[VirtualHost]:
        """A new virtual host in which guest may do everything; deleted at the end."""
        name = name or f"test-{uuid.uuid4().hex[:12]}"
        self.add_vhost(name)
        try:
            yield VirtualHost(self, name)
        finally:
            if self._process is not None:
                self.delete_vhost(name)

    def add_vhost(self, name: str) -> None:
        """Add a virtual host in which guest may do everything."""
        self.evaluate(f"rabbit_vhost:add({_binary(name)}, {_binary('test')})")
        self.allow("guest", name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with everything in it; its connections are closed."""
        self.evaluate(f"rabbit_vhost:delete({_binary(name)}, {_binary('test')})")

    def allow(
        self, username: str, vhost: str = "/", configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Set a user's permissions in a virtual host."""
        patterns = ", ".join(map(_binary, (username, vhost, configure, write, read, "test")))
        self.evaluate(f"rabbit_auth_backend_internal:set_permissions({patterns})")

    def forbid(self, username: str, vhost: str = "/") -> None:
        """Withdraw all of a user's permissions in a virtual host; connections that are open stay open."""
        who = ", ".join(map(_binary, (username, vhost, "test")))
        self.evaluate(f"rabbit_auth_backend_internal:clear_permissions({who})")

    def add_user(
        self,
        username: str,
        password: str,
        vhost: str = "/",
        *,
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
    ) -> None:
        """Add a user with these permissions (regular expressions) in a virtual host."""
        who = ", ".join(map(_binary, (username, password, "test")))
        self.evaluate(f"rabbit_auth_backend_internal:add_user({who})")
        self.allow(username, vhost, configure, write, read)

    def change_password(self, username: str, password: str) -> None:
        """Give a user another password."""
        who = ", ".join(map(_binary, (username, password, "test")))
        self.evaluate(f"rabbit_auth_backend_internal:change_password({who})")

    def delete_user(self, username: str) -> None:
        """Delete a user; connections that are open stay open."""
        self.evaluate(f"rabbit_auth_backend_internal:delete_user({_binary(username)}, {_binary('test')})")

    def depth(self, queue: str, vhost: str = "/") -> Depth:
        """The live counts of ready messages, and of held messages that are not ready.

        Held: unacknowledged, or in transfer from a quorum queue to a dead-letter target.

        A quorum queue applies what a channel sends to it when its log is on disk. The command that purges no node
        comes after all that channels have sent.
        """
        expression = (
            f"{{ok, Q}} = rabbit_amqqueue:lookup({_resource(vhost, queue)}),"
            "case amqqueue:get_type(Q) of"
            "  rabbit_quorum_queue ->"
            "    Leader = amqqueue:get_pid(Q),"
            "    ra:process_command(Leader, rabbit_fifo:make_purge_nodes([])),"
            "    Counts = fun(S) -> {rabbit_fifo:query_messages_ready(S), rabbit_fifo:query_messages_total(S)} end,"
            "    case ra:local_query(Leader, Counts) of"
            "      {ok, {_, {Ready, All}}, _} -> {Ready, All - Ready};"
            "      _ -> recovering "
            "    end;"
            "  _ ->"
            "    [{_, Ready}, {_, Held}] ="
            "      rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged]),"
            "    {Ready, Held} "
            "end"
        )
        deadline = time.monotonic() + START_SECONDS
        while (printed := self.evaluate(expression)) == "recovering":
            if time.monotonic() > deadline:
                raise BrokerError(f"{self!r}: the queue {queue} does not recover.")
            time.sleep(0.05)
        return Depth(*map(int, re.findall(r"\d+", printed)))

    def exists(self, queue: str, vhost: str = "/") -> bool:
        """Whether the queue is declared."""
        return self.evaluate(f"rabbit_amqqueue:exists({_resource(vhost, queue)})") == "true"

    def cancel_consumers(self, queue: str, vhost: str = "/") -> None:
        """Cancel the consumers of a queue, as when its leader moves; the queue stays.

        A server of one node does so unasked only when the queue is deleted.
        """
        self.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup({_resource(vhost, queue)}),"
            "[rabbit_channel:send_command(element(1, C), {'basic.cancel', element(2, C), true})"
            " || C <- rabbit_amqqueue:consumers(Q)]"
        )

    def close_connections(self, reason: str = "closed by a test", spared: str = "") -> None:
        """Close every client connection from the server's side (320 CONNECTION_FORCED).

        Args:
            spared: the `connection_name` of the connections that stay.
        """
        name = f'{{<<"connection_name">>, longstr, <<"{spared}">>}}'
        self.evaluate(
            f'[rabbit_networking:close_connection(P, "{reason}") || P <- rabbit_networking:connections(),'
            " case catch rabbit_reader:info(P, [client_properties]) of"
            # `none` as long as a connection is being opened.
            f" [{{client_properties, Told}}] when is_list(Told) -> not lists:member({name}, Told); _ -> true end]"
        )

    def leader(self, queue: str, vhost: str = "/") -> str:
        """The leader node of a quorum queue, as known to this node."""
        found = self.evaluate(f"{{ok, Q}} = rabbit_amqqueue:lookup({_resource(vhost, queue)}), {_LEADER}")
        return found.strip("'")

    def kill_leader(self, queue: str, vhost: str = "/") -> None:
        """Kill the leader process of a quorum queue on this node; another member is elected."""
        self.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup({_resource(vhost, queue)}),"
            "exit(whereis(element(1, amqqueue:get_pid(Q))), kill)"
        )

    @contextmanager
    def suspended(self, queue: str, vhost: str = "/") -> Iterator[None]:
        """Freeze the queue: it accepts and confirms nothing, while the server and its channels keep running."""
        queue_record = f"element(2, rabbit_amqqueue:lookup({_resource(vhost, queue)}))"
        self.evaluate(f"sys:suspend(amqqueue:get_pid({queue_record}))")
        try:
            yield
        finally:
            self.evaluate(f"sys:resume(amqqueue:get_pid({queue_record}))")

    @contextmanager
    def suspended_member(self, queue: str, vhost: str = "/") -> Iterator[None]:
        """Freeze this node's member of a quorum queue while the context lasts; the rest of the node keeps running."""
        member = f"{{ok, Q}} = rabbit_amqqueue:lookup({_resource(vhost, queue)}), M = element(1, amqqueue:get_pid(Q))"
        self.evaluate(f"{member}, sys:suspend(M)")
        try:
            yield
        finally:
            self.evaluate(f"{member}, sys:resume(M)")

    @contextmanager
    def consumer_timeout(self, seconds: float) -> Iterator[None]:
        """Set the consumer timeout; the server checks it at the same interval."""
        names = ("consumer_timeout", "channel_tick_interval")
        before = [self.evaluate(f"{{ok, T}} = application:get_env(rabbit, {name}), T") for name in names]
        for name, value in zip(names, (int(seconds * 1000), int(seconds * 250)), strict=True):
            self.evaluate(f"application:set_env(rabbit, {name}, {value})")
        try:
            yield
        finally:
            for name, old in zip(names, before, strict=True):
                self.evaluate(f"application:set_env(rabbit, {name}, {old})")

    @contextmanager
    def channel_max(self, count: int) -> Iterator[None]:
        """Limit the channels of each connection that is opened while the context lasts."""
        old = self.evaluate("{ok, Old} = application:get_env(rabbit, channel_max), Old")
        self.evaluate(f"application:set_env(rabbit, channel_max, {count})")
        try:
            yield
        finally:
            self.evaluate(f"application:set_env(rabbit, channel_max, {old})")

    def kill_channel(self, vhost: str) -> None:
        """Kill the process of one channel that has a consumer."""
        self.evaluate(
            "[C | _] = [C || C <- rabbit_channel:list_local(),"
            f" [{{vhost, {_binary(vhost)}}}, {{consumer_count, N}}] <-"
            " [catch rabbit_channel:info(C, [vhost, consumer_count])], N > 0], exit(C, kill)"
        )

    @contextmanager
    def disk_alarm(self) -> Iterator[None]:
        """Raise the server's disk alarm: connections that publish are blocked."""
        before = self.evaluate("rabbit_disk_monitor:get_disk_free_limit()")
        self.evaluate("rabbit_disk_monitor:set_disk_free_limit(1000000000000000)")
        try:
            self._await_alarm()
            yield
        finally:
            self.evaluate(f"rabbit_disk_monitor:set_disk_free_limit({before})")

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Raise the server's memory alarm: connections that publish are blocked."""
        before = self.evaluate("vm_memory_monitor:get_vm_memory_high_watermark()")
        self.evaluate("vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1})")
        try:
            self._await_alarm()
            yield
        finally:
            self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({before})")

    def _await_alarm(self) -> None:
        """Wait for an alarm (some versions look only at intervals), and until each connection knows of it."""
        unaware = (
            "[C || C <- rabbit_networking:connections(),"
            " [{state, running}] <- [catch rabbit_reader:info(C, [state])]]"
        )
        eventually(lambda: self.evaluate(f"{{rabbit_alarm:get_alarms() =/= [], {unaware}}}") == "{true, []}")

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def complaints(self, since: int = 0, lines: int = 120) -> str:
        """The first lines of the server's log after an offset, without refused requests of clients."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(since)
            logged = file.read().decode(errors="replace").splitlines()
        return "\n".join([line for line in logged if not _ORDINARY.search(line)][:lines])

    # -- inside

    def _run(self, *command: str, input: str = "") -> str:  # noqa: A002 - as subprocess.run names it
        assert self._process is not None, f"{self!r} is not running."
        first = _children(self._process.pid)[0]
        enter = ["nsenter", *_NAMESPACES, f"--target={first}"]
        done = subprocess.run(
            [*enter, "chroot", str(self._root), *self._in_chroot(), *command],
            capture_output=True,
            text=True,
            input=input,
            check=False,
        )
        if "failed to connect to node" in done.stderr:
            raise _NotConnectedError(f"{self!r}: {done.stderr}")
        if done.returncode != 0:
            raise BrokerError(f"{self!r}: {command[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _in_chroot(self) -> Sequence[str]:
        erlang = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": _HOME,
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._member.epmd_port),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._ports.distribution),
            "RABBITMQ_CONFIG_FILE": f"{_HOME}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{_HOME}/enabled_plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erlang,
        }
        return ("env", "--ignore-environment", *(f"{key}={value}" for key, value in environment.items()))

    def _write_configuration(self, *, management: bool) -> None:
        tls = f"{_HOME}/tls"
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
            f"ssl_options.cacertfile = {tls}/{self.certificates.authority.name}",
            f"ssl_options.certfile = {tls}/{self.certificates.server_certificate.name}",
            f"ssl_options.keyfile = {tls}/{self.certificates.server_key.name}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = false",
            "ssl_cert_login_from = common_name",
            "auth_mechanisms.1 = PLAIN",
            "auth_mechanisms.2 = EXTERNAL",
            "loopback_users = none",
            "log.console = true",
            "log.file = false",
        ]
        plugins = ["rabbitmq_auth_mechanism_ssl"]
        if management:
            plugins.append("rabbitmq_management")
            lines += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self.management_port}"]
        if self._member.peers:
            lines.append("cluster_formation.peer_discovery_backend = classic_config")
        for number, peer in enumerate(self._member.peers, 1):
            lines.append(f"cluster_formation.classic_config.nodes.{number} = {peer}")
        (self._data / "rabbitmq.conf").write_text("\n".join([*lines, ""]))
        (self._data / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        cookie = self._data / ".erlang.cookie"
        cookie.write_text(self._member.cookie)
        cookie.chmod(0o400)

    def _server_process(self) -> int:
        """The Erlang machine, seen from outside its namespace."""
        assert self._process is not None, f"{self!r} is not running."
        waiting = [self._process.pid]
        while waiting:
            process = waiting.pop()
            with suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{process}/comm").read_text().strip() == "beam.smp":
                    return process
            waiting += _children(process)
        raise ProcessLookupError(f"{self!r} has no Erlang process yet.")


def _children(process: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _binary(text: str) -> str:
    return f"<<{','.join(map(str, text.encode()))}>>"


def _resource(vhost: str, queue: str) -> str:
    return f"rabbit_misc:r({_binary(vhost)}, queue, {_binary(queue)})"


@contextmanager
def running(series: str = DEFAULT, *, management: bool = True) -> Iterator[Broker]:
    """One RabbitMQ that runs until the context ends, with its data in a temporary folder."""
    broker = Broker(series, Path(tempfile.mkdtemp(prefix="rabbitmq-")), management=management)
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


# -- fixtures


class _Brokers:
    """The servers of one test session. The first use of a server starts it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: dict[str, Broker] = {}
        self._marks: dict[str, int] = {}

    def get(self, series: str) -> Broker:
        if series not in self._started:
            self._started[series] = broker = Broker(series, self._folder / series)
            broker.start()
        return self._started[series]

    def close(self) -> None:
        for broker in self._started.values():
            broker.close()

    def mark(self) -> None:
        """Remember the end of each log at the start of a test."""
        for series, broker in self._started.items():
            self._marks[series] = broker.log.stat().st_size if broker.log.exists() else 0

    def complaints(self) -> dict[str, str]:
        """The complaints of each server since the mark, by series."""
        return {
            series: broker.complaints(self._marks.get(series, 0)) for series, broker in self._started.items()
        }


_SERVERS: Final = pytest.StashKey[_Brokers]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Mark the ends of the servers' logs at the start of a test."""
    if (servers := item.session.stash.get(_SERVERS, None)) is not None:
        servers.mark()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the complaints of the servers when a test failed."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    servers = item.session.stash.get(_SERVERS, None)
    if report.failed and servers is not None:
        for series, complaints in servers.complaints().items():
            if complaints:
                report.sections.append((f"RabbitMQ {series}'s warnings and errors", complaints))


def _needed(items: Sequence[pytest.Item]) -> list[str]:
    names = {name for item in items for name in getattr(item, "fixturenames", ())}
    params = [item.callspec.params for item in items if hasattr(item, "callspec")]
    return [
        series
        for series in RELEASES
        if f"rabbitmq_{series.replace('.', '')}" in names
        or any(series in (one.get("every_rabbitmq"), one.get("each_rabbitmq")) for one in params)
    ]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the root file systems here: visible to users, and not part of a test's time."""
    if session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else ExitStack():
        for series in _needed(session.items):
            installed(series)


@pytest.fixture(scope="session")
def rabbitmq_servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_Brokers]:
    """All servers of the session; tests ask for one of the fixtures below."""
    brokers = _Brokers(tmp_path_factory.mktemp("rabbitmq"))
    request.session.stash[_SERVERS] = brokers
    yield brokers
    del request.session.stash[_SERVERS]
    brokers.close()


@pytest.fixture(scope="session")
def rabbitmq_310(rabbitmq_servers: _Brokers) -> Broker:
    """RabbitMQ 3.10."""
    return rabbitmq_servers.get("3.10")


@pytest.fixture(scope="session")
def rabbitmq_40(rabbitmq_servers: _Brokers) -> Broker:
    """RabbitMQ 4.0."""
    return rabbitmq_servers.get("4.0")


@pytest.fixture(scope="session")
def rabbitmq_43(rabbitmq_servers: _Brokers) -> Broker:
    """RabbitMQ 4.3."""
    return rabbitmq_servers.get("4.3")


@pytest.fixture(scope="session")
def rabbitmq(rabbitmq_40: Broker) -> Broker:
    """The RabbitMQ for tests that do not depend on the version."""
    return rabbitmq_40


def title(series: str) -> str:
    """Return the id of a row."""
    return f"RabbitMQ {series}"


@pytest.fixture(
    scope="session",
    params=[DEFAULT, *(pytest.param(one, marks=pytest.mark.slow) for one in RELEASES if one != DEFAULT)],
    ids=title,
)
def every_rabbitmq(request: pytest.FixtureRequest, rabbitmq_servers: _Brokers) -> Broker:
    """Each supported RabbitMQ: by day the default one, in `make slow` the others."""
    return rabbitmq_servers.get(request.param)


@pytest.fixture
def vhost(rabbitmq: Broker) -> Iterator[VirtualHost]:
    """A virtual host of the test's own, on the RabbitMQ for tests that do not depend on the version."""
    with rabbitmq.new_vhost() as made:
        yield made


@pytest.fixture
def every_vhost(every_rabbitmq: Broker) -> Iterator[VirtualHost]:
    """A virtual host of the test's own, on each supported RabbitMQ."""
    with every_rabbitmq.new_vhost() as made:
        yield made


def main() -> int:
    """Run one RabbitMQ in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.rabbitmq", description=main.__doc__)
    parser.add_argument("series", nargs="?", default=DEFAULT, choices=list(RELEASES))
    parser.add_argument("--no-management", action="store_true", help="without the management plug-in")
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        with running(arguments.series, management=not arguments.no_management) as broker:
            print(f"RabbitMQ {broker.version} is ready: {broker.url}", flush=True)
            if not arguments.no_management:
                print(f"Management: {broker.management_url}", flush=True)
            ended.wait()
    except (RootfsError, BrokerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
