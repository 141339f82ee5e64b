"""`client.relay`: share reports, and read what was shared."""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from plaid_relay_async import batch, codec
from plaid_relay_async.batch import Batch, CallContext
from plaid_relay_async.client.files import checked_file_path, download_to_file
from plaid_relay_async.client.operations import Call, Namespace
from plaid_relay_async.client.polling import poll_until_ready
from plaid_relay_async.config import RetryPolicy, Timeouts, check_count
from plaid_relay_async.errors import BatchStoppedError, ConfigurationError, strip_traceback
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
    from collections.abc import AsyncIterable, Callable, Iterable

    from plaid_relay_async.batch import AnyJournal, BatchOperation, Requests, Tokens
    from plaid_relay_async.client.late_outcomes import LateOutcomes
    from plaid_relay_async.models import AssetReportGetResponse, PdfFile, PdfResponse
    from plaid_relay_async.outcomes import (
        Created,
        Failed,
        Fetched,
        Outcome,
        Progress,
        Refreshed,
        Removed,
        Unknown,
    )
    from plaid_relay_async.transport import AttemptGate, Transport

R = TypeVar("R")


class Relay(Namespace):
    """`client.relay`: share reports, and read what was shared."""

    def __init__(self, transport: Transport, timeouts: Timeouts, late: LateOutcomes) -> None:
        super().__init__(transport)
        self._late = late
        self._drain = timeouts.drain

    @strip_traceback
    def create(
        self,
        report_tokens: Iterable[str],
        secondary_client_id: str,
        *,
        webhook: str | None = None,
        journal: AnyJournal | None = None,
        retry_unknown: bool | None = None,
        retry_failed: bool | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[RelayCreateResponse]:
        """Share a report with one partner; called by the report's owner.

        https://plaid.com/docs/api/products/assets/#creditrelaycreate, `credit_relay_create` in plaid-python.
        If the task is cancelled while the request is in flight, the response is waited for, for the client's
        `Timeouts.drain` at most, and the outcome goes to the client's `on_late_outcome`. With a journal it is
        recorded as well: the same call again returns that token.

        Args:
            report_tokens: one asset report token, in a list.
            secondary_client_id: the partner's client id at Plaid.
            webhook: an http(s) URL to which Plaid tells that the partner fetched the report.
            journal: returns the token that it has for the pair, or records the call. While another call is
                in progress for the same pair, this one waits for its outcome.
            retry_unknown: create again if the journal doesn't know whether the pair has a token; it may then
                have two. `None` takes the journal's setting.
            retry_failed: create again if the journal has a failure that it would return. `None` takes the
                journal's setting.
            timeout: seconds for the whole call, all attempts together; waiting for others isn't counted.
            retry: in place of the client's policy.

        Raises:
            ConfigurationError: `retry_unknown` or `retry_failed` is given without a journal.
            RequestValidationError: an argument is invalid.
            InvalidRequestError: Plaid rejected the request.
            OutcomeUnknownError: there may be a token that no one holds.
            JournalError: the journal can't be read or written; nothing was sent that isn't on record.
            PlaidRelayError: there is no token; see the class.
        """
        request = RelayCreateRequest(report_tokens, secondary_client_id, webhook)
        retries = {"retry_unknown": retry_unknown, "retry_failed": retry_failed}
        if journal is not None:
            settings = _single_call_settings(journal) | {"retries": retries}
            one = self._batch(batch.CREATE, codec.RELAY_CREATE, [request], timeout, retry, **settings)
            return self._single_response(
                codec.RELAY_CREATE.path,
                one,
                lambda made: RelayCreateResponse(made.relay_token, made.request_id),
            )
        for name, value in retries.items():
            if value is not None:
                raise ConfigurationError(f"{name}= needs journal=")
        return self._transport.call(codec.RELAY_CREATE, request, timeout=timeout, retry=retry)

    @strip_traceback
    def create_many(
        self,
        requests: Requests,
        *,
        concurrency: int = 50,
        journal: AnyJournal | None = None,
        on_outcome: Callable[[Outcome], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Batch[Created]:
        """Create a relay token for each request, many at a time; called by the report's owner.

        Await what this gives for a `BatchResult`, or stream the outcomes as they come with `async with` and
        `async for`. Keep a reference to it if the task may be cancelled: its `result` then has what there is.
        After three errors of a report, without a success in between, the rest of its requests fail unsent.

        Args:
            requests: any iterable or async iterable, read as it is needed; see `RelayCreateRequest.fan_out`.
            concurrency: at most so many calls are under way at once, of the client's `connections`.
            journal: serves what it has an outcome for, and has the rest written down: what is begun, before
                it leaves, and what became of it, before anybody sees it. See `plaid_relay_async.journal`.
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
        return self._checked_batch(
            batch.CREATE,
            codec.RELAY_CREATE,
            requests,
            journal=journal,
            concurrency=concurrency,
            on_outcome=on_outcome,
            on_progress=on_progress,
            allow_duplicates=allow_duplicates,
            timeout=timeout,
            retry=retry,
        )

    @strip_traceback
    def get_many(
        self,
        relay_tokens: Tokens[RelayGetRequest],
        *,
        include_insights: bool = False,
        concurrency: int = 50,
        on_outcome: Callable[[Fetched[AssetReportGetResponse] | Failed | Unknown], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Batch[Fetched[AssetReportGetResponse]]:
        """Read many reports that were shared with you; called by the partner, with its own credentials.

        https://plaid.com/docs/api/products/assets/#creditrelayget for each of them. It is used as
        `create_many` is. Streamed, at most `concurrency` reports are in memory besides the one that the loop
        has, under way or read; awaited, all of them are. No outcome is an `Unknown`: a read that is lost is a
        `Failed`, and can be made again. A report that isn't what Plaid specifies is a `Failed` as well, whose
        error has its bytes.

        Args:
            relay_tokens: any iterable or async iterable, read as it is needed, of relay tokens or of
                `RelayGetRequest`.
            include_insights: with categories and merchants; for the tokens, a request has its own.
            concurrency: at most so many calls are under way at once, of the client's `connections`.
            on_outcome: called with each outcome, before anybody else sees it.
            on_progress: called with a `Progress` after each outcome.
            allow_duplicates: read a report each time that its token comes. Otherwise the second is a
                `Failed`, and some 100 bytes are kept for each token.
            timeout: seconds for each report, all its attempts together; pauses that Plaid asks for and
                queueing aren't counted.
            retry: in place of the client's policy.

        Raises:
            ConfigurationError: a setting can't be used, or a callback is async.
            RequestValidationError: `relay_tokens` is one string, or `include_insights` no flag.
            BatchStoppedError: in the end, if the input or a callback raised, or a token can't pass; it has
                the result.
        """
        return self._checked_batch(
            batch.GET,
            codec.RELAY_GET,
            relay_tokens,
            partial(RelayGetRequest, include_insights=include_insights),
            concurrency=concurrency,
            on_outcome=on_outcome,
            on_progress=on_progress,
            allow_duplicates=allow_duplicates,
            timeout=timeout,
            retry=retry,
        )

    @strip_traceback
    def get_pdf_many(
        self,
        relay_tokens: Tokens[RelayPdfGetRequest],
        *,
        concurrency: int = 50,
        on_outcome: Callable[[Fetched[PdfResponse] | Failed | Unknown], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Batch[Fetched[PdfResponse]]:
        """Read many reports that were shared with you, as PDFs; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelaypdfget (beta) for each of them. All else is as
        with `get_many`, memory and errors included.

        Args:
            relay_tokens: any iterable or async iterable of relay tokens or of `RelayPdfGetRequest`.
            concurrency: at most so many calls are under way at once, of the client's `connections`.
            on_outcome: called with each outcome, before anybody else sees it.
            on_progress: called with a `Progress` after each outcome.
            allow_duplicates: read a report each time that its token comes.
            timeout: seconds for each report, all its attempts together, without pauses and queueing.
            retry: in place of the client's policy.

        Raises:
            ConfigurationError: a setting can't be used, or a callback is async.
            RequestValidationError: `relay_tokens` is one string.
            BatchStoppedError: in the end, if the input or a callback raised, or a token can't pass; it has
                the result.
        """
        return self._checked_batch(
            batch.GET_PDF,
            codec.RELAY_PDF_GET,
            relay_tokens,
            RelayPdfGetRequest,
            concurrency=concurrency,
            on_outcome=on_outcome,
            on_progress=on_progress,
            allow_duplicates=allow_duplicates,
            timeout=timeout,
            retry=retry,
        )

    @strip_traceback
    def refresh_many(
        self,
        relay_tokens: Tokens[RelayRefreshRequest],
        *,
        webhook: str | None = None,
        concurrency: int = 50,
        on_outcome: Callable[[Refreshed | Failed | Unknown], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Batch[Refreshed]:
        """Have many reports made anew, with recent data; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelayrefresh for each of them. It is used as
        `create_many` is. Each call makes a new report, so one whose answer is lost is an `Unknown`.

        Args:
            relay_tokens: any iterable or async iterable, read as it is needed, of relay tokens or of
                `RelayRefreshRequest`.
            webhook: an http(s) URL to which Plaid tells that a new report is ready; for the tokens, a request
                has its own.
            concurrency: at most so many calls are under way at once, of the client's `connections`.
            on_outcome: called with each outcome, before anybody else sees it.
            on_progress: called with a `Progress` after each outcome.
            allow_duplicates: make a new report each time that a token comes. Otherwise the second is a
                `Failed`, and some 100 bytes are kept for each token.
            timeout: seconds for each call, all its attempts together; pauses that Plaid asks for and queueing
                aren't counted.
            retry: in place of the client's policy.

        Raises:
            ConfigurationError: a setting can't be used, or a callback is async.
            RequestValidationError: `relay_tokens` is one string, or `webhook` can't pass.
            BatchStoppedError: in the end, if the input or a callback raised, or a token can't pass; it has
                the result.
        """
        return self._checked_batch(
            batch.REFRESH,
            codec.RELAY_REFRESH,
            relay_tokens,
            partial(RelayRefreshRequest, webhook=webhook),
            concurrency=concurrency,
            on_outcome=on_outcome,
            on_progress=on_progress,
            allow_duplicates=allow_duplicates,
            timeout=timeout,
            retry=retry,
        )

    @strip_traceback
    def remove_many(
        self,
        relay_tokens: Tokens[RelayRemoveRequest],
        *,
        concurrency: int = 50,
        journal: AnyJournal | None = None,
        on_outcome: Callable[[Removed | Failed | Unknown], object] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        allow_duplicates: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Batch[Removed]:
        """Take many relay tokens back; called by the reports' owner.

        https://plaid.com/docs/api/products/assets/#creditrelayremove for each of them. It is used as
        `create_many` is. A removal is repeated when its answer is lost. If that doesn't help, it is an
        `Unknown`, and it is safe to remove the token again.

        Args:
            relay_tokens: any iterable or async iterable, read as it is needed, of relay tokens or of
                `RelayRemoveRequest`.
            concurrency: at most so many calls are under way at once, of the client's `connections`.
            journal: has it written down of the tokens that it knows: what is begun, and what is removed.
            on_outcome: called with each outcome, before anybody else sees it.
            on_progress: called with a `Progress` after each outcome.
            allow_duplicates: remove a token each time that it comes. Otherwise the second is a `Failed`, and
                some 100 bytes are kept for each token.
            timeout: seconds for each removal, all its attempts together; pauses that Plaid asks for and
                queueing aren't counted.
            retry: in place of the client's policy.

        Raises:
            ConfigurationError: a setting can't be used, or a callback is async.
            RequestValidationError: `relay_tokens` is one string.
            BatchStoppedError: in the end, if the input, the journal or a callback raised, or a token can't
                pass; it has the result.
        """
        return self._checked_batch(
            batch.REMOVE,
            codec.RELAY_REMOVE,
            relay_tokens,
            RelayRemoveRequest,
            journal=journal,
            concurrency=concurrency,
            on_outcome=on_outcome,
            on_progress=on_progress,
            allow_duplicates=allow_duplicates,
            timeout=timeout,
            retry=retry,
        )

    def _checked_batch(
        self,
        operation: BatchOperation,
        endpoint: codec.Endpoint[Any, Any],
        requests: Iterable[Any] | AsyncIterable[Any],
        make: Callable[[str], object] | None = None,
        *,
        timeout: float | None,
        retry: RetryPolicy | None,
        **settings: Any,
    ) -> Batch[Any]:
        """Make a batch of calls, once its settings have passed; `make` turns a relay token into a request."""
        check_count("concurrency", settings["concurrency"])
        self._transport.resolve_settings(timeout, retry)
        callbacks = (settings["on_outcome"], settings["on_progress"])
        if any(map(inspect.iscoroutinefunction, callbacks)):
            raise ConfigurationError("on_outcome and on_progress must be plain functions, not async ones")
        if make is not None:
            make("checked-when-met")  # what goes with each token had better be wrong at once

        return self._batch(operation, endpoint, requests, timeout, retry, request_from_token=make, **settings)

    def _batch(
        self,
        operation: BatchOperation,
        endpoint: codec.Endpoint[Any, Any],
        requests: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None,
        retry: RetryPolicy | None,
        *,
        retries: dict[str, bool | None] | None = None,
        **settings: Any,
    ) -> Batch[Any]:
        def call(request: object, permit: AttemptGate) -> Call[Any]:
            return self._transport.call(endpoint, request, timeout=timeout, retry=retry, gate=permit)

        total, _ = self._transport.resolve_settings(timeout, retry)
        host, former_host = self._transport.host, self._transport.host_as_typed
        client_id = partial(self._transport.client_id, total)
        caller = CallContext(host, client_id, total, former_host, **(retries or {}))
        drains = self._transport.drains
        return Batch(
            operation, requests, call, context=caller, drain_timeout=self._drain, drains=drains, **settings
        )

    async def _single_response(self, path: str, single: Batch[Any], response: Callable[[Any], R]) -> R:
        """Make one call with a journal: a batch of one, which fails where a longer one would wait."""
        trouble = None
        try:
            result = await single
        except BatchStoppedError as stopped:
            result, trouble = stopped.result, stopped.__cause__
        except asyncio.CancelledError:
            for outcome in [*single.result.succeeded, *single.result.failed, *single.result.unknown]:
                self._late.report(path, outcome)
            raise
        # The caller receives the outcome even if the journal can't record it.
        if result.succeeded:
            return response(result.succeeded[0])
        bad: list[Failed | Unknown] = [*result.failed, *result.unknown]
        raise bad[0].error if bad or trouble is None else trouble

    @strip_traceback
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
            ResponseDecodeError: the response isn't what Plaid specifies; its `body` has the bytes.
            PlaidRelayError: see the class.
        """
        request = RelayGetRequest(relay_token, include_insights=include_insights)
        return self._transport.call(codec.RELAY_GET, request, timeout=timeout, retry=retry)

    @strip_traceback
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
            ReportNotReadyError: there is no time to ask again, and the report is still being generated.
            AssetReportError: it couldn't be generated, and waiting won't mend that.
            ResponseDecodeError: the response isn't what Plaid specifies; its `body` has the bytes.
            PlaidRelayError: see the class.
        """
        request = RelayGetRequest(relay_token, include_insights=include_insights)
        return poll_until_ready(self._transport, codec.RELAY_GET, request, timeout=timeout, retry=retry)

    @strip_traceback
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

    @strip_traceback
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
            ConfigurationError: the path names no file.
            FileExistsError: there is such a file; nothing was sent, unless it has come meanwhile.
            OSError: the file can't be written.
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the answer isn't a PDF, or not a whole one.
            PlaidRelayError: see the class.
        """
        request = RelayPdfGetRequest(relay_token)
        return download_to_file(
            self._transport,
            codec.RELAY_PDF_GET,
            request,
            checked_file_path(path),
            timeout=timeout,
            retry=retry,
        )

    @strip_traceback
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

    @strip_traceback
    def remove(
        self,
        relay_token: str,
        *,
        journal: AnyJournal | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Call[RelayRemoveResponse]:
        """Take a relay token back; called by the report's owner.

        https://plaid.com/docs/api/products/assets/#creditrelayremove, `credit_relay_remove` in plaid-python.
        If an attempt got no answer and the next was told that there is no such token, the answer says
        `removed=True, inferred=True`.

        Args:
            relay_token: as `create` gave it.
            journal: has it written down, if it knows the token, so that it doesn't serve it any more.
            timeout: seconds for the whole call, all attempts together.
            retry: in place of the client's policy.

        Raises:
            JournalError: the journal can't be read or written; nothing was begun that isn't on record.
            PlaidRelayError: see the class.
        """
        request = RelayRemoveRequest(relay_token)
        if journal is not None:
            one = self._batch(
                batch.REMOVE, codec.RELAY_REMOVE, [request], timeout, retry, **_single_call_settings(journal)
            )
            return self._single_response(codec.RELAY_REMOVE.path, one, lambda gone: gone.response)
        return self._transport.call(codec.RELAY_REMOVE, request, timeout=timeout, retry=retry)


def _single_call_settings(journal: AnyJournal) -> dict[str, Any]:
    return {"journal": journal, "concurrency": 1, "bulk": False}
