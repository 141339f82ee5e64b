"""`client.relay`: share reports, and read shared reports."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from plaid_relay_async import batch, codec, watching
from plaid_relay_async.batch import Batch, BatchOptions, BatchSettings, CallContext, Sending, TrackedCall
from plaid_relay_async.client.files import checked_file_path, download_to_file
from plaid_relay_async.client.operations import Call, OperationGroup
from plaid_relay_async.client.polling import poll_until_ready, webhook_waiter
from plaid_relay_async.errors import ConfigurationError
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
from plaid_relay_async.models.relay import needs_journal_error
from plaid_relay_async.outcomes import Failed, Unknown
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping
    from typing import Unpack

    from plaid_relay_async.batch import (
        AcquireRecorder,
        BatchOperation,
        BatchResult,
        CreationResult,
        JournalProtocol,
        OutcomeT,
        ReadOutcome,
        ReadResult,
        Requests,
        ResultT,
        TaskQueueProtocol,
        Tokens,
    )
    from plaid_relay_async.client.late_outcomes import LateOutcomes
    from plaid_relay_async.config import RetryPolicy, Timeouts
    from plaid_relay_async.models import AssetReportGetResponse, PdfFile, PdfResponse
    from plaid_relay_async.outcomes import Outcome, Refreshed, Removed
    from plaid_relay_async.transport import Transport
    from plaid_relay_async.webhooks import Inbox


# The default concurrency of a batch on a task queue: enough for several workers.
_QUEUED_CALLS = 500


class Relay(OperationGroup):
    """`client.relay`: share reports, and read shared reports."""

    def __init__(self, transport: Transport, timeouts: Timeouts, late_outcomes: LateOutcomes) -> None:
        super().__init__(transport)
        self._late_outcomes = late_outcomes
        self._drain = timeouts.drain
        self._hosts = transport.host, transport.host_as_typed

    @strip_traceback
    def create(
        self,
        report_tokens: Iterable[str],
        secondary_client_id: str,
        *,
        webhook: str | None = None,
        journal: JournalProtocol | None = None,
        retry_unknown: bool | None = None,
        retry_failed: bool | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[RelayCreateResponse]:
        """Share a report with one partner; called by the lender.

        https://plaid.com/docs/api/products/assets/#creditrelaycreate, `credit_relay_create` in plaid-python.
        If the task is cancelled while the request is in flight, the client waits for the response, for at
        most `Timeouts.drain`, and passes the outcome to its `on_late_outcome`. With a journal the outcome is
        recorded as well: the same call again returns that token.

        Args:
            report_tokens: one asset report token, in a list.
            secondary_client_id: the partner's client ID at Plaid.
            webhook: an http(s) URL to which Plaid reports that the partner read the report; with a journal,
                `{pair}` may be the last segment of its path; see `RelayCreateRequest`.
            journal: a journal, which returns the token that it has recorded for the pair, or records the
                call. While another call is in progress for the same pair, this one waits for its outcome.
            retry_unknown: whether to create again if the journal doesn't know whether the pair has a token;
                the pair may then have two. `None` means the journal's setting.
            retry_failed: whether to create again if the journal has recorded an `InvalidRequestError` or an
                `AssetReportError` for the pair in the same run; otherwise that error is raised. After other
                recorded failures, this call creates in any case. `None` means the journal's setting.
            timeout: seconds for all attempts of the call, without the wait for another call of the same pair;
                the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Returns:
            The response; its `relay_token` is for the partner.

        Raises:
            ConfigurationError: a setting is invalid, or `retry_unknown` or `retry_failed` is passed without a
                journal.
            RequestValidationError: an argument is invalid, or the webhook contains `{pair}` and there is no
                journal.
            DuplicateRequestError: the journal has a token for the pair and doesn't return it: it was
                forgotten, its removal isn't confirmed, it is from another run and the journal has
                `on_existing="refuse"`, or it isn't recorded, and the partner has retrieved the report.
            InvalidRequestError: Plaid rejected the request.
            OutcomeUnknownError: a token may exist, and it is lost.
            JournalError: the journal can't be read or written; nothing was sent that isn't recorded.
            PlaidRelayError: no token was created; see the class of the error.
        """
        request = RelayCreateRequest(report_tokens, secondary_client_id, webhook, extra=extra)
        overrides = {"retry_unknown": retry_unknown, "retry_failed": retry_failed}
        if journal is not None:
            return self._recorded_call(
                batch.CREATE, request, journal, timeout=timeout, retry=retry, **overrides
            )
        for name, value in overrides.items():
            if value is not None:
                raise ConfigurationError(f"{name}= needs journal=")
        if webhook is not None and request.needs_pair_id:
            raise needs_journal_error()
        return self._transport.call(codec.RELAY_CREATE, request, timeout=timeout, retry=retry)

    @strip_traceback
    def create_many(
        self,
        requests: Requests,
        *,
        journal: JournalProtocol | None = None,
        task_queue: TaskQueueProtocol | None = None,
        **options: Unpack[BatchOptions[Outcome]],
    ) -> Batch[Outcome, CreationResult]:
        """Create a relay token for each request, concurrently; called by the lender.

        Await the returned batch for its result, or stream its outcomes with `async with` and `async for`.
        Keep a reference to it if the task may be cancelled: its `result` then has the outcomes so far. After
        three errors that concern a report, such as an invalid report token, without a success in between, the
        report's other requests fail without being sent.

        Args:
            requests: any iterable or async iterable, read on demand; see `RelayCreateRequest.fan_out`.
            journal: a journal, which returns recorded outcomes, and records the others: an intent before each
                request is sent, and the outcome before it is delivered. See `plaid_relay_async.journal`.
            task_queue: a queue of Temporal, whose workers make the calls and record them in its journal; see
                `plaid_relay_async.temporal`. `concurrency` is then the maximum number of calls that are
                queued or in flight; its default is 500.
            options: the keyword arguments of `BatchOptions`. With `task_queue`, the workers have their own
                `timeout` and `retry`.

        Raises:
            ConfigurationError: an option is invalid, or a callback is async.
            RequestValidationError: `requests` is a single string.
            BatchStoppedError: the input, the journal or a callback raised, an item of the input isn't a
                `RelayCreateRequest`, or its webhook contains `{pair}` and there is no journal. The error is
                raised at the end of the batch, and has the `result`.
        """
        return self._many(
            batch.CREATE, requests, None, options=options, journal=journal, task_queue=task_queue
        )

    @strip_traceback
    def get_many(
        self,
        relay_tokens: Tokens[RelayGetRequest],
        *,
        include_insights: bool = False,
        extra: Mapping[str, Any] | None = None,
        **options: Unpack[BatchOptions[ReadOutcome[AssetReportGetResponse]]],
    ) -> Batch[ReadOutcome[AssetReportGetResponse], ReadResult[AssetReportGetResponse]]:
        """Read many shared reports; called by the partner, with its own credentials.

        https://plaid.com/docs/api/products/assets/#creditrelayget for each of them. It is used like
        `create_many`. When streamed, at most `concurrency` reports are in memory, in flight or unread, in
        addition to the one that the loop has; when awaited, all of them are. No outcome is an `Unknown`: a
        lost read is a `Failed`, and can be repeated. A report that can't be decoded is a `Failed` as well,
        and its error has the bytes.

        Args:
            relay_tokens: any iterable or async iterable, read on demand, of relay tokens or of
                `RelayGetRequest`.
            include_insights: whether the reports have categories, merchants and Plaid's insights; applies to
                tokens, as a request has its own setting.
            extra: as of `get`; applies to tokens, as a request has its own.
            options: the keyword arguments of `BatchOptions`.

        Raises:
            ConfigurationError: an option is invalid, or a callback is async.
            RequestValidationError: `relay_tokens` is a single string, or `include_insights` or `extra` is
                invalid.
            BatchStoppedError: the input or a callback raised, or a token is invalid. The error is raised at
                the end of the batch, and has the `result`.
        """
        to_request = partial(RelayGetRequest, include_insights=include_insights, extra=extra)
        return self._many(batch.GET, relay_tokens, to_request, options=options)

    @strip_traceback
    def get_pdf_many(
        self,
        relay_tokens: Tokens[RelayPdfGetRequest],
        *,
        extra: Mapping[str, Any] | None = None,
        **options: Unpack[BatchOptions[ReadOutcome[PdfResponse]]],
    ) -> Batch[ReadOutcome[PdfResponse], ReadResult[PdfResponse]]:
        """Read many shared reports as PDFs; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelaypdfget (beta) for each of them. The rest is the
        same as for `get_many`, including memory and errors.

        Args:
            relay_tokens: any iterable or async iterable of relay tokens or of `RelayPdfGetRequest`.
            extra: as of `get_pdf`; applies to tokens, as a request has its own.
            options: the keyword arguments of `BatchOptions`.

        Raises:
            PlaidRelayError: see `get_many`.
        """
        to_request = partial(RelayPdfGetRequest, extra=extra)
        return self._many(batch.GET_PDF, relay_tokens, to_request, options=options)

    @strip_traceback
    def refresh_many(
        self,
        relay_tokens: Tokens[RelayRefreshRequest],
        *,
        webhook: str | None = None,
        extra: Mapping[str, Any] | None = None,
        **options: Unpack[BatchOptions[Refreshed | Failed | Unknown]],
    ) -> Batch[Refreshed | Failed | Unknown, BatchResult[Refreshed, Unknown]]:
        """Refresh many shared reports with recent data; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelayrefresh for each of them. It is used like
        `create_many`. Each call creates a new report, so one whose response is lost is an `Unknown`.

        Args:
            relay_tokens: any iterable or async iterable, read on demand, of relay tokens or of
                `RelayRefreshRequest`.
            webhook: an http(s) URL to which Plaid reports that a new report is ready; applies to tokens, as a
                request has its own URL.
            extra: as of `refresh`; applies to tokens, as a request has its own.
            options: the keyword arguments of `BatchOptions`.

        Raises:
            ConfigurationError: an option is invalid, or a callback is async.
            RequestValidationError: `relay_tokens` is a single string, or `webhook` or `extra` is invalid.
            BatchStoppedError: the input or a callback raised, or a token is invalid. The error is raised at
                the end of the batch, and has the `result`.
        """
        to_request = partial(RelayRefreshRequest, webhook=webhook, extra=extra)
        return self._many(batch.REFRESH, relay_tokens, to_request, options=options)

    @strip_traceback
    def remove_many(
        self,
        relay_tokens: Tokens[RelayRemoveRequest],
        *,
        journal: JournalProtocol | None = None,
        task_queue: TaskQueueProtocol | None = None,
        extra: Mapping[str, Any] | None = None,
        **options: Unpack[BatchOptions[Removed | Failed | Unknown]],
    ) -> Batch[Removed | Failed | Unknown, BatchResult[Removed, Unknown]]:
        """Revoke many relay tokens; called by the lender.

        https://plaid.com/docs/api/products/assets/#creditrelayremove for each of them. It is used like
        `create_many`. A removal is repeated if its response is lost. If all responses are lost, it is an
        `Unknown`, and it is safe to remove the token again.

        Args:
            relay_tokens: any iterable or async iterable, read on demand, of relay tokens or of
                `RelayRemoveRequest`.
            journal: a journal, which records the removal of tokens that it knows: the intent and the outcome.
            task_queue: as of `create_many`.
            extra: as of `remove`; applies to tokens, as a request has its own.
            options: the keyword arguments of `BatchOptions`.

        Raises:
            ConfigurationError: an option is invalid, or a callback is async.
            RequestValidationError: `relay_tokens` is a single string, or `extra` is invalid.
            BatchStoppedError: the input, the journal or a callback raised, or a token is invalid. The error
                is raised at the end of the batch, and has the `result`.
        """
        to_request = partial(RelayRemoveRequest, extra=extra)
        return self._many(
            batch.REMOVE, relay_tokens, to_request, options=options, journal=journal, task_queue=task_queue
        )

    def _many(
        self,
        operation: BatchOperation[OutcomeT, ResultT],
        requests: Iterable[Any] | AsyncIterable[Any],
        request_from_token: Callable[[str], object] | None,
        *,
        options: BatchOptions[OutcomeT],
        journal: JournalProtocol | None = None,
        task_queue: TaskQueueProtocol | None = None,
    ) -> Batch[OutcomeT, ResultT]:
        """Check the options, and return a batch of calls."""
        if task_queue is not None:
            if journal is not None or options.get("timeout") or options.get("retry"):
                raise ConfigurationError(
                    "task_queue= has a journal, and its workers have their own timeout and retry policy: "
                    "omit journal=, timeout= and retry="
                )
            options = {"concurrency": _QUEUED_CALLS, **options}
        if unknown := options.keys() - BatchOptions.__annotations__.keys():
            # The traceback of a TypeError would show the tokens in the frame of the public method.
            raise ConfigurationError(f"there is no option {min(unknown)!r}; see BatchOptions")
        settings = BatchSettings(**options)
        timeout, retry = settings.timeout, settings.retry
        total, _ = self._transport.resolve_settings(timeout, retry)
        if request_from_token is not None:
            # Check the arguments that apply to each token now, and not when the first token is read.
            request_from_token("placeholder-token")
        send = partial(self._transport.call, operation.endpoint, timeout=timeout, retry=retry)
        drain_timeout, recording = self._drain, journal
        if task_queue is not None:
            send, recording = partial(task_queue.send, operation), task_queue
            drain_timeout = task_queue.drain_seconds
        return Batch(
            operation,
            requests,
            send,
            settings,
            drain_timeout=drain_timeout,
            drains=self._transport.drains,
            observer=self._transport.observer,
            request_from_token=request_from_token,
            acquire_recorder=None if recording is None else self._recorder_function(recording, total),
            run=_run_of(recording),
        )

    def _recorder_function(
        self, journal: JournalProtocol, total: float | None, **overrides: bool | None
    ) -> AcquireRecorder:
        """Return a function that acquires a journal's recorder for a request."""
        host, legacy_host = self._hosts
        client_id = partial(self._transport.client_id, total)
        context = CallContext(host, client_id, total, legacy_host, **overrides)
        return lambda request: journal.acquire_recorder(request, context)

    async def _recorded_call(
        self,
        operation: BatchOperation[Any, Any],
        request: object,
        journal: JournalProtocol,
        *,
        timeout: float | None,  # noqa: ASYNC109  # a deadline over attempts, not around an await
        retry: RetryPolicy | None,
        **overrides: bool | None,
    ) -> Any:
        """Make a call that a journal records, and return its response.

        The call isn't bulk, so pauses count against its timeout, and declined attempts against
        `RetryPolicy.attempts`.
        """
        total, _ = self._transport.resolve_settings(timeout, retry)
        call: TrackedCall[Any] = TrackedCall(
            operation,
            request,
            partial(self._transport.call, operation.endpoint, timeout=timeout, retry=retry),
            Sending(self._drain, self._transport.drains),
            self._recorder_function(journal, total, **overrides),
            bulk=False,
            started_at=asyncio.get_running_loop().time(),
            observed=self._transport.observer.start_call(operation.endpoint.path, request, _run_of(journal)),
        )
        try:
            await call.run_alone()
        except asyncio.CancelledError:
            # The drain has ended, so the outcome is known, but no caller receives it.
            if call.outcome is not None and call.sent:
                self._late_outcomes.report(call.observed, call.outcome)
            raise
        # An error of the journal is raised only if there is no outcome; otherwise the caller receives the
        # outcome.
        if call.outcome is None:
            assert call.sending.error is not None  # noqa: S101  # without an error of the journal, the call is made
            raise call.sending.error
        if isinstance(call.outcome, Failed | Unknown):
            raise call.outcome.error
        if (watcher := watching.watcher) is not None:
            watcher.add_received(call.outcome)
        return call.outcome.response

    @strip_traceback
    def get(
        self,
        relay_token: str,
        *,
        include_insights: bool = False,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Read a shared report; called by the partner, with its own credentials.

        https://plaid.com/docs/api/products/assets/#creditrelayget, `credit_relay_get` in plaid-python.

        Args:
            relay_token: the relay token from the lender.
            include_insights: whether the report has categories, merchants and Plaid's insights.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            ReportNotReadyError: the report is still being generated; see `wait_until_ready`.
            AssetReportError: the report couldn't be generated.
            ResponseDecodeError: the response isn't what Plaid specifies; the error's `body` has the bytes.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = RelayGetRequest(relay_token, include_insights=include_insights, extra=extra)
        return self._transport.call(codec.RELAY_GET, request, timeout=timeout, retry=retry)

    @strip_traceback
    def wait_until_ready(
        self,
        relay_token: str,
        *,
        include_insights: bool = False,
        inbox: Inbox | None = None,
        asset_report_id: str | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[AssetReportGetResponse]:
        """Wait until a shared report is generated, and read it; called by the partner.

        It polls immediately, after 1, 3, 6 and 10 seconds, and then every 5 seconds, within Plaid's limit of
        15 requests a minute for one report. With `inbox=`, it polls once the inbox has the webhook that the
        report is ready or has failed. Until then it polls less often: after 10 seconds, every 30 seconds. See
        `get` for Plaid's page and the name in plaid-python.

        Args:
            relay_token: the relay token from the lender.
            include_insights: whether the report has categories, merchants and Plaid's insights.
            inbox: the inbox that receives the report's webhooks; it requires `asset_report_id`.
            asset_report_id: the ID of the report, such as the one that `refresh` returned, because a webhook
                has the ID of its report, and no token.
            timeout: seconds for all requests; the default is the client's `Timeouts.total`.
            retry: the retry policy, whose `attempts` limits the consecutive failed requests; the default is
                the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            RequestValidationError: an argument is invalid, or `inbox` or `asset_report_id` is missing.
            ReportNotReadyError: the report is still being generated, and no time is left to poll again.
            AssetReportError: the report couldn't be generated.
            ResponseDecodeError: the response isn't what Plaid specifies; the error's `body` has the bytes.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = RelayGetRequest(relay_token, include_insights=include_insights, extra=extra)
        return poll_until_ready(
            self._transport,
            codec.RELAY_GET,
            request,
            timeout=timeout,
            retry=retry,
            wait_for_webhook=webhook_waiter(inbox, asset_report_id),
        )

    @strip_traceback
    def get_pdf(
        self,
        relay_token: str,
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[PdfResponse]:
        """Read a shared report as a PDF; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelaypdfget (beta), `credit_relay_pdf_get` in
        plaid-python.

        Args:
            relay_token: the relay token from the lender.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            ReportNotReadyError: the report is still being generated.
            ResponseDecodeError: the response isn't a complete PDF.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = RelayPdfGetRequest(relay_token, extra=extra)
        return self._transport.call(codec.RELAY_PDF_GET, request, timeout=timeout, retry=retry)

    @strip_traceback
    def download_pdf(
        self,
        relay_token: str,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[PdfFile]:
        """Save a shared report as a PDF, written as it arrives; called by the partner.

        The file is created completely or not at all, with mode 0600. See `get_pdf` for Plaid's page and the
        name in plaid-python.

        Args:
            relay_token: the relay token from the lender.
            path: the file to create; it must not exist.
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
        request = RelayPdfGetRequest(relay_token, extra=extra)
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
        extra: Mapping[str, Any] | None = None,
    ) -> Call[RelayRefreshResponse]:
        """Refresh a shared report with recent data; called by the partner.

        https://plaid.com/docs/api/products/assets/#creditrelayrefresh, `credit_relay_refresh` in
        plaid-python. Each call creates a new report, so by default it is repeated only if no attempt can have
        been executed, as with `create`.

        Args:
            relay_token: the relay token from the lender.
            webhook: an http(s) URL to which Plaid reports that the new report is ready.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Raises:
            OutcomeUnknownError: a new report may exist.
            PlaidRelayError: no new report was created; see the class of the error.
        """
        request = RelayRefreshRequest(relay_token, webhook=webhook, extra=extra)
        return self._transport.call(codec.RELAY_REFRESH, request, timeout=timeout, retry=retry)

    @strip_traceback
    def remove(
        self,
        relay_token: str,
        *,
        journal: JournalProtocol | None = None,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[RelayRemoveResponse]:
        """Revoke a relay token; called by the lender.

        https://plaid.com/docs/api/products/assets/#creditrelayremove, `credit_relay_remove` in plaid-python.
        If the response to an attempt was lost and the next attempt finds no such token, the response has
        `removed=True, inferred=True`.

        Args:
            relay_token: the relay token from `create`.
            journal: a journal, which records the removal if it knows the token, and then no longer returns
                the token for its pair.
            timeout: seconds for all attempts of the call; the default is the client's `Timeouts.total`.
            retry: the retry policy; the default is the client's.
            extra: fields of the body that Plaid has added since this release; see `PlaidRequest`.

        Returns:
            The response, whose `removed` is False if Plaid says that the token wasn't removed. With a
            journal, that is a `PlaidAPIError` instead.

        Raises:
            JournalError: the journal can't be read or written; nothing was sent that isn't recorded.
            PlaidRelayError: the call failed; see the class of the error.
        """
        request = RelayRemoveRequest(relay_token, extra=extra)
        if journal is not None:
            return self._recorded_call(batch.REMOVE, request, journal, timeout=timeout, retry=retry)
        return self._transport.call(codec.RELAY_REMOVE, request, timeout=timeout, retry=retry)


def _run_of(journal: JournalProtocol | None) -> str | None:
    """Return the run name of a journal, for log records; another implementation may have none."""
    run = getattr(journal, "run", None)
    return run if isinstance(run, str) else None
