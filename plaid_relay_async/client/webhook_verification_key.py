"""`client.webhook_verification_key`: the keys that webhooks are signed with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaid_relay_async import codec, models
from plaid_relay_async.client.operations import Call, Namespace
from plaid_relay_async.errors import strip_traceback

if TYPE_CHECKING:
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import WebhookVerificationKeyGetResponse


class WebhookVerificationKeys(Namespace):
    """`client.webhook_verification_key`: the keys that webhooks are signed with."""

    @strip_traceback
    def get(
        self, key_id: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Call[WebhookVerificationKeyGetResponse]:
        """Get the public key that a webhook is signed with; called by whoever receives it.

        https://plaid.com/docs/api/webhooks/webhook-verification/, `webhook_verification_key_get` in
        plaid-python. Keys belong to one environment.

        Args:
            key_id: the `kid` in the header of the webhook's JWT.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            InvalidRequestError: there is no such key (`INVALID_WEBHOOK_VERIFICATION_KEY_ID`).
            PlaidRelayError: see the class.
        """
        request = models.WebhookVerificationKeyGetRequest(key_id)
        return self._transport.call(codec.WEBHOOK_VERIFICATION_KEY_GET, request, timeout=timeout, retry=retry)
