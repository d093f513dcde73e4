"""The addresses of a Secret that the operator may connect to, after name resolution."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

from workqueue.contract.binding import Binding
from workqueue_operator.api.reasons import Reason
from workqueue_operator.destinations import Destinations
from workqueue_operator.errors import ReconcileError


async def permitted(binding: Binding, destinations: Destinations) -> Binding:
    """Return the binding with only its allowed addresses.

    Raises:
        ReconcileError: no address is allowed.
    """
    if destinations.anywhere:
        return binding
    refusals = [await _refusal(host, port, destinations) for host, port in binding.addresses]
    kept = [place for place, refusal in zip(binding.addresses, refusals, strict=True) if not refusal]
    if not kept:
        raise ReconcileError(
            Reason.SECRET_INVALID,
            f"The operator must not connect to {binding.display}: {refusals[0]}. Correct the host in the Secret, or "
            "add it to allowedBrokerHosts in the operator's chart.",
        )
    return replace(binding, addresses=tuple(kept))


async def _refusal(host: str, port: int, destinations: Destinations) -> str:
    if not destinations.permits(host):
        return f"allowedBrokerHosts does not list {host!r}"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        # The connection attempt fails with the same error and reports it.
        return ""
    for *_, place in found:
        if not destinations.permits_address(host, str(place[0])):
            return (
                f"{host!r} resolves to {place[0]}, an address of the operator, its node or a metadata service"
            )
    return ""
