"""`client.sandbox`: test data, in the sandbox alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaid_relay_async import codec
from plaid_relay_async.client.operations import Call, Operations
from plaid_relay_async.errors import sealed
from plaid_relay_async.models import SandboxPublicTokenCreateRequest, SandboxPublicTokenCreateResponse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plaid_relay_async.config import RetryPolicy


class Sandbox(Operations):
    """`client.sandbox`: test data, in the sandbox alone."""

    @sealed
    def create_public_token(
        self,
        institution_id: str = "ins_109508",
        initial_products: Iterable[str] = ("assets",),
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[SandboxPublicTokenCreateResponse]:
        """Make a test Item and give its public token.

        https://plaid.com/docs/api/sandbox/#sandboxpublic_tokencreate, `sandbox_public_token_create` in
        plaid-python.

        Args:
            institution_id: Plaid's test bank, First Platypus Bank, unless told otherwise.
            initial_products: what the Item is for.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            PlaidRelayError: see the class.
        """
        request = SandboxPublicTokenCreateRequest(institution_id, initial_products)
        return self._transport.call(codec.SANDBOX_PUBLIC_TOKEN_CREATE, request, timeout=timeout, retry=retry)
