"""The public keys that verify webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, cast

from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from jwt.algorithms import ECAlgorithm
from jwt.exceptions import InvalidKeyError

from plaid_relay_async.webhooks.errors import RefusalReason, WebhookRefusedError

if TYPE_CHECKING:
    from plaid_relay_async.models import JWKPublicKey

_ES256 = ECAlgorithm(ECAlgorithm.SHA256)


@frozen
class VerificationKey:
    """A public key, ready to verify signatures; `from_jwk` creates it.

    Attributes:
        key_id: its ID, the `kid` of tokens.
        expired_at: when it expires or has expired, in seconds of Unix time; `None` if that isn't known.
    """

    key_id: str
    expired_at: int | None
    _public_key: EllipticCurvePublicKey = field(repr=False, hash=False, alias="public_key")

    @classmethod
    def from_jwk(cls, jwk: JWKPublicKey) -> Self:
        """Return the key of a response of `client.webhook_verification_key.get`.

        Raises:
            WebhookRefusedError: it isn't a P-256 key for ES256 signatures, or isn't a point of that curve.
        """
        if (jwk.kty, jwk.crv, jwk.alg, jwk.use) != ("EC", "P-256", "ES256", "sig"):
            raise WebhookRefusedError.of(RefusalReason.UNSUITABLE_KEY)
        public_key = _public_key_of(jwk)
        if public_key is None:
            raise WebhookRefusedError.of(RefusalReason.INVALID_POINT)
        return cls(jwk.kid, jwk.expired_at, public_key)

    def is_expired(self, now: float) -> bool:
        """Return whether it has expired, at a Unix time."""
        return self.expired_at is not None and self.expired_at <= now

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Return whether the signature is this key's for the message."""
        return _ES256.verify(message, self._public_key, signature)


def _public_key_of(jwk: JWKPublicKey) -> EllipticCurvePublicKey | None:
    """Return the key, or `None` if its coordinates aren't those of a point of the curve."""
    try:
        # Only the members that were checked: a private one would make it another type of key.
        key = ECAlgorithm.from_jwk({"kty": jwk.kty, "crv": jwk.crv, "x": jwk.x, "y": jwk.y})
    except (InvalidKeyError, ValueError):
        return None
    return cast("EllipticCurvePublicKey", key)
