"""Plaid's published enum values, as named constants.

These enums are open: Plaid adds values at any time (https://plaid.com/docs/api/versioning/). So the fields of
the records are plain strings, which may have values that are not listed here. A member equals its string:
`account.type == AccountType.CREDIT`.
"""

from __future__ import annotations

import enum


class AccountType(enum.StrEnum):
    """The type of an account. See https://plaid.com/docs/api/accounts/#account-type-schema."""

    INVESTMENT = "investment"
    CREDIT = "credit"
    DEPOSITORY = "depository"
    LOAN = "loan"
    BROKERAGE = "brokerage"
    OTHER = "other"


class AccountSubtype(enum.StrEnum):
    """The subtype of an account. See https://plaid.com/docs/api/accounts/#account-type-schema."""

    PLAN_401A = "401a"
    PLAN_401K = "401k"
    PLAN_403B = "403B"
    PLAN_457B = "457b"
    PLAN_529 = "529"
    AUTO = "auto"
    BROKERAGE = "brokerage"
    BUSINESS = "business"
    CASH_ISA = "cash isa"
    CASH_MANAGEMENT = "cash management"
    CD = "cd"
    CHECKING = "checking"
    COMMERCIAL = "commercial"
    CONSTRUCTION = "construction"
    CONSUMER = "consumer"
    CREDIT_CARD = "credit card"
    CRYPTO_EXCHANGE = "crypto exchange"
    EBT = "ebt"
    EDUCATION_SAVINGS_ACCOUNT = "education savings account"
    FHSA = "fhsa"
    FIXED_ANNUITY = "fixed annuity"
    GIC = "gic"
    HEALTH_REIMBURSEMENT_ARRANGEMENT = "health reimbursement arrangement"
    HOME_EQUITY = "home equity"
    HSA = "hsa"
    ISA = "isa"
    IRA = "ira"
    KEOGH = "keogh"
    LIF = "lif"
    LIFE_INSURANCE = "life insurance"
    LIMITED_PURPOSE_CHECKING = "limited purpose checking"
    LINE_OF_CREDIT = "line of credit"
    LIRA = "lira"
    LOAN = "loan"
    LRIF = "lrif"
    LRSP = "lrsp"
    MONEY_MARKET = "money market"
    MORTGAGE = "mortgage"
    MUTUAL_FUND = "mutual fund"
    NON_CUSTODIAL_WALLET = "non-custodial wallet"
    NON_TAXABLE_BROKERAGE_ACCOUNT = "non-taxable brokerage account"
    OTHER = "other"
    OTHER_INSURANCE = "other insurance"
    OTHER_ANNUITY = "other annuity"
    OVERDRAFT = "overdraft"
    PAYPAL = "paypal"
    PAYROLL = "payroll"
    PENSION = "pension"
    PREPAID = "prepaid"
    PRIF = "prif"
    PROFIT_SHARING_PLAN = "profit sharing plan"
    QSHR = "qshr"
    RDSP = "rdsp"
    RESP = "resp"
    RETIREMENT = "retirement"
    RLIF = "rlif"
    ROTH = "roth"
    ROTH_401K = "roth 401k"
    ROTH_403B = "roth 403B"
    ROTH_457B = "roth 457b"
    ROTH_PENSION = "roth pension"
    ROTH_PROFIT_SHARING_PLAN = "roth profit sharing plan"
    ROTH_THRIFT_SAVINGS_PLAN = "roth thrift savings plan"
    RRIF = "rrif"
    RRSP = "rrsp"
    SARSEP = "sarsep"
    SAVINGS = "savings"
    SEP_IRA = "sep ira"
    SIMPLE_IRA = "simple ira"
    SIPP = "sipp"
    STOCK_PLAN = "stock plan"
    STUDENT = "student"
    THRIFT_SAVINGS_PLAN = "thrift savings plan"
    TFSA = "tfsa"
    TRUST = "trust"
    UGMA = "ugma"
    UTMA = "utma"
    VARIABLE_ANNUITY = "variable annuity"
    COMMERCIAL_LINE_OF_CREDIT = "commercial line of credit"
    HOME_EQUITY_LOAN = "home equity loan"
    PREDICTION_MARKET = "prediction market"


class VerificationStatus(enum.StrEnum):
    """The state of an account's verification by micro-deposits or a database."""

    AUTOMATICALLY_VERIFIED = "automatically_verified"
    PENDING_AUTOMATIC_VERIFICATION = "pending_automatic_verification"
    PENDING_MANUAL_VERIFICATION = "pending_manual_verification"
    MANUALLY_VERIFIED = "manually_verified"
    VERIFICATION_EXPIRED = "verification_expired"
    VERIFICATION_FAILED = "verification_failed"
    DATABASE_MATCHED = "database_matched"


