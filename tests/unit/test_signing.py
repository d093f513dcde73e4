"""Signed calls: valid for one purpose, one pod and one minute, and only with the key."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue.contract.signing import TOLERANCE_SECONDS, Purpose, SignatureCheck, sign, verify

NOW = 1_800_000_000.25
KEY = b"secret"
GOOD = sign(Purpose.RETIRE, "pod-1", KEY, NOW)


def check(header, *, purpose=Purpose.RETIRE, pod_uid="pod-1", key=KEY, now=NOW):
    return verify(header, purpose, pod_uid, key, now)


def test_signature_verifies():
    assert check(GOOD) is SignatureCheck.GOOD


def signed_at(stamp):
    """A header whose signature is right for a time stamp of any text."""
    from workqueue.contract.signing import _digest

    return f"{stamp}:{_digest(Purpose.RETIRE, 'pod-1', stamp, KEY)}"


HEADERS = [
    ("no header", None, SignatureCheck.MISSING),
    ("an empty header", "", SignatureCheck.MISSING),
    ("no time", "abc", SignatureCheck.MALFORMED),
    ("a time that is no number", f"soon:{GOOD.partition(':')[2]}", SignatureCheck.MALFORMED),
    ("no signature", "1800000000.25", SignatureCheck.MALFORMED),
    ("a signature that is no ASCII", "1800000000.25:é", SignatureCheck.MALFORMED),
    ("an empty signature", "1800000000.25:", SignatureCheck.WRONG),
    ("another signature", f"1800000000.250000:{'0' * 64}", SignatureCheck.WRONG),
    ("a signature for another time", f"1800000001.250000:{GOOD.partition(':')[2]}", SignatureCheck.WRONG),
    ("a signature that goes on", f"{GOOD}0", SignatureCheck.WRONG),
    ("a signature in upper case", GOOD.upper(), SignatureCheck.WRONG),
    ("not-a-number as time, rightly signed", signed_at("nan"), SignatureCheck.EXPIRED),
    ("infinity as time, rightly signed", signed_at("inf"), SignatureCheck.EXPIRED),
]


@pytest.mark.parametrize(("header", "verdict"), [row[1:] for row in HEADERS], ids=[row[0] for row in HEADERS])
def test_header_signed_for_another_call_is_refused(header, verdict):
    assert check(header) is verdict


OTHERS = [
    ("another purpose", {"purpose": Purpose.RESUME}),
    ("another pod", {"pod_uid": "pod-2"}),
    ("another key", {"key": b"other"}),
    ("no key, as of a binding without a password", {"key": b""}),
]


@pytest.mark.parametrize("other", [row[1] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_signature_fails_for_another_call(other):
    assert check(GOOD, **other) is SignatureCheck.WRONG


def test_empty_key_never_verifies():
    assert check(sign(Purpose.RETIRE, "pod-1", b"", NOW), key=b"") is SignatureCheck.WRONG


AGES = [
    ("at the end of the tolerance", TOLERANCE_SECONDS - 0.001, SignatureCheck.GOOD),
    ("after the tolerance", TOLERANCE_SECONDS + 0.001, SignatureCheck.EXPIRED),
    ("from the future, within the tolerance", -TOLERANCE_SECONDS + 0.001, SignatureCheck.GOOD),
    ("from the future, beyond the tolerance", -TOLERANCE_SECONDS - 0.001, SignatureCheck.EXPIRED),
    ("an hour old", 3600.0, SignatureCheck.EXPIRED),
    ("checked with a clock that is no number", math.nan, SignatureCheck.EXPIRED),
]


@pytest.mark.parametrize(("age", "verdict"), [row[1:] for row in AGES], ids=[row[0] for row in AGES])
def test_signature_expires(age, verdict):
    assert check(GOOD, now=NOW + age) is verdict


@given(
    purpose=st.sampled_from(Purpose),
    pod_uid=st.text(max_size=40),
    key=st.binary(min_size=1),
    now=st.floats(min_value=0, max_value=1e11),
)
def test_every_signature_verifies_for_its_own_call(purpose, pod_uid, key, now):
    assert verify(sign(purpose, pod_uid, key, now), purpose, pod_uid, key, now) is SignatureCheck.GOOD


@given(header=st.text())
def test_any_header_gets_a_verdict(header):
    assert check(header) in set(SignatureCheck) - {SignatureCheck.GOOD}
