"""Process 1 of the cluster: prepare the namespaces, start the daemons, and restart a daemon that ends.

Started by `namespaces.start` as `unshare ... python -m hack.cluster.node NAME STATE BINARIES LISTENER`, in
new network, mount, process, IPC and host name namespaces. LISTENER is the file descriptor of an inherited
socket that listens on the host's loopback. A socket stays in the network namespace in which it was made. When
this process is killed, the kernel kills all other processes of the cluster. Once the namespaces are ready, this
process prints its process number on the host to standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from hack.cluster.daemons import ADDRESS, BRIDGE_SETTINGS, NODE

RESTART_SECONDS: Final = 0.5
FORWARDED: Final = 3
ENTERED_FOLDERS: Final = ("run", "tmp", "var")
# The kubelet requires these values and would set them on the whole machine. It finds them in private files instead.
KERNEL_SETTINGS: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def main() -> None:
    """Prepare the namespaces, print the process number, and supervise the daemons."""
    _, state, binaries, listener = sys.argv[1:]
    os.chdir("/")
    # /proc is still the host's, so this is the process number on the host.
    number = Path("/proc/self").readlink()
    commands: dict[str, list[str]] = json.loads((Path(state) / "daemons.json").read_text())
    prepare_mounts(Path(state), Path(binaries))
    prepare_network()
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    supervise(commands, int(listener))


def prepare_mounts(state: Path, binaries: Path) -> None:
    """Mount a private /proc, /var, /run and /tmp, so that those of the host stay unchanged."""
    _call("mount", "--make-rshared", "/")
    _call("mount", "-t", "proc", "proc", "/proc")
    for name in ENTERED_FOLDERS:
        (state / name).mkdir(exist_ok=True)
    (state / "tmp").chmod(0o1777)
    (state / "var/run").symlink_to("/run")
    (state / "run/bin").mkdir()
    _call("mount", "--bind", str(binaries), str(state / "run/bin"))
    for setting, value in KERNEL_SETTINGS.items():
        file = state / "run" / setting.replace("/", ".")
        file.write_text(value)
        _call("mount", "--bind", str(file), f"/proc/sys/{setting}")
    # /var comes last, because the state folder is below it.
    for name in ENTERED_FOLDERS:
        _call("mount", "--rbind", str(state / name), f"/{name}")


def prepare_network() -> None:
    """Set the node's address on a bridge, and make bridged pod traffic pass kube-proxy's rules."""
    _call("hostname", NODE)
    _call("ip", "link", "set", "lo", "up")
    _call("ip", "link", "add", NODE, "type", "bridge")
    _call("ip", "address", "add", f"{ADDRESS}/24", "dev", NODE)
    _call("ip", "link", "set", NODE, "up")
    _call("ip", "route", "add", "default", "dev", NODE)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    if BRIDGE_SETTINGS.exists():
        (BRIDGE_SETTINGS / "bridge-nf-call-iptables").write_text("1")


def supervise(commands: dict[str, list[str]], listener: int) -> None:
    """Start the daemons, reap every orphan of the namespace, and restart a daemon that ends."""
    os.set_inheritable(listener, False)
    running = {start(name, command, listener): name for name, command in commands.items()}
    while True:
        ended, _ = os.wait()
        name = running.pop(ended, None)
        if name is not None:
            time.sleep(RESTART_SECONDS)
            running[start(name, commands[name], listener)] = name


def start(name: str, command: list[str], listener: int) -> int:
    """Start a daemon that writes to its own log file, and return its process number.

    `subprocess` is not used because it would wait for its children itself.
    """
    log = os.open(f"/var/log/cluster/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    if name == "forward":
        files.append((os.POSIX_SPAWN_DUP2, listener, FORWARDED))
    try:
        return os.posix_spawnp(command[0], command, os.environ, file_actions=files, setsid=True)
    finally:
        os.close(log)
        os.close(nothing)


def _call(*command: str) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main()