class OwnershipType(enum.StrEnum):
    """The kind of ownership of an account."""

    INDIVIDUAL = "individual"
    JOINT = "joint"
    ASSOCIATION = "association"
    TRUST = "trust"
    NULL = "null"


class TransactionType(enum.StrEnum):
    """The channel of a transaction."""

    DIGITAL = "digital"
    PLACE = "place"
    SPECIAL = "special"
    UNRESOLVED = "unresolved"


class InvestmentTransactionType(enum.StrEnum):
    """The type of an investment transaction."""

    BUY = "buy"
    SELL = "sell"
    CANCEL = "cancel"
    CASH = "cash"
    FEE = "fee"
    TRANSFER = "transfer"


class InvestmentTransactionSubtype(enum.StrEnum):
    """The subtype of an investment transaction.

    See https://plaid.com/docs/api/accounts/#investment-transaction-types-schema.
    """

    ACCOUNT_FEE = "account fee"
    ADJUSTMENT = "adjustment"
    ASSIGNMENT = "assignment"
    BUY = "buy"
    BUY_TO_COVER = "buy to cover"
    CONTRIBUTION = "contribution"
    DEPOSIT = "deposit"
    DISTRIBUTION = "distribution"
    DIVIDEND = "dividend"
    DIVIDEND_REINVESTMENT = "dividend reinvestment"
    EXERCISE = "exercise"
    EXPIRE = "expire"
    FUND_FEE = "fund fee"
    INTEREST = "interest"
    INTEREST_RECEIVABLE = "interest receivable"
    INTEREST_REINVESTMENT = "interest reinvestment"
    LEGAL_FEE = "legal fee"
    LOAN_PAYMENT = "loan payment"
    LONG_TERM_CAPITAL_GAIN = "long-term capital gain"
    LONG_TERM_CAPITAL_GAIN_REINVESTMENT = "long-term capital gain reinvestment"
    MANAGEMENT_FEE = "management fee"
    MARGIN_EXPENSE = "margin expense"
    MERGER = "merger"
    MISCELLANEOUS_FEE = "miscellaneous fee"
    NON_QUALIFIED_DIVIDEND = "non-qualified dividend"
    NON_RESIDENT_TAX = "non-resident tax"
    PENDING_CREDIT = "pending credit"
    PENDING_DEBIT = "pending debit"
    QUALIFIED_DIVIDEND = "qualified dividend"
    REBALANCE = "rebalance"
    RETURN_OF_PRINCIPAL = "return of principal"
    REQUEST = "request"
    SELL = "sell"
    SELL_SHORT = "sell short"
    SEND = "send"
    SHORT_TERM_CAPITAL_GAIN = "short-term capital gain"
    SHORT_TERM_CAPITAL_GAIN_REINVESTMENT = "short-term capital gain reinvestment"
    SPIN_OFF = "spin off"
    SPLIT = "split"
    STOCK_DISTRIBUTION = "stock distribution"
    TAX = "tax"
    TAX_WITHHELD = "tax withheld"
    TRADE = "trade"
    TRANSFER = "transfer"
    TRANSFER_FEE = "transfer fee"
    TRUST_FEE = "trust fee"
    UNQUALIFIED_GAIN = "unqualified gain"
    WITHDRAWAL = "withdrawal"


class TaxLotPositionType(enum.StrEnum):
    """Whether a tax lot is held long or short."""

    LONG = "LONG"
    SHORT = "SHORT"


class PhoneNumberType(enum.StrEnum):
    """The kind of a phone number."""

    HOME = "home"
    WORK = "work"
    OFFICE = "office"
    MOBILE = "mobile"
    MOBILE1 = "mobile1"
    OTHER = "other"


