"""Connection data from a URL, from the keys of a Secret, and from a folder."""

# ruff: noqa: E501 - a table reads best with a row a line

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue.contract.binding import TLS, Binding, from_folder, from_mapping, from_url
from workqueue.contract.errors import BindingError

URLS = [
    (
        "the shortest URL",
        "amqp://rabbit",
        Binding((("rabbit", 5672),), "guest", "guest", "/"),
    ),
    (
        "a final slash means the virtual host /",
        "amqp://rabbit/",
        Binding((("rabbit", 5672),), "guest", "guest"),
    ),
    (
        "everything is named",
        "amqp://joe:pw@rabbit:1234/jobs",
        Binding((("rabbit", 1234),), "joe", "pw", "jobs"),
    ),
    (
        "special characters are percent-encoded",
        "amqp://j%40e:p%3A%2F%20%25@rabbit/%2Fa%2Fb",
        Binding((("rabbit", 5672),), "j@e", "p:/ %", "/a/b"),
    ),
    (
        "a password with a bare @ ends at the last one",
        "amqp://joe:p@ss@rabbit/",
        Binding((("rabbit", 5672),), "joe", "p@ss"),
    ),
    ("a user without a password", "amqp://joe@rabbit", Binding((("rabbit", 5672),), "joe", "")),
    (
        "an encoded slash is the virtual host /",
        "amqp://rabbit/%2F",
        Binding((("rabbit", 5672),), "guest", "guest", "/"),
    ),
    ("an IPv6 address", "amqp://[fd00::1]:1234", Binding((("fd00::1", 1234),), "guest", "guest")),
    (
        "several hosts",
        "amqp://joe:pw@a,b:1234,[fd00::1]/v",
        Binding((("a", 5672), ("b", 1234), ("fd00::1", 5672)), "joe", "pw", "v"),
    ),
    (
        "heartbeat",
        "amqp://rabbit/v?heartbeat=30",
        Binding((("rabbit", 5672),), "guest", "guest", "v", heartbeat_seconds=30),
    ),
    (
        "heartbeat-without-a-path",
        "amqp://rabbit?heartbeat=1",
        Binding((("rabbit", 5672),), "guest", "guest", heartbeat_seconds=1),
    ),
    ("TLS", "amqps://rabbit", Binding((("rabbit", 5671),), "guest", "guest", tls=TLS())),
    ("spaces around are of no meaning", "  amqp://rabbit \n", Binding((("rabbit", 5672),), "guest", "guest")),
]


@pytest.mark.parametrize(("url", "binding"), [row[1:] for row in URLS], ids=[row[0] for row in URLS])
def test_url_is_parsed(url, binding):
    assert from_url(url) == binding


@given(
    username=st.text(min_size=1, max_size=20),
    password=st.text(max_size=20),
    virtual_host=st.text(min_size=1, max_size=20),
)
def test_any_user_password_and_virtual_host_fit_into_a_url(username, password, virtual_host):
    url = f"amqp://{quote(username, safe='')}:{quote(password, safe='')}@h/{quote(virtual_host, safe='')}"
    assert from_url(url) == Binding((("h", 5672),), username, password, virtual_host)


BAD_URLS = [
    ("another scheme", "http://rabbit", "The broker's URL has the scheme 'http'; it must start with amqp:// or amqps://."),
    ("no scheme", "rabbit:5672", "The broker's URL has the scheme 'rabbit'; it must start with amqp:// or amqps://."),
    ("no host", "amqp://", "No host is given."),
    ("no host but a user", "amqp://joe:pw@/", "No host is given."),
    ("no host but a port", "amqp://:5672/", "The address ':5672' has no host."),
    ("more hosts than are allowed", "amqp://" + ",".join(["rabbit"] * 17), "17 hosts are named; at most 16 are allowed. Name fewer nodes of the cluster, or a Service in front of them."),
    ("a port that is no number", "amqp://rabbit:http/", "The address that begins with 'rabbit' has a port that is not a number from 1 to 65535."),
    ("a port that is too high", "amqp://rabbit:65536/", "The address that begins with 'rabbit' has a port that is not a number from 1 to 65535."),
    ("an address without its bracket", "amqp://[fd00::1/", "The broker's URL cannot be read. Put an IPv6 address into brackets, and percent-encode special characters in user and password."),
    ("unknown-parameter", "amqp://rabbit/?connection_timeout=5", "The broker's URL has the unknown parameter 'connection_timeout'; only heartbeat is known."),
    ("parameter-without-a-value", "amqp://rabbit/?heartbeat", "The broker's URL has heartbeat=; it must be a whole number of seconds from 1 to 65535."),
    ("heartbeat-of-0", "amqp://rabbit/?heartbeat=0", "The broker's URL has heartbeat=0; it must be a whole number of seconds from 1 to 65535."),
    ("heartbeat-that-is-too-long", "amqp://rabbit/?heartbeat=65536", "The broker's URL has heartbeat=65536; it must be a whole number of seconds from 1 to 65535."),
    ("heartbeat-that-is-no-number", "amqp://rabbit/?heartbeat=1.5", "The broker's URL has heartbeat=1.5; it must be a whole number of seconds from 1 to 65535."),
    ("fragment", "amqp://rabbit/v#1", "The broker's URL has a fragment (#). In user, password and virtual host, write # as %23."),
    ("a password with a bare slash", "amqp://joe:p/w@rabbit", "The broker's URL has an @ after its host. In user, password and virtual host, write / as %2F, ? as %3F, # as %23 and @ as %40."),
]  # fmt: skip


