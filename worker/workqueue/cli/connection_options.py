"""Connection data for the commands that people run: flags before environment, a URL before a folder.

The kubectl plugin, which has its own connection to RabbitMQ, sets `source` in the arguments.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from workqueue.contract.binding import DEFAULT_URL, Binding, folder_source, from_environment, from_url
from workqueue.contract.errors import BindingError
from workqueue.contract.worker_api import Variable

BAD_USAGE: Final = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--url` and `--binding`."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--url",
        metavar="URL",
        help=f"amqp[s]://user:password@host:port/vhost ({Variable.URL}; {DEFAULT_URL})",
    )
    group.add_argument(
        "--binding",
        metavar="FOLDER",
        type=Path,
        help="mounted Secret with host, username, password, ..."
        f" ({Variable.BINDING}, {Variable.SERVICE_BINDING_ROOT})",
    )


def binding_source(
    arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> Callable[[], Binding]:
    """Return a function that reads the connection data at each call.

    Raises:
        SystemExit: the data are invalid. The reason is on standard error.
    """
    # The command itself reports problems of the connection.
    logging.getLogger("workqueue").addHandler(logging.NullHandler())
    given: Callable[[], Binding] | None = getattr(arguments, "source", None)
    if given is not None:
        return given
    try:
        source = _source(arguments, environment)
        source()
    except BindingError as error:
        sys.stderr.write(f"workqueue: {error}\n")
        raise SystemExit(BAD_USAGE) from error
    return source


def _source(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Callable[[], Binding]:
    url, folder = arguments.url, arguments.binding
    if url and folder:
        raise BindingError("Give --url or --binding, not both.")
    if url:
        return partial(from_url, url)
    return folder_source(folder) if folder else from_environment(environment)
