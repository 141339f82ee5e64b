"""The key of webhooks' signatures, and test webhooks."""

import base64
import hashlib

import pytest

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
    total, power = None, BASE
    while number:
        if number & 1:
            total = plus(total, power)
        power, number = plus(power, power), number >> 1
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