@pytest.mark.parametrize(("url", "sentence"), [row[1:] for row in BAD_URLS], ids=[row[0] for row in BAD_URLS])
def test_bad_url_is_refused_with_advice(url, sentence):
    with pytest.raises(BindingError) as caught:
        from_url(url)
    assert str(caught.value) == sentence


KEYS = {"host": "rabbit", "username": "joe", "password": "pw"}

MAPPINGS = [
    ("host, username and password", KEYS, Binding((("rabbit", 5672),), "joe", "pw")),
    (
        "port and virtual host",
        KEYS | {"port": "1234", "virtual-host": "jobs"},
        Binding((("rabbit", 1234),), "joe", "pw", "jobs"),
    ),
    ("several hosts", KEYS | {"host": "a,b:1"}, Binding((("a", 5672), ("b", 1)), "joe", "pw")),
    ("sixteen hosts", KEYS | {"host": "r," * 16}, Binding((("r", 5672),) * 16, "joe", "pw")),
    ("a bare IPv6 host in brackets", KEYS | {"host": "[fd00::1]"}, Binding((("fd00::1", 5672),), "joe", "pw")),
    ("the management API", KEYS | {"management-uri": "http://m"}, Binding((("rabbit", 5672),), "joe", "pw", management_uri="http://m")),
    ("uri-with-heartbeat", {"uri": "amqp://joe:pw@rabbit/v?heartbeat=7"}, Binding((("rabbit", 5672),), "joe", "pw", "v", heartbeat_seconds=7)),
    ("a uri", {"uri": "amqp://joe:pw@rabbit/v"}, Binding((("rabbit", 5672),), "joe", "pw", "v")),
    (
        "keys beside a uri win",
        {"uri": "amqp://a:b@c:1/d", "host": "rabbit", "port": "2", "username": "joe", "password": "pw", "virtual-host": "v"},
        Binding((("rabbit", 2),), "joe", "pw", "v"),
    ),
    ("a port beside a uri", {"uri": "amqp://joe:pw@[fd00::1]", "port": "2"}, Binding((("fd00::1", 2),), "joe", "pw")),
    ("newlines at the end of files", {"host": "rabbit\n", "username": "joe\n", "password": "pw\r\n"}, Binding((("rabbit", 5672),), "joe", "pw")),
    ("spaces in a password are meant", KEYS | {"password": " p w "}, Binding((("rabbit", 5672),), "joe", " p w ")),
    ("special characters are not decoded in keys", KEYS | {"password": "p%40:/@", "virtual-host": "%2F"}, Binding((("rabbit", 5672),), "joe", "p%40:/@", "%2F")),
    ("TLS by the protocol", KEYS | {"protocol": "amqps"}, Binding((("rabbit", 5671),), "joe", "pw", tls=TLS())),
    ("TLS by the port", KEYS | {"port": "5671"}, Binding((("rabbit", 5671),), "joe", "pw", tls=TLS())),
    ("TLS by an authority", KEYS | {"ca.crt": "CA"}, Binding((("rabbit", 5671),), "joe", "pw", tls=TLS("CA"))),
    ("a uri says plain, whatever stands beside it", {"uri": "amqp://joe:pw@rabbit", "ca.crt": "CA"}, Binding((("rabbit", 5672),), "joe", "pw")),
    ("a uri that says TLS takes the authority from the keys", {"uri": "amqps://joe:pw@rabbit", "ca.crt": "CA"}, Binding((("rabbit", 5671),), "joe", "pw", tls=TLS("CA"))),
    (
        "a client certificate needs no user",
        {"host": "rabbit", "tls.crt": "C", "tls.key": "K"},
        Binding((("rabbit", 5671),), "", "", tls=TLS("", "C", "K")),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "binding"), [row[1:] for row in MAPPINGS], ids=[row[0] for row in MAPPINGS])
