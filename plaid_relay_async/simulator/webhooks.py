"""Webhooks: the types and codes that the sandbox can fire, and the public key of their signatures."""

from collections.abc import Mapping
from typing import Any

from plaid_relay_async.simulator.api_errors import ApiError

KEY_ID = "6c5516e1-92dc-479e-a8ff-5a51992e0001"
"""The ID of the sandbox's key, with which Plaid's own libraries test the look-up."""

# A valid point of P-256, so that cryptographic libraries accept it. Its private key is the SHA-256 of KEY_ID,
# so that a test can sign a webhook: this key protects nothing.
_PUBLIC_KEY: Mapping[str, Any] = {
    "alg": "ES256",
    "created_at": 1560466150,
    "crv": "P-256",
    "expired_at": None,
    "kid": KEY_ID,
    "kty": "EC",
    "use": "sig",
    "x": "kvul8S3Od2COPyRrhAqe41SaUqr4SAGj18sjTsft4Dc",
    "y": "AAPKcr1DCKBzI7Vl4ljv6bmxneb12_hdlKLW5RkNApU",
}


# fmt: off
_TYPE_BY_CODE = {
    "AUTHORIZATION_GRANTED": "ITEM", "ERROR": "ASSETS", "LOGIN_REPAIRED": "ITEM",
    "NEW_ACCOUNTS_AVAILABLE": "ITEM", "PENDING_DISCONNECT": "ITEM", "PRODUCT_READY": "ASSETS",
    "RECURRING_TRANSACTIONS_UPDATE": "TRANSACTIONS",
    "SMS_MICRODEPOSITS_VERIFICATION": "AUTH", "SYNC_UPDATES_AVAILABLE": "TRANSACTIONS",
    "USER_ACCOUNT_REVOKED": "ITEM", "USER_PERMISSION_REVOKED": "ITEM",
    # Several types have this code. Which one is the default is our choice.
    "DEFAULT_UPDATE": "TRANSACTIONS",
}
# fmt: on
WEBHOOK_CODES = tuple(_TYPE_BY_CODE)

# The product that an Item must have for a webhook of a type.
_PRODUCT_BY_TYPE = {
    "ASSETS": "assets",
    "AUTH": "auth",
    "HOLDINGS": "investments",
    "IDENTITY": "identity",
    "INVESTMENTS_TRANSACTIONS": "investments",
    "LIABILITIES": "liabilities",
    "TRANSACTIONS": "transactions",
}
WEBHOOK_TYPES = ("ITEM", *_PRODUCT_BY_TYPE)


def find_public_key(key_id: str) -> dict[str, Any]:
    """Return the public key with this ID, as a JSON Web Key."""
    if key_id != KEY_ID:
        raise ApiError("INVALID_WEBHOOK_VERIFICATION_KEY_ID")
    return dict(_PUBLIC_KEY)


def resolve_type(code: str, requested_type: str | None) -> str:
    """Return the type of a webhook.

    Each code belongs to one type, except DEFAULT_UPDATE, for which the requested type is used. That a
    requested type is ignored for the other codes is our choice.

    Args:
        code: the webhook_code.
        requested_type: the webhook_type of the request; None if it has none.
    """
    if code != "DEFAULT_UPDATE" or requested_type is None:
        return _TYPE_BY_CODE[code]
    if requested_type in {"ITEM", "ASSETS"}:
        raise ApiError("INVALID_FIELD", "webhook_type must be one of a product that has DEFAULT_UPDATE")
    return requested_type


def check_product(webhook_type: str, products: frozenset[str]) -> None:
    """Raise ApiError if the Item lacks the product that a webhook type requires."""
    product = _PRODUCT_BY_TYPE.get(webhook_type)
    if product is not None and product not in products:
        raise ApiError("SANDBOX_PRODUCT_NOT_ENABLED")
