"""pika's connection parameters, made from a binding. Used by the connections of worker, command line and operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pika

from workqueue.contract.binding import Binding

if TYPE_CHECKING:
    import ssl


def connection_parameters(
    binding: Binding,
    address: tuple[str, int],
    tls_context: ssl.SSLContext | None,
    client_properties: Mapping[str, str],
    **timing: Any,
) -> pika.ConnectionParameters:
    """Return the parameters for one attempt to connect to one address.

    Args:
        address: one of the binding's addresses.
        tls_context: None for a plain connection.
        client_properties: what RabbitMQ shows about the connection, such as `connection_name`.
        timing: further parameters of pika: heartbeat and timeouts.
    """
    host, port = address
    credentials: Any = (
        pika.PlainCredentials(binding.username, binding.password)
        if binding.username
        else pika.credentials.ExternalCredentials()
    )
    server_name = (binding.tls.server_name if binding.tls else "") or host
    return pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=binding.virtual_host,
        credentials=credentials,
        ssl_options=pika.SSLOptions(tls_context, server_name) if tls_context else None,
        connection_attempts=1,
        client_properties=dict(client_properties),
        **timing,
    )
