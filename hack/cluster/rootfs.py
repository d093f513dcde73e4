"""Make root file systems of Debian releases, once, in the user's cache folder.

The tests run several versions of RabbitMQ from them, and container images are built on them where there is no
container engine and no registry. This needs root and a Debian-like host. The host's apt configuration (mirror,
proxy) is used. By hand: `python -m hack.cluster.rootfs RELEASE PACKAGE...`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

APT_FOLDER: Final = Path("/etc/apt")
HOSTS: Final = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"


class RootfsError(Exception):
    """A root file system could not be made. The message ends with the output of debootstrap."""


def cache_folder() -> Path:
    """Return the folder for artifacts that take long to make."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "workqueue-operator"


def rootfs(release: str, packages: Sequence[str]) -> Path:
    """Return the folder of a minimal Debian `release` (such as `trixie`) with `packages` installed.

    On the first call, debootstrap makes it in about 40 s. The folder gets its final name when it is complete, and
    a second caller waits for the first. Callers must not write into it. They mount writable folders over it, in
    a mount namespace of their own.

    Raises:
        RootfsError: the user is not root, or debootstrap failed.
    """
    wanted = sorted(set(packages))
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    folder = cache_folder() / "rootfs" / f"{release}-{key}"
    if folder.is_dir():
        return folder
    if os.geteuid() != 0:
        raise RootfsError(f"Making a Debian {release} root file system needs root. Run this command as root.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            _say(f"making a Debian {release} root file system: about 40 s, once")
            _make(release, wanted, folder)
    return folder


def debian_mirror(apt_folder: Path = APT_FOLDER) -> str | None:
    """Return the mirror of Debian's main archive in this machine's apt configuration, or None.

    It is the first archive in `sources.list` and `sources.list.d/*.{list,sources}` that ends in `/debian` and has
    the component main.
    """
    files = [apt_folder / "sources.list", *sorted((apt_folder / "sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        entries = _deb822_entries(text) if file.suffix == ".sources" else _one_line_entries(text)
        for uri, components in entries:
            if "main" in components and urlsplit(uri).path.rstrip("/").endswith("/debian"):
                return uri
    return None


def _one_line_entries(text: str) -> Iterator[tuple[str, list[str]]]:
    for line in text.splitlines():
        found = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+\S+\s+([^#]*)", line.strip())
        if found:
            yield found[1], found[2].split()


def _deb822_entries(text: str) -> Iterator[tuple[str, list[str]]]:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            name.strip().lower(): value.split()
            for name, separator, value in (line.partition(":") for line in stanza.splitlines())
            if separator
        }
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
            for uri in fields.get("uris", []):
                yield uri, fields.get("components", [])


def _make(release: str, packages: Iterable[str], folder: Path) -> None:
    _install_debootstrap()
    # This process holds the lock, so an unfinished folder is from a killed process.
    for abandoned in folder.parent.glob(f".{folder.name}.unfinished-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.unfinished-", dir=folder.parent))
    log = folder.parent / f"{folder.name}.log"
    include = ",".join(packages)
    # When the namespace ends, the kernel removes debootstrap's mounts and any daemon that a package started.
    command = [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
        *("debootstrap", "--variant=minbase", *([f"--include={include}"] if include else [])),
        *(release, str(unfinished), *filter(None, [debian_mirror()])),
    ]
    try:
        with log.open("wb") as output:
            code = subprocess.run(
                command, stdout=output, stderr=output, env=_environment(), check=False
            ).returncode
        if code != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RootfsError(f"debootstrap {release} failed with exit code {code} (log: {log}):\n{tail}")
        for archive in (unfinished / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        (unfinished / "etc/hosts").write_text(HOSTS)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _install_debootstrap() -> None:
    if shutil.which("debootstrap"):
        return
    for step in (["update"], ["install", "--yes", "--no-install-recommends", "debootstrap"]):
        done = subprocess.run(
            ["apt-get", "--quiet", *step], capture_output=True, text=True, env=_environment(), check=False
        )
        if done.returncode != 0:
            raise RootfsError(
                f"debootstrap is missing and apt-get {step[0]} failed:\n{done.stdout}{done.stderr}"
            )


def _environment() -> dict[str, str]:
    """Return the environment for apt and debootstrap: not interactive, with the proxy of apt's configuration."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    asked = subprocess.run(
        ["apt-config", "shell", "http", "Acquire::http::Proxy", "https", "Acquire::https::Proxy"],
        capture_output=True,
        text=True,
        check=False,
    )
    for scheme, proxy in re.findall(r"^(https?)='([^']+)'", asked.stdout, re.MULTILINE):
        if proxy != "DIRECT":
            environment.setdefault(f"{scheme}_proxy", proxy)
    return environment


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def main() -> int:
    """Make a root file system and print its folder."""
    parser = argparse.ArgumentParser(prog="python -m hack.cluster.rootfs", description=main.__doc__)
    parser.add_argument("release", help="bookworm, trixie, sid, ...")
    parser.add_argument("packages", nargs="*", metavar="package")
    arguments = parser.parse_args()
    try:
        print(rootfs(arguments.release, arguments.packages))
    except RootfsError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
