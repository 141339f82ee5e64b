"""The verification of webhooks: what Plaid signs is accepted, and each attack is refused for its own reason."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import string
import subprocess
import sys
from functools import partial

import pytest
from canaries import assert_error_is_clean
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from starlette.datastructures import Headers
from webhook_signing import (
    BODY,
    EXAMPLES,
    HEADER,
    KEY_ID,
    NOW,
    PRIVATE_KEY,
    claims_for,
    coordinate,
    headers_of,
    jwk_of,
    segment,
    sign_es256,
    token_of,
)

from plaid_relay_async import ConfigurationError, PlaidRelayError
from plaid_relay_async.webhooks import (
    InvalidHeadersError,
    RawBodyRequiredError,
    RefusalReason,
    StaleWebhookError,
    VerificationKey,
    VerifiedWebhook,
    WebhookError,
    WebhookRefusedError,
    verify,
)
from plaid_relay_async.webhooks.token import read_token

KEY = VerificationKey.from_jwk(jwk_of())
OTHER_KEYS = [
    VerificationKey.from_jwk(jwk_of(ec.derive_private_key(7, ec.SECP256R1()), kid=key_id))
    for key_id in ("0", "other")
]
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CANARY_TOKEN = "eyJjYW5hcnktdG9rZW4iOjF9"


def check(body=BODY, headers=None, **options):
    """Verify a webhook at the time at which it was signed."""
    options = {"keys": [*OTHER_KEYS, KEY], "environment": "sandbox", "now": NOW} | options
    return verify(body, headers_of(token_of()) if headers is None else headers, **options)


def refusal(body=BODY, headers=None, **options):
    """Return the reason for which a webhook is refused."""
    with pytest.raises(WebhookRefusedError) as caught:
        check(body, headers, **options)
    assert_error_is_clean(caught.value)
    return caught.value.reason


def signed(header=HEADER, claims=None, sign=sign_es256):
    return headers_of(token_of(header, claims, sign=sign))


def sign_rs256(message):
    return RSA_KEY.sign(message, padding.PKCS1v15(), hashes.SHA256())


def sign_hs256(message):
    """Sign with the public key as the secret of an HMAC, as in the attack on careless libraries."""
    public = PRIVATE_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hmac.digest(public, message, "sha256")


def test_a_webhook_of_plaid_is_accepted():
    """A recent webhook with a valid signature is returned, with what identifies its content."""
    assert check() == VerifiedWebhook(BODY, hashlib.sha256(BODY).hexdigest(), NOW)
    assert "canary" not in repr(check())


@pytest.mark.parametrize(
    "make",
    [
        dict,
        lambda headers: {name.lower(): value for name, value in headers.items()},
        CIMultiDict,
        lambda headers: CIMultiDictProxy(CIMultiDict(headers)),
        Headers,
        lambda headers: list(headers.items()),
        lambda headers: [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    ],
    ids=["dict", "lower", "aiohttp", "aiohttp-proxy", "starlette", "pairs", "asgi"],
)
def test_headers_of_each_framework_are_accepted(make):
    """The headers may be a mapping, a multi-valued mapping, or pairs of text or bytes."""
    assert check(headers=make(headers_of(token_of()))).body == BODY


@pytest.mark.parametrize(
    "headers",
    [
        {"Plaid-Verification": [token_of()]},
        {"Plaid-Verification": None},
        {"Plaid-Verification": token_of(), "Accept": ["*/*"]},
        {7: "x"},
        [(b"plaid-verification", bytearray(token_of().encode()))],
        [["plaid-verification"]],
        [("plaid-verification", token_of(), "x")],
        token_of(),
        None,
    ],
    ids=["lists", "none", "other", "name", "bytearray", "one", "three", "token", "no-headers"],
)
def test_other_headers_are_an_error(headers):
    """Headers that aren't text are a mistake of the caller, and the error says how to get them."""
    with pytest.raises(InvalidHeadersError, match=r"mapping or pairs.*`request.headers`") as caught:
        verify(BODY, headers, keys=[KEY], now=NOW)
    assert isinstance(caught.value, TypeError)
    assert caught.value.response_status == 500
    assert_error_is_clean(caught.value)


def test_unknown_members_of_token_and_claims_are_accepted():
    """Plaid may add members to the token's header and to its claims."""
    headers = signed({"alg": "ES256", "kid": KEY_ID, "x5t": "abc"}, claims_for(iss="plaid"))
    assert check(headers=headers).issued_at == NOW