def test_secret_keys_are_parsed(keys, binding):
    assert from_mapping(keys, "The Secret") == binding


BAD_MAPPINGS = [
    ("nothing", {}, "The Secret has neither the key uri nor the key host; give one of them."),
    ("an empty host", KEYS | {"host": " "}, "The Secret has neither the key uri nor the key host; give one of them."),
    ("no user", {"host": "rabbit", "password": "pw"}, "The Secret has no key username; give username and password, or tls.crt and tls.key."),
    ("a port that is no number", KEYS | {"port": "amqp"}, "The Secret: key port is not a port; it must be a number from 1 to 65535."),
    ("port 0", KEYS | {"port": "0"}, "The Secret: key port is 0; it must be a number from 1 to 65535."),
    ("a port in other digits", KEYS | {"port": "²"}, "The Secret: key port is not a port; it must be a number from 1 to 65535."),
    ("a bad uri", {"uri": "http://rabbit"}, "The Secret: key uri: The broker's URL has the scheme 'http'; it must start with amqp:// or amqps://."),
    ("a certificate without its key", KEYS | {"tls.crt": "C"}, "The Secret has a client certificate without the key tls.key."),
    ("a key without its certificate", KEYS | {"tls.key": "K"}, "The Secret has a client certificate without the key tls.crt."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "sentence"), [row[1:] for row in BAD_MAPPINGS], ids=[row[0] for row in BAD_MAPPINGS]
)
def test_bad_secret_keys_are_refused_with_advice(keys, sentence):
    with pytest.raises(BindingError) as caught:
        from_mapping(keys, "The Secret")
    assert str(caught.value) == sentence


@given(
    keys=st.dictionaries(
        st.sampled_from(
            ["uri", "host", "port", "username", "password", "virtual-host", "tls.crt", "tls.key"]
        ),
        st.text(max_size=20) | st.sampled_from(["amqp://u:s3cr3t@h", "amqps://h", "5671", "h"]),
    )
)
def test_any_secret_keys_give_a_binding_or_a_clear_error(keys):
    try:
        assert from_mapping(keys, "The Secret").addresses
    except BindingError as error:
        assert str(error).endswith(".")  # noqa: PT017 - either outcome is right


def test_mounted_secret_folder_is_parsed(tmp_path):
    data = tmp_path / "..data"
    data.mkdir()
    (tmp_path / ".hidden").write_text("x")
    for key, text in (KEYS | {"type": "rabbitmq"}).items():
        (data / key).write_text(f"{text}\n")
        (tmp_path / key).symlink_to(data / key)
    assert from_folder(tmp_path) == Binding((("rabbit", 5672),), "joe", "pw")


def test_missing_binding_folder_is_refused_with_advice(tmp_path):
    with pytest.raises(BindingError, match=r"The connection folder .*nope cannot be read: .*\."):
        from_folder(tmp_path / "nope")


def test_folder_with_binary_files_is_refused_with_a_sentence(tmp_path):
    (tmp_path / "host").write_bytes(b"\xff")
    with pytest.raises(BindingError, match=r"cannot be read: .*\."):
        from_folder(tmp_path)


DEFAULT_USER = {
    "default_user.conf": "default_user = default_user_x\ndefault_pass = pw\n",
    "host": "rabbit.shop.svc",
    "username": "default_user_x",
    "password": "pw",
    "provider": "rabbitmq",
    "type": "rabbitmq",
    "stream-port": "5552",
}
"""The default-user Secret of the RabbitMQ cluster operator, without `port`, which tells of TLS."""

SHAPES = [
    ("cluster operator", DEFAULT_USER | {"port": "5672"}, Binding((("rabbit.shop.svc", 5672),), "default_user_x", "pw")),
    (
        "cluster operator with TLS",
        DEFAULT_USER | {"port": "5671"},
        Binding((("rabbit.shop.svc", 5671),), "default_user_x", "pw", tls=TLS()),
    ),
    (
        "cluster operator with TLS and its authority",
        DEFAULT_USER | {"port": "5671", "ca.crt": "CA"},
        Binding((("rabbit.shop.svc", 5671),), "default_user_x", "pw", tls=TLS("CA")),
    ),
    (
        "Service Binding",
        {"type": "rabbitmq", "provider": "bitnami", "host": "rabbit", "port": "5672", "username": "joe", "password": "pw",
         "virtual-host": "jobs", "uri": "amqp://joe:pw@rabbit:5672/jobs"},
        Binding((("rabbit", 5672),), "joe", "pw", "jobs"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "expected"), [row[1:] for row in SHAPES], ids=[row[0] for row in SHAPES])
def test_secrets_of_others_are_read_as_they_are(tmp_path, keys, expected):
    assert from_mapping(keys, "The Secret") == expected
    for key, text in keys.items():
        (tmp_path / key).write_text(text)
    (tmp_path / "truststore.p12").write_bytes(b"\xff\x00")
    assert from_folder(tmp_path) == expected


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "text",
    [
        repr(Binding((("h", 1),), "joe", SECRET, tls=TLS("", "C", SECRET), management_uri=f"http://x:{SECRET}@m")),
        Binding((("h", 1),), "joe", SECRET).display,
        Binding((("h", 1),), "joe", SECRET).identity,
    ],
    ids=["repr", "display", "identity"],
)  # fmt: skip
def test_repr_shows_no_secret(text):
    assert SECRET not in text


