"""Read the configuration of a process from environment variables. All mistakes are reported together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from workqueue_operator.errors import ConfigurationError

T = TypeVar("T")


class Environment:
    """The `WORKQUEUE_*` variables of a process."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._mistakes: list[str] = []

    def read(self, name: str, parse: Callable[[str], T], default: T) -> T:
        """Return the value of a variable, or the default if it is empty or invalid.

        Args:
            parse: raises ValueError, with a sentence without its subject, for an invalid value.
        """
        text = self._variables.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._mistakes.append(f"{name} is {text!r}: {error}.")
            return default

    def check(self) -> None:
        """Check the values that were read.

        Raises:
            ConfigurationError: at least one value is invalid; has one sentence for each mistake.
        """
        if self._mistakes:
            raise ConfigurationError(self._mistakes)


def names(text: str) -> tuple[str, ...]:
    """Parse names of namespaces, separated by commas."""
    found = _listed(text)
    if wrong := [name for name in found if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)]:
        raise ValueError(f"{wrong[0]!r} is not a valid namespace name; separate names by commas")
    return found


def secret_names(text: str) -> tuple[str, ...]:
    """Parse names of Secrets, separated by commas."""
    found = _listed(text)
    if wrong := [name for name in found if not re.fullmatch(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", name)]:
        raise ValueError(f"{wrong[0]!r} is not a valid name of a Secret; separate names by commas")
    return found


def hosts(text: str) -> tuple[str, ...]:
    """Parse host names, addresses or patterns, separated by commas."""
    found = _listed(text)
    if wrong := [host for host in found if not re.fullmatch(r"[A-Za-z0-9._:*-]+", host)]:
        raise ValueError(
            f"{wrong[0]!r} is not a host name, an IP address or a pattern such as *.svc; separate hosts by commas"
        )
    return found


def switch(text: str) -> bool:
    """Parse true or false."""
    if text.lower() not in {"true", "false"}:
        raise ValueError("it must be true or false")
    return text.lower() == "true"


def port(text: str) -> int:
    """Parse a TCP port."""
    if not text.isdecimal() or not 0 <= int(text) <= 65535:  # noqa: PLR2004 - the range of TCP ports
        raise ValueError("it must be a number from 0 to 65535")
    return int(text)


def seconds(text: str) -> float:
    """Parse a number of seconds above 0."""
    try:
        found = float(text)
    except ValueError:
        raise ValueError("it must be a number of seconds") from None
    if not 0 < found < float("inf"):
        raise ValueError("it must be a number of seconds above 0")
    return found


def level(text: str) -> str:
    """Parse a log level."""
    return one_of("DEBUG", "INFO", "WARNING", "ERROR")(text.upper())


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that accepts only these texts."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"it must be one of {', '.join(choices)}")
        return text

    return parse


def peers(text: str) -> tuple[dict[str, Any], ...]:
    """Parse a JSON list of NetworkPolicy peers."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it must be a JSON list of NetworkPolicy peers ({error})") from None
    if not isinstance(found, list) or not all(isinstance(peer, dict) for peer in found):
        raise ValueError("it must be a JSON list of NetworkPolicy peers")
    return tuple(found)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.strip() for entry in text.split(",") if entry.strip()))
