"""A private certificate authority for tests, with a server's and a client's certificate; made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DAYS: Final = "30"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files. The server is `localhost` and 127.0.0.1, the client's common name is `guest`."""

    authority: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make a new authority and both certificates in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, authority_key = folder / "ca.crt", folder / "ca.key"
    _openssl(
        *("req", "-x509", *_new_key(authority_key), "-out", authority, "-subj", "/CN=Test authority"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-days", _DAYS),
    )
    made = {}
    for name, subject, extension in (
        ("server", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ("client", "/CN=guest", "extendedKeyUsage=clientAuth"),
    ):
        made[name] = certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        _openssl(
            *("req", "-x509", *_new_key(key), "-out", certificate, "-subj", subject, "-days", _DAYS),
            *("-CA", authority, "-CAkey", authority_key),
            *("-addext", extension, "-addext", "basicConstraints=critical,CA:FALSE"),
        )
    return Certificates(authority, *made["server"], *made["client"])


def _new_key(file: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", file)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
