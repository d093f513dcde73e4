"""The addresses of a Secret that the operator may connect to, after name resolution."""

from __future__ import annotations

import asyncio

from workqueue.contract.binding import Binding
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker.lookup import addresses_of
from workqueue_operator.destinations import Destinations
from workqueue_operator.errors import ReconcileError


async def permitted(binding: Binding, destinations: Destinations) -> Binding:
    """Return the binding with only its allowed addresses.

    Raises:
        ReconcileError: no address is allowed.
    """
    if destinations.anywhere:
        return binding
    refusals = await asyncio.gather(*(_refusal(host, port, destinations) for host, port in binding.addresses))
    kept = [place for place, refusal in zip(binding.addresses, refusals, strict=True) if not refusal]
    if not kept:
        raise ReconcileError(
            Reason.SECRET_INVALID,
            f"The operator must not connect to {binding.display}: {refusals[0]}. Correct the host in the Secret, or "
            "add it to allowedBrokerHosts in the operator's chart.",
        )
    return binding._replace(addresses=tuple(kept))


async def _refusal(host: str, port: int, destinations: Destinations) -> str:
    if not destinations.permits(host):
        return f"allowedBrokerHosts does not list {host!r}"
    try:
        found = await addresses_of(host, port)
    except OSError:
        # The connection attempt fails with the same error and reports it.
        return ""
    for _, address in found:
        if not destinations.permits_address(host, address):
            return (
                f"{host!r} resolves to {address}, an address of the operator, its node or a metadata service"
            )
    return ""


async def resolved(binding: Binding) -> list[tuple[str, tuple[str, int]]]:
    """Return each host of a binding with its IP addresses and port, in order.

    Raises:
        OSError: no host has an address.
    """
    places: list[tuple[str, tuple[str, int]]] = []
    problem: BaseException | None = None
    answers = await asyncio.gather(
        *(addresses_of(host, port) for host, port in binding.addresses), return_exceptions=True
    )
    for (host, port), answer in zip(binding.addresses, answers, strict=True):
        if isinstance(answer, BaseException):
            problem = answer
        else:
            places += [(host, (address, port)) for _, address in answer]
    if not places and problem is not None:
        raise problem
    return places
