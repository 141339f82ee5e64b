"""The key of webhooks' signatures, and test webhooks."""

import base64
import hashlib
import json
import subprocess
import sys
import time

import pytest

from plaid_relay_async.simulator import sign_webhook

KEY = "/webhook_verification_key/get"
FIRE = "/sandbox/item/fire_webhook"
KEY_ID = "6c5516e1-92dc-479e-a8ff-5a51992e0001"
HOOK = "https://lender.example/plaid"

# The curve P-256: FIPS 186-4, D.1.2.3.
P = 2**256 - 2**224 + 2**192 + 2**96 - 1
BASE = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)


def plus(first, second):
    """Return the sum of two points of the curve; None is the point at infinity."""
    if first is None:
        return second
    if first == second:
        slope = (3 * first[0] ** 2 - 3) * pow(2 * first[1], -1, P)
    else:
        slope = (second[1] - first[1]) * pow(second[0] - first[0], -1, P)
    x = (slope**2 - first[0] - second[0]) % P
    return x, (slope * (first[0] - x) - first[1]) % P


def point_of(number):
    """Return the public key of a private key."""
    return multiple(BASE, number)


def multiple(point, number):
    """Return the sum of a number of times the same point."""
    total = None
    while number:
        if number & 1:
            total = plus(total, point)
        point, number = plus(point, point), number >> 1
    return total


async def test_key(api):
    """The sandbox's key is available, and its private key is the SHA-256 of its id."""
    key = (await api(KEY, {"key_id": KEY_ID})).json["key"]
    x, y = (int.from_bytes(base64.urlsafe_b64decode(key.pop(name) + "=")) for name in "xy")
    assert (x, y) == point_of(int.from_bytes(hashlib.sha256(KEY_ID.encode()).digest()))
    assert key == {
        "alg": "ES256",
        "created_at": 1560466150,
        "crv": "P-256",
        "expired_at": None,
        "kid": KEY_ID,
        "kty": "EC",
        "use": "sig",
    }


async def test_another_key(api):
    """Any other key is unknown."""
    response = await api(KEY, {"key_id": "bfbd5111-8e33-4643-8ced-b2e642a72f3c"})
    assert response.error == (400, "INVALID_INPUT", "INVALID_WEBHOOK_VERIFICATION_KEY_ID")


@pytest.mark.parametrize(
    ("code", "requested_type", "webhook_type"),
    [
        ("PRODUCT_READY", "ASSETS", "ASSETS"),
        ("PRODUCT_READY", None, "ASSETS"),
        ("ERROR", None, "ASSETS"),
        ("LOGIN_REPAIRED", None, "ITEM"),
        ("DEFAULT_UPDATE", None, "TRANSACTIONS"),
        ("DEFAULT_UPDATE", "HOLDINGS", "HOLDINGS"),
    ],
)
async def test_fired_webhooks_are_recorded(api, plaid, code, requested_type, webhook_type):
    """Each webhook is recorded, with the URL that it would have been sent to."""
    products = ("assets", "transactions", "investments")
    access_token = await api.access_token(products=products, options={"webhook": HOOK})
    assert plaid.webhooks == ()
    body = {"access_token": access_token, "webhook_code": code, "options": {"new_transactions": 3}}
    response = await api(FIRE, body | ({"webhook_type": requested_type} if requested_type else {}))
    assert response.json["webhook_fired"] is True
    [fired] = plaid.webhooks
    assert fired.pop("item_id")
    assert fired == {
        "webhook_type": webhook_type,
        "webhook_code": code,
        "url": HOOK,
        "request_id": response.json["request_id"],
    }


async def test_webhook_of_an_item_without_one(api, plaid):
    """An Item without a webhook URL leads to an error."""
    body = {"access_token": await api.access_token(), "webhook_code": "PRODUCT_READY"}
    assert (await api(FIRE, body)).error == (400, "SANDBOX_ERROR", "SANDBOX_WEBHOOK_INVALID")
    assert plaid.webhooks == ()


async def test_webhook_of_a_product_that_the_item_lacks(api):
    """A webhook of a product that the Item lacks is an error."""
    access_token = await api.access_token(products=("auth",), options={"webhook": HOOK})
    body = {"access_token": access_token, "webhook_code": "PRODUCT_READY"}
    assert (await api(FIRE, body)).error == (400, "SANDBOX_ERROR", "SANDBOX_PRODUCT_NOT_ENABLED")


