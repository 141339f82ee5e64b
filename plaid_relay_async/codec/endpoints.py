"""The endpoint table: every operation, with its records and what a call of it means.

All of Plaid's operations are POST requests, so the HTTP method doesn't show which of them may be repeated:
this table does. Transport, codec, gateway and the gateway's console read it, and repeat none of its columns.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

from attrs import field, frozen

from plaid_relay_async import models

Q = TypeVar("Q")
R = TypeVar("R")


class Idempotency(enum.Enum):
    """What a second attempt does if the first was executed, in the terms of RFC 9110, section 9.2."""

    SAFE = "it only reads, so it may be repeated"
    IDEMPOTENT = "it may be repeated; if the first attempt was executed, the repeat finds nothing to do"
    NON_IDEMPOTENT = "a second attempt would create a second object, so it must not be repeated"


# Half of a compressed response can't be read, and the token in it would be lost. Responses with a token are
# short, so compression would save nothing.
_UNCOMPRESSED: Final = {"Accept-Encoding": "identity"}


@frozen
class Endpoint(Generic[Q, R]):
    """One operation.

    Attributes:
        path: the path of its URL.
        load_request_type: returns the class of its requests.
        load_response_type: returns the class of its responses.
        idempotency: what a second attempt does.
        issues: the field of its response that contains a new token; `None` if it issues none.
        slow: whether `Timeouts.slow_read` applies to it.
        returns_report: whether its response is a report, which may be as long as the client's
            `max_response_bytes`; any other response is short.
    """

    path: str
    # Functions, because the modules of many records are imported on first use. Each is called once.
    load_request_type: Callable[[], type[Q]] = field(repr=False)
    load_response_type: Callable[[], type[R]] = field(repr=False)
    idempotency: Idempotency
    issues: str | None = None
    slow: bool = False
    returns_report: bool = False

    @cached_property
    def request_type(self) -> type[Q]:
        """The class of its requests."""
        return self.load_request_type()

    @cached_property
    def response_type(self) -> type[R]:
        """The class of its responses."""
        return self.load_response_type()

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that its requests need, besides those that all requests have."""
        return _UNCOMPRESSED if self.idempotency is Idempotency.NON_IDEMPOTENT else {}


