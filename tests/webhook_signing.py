"""Webhooks signed by hand, with any header, claims and key; this shares no code with the verification."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import HealthCheck, settings

from plaid_relay_async.models import JWKPublicKey

if TYPE_CHECKING:
    from collections.abc import Callable

# However slow the machine is.
EXAMPLES = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
NOW = 1_767_225_600  # the start of 2026
KEY_ID = "11111111-2222-4333-8444-555555555555"
PRIVATE_KEY = ec.derive_private_key(4242, ec.SECP256R1())
HEADER = {"alg": "ES256", "kid": KEY_ID, "typ": "JWT"}
BODY = b"""{
  "webhook_type": "ASSETS",
  "webhook_code": "PRODUCT_READY",
  "asset_report_id": "canary-report-47dfc92b",
  "report_type": "FULL",
  "environment": "sandbox"
}"""


def segment(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def coordinate(number: int) -> str:
    return segment(number.to_bytes(32, "big"))


def jwk_of(private_key: ec.EllipticCurvePrivateKey = PRIVATE_KEY, **changes: Any) -> JWKPublicKey:
    """Return the public key as Plaid's endpoint would, with some fields changed."""
    point = private_key.public_key().public_numbers()
    fields = {
        "alg": "ES256",
        "kid": KEY_ID,
        "kty": "EC",
        "crv": "P-256",
        "x": segment(point.x.to_bytes((private_key.key_size + 7) // 8, "big")),
        "y": segment(point.y.to_bytes((private_key.key_size + 7) // 8, "big")),
        "use": "sig",
        "created_at": 1_560_466_150,
        "expired_at": None,
    }
    return JWKPublicKey(**{**fields, **changes})


def sign_es256(signed: bytes, private_key: ec.EllipticCurvePrivateKey = PRIVATE_KEY) -> bytes:
    r, s = decode_dss_signature(private_key.sign(signed, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def claims_for(body: bytes = BODY, **changes: Any) -> dict[str, Any]:
    """Return claims as Plaid's, with some changed; those that are `...` are left out."""
    claims = {"iat": NOW, "request_body_sha256": hashlib.sha256(body).hexdigest(), **changes}
    return {name: value for name, value in claims.items() if value is not ...}


def token_of(
    header: Any = HEADER,
    claims: Any = None,
    *,
    sign: Callable[[bytes], bytes] = sign_es256,
) -> str:
    """Return a token; header and claims are objects, or the bytes of their JSON."""
    claims = claims_for() if claims is None else claims
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims))
    signed = ".".join(map(segment, parts))
    return f"{signed}.{segment(sign(signed.encode()))}"


def headers_of(token: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Plaid-Verification": token}
