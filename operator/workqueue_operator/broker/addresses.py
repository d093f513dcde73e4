"""The addresses of a Secret that may be connected to, after resolution."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

from workqueue.contract.binding import Binding
from workqueue_operator.api.reasons import Reason
from workqueue_operator.destinations import Destinations
from workqueue_operator.errors import ReconcileError


async def permitted(binding: Binding, destinations: Destinations) -> Binding:
    """The binding with those of its addresses that are allowed.

    Raises:
        Trouble: none is.
    """
    if destinations.anywhere:
        return binding
    refusals = [await _refusal(host, port, destinations) for host, port in binding.addresses]
    kept = [place for place, refusal in zip(binding.addresses, refusals, strict=True) if not refusal]
    if not kept:
        raise ReconcileError(
            Reason.SECRET_INVALID,
            f"The operator may not connect to {binding.display}: {refusals[0]}. Correct the host in the Secret, or "
            "add it to allowedBrokerHosts of the operator's chart.",
        )
    return replace(binding, addresses=tuple(kept))


async def _refusal(host: str, port: int, destinations: Destinations) -> str:
    if not destinations.permits(host):
        return f"allowedBrokerHosts does not list {host!r}"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        # Whoever connects gets the same answer, and reports it.
        return ""
    for *_, place in found:
        if not destinations.permits_address(host, str(place[0])):
            return f"{host!r} is {place[0]}, an address of the operator itself, of its node, or of a metadata service"
    return ""
