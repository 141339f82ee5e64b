"""`client.asset_report`: the reports to share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaid_relay_async import codec
from plaid_relay_async.client.files import checked_file_path, download_to_file
from plaid_relay_async.client.operations import Call, Namespace
from plaid_relay_async.client.polling import poll_until_ready
from plaid_relay_async.errors import strip_traceback
from plaid_relay_async.models import (
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
    DaysToInclude,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import AssetReportGetResponse, AssetReportUser, PdfFile, PdfResponse


class AssetReports(Namespace):
    """`client.asset_report`: the reports to share."""

    @strip_traceback
    def create(
        self,
        access_tokens: Iterable[str],
        days_requested: int,
        *,
        client_report_id: str | None = None,
        webhook: str | None = None,
        add_ons: Iterable[str] | None = None,
        user: AssetReportUser | None = None,
        require_all_items: bool | None = None,
        include_fast_report: bool | None = None,
        products: Iterable[str] | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportCreateResponse]:
        """Have a report made; called by its owner. It takes seconds to a minute, and may be shared before.

        https://plaid.com/docs/api/products/assets/#asset_reportcreate, `asset_report_create` in plaid-python.

        Args:
            access_tokens: 1 to 99, one for each Item.
            days_requested: days of history, 0 to 731; Plaid charges more for more than 61.
            client_report_id: a name of your own.
            webhook: an http(s) URL to which Plaid tells that the report is ready, or failed.
            add_ons: `AddOn.INVESTMENTS`, `AddOn.FAST_ASSETS`.
            user: whom it is about.
            require_all_items: False for a report of the Items that can be read, where some can't.
            include_fast_report: deprecated by Plaid; see `add_ons`.
            products: deprecated by Plaid; see `add_ons`.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            RequestValidationError: an argument is invalid.
            InvalidRequestError: Plaid rejected the request.
            ItemError: an Item can't be read as it is.
            OutcomeUnknownError: there may be a report that nobody holds the token of.
            PlaidRelayError: there is none; see the class.
        """
        options = AssetReportCreateOptions(
            client_report_id=client_report_id,
            webhook=webhook,
            add_ons=add_ons,
            user=user,
            require_all_items=require_all_items,
            include_fast_report=include_fast_report,
            products=products,
        )
        given = None if options == AssetReportCreateOptions() else options
        request = AssetReportCreateRequest(access_tokens, days_requested, options=given)
        return self._transport.call(codec.ASSET_REPORT_CREATE, request, timeout=timeout, retry=retry)

    @strip_traceback
    def get(
        self,
        asset_report_token: str | None = None,
        *,
        user_token: str | None = None,
        include_insights: bool = False,
        fast_report: bool = False,
        days_to_include: int | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a report of one's own; called by its owner.

        https://plaid.com/docs/api/products/assets/#asset_reportget, `asset_report_get` in plaid-python.

        Args:
            asset_report_token: as `create` gave it.
            user_token: in its place, for the latest report of a user.
            include_insights: with categories, merchants, and what Plaid makes of it all.
            fast_report: the fast version, of a report made with `AddOn.FAST_ASSETS`: balances and owners.
            days_to_include: the last days of it alone, 0 to 731.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ReportNotReadyError: the report is still being generated; see `wait_until_ready`.
            AssetReportError: it couldn't be generated; see `causes`.
            ResponseDecodeError: the response isn't what Plaid specifies; its `body` has the bytes.
            PlaidRelayError: see the class.
        """
        request = AssetReportGetRequest(
            asset_report_token,
            user_token=user_token,
            include_insights=include_insights,
            fast_report=fast_report,
            options=_days_option(days_to_include),
        )
        return self._transport.call(codec.ASSET_REPORT_GET, request, timeout=timeout, retry=retry)

    @strip_traceback
    def wait_until_ready(
        self,
        asset_report_token: str,
        *,
        include_insights: bool = False,
        fast_report: bool = False,
        days_to_include: int | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a report of one's own, as soon as it is generated; called by its owner.

        It asks after 1, 3, 6 and 10 seconds and every 5 seconds from then on, which is within the 15
        requests a minute that Plaid allows for a report. See `get` for the page and the name.

        Args:
            asset_report_token: as `create` gave it.
            include_insights: with categories, merchants, and what Plaid makes of it all.
            fast_report: the fast version, of a report made with `AddOn.FAST_ASSETS`: balances and owners.
            days_to_include: the last days of it alone, 0 to 731.
            timeout: seconds for all of it, in place of the client's `Timeouts.total`.
            retry: in place of the client's policy; `attempts` bounds how many requests may fail in a row.

        Raises:
            ReportNotReadyError: there is no time to ask again, and the report is still being generated.
            AssetReportError: it couldn't be generated, and waiting won't mend that; see `causes`.
            ResponseDecodeError: the response isn't what Plaid specifies; its `body` has the bytes.
            PlaidRelayError: see the class.
        """
        request = AssetReportGetRequest(
            asset_report_token,
            include_insights=include_insights,
            fast_report=fast_report,
            options=_days_option(days_to_include),
        )
        return poll_until_ready(
            self._transport, codec.ASSET_REPORT_GET, request, timeout=timeout, retry=retry
        )

    @strip_traceback
    def get_pdf(
        self,
        asset_report_token: str,
        *,
        days_to_include: int | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[PdfResponse]:
        """Read a report of one's own, as a PDF; called by its owner. Plaid charges for each.

        https://plaid.com/docs/api/products/assets/#asset_reportpdfget, `asset_report_pdf_get` in
        plaid-python.

        Args:
            asset_report_token: as `create` gave it.
            days_to_include: the last days of it alone, 0 to 731.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the answer isn't a PDF, or not a whole one.
            PlaidRelayError: see the class.
        """
        request = AssetReportPdfGetRequest(asset_report_token, options=_days_option(days_to_include))
        return self._transport.call(codec.ASSET_REPORT_PDF_GET, request, timeout=timeout, retry=retry)

    @strip_traceback
    def download_pdf(
        self,
        asset_report_token: str,
        path: str | os.PathLike[str],
        *,
        days_to_include: int | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[PdfFile]:
        """Save a report of one's own as a PDF, written as it arrives; called by its owner.

        The file is there as a whole or not at all, and nobody else may read it (mode 0600). See `get_pdf`
        for the page and the name.

        Args:
            asset_report_token: as `create` gave it.
            path: the file to make; there must be none of that name.
            days_to_include: the last days of it alone, 0 to 731.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ConfigurationError: the path names no file.
            FileExistsError: there is such a file; nothing was sent, unless it has come meanwhile.
            OSError: the file can't be written.
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the answer isn't a PDF, or not a whole one.
            PlaidRelayError: see the class.
        """
        request = AssetReportPdfGetRequest(asset_report_token, options=_days_option(days_to_include))
        return download_to_file(
            self._transport,
            codec.ASSET_REPORT_PDF_GET,
            request,
            checked_file_path(path),
            timeout=timeout,
            retry=retry,
        )

    @strip_traceback
    def refresh(
        self,
        asset_report_token: str,
        *,
        days_requested: int | None = None,
        client_report_id: str | None = None,
        webhook: str | None = None,
        user: AssetReportUser | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportRefreshResponse]:
        """Have a report made anew, with recent data, as another report; called by its owner.

        https://plaid.com/docs/api/products/assets/#asset_reportrefresh, `asset_report_refresh` in
        plaid-python. Plaid charges for it as for a new report, and so it is repeated as carefully.

        Args:
            asset_report_token: the old report's.
            days_requested: days of history, 0 to 731; those of the old report unless told otherwise.
            client_report_id: a name of your own; the old report's unless told otherwise.
            webhook: an http(s) URL; the old report's unless told otherwise.
            user: whom it is about; as told for the old report unless told otherwise.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            OutcomeUnknownError: there may be a report that nobody holds the token of.
            PlaidRelayError: there is none; see the class.
        """
        options = AssetReportRefreshOptions(client_report_id=client_report_id, webhook=webhook, user=user)
        given = None if options == AssetReportRefreshOptions() else options
        request = AssetReportRefreshRequest(asset_report_token, days_requested=days_requested, options=given)
        return self._transport.call(codec.ASSET_REPORT_REFRESH, request, timeout=timeout, retry=retry)

    @strip_traceback
    def filter(
        self,
        asset_report_token: str,
        account_ids_to_exclude: Iterable[str],
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportFilterResponse]:
        """Have a report copied without some accounts, as another report; called by its owner.

        https://plaid.com/docs/api/products/assets/#asset_reportfilter, `asset_report_filter` in plaid-python.

        Args:
            asset_report_token: the whole report's.
            account_ids_to_exclude: at least one `account_id` of that report.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            OutcomeUnknownError: there may be a report that nobody holds the token of.
            PlaidRelayError: there is none; see the class.
        """
        request = AssetReportFilterRequest(asset_report_token, account_ids_to_exclude)
        return self._transport.call(codec.ASSET_REPORT_FILTER, request, timeout=timeout, retry=retry)

    @strip_traceback
    def remove(
        self, asset_report_token: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Call[AssetReportRemoveResponse]:
        """Take a report's token back; called by its owner.

        What becomes of relay tokens that were made of it isn't published.

        https://plaid.com/docs/api/products/assets/#asset_reportremove, `asset_report_remove` in plaid-python.
        If an attempt got no answer and the next was told that there is no such token, the answer says
        `removed=True, inferred=True`.

        Args:
            asset_report_token: as `create` gave it.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            PlaidRelayError: see the class.
        """
        request = AssetReportRemoveRequest(asset_report_token)
        return self._transport.call(codec.ASSET_REPORT_REMOVE, request, timeout=timeout, retry=retry)


def _days_option(days_to_include: int | None) -> DaysToInclude | None:
    return None if days_to_include is None else DaysToInclude(days_to_include=days_to_include)
