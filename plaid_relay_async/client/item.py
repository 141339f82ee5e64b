"""`client.item`: connections to a bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaid_relay_async import codec, models
from plaid_relay_async.client.operations import Call, Namespace
from plaid_relay_async.errors import strip_traceback

if TYPE_CHECKING:
    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import ItemPublicTokenExchangeResponse, ItemRemoveResponse


class Items(Namespace):
    """`client.item`: connections to a bank."""

    @strip_traceback
    def exchange_public_token(
        self, public_token: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Call[ItemPublicTokenExchangeResponse]:
        """Turn a public token, which lives 30 minutes, into an access token; called by its owner.

        https://plaid.com/docs/api/items/#itempublic_tokenexchange, `item_public_token_exchange` in
        plaid-python.

        Args:
            public_token: as Link or `client.sandbox.create_public_token` gave it.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            OutcomeUnknownError: it may have been exchanged.
            PlaidRelayError: see the class.
        """
        request = models.ItemPublicTokenExchangeRequest(public_token)
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
    ) -> Call[ItemRemoveResponse]:
        """Take an Item's access token back; called by its owner. Reports that were made of it stay.

        https://plaid.com/docs/api/items/#itemremove, `item_remove` in plaid-python. If an attempt got no
        answer and the next was told that there is no such Item, the answer says `inferred=True`.

        Args:
            access_token: the Item's.
            reason_code: why, such as `ItemRemoveReason.FRAUD_OTHER`.
            reason_note: why, in words, at most 512 characters.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            PlaidRelayError: see the class.
        """
        request = models.ItemRemoveRequest(access_token, reason_code=reason_code, reason_note=reason_note)
        return self._transport.call(codec.ITEM_REMOVE, request, timeout=timeout, retry=retry)
