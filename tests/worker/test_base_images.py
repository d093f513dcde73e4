"""The worker in images that are not ours: the instructions of examples/base-images, in root file systems of Debian.

A root file system has its own Python and libraries, and shares the loopback interface with this machine. Alpine needs
a container registry. The workflow base-images runs all three images with docker.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hack.cluster.rootfs import rootfs
from hack.release import distribution
from tests.support.rabbitmq import VirtualHost

IMAGES = Path(__file__).parents[2] / "examples/base-images"
MOUNTS = """\
mount -t tmpfs tmpfs {work}
mkdir {work}/upper {work}/work {work}/root
mount -t overlay overlay -o lowerdir={root},upperdir={work}/upper,workdir={work}/work {work}/root
mkdir -p {work}/root/context
mount --bind {context} {work}/root/context
mount -t proc proc {work}/root/proc
mount --rbind /dev {work}/root/dev
exec chroot {work}/root /bin/sh -euc {script}
"""
HANDLE = """\
worker run --queue hello --declare --until-empty {handler}
worker send --queue hello 'hello world'
worker run --queue hello --declare --until-empty {handler}
"""


@dataclass
class Dockerfile:
    """The instructions of a Dockerfile as a shell script. Packages are part of the root file system."""

    lines: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    user: str = "0:0"

    @classmethod
    def read(cls, file: Path) -> Dockerfile:
        """Translate the instructions that the examples use.

        Raises:
            ValueError: there is another instruction.
        """
        made = cls()
        text = re.sub(r"(?m)^#.*\n", "", file.read_text()).replace("\\\n", " ")
        for instruction, rest in (line.split(maxsplit=1) for line in text.splitlines() if line.strip()):
            match instruction:
                case "RUN" if found := re.search(r"apt-get install \S+ \S+ ([\w\s-]+?) +&&", rest):
                    made.packages += found[1].split()
                case "RUN":
                    made.lines.append(rest)
                case "COPY":
                    mode, source, target = re.fullmatch(r"(?:--chmod=(\d+) )?(\S+) (\S+)", rest).groups()  # type: ignore[union-attr]
                    made.lines.append(f"install -D -m {mode or 644} -t /copied /context/{source}")
                    made.lines.append(f"cp /copied/{source} {target}")
                case "WORKDIR":
                    made.lines.append(f"mkdir -p {rest}; cd {rest}")
                case "ENV":
                    made.lines.append(f"export {rest}")
                case "USER":
                    made.user = rest
                case "FROM":
                    continue
                case _:
                    raise ValueError(f"{file.name} has the instruction {instruction}")
        return made


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build context: what `make distribution` builds, the handlers, and the libraries that pip would download."""
    folder = tmp_path_factory.mktemp("context")
    distribution.worker_file(distribution.wheel_and_source(folder), folder)
    for name in ("handlers.py", "Handler.java"):
        (folder / name).write_text((IMAGES / name).read_text())
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(distribution.locked(distribution.PROJECT).values()))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    subprocess.run([*pip, f"--dest={folder / 'libraries'}", f"--requirement={requirements}"], check=True)
    return folder


def run(image: str, context: Path, work: Path, url: str, script: str, *more: str) -> str:
    """Build an image from its Dockerfile and run commands in it as its user. Return what they print.

    A handler in a process of its own prints by way of the worker's log, to standard error.
    """
    dockerfile = Dockerfile.read(IMAGES / f"{image}.Dockerfile")
    user, _, group = dockerfile.user.partition(":")
    environment = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/context/libraries",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "WORKQUEUE_URL": url,
    }
    in_image = "\n".join(
        [
            *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
            "mkdir /copied",
            *dockerfile.lines,
            f'worker() {{ setpriv --reuid={user} --regid={group} --clear-groups workqueue "$@"; }}',
            script,
        ]
    )
    # The packages of the project's own base image, so that no further root file system is made. It has no pip either.
    root = rootfs("trixie", [*dockerfile.packages, "python3-venv", "ca-certificates", *more])
    mounted = MOUNTS.format(work=work, root=root, context=context, script=shlex.quote(in_image))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", mounted],
        env={"PATH": environment["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_wheel_runs_python_handlers_in_an_image_with_its_own_python(
    context: Path, tmp_path: Path, vhost: VirtualHost
) -> None:
    script = "python3 -c 'import sys; print(sys.version_info[:2])'\n" + HANDLE.format(
        handler="handlers:handle"
    )
    output = run("cuda", context, tmp_path, vhost.url, script)
    assert "HELLO WORLD" in output
    assert "(3, 13)" in output


@pytest.mark.slow
def test_wheel_runs_handlers_in_processes_there(context: Path, tmp_path: Path, vhost: VirtualHost) -> None:
    handler = "--isolation Process handlers:handle"
    assert "HELLO WORLD" in run("cuda", context, tmp_path, vhost.url, HANDLE.format(handler=handler))


@pytest.mark.slow
def test_worker_file_runs_commands_in_an_image_without_pip(
    context: Path, tmp_path: Path, vhost: VirtualHost
) -> None:
    script = "! python3 -m pip --version 2>/dev/null\n" + HANDLE.format(handler="--exec tr a-z A-Z")
    assert "HELLO WORLD" in run("java", context, tmp_path, vhost.url, script)


@pytest.mark.nightly
def test_worker_file_runs_java_handlers(context: Path, tmp_path: Path, vhost: VirtualHost) -> None:
    script = HANDLE.format(handler="--exec java Handler.java")
    assert "HELLO WORLD" in run("java", context, tmp_path, vhost.url, script, "default-jdk-headless")


def test_examples_use_only_instructions_that_the_tests_follow() -> None:
    for file in IMAGES.glob("*.Dockerfile"):
        text = file.read_text()
        read = Dockerfile.read(file)
        assert read.user == "65532:65532"
        assert "python3" in (read.packages or text)


def test_documented_dockerfiles_are_the_examples() -> None:
    page = (IMAGES.parents[1] / "docs/base-images.md").read_text()
    shown = re.findall(r"(?ms)^```dockerfile\n(.*?)^```$", page)
    examples = [(IMAGES / f"{name}.Dockerfile").read_text() for name in ("cuda", "alpine", "java")]
    assert shown == [
        re.sub(r"(?m)^#.*\n|docker\.io/(library/)?|@sha256:[0-9a-f]{64}", "", text) for text in examples
    ]
    assert all(text.count("@sha256:") == text.count("FROM ") for text in examples)
