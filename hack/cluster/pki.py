"""Make the certificates of a cluster. Each cluster gets new ones."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Final

from hack.cluster.commands import run

DAYS: Final = "365"
DOING: Final = "Making the cluster's certificates"
SUBJECTS: Final = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
}


class Authority:
    """A certificate authority in a folder: `NAME.crt`, `NAME.key`, and the certificates that it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self.certificate = folder / f"{name}.crt"
        run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-nodes", "-days", DAYS, "-subj", f"/CN={name}"),
                *("-keyout", folder / f"{name}.key", "-out", self.certificate),
            ],
            doing=DOING,
        )

    def sign(self, name: str, subject: str, alternative_names: str = "") -> None:
        """Make `name`.key and a certificate for it that is valid for both sides of a TLS connection.

        Args:
            subject: in the notation of openssl. Kubernetes takes O as the group and CN as the user.
            alternative_names: as in "DNS:localhost,IP:127.0.0.1".
        """
        request = self._folder / f"{name}.csr"
        extensions = self._folder / f"{name}.extensions"
        extensions.write_text(
            "keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=clientAuth,serverAuth\n"
            + (f"subjectAltName={alternative_names}\n" if alternative_names else "")
        )
        run(
            [
                *("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-subj", subject, "-keyout", self._folder / f"{name}.key", "-out", request),
            ],
            doing=DOING,
        )
        run(
            [
                *("openssl", "x509", "-req", "-in", request, "-days", DAYS, "-extfile", extensions),
                *("-CA", self.certificate, "-CAkey", self._folder / f"{self._name}.key", "-CAcreateserial"),
                *("-out", self._folder / f"{name}.crt"),
            ],
            doing=DOING,
        )
        request.unlink()
        extensions.unlink()


def make(folder: Path, *, node: str, address: str, service_address: str) -> None:
    """Make all keys and certificates of the daemons in `folder`.

    Args:
        node: the name of the only node.
        address: the IP address on which the API server and the kubelet listen.
        service_address: the IP address of the service `kubernetes.default`.
    """
    folder.mkdir(parents=True, mode=0o700)
    authority = Authority(folder, "ca")
    for name, subject in SUBJECTS.items():
        authority.sign(name, subject)
    authority.sign("kubelet", f"/O=system:nodes/CN=system:node:{node}", f"DNS:{node},IP:{address}")
    names = ["localhost", node, "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    authority.sign(
        "apiserver",
        "/CN=kube-apiserver",
        ",".join(
            [
                *(f"DNS:{name}" for name in (*names, "kubernetes.default.svc.cluster.local")),
                *(f"IP:{ip}" for ip in ("127.0.0.1", address, service_address)),
            ]
        ),
    )
    # Aggregated API servers identify the API server by this authority, which signs nothing else.
    Authority(folder, "front-proxy-ca").sign("front-proxy-client", "/CN=front-proxy-client")
    run(["openssl", "genrsa", "-out", folder / "service-accounts.key", "2048"], doing=DOING)
    run(
        [
            *("openssl", "pkey", "-in", folder / "service-accounts.key", "-pubout"),
            *("-out", folder / "service-accounts.pub"),
        ],
        doing=DOING,
    )


def kubeconfig(folder: Path, user: str, server: str, context: str) -> str:
    """Return a self-contained kubeconfig for one of the users of `SUBJECTS` or for `kubelet`."""

    def encoded(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": context,
            "clusters": [
                {
                    "name": context,
                    "cluster": {"server": server, "certificate-authority-data": encoded("ca.crt")},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": encoded(f"{user}.crt"),
                        "client-key-data": encoded(f"{user}.key"),
                    },
                }
            ],
            "contexts": [{"name": context, "context": {"cluster": context, "user": user}}],
        },
        indent=2,
    )