BAD_WITH_SECRET = [
    ("another scheme", f"http://joe:{SECRET}@rabbit"),
    ("a bad port", f"amqp://joe:{SECRET}@rabbit:x"),
    ("no host", f"amqp://joe:{SECRET}@"),
    ("a broken address", f"amqp://joe:{SECRET}@[fd00::1"),
    ("a broken address in the password", f"amqp://joe:{SECRET}[@rabbit"),
    ("no scheme", f"joe:{SECRET}@rabbit"),
    ("a slash in the password", f"amqp://joe:{SECRET}/@rabbit"),
    ("a number sign in the password", f"amqp://joe:{SECRET}#@rabbit"),
    ("a question mark in the password", f"amqp://joe:{SECRET}?@rabbit"),
    ("a forgotten host", f"amqp://joe:{SECRET}"),
    ("a character that Python refuses", f"amqp://joe:{SECRET}\u2100@rabbit"),
]


@pytest.mark.parametrize("url", [row[1] for row in BAD_WITH_SECRET], ids=[row[0] for row in BAD_WITH_SECRET])
def test_binding_error_shows_no_password(url):
    with pytest.raises(BindingError) as caught:
        from_url(url)
    assert SECRET not in str(caught.value)


DISPLAYS = [
    ("plain", Binding((("h", 1),), "joe", "pw"), "amqp://h:1/"),
    ("TLS and a virtual host", Binding((("h", 1),), "joe", "pw", "v", TLS()), "amqps://h:1/v"),
    (
        "several, one of them IPv6",
        Binding((("h", 1), ("fd00::1", 2)), "joe", "pw"),
        "amqp://h:1,[fd00::1]:2/",
    ),
]


@pytest.mark.parametrize(("binding", "text"), [row[1:] for row in DISPLAYS], ids=[row[0] for row in DISPLAYS])
def test_display_has_no_credentials(binding, text):
    assert binding.display == text


BASE = Binding((("h", 1),), "joe", "pw", "v", TLS("CA", "C", "K"))
DIFFERENT = [
    ("another address", Binding((("h", 2),), "joe", "pw", "v", TLS("CA", "C", "K"))),
    ("another user", Binding((("h", 1),), "ann", "pw", "v", TLS("CA", "C", "K"))),
    ("another password", Binding((("h", 1),), "joe", "other", "v", TLS("CA", "C", "K"))),
    ("another virtual host", Binding((("h", 1),), "joe", "pw", "w", TLS("CA", "C", "K"))),
    ("another authority", Binding((("h", 1),), "joe", "pw", "v", TLS("CB", "C", "K"))),
    ("another private key", Binding((("h", 1),), "joe", "pw", "v", TLS("CA", "C", "L"))),
    ("no TLS", Binding((("h", 1),), "joe", "pw", "v")),
]


@pytest.mark.parametrize("other", [row[1] for row in DIFFERENT], ids=[row[0] for row in DIFFERENT])
def test_bindings_that_need_different_connections_have_different_identities(other):
    assert BASE.identity != other.identity


def test_management_address_does_not_change_connection_identity():
    with_management = Binding((("h", 1),), "joe", "pw", "v", TLS("CA", "C", "K"), "http://m")
    assert BASE.identity == with_management.identity


SIGNING_KEYS = [
    ("the password", Binding((("h", 1),), "joe", "pw", tls=TLS("", "C", "K")), b"pw"),
    ("else the private key", Binding((("h", 1),), "joe", "", tls=TLS("", "C", "K")), b"K"),
    ("else nothing", Binding((("h", 1),), "joe", ""), b""),
]


@pytest.mark.parametrize(
    ("binding", "key"), [row[1:] for row in SIGNING_KEYS], ids=[row[0] for row in SIGNING_KEYS]
)
def test_signing_key_is_password_or_private_key(binding, key):
    assert binding.signing_key == key
