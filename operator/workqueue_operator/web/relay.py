"""Forward a request from a standby to the leader, because a Service may select any of the operator's pods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
from aiohttp import web

from workqueue_operator.kube.client import Cluster, pod_path

CONNECT_SECONDS: Final = 3.0
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
RELAYED: Final = "Workqueue-Relayed"


async def leader_address(
    cluster: Cluster, namespace: str, lease: str, ourselves: str, port: int
) -> str | None:
    """Return the address of the leader's page; None without a leader, or if this process leads.

    Raises:
        ClusterError: the API server did not answer.
    """
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{lease}"
    holder = ((await cluster.get(path)).get("spec") or {}).get("holderIdentity")
    if not holder or holder == ourselves:
        return None
    address = ((await cluster.get(pod_path(namespace, holder))).get("status") or {}).get("podIP")
    if not address:
        return None
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class Relay:
    """Forwards requests to the leader.

    Args:
        leader: returns the address of the leader's page, `http://host:port`; None without a leader.
    """

    def __init__(self, leader: Callable[[], Awaitable[str | None]]) -> None:
        self._leader = leader
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Forward a request and return the leader's response.

        Raises:
            web.HTTPServiceUnavailable: there is no leader, or it does not answer.
        """
        # Forward once only: the addressed pod may no longer lead, and requests must not loop.
        address = None if RELAYED in request.headers else await self._leader()
        if address is None:
            raise web.HTTPServiceUnavailable(text="No operator leads at this moment. Try again in a minute.")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            async with self._session.request(
                request.method,
                f"{address}{request.rel_url}",
                headers={**headers, RELAYED: "true", "Host": request.host},
                data=await request.read(),
                allow_redirects=False,
            ) as answer:
                kept = [
                    (name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP
                ]
                response = web.StreamResponse(status=answer.status, reason=answer.reason)
                for name, value in kept:
                    response.headers.add(name, value)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise web.HTTPServiceUnavailable(
                text="The leading operator does not answer. Try again in a minute."
            ) from error
