"""Plaid's requests and responses as frozen attrs classes, called records.

A request is validated when it is created: an invalid one raises `RequestValidationError`, which names the
field, before anything is sent. No repr shows a token. Responses keep fields that this package doesn't know in
`additional_properties`, because Plaid adds fields at any time (https://plaid.com/docs/api/versioning/).

The records of reports and of Items are imported when one of them is first used, so that a program that only
creates tokens doesn't spend time and memory on them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from attrs import has

from plaid_relay_async.models.asset_report import (
    AssetReportCreateOptions,
    AssetReportCreateRequest,
    AssetReportCreateResponse,
    AssetReportFilterRequest,
    AssetReportFilterResponse,
    AssetReportGetRequest,
    AssetReportPdfGetRequest,
    AssetReportRefreshOptions,
    AssetReportRefreshRequest,
    AssetReportRefreshResponse,
    AssetReportRemoveRequest,
    AssetReportRemoveResponse,
    AssetReportUser,
    DaysToInclude,
    PdfFile,
    PdfResponse,
)
from plaid_relay_async.models.fields import ALWAYS_SENT, CLIENT_SIDE, secrets_in
from plaid_relay_async.models.relay import (
    RelayCreateRequest,
    RelayCreateResponse,
    RelayGetRequest,
    RelayPdfGetRequest,
    RelayRefreshRequest,
    RelayRefreshResponse,
    RelayRemoveRequest,
    RelayRemoveResponse,
    RemoveResponse,
)

if TYPE_CHECKING:
    from plaid_relay_async.models.insights import (
        AccountInsights,
        AffordabilityInsights,
        AmountWithCurrency,
        BankPenaltiesIndicators,
        CategoryExpenses,
        ExpenditureInsights,
        ExpenditureSummary,
        GamblingIndicators,
        IncomeInsights,
        LoanDisbursementsIndicators,
        LoanPaymentsIndicators,
        MonthlyAverage,
        MonthlySummary,
        NegativeBalanceInsights,
        NegativeBalanceOccurrence,
        OutlierTransactionsInsights,
        RiskIndicators,
    )
    from plaid_relay_async.models.item import (
        ItemPublicTokenExchangeRequest,
        ItemPublicTokenExchangeResponse,
        ItemRemoveRequest,
        ItemRemoveResponse,
        JWKPublicKey,
        SandboxBankIncome,
        SandboxIncomeVerification,
        SandboxItemFireWebhookRequest,
        SandboxItemFireWebhookResponse,
        SandboxPublicTokenCreateOptions,
        SandboxPublicTokenCreateRequest,
        SandboxPublicTokenCreateResponse,
        SandboxStatements,
        SandboxTransactions,
        WebhookVerificationKeyGetRequest,
        WebhookVerificationKeyGetResponse,
    )
    from plaid_relay_async.models.report import (
        AccountAssets,
        Address,
        AddressData,
        AssetReport,
        AssetReportAccountBalance,
        AssetReportGetResponse,
        AssetReportInvestmentHolding,
        AssetReportInvestments,
        AssetReportInvestmentSecurity,
        AssetReportInvestmentTransaction,
        AssetReportItem,
        AssetReportTransaction,
        AssetReportWarning,
        Cause,
        CreditCategory,
        Email,
        HistoricalBalance,
        HoldingTaxLot,
        Location,
        Owner,
        PaymentMeta,
        PhoneNumber,
    )
    from plaid_relay_async.models.values import (
        AccountSubtype,
        AccountType,
        AddOn,
        EmailType,
        ErrorType,
        IncomeSourceType,
        InvestmentTransactionSubtype,
        InvestmentTransactionType,
        ItemRemoveReason,
        OwnershipType,
        PhoneNumberType,
        Product,
        ReportType,
        TaxLotPositionType,
        TransactionType,
        VerificationStatus,
        WarningCode,
        WebhookCode,
        WebhookType,
    )

__all__ = [
    "ALWAYS_SENT",
    "CLIENT_SIDE",
    "AccountAssets",
    "AccountInsights",
    "AccountSubtype",
    "AccountType",
    "AddOn",
    "Address",
    "AddressData",
    "AffordabilityInsights",
    "AmountWithCurrency",
    "AssetReport",
    "AssetReportAccountBalance",
    "AssetReportCreateOptions",
    "AssetReportCreateRequest",
    "AssetReportCreateResponse",
    "AssetReportFilterRequest",
    "AssetReportFilterResponse",
    "AssetReportGetRequest",
    "AssetReportGetResponse",
    "AssetReportInvestmentHolding",
    "AssetReportInvestmentSecurity",
    "AssetReportInvestmentTransaction",
    "AssetReportInvestments",
    "AssetReportItem",
    "AssetReportPdfGetRequest",
    "AssetReportRefreshOptions",
    "AssetReportRefreshRequest",
    "AssetReportRefreshResponse",
    "AssetReportRemoveRequest",
    "AssetReportRemoveResponse",
    "AssetReportTransaction",
    "AssetReportUser",
    "AssetReportWarning",
    "BankPenaltiesIndicators",
    "CategoryExpenses",
    "Cause",
    "CreditCategory",
    "DaysToInclude",
    "Email",
    "EmailType",
    "ErrorType",
    "ExpenditureInsights",
    "ExpenditureSummary",
    "GamblingIndicators",
    "HistoricalBalance",
    "HoldingTaxLot",
    "IncomeInsights",
    "IncomeSourceType",
    "InvestmentTransactionSubtype",
    "InvestmentTransactionType",
    "ItemPublicTokenExchangeRequest",
    "ItemPublicTokenExchangeResponse",
    "ItemRemoveReason",
    "ItemRemoveRequest",
    "ItemRemoveResponse",
    "JWKPublicKey",
    "LoanDisbursementsIndicators",
    "LoanPaymentsIndicators",
    "Location",
    "MonthlyAverage",
    "MonthlySummary",
    "NegativeBalanceInsights",
    "NegativeBalanceOccurrence",
    "OutlierTransactionsInsights",
    "Owner",
    "OwnershipType",
    "PaymentMeta",
    "PdfFile",
    "PdfResponse",
    "PhoneNumber",
    "PhoneNumberType",
    "Product",
    "RelayCreateRequest",
    "RelayCreateResponse",
    "RelayGetRequest",
    "RelayPdfGetRequest",
    "RelayRefreshRequest",
    "RelayRefreshResponse",
    "RelayRemoveRequest",
    "RelayRemoveResponse",
    "RemoveResponse",
    "ReportType",
    "RiskIndicators",
    "SandboxBankIncome",
    "SandboxIncomeVerification",
    "SandboxItemFireWebhookRequest",
    "SandboxItemFireWebhookResponse",
    "SandboxPublicTokenCreateOptions",
    "SandboxPublicTokenCreateRequest",
    "SandboxPublicTokenCreateResponse",
    "SandboxStatements",
    "SandboxTransactions",
    "TaxLotPositionType",
    "TransactionType",
    "VerificationStatus",
    "WarningCode",
    "WebhookCode",
    "WebhookType",
    "WebhookVerificationKeyGetRequest",
    "WebhookVerificationKeyGetResponse",
    "is_record",
    "secrets_in",
]

# Searched in this order. Importing `report` imports the next two as well.
_LAZY_MODULES: Final = ("report", "insights", "values", "item")


def __getattr__(name: str) -> Any:
    if name in __all__:
        modules = (importlib.import_module(f"{__name__}.{module}") for module in _LAZY_MODULES)
        # Stored in the module, so that this function is called once for each name.
        attribute = globals()[name] = next(getattr(m, name) for m in modules if hasattr(m, name))
        return attribute
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def is_record(cls: object) -> bool:
    """Return whether an object is one of this package's record classes."""
    return isinstance(cls, type) and has(cls) and cls.__module__.startswith(f"{__name__}.")
