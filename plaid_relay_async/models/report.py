"""A report: items, accounts, balances, transactions, owners and investments.

The records are Plaid's own objects, field by field; see https://plaid.com/docs/api/products/assets/. Amounts
are exact, in the currency that `iso_currency_code` or `unofficial_currency_code` names: one of the two is
null. A field that may be missing or null is `None` in both cases.
"""

from __future__ import annotations

from datetime import date as day
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from attrs import field, frozen

from plaid_relay_async.errors import Hidden
from plaid_relay_async.models import values
from plaid_relay_async.models.asset_report import AssetReportUser
from plaid_relay_async.models.fields import client_side_field, nullable_field, unknown_fields
from plaid_relay_async.models.insights import AccountInsights

if TYPE_CHECKING:
    from collections.abc import Iterator

# ---------------------------------------------------------------------------------------- transactions


@frozen(weakref_slot=False)
class CreditCategory:
    """What a transaction was for, by Plaid's taxonomy for credit.

    See https://plaid.com/documents/credit-category-taxonomy.csv.
    """

    primary: str
    detailed: str
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(weakref_slot=False)
class Location:
    """Where a transaction took place, shown in no repr; `lat` and `lon` are in degrees."""

    address: str | None = nullable_field(repr=False)
    city: str | None = nullable_field(repr=False)
    region: str | None = nullable_field(repr=False)
    postal_code: str | None = nullable_field(repr=False)
    country: str | None = nullable_field(repr=False)
    lat: Decimal | None = nullable_field(repr=False)
    lon: Decimal | None = nullable_field(repr=False)
    store_number: str | None = nullable_field(repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(weakref_slot=False)
class PaymentMeta:
    """What is known of a transfer between banks, shown in no repr."""

    reference_number: str | None = nullable_field(repr=False)
    ppd_id: str | None = nullable_field(repr=False)
    payee: str | None = nullable_field(repr=False)
    by_order_of: str | None = nullable_field(repr=False)
    payer: str | None = nullable_field(repr=False)
    payment_method: str | None = nullable_field(repr=False)
    payment_processor: str | None = nullable_field(repr=False)
    reason: str | None = nullable_field(repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(weakref_slot=False)
class AssetReportTransaction:
    """A transaction.

    Attributes:
        account_id: the account that it is of.
        transaction_id: its own.
        amount: positive when money leaves the account.
        date: when it was posted; while it is pending, when it occurred.
        pending: whether it may still change.
        iso_currency_code: the currency, by ISO 4217.
        unofficial_currency_code: the currency, where ISO has none.
        original_description: the bank's words.
        category: a path, with insights; so are all that follow but for `date_transacted`.
        category_id: its id.
        credit_category: what it was for.
        check_number: of a check.
        date_transacted: when it took place, as Plaid wrote it.
        location: where, at a shop.
        name: deprecated by Plaid: see `merchant_name` and `original_description`.
        merchant_name: whom it was paid to.
        payment_meta: of a transfer between banks.
        pending_transaction_id: of the pending one that this one took the place of.
        account_owner: of the part of an account that it is of.
        transaction_type: see `TransactionType`.
        income_source_id: the source of income that it is of.
        additional_properties: what else Plaid sent.
    """

    account_id: str
    transaction_id: str
    amount: Decimal
    date: day
    pending: bool
    iso_currency_code: str | None = nullable_field()
    unofficial_currency_code: str | None = nullable_field()
    original_description: str | None = nullable_field(repr=False)
    category: tuple[str, ...] | None = None
    category_id: str | None = None
    credit_category: CreditCategory | None = None
    check_number: str | None = field(default=None, repr=False)
    date_transacted: str | None = None
    location: Location | None = None
    name: str | None = field(default=None, repr=False)
    merchant_name: str | None = field(default=None, repr=False)
    payment_meta: PaymentMeta | None = None
    pending_transaction_id: str | None = None
    account_owner: str | None = field(default=None, repr=False)
    transaction_type: Annotated[str | None, values.TransactionType] = None
    income_source_id: str | None = None
    additional_properties: dict[str, Any] = unknown_fields()


# ------------------------------------------------------------------------------------------ investments


@frozen
class HoldingTaxLot:
    """A part of a holding that was bought at one time."""

    institution_lot_id: str | None = nullable_field()
    original_purchase_datetime: datetime | None = nullable_field()
    quantity: Decimal | None = nullable_field()
    purchase_price: Decimal | None = nullable_field()
    cost_basis: Decimal | None = nullable_field()
    current_value: Decimal | None = nullable_field()
    position_type: Annotated[str | None, values.TaxLotPositionType] = nullable_field()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportInvestmentHolding:
    """A security that is held.

    Attributes:
        account_id: the account that holds it.
        security_id: see `AssetReportInvestments.securities`.
        institution_price: for one unit.
        institution_value: of all of them.
        quantity: how many.
        ticker_symbol: of what is traded in public, or else a short name.
        iso_currency_code: the currency, by ISO 4217.
        unofficial_currency_code: the currency, where ISO has none.
        institution_price_as_of: the day of that price.
        cost_basis: what was paid for them; reports of before mid-2026 have it.
        vested_quantity: how many belong to the holder already; newer reports have it.
        vested_value: what those are worth; ditto.
        tax_lots: when they were bought; ditto.
        additional_properties: what else Plaid sent.
    """

    account_id: str
    security_id: str
    institution_price: Decimal
    institution_value: Decimal
    quantity: Decimal
    ticker_symbol: str | None = nullable_field()
    iso_currency_code: str | None = nullable_field()
    unofficial_currency_code: str | None = nullable_field()
    institution_price_as_of: day | None = None
    cost_basis: Decimal | None = None
    vested_quantity: Decimal | None = None
    vested_value: Decimal | None = None
    tax_lots: tuple[HoldingTaxLot, ...] | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportInvestmentSecurity:
    """What may be held: a share, a fund, a bond."""

    security_id: str
    name: str | None = nullable_field()
    ticker_symbol: str | None = nullable_field()
    type: str | None = nullable_field()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportInvestmentTransaction:
    """A transaction of an investment account.

    Attributes:
        investment_transaction_id: its own id.
        account_id: the account that it is of.
        date: when it was posted.
        name: the institution's words.
        quantity: how many units, positive when they were bought.
        amount: positive when money leaves the account.
        price: for one unit.
        type: see `InvestmentTransactionType`.
        subtype: see `InvestmentTransactionSubtype`.
        security_id: see `AssetReportInvestments.securities`.
        fees: in all.
        iso_currency_code: the currency, by ISO 4217.
        unofficial_currency_code: the currency, where ISO has none.
        vested_quantity: how many belong to the holder already; reports of before mid-2026 have it.
        vested_value: what those are worth; ditto.
        additional_properties: what else Plaid sent.
    """

    investment_transaction_id: str
    account_id: str
    date: day
    name: str = field(repr=False)
    quantity: Decimal
    amount: Decimal
    price: Decimal
    type: Annotated[str, values.InvestmentTransactionType]
    subtype: Annotated[str, values.InvestmentTransactionSubtype]
    security_id: str | None = nullable_field()
    fees: Decimal | None = nullable_field()
    iso_currency_code: str | None = nullable_field()
    unofficial_currency_code: str | None = nullable_field()
    vested_quantity: Decimal | None = None
    vested_value: Decimal | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportInvestments:
    """What an investment account holds and did; there with the add-on `investments`."""

    holdings: tuple[AssetReportInvestmentHolding, ...] | None = None
    securities: tuple[AssetReportInvestmentSecurity, ...] | None = None
    transactions: tuple[AssetReportInvestmentTransaction, ...] | None = None
    additional_properties: dict[str, Any] = unknown_fields()


# ----------------------------------------------------------------------------------------------- owners


@frozen
class PhoneNumber:
    """A phone number, shown in no repr; `type` as in `PhoneNumberType`."""

    data: str = field(repr=False)
    primary: bool
    type: Annotated[str, values.PhoneNumberType]
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class Email:
    """An email address, shown in no repr; `type` as in `EmailType`."""

    data: str = field(repr=False)
    primary: bool
    type: Annotated[str, values.EmailType]
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AddressData:
    """The parts of a postal address, shown in no repr."""

    city: str | None = nullable_field(repr=False)
    region: str | None = nullable_field(repr=False)
    street: str | None = nullable_field(repr=False)
    postal_code: str | None = nullable_field(repr=False)
    country: str | None = nullable_field(repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class Address:
    """A postal address."""

    data: AddressData
    primary: bool | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class Owner:
    """Whom an account belongs to, as the bank says, shown in no repr."""

    names: tuple[str, ...] = field(repr=False)
    phone_numbers: tuple[PhoneNumber, ...] = field(repr=False)
    emails: tuple[Email, ...] = field(repr=False)
    addresses: tuple[Address, ...] = field(repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


# --------------------------------------------------------------------------------------------- accounts


@frozen(weakref_slot=False)
class HistoricalBalance:
    """An account's balance at the end of a day."""

    date: day
    current: Decimal
    iso_currency_code: str | None = nullable_field()
    unofficial_currency_code: str | None = nullable_field()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportAccountBalance:
    """What is in an account.

    Attributes:
        available: what can be withdrawn.
        current: what is in it, or, of a credit account or a loan, what is owed.
        limit: of credit, or of an overdraft.
        margin_loan_amount: what was borrowed to invest.
        iso_currency_code: the currency, by ISO 4217.
        unofficial_currency_code: the currency, where ISO has none.
        last_updated_datetime: when it was so.
        additional_properties: what else Plaid sent.
    """

    available: Decimal | None = nullable_field()
    current: Decimal | None = nullable_field()
    limit: Decimal | None = nullable_field()
    margin_loan_amount: Decimal | None = nullable_field()
    iso_currency_code: str | None = nullable_field()
    unofficial_currency_code: str | None = nullable_field()
    last_updated_datetime: datetime | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AccountAssets:
    """An account with its history.

    Attributes:
        account_id: its id, which changes when the bank's own does.
        balances: what is in it.
        name: the holder's name for it, or the bank's.
        type: see `AccountType`.
        days_available: how many days of history there are.
        transactions: newest first.
        owners: whom it belongs to.
        historical_balances: the balance of each day, newest first.
        mask: the last 2 to 4 characters of its number.
        official_name: the bank's name for it.
        subtype: see `AccountSubtype`.
        ownership_type: see `OwnershipType`.
        verification_status: see `VerificationStatus`.
        persistent_account_id: an id that stays when the account is linked again.
        investments: with the add-on `investments`.
        account_insights: with insights.
        additional_properties: what else Plaid sent.
    """

    account_id: str
    balances: AssetReportAccountBalance = field(repr=False)
    name: str = field(repr=False)
    type: Annotated[str, values.AccountType]
    days_available: Decimal
    transactions: tuple[AssetReportTransaction, ...] = field(repr=False)
    owners: tuple[Owner, ...] = field(repr=False)
    historical_balances: tuple[HistoricalBalance, ...] = field(repr=False)
    mask: str | None = nullable_field(repr=False)
    official_name: str | None = nullable_field(repr=False)
    subtype: Annotated[str | None, values.AccountSubtype] = nullable_field()
    ownership_type: Annotated[str | None, values.OwnershipType] = None
    verification_status: Annotated[str | None, values.VerificationStatus] = None
    persistent_account_id: str | None = field(default=None, repr=False)
    investments: AssetReportInvestments | None = field(default=None, repr=False)
    account_insights: AccountInsights | None = field(default=None, repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


# ---------------------------------------------------------------------------------------------- reports


@frozen
class AssetReportItem:
    """One connection to a bank, with its accounts; `date_last_updated` says when the bank was read."""

    item_id: str
    institution_id: str
    institution_name: str
    date_last_updated: datetime
    accounts: tuple[AccountAssets, ...] = field(repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReport:
    """A person's accounts over `days_requested` days, as they were at `date_generated`."""

    asset_report_id: str
    date_generated: datetime
    days_requested: Decimal
    user: AssetReportUser = field(repr=False)
    items: tuple[AssetReportItem, ...] = field(repr=False)
    client_report_id: str | None = nullable_field()
    insights: AccountInsights | None = field(default=None, repr=False)
    additional_properties: dict[str, Any] = unknown_fields()

    def accounts(self) -> Iterator[AccountAssets]:
        """Give the accounts of all Items, one by one."""
        for item in self.items:
            yield from item.accounts

    def transactions(self) -> Iterator[AssetReportTransaction]:
        """Give the transactions of all accounts, one by one: an account after the other, newest first."""
        for account in self.accounts():
            yield from account.transactions


@frozen
class Cause:
    """The error of one Item. See https://plaid.com/docs/errors/.

    Attributes:
        error_type: see `ErrorType`.
        error_code: such as `ITEM_LOGIN_REQUIRED`.
        error_message: for developers.
        display_message: for users.
        item_id: the Item's.
        error_code_reason: why, of errors with OAuth.
        request_id: of the request that met it.
        causes: further errors, as Plaid sent them.
        status: an HTTP status.
        documentation_url: Plaid's page about it.
        suggested_action: Plaid's advice.
        required_account_subtypes: of `NO_ACCOUNTS`: what was wanted.
        provided_account_subtypes: of `NO_ACCOUNTS`: what there was.
        additional_properties: what else Plaid sent.
    """

    error_type: Annotated[str, values.ErrorType]
    error_code: str
    error_message: str | None = nullable_field()
    display_message: str | None = nullable_field()
    item_id: str | None = None
    error_code_reason: str | None = None
    request_id: str | None = None
    causes: tuple[Any, ...] | None = field(default=None, repr=False)
    status: int | None = None
    documentation_url: str | None = None
    suggested_action: str | None = None
    required_account_subtypes: tuple[str, ...] | None = None
    provided_account_subtypes: tuple[str, ...] | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportWarning:
    """A part of the report that couldn't be had, and why; `warning_code` as in `WarningCode`."""

    warning_type: str
    warning_code: Annotated[str, values.WarningCode]
    cause: Cause | None = nullable_field()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportGetResponse:
    """A report and what is missing from it.

    Attributes:
        report: the report.
        warnings: what is missing.
        request_id: Plaid's.
        additional_properties: what else Plaid sent.
        raw: the very bytes that Plaid sent, at `raw.reveal()`; `None` where it wasn't read from Plaid.
    """

    report: AssetReport = field(repr=False)
    warnings: tuple[AssetReportWarning, ...]
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()
    raw: Hidden[bytes] | None = client_side_field()
