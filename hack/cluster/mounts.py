"""What is mounted on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """A line of /proc/mounts."""

    point: Path
    kind: str


def mounts() -> list[Mount]:
    """All mounts, in the order in which they were made."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return [Mount(Path(line.split()[1]), line.split()[2]) for line in lines]


def overlays_stack_on(folder: Path) -> bool:
    """Whether an overlay file system can keep its layers in a folder: not when that is one itself."""
    below = [mount for mount in mounts() if folder.is_relative_to(mount.point)]
    return max(below, key=lambda mount: len(mount.point.parts)).kind != "overlay"
