"""The records of `/item/*`, of the sandbox and of `/webhook_verification_key/get`."""

from __future__ import annotations

from datetime import date
from typing import Any, Self

from attrs import field, frozen, validators

from plaid_relay_async.errors import sealed_init
from plaid_relay_async.models.fields import (
    are_words,
    as_optional_tuple,
    as_tuple,
    invalid,
    is_a,
    is_days,
    is_text,
    is_url,
    is_word,
    null,
    option,
    unknown_fields,
)

# ---------------------------------------------------------------------------------------------- items


@sealed_init
@frozen
class ItemPublicTokenExchangeRequest:
    """Turn a public token into an access token."""

    public_token: str = field(validator=is_word, repr=False)


@frozen
class ItemPublicTokenExchangeResponse:
    """An access token and the Item it opens."""

    access_token: str = field(repr=False)
    item_id: str
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()


@sealed_init
@frozen
class ItemRemoveRequest:
    """Take an Item's access token back.

    Attributes:
        access_token: the Item's.
        reason_code: why, such as `ItemRemoveReason.FRAUD_OTHER`.
        reason_note: why, in words, at most 512 characters.
    """

    access_token: str = field(validator=is_word, repr=False)
    reason_code: str | None = option(is_word)
    reason_note: str | None = option(is_text(most=512))


@frozen
class ItemRemoveResponse:
    """An access token taken back.

    Attributes:
        request_id: Plaid's.
        inferred: a first attempt got no answer and the next was told that there is no such token.
        additional_properties: what else Plaid sent.
    """

    request_id: str | None = None
    inferred: bool = False
    additional_properties: dict[str, Any] = unknown_fields()

    @classmethod
    def gone(cls) -> Self:
        """Give the answer for what is known to be gone, though nobody said so of this call."""
        return cls(inferred=True)


# -------------------------------------------------------------------------------------------- sandbox


def check_order(start_date: date, end_date: date) -> None:
    """Raise `RequestValidationError` if the end is before the start."""
    if end_date < start_date:
        raise invalid("end_date", "is before start_date")


@sealed_init
@frozen(kw_only=True)
class SandboxTransactions:
    """How far back a test Item's transactions go: between two dates, or 1 to 730 days."""

    start_date: date | None = option(is_a(date))
    end_date: date | None = option(is_a(date))
    days_requested: int | None = option(is_days(1, 730))

    def __attrs_post_init__(self) -> None:
        if self.start_date is not None and self.end_date is not None:
            check_order(self.start_date, self.end_date)


@sealed_init
@frozen
class SandboxStatements:
    """From when to when a test Item has statements."""

    start_date: date = field(validator=is_a(date))
    end_date: date = field(validator=is_a(date))

    def __attrs_post_init__(self) -> None:
        check_order(self.start_date, self.end_date)


@sealed_init
@frozen(kw_only=True)
class SandboxBankIncome:
    """Attributes: `days_requested`, the days of a test Item's bank income, 1 to 731."""

    days_requested: int | None = option(is_days(1, 731))


@sealed_init
@frozen(kw_only=True)
class SandboxIncomeVerification:
    """Where a test Item's income is read from: `IncomeSourceType.BANK` or `.PAYROLL`."""

    income_source_types: tuple[str, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=validators.optional(are_words)
    )
    bank_income: SandboxBankIncome | None = option(is_a(SandboxBankIncome))


@sealed_init
@frozen(kw_only=True)
class SandboxPublicTokenCreateOptions:
    """What may be asked of a test Item.

    Attributes:
        webhook: the Item's; an http(s) URL.
        override_username: a test user, `user_good` unless said otherwise.
        override_password: their password, or the configuration of a `user_custom`.
        transactions: how far back they go.
        statements: which there are.
        income_verification: where income is read from.
    """

    webhook: str | None = option(is_url)
    override_username: str | None = option(is_text())
    override_password: str | None = option(is_text(), repr=False)
    transactions: SandboxTransactions | None = option(is_a(SandboxTransactions))
    statements: SandboxStatements | None = option(is_a(SandboxStatements))
    income_verification: SandboxIncomeVerification | None = option(is_a(SandboxIncomeVerification))


@sealed_init
@frozen
class SandboxPublicTokenCreateRequest:
    """Make a test Item in the sandbox."""

    institution_id: str = field(validator=is_word)
    initial_products: tuple[str, ...] = field(converter=as_tuple, validator=are_words)
    options: SandboxPublicTokenCreateOptions | None = option(is_a(SandboxPublicTokenCreateOptions))
    user_token: str | None = option(is_word, repr=False)
    user_id: str | None = option(is_word)


@frozen
class SandboxPublicTokenCreateResponse:
    """A public token of a test Item."""

    public_token: str = field(repr=False)
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()


@sealed_init
@frozen
class SandboxItemFireWebhookRequest:
    """Have the sandbox send a webhook to the one that an Item was made with.

    Attributes:
        access_token: the Item's.
        webhook_code: such as `WebhookCode.PRODUCT_READY`.
        webhook_type: such as `WebhookType.ASSETS`.
    """

    access_token: str = field(validator=is_word, repr=False)
    webhook_code: str = field(validator=is_word)
    webhook_type: str | None = option(is_word)


@frozen
class SandboxItemFireWebhookResponse:
    """Whether a webhook was sent."""

    webhook_fired: bool
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()


# --------------------------------------------------------------------------------------- webhooks' keys


@sealed_init
@frozen
class WebhookVerificationKeyGetRequest:
    """Ask for the key that a webhook is signed with, by the `kid` of its JWT's header."""

    key_id: str = field(validator=is_word)


@frozen
class JWKPublicKey:
    """A public key, as a JSON Web Key (RFC 7517).

    Attributes:
        alg: the algorithm, `ES256`.
        kid: the key's id.
        kty: the kind of key, `EC`.
        crv: the curve, `P-256`.
        x: the point's x coordinate, big endian, in base64url.
        y: the point's y coordinate, ditto.
        use: what it is for, `sig`.
        created_at: when it was made, in seconds of Unix time.
        expired_at: when it expired, ditto; `None` while it is good.
        additional_properties: what else Plaid sent.
    """

    alg: str
    kid: str
    kty: str
    crv: str
    x: str
    y: str
    use: str
    created_at: int
    expired_at: int | None = null()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class WebhookVerificationKeyGetResponse:
    """The key that a webhook is signed with."""

    key: JWKPublicKey
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()