ALGORITHMS = {
    "none": ({"alg": "none"}, lambda _: b""),
    "None": ({"alg": "None"}, lambda _: b""),
    "hs256": ({"alg": "HS256"}, sign_hs256),
    "rs256": ({"alg": "RS256"}, sign_rs256),
    "es384": ({"alg": "ES384"}, sign_es256),
    "es256k": ({"alg": "ES256K"}, sign_es256),
    "lower": ({"alg": "es256"}, sign_es256),
    "list": ({"alg": ["ES256"]}, sign_es256),
    "null": ({"alg": None}, sign_es256),
}


@pytest.mark.parametrize(("change", "sign"), ALGORITHMS.values(), ids=ALGORITHMS)
def test_another_algorithm_is_refused(change, sign):
    """Only ES256 is accepted, whatever the token says, and whatever it is signed with."""
    assert refusal(headers=signed(HEADER | change, sign=sign)) is RefusalReason.WRONG_ALGORITHM


def test_a_missing_algorithm_is_refused():
    """The token must name its algorithm."""
    assert refusal(headers=signed({"kid": KEY_ID})) is RefusalReason.WRONG_ALGORITHM


@pytest.mark.parametrize(
    ("member", "value", "reason"),
    [
        ("jwk", {"kty": "EC", "crv": "P-256", "x": "x", "y": "y"}, RefusalReason.KEY_IN_HEADER),
        ("x5c", ["MIIB"], RefusalReason.KEY_IN_HEADER),
        ("jku", "https://attacker.example/keys", RefusalReason.KEY_URL_IN_HEADER),
        ("x5u", "https://attacker.example/cert", RefusalReason.KEY_URL_IN_HEADER),
        ("crit", ["exp"], RefusalReason.CRITICAL_HEADER),
        ("crit", [], RefusalReason.CRITICAL_HEADER),
        ("b64", False, RefusalReason.CRITICAL_HEADER),
    ],
)
def test_a_key_or_an_extension_in_the_token_is_refused(member, value, reason):
    """A key of the sender's choice, its URL, and a critical extension are refused, even if signed by Plaid."""
    assert refusal(headers=signed(HEADER | {member: value})) is reason
    assert refusal(headers=signed(HEADER | {member: None})) is reason


@pytest.mark.parametrize(
    "key_id",
    [
        "../../etc/passwd",
        "/dev/null",
        "k" * 129,
        "k" * 10_000,
        "",
        " ",
        f"{KEY_ID}\n",
        "é",
        7,
        None,
        [KEY_ID],
    ],
    ids=lambda key_id: str(key_id)[:20],
)
def test_an_invalid_key_id_is_refused(key_id):
    """A key ID is a short text of letters, digits and a few signs; a token of ten kilobytes isn't read."""
    long = isinstance(key_id, str) and len(key_id) == 10_000
    reason = RefusalReason.HEADER_TOO_LONG if long else RefusalReason.INVALID_KEY_ID
    assert refusal(headers=signed(HEADER | {"kid": key_id})) is reason


def test_a_missing_key_id_is_refused():
    """The token must name its key."""
    assert refusal(headers=signed({"alg": "ES256"})) is RefusalReason.INVALID_KEY_ID


def test_the_longest_key_id():
    """A key ID of 128 characters is accepted."""
    key = VerificationKey.from_jwk(jwk_of(kid="k" * 128))
    assert check(headers=signed(HEADER | {"kid": "k" * 128}), keys=[key]).issued_at == NOW


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, RefusalReason.NO_HEADER),
        ([], RefusalReason.NO_HEADER),
        ({"Plaid-Verification-2": token_of()}, RefusalReason.NO_HEADER),
        ([("Plaid-Verification", token_of()), ("plaid-verification", "x")], RefusalReason.SEVERAL_HEADERS),
        (CIMultiDict([("Plaid-Verification", token_of())] * 2), RefusalReason.SEVERAL_HEADERS),
        (Headers(raw=[(b"plaid-verification", token_of().encode())] * 2), RefusalReason.SEVERAL_HEADERS),
        (headers_of(f"{token_of()},{token_of()}"), RefusalReason.SEVERAL_HEADERS),
        (headers_of("a" * 2049), RefusalReason.HEADER_TOO_LONG),
        (headers_of("a" * 2048), RefusalReason.MALFORMED_TOKEN),
        (headers_of(""), RefusalReason.MALFORMED_TOKEN),
        (headers_of(CANARY_TOKEN), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"{token_of()}."), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"{token_of()}=="), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f" {token_of()}"), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"Bearer {token_of()}"), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"{segment(b'[]')}.e30.AA"), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"{segment(b'{')}.e30.AA"), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"{segment(bytes([255]))}.e30.AA"), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"{segment(b'[' * 1500)}.e30.AA"), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"{token_of().rpartition('.')[0]}.A"), RefusalReason.MALFORMED_TOKEN),
        (headers_of(f"{token_of().rpartition('.')[0]}."), RefusalReason.MALFORMED_TOKEN),
        (signed(b'{"alg":"ES256","alg":"none","kid":"k"}'), RefusalReason.MALFORMED_TOKEN),
        (signed(b'\xef\xbb\xbf{"alg":"ES256","kid":"k"}'), RefusalReason.MALFORMED_TOKEN),
    ],
)
def test_a_malformed_header_is_refused(headers, reason):
    """There must be one header with one token, in its only valid spelling."""
    assert refusal(headers=headers) is reason