class EmailType(enum.StrEnum):
    """The kind of an email address."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    OTHER = "other"


class WarningCode(enum.StrEnum):
    """The code of a warning: what is missing from a report, or why."""

    OWNERS_UNAVAILABLE = "OWNERS_UNAVAILABLE"
    INVESTMENTS_UNAVAILABLE = "INVESTMENTS_UNAVAILABLE"
    TRANSACTIONS_UNAVAILABLE = "TRANSACTIONS_UNAVAILABLE"
    BANK_INCOME_INSIGHTS_INSUFFICIENT_DATA = "BANK_INCOME_INSIGHTS_INSUFFICIENT_DATA"
    BANK_INCOME_INSIGHTS_INCOMPLETE = "BANK_INCOME_INSIGHTS_INCOMPLETE"
    BANK_INCOME_INSIGHTS_STATUS_IN_PROGRESS = "BANK_INCOME_INSIGHTS_STATUS_IN_PROGRESS"
    BANK_INCOME_INSIGHTS_INTERNAL_ERROR = "BANK_INCOME_INSIGHTS_INTERNAL_ERROR"
    BANK_INCOME_INSIGHTS_MISMATCHED_DAYS_REQUESTED = "BANK_INCOME_INSIGHTS_MISMATCHED_DAYS_REQUESTED"


class ErrorType(enum.StrEnum):
    """The broad categories of Plaid's errors. See https://plaid.com/docs/errors/."""

    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_RESULT = "INVALID_RESULT"
    INVALID_INPUT = "INVALID_INPUT"
    INSTITUTION_ERROR = "INSTITUTION_ERROR"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    API_ERROR = "API_ERROR"
    ITEM_ERROR = "ITEM_ERROR"
    ASSET_REPORT_ERROR = "ASSET_REPORT_ERROR"
    BASE_REPORT_ERROR = "BASE_REPORT_ERROR"
    RECAPTCHA_ERROR = "RECAPTCHA_ERROR"
    OAUTH_ERROR = "OAUTH_ERROR"
    PAYMENT_ERROR = "PAYMENT_ERROR"
    BANK_TRANSFER_ERROR = "BANK_TRANSFER_ERROR"
    INCOME_VERIFICATION_ERROR = "INCOME_VERIFICATION_ERROR"
    MICRODEPOSITS_ERROR = "MICRODEPOSITS_ERROR"
    SANDBOX_ERROR = "SANDBOX_ERROR"
    PARTNER_ERROR = "PARTNER_ERROR"
    SIGNAL_ERROR = "SIGNAL_ERROR"
    TRANSACTIONS_ERROR = "TRANSACTIONS_ERROR"
    TRANSACTION_ERROR = "TRANSACTION_ERROR"
    TRANSFER_ERROR = "TRANSFER_ERROR"
    CHECK_REPORT_ERROR = "CHECK_REPORT_ERROR"
    CONSUMER_REPORT_ERROR = "CONSUMER_REPORT_ERROR"
    USER_ERROR = "USER_ERROR"
    IDEMPOTENCY_ERROR = "IDEMPOTENCY_ERROR"
    ASSETS_ERROR = "ASSETS_ERROR"
    CRA_MONITORING_ERROR = "CRA_MONITORING_ERROR"
    CREDIT_PROFILE_REPORT_ERROR = "CREDIT_PROFILE_REPORT_ERROR"
    ENCOMPASS_ERROR = "ENCOMPASS_ERROR"
    ENRICH_ERROR = "ENRICH_ERROR"
    FRAUD_INSIGHTS_ERROR = "FRAUD_INSIGHTS_ERROR"
    FREDDIE_MAC_ERROR = "FREDDIE_MAC_ERROR"
    LINK_DELIVERY_ERROR = "LINK_DELIVERY_ERROR"
    PROFILE_ERROR = "PROFILE_ERROR"
    RECURRING_TRANSACTIONS_ERROR = "RECURRING_TRANSACTIONS_ERROR"
    STATEMENTS_ERROR = "STATEMENTS_ERROR"
    TRANSFER_RECURRING_ERROR = "TRANSFER_RECURRING_ERROR"
    TRANSFER_REFUND_ERROR = "TRANSFER_REFUND_ERROR"
    CRA_REPORT_ERROR = "CRA_REPORT_ERROR"
    CRA_PARTNER_INSIGHTS_ERROR = "CRA_PARTNER_INSIGHTS_ERROR"


class ReportType(enum.StrEnum):
    """The type of a report that can be relayed."""

    ASSET = "asset"


class AddOn(enum.StrEnum):
    """An optional part of a report, in addition to accounts and transactions."""

    INVESTMENTS = "investments"
    FAST_ASSETS = "fast_assets"


