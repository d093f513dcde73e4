"""A stolen service account: its kubeconfig, and the policies of the chart that limit it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import yaml

from tests.support import helm
from tests.support.kubernetes import KubectlError, apply, kubeconfig, kubectl
from tests.support.wait import eventually

POLICIES: Final = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")


def kubeconfig_of(account: str, namespace: str, file: Path) -> Path:
    """A kubeconfig with a token of a service account."""
    config = yaml.safe_load(kubeconfig().read_text())
    token = kubectl("create", "token", account, f"--namespace={namespace}", "--duration=1h").strip()
    context = {"cluster": config["clusters"][0]["name"], "user": "operator"}
    config |= {
        "users": [{"name": "operator", "user": {"token": token}}],
        "contexts": [{"name": "operator", "context": context}],
        "current-context": "operator",
    }
    file.write_text(yaml.safe_dump(config))
    return file


@contextmanager
def policies_for(account: str, namespace: str) -> Iterator[None]:
    """The chart's admission policies for a service account, while the context lasts."""
    values = {"fullnameOverride": namespace, "serviceAccount": {"create": False, "name": account}}
    made = [one for one in helm.template(values, namespace=namespace) if one["kind"] in POLICIES]
    apply(*made)
    try:
        eventually(lambda: _are_in_force(account, namespace), 60, "the policies are in force")
        yield
    finally:
        for one in made:
            kubectl("delete", one["kind"], one["metadata"]["name"], "--ignore-not-found")


def _are_in_force(account: str, namespace: str) -> bool:
    """Whether the policies are in force: the API server loads them some time after their creation."""
    who = f"--as=system:serviceaccount:{namespace}:{account}", f"--namespace={namespace}", "--dry-run=server"
    return all(
        _refused("create", *what, *who)
        for what in (
            ("secret", "generic", "probe"),
            ("deployment", "probe", "--image=probe:1"),
            ("poddisruptionbudget", "probe", "--selector=a=b", "--max-unavailable=1"),
        )
    )


def _refused(*command: str) -> bool:
    try:
        kubectl(*command)
    except KubectlError as error:
        return "The operator" in str(error)
    return False