@pytest.mark.parametrize("unused_bits", range(1, 16))
def test_another_spelling_of_a_signature_is_refused(unused_bits):
    """The last character of a signature has four unused bits, which must be 0."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    token = token_of()
    last = alphabet[alphabet.index(token[-1]) + unused_bits]
    assert refusal(headers=headers_of(token[:-1] + last)) is RefusalReason.MALFORMED_TOKEN


def test_a_bare_signature_of_another_length_is_refused():
    """A signature is two numbers of 32 bytes."""
    for sign in (lambda _: b"\0", lambda _: bytes(64), lambda message: sign_es256(message) + b"\0"):
        assert refusal(headers=signed(sign=sign)) is RefusalReason.WRONG_SIGNATURE


def test_the_signature_of_another_key_is_refused():
    """A signature by another private key is wrong, also if its key is known by another ID."""
    other = ec.derive_private_key(7, ec.SECP256R1())
    assert (
        refusal(headers=signed(sign=partial(sign_es256, private_key=other))) is RefusalReason.WRONG_SIGNATURE
    )


def test_an_unknown_key_is_refused():
    """A key that isn't among the keys of the environment is unknown."""
    assert refusal(keys=OTHER_KEYS) is RefusalReason.UNKNOWN_KEY
    assert refusal(keys=[]) is RefusalReason.UNKNOWN_KEY


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kty": "RSA"}, RefusalReason.UNSUITABLE_KEY),
        ({"crv": "P-384"}, RefusalReason.UNSUITABLE_KEY),
        ({"alg": "ES384"}, RefusalReason.UNSUITABLE_KEY),
        ({"use": "enc"}, RefusalReason.UNSUITABLE_KEY),
        ({"x": coordinate(1), "y": coordinate(1)}, RefusalReason.INVALID_POINT),
        ({"x": coordinate(0), "y": coordinate(0)}, RefusalReason.INVALID_POINT),
        ({"x": "", "y": ""}, RefusalReason.INVALID_POINT),
        ({"x": "é"}, RefusalReason.INVALID_POINT),
        ({"y": segment(bytes(33))}, RefusalReason.INVALID_POINT),
        ({"x": "A"}, RefusalReason.INVALID_POINT),
    ],
)
def test_an_unsuitable_key_is_refused(change, reason):
    """A key must be a point of P-256, and be meant for ES256 signatures."""
    with pytest.raises(WebhookRefusedError) as caught:
        VerificationKey.from_jwk(jwk_of(**change))
    assert caught.value.reason is reason


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256K1()])
def test_a_key_of_another_curve_is_refused(curve):
    """A point of another curve isn't accepted as one of P-256."""
    with pytest.raises(WebhookRefusedError) as caught:
        VerificationKey.from_jwk(jwk_of(ec.derive_private_key(4242, curve)))
    assert caught.value.reason is RefusalReason.INVALID_POINT


def test_keys_are_compared():
    """A key equals another one with the same ID and the same point, and can be an element of a set."""
    other = VerificationKey.from_jwk(jwk_of(ec.derive_private_key(7, ec.SECP256R1())))
    assert VerificationKey.from_jwk(jwk_of()) == KEY != other
    assert {KEY, VerificationKey.from_jwk(jwk_of()), other} == {KEY, other}


def test_a_private_member_of_a_key_is_ignored():
    """Only the public members of a key are used."""
    key = VerificationKey.from_jwk(jwk_of(additional_properties={"d": coordinate(1)}))
    assert check(keys=[key]).issued_at == NOW


