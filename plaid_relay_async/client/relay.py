"""`client.relay`: share reports, and read what was shared."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from plaid_relay_async import codec
from plaid_relay_async.batch import Batch
from plaid_relay_async.client.files import download
from plaid_relay_async.client.operations import Call, Operations
from plaid_relay_async.client.waiting import until_ready
from plaid_relay_async.config import RetryPolicy, Timeouts, check_count
from plaid_relay_async.errors import ConfigurationError, sealed
from plaid_relay_async.models import (
    RelayCreateRequest,
    RelayCreateResponse,
    RelayGetRequest,
    RelayPdfGetRequest,
    RelayRefreshRequest,
    RelayRefreshResponse,
    RelayRemoveRequest,
    RelayRemoveResponse,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from plaid_relay_async.batch import Journal, Outcome, Progress, Requests
    from plaid_relay_async.models import AssetReportGetResponse, PdfFile, PdfResponse
    from plaid_relay_async.transport import Permit, Transport


class Relay(Operations):
    """`client.relay`: share reports, and read what was shared."""

    def __init__(self, transport: Transport, timeouts: Timeouts) -> None:
        super().__init__(transport)
        self._drain = timeouts.drain

    @sealed
    def create(
        self,
        report_tokens: Iterable[str],
        secondary_client_id: str,
        *,
        webhook: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[RelayCreateResponse]:
        """Share a report with one partner; called by the report's owner.

        https://plaid.com/docs/api/products/assets/#creditrelaycreate, `credit_relay_create` in plaid-python.
        If the task is cancelled while the call is under way, nobody can tell whether there is a token.

        Args:
            report_tokens: one asset report token, in a list.
            secondary_client_id: the partner's client id at Plaid.
            webhook: an http(s) URL to which Plaid tells that the partner fetched the report.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            InvalidRequestError: an argument can't pass (`sent` is False), or Plaid refused it.
            OutcomeUnknownError: there may be a token that nobody holds.
            PlaidRelayError: there is no token; see the class.
        """
        request = RelayCreateRequest(report_tokens, secondary_client_id, webhook)
        return self._transport.call(codec.RELAY_CREATE, request, timeout=timeout, retry=retry)

    def create_many(
        self,
        requests: Requests,
        *,
        concurrency: int = 50,
        journal: Journal | None = None,
        on_outcome: Callable[[Outcome], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Batch:
        """Create a relay token for each request, many at a time; called by the report's owner.

        Await what this gives for a `BatchResult`, or stream the outcomes as they come with `async with` and
        `async for`. Keep a reference to it if the task may be cancelled: its `result` then has what there is.

        Args:
            requests: any iterable or async iterable, read as it is needed; see `RelayCreateRequest.fan_out`.
            concurrency: at most so many calls are under way at once, of the client's `connections`.
            journal: where to write down what is begun and what became of it.
            on_outcome: called with each outcome, before anybody else sees it.
            on_progress: called with a `Progress` after each outcome.
            allow_duplicates: create for a pair of report and partner each time that it comes. Otherwise the
                second is a `Failed`, and some 100 bytes are kept for each request.
            timeout: seconds for each creation, all its attempts together; pauses that Plaid asks for and
                queueing aren't counted.
            retry: in place of the client's policy.

        Raises:
            ConfigurationError: a setting can't be used, or a callback is async.
            BatchStoppedError: in the end, if the input, the journal or a callback raised; it has the result.
        """
        check_count("concurrency", concurrency)
        self._transport.checked(timeout, retry)
        if inspect.iscoroutinefunction(on_outcome) or inspect.iscoroutinefunction(on_progress):
            raise ConfigurationError("on_outcome and on_progress must be plain functions, not async ones")

        def create(request: RelayCreateRequest, permit: Permit) -> Call[RelayCreateResponse]:
            return self._transport.call(
                codec.RELAY_CREATE, request, timeout=timeout, retry=retry, permit=permit
            )

        return Batch(
            requests,
            create,
            concurrency=concurrency,
            drain=self._drain,
            journal=journal,
            on_outcome=on_outcome,
            on_progress=on_progress,
            allow_duplicates=allow_duplicates,
        )

    @sealed
    def get(
        self,
        relay_token: str,
        *,
        include_insights: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a report that was shared with you; called by the partner, with its own credentials.

        https://plaid.com/docs/api/products/assets/#creditrelayget, `credit_relay_get` in plaid-python.

        Args:
            relay_token: as the owner handed it over.
            include_insights: with categories, merchants, and what Plaid makes of it all.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ReportNotReadyError: the report is still being generated; see `wait_until_ready`.
            AssetReportError: it couldn't be generated.
            ResponseDecodeError: the answer isn't a report.
            PlaidRelayError: see the class.
        """
        request = RelayGetRequest(relay_token, include_insights=include_insights)
        return self._transport.call(codec.RELAY_GET, request, timeout=timeout, retry=retry)

    @sealed
    def wait_until_ready(
        self,
        relay_token: str,
        *,
        include_insights: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a report that was shared with you, as soon as it is generated; called by the partner.

        It asks after 1, 3, 6 and 10 seconds and every 5 seconds from then on, which is within the 15
        requests a minute that Plaid allows for a report. See `get` for the page and the name.

        Args:
            relay_token: as the owner handed it over.
            include_insights: with categories, merchants, and what Plaid makes of it all.
            timeout: seconds for all of it, in place of the client's `Timeouts.total`.
            retry: in place of the client's policy; `attempts` bounds how many requests may fail in a row.

        Raises:
            ReportNotReadyError: the time is up, and the report is still being generated.
            AssetReportError: it couldn't be generated, and waiting won't mend that.
            ResponseDecodeError: the answer isn't a report.
            PlaidRelayError: see the class.
        """
        request = RelayGetRequest(relay_token, include_insights=include_insights)
        return until_ready(self._transport, codec.RELAY_GET, request, timeout=timeout, retry=retry)

    @sealed
    def get_pdf(
        self, relay_token: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Call[PdfResponse]:
        """Read a report that was shared with you, as a PDF; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelaypdfget (beta), `credit_relay_pdf_get` in
        plaid-python.

        Args:
            relay_token: as the owner handed it over.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the answer isn't a PDF, or not a whole one.
            PlaidRelayError: see the class.
        """
        request = RelayPdfGetRequest(relay_token)
        return self._transport.call(codec.RELAY_PDF_GET, request, timeout=timeout, retry=retry)

    @sealed
    def download_pdf(
        self,
        relay_token: str,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[PdfFile]:
        """Save a report that was shared with you as a PDF, written as it arrives; called by the partner.

        The file is there as a whole or not at all, and nobody else may read it (mode 0600). See `get_pdf`
        for the page and the name.

        Args:
            relay_token: as the owner handed it over.
            path: the file to make; there must be none of that name.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            FileExistsError: there is such a file; nothing was sent, unless it has come meanwhile.
            OSError: the file can't be written.
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the answer isn't a PDF, or not a whole one.
            PlaidRelayError: see the class.
        """
        request = RelayPdfGetRequest(relay_token)
        return download(self._transport, codec.RELAY_PDF_GET, request, path, timeout=timeout, retry=retry)

    @sealed
    def refresh(
        self,
        relay_token: str,
        *,
        webhook: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[RelayRefreshResponse]:
        """Have the report made anew, with recent data; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelayrefresh, `credit_relay_refresh` in
        plaid-python. Each call makes a new report, and so it is repeated as carefully as `create`.

        Args:
            relay_token: as the owner handed it over.
            webhook: an http(s) URL to which Plaid tells that the new report is ready.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            OutcomeUnknownError: there may be a new report.
            PlaidRelayError: there is none; see the class.
        """
        request = RelayRefreshRequest(relay_token, webhook=webhook)
        return self._transport.call(codec.RELAY_REFRESH, request, timeout=timeout, retry=retry)

    @sealed
    def remove(
        self, relay_token: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Call[RelayRemoveResponse]:
        """Take a relay token back; called by the report's owner.

        https://plaid.com/docs/api/products/assets/#creditrelayremove, `credit_relay_remove` in plaid-python.
        If an attempt got no answer and the next was told that there is no such token, the answer says
        `removed=True, inferred=True`.

        Args:
            relay_token: as `create` gave it.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            PlaidRelayError: see the class.
        """
        request = RelayRemoveRequest(relay_token)
        return self._transport.call(codec.RELAY_REMOVE, request, timeout=timeout, retry=retry)
