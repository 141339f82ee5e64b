"""The key that webhooks are signed with, and webhooks for a test."""

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
    """The sum of two points, None being the one at infinity."""
    if first is None:
        return second
    if first == second:
        slope = (3 * first[0] ** 2 - 3) * pow(2 * first[1], -1, P)
    else:
        slope = (second[1] - first[1]) * pow(second[0] - first[0], -1, P)
    x = (slope**2 - first[0] - second[0]) % P
    return x, (slope * (first[0] - x) - first[1]) % P


def point_of(number):
    """The public point of a private number."""
    total, power = None, BASE
    while number:
        if number & 1:
            total = plus(total, power)
        power, number = plus(power, power), number >> 1
    return total


async def test_key(ask):
    """The sandbox's key is there from the start, and is the one of a private number that anybody can work out."""
    key = (await ask(KEY, {"key_id": KEY_ID})).json["key"]
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


async def test_another_key(ask):
    """There is no other."""
    answer = await ask(KEY, {"key_id": "bfbd5111-8e33-4643-8ced-b2e642a72f3c"})
    assert answer.refusal == (400, "INVALID_INPUT", "INVALID_WEBHOOK_VERIFICATION_KEY_ID")


@pytest.mark.parametrize(
    ("code", "told", "meant"),
    [
        ("PRODUCT_READY", "ASSETS", "ASSETS"),
        ("PRODUCT_READY", None, "ASSETS"),
        ("ERROR", None, "ASSETS"),
        ("LOGIN_REPAIRED", None, "ITEM"),
        ("DEFAULT_UPDATE", None, "TRANSACTIONS"),
        ("DEFAULT_UPDATE", "HOLDINGS", "HOLDINGS"),
    ],
)
async def test_fired_webhooks_are_told(ask, plaid, code, told, meant):
    """Each is noted, with where it would have gone."""
    products = ("assets", "transactions", "investments")
    access_token = await ask.access_token(products=products, options={"webhook": HOOK})
    assert plaid.webhooks == ()
    body = {"access_token": access_token, "webhook_code": code, "options": {"new_transactions": 3}}
    answer = await ask(FIRE, body | ({"webhook_type": told} if told else {}))
    assert answer.json["webhook_fired"] is True
    [fired] = plaid.webhooks
    assert fired.pop("item_id")
    assert fired == {
        "webhook_type": meant,
        "webhook_code": code,
        "url": HOOK,
        "request_id": answer.json["request_id"],
    }


async def test_webhook_of_an_item_without_one(ask, plaid):
    """There is nowhere to send it."""
    body = {"access_token": await ask.access_token(), "webhook_code": "PRODUCT_READY"}
    assert (await ask(FIRE, body)).refusal == (400, "SANDBOX_ERROR", "SANDBOX_WEBHOOK_INVALID")
    assert plaid.webhooks == ()


async def test_webhook_of_a_product_that_the_item_lacks(ask):
    """It is refused."""
    access_token = await ask.access_token(products=("auth",), options={"webhook": HOOK})
    body = {"access_token": access_token, "webhook_code": "PRODUCT_READY"}
    assert (await ask(FIRE, body)).refusal == (400, "SANDBOX_ERROR", "SANDBOX_PRODUCT_NOT_ENABLED")


@pytest.mark.parametrize("webhook_type", ["ITEM", "ASSETS"])
async def test_default_update_of_no_product(ask, webhook_type):
    """DEFAULT_UPDATE is of a product that has one."""
    access_token = await ask.access_token(options={"webhook": HOOK})
    body = {"access_token": access_token, "webhook_code": "DEFAULT_UPDATE", "webhook_type": webhook_type}
    assert (await ask(FIRE, body)).refusal == (400, "INVALID_REQUEST", "INVALID_FIELD")


async def test_webhook_of_anothers_item(ask):
    """Another's Item is unknown."""
    access_token = await ask.access_token(options={"webhook": HOOK})
    body = {"access_token": access_token, "webhook_code": "ERROR"}
    answer = await ask(FIRE, body, client="other")
    assert answer.refusal == (400, "INVALID_INPUT", "INVALID_ACCESS_TOKEN")