@pytest.mark.parametrize(("expired_at", "refused"), [(NOW - 1, True), (NOW, True), (NOW + 1, False)])
def test_an_expired_key_is_refused(expired_at, refused):
    """A key is refused from the time of its expiry, although its signature is valid."""
    keys = [VerificationKey.from_jwk(jwk_of(expired_at=expired_at))]
    if refused:
        assert refusal(keys=keys) is RefusalReason.EXPIRED_KEY
    else:
        assert check(keys=keys).issued_at == NOW


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        (b"[]", RefusalReason.MALFORMED_CLAIMS),
        (b"", RefusalReason.MALFORMED_TOKEN),
        (b"{", RefusalReason.MALFORMED_CLAIMS),
        (b"\xff", RefusalReason.MALFORMED_CLAIMS),
        (b"[" * 1200, RefusalReason.MALFORMED_CLAIMS),
        (json.dumps(claims_for()).encode()[:-1] + b',"iat":1}', RefusalReason.MALFORMED_CLAIMS),
        (claims_for(iat=...), RefusalReason.MISSING_CLAIM),
        (claims_for(request_body_sha256=...), RefusalReason.MISSING_CLAIM),
        ({}, RefusalReason.MISSING_CLAIM),
        (claims_for(iat=str(NOW)), RefusalReason.INVALID_ISSUED_AT),
        (claims_for(iat=float(NOW)), RefusalReason.INVALID_ISSUED_AT),
        (claims_for(iat=True), RefusalReason.INVALID_ISSUED_AT),
        (claims_for(iat=None), RefusalReason.INVALID_ISSUED_AT),
        (claims_for(iat=float("nan")), RefusalReason.INVALID_ISSUED_AT),
        (claims_for(iat=10**1000), RefusalReason.INVALID_ISSUED_AT),
        (claims_for(iat=253_402_300_800), RefusalReason.INVALID_ISSUED_AT),
        (claims_for(iat=-1), RefusalReason.INVALID_ISSUED_AT),
        (claims_for(iat=253_402_300_799), RefusalReason.ISSUED_IN_FUTURE),
        (claims_for(request_body_sha256=None), RefusalReason.INVALID_BODY_HASH),
        (claims_for(request_body_sha256=7), RefusalReason.INVALID_BODY_HASH),
        (
            claims_for(request_body_sha256=hashlib.sha256(BODY).hexdigest().upper()),
            RefusalReason.INVALID_BODY_HASH,
        ),
        (
            claims_for(request_body_sha256=hashlib.sha256(BODY).hexdigest()[:-1]),
            RefusalReason.INVALID_BODY_HASH,
        ),
        (
            claims_for(request_body_sha256=hashlib.sha256(BODY).hexdigest() + "\n"),
            RefusalReason.INVALID_BODY_HASH,
        ),
        (claims_for(b"other bytes"), RefusalReason.OTHER_BODY),
    ],
)
def test_invalid_claims_are_refused(claims, reason):
    """The claims must be the time as a whole number, and the SHA-256 of the body in lower-case digits."""
    assert refusal(headers=signed(claims=claims)) is reason


@pytest.mark.parametrize(
    "body",
    [
        b"",
        BODY + b"\n",
        BODY.replace(b"  ", b" "),
        json.dumps(json.loads(BODY)).encode(),
        json.dumps(json.loads(BODY), indent=4).encode(),
        BODY.replace(b"FULL", b"FAST"),
    ],
)
def test_a_changed_body_is_refused(body):
    """The signature is for the bytes: other whitespace is another body."""
    assert refusal(body) is RefusalReason.OTHER_BODY


@pytest.mark.parametrize("part", [0, 1])
def test_a_tampered_token_is_refused(part):
    """A valid signature of another header or other claims is wrong."""
    parts = token_of().split(".")
    changed = HEADER | {"typ": "at+jwt"} if part == 0 else claims_for(iat=NOW + 1)
    parts[part] = segment(json.dumps(changed).encode())
    assert refusal(headers=headers_of(".".join(parts))) is RefusalReason.WRONG_SIGNATURE


@pytest.mark.parametrize("named", [b'"production"', b'"Sandbox"', b'""', b"0", b"false", b'["sandbox"]'])
def test_another_environment_is_refused(named):
    """A body that names another environment is refused, if the environment is known."""
    body = BODY.replace(b'"sandbox"', named)
    headers = signed(claims=claims_for(body))
    assert refusal(body, headers) is RefusalReason.OTHER_ENVIRONMENT
    assert check(body, headers, environment=None).body == body