RELAY_CREATE: Final = Endpoint(
    "/credit/relay/create",
    lambda: models.RelayCreateRequest,
    lambda: models.RelayCreateResponse,
    Idempotency.NON_IDEMPOTENT,
    issues="relay_token",
    slow=True,
)
RELAY_GET: Final = Endpoint(
    "/credit/relay/get",
    lambda: models.RelayGetRequest,
    lambda: models.AssetReportGetResponse,
    Idempotency.SAFE,
    slow=True,
    returns_report=True,
)
RELAY_PDF_GET: Final = Endpoint(
    "/credit/relay/pdf/get",
    lambda: models.RelayPdfGetRequest,
    lambda: models.PdfResponse,
    Idempotency.SAFE,
    slow=True,
    returns_report=True,
)
RELAY_REFRESH: Final = Endpoint(
    "/credit/relay/refresh",
    lambda: models.RelayRefreshRequest,
    lambda: models.RelayRefreshResponse,
    Idempotency.NON_IDEMPOTENT,
    issues="relay_token",
    slow=True,
)
RELAY_REMOVE: Final = Endpoint(
    "/credit/relay/remove",
    lambda: models.RelayRemoveRequest,
    lambda: models.RelayRemoveResponse,
    Idempotency.IDEMPOTENT,
)
ASSET_REPORT_CREATE: Final = Endpoint(
    "/asset_report/create",
    lambda: models.AssetReportCreateRequest,
    lambda: models.AssetReportCreateResponse,
    Idempotency.NON_IDEMPOTENT,
    issues="asset_report_token",
    slow=True,
)
ASSET_REPORT_GET: Final = Endpoint(
    "/asset_report/get",
    lambda: models.AssetReportGetRequest,
    lambda: models.AssetReportGetResponse,
    Idempotency.SAFE,
    slow=True,
    returns_report=True,
)
ASSET_REPORT_PDF_GET: Final = Endpoint(
    "/asset_report/pdf/get",
    lambda: models.AssetReportPdfGetRequest,
    lambda: models.PdfResponse,
    Idempotency.SAFE,
    slow=True,
    returns_report=True,
)
ASSET_REPORT_REFRESH: Final = Endpoint(
    "/asset_report/refresh",
    lambda: models.AssetReportRefreshRequest,
    lambda: models.AssetReportRefreshResponse,
    Idempotency.NON_IDEMPOTENT,
    issues="asset_report_token",
    slow=True,
)
ASSET_REPORT_FILTER: Final = Endpoint(
    "/asset_report/filter",
    lambda: models.AssetReportFilterRequest,
    lambda: models.AssetReportFilterResponse,
    Idempotency.NON_IDEMPOTENT,
    issues="asset_report_token",
    slow=True,
)
ASSET_REPORT_REMOVE: Final = Endpoint(
    "/asset_report/remove",
    lambda: models.AssetReportRemoveRequest,
    lambda: models.AssetReportRemoveResponse,
    Idempotency.IDEMPOTENT,
)
# Plaid doesn't publish whether a public token can be exchanged twice, so a lost exchange is not repeated.
ITEM_PUBLIC_TOKEN_EXCHANGE: Final = Endpoint(
    "/item/public_token/exchange",
    lambda: models.ItemPublicTokenExchangeRequest,
    lambda: models.ItemPublicTokenExchangeResponse,
    Idempotency.NON_IDEMPOTENT,
    issues="access_token",
)
ITEM_REMOVE: Final = Endpoint(
    "/item/remove",
    lambda: models.ItemRemoveRequest,
    lambda: models.ItemRemoveResponse,
    Idempotency.IDEMPOTENT,
)
SANDBOX_PUBLIC_TOKEN_CREATE: Final = Endpoint(
    "/sandbox/public_token/create",
    lambda: models.SandboxPublicTokenCreateRequest,
    lambda: models.SandboxPublicTokenCreateResponse,
    Idempotency.NON_IDEMPOTENT,
    issues="public_token",
)
SANDBOX_ITEM_FIRE_WEBHOOK: Final = Endpoint(
    "/sandbox/item/fire_webhook",
    lambda: models.SandboxItemFireWebhookRequest,
    lambda: models.SandboxItemFireWebhookResponse,
    Idempotency.NON_IDEMPOTENT,
)
WEBHOOK_VERIFICATION_KEY_GET: Final = Endpoint(
    "/webhook_verification_key/get",
    lambda: models.WebhookVerificationKeyGetRequest,
    lambda: models.WebhookVerificationKeyGetResponse,
    Idempotency.SAFE,
)
WEBHOOK_EVENTS_LIST: Final = Endpoint(
    "/beta/webhook_events/list",
    lambda: models.WebhookEventsListRequest,
    lambda: models.WebhookEventsListResponse,
    Idempotency.SAFE,
)

ENDPOINTS: Final[tuple[Endpoint[Any, Any], ...]] = (
    RELAY_CREATE,
    RELAY_GET,
    RELAY_PDF_GET,
    RELAY_REFRESH,
    RELAY_REMOVE,
    ASSET_REPORT_CREATE,
    ASSET_REPORT_GET,
    ASSET_REPORT_PDF_GET,
    ASSET_REPORT_REFRESH,
    ASSET_REPORT_FILTER,
    ASSET_REPORT_REMOVE,
    ITEM_PUBLIC_TOKEN_EXCHANGE,
    ITEM_REMOVE,
    SANDBOX_PUBLIC_TOKEN_CREATE,
    SANDBOX_ITEM_FIRE_WEBHOOK,
    WEBHOOK_VERIFICATION_KEY_GET,
    WEBHOOK_EVENTS_LIST,
)
