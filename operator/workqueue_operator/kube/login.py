"""Credentials for the API server: $KUBECONFIG, the service account of the pod, or ~/.kube/config, in that order.

kopf reads them, for its watches and for all other requests. Plug-ins that a kubeconfig names are not run.
"""

from __future__ import annotations

import os
import ssl

import kopf

from workqueue_operator.errors import ConfigurationError


class Login(kopf.ConnectionInfo):
    """Credentials that never equal others.

    kopf stops when a new login equals a refused one, although an API server may answer 401 only briefly. Certificates
    are verified as Go does: those of many clusters lack extensions that Python requires since 3.13.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def as_ssl_context(self) -> ssl.SSLContext:
        context = super().as_ssl_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


def log_in() -> Login:
    """Read the credentials.

    Raises:
        ConfigurationError: there are none.
    """
    settings = kopf.OperatorSettings()
    found = None if os.environ.get("KUBECONFIG") else kopf.login_with_service_account(settings=settings)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if found is not None and host and port:
        # kopf names the Service, which needs DNS.
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        return Login(**{**vars(found), "server": server})
    found = found or kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        advice = "Run in a pod with a service account, or set KUBECONFIG."
        raise ConfigurationError([f"There are no credentials for the API server. {advice}"])
    return Login(**vars(found))


def renewed(login: Login) -> Login:
    """Return the credentials with the present token, if they are those of a service account."""
    return login if os.environ.get("KUBECONFIG") else log_in()
