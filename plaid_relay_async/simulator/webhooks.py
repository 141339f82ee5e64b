"""Webhooks: their contents, the types and codes that the sandbox can fire, and the signatures.

The private key of each key is the SHA-256 of its ID, so that a test can sign webhooks: these keys protect
nothing. Signing requires the extra `webhooks`.
"""

import hashlib
import json
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, TypeAlias

from plaid_relay_async.simulator.api_errors import ApiError

KEY_ID = "6c5516e1-92dc-479e-a8ff-5a51992e0001"
"""The ID of the sandbox's key, with which Plaid's own libraries test the look-up."""

# Written here, so that the key can be looked up without the extra.
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


Payload: TypeAlias = Mapping[str, Any]


def _payload(webhook_type: str, webhook_code: str, **fields: Any) -> Payload:
    return {
        "webhook_type": webhook_type,
        "webhook_code": webhook_code,
        **fields,
        "environment": "sandbox",
    }


def report_ready(report_id: str, report_type: str = "FULL") -> Payload:
    """Return the content of the webhook that a report, or its fast version, is ready."""
    return _payload("ASSETS", "PRODUCT_READY", asset_report_id=report_id, report_type=report_type)


def report_failed(report_id: str, error: ApiError) -> Payload:
    """Return the content of the webhook that the generation of a report has failed."""
    return _payload("ASSETS", "ERROR", asset_report_id=report_id, error=_error_body(error))


def report_retrieved(report_id: str) -> Payload:
    """Return the content of the webhook that a partner has read a report through its relay token.

    Plaid publishes neither its type and code nor its fields: all of it is our choice. As in the webhooks that
    are published, there is no token and no partner.
    """
    return _payload("CREDIT_RELAY", "REPORT_RETRIEVED", asset_report_id=report_id)


def fired(
    webhook_type: str, code: str, item_id: str, report_id: str, new_transactions: int | None
) -> Payload:
    """Return the content of a webhook that the sandbox fires on request; the values are our choice."""
    if webhook_type == "ASSETS":
        is_error = code == "ERROR"
        return report_failed(report_id, ApiError("DATA_UNAVAILABLE")) if is_error else report_ready(report_id)
    fields: dict[str, Any] = {"item_id": item_id, "error": None}
    match code:
        case "PENDING_DISCONNECT":
            fields["reason"] = "INSTITUTION_TOKEN_EXPIRATION"
        case "USER_ACCOUNT_REVOKED":
            fields["account_id"] = f"account-of-{item_id}"
        case "DEFAULT_UPDATE":
            fields["new_transactions"] = new_transactions or 0
    return _payload(webhook_type, code, **fields)


def _error_body(error: ApiError) -> dict[str, Any]:
    """Return an error as in a webhook, which has no request_id, as Plaid documents."""
    return {name: value for name, value in error.body("").items() if name != "request_id"}


class WebhookKeys:
    """The keys of one simulator's webhooks: the sandbox's key, and those that it was rotated to.

    Attributes:
        current_id: the ID of the key that signs.
    """

    def __init__(self) -> None:
        self.current_id = KEY_ID
        self._keys = {KEY_ID: dict(_PUBLIC_KEY)}

    def find_public_key(self, key_id: str) -> dict[str, Any]:
        """Return the public key with this ID, as a JSON Web Key."""
        if key_id not in self._keys:
            raise ApiError("INVALID_WEBHOOK_VERIFICATION_KEY_ID")
        return dict(self._keys[key_id])

    def rotate(self) -> str:
        """Create a key, sign with it from now on, and return its ID."""
        key_id = str(uuid.uuid4())
        point = _private_key(key_id).public_key().public_numbers()
        coordinates = {name: _encode_base64(getattr(point, name).to_bytes(32)) for name in ("x", "y")}
        self._keys[key_id] = {**_PUBLIC_KEY, **coordinates, "kid": key_id, "created_at": int(time.time())}
        self.current_id = key_id
        return key_id

    def expire(self, key_id: str, at: float | None) -> None:
        """Set the time at which a key expires; None is now."""
        if key_id not in self._keys:
            raise ValueError(f"there is no webhook key {key_id}")
        self._keys[key_id]["expired_at"] = int(time.time() if at is None else at)


def sign_webhook(body: bytes, *, at: float | None = None, key_id: str = KEY_ID) -> dict[str, str]:
    """Return the headers with which Plaid would send a webhook, signed with a simulator's key.

    It requires the extra `webhooks`.

    Args:
        body: the body, as it will be sent.
        at: when it is signed, in seconds of Unix time; None is now.
        key_id: the ID of the key; the default is the key that each simulator has from the start.
    """
    claims = {
        "iat": int(time.time() if at is None else at),
        "request_body_sha256": hashlib.sha256(body).hexdigest(),
    }
    header = {"alg": "ES256", "kid": key_id, "typ": "JWT"}
    signed = ".".join(_encode_base64(json.dumps(part).encode()) for part in (header, claims))
    signature = _encode_base64(_sign(signed.encode(), key_id))
    return {"Content-Type": "application/json", "Plaid-Verification": f"{signed}.{signature}"}


def _encode_base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _private_key(key_id: str) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError as error:
        message = f"signing webhooks needs {error.name}: pip install 'plaid_relay_async[webhooks]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    number = int.from_bytes(hashlib.sha256(key_id.encode()).digest())
    return ec.derive_private_key(number, ec.SECP256R1())


def _sign(message: bytes, key_id: str) -> bytes:
    """Return the signature in the form of a JSON Web Signature: two numbers of 32 bytes."""
    key = _private_key(key_id)
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    numbers = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return b"".join(number.to_bytes(32) for number in numbers)


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
