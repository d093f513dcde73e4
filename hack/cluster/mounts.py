"""Read the mounts of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """One line of /proc/mounts."""

    point: Path
    kind: str


def mounts() -> list[Mount]:
    """Return all mounts, oldest first."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return [Mount(Path(line.split()[1]), line.split()[2]) for line in lines]


def overlays_stack_on(folder: Path) -> bool:
    """Return whether a folder can hold the layers of an overlay file system. An overlay itself cannot."""
    below = [mount for mount in mounts() if folder.is_relative_to(mount.point)]
    return max(below, key=lambda mount: len(mount.point.parts)).kind != "overlay"
