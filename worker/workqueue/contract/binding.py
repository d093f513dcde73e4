"""Connection data for RabbitMQ: from a URL, or from the keys of a Service Binding.

No error message contains a password. Everything here is pure except `from_folder` and `from_environment`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from workqueue.contract.errors import BindingError
from workqueue.contract.worker_api import Variable

DEFAULT_URL: Final = "amqp://guest:guest@localhost:5672/"
AMQP_PORT: Final = 5672
AMQPS_PORT: Final = 5671

LONGEST_HEARTBEAT_SECONDS: Final = 65_535
"""AMQP's field for it has 16 bits."""

KEYS: Final = frozenset(
    {"uri", "host", "port", "protocol", "username", "password", "virtual-host", "management-uri"}
    | {"ca.crt", "tls.crt", "tls.key"}
)
"""The keys of a Secret that are read. All others may be there."""

MOST_ADDRESSES: Final = 16
"""More than a RabbitMQ cluster has nodes. A client tries one after another while RabbitMQ cannot be reached."""


class TLS(NamedTuple):
    """PEM texts. An empty authority means the system's; an empty certificate means no client certificate.

    Attributes:
        server_name: the name in the server's certificate, if it differs from the host.
    """

    authority: str = ""
    certificate: str = ""
    private_key: str = ""
    server_name: str = ""

    def __repr__(self) -> str:
        """Return all but the private key."""
        return f"TLS({self.authority!r}, {self.certificate!r}, server_name={self.server_name!r})"


class _Fields(NamedTuple):
    addresses: tuple[tuple[str, int], ...]
    username: str
    password: str
    virtual_host: str = "/"
    tls: TLS | None = None
    management_uri: str | None = None
    heartbeat_seconds: int | None = None


class Binding(_Fields):
    """Where RabbitMQ is, and the credentials for it.

    Attributes:
        addresses: (host, port) pairs, at least one, to try one after another.
        virtual_host: as RabbitMQ names it, not URL-encoded.
        tls: None for a plain connection.
        management_uri: base URL of the management API, or None.
        heartbeat_seconds: for worker and command line; None for their default. The operator has a fixed heartbeat.
    """

    def __repr__(self) -> str:
        """Return what is no secret."""
        return f"Binding({self.addresses}, {self.username!r}, {self.virtual_host!r}, tls={self.tls!r})"

    @property
    def signing_key(self) -> bytes:
        """The key for calls to workers that have no retirement key: the password, else the private key."""
        return (self.password or (self.tls.private_key if self.tls else "")).encode()

    @cached_property
    def identity(self) -> str:
        """A text that two bindings share if and only if one connection can serve both. Secrets are hashed."""
        import hashlib  # a worker does not need it, and it loads OpenSSL

        secret = hashlib.sha256(
            "\0".join(
                (self.username, self.password, repr(self.tls), self.tls.private_key if self.tls else "")
            ).encode()
        )
        return f"{self.display}#{secret.hexdigest()[:16]}"

    @cached_property
    def display(self) -> str:
        """Addresses and virtual host as a URL without credentials, for messages."""
        where = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses
        )
        return f"{'amqps' if self.tls else 'amqp'}://{where}/{self.virtual_host.removeprefix('/')}"