class Product(enum.StrEnum):
    """A Plaid product that an Item can be created with."""

    ASSETS = "assets"
    AUTH = "auth"
    BALANCE = "balance"
    BALANCE_PLUS = "balance_plus"
    BEACON = "beacon"
    IDENTITY = "identity"
    IDENTITY_MATCH = "identity_match"
    INVESTMENTS = "investments"
    INVESTMENTS_AUTH = "investments_auth"
    LIABILITIES = "liabilities"
    PAYMENT_INITIATION = "payment_initiation"
    IDENTITY_VERIFICATION = "identity_verification"
    TRANSACTIONS = "transactions"
    CREDIT_DETAILS = "credit_details"
    INCOME = "income"
    INCOME_VERIFICATION = "income_verification"
    STANDING_ORDERS = "standing_orders"
    TRANSFER = "transfer"
    EMPLOYMENT = "employment"
    RECURRING_TRANSACTIONS = "recurring_transactions"
    TRANSACTIONS_REFRESH = "transactions_refresh"
    SIGNAL = "signal"
    STATEMENTS = "statements"
    PROCESSOR_PAYMENTS = "processor_payments"
    PROCESSOR_IDENTITY = "processor_identity"
    PROFILE = "profile"
    CRA_BASE_REPORT = "cra_base_report"
    CRA_INCOME_INSIGHTS = "cra_income_insights"
    CRA_PARTNER_INSIGHTS = "cra_partner_insights"
    CRA_NETWORK_INSIGHTS = "cra_network_insights"
    CRA_CASHFLOW_INSIGHTS = "cra_cashflow_insights"
    CRA_MONITORING = "cra_monitoring"
    CRA_LEND_SCORE = "cra_lend_score"
    CRA_PLAID_CREDIT_SCORE = "cra_plaid_credit_score"
    LAYER = "layer"
    PAY_BY_BANK = "pay_by_bank"
    PROTECT_LINKED_BANK = "protect_linked_bank"
    PROTECT_TRANSACTIONS = "protect_transactions"
    CRA_QUALIFY = "cra_qualify"
    CRA_HOME_LENDING = "cra_home_lending"


class IncomeSourceType(enum.StrEnum):
    """The source of income data."""

    BANK = "bank"
    PAYROLL = "payroll"


class ItemRemoveReason(enum.StrEnum):
    """The reason for the removal of an Item."""

    FRAUD_FIRST_PARTY = "FRAUD_FIRST_PARTY"
    FRAUD_FALSE_IDENTITY = "FRAUD_FALSE_IDENTITY"
    FRAUD_ABUSE = "FRAUD_ABUSE"
    FRAUD_OTHER = "FRAUD_OTHER"
    CONNECTION_IS_NON_FUNCTIONAL = "CONNECTION_IS_NON_FUNCTIONAL"
    OTHER = "OTHER"


class WebhookType(enum.StrEnum):
    """The type of a webhook that the sandbox can fire."""

    AUTH = "AUTH"
    HOLDINGS = "HOLDINGS"
    INVESTMENTS_TRANSACTIONS = "INVESTMENTS_TRANSACTIONS"
    ITEM = "ITEM"
    LIABILITIES = "LIABILITIES"
    TRANSACTIONS = "TRANSACTIONS"
    ASSETS = "ASSETS"
    IDENTITY = "IDENTITY"


class WebhookCode(enum.StrEnum):
    """The code of a webhook that the sandbox can fire."""

    DEFAULT_UPDATE = "DEFAULT_UPDATE"
    NEW_ACCOUNTS_AVAILABLE = "NEW_ACCOUNTS_AVAILABLE"
    SMS_MICRODEPOSITS_VERIFICATION = "SMS_MICRODEPOSITS_VERIFICATION"
    AUTHORIZATION_GRANTED = "AUTHORIZATION_GRANTED"
    USER_PERMISSION_REVOKED = "USER_PERMISSION_REVOKED"
    USER_ACCOUNT_REVOKED = "USER_ACCOUNT_REVOKED"
    PENDING_DISCONNECT = "PENDING_DISCONNECT"
    RECURRING_TRANSACTIONS_UPDATE = "RECURRING_TRANSACTIONS_UPDATE"
    LOGIN_REPAIRED = "LOGIN_REPAIRED"
    SYNC_UPDATES_AVAILABLE = "SYNC_UPDATES_AVAILABLE"
    PRODUCT_READY = "PRODUCT_READY"
    ERROR = "ERROR"


class AssetReportType(enum.StrEnum):
    """Which version of an Asset Report is ready."""

    FULL = "FULL"
    FAST = "FAST"


class WebhookDeliveryStatus(enum.StrEnum):
    """Whether a webhook was delivered."""

    PENDING = "PENDING"
    """Plaid knows of no success, and may try again; the webhook may have been delivered all the same."""
    DELIVERED = "DELIVERED"
    """A receiver has responded with a status of 200 to 299."""
    FAILED = "FAILED"
    """Plaid doesn't try again."""


class PendingDisconnectReason(enum.StrEnum):
    """Why an Item will be disconnected."""

    INSTITUTION_MIGRATION = "INSTITUTION_MIGRATION"
    INSTITUTION_TOKEN_EXPIRATION = "INSTITUTION_TOKEN_EXPIRATION"  # noqa: S105  # Plaid's name of a reason
