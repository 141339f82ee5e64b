"""`client.item`: exchange public tokens, and remove Items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plaid_relay_async import codec, models
from plaid_relay_async.client.operations import Call, OperationGroup
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import ItemPublicTokenExchangeResponse, ItemRemoveResponse


class Items(OperationGroup):
    """`client.item`: exchange public tokens, and remove Items. An Item is a connection to a bank."""

    @strip_traceback
    def exchange_public_token(
        self,
        public_token: str,
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[ItemPublicTokenExchangeResponse]:
        """Exchange a public token, which is valid for 30 minutes, for an access token; called by the lender.

        https://plaid.com/docs/api/items/#itempublic_tokenexchange, `item_public_token_exchange` in
        plaid-python.

        Args:
            public_token: the token from Link or `client.sandbox.create_public_token`.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            OutcomeUnknownError: the token may have been exchanged.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = models.ItemPublicTokenExchangeRequest(public_token, extra=extra)
        return self._transport.call(codec.ITEM_PUBLIC_TOKEN_EXCHANGE, request, timeout=timeout, retry=retry)

    @strip_traceback
    def remove(
        self,
        access_token: str,
        *,
        reason_code: str | None = None,
        reason_note: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[ItemRemoveResponse]:
        """Remove an Item and its access token; called by the lender. Existing reports stay.

        https://plaid.com/docs/api/items/#itemremove, `item_remove` in plaid-python. If the response to an
        attempt was lost and the next attempt finds no such Item, the response has `inferred=True`.

        Args:
            access_token: the Item's access token.
            reason_code: the reason, such as `ItemRemoveReason.FRAUD_OTHER`.
            reason_note: the reason as text, at most 512 characters.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = models.ItemRemoveRequest(
            access_token, reason_code=reason_code, reason_note=reason_note, extra=extra
        )
        return self._transport.call(codec.ITEM_REMOVE, request, timeout=timeout, retry=retry)