@pytest.mark.parametrize(
    "body",
    [b'{"webhook_type": "ASSETS"}', b'{"environment": null}', b"[]", b"\xff", b"", b"[" * 100_000],
    ids=lambda body: body[:30].decode("latin-1"),
)
def test_a_body_without_an_environment_is_accepted(body):
    """A body that names no environment is authentic, whatever it is."""
    assert check(body, signed(claims=claims_for(body))).body == body


@pytest.mark.parametrize(("ahead", "refused"), [(60, False), (61, True)])
def test_a_webhook_of_the_future_is_refused(ahead, refused):
    """A webhook may have been issued at most a minute in the future, in which this clock may be wrong."""
    headers = signed(claims=claims_for(iat=NOW + ahead))
    if refused:
        assert refusal(headers=headers) is RefusalReason.ISSUED_IN_FUTURE
    else:
        assert check(headers=headers).issued_at == NOW + ahead
    assert refusal(headers=headers, skew=ahead - 1) is RefusalReason.ISSUED_IN_FUTURE
    assert check(headers=headers, skew=ahead).issued_at == NOW + ahead


@pytest.mark.parametrize(("age", "stale"), [(300, False), (301, True)])
def test_an_old_webhook_is_stale(age, stale):
    """A webhook of more than five minutes isn't refused as a forgery: it is stale, and comes with the error."""
    if not stale:
        assert check(now=NOW + age).body == BODY
        return
    with pytest.raises(StaleWebhookError) as caught:
        check(now=NOW + age)
    assert not isinstance(caught.value, WebhookRefusedError)
    assert caught.value.webhook == check()
    assert (caught.value.age, caught.value.response_status) == (age, 400)
    assert_error_is_clean(caught.value)
    assert check(now=NOW + age, tolerance=age).body == BODY


@pytest.mark.parametrize("issued_at", [0, 1])
def test_the_first_seconds_of_unix_time(issued_at):
    """A webhook of 1970 is stale, and its age is that of all Unix time."""
    with pytest.raises(StaleWebhookError) as caught:
        check(headers=signed(claims=claims_for(iat=issued_at)))
    assert (caught.value.webhook.issued_at, caught.value.age) == (issued_at, NOW - issued_at)


def test_a_replay_is_stale_after_the_tolerance():
    """A replayed webhook is the same webhook for five minutes, which only a store can detect, and then stale."""
    headers = headers_of(token_of())
    assert check(headers=headers).body_sha256 == check(headers=headers, now=NOW + 299).body_sha256
    with pytest.raises(StaleWebhookError):
        check(headers=headers, now=NOW + 3600)


def test_errors_can_be_pickled():
    """The errors can be passed to another process, with their attributes."""
    with pytest.raises(StaleWebhookError) as caught:
        check(now=NOW + 400)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.webhook, copy.age, str(copy)) == (caught.value.webhook, 400, str(caught.value))
    error = WebhookRefusedError.of(RefusalReason.OTHER_BODY)
    assert pickle.loads(pickle.dumps(error)).reason is RefusalReason.OTHER_BODY


def test_a_forgery_is_never_stale():
    """Staleness is only reported of an authentic webhook."""
    assert refusal(BODY + b" ", now=NOW + 3600) is RefusalReason.OTHER_BODY
    assert refusal(headers=signed(sign=lambda _: bytes(64)), now=NOW + 3600) is RefusalReason.WRONG_SIGNATURE


@pytest.mark.parametrize("body", [BODY.decode(), json.loads(BODY), bytearray(BODY), memoryview(BODY), None])
def test_a_body_that_was_parsed_is_an_error(body):
    """A body other than bytes is a mistake of the caller, and the error says how to get the bytes."""
    with pytest.raises(RawBodyRequiredError, match=type(body).__name__) as caught:
        check(body)
    assert isinstance(caught.value, TypeError)
    assert caught.value.response_status == 500
    for call in ("await request.read()", "await request.body()", "request.body"):
        assert call in str(caught.value)
    assert_error_is_clean(caught.value)


