"""`client.webhook_verification_key`: keys that verify webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plaid_relay_async import codec, models
from plaid_relay_async.client.operations import Call, OperationGroup
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import WebhookVerificationKeyGetResponse


class WebhookVerificationKeys(OperationGroup):
    """`client.webhook_verification_key`: keys that verify webhooks."""

    @strip_traceback
    def get(
        self,
        key_id: str,
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[WebhookVerificationKeyGetResponse]:
        """Read the public key that verifies the signature of a webhook; called by its receiver.

        https://plaid.com/docs/api/webhooks/webhook-verification/, `webhook_verification_key_get` in
        plaid-python. Keys belong to one environment.

        Args:
            key_id: the `kid` in the header of the webhook's JWT.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            InvalidRequestError: the key doesn't exist (`INVALID_WEBHOOK_VERIFICATION_KEY_ID`).
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = models.WebhookVerificationKeyGetRequest(key_id, extra=extra)
        return self._transport.call(codec.WEBHOOK_VERIFICATION_KEY_GET, request, timeout=timeout, retry=retry)
