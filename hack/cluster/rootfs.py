"""Root file systems of Debian releases: made once, cached, shared by everything that needs one.

Place in the flow: the tests run several versions of RabbitMQ from them, and container images are built on
them, on machines that have no container engine and no registry. Needs root and a Debian-like host, whose
own apt configuration (mirror, proxy) is used. By hand: `python -m hack.cluster.rootfs RELEASE PACKAGE...`.
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
    """A root file system could not be made; the message says why and ends with what debootstrap said."""


def cache_folder() -> Path:
    """Where everything that is expensive to make is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "workqueue-operator"


def rootfs(release: str, packages: Sequence[str]) -> Path:
    """The folder of a minimal Debian `release` (such as `trixie`) that has `packages` installed.

    Made with debootstrap when it is not cached yet, which takes about 40 seconds. It appears under its
    final name only when it is whole, and a second caller waits for the first. Nobody may write into it:
    mount what must be writable over it, in a mount namespace of your own.

    Raises:
        RootfsError: not root, or debootstrap failed.
    """
    wanted = sorted(set(packages))
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    folder = cache_folder() / "rootfs" / f"{release}-{key}"
    if folder.is_dir():
        return folder
    if os.geteuid() != 0:
        raise RootfsError(f"Making a Debian {release} root file system needs root; run this command as root.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            _say(f"making a Debian {release} root file system: about 40 s, once")
            _make(release, wanted, folder)
    return folder


def debian_mirror(apt_folder: Path = APT_FOLDER) -> str | None:
    """The mirror from which this machine installs Debian's own packages; None when apt does not name one.

    Reads `sources.list` and `sources.list.d/*.{list,sources}`; the first archive that ends in `/debian` and
    has the component main is taken.
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
    # We hold the lock, so that an unfinished folder is one whose maker was killed.
    for abandoned in folder.parent.glob(f".{folder.name}.unfinished-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.unfinished-", dir=folder.parent))
    log = folder.parent / f"{folder.name}.log"
    include = ",".join(packages)
    # A namespace of its own takes debootstrap's mounts, and any daemon that a package starts, with it.
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
    """The environment for apt and debootstrap: not interactive, with the proxy that apt is told to use."""
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
