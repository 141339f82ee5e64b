"""`client.webhooks`: webhooks that Plaid sends to this application."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from plaid_relay_async.redaction import Hidden, strip_traceback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plaid_relay_async.client.operations import Call
    from plaid_relay_async.client.webhook_verification_key import WebhookVerificationKeys
    from plaid_relay_async.config import Environment
    from plaid_relay_async.models import JWKPublicKey
    from plaid_relay_async.webhooks import VerifiedWebhook, WebhookEvent
    from plaid_relay_async.webhooks.lookup import KeyCache
    from plaid_relay_async.webhooks.token import HeaderPairs
    from plaid_relay_async.webhooks.verification import VerificationSettings

# Plaid waits ten seconds for the response to a webhook
# (https://plaid.com/docs/api/webhooks/).
_LOOKUP_TIMEOUT = 5.0


class Webhooks:
    """`client.webhooks`: webhooks that Plaid sends to this application. It requires the extra `webhooks`.

    The keys are looked up with this client, and cached. They belong to its environment.
    """

    def __init__(self, keys: WebhookVerificationKeys, environment: Environment | None) -> None:
        self._keys = keys
        self._environment = environment
        self._cache: KeyCache | None = None

    @strip_traceback
    def unwrap(
        self,
        body: bytes,
        headers: Mapping[str, str] | HeaderPairs,
        *,
        tolerance: float = 300.0,
        skew: float = 60.0,
    ) -> Call[WebhookEvent]:
        """Verify a webhook, and return its event.

        https://plaid.com/docs/api/webhooks/webhook-verification/

        Args:
            body: the body of the request, as received.
            headers: the headers of the request: a mapping such as those of aiohttp, Starlette and Django, or
                pairs of a name and a value.
            tolerance: the age in seconds from which a webhook is stale.
            skew: how many seconds in the future it may have been issued, if this machine's clock is slow.

        Raises:
            WebhookRefusedError: the webhook isn't authentic; `reason` says why.
            StaleWebhookError: it is authentic, and older than `tolerance`.
            WebhookKeyLookupError: its key couldn't be looked up.
            RawBodyRequiredError: the body isn't bytes.
            ResponseDecodeError: the webhook is authentic, and differs from Plaid's specification.
            ConfigurationError: `tolerance` or `skew` is invalid.
            ModuleNotFoundError: the extra `webhooks` isn't installed.
        """
        verification = self.verify(body, headers, tolerance=tolerance, skew=skew)
        return _parse_verified(verification)

    @strip_traceback
    def verify(
        self,
        body: bytes,
        headers: Mapping[str, str] | HeaderPairs,
        *,
        tolerance: float = 300.0,
        skew: float = 60.0,
    ) -> Call[VerifiedWebhook]:
        """Verify a webhook, and return it without parsing its body.

        Args:
            body: as of `unwrap`.
            headers: as of `unwrap`.
            tolerance: as of `unwrap`.
            skew: as of `unwrap`.

        Raises:
            PlaidRelayError: as of `unwrap`, except for `ResponseDecodeError`.
        """
        from plaid_relay_async.webhooks.verification import VerificationSettings, check_body

        check_body(body)
        settings = VerificationSettings(self._environment, tolerance, skew)
        # Hidden, so that no traceback shows them.
        return self._verify(Hidden(body), Hidden(headers), settings)

    async def _verify(
        self,
        body: Hidden[bytes],
        headers: Hidden[Mapping[str, str] | HeaderPairs],
        settings: VerificationSettings,
    ) -> VerifiedWebhook:
        from plaid_relay_async.webhooks.lookup import KeyCache
        from plaid_relay_async.webhooks.token import read_token
        from plaid_relay_async.webhooks.verification import verify_token

        if self._cache is None:
            self._cache = KeyCache(self._fetch_key)
        token = read_token(headers.reveal())
        key = await self._cache.get(token.key_id)
        return verify_token(body.reveal(), token, key, settings, time.time())

    async def _fetch_key(self, key_id: str) -> JWKPublicKey:
        return (await self._keys.get(key_id, timeout=_LOOKUP_TIMEOUT)).key


async def _parse_verified(verification: Call[VerifiedWebhook]) -> WebhookEvent:
    from plaid_relay_async.webhooks import parse

    return parse((await verification).body)