def from_url(url: str, tls: TLS | None = None) -> Binding:
    """Read `amqp[s]://user:password@host[:port][,host[:port]]/virtual-host[?heartbeat=seconds]`.

    User, password and virtual host are percent-decoded. No path, or `/`, means the virtual host `/`;
    `/%2F` and `/%2Fname` name virtual hosts that contain a slash.

    Raises:
        BindingError: the URL is not of this form.
    """
    parts = _split(url)
    if parts.scheme not in {"amqp", "amqps"}:
        raise BindingError(
            f"The broker's URL has the scheme {parts.scheme!r}; it must start with amqp:// or amqps://."
        )
    if "@" not in parts.netloc and "@" in url:
        raise BindingError(
            "The broker's URL has an @ after its host. In user, password and virtual host, write / as %2F,"
            " ? as %3F, # as %23 and @ as %40."
        )
    if parts.fragment:
        raise BindingError(
            "The broker's URL has a fragment (#). In user, password and virtual host, write # as %23."
        )
    secure = parts.scheme == "amqps"
    credentials, at, places = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":") if at else ("guest", "", "guest")
    return Binding(
        addresses=_addresses(places, AMQPS_PORT if secure else AMQP_PORT),
        username=unquote(username),
        password=unquote(password),
        virtual_host=unquote(parts.path.removeprefix("/")) or "/",
        tls=(tls or TLS()) if secure else None,
        heartbeat_seconds=_heartbeat(parts.query),
    )


def from_environment(environment: Mapping[str, str]) -> Callable[[], Binding]:
    """Return a function that reads the connection data that the environment names, at each call.

    The first of WORKQUEUE_URL, WORKQUEUE_BINDING, the only binding of the type rabbitmq below SERVICE_BINDING_ROOT,
    and RabbitMQ on this machine.

    Raises:
        BindingError: SERVICE_BINDING_ROOT contains none or several.
    """
    if url := environment.get(Variable.URL):
        return partial(from_url, url)
    if folder := environment.get(Variable.BINDING):
        return folder_source(folder)
    if root := environment.get(Variable.SERVICE_BINDING_ROOT):
        return folder_source(_only_binding(Path(root)))
    return partial(from_url, DEFAULT_URL)


def folder_source(folder: str | Path) -> Callable[[], Binding]:
    """Return a function that reads a folder at each call, wherever the program has changed its directory to."""
    return partial(from_folder, Path(folder).absolute())


def _only_binding(root: Path) -> Path:
    """Return the one folder below SERVICE_BINDING_ROOT whose file `type` contains rabbitmq."""
    try:
        folders = [
            entry
            for entry in sorted(root.iterdir())
            if (entry / "type").is_file() and (entry / "type").read_bytes().strip().lower() == b"rabbitmq"
        ]
    except OSError as error:
        raise BindingError(f"SERVICE_BINDING_ROOT cannot be read: {error}.") from error
    if len(folders) != 1:
        found = ", ".join(folder.name for folder in folders) or "none"
        raise BindingError(
            f"SERVICE_BINDING_ROOT={root} must contain one binding of type rabbitmq, but contains {found}."
            " Choose one with WORKQUEUE_BINDING."
        )
    return folders[0]


def parse_heartbeat(text: str) -> int:
    """Read a heartbeat in seconds.

    Raises:
        ValueError: the text is something else; the message says what it must be.
    """
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= LONGEST_HEARTBEAT_SECONDS):
        raise ValueError(f"a whole number of seconds from 1 to {LONGEST_HEARTBEAT_SECONDS}")
    return int(text)


def _heartbeat(query: str) -> int | None:
    heartbeat = None
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "heartbeat":
            raise BindingError(
                f"The broker's URL has the unknown parameter {name!r}; only heartbeat is known."
            )
        try:
            heartbeat = parse_heartbeat(value)
        except ValueError as error:
            raise BindingError(f"The broker's URL has heartbeat={value}; it must be {error}.") from None
    return heartbeat


