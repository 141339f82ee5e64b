"""`client.sandbox`: test data, in Plaid's sandbox only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plaid_relay_async import codec, models
from plaid_relay_async.client.operations import Call, OperationGroup
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import (
        SandboxItemFireWebhookResponse,
        SandboxPublicTokenCreateOptions,
        SandboxPublicTokenCreateResponse,
    )


class Sandbox(OperationGroup):
    """`client.sandbox`: test data, in Plaid's sandbox only."""

    @strip_traceback
    def create_public_token(
        self,
        institution_id: str = "ins_109508",
        initial_products: Iterable[str] = ("assets",),
        *,
        options: SandboxPublicTokenCreateOptions | None = None,
        user_token: str | None = None,
        user_id: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[SandboxPublicTokenCreateResponse]:
        """Create a test Item, and return its public token.

        https://plaid.com/docs/api/sandbox/#sandboxpublic_tokencreate, `sandbox_public_token_create` in
        plaid-python.

        Args:
            institution_id: the bank; the default is Plaid's test bank, First Platypus Bank.
            initial_products: the products of the Item; see `Product`.
            options: the Item's webhook, its test user, and the length of its history.
            user_token: the token of the Item's user, from `/user/create`.
            user_id: the ID of the Item's user, for newer users.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            OutcomeUnknownError: an Item may exist whose token is lost.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = models.SandboxPublicTokenCreateRequest(
            institution_id,
            initial_products,
            options=options,
            user_token=user_token,
            user_id=user_id,
            extra=extra,
        )
        return self._transport.call(codec.SANDBOX_PUBLIC_TOKEN_CREATE, request, timeout=timeout, retry=retry)

    @strip_traceback
    def fire_webhook(
        self,
        access_token: str,
        webhook_code: str,
        *,
        webhook_type: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[SandboxItemFireWebhookResponse]:
        """Make Plaid send a webhook to an Item's webhook URL.

        https://plaid.com/docs/api/sandbox/#sandboxitemfire_webhook, `sandbox_item_fire_webhook` in
        plaid-python. Each call sends a webhook, so it isn't repeated after a lost response.

        Args:
            access_token: the Item's access token.
            webhook_code: the code, such as `WebhookCode.PRODUCT_READY`.
            webhook_type: the type, such as `WebhookType.ASSETS`, for codes that several products have.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            InvalidRequestError: Plaid rejected the request, for example because the Item has no webhook
                (`SANDBOX_WEBHOOK_INVALID`).
            OutcomeUnknownError: the webhook may have been sent.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = models.SandboxItemFireWebhookRequest(
            access_token, webhook_code, webhook_type=webhook_type, extra=extra
        )
        return self._transport.call(codec.SANDBOX_ITEM_FIRE_WEBHOOK, request, timeout=timeout, retry=retry)
