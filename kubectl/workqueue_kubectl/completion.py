"""The entry point `kubectl_complete-workqueue` for kubectl's shell completion.

kubectl passes the words after `workqueue`, the last one under the cursor (perhaps empty), and reads one proposal per
line and a directive. Names come from the cluster, if it is reachable.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from workqueue_kubectl.cli import FORMS, OUTPUTS, build, flags, kubectl_options, split
from workqueue_kubectl.errors import PluginError
from workqueue_kubectl.kubectl import Kubectl
from workqueue_operator.names import API_VERSION, PLURAL

_NO_FILES: Final = ":4"
_FILES: Final = ":0"
_TAKES_FILES: Final = frozenset({"--files", "--jsonl", "--kubeconfig"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the proposals. Returns 0 even after an error, because the shell would not show it."""
    words = list(sys.argv[1:] if arguments is None else arguments) or [""]
    before, last = words[:-1], words[-1]
    if before and before[-1] in _TAKES_FILES:
        sys.stdout.write(f"{_FILES}\n")
        return 0
    try:
        found = sorted({word for word in _proposals(before, last) if word.startswith(last)})
    except (PluginError, SystemExit):
        found = []
    sys.stdout.write("".join(f"{word}\n" for word in [*found, _NO_FILES]))
    return 0


def _proposals(before: Sequence[str], last: str) -> Iterator[str]:
    if before and before[-1] in {"-n", "--namespace"}:
        yield from _names(Kubectl(flags(split(before[:-1])[0])), "/api/v1/namespaces")
        return
    if before and before[-1] in {"-o", "--output"}:
        yield from next((FORMS[word] for word in before if word in FORMS), OUTPUTS)
        return
    try:
        ours, rest = split(before)
    except SystemExit:
        return  # an option without a value
    parser: argparse.ArgumentParser | None = build(word for word in rest if not word.startswith("-"))
    given = [word for word in rest if not word.startswith("-")]
    depth = 0
    while parser is not None and (choices := _subcommands(parser)) is not None:
        if depth == len(given):
            yield from choices
            break
        parser, depth = choices.get(given[depth]), depth + 1
    else:
        if parser is not None and len(given) == depth and not last.startswith("-") and _takes_name(parser):
            kubectl = Kubectl(flags(ours))
            namespace = ours.namespace or kubectl.namespace()
            yield from _names(kubectl, f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}")
    if last.startswith("-") and parser is not None:
        for shown in (parser, kubectl_options()):
            yield from _options(shown)


def _names(kubectl: Kubectl, path: str) -> Iterable[str]:
    return [str(item["metadata"]["name"]) for item in kubectl.get(path)["items"]]


# argparse has no public API for this. shtab and argcomplete read the same attributes.


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser] | None:
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return dict(action.choices)
    return None


def _takes_name(parser: argparse.ArgumentParser) -> bool:
    return any(action.dest == "name" for action in parser._actions)  # noqa: SLF001


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001
        if action.help != argparse.SUPPRESS:
            yield from (option for option in action.option_strings if option.startswith("--"))
