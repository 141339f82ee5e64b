"""An asyncio client for Plaid's credit relay, which reports what happened to each request.

See https://plaid.com/docs/api/products/assets/#creditrelaycreate.

PYTEST_DONT_REWRITE: the distribution has a pytest plugin, so pytest would otherwise warn in a process that
has already imported this package.
"""

from typing import TYPE_CHECKING, Any

from plaid_relay_async import models
from plaid_relay_async.batch import (
    Batch,
    BatchOptions,
    BatchResult,
    CreationResult,
    JournalProtocol,
    Progress,
)
from plaid_relay_async.client import RelayClient
from plaid_relay_async.codec import from_json, structure, to_json, unstructure
from plaid_relay_async.config import Credentials, Environment, RetryPolicy, Timeouts, __version__
from plaid_relay_async.errors import (
    AssetReportError,
    AuthenticationError,
    BatchStoppedError,
    ClientClosedError,
    ConfigurationError,
    ConnectionLostError,
    CursorExpiredError,
    DuplicateRequestError,
    InboxError,
    InvalidRequestError,
    ItemError,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    PlaidServerError,
    RateLimitError,
    ReadTimeoutError,
    ReportNotReadyError,
    RequestValidationError,
    ResponseDecodeError,
    WaitTooLongError,
)
from plaid_relay_async.models import (
    AssetReportCreateResponse,
    AssetReportFilterResponse,
    AssetReportRefreshResponse,
    AssetReportRemoveResponse,
    AssetReportUser,
    PdfFile,
    PdfResponse,
    PlaidRequest,
    RelayCreateRequest,
    RelayCreateResponse,
    RelayGetRequest,
    RelayPdfGetRequest,
    RelayRefreshRequest,
    RelayRefreshResponse,
    RelayRemoveRequest,
    RelayRemoveResponse,
)
from plaid_relay_async.outcomes import (
    Completed,
    Created,
    Failed,
    Fetched,
    LateOutcome,
    Outcome,
    Refreshed,
    Removed,
    Unknown,
)
from plaid_relay_async.telemetry import AttemptEnd, CallEnd, Telemetry
from plaid_relay_async.transport import RateLimiter, Retry, Statistics

if TYPE_CHECKING:
    from plaid_relay_async.models import (
        AssetReport,
        AssetReportGetResponse,
        ItemPublicTokenExchangeResponse,
        ItemRemoveResponse,
        SandboxItemFireWebhookResponse,
        SandboxPublicTokenCreateResponse,
        SentWebhook,
        WebhookEventsListResponse,
        WebhookVerificationKeyGetResponse,
    )

__all__ = [
    "AssetReport",
    "AssetReportCreateResponse",
    "AssetReportError",
    "AssetReportFilterResponse",
    "AssetReportGetResponse",
    "AssetReportRefreshResponse",
    "AssetReportRemoveResponse",
    "AssetReportUser",
    "AttemptEnd",
    "AuthenticationError",
    "Batch",
    "BatchOptions",
    "BatchResult",
    "BatchStoppedError",
    "CallEnd",
    "ClientClosedError",
    "Completed",
    "ConfigurationError",
    "ConnectionLostError",
    "Created",
    "CreationResult",
    "Credentials",
    "CursorExpiredError",
    "DuplicateRequestError",
    "Environment",
    "Failed",
    "Fetched",
    "InboxError",
    "InvalidRequestError",
    "ItemError",
    "ItemPublicTokenExchangeResponse",
    "ItemRemoveResponse",
    "JournalError",
    "JournalProtocol",
    "LateOutcome",
    "NotSentError",
    "Outcome",
    "OutcomeUnknownError",
    "PdfFile",
    "PdfResponse",
    "PlaidAPIError",
    "PlaidRelayError",
    "PlaidRequest",
    "PlaidServerError",
    "Progress",
    "RateLimitError",
    "RateLimiter",
    "ReadTimeoutError",
    "Refreshed",
    "RelayClient",
    "RelayCreateRequest",
    "RelayCreateResponse",
    "RelayGetRequest",
    "RelayPdfGetRequest",
    "RelayRefreshRequest",
    "RelayRefreshResponse",
    "RelayRemoveRequest",
    "RelayRemoveResponse",
    "Removed",
    "ReportNotReadyError",
    "RequestValidationError",
    "ResponseDecodeError",
    "Retry",
    "RetryPolicy",
    "SandboxItemFireWebhookResponse",
    "SandboxPublicTokenCreateResponse",
    "SentWebhook",
    "Statistics",
    "Telemetry",
    "Timeouts",
    "Unknown",
    "WaitTooLongError",
    "WebhookEventsListResponse",
    "WebhookVerificationKeyGetResponse",
    "__version__",
    "from_json",
    "structure",
    "to_json",
    "unstructure",
]


def __getattr__(name: str) -> Any:
    # The records of reports and of Items are imported when one of them is first used, to keep the import
    # fast.
    if name in __all__:
        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
