"""Request and response records of `/item/*`, `/sandbox/*` and `/webhook_verification_key/get`."""

from __future__ import annotations

from datetime import date
from typing import Any, Self

from attrs import field, frozen, validators

from plaid_relay_async.models.fields import (
    HasType,
    IsText,
    IsWholeNumber,
    are_identifiers,
    as_optional_tuple,
    as_tuple,
    invalid,
    is_identifier,
    is_url,
    nullable_field,
    optional_field,
    unknown_fields,
)
from plaid_relay_async.models.request import PlaidRequest
from plaid_relay_async.redaction import strip_init_traceback

# ---------------------------------------------------------------------------------------------- items


@strip_init_traceback
@frozen
class ItemPublicTokenExchangeRequest(PlaidRequest):
    """A request to exchange a public token for an access token."""

    public_token: str = field(validator=is_identifier, repr=False)


@frozen
class ItemPublicTokenExchangeResponse:
    """An access token and the ID of its Item."""

    access_token: str = field(repr=False)
    item_id: str
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()


@strip_init_traceback
@frozen
class ItemRemoveRequest(PlaidRequest):
    """A request to remove an Item and invalidate its access token.

    Attributes:
        access_token: the Item's.
        reason_code: such as `ItemRemoveReason.FRAUD_OTHER`.
        reason_note: the reason as text of at most 512 characters.
    """

    access_token: str = field(validator=is_identifier, repr=False)
    reason_code: str | None = optional_field(is_identifier)
    reason_note: str | None = optional_field(IsText(max_length=512))


@frozen
class ItemRemoveResponse:
    """The result of removing an Item.

    Attributes:
        request_id: Plaid's.
        inferred: whether the removal is inferred. A first attempt got no response, and Plaid responded to a
            later one that there is no such token.
        additional_properties: other fields that Plaid sent.
    """

    request_id: str | None = None
    inferred: bool = False
    additional_properties: dict[str, Any] = unknown_fields()

    @classmethod
    def already_removed(cls) -> Self:
        """Return the response for an Item that no longer exists, where no response says who removed it."""
        return cls(inferred=True)


# -------------------------------------------------------------------------------------------- sandbox


def check_date_order(start_date: date, end_date: date) -> None:
    """Raise `RequestValidationError` if the end is before the start."""
    if end_date < start_date:
        raise invalid("end_date", "is before start_date")


@strip_init_traceback
@frozen(kw_only=True)
class SandboxTransactions:
    """The period of a test Item's transactions: two dates, of which either is optional, or 1 to 730 days."""

    start_date: date | None = optional_field(HasType(date))
    end_date: date | None = optional_field(HasType(date))
    days_requested: int | None = optional_field(IsWholeNumber(1, 730))

    def __attrs_post_init__(self) -> None:
        if self.start_date is not None and self.end_date is not None:
            check_date_order(self.start_date, self.end_date)


@strip_init_traceback
@frozen
class SandboxStatements:
    """The first and the last day for which a test Item has statements."""

    start_date: date = field(validator=HasType(date))
    end_date: date = field(validator=HasType(date))

    def __attrs_post_init__(self) -> None:
        check_date_order(self.start_date, self.end_date)


@strip_init_traceback
@frozen(kw_only=True)
class SandboxBankIncome:
    """The bank income of a test Item; `days_requested` is from 1 to 731."""

    days_requested: int | None = optional_field(IsWholeNumber(1, 731))


@strip_init_traceback
@frozen(kw_only=True)
class SandboxIncomeVerification:
    """The sources of a test Item's income: `IncomeSourceType.BANK` or `.PAYROLL`."""

    income_source_types: tuple[str, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=validators.optional(are_identifiers)
    )
    bank_income: SandboxBankIncome | None = optional_field(HasType(SandboxBankIncome))


@strip_init_traceback
@frozen(kw_only=True)
class SandboxPublicTokenCreateOptions:
    """Options of a test Item.

    Attributes:
        webhook: the Item's webhook, an http(s) URL.
        override_username: a test user; default: `user_good`.
        override_password: the test user's password, or the configuration of a `user_custom`.
        transactions: the period of the transactions.
        statements: the period of the statements.
        income_verification: the sources of income.
    """

    webhook: str | None = optional_field(is_url)
    override_username: str | None = optional_field(IsText())
    override_password: str | None = optional_field(IsText(), repr=False)
    transactions: SandboxTransactions | None = optional_field(HasType(SandboxTransactions))
    statements: SandboxStatements | None = optional_field(HasType(SandboxStatements))
    income_verification: SandboxIncomeVerification | None = optional_field(HasType(SandboxIncomeVerification))


@strip_init_traceback
@frozen
class SandboxPublicTokenCreateRequest(PlaidRequest):
    """A request to create a test Item in the sandbox, without Link."""

    institution_id: str = field(validator=is_identifier)
    initial_products: tuple[str, ...] = field(converter=as_tuple, validator=are_identifiers)
    options: SandboxPublicTokenCreateOptions | None = optional_field(HasType(SandboxPublicTokenCreateOptions))
    user_token: str | None = optional_field(is_identifier, repr=False)
    user_id: str | None = optional_field(is_identifier)


@frozen
class SandboxPublicTokenCreateResponse:
    """The public token of a new test Item."""

    public_token: str = field(repr=False)
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()


@strip_init_traceback
@frozen
class SandboxItemFireWebhookRequest(PlaidRequest):
    """A request that the sandbox fire a webhook to the URL that an Item was created with.

    Attributes:
        access_token: the Item's.
        webhook_code: such as `WebhookCode.PRODUCT_READY`.
        webhook_type: such as `WebhookType.ASSETS`.
    """

    access_token: str = field(validator=is_identifier, repr=False)
    webhook_code: str = field(validator=is_identifier)
    webhook_type: str | None = optional_field(is_identifier)


@frozen
class SandboxItemFireWebhookResponse:
    """Whether a webhook was sent."""

    webhook_fired: bool
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()


# --------------------------------------------------------------------------------------- webhooks' keys


@strip_init_traceback
@frozen
class WebhookVerificationKeyGetRequest(PlaidRequest):
    """A request for the public key of a webhook's signature, named by the `kid` in its JWT header."""

    key_id: str = field(validator=is_identifier)


@frozen
class JWKPublicKey:
    """A public key, as a JSON Web Key (RFC 7517).

    Attributes:
        alg: the algorithm, `ES256`.
        kid: the key's ID.
        kty: the key type, `EC`.
        crv: the curve, `P-256`.
        x: the point's x coordinate, big endian, in base64url.
        y: the point's y coordinate, in the same form.
        use: the key's use, `sig`.
        created_at: the time of creation, in seconds of Unix time.
        expired_at: the time of expiry, in seconds of Unix time; `None` while the key is valid.
        additional_properties: other fields that Plaid sent.
    """

    alg: str
    kid: str
    kty: str
    crv: str
    x: str
    y: str
    use: str
    created_at: int
    expired_at: int | None = nullable_field()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class WebhookVerificationKeyGetResponse:
    """The public key of a webhook's signature."""

    key: JWKPublicKey
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()
