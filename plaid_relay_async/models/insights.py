"""Plaid's insights into a report's transactions: risk and affordability.

All fields are optional. A percentage of the income is from 0 to 100 or more, and -1 where there is no income.
`days_since_last_occurrence` is 0 for today. See https://plaid.com/docs/api/products/assets/.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from attrs import field, frozen

from plaid_relay_async.models.fields import unknown_fields


@frozen(kw_only=True)
class AmountWithCurrency:
    """An amount in the currency of one of the two codes; the other one is null."""

    amount: Decimal | None = None
    iso_currency_code: str | None = None
    unofficial_currency_code: str | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class MonthlyAverage(AmountWithCurrency):
    """An average amount per month."""


@frozen(kw_only=True)
class CategoryExpenses(AmountWithCurrency):
    """The expenses of one category: the sum, and the category's `id` in Plaid's credit taxonomy."""

    id: str | None = None
    transactions_count: int | None = None
    monthly_average: MonthlyAverage | None = None


@frozen(kw_only=True)
class MonthlySummary:
    """The total of one month, with the first and the last day that it covers."""

    start_date: date | None = None
    end_date: date | None = None
    total_amount: AmountWithCurrency | None = None
    additional_properties: dict[str, Any] = unknown_fields()


# ------------------------------------------------------------------------------------------------- risk


@frozen(kw_only=True)
class _Indicators(AmountWithCurrency):
    monthly_average: MonthlyAverage | None = None
    transactions_count: int | None = None
    monthly_summaries: tuple[MonthlySummary | None, ...] | None = field(default=None, repr=False)
    days_since_last_occurrence: int | None = None
    percentage_of_income: Decimal | None = None


@frozen(kw_only=True)
class BankPenaltiesIndicators(_Indicators):
    """Fees for overdrafts, late payments and the like."""

    category_details: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class GamblingIndicators(_Indicators):
    """Expenses for gambling, and the merchants with the most of them: `top_merchants`."""

    top_merchants: tuple[str, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class LoanDisbursementsIndicators(_Indicators):
    """Loans that were paid out, and the lenders with the most of them: `top_providers`."""

    category_details: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)
    top_providers: tuple[str, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class LoanPaymentsIndicators(_Indicators):
    """Loan payments, and the lenders with the most of them: `top_providers`."""

    category_details: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)
    top_providers: tuple[str, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class NegativeBalanceOccurrence:
    """A period in which the balance was below zero; both dates are included."""

    start_date: date | None = None
    end_date: date | None = None
    minimum_balance: AmountWithCurrency | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class NegativeBalanceInsights:
    """The periods in which the balance was below zero, and its minimum."""

    days_since_last_occurrence: int | None = None
    days_with_negative_balance: int | None = None
    minimum_balance: AmountWithCurrency | None = None
    occurrences: tuple[NegativeBalanceOccurrence | None, ...] | None = field(default=None, repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class RiskIndicators:
    """Signs of the risk that a loan isn't paid back."""

    bank_penalties: BankPenaltiesIndicators | None = None
    gambling: GamblingIndicators | None = None
    loan_disbursements: LoanDisbursementsIndicators | None = None
    loan_payments: LoanPaymentsIndicators | None = None
    negative_balance: NegativeBalanceInsights | None = None
    additional_properties: dict[str, Any] = unknown_fields()


# ---------------------------------------------------------------------------------------- affordability


@frozen(kw_only=True)
class OutlierTransactionsInsights:
    """Transactions with unusually large amounts."""

    transactions_count: int | None = None
    total_amount: AmountWithCurrency | None = None
    top_categories: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class ExpenditureSummary(AmountWithCurrency):
    """The sum of some expenses, and their largest categories."""

    monthly_average: MonthlyAverage | None = None
    transactions_count: int | None = None
    percentage_of_income: Decimal | None = None
    top_categories: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class ExpenditureInsights:
    """Expenses by kind; `cash_flow` is income minus expenses."""

    cash_flow: AmountWithCurrency | None = None
    total_expenditure: ExpenditureSummary | None = None
    essential_expenditure: ExpenditureSummary | None = None
    non_essential_expenditure: ExpenditureSummary | None = None
    other: ExpenditureSummary | None = None
    transfers_out: ExpenditureSummary | None = None
    outlier_transactions: OutlierTransactionsInsights | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class IncomeInsights:
    """Income, with and without transfers between accounts."""

    total_income: AmountWithCurrency | None = None
    income_excluding_transfers: AmountWithCurrency | None = None
    transfers_in: AmountWithCurrency | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class AffordabilityInsights:
    """A person's expenses and income."""

    expenditure: ExpenditureInsights | None = None
    income: IncomeInsights | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class AccountInsights:
    """Insights into one account, or into all accounts of a report."""

    risk: RiskIndicators | None = None
    affordability: AffordabilityInsights | None = None
    additional_properties: dict[str, Any] = unknown_fields()
