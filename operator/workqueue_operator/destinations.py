"""The hosts and addresses that the operator may connect to for a Secret. Pure.

The author of a Secret chooses the host. The operator must not connect to itself, to its node or to a cloud's metadata
service on their behalf.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"))
)
"""Metadata services that are not at a link-local address such as 169.254.169.254."""


@dataclass(frozen=True, slots=True)
class Destinations:
    """The allowed destinations.

    Attributes:
        allowed: names, addresses, or patterns such as `*.svc`; empty for every host. A host listed without a wildcard
            may have any address, including loopback.
        anywhere: whether every host and address is allowed.
    """

    allowed: tuple[str, ...] = ()
    anywhere: bool = False

    def permits(self, host: str) -> bool:
        """Return whether the operator may try to connect to a host."""
        return not self.allowed or any(fnmatchcase(_plain(host), pattern.lower()) for pattern in self.allowed)

    def permits_address(self, host: str, address: str) -> bool:
        """Return whether the operator may connect to a host at this IP address."""
        if self.anywhere or _plain(host) in {entry.lower() for entry in self.allowed}:
            return True
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        refused = found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast
        return not refused and found not in _METADATA


ANYWHERE: Final = Destinations(anywhere=True)


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")