INVALID_SECONDS = [-1, float("nan"), float("inf"), "300", True]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("tolerance", "skew", "now") for value in INVALID_SECONDS),
        ("tolerance", None),
        ("skew", None),
    ],
)
def test_invalid_settings_are_rejected(name, value):
    """A tolerance or a time with which each webhook would be accepted, or none, is an error that names it."""
    with pytest.raises(ConfigurationError, match=f"{name} must be a finite number") as caught:
        check(**{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize("name", ["tolerance", "skew"])
def test_a_setting_beyond_the_range_of_floats(name):
    """An integer has no limit, so one that no float can represent is a valid number of seconds."""
    assert check(**{name: 10**400}).issued_at == NOW


def test_the_keys_are_a_keyword_argument():
    """Body and headers may be passed by name, and all others only by name."""
    assert verify(body=BODY, headers=headers_of(token_of()), keys=[KEY], now=NOW).body == BODY
    with pytest.raises(TypeError, match="positional"):
        verify(BODY, headers_of(token_of()), [KEY])


def test_no_tolerance_and_no_skew():
    """With a tolerance and a skew of 0, a webhook must have been issued in this second."""
    assert check(tolerance=0, skew=0).issued_at == NOW
    with pytest.raises(StaleWebhookError):
        check(tolerance=0, now=NOW + 1)
    assert refusal(skew=0, now=NOW - 1) is RefusalReason.ISSUED_IN_FUTURE


def test_the_default_time_is_that_of_this_machine():
    """Without `now`, a webhook of the start of 2026 is stale."""
    with pytest.raises(StaleWebhookError) as caught:
        verify(BODY, headers_of(token_of()), keys=[KEY])
    assert caught.value.age > 0


def test_every_reason_is_explained():
    """Each reason has an explanation, which is part of the text of its error, and a text for metrics."""
    for reason in RefusalReason:
        error = WebhookRefusedError.of(reason)
        assert isinstance(error, WebhookError | PlaidRelayError)
        assert (error.reason, error.response_status) == (reason, 400)
        assert str(error) == f"the webhook is refused ({reason}): {reason.explanation}. {error.advice}"
        assert reason == reason.name.lower()
    explanations = {reason.explanation for reason in RefusalReason}
    assert len(explanations) == len(RefusalReason)


def test_nothing_of_a_token_or_a_key_is_shown():
    """The repr of a key shows its ID and its expiry, and no coordinates."""
    assert repr(KEY) == f"VerificationKey(key_id='{KEY_ID}', expired_at=None)"
    assert repr(read_token(headers_of(token_of()))) == "SignedToken()"


@EXAMPLES
@given(st.data())
def test_any_changed_byte_is_refused(data):
    """Whatever byte of the body or the token is replaced, inserted or removed, the webhook is refused."""
    token = token_of().encode()
    original = data.draw(st.sampled_from([BODY, token]))
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(start + 2, len(original))))
    inserted = data.draw(st.binary(max_size=2))
    changed = original[:start] + inserted + original[end:]
    if changed == original:
        return
    body, token = (changed, token) if original is BODY else (BODY, changed)
    refusal(body, [(b"plaid-verification", token)])


@EXAMPLES
@given(
    st.dictionaries(
        st.sampled_from([*HEADER, "jwk", "x"]), st.from_type(type(None)) | st.text() | st.integers()
    )
)
def test_any_changed_header_is_refused(changes):
    """Whatever member of the token's header is changed, its signature is no longer valid."""
    header = HEADER | changes
    if header == HEADER:
        return
    _, claims, signature = token_of().split(".")
    refusal(headers=headers_of(f"{segment(json.dumps(header).encode())}.{claims}.{signature}"))


@EXAMPLES
@given(st.dictionaries(st.sampled_from(["iat", "request_body_sha256", "x"]), st.text() | st.integers()))
def test_any_changed_claims_are_refused(changes):
    """Whatever claim is changed, the signature is no longer valid."""
    claims = claims_for() | changes
    if claims == claims_for():
        return
    header, _, signature = token_of().split(".")
    refusal(headers=headers_of(f"{header}.{segment(json.dumps(claims).encode())}.{signature}"))


@EXAMPLES
@given(st.lists(st.tuples(st.text() | st.binary(), st.text() | st.binary()), max_size=5))
def test_any_headers_are_judged(headers):
    """Whatever the headers are, the webhook is refused, and no other exception is raised."""
    refusal(headers=headers)


@EXAMPLES
@given(st.text() | st.text(alphabet="eyJ.0_-=A"))
def test_any_token_is_judged(token):
    """Whatever the token is, the webhook is refused, and no other exception is raised."""
    refusal(headers=headers_of(token))


def test_a_missing_extra_is_named():
    """Without PyJWT, the error names the extra to install."""
    code = "import sys; sys.modules['jwt'] = None; import plaid_relay_async.webhooks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: webhooks need jwt" in done.stderr
    assert "pip install 'plaid_relay_async[webhooks]'" in done.stderr
