"""A report: Items, accounts, balances, transactions, owners and investments.

The records are Plaid's own objects, field by field; see https://plaid.com/docs/api/products/assets/. Amounts
are `Decimal`, in the currency of `iso_currency_code` or `unofficial_currency_code`, of which one is null. A
field that may be missing or null is `None` in both cases.
"""

from __future__ import annotations

from datetime import date as day
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from attrs import field, frozen

from plaid_relay_async.models import values
from plaid_relay_async.models.asset_report import AssetReportUser
from plaid_relay_async.models.fields import client_side_field, nullable_field, unknown_fields
from plaid_relay_async.models.insights import AccountInsights
from plaid_relay_async.redaction import Hidden

if TYPE_CHECKING:
    from collections.abc import Iterator

# ---------------------------------------------------------------------------------------- transactions


@frozen(weakref_slot=False)
class CreditCategory:
    """The purpose of a transaction, in Plaid's credit taxonomy.

    See https://plaid.com/documents/credit-category-taxonomy.csv.
    """

    primary: str
    detailed: str
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(weakref_slot=False)
class Location:
    """The place of a transaction, shown in no repr; `lat` and `lon` are in degrees."""

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
    """The details of a transfer between banks, shown in no repr."""

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
        account_id: the account's ID.
        transaction_id: the transaction's ID.
        amount: positive when money leaves the account.
        date: the day on which it was posted; while it is pending, the day on which it occurred.
        pending: whether it may still change.
        iso_currency_code: the currency, by ISO 4217.
        unofficial_currency_code: the currency, where ISO has no code for it.
        original_description: the bank's description.
        category: a path in Plaid's taxonomy. This and the following fields, except `date_transacted`, are
            present only in a report with insights.
        category_id: the category's ID.
        credit_category: the purpose of the transaction.
        check_number: the number of a check.
        date_transacted: the date on which it took place, as Plaid wrote it.
        location: the place of a purchase at a shop.
        name: deprecated by Plaid; see `merchant_name` and `original_description`.
        merchant_name: the name of the payee.
        payment_meta: the details of a transfer between banks.
        pending_transaction_id: the ID of the pending transaction that this one replaces.
        account_owner: the name of the sub-account's owner, where a bank lists several in one account.
        transaction_type: see `TransactionType`.
        income_source_id: the ID of the source of income.
        additional_properties: other fields that Plaid sent.
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
        institution_price: the price of one unit.
        institution_value: the value of the holding.
        quantity: the number of units.
        ticker_symbol: the ticker of a publicly traded security, otherwise a short name.
        iso_currency_code: the currency, by ISO 4217.
        unofficial_currency_code: the currency, where ISO has no code for it.
        institution_price_as_of: the day of that price.
        cost_basis: the purchase price of the holding; only in reports from before mid-2026.
        vested_quantity: the number of vested units; only in newer reports.
        vested_value: the value of the vested units; only in newer reports.
        tax_lots: the purchases that the holding consists of; only in newer reports.
        additional_properties: other fields that Plaid sent.
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
    """A security, such as a share, a fund or a bond."""

    security_id: str
    name: str | None = nullable_field()
    ticker_symbol: str | None = nullable_field()
    type: str | None = nullable_field()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportInvestmentTransaction:
    """A transaction of an investment account.

    Attributes:
        investment_transaction_id: the transaction's ID.
        account_id: the account's ID.
        date: the day on which it was posted.
        name: the institution's description.
        quantity: the number of units, positive for a purchase.
        amount: positive when money leaves the account.
        price: the price of one unit.
        type: see `InvestmentTransactionType`.
        subtype: see `InvestmentTransactionSubtype`.
        security_id: see `AssetReportInvestments.securities`.
        fees: the sum of all fees.
        iso_currency_code: the currency, by ISO 4217.
        unofficial_currency_code: the currency, where ISO has no code for it.
        vested_quantity: the number of vested units; only in reports from before mid-2026.
        vested_value: the value of the vested units; only in reports from before mid-2026.
        additional_properties: other fields that Plaid sent.
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
    """Holdings and transactions of an investment account; present with the add-on `investments`."""

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
    """An owner of an account, as known to the bank, shown in no repr."""

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
    """The balance of an account.

    Attributes:
        available: the amount that can be withdrawn.
        current: the balance; for a credit account or a loan, the debt.
        limit: the limit of credit, or of an overdraft.
        margin_loan_amount: the amount borrowed in order to invest.
        iso_currency_code: the currency, by ISO 4217.
        unofficial_currency_code: the currency, where ISO has no code for it.
        last_updated_datetime: the time of this balance.
        additional_properties: other fields that Plaid sent.
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
        account_id: the account's ID; it changes when the bank's own ID changes.
        balances: the current balance.
        name: the name that the holder or the bank has set.
        type: see `AccountType`.
        days_available: the number of days of history.
        transactions: the transactions, newest first.
        owners: the owners.
        historical_balances: the balance of each day, newest first.
        mask: the last 2 to 4 characters of the account number.
        official_name: the bank's official name of the account.
        subtype: see `AccountSubtype`.
        ownership_type: see `OwnershipType`.
        verification_status: see `VerificationStatus`.
        persistent_account_id: an ID that stays the same when the account is linked again.
        investments: present with the add-on `investments`.
        account_insights: present in a report with insights.
        additional_properties: other fields that Plaid sent.
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
    """A login at a bank, with its accounts; `date_last_updated` is when Plaid last read the bank's data."""

    item_id: str
    institution_id: str
    institution_name: str
    date_last_updated: datetime
    accounts: tuple[AccountAssets, ...] = field(repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReport:
    """A person's accounts over `days_requested` days, at the time `date_generated`."""

    asset_report_id: str
    date_generated: datetime
    days_requested: Decimal
    user: AssetReportUser = field(repr=False)
    items: tuple[AssetReportItem, ...] = field(repr=False)
    client_report_id: str | None = nullable_field()
    insights: AccountInsights | None = field(default=None, repr=False)
    additional_properties: dict[str, Any] = unknown_fields()

    def accounts(self) -> Iterator[AccountAssets]:
        """Yield the accounts of all Items."""
        for item in self.items:
            yield from item.accounts

    def transactions(self) -> Iterator[AssetReportTransaction]:
        """Yield the transactions of all accounts: account by account, newest first within each."""
        for account in self.accounts():
            yield from account.transactions


@frozen
class Cause:
    """The error of one Item. See https://plaid.com/docs/errors/.

    Attributes:
        error_type: see `ErrorType`.
        error_code: such as `ITEM_LOGIN_REQUIRED`.
        error_message: a message for developers.
        display_message: a message for users.
        item_id: the Item's ID.
        error_code_reason: the reason, for OAuth errors.
        request_id: the ID of the request that failed.
        causes: further errors, as Plaid sent them.
        status: an HTTP status.
        documentation_url: Plaid's page about the error.
        suggested_action: Plaid's advice.
        required_account_subtypes: for `NO_ACCOUNTS`, the subtypes that the request requires.
        provided_account_subtypes: for `NO_ACCOUNTS`, the subtypes that the Item has.
        additional_properties: other fields that Plaid sent.
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
    """A part that is missing from the report, and the cause; `warning_code` as in `WarningCode`."""

    warning_type: str
    warning_code: Annotated[str, values.WarningCode]
    cause: Cause | None = nullable_field()
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportGetResponse:
    """A report, and warnings about missing parts.

    Attributes:
        report: the report.
        warnings: one for each missing part.
        request_id: Plaid's.
        additional_properties: other fields that Plaid sent.
        raw: the response body as Plaid sent it, at `raw.reveal()`; `None` if the record wasn't read from
            Plaid.
    """

    report: AssetReport = field(repr=False)
    warnings: tuple[AssetReportWarning, ...]
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()
    raw: Hidden[bytes] | None = client_side_field()
