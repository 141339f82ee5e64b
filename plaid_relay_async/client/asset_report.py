"""`client.asset_report`: create, read and remove asset reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plaid_relay_async import codec
from plaid_relay_async.client.files import checked_file_path, download_to_file
from plaid_relay_async.client.operations import Call, OperationGroup
from plaid_relay_async.client.polling import poll_until_ready, webhook_waiter
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
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from plaid_relay_async.config import RetryPolicy
    from plaid_relay_async.models import AssetReportGetResponse, AssetReportUser, PdfFile, PdfResponse
    from plaid_relay_async.webhooks import Inbox


class AssetReports(OperationGroup):
    """`client.asset_report`: create, read and remove asset reports."""

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
        extra: Mapping[str, Any] | None = None,
    ) -> Call[AssetReportCreateResponse]:
        """Create a report; called by the lender.

        Plaid generates it in seconds to a minute. It may be shared before that.

        https://plaid.com/docs/api/products/assets/#asset_reportcreate, `asset_report_create` in plaid-python.

        Args:
            access_tokens: 1 to 99 access tokens, one for each Item.
            days_requested: days of history, 0 to 731; Plaid charges more for more than 61.
            client_report_id: the lender's own identifier of the report.
            webhook: an http(s) URL to which Plaid reports that the report is ready, or failed.
            add_ons: `AddOn.INVESTMENTS`, `AddOn.FAST_ASSETS`.
            user: the person whom the report is about.
            require_all_items: whether the report fails if one of the Items can't be read; False leaves such
                Items out.
            include_fast_report: deprecated by Plaid; see `add_ons`.
            products: deprecated by Plaid; see `add_ons`.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            RequestValidationError: an argument is invalid.
            InvalidRequestError: Plaid rejected the request.
            ItemError: an Item can't be read in its current state.
            OutcomeUnknownError: a report may exist whose token is lost.
            PlaidRelayError: no report was created; see the class of the error.
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
        # An empty object of options isn't sent.
        options_or_none = None if options == AssetReportCreateOptions() else options
        request = AssetReportCreateRequest(
            access_tokens, days_requested, options=options_or_none, extra=extra
        )
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
        extra: Mapping[str, Any] | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a report; called by the lender.

        https://plaid.com/docs/api/products/assets/#asset_reportget, `asset_report_get` in plaid-python.

        Args:
            asset_report_token: the report's token from `create`.
            user_token: the token of a user, instead of a report's, for the user's latest report.
            include_insights: whether the report has categories, merchants and Plaid's insights.
            fast_report: whether to read the fast version of a report created with `AddOn.FAST_ASSETS`, which
                has balances and owners.
            days_to_include: the number of most recent days to include, 0 to 731.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            ReportNotReadyError: the report is still being generated; see `wait_until_ready`.
            AssetReportError: the report couldn't be generated; see `causes`.
            ResponseDecodeError: the response isn't what Plaid specifies; the error's `body` has the bytes.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = AssetReportGetRequest(
            asset_report_token,
            user_token=user_token,
            include_insights=include_insights,
            fast_report=fast_report,
            options=_days_option(days_to_include),
            extra=extra,
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
        inbox: Inbox | None = None,
        asset_report_id: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Wait until a report is generated, and read it; called by the lender.

        It polls immediately, after 1, 3, 6 and 10 seconds, and then every 5 seconds, within Plaid's limit of
        15 requests a minute for one report. With `inbox=`, it polls once the inbox has the webhook that the
        report is ready or has failed. Until then it polls less often: after 10 seconds, every 30 seconds. See
        `get` for Plaid's page and the name in plaid-python.

        Args:
            asset_report_token: the report's token from `create`.
            include_insights: whether the report has categories, merchants and Plaid's insights.
            fast_report: whether to read the fast version of a report created with `AddOn.FAST_ASSETS`, which
                has balances and owners.
            days_to_include: the number of most recent days to include, 0 to 731.
            inbox: the inbox that receives the report's webhooks; it requires `asset_report_id`.
            asset_report_id: the ID that was returned together with the token, because a webhook has the ID of
                its report, and no token.
            timeout: seconds for all requests; the default is the client's `Timeouts.total`.
            retry: the retry policy, whose `attempts` limits the consecutive failed requests; the default is
                the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            RequestValidationError: an argument is invalid, or `inbox` or `asset_report_id` is missing.
            ReportNotReadyError: the report is still being generated, and no time is left to poll again.
            AssetReportError: the report couldn't be generated; see `causes`.
            ResponseDecodeError: the response isn't what Plaid specifies; the error's `body` has the bytes.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = AssetReportGetRequest(
            asset_report_token,
            include_insights=include_insights,
            fast_report=fast_report,
            options=_days_option(days_to_include),
            extra=extra,
        )
        return poll_until_ready(
            self._transport,
            codec.ASSET_REPORT_GET,
            request,
            timeout=timeout,
            retry=retry,
            wait_for_webhook=webhook_waiter(inbox, asset_report_id),
        )

    @strip_traceback
    def get_pdf(
        self,
        asset_report_token: str,
        *,
        days_to_include: int | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[PdfResponse]:
        """Read a report as a PDF; called by the lender. Plaid charges for each read.

        https://plaid.com/docs/api/products/assets/#asset_reportpdfget, `asset_report_pdf_get` in
        plaid-python.

        Args:
            asset_report_token: the report's token from `create`.
            days_to_include: the number of most recent days to include, 0 to 731.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the response isn't a complete PDF.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = AssetReportPdfGetRequest(
            asset_report_token, options=_days_option(days_to_include), extra=extra
        )
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
        extra: Mapping[str, Any] | None = None,
    ) -> Call[PdfFile]:
        """Save a report as a PDF, written as it arrives; called by the lender.

        The file is created completely or not at all, with mode 0600. See `get_pdf` for Plaid's page and the
        name in plaid-python.

        Args:
            asset_report_token: the report's token from `create`.
            path: the file to create; it must not exist.
            days_to_include: the number of most recent days to include, 0 to 731.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            ConfigurationError: the path can't name a file.
            FileExistsError: the file exists; nothing was sent, unless it was created during the download.
            OSError: the file can't be written.
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the response isn't a complete PDF.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = AssetReportPdfGetRequest(
            asset_report_token, options=_days_option(days_to_include), extra=extra
        )
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
        extra: Mapping[str, Any] | None = None,
    ) -> Call[AssetReportRefreshResponse]:
        """Create a new report with recent data from an existing one; called by the lender.

        https://plaid.com/docs/api/products/assets/#asset_reportrefresh, `asset_report_refresh` in
        plaid-python. Plaid charges for it as for a new report, so it is repeated only if no attempt can have
        been executed.

        Args:
            asset_report_token: the existing report's token.
            days_requested: days of history, 0 to 731; the default is that of the existing report.
            client_report_id: the lender's own identifier; the default is that of the existing report.
            webhook: an http(s) URL; the default is that of the existing report.
            user: the person whom the report is about; the default is that of the existing report.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            OutcomeUnknownError: a report may exist whose token is lost.
            PlaidRelayError: no report was created; see the class of the error.
        """
        options = AssetReportRefreshOptions(client_report_id=client_report_id, webhook=webhook, user=user)
        options_or_none = None if options == AssetReportRefreshOptions() else options
        request = AssetReportRefreshRequest(
            asset_report_token,
            days_requested=days_requested,
            options=options_or_none,
            extra=extra,
        )
        return self._transport.call(codec.ASSET_REPORT_REFRESH, request, timeout=timeout, retry=retry)

    @strip_traceback
    def filter(
        self,
        asset_report_token: str,
        account_ids_to_exclude: Iterable[str],
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[AssetReportFilterResponse]:
        """Create a copy of a report without some accounts; called by the lender.

        https://plaid.com/docs/api/products/assets/#asset_reportfilter, `asset_report_filter` in plaid-python.

        Args:
            asset_report_token: the token of the report to copy.
            account_ids_to_exclude: at least one `account_id` of that report.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            OutcomeUnknownError: a report may exist whose token is lost.
            PlaidRelayError: no report was created; see the class of the error.
        """
        request = AssetReportFilterRequest(asset_report_token, account_ids_to_exclude, extra=extra)
        return self._transport.call(codec.ASSET_REPORT_FILTER, request, timeout=timeout, retry=retry)

    @strip_traceback
    def remove(
        self,
        asset_report_token: str,
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[AssetReportRemoveResponse]:
        """Remove a report and its token; called by the lender.

        Plaid doesn't publish what happens to relay tokens of the report.

        https://plaid.com/docs/api/products/assets/#asset_reportremove, `asset_report_remove` in plaid-python.
        If the response to an attempt was lost and the next attempt finds no such token, the response has
        `removed=True, inferred=True`.

        Args:
            asset_report_token: the report's token from `create`.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = AssetReportRemoveRequest(asset_report_token, extra=extra)
        return self._transport.call(codec.ASSET_REPORT_REMOVE, request, timeout=timeout, retry=retry)


def _days_option(days_to_include: int | None) -> DaysToInclude | None:
    return None if days_to_include is None else DaysToInclude(days_to_include=days_to_include)