def from_mapping(keys: Mapping[str, str], source: str) -> Binding:
    """Read the keys of a Secret or folder: `uri`, or `host`, `port`, `username`, `password`, `virtual-host`.

    Optional with either: `ca.crt`, `tls.crt`, `tls.key`, `management-uri`. A key beside `uri` overrides
    that part of the URL. TLS is used when the URL has the scheme amqps, `protocol` is amqps, the port is 5671, or
    `ca.crt` or `tls.crt` is present.

    Args:
        source: what errors call the Secret or folder, such as `Secret "rabbitmq"`.

    Raises:
        BindingError: a key is missing or invalid; the message names it.
    """
    value = {key: text.strip() for key, text in keys.items()}
    tls = TLS(value.get("ca.crt", ""), value.get("tls.crt", ""), value.get("tls.key", ""))
    try:
        base = from_url(value["uri"], tls) if value.get("uri") else None
    except BindingError as error:
        raise BindingError(f"{source}: key uri: {error}") from error
    if base is None and not value.get("host"):
        raise BindingError(f"{source} has neither the key uri nor the key host; give one of them.")
    if bool(tls.certificate) != bool(tls.private_key):
        missing = "tls.key" if tls.certificate else "tls.crt"
        raise BindingError(f"{source} has a client certificate without the key {missing}.")
    secure = (
        base.tls is not None
        if base
        else (
            value.get("protocol") == "amqps"
            or value.get("port") == str(AMQPS_PORT)
            or bool(tls.authority or tls.certificate)
        )
    )
    addresses = base.addresses if base else ()
    if value.get("host") or value.get("port"):
        hosts = value.get("host") or ",".join(f"[{host}]" if ":" in host else host for host, _ in addresses)
        addresses = _addresses(
            hosts, _port(value.get("port") or str(AMQPS_PORT if secure else AMQP_PORT), source)
        )
    username = value.get("username") or (base.username if base else "")
    if not username and not tls.certificate:
        raise BindingError(
            f"{source} has no key username; give username and password, or tls.crt and tls.key."
        )
    return Binding(
        addresses=addresses,
        username=username,
        # A password may begin or end with a space. Only a final newline is certainly a mistake.
        password=keys["password"].rstrip("\r\n") if keys.get("password") else (base.password if base else ""),
        virtual_host=value.get("virtual-host") or (base.virtual_host if base else "/"),
        tls=tls if secure else None,
        management_uri=value.get("management-uri") or None,
        heartbeat_seconds=base.heartbeat_seconds if base else None,
    )


def from_folder(folder: Path) -> Binding:
    """Read a mounted Secret: one file per key, as in the Service Binding specification.

    Raises:
        BindingError: the folder cannot be read, or a key is missing or invalid.
    """
    try:
        # Other keys of the Secret may be binary, such as a key store.
        keys = {
            file.name: file.read_text(encoding="utf-8")
            for file in folder.iterdir()
            if file.name in KEYS and file.is_file()
        }
    except (OSError, UnicodeDecodeError) as error:
        raise BindingError(f"The connection folder {folder} cannot be read: {error}.") from error
    return from_mapping(keys, f"The folder {folder}")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url.strip())
    except ValueError:
        # Python's message may contain the password.
        raise BindingError(
            "The broker's URL cannot be read. Put an IPv6 address into brackets, and percent-encode special"
            " characters in user and password."
        ) from None


def _addresses(places: str, default_port: int) -> tuple[tuple[str, int], ...]:
    found = []
    for place in filter(None, (part.strip() for part in places.split(","))):
        parts = _split(f"//{place}")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            # The port is not shown: in `amqp://user:password`, without a host, it would be the password.
            raise BindingError(
                f"The address that begins with {place.partition(':')[0]!r} has a port that is not a number from"
                " 1 to 65535."
            ) from None
        if not host:
            raise BindingError(f"The address {place!r} has no host.")
        found.append((host, port or default_port))
    if not found:
        raise BindingError("No host is given.")
    if len(found) > MOST_ADDRESSES:
        raise BindingError(
            f"{len(found)} hosts are named; at most {MOST_ADDRESSES} are allowed. Name fewer nodes of the cluster,"
            " or a Service in front of them."
        )
    return tuple(found)


def _port(text: str, source: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:  # noqa: PLR2004 - the range of TCP ports
        # A longer text, or one that is not a number, could be a password under the wrong key. It is not shown.
        shown = f"is {text}" if text.isdecimal() and len(text) <= len("65535") else "is not a port"
        raise BindingError(f"{source}: key port {shown}; it must be a number from 1 to 65535.")
    return int(text)