@pytest.mark.parametrize("webhook_type", ["ITEM", "ASSETS"])
async def test_default_update_of_no_product(api, webhook_type):
    """DEFAULT_UPDATE is invalid for types that have no such webhook."""
    access_token = await api.access_token(options={"webhook": HOOK})
    body = {"access_token": access_token, "webhook_code": "DEFAULT_UPDATE", "webhook_type": webhook_type}
    assert (await api(FIRE, body)).error == (400, "INVALID_REQUEST", "INVALID_FIELD")


async def test_webhook_of_another_clients_item(api):
    """Another client's Item is unknown."""
    access_token = await api.access_token(options={"webhook": HOOK})
    body = {"access_token": access_token, "webhook_code": "ERROR"}
    response = await api(FIRE, body, client="other")
    assert response.error == (400, "INVALID_INPUT", "INVALID_ACCESS_TOKEN")


def decode_base64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# The order of the base point of P-256.
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def is_signed(key, token):
    """Verify an ES256 signature by the book: FIPS 186-4, 6.4."""
    signed, _, signature = token.rpartition(".")
    r, s = (int.from_bytes(decode_base64(signature)[part]) for part in (slice(32), slice(32, 64)))
    e = int.from_bytes(hashlib.sha256(signed.encode()).digest())
    inverse = pow(s, -1, ORDER)
    point = (int.from_bytes(decode_base64(key["x"])), int.from_bytes(decode_base64(key["y"])))
    total = plus(point_of(e * inverse % ORDER), multiple(point, r * inverse % ORDER))
    return len(decode_base64(signature)) == 64 and total[0] % ORDER == r


async def test_a_webhook_is_signed_as_plaid_signs(api, plaid):
    """A signature names its key, the time and the body's hash, and the key of the endpoint verifies it."""
    key = (await api(KEY, {"key_id": KEY_ID})).json["key"]
    for headers in (sign_webhook(b"{}", at=1234.9), plaid.sign_webhook(b"{}", at=1234)):
        token = headers["Plaid-Verification"]
        header, claims = (json.loads(decode_base64(part)) for part in token.split(".")[:2])
        assert header == {"alg": "ES256", "kid": KEY_ID, "typ": "JWT"}
        assert claims == {"iat": 1234, "request_body_sha256": hashlib.sha256(b"{}").hexdigest()}
        assert is_signed(key, token)
        assert headers["Content-Type"] == "application/json"
    assert not is_signed(key, token.replace(".", "A.", 1))


def test_a_webhook_is_signed_now():
    """By default, the time is now."""
    before = int(time.time())
    claims = json.loads(decode_base64(sign_webhook(b"")["Plaid-Verification"].split(".")[1]))
    assert before <= claims["iat"] <= time.time()


async def test_keys_are_rotated_and_expire(api, plaid):
    """A new key signs from its creation, the old one stays available, and each can expire."""
    key_id = plaid.rotate_webhook_key()
    token = plaid.sign_webhook(b"{}")["Plaid-Verification"]
    assert json.loads(decode_base64(token.split(".")[0]))["kid"] == key_id != KEY_ID
    key = (await api(KEY, {"key_id": key_id})).json["key"]
    assert is_signed(key, token)
    assert (key["kid"], key["expired_at"]) == (key_id, None)
    plaid.expire_webhook_key(key_id, 5)
    assert (await api(KEY, {"key_id": key_id})).json["key"]["expired_at"] == 5
    plaid.expire_webhook_key(KEY_ID)
    assert abs((await api(KEY, {"key_id": KEY_ID})).json["key"]["expired_at"] - time.time()) < 600
    with pytest.raises(ValueError, match="there is no webhook key other"):
        plaid.expire_webhook_key("other")


def test_a_missing_extra_is_named():
    """Without cryptography, the error names the extra to install."""
    code = (
        "import sys; sys.modules['cryptography.hazmat.primitives.asymmetric'] = None\n"
        "from plaid_relay_async.simulator import sign_webhook; sign_webhook(b'')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'plaid_relay_async[webhooks]'" in done.stderr
