"""Connect to the RabbitMQ of a WorkQueue with the credentials of its Secret, for commands that talk to RabbitMQ.

The Secret has the address that the workers use. For a Service or a pod of the cluster, the plugin uses `kubectl
port-forward`. It connects to any other host directly, or through a pod. It always verifies the name in the
certificate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from workqueue.amqp.errors import UnreachableError
from workqueue.contract.binding import Binding
from workqueue_kubectl.cluster import Cluster
from workqueue_kubectl.errors import KubectlError, NotFoundError, PluginError
from workqueue_kubectl.kubectl import Kubectl
from workqueue_operator.api.workqueue import WorkQueue

_SERVICE: Final = 2
_POD_OF_A_SERVICE: Final = 3


@dataclass(frozen=True, slots=True)
class InClusterTarget:
    """A broker that runs in the cluster.

    Attributes:
        target: service/NAME or pod/NAME, as kubectl port-forward takes it.
    """

    namespace: str
    target: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--direct`, `--forward` and `--through`."""
    group = parser.add_argument_group(
        "how to connect to RabbitMQ (default: port-forward to a Service of the cluster, otherwise directly)"
    ).add_mutually_exclusive_group()
    group.add_argument(
        "--direct", action="store_true", help="connect to the host in the Secret from this machine"
    )
    group.add_argument(
        "--forward",
        metavar="NAMESPACE/NAME",
        type=_place,
        help="port-forward to this Service instead of the host in the Secret",
    )
    group.add_argument(
        "--through",
        metavar="POD",
        help="connect from this pod, which must have Python (for example a worker)",
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the WorkQueue and how to connect to its RabbitMQ."""
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")
    add_arguments(parser)


def run_for(
    workqueue: WorkQueue,
    cluster: Cluster,
    arguments: argparse.Namespace,
    command: Callable[[argparse.Namespace], int],
) -> int:
    """Run a command of `workqueue` for the queue of a WorkQueue, and return its exit code.

    Raises:
        PluginError, BindingError: as for `connect`.
    """
    arguments.queue = workqueue.queue_name
    with connect(cluster, workqueue, arguments) as arguments.source:
        return command(arguments)


@contextmanager
def connect(
    cluster: Cluster, workqueue: WorkQueue, arguments: argparse.Namespace
) -> Iterator[Callable[[], Binding]]:
    """Yield a function that returns a binding for this machine. It is valid while the context lasts.

    Raises:
        PluginError: the Secret or the broker is unreachable. The message says how the plugin tried.
        BindingError: keys of the Secret are missing or invalid.
    """
    binding = cluster.binding(workqueue)
    host, port = binding.addresses[0]
    kubectl, namespace = cluster.kubectl, workqueue.metadata.namespace
    inside = None if arguments.direct or arguments.through else _inside(kubectl, host, namespace, arguments)
    try:
        if arguments.through:
            how = f"from the pod {arguments.through}"
            with kubectl.relayed(namespace, arguments.through, host, port) as local:
                yield _at(binding, host, local)
        elif inside is not None:
            how = f"by kubectl port-forward to {inside.target} in the namespace {inside.namespace}"
            with _forwarded(kubectl, inside, port) as local:
                yield _at(binding, host, local)
        else:
            how = "from this machine"
            yield lambda: binding
    except UnreachableError as error:
        advice = (
            " If only the cluster can connect to it, use --through POD to connect from a pod, for example a worker."
            if how == "from this machine"
            else ""
        )
        raise PluginError(f"{error} Tried {host}:{port} {how}.{advice}") from error


def candidates(host: str, namespace: str) -> InClusterTarget | None:
    """Return the Service or pod that a host name may refer to by the rules of the cluster's DNS, or None.

    Args:
        namespace: the namespace of short names.
    """
    words = host.rstrip(".").split(".")
    if ":" in host:
        return None
    if "svc" in words[1:]:
        words = words[: words.index("svc", 1)]
    elif len(words) > _SERVICE:
        return None
    if len(words) == _POD_OF_A_SERVICE:
        return InClusterTarget(words[2], f"pod/{words[0]}")
    return InClusterTarget(words[1] if len(words) == _SERVICE else namespace, f"service/{words[0]}")


def _inside(
    kubectl: Kubectl, host: str, namespace: str, arguments: argparse.Namespace
) -> InClusterTarget | None:
    if arguments.forward is not None:
        place: InClusterTarget = arguments.forward
        return place
    found = candidates(host, namespace)
    if found is None or not found.target.startswith("service/"):
        return found
    try:
        service = kubectl.get(
            f"/api/v1/namespaces/{found.namespace}/services/{found.target.partition('/')[2]}"
        )
    except NotFoundError:
        return None
    except KubectlError:
        return found  # the user may lack get on Services but still be allowed to forward
    return found if service["spec"].get("type") != "ExternalName" else None


@contextmanager
def _forwarded(kubectl: Kubectl, inside: InClusterTarget, port: int) -> Iterator[int]:
    try:
        with kubectl.forwarded(inside.namespace, inside.target, port) as local:
            yield local
    except KubectlError as error:
        raise PluginError(
            f"kubectl port-forward to {inside.target} in the namespace {inside.namespace} failed: {error} If you"
            " lack the permission, use --through POD to connect from your own pod, for example a worker."
        ) from error


def _at(binding: Binding, host: str, port: int) -> Callable[[], Binding]:
    """Return the binding for a local port. The certificate must still match the name of the host."""
    tls = binding.tls and binding.tls._replace(server_name=host)
    local = binding._replace(addresses=(("127.0.0.1", port),), tls=tls)
    return lambda: local


def _place(text: str) -> InClusterTarget:
    namespace, slash, name = text.partition("/")
    if not slash or not namespace or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAMESPACE/NAME")
    return InClusterTarget(namespace, f"service/{name}")
