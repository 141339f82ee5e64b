"""`client.sandbox`: test data, in the sandbox alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaid_relay_async import codec, models
from plaid_relay_async.client.operations import Call, Namespace
from plaid_relay_async.errors import strip_traceback

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import (
        SandboxItemFireWebhookResponse,
        SandboxPublicTokenCreateOptions,
        SandboxPublicTokenCreateResponse,
    )


class Sandbox(Namespace):
    """`client.sandbox`: test data, in the sandbox alone."""

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
    ) -> Call[SandboxPublicTokenCreateResponse]:
        """Make a test Item and give its public token; called by whoever tests.

        https://plaid.com/docs/api/sandbox/#sandboxpublic_tokencreate, `sandbox_public_token_create` in
        plaid-python.

        Args:
            institution_id: Plaid's test bank, First Platypus Bank, unless told otherwise.
            initial_products: what the Item is for; see `Product`.
            options: the Item's webhook, its test user, and how much history it has.
            user_token: of the user that it belongs to, made by `/user/create`.
            user_id: the same, for newer users.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            OutcomeUnknownError: there may be an Item that nobody holds the token of.
            PlaidRelayError: see the class.
        """
        request = models.SandboxPublicTokenCreateRequest(
            institution_id, initial_products, options=options, user_token=user_token, user_id=user_id
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
    ) -> Call[SandboxItemFireWebhookResponse]:
        """Have a webhook sent to the address that an Item was made with; called by whoever tests.

        https://plaid.com/docs/api/sandbox/#sandboxitemfire_webhook, `sandbox_item_fire_webhook` in
        plaid-python. Each call sends one, and so it isn't repeated after a lost answer.

        Args:
            access_token: the Item's.
            webhook_code: such as `WebhookCode.PRODUCT_READY`.
            webhook_type: such as `WebhookType.ASSETS`, for codes that several products have.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            InvalidRequestError: among others where the Item has no webhook (`SANDBOX_WEBHOOK_INVALID`).
            OutcomeUnknownError: it may have been sent.
            PlaidRelayError: see the class.
        """
        request = models.SandboxItemFireWebhookRequest(access_token, webhook_code, webhook_type=webhook_type)
        return self._transport.call(codec.SANDBOX_ITEM_FIRE_WEBHOOK, request, timeout=timeout, retry=retry)
