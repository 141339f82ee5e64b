"""`client.asset_report`: the reports to share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaid_relay_async import codec
from plaid_relay_async.client.operations import Call, Operations
from plaid_relay_async.errors import sealed
from plaid_relay_async.models import (
    AssetReportCreateOptions,
    AssetReportCreateRequest,
    AssetReportCreateResponse,
    AssetReportGetRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import AssetReportGetResponse


class AssetReports(Operations):
    """`client.asset_report`: the reports to share."""

    @sealed
    def create(
        self,
        access_tokens: Iterable[str],
        days_requested: int,
        *,
        client_report_id: str | None = None,
        webhook: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportCreateResponse]:
        """Have a report made, which takes seconds to a minute; partners are known to share it before.

        https://plaid.com/docs/api/products/assets/#asset_reportcreate, `asset_report_create` in plaid-python.

        Args:
            access_tokens: 1 to 99, one for each Item.
            days_requested: days of history, 0 to 731.
            client_report_id: a name of your own.
            webhook: an http(s) URL to which Plaid tells that the report is ready.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            OutcomeUnknownError: there may be a report that nobody holds the token of.
            PlaidRelayError: there is none; see the class.
        """
        named = client_report_id is not None or webhook is not None
        options = (
            AssetReportCreateOptions(client_report_id=client_report_id, webhook=webhook) if named else None
        )
        request = AssetReportCreateRequest(access_tokens, days_requested, options)
        return self._transport.call(codec.ASSET_REPORT_CREATE, request, timeout=timeout, retry=retry)

    @sealed
    def get(
        self,
        asset_report_token: str,
        *,
        include_insights: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a report of one's own.

        https://plaid.com/docs/api/products/assets/#asset_reportget, `asset_report_get` in plaid-python.

        Args:
            asset_report_token: as `create` gave it.
            include_insights: with categories and merchants.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the answer isn't a report.
            PlaidRelayError: see the class.
        """
        request = AssetReportGetRequest(asset_report_token, include_insights=include_insights)
        return self._transport.call(codec.ASSET_REPORT_GET, request, timeout=timeout, retry=retry)
