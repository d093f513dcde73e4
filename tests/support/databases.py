"""PostgreSQL and Redis for tests of documented recipes, from a Debian root file system like RabbitMQ's."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from hack.cluster.rootfs import rootfs
from tests.support.ports import free_port
from tests.support.wait import eventually

RELEASE: Final = "trixie"
PACKAGES: Final = ("postgresql", "redis-server")
START_SECONDS: Final = 120.0

# All data are in memory. The server ends when standard input does, which is when the process that started us ends.
_FIRST_PROCESS: Final = """
set -e
root=$1
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
mount -t proc proc "$root/proc"
exec 3<&0
chroot "$root" sh -ec "$2" </dev/null &
server=$!
cat <&3 >/dev/null &
wait -n "$server" "$!"
"""
_POSTGRESQL: Final = """
user="setpriv --reuid=postgres --regid=postgres --clear-groups"
cd /usr/lib/postgresql/*/bin
install --directory --owner=postgres --mode=700 /tmp/data
$user ./initdb --pgdata=/tmp/data --username=postgres --auth=trust --no-sync --encoding=UTF8 --locale=C.UTF-8
exec $user ./postgres -D /tmp/data -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp
"""
_REDIS: Final = "exec redis-server --bind 127.0.0.1 --port {port} --save '' --dir /tmp"


@contextmanager
def _running(command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    root = rootfs(RELEASE, PACKAGES)
    outside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", _FIRST_PROCESS]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*outside, "server", str(root), command], stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server."""
    import psycopg  # only few tests need it

    port, log = free_port(), tmp_path_factory.mktemp("postgresql") / "log"
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(psycopg.OperationalError):
            psycopg.connect(url).close()
            return True
        return False

    with _running(_POSTGRESQL.format(port=port), log) as process:
        eventually(is_ready, START_SECONDS)
        yield url


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis server."""
    port, log = free_port(), tmp_path_factory.mktemp("redis") / "log"

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    with _running(_REDIS.format(port=port), log) as process:
        eventually(is_ready, START_SECONDS)
        yield f"redis://127.0.0.1:{port}/0"
