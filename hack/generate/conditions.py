"""Render docs/conditions.md from the texts in `workqueue_operator.api.reasons`."""

from __future__ import annotations

from typing import Final

from workqueue_operator.api.reasons import CONDITION_MEANINGS, EXPLANATIONS, Reason

_HEAD: Final = """\
<!-- Generated from operator/workqueue_operator/api/reasons.py by `python -m hack.generate`: do not edit. -->

# Conditions and reasons

A WorkQueue reports its state in six conditions. Each condition has a status, a reason and a message that says
what to do. This page explains each condition and each reason.

    kubectl get wq                                                   # the status of Ready
    kubectl get wq -o wide                                           # with its reason
    kubectl describe wq hello                                        # all conditions and recent Events
    kubectl wait --for=condition=Ready wq/hello --timeout=60s        # for scripts
"""


def page() -> str:
    """Return the whole page as Markdown.

    Raises:
        ValueError: a reason has no explanation.
    """
    missing = set(Reason) - {reason for section in EXPLANATIONS.values() for reason in section}
    if missing:
        raise ValueError(
            f"EXPLANATIONS in api/reasons.py lacks {', '.join(sorted(missing))}. Add an entry for each."
        )
    lines = [_HEAD, "| Condition | Meaning |", "|---|---|"]
    lines += [f"| `{kind}` | {meaning} |" for kind, meaning in CONDITION_MEANINGS.items()]
    for title, section in EXPLANATIONS.items():
        lines += ["", f"## {title}"]
        for reason, text in section.items():
            lines += ["", f"### {reason}", "", f"*{text.shown}.* {text.meaning}", "", text.advice]
    return "\n".join(lines) + "\n"
