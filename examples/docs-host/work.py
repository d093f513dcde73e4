"""The work of a small host for documentation, the same in both versions. Real programs would call git, S3 and so on.

The file `journal` says what was done. Other files stand for the state of the world: while `git-host-down` exists, the
git host does not answer, and while `builders-busy` exists, no build may start.
"""

import os
import time
from pathlib import Path

FOLDER = Path(os.environ["DOCS_HOST"])
VERSIONS = ("1.0", "2.0")


class BuildersBusyError(Exception):
    """The project has as many builds as it may have at the same time."""


class GitHostDownError(Exception):
    """The git host does not answer."""


class BuildTooLongError(Exception):
    """A build has used up its time."""


def note(text: str) -> None:
    """Append a line to the journal. A line this short is written atomically."""
    descriptor = os.open(FOLDER / "journal", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def fetch_versions(project: str) -> tuple[str, ...]:
    """Return the versions in a repository."""
    note(f"fetched {project}")
    return VERSIONS


def require_builder() -> None:
    """Raise BuildersBusyError unless a build may start."""
    if (FOLDER / "builders-busy").exists():
        note("builders are busy")
        raise BuildersBusyError


def build(project: str, version: str, seconds: float = float("inf")) -> None:
    """Build a version. It waits while a file `hold PROJECT` exists. Raise BuildTooLongError after `seconds`."""
    note(f"building {project} {version}")
    end = time.monotonic() + seconds
    while (FOLDER / f"hold {project}").exists():
        if time.monotonic() > end:
            raise BuildTooLongError
        time.sleep(0.05)
    note(f"built {project} {version}")


def fail_build(project: str, version: str, why: str) -> None:
    """Show that a build has failed."""
    note(f"failed {project} {version}: {why}")


def index(project: str, version: str) -> None:
    """Make a version searchable."""
    note(f"indexed {project} {version}")


def remove_index(project: str) -> None:
    """Make a project not searchable."""
    note(f"removed index of {project}")


def purge_cdn(project: str, version: str) -> None:
    """Remove the old pages of a version from the CDN."""
    note(f"purged {project} {version}")


def send_status(project: str, version: str, status: str) -> None:
    """Send the result of a build to the git host. Raise GitHostDownError if it does not answer."""
    if (FOLDER / "git-host-down").exists():
        note("git host is down")
        raise GitHostDownError("the git host does not answer")
    note(f"status of {project} {version}: {status}")


def notify(user: str) -> None:
    """Send a mail."""
    note(f"notified {user}")


def remove_storage(project: str) -> None:
    """Delete the pages of a project."""
    note(f"removed storage of {project}")


def finish_inactive_builds() -> None:
    """Fail the builds whose builder no longer answers."""
    note("finished inactive builds")


def repositories(user: str) -> list[str]:
    """Return the repositories of a user on the git host."""
    return [f"{user}/docs", f"{user}/site"]


def save_result(name: str, result: str) -> None:
    """Store a result for the website, which has a database for that."""
    unfinished = FOLDER / f"{name}.unfinished"
    unfinished.write_text(result)
    unfinished.rename(FOLDER / f"{name}.result")


def find_result(name: str) -> str | None:
    """Return a stored result, or None if there is none yet."""
    file = FOLDER / f"{name}.result"
    return file.read_text() if file.exists() else None
