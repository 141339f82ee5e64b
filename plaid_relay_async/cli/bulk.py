"""Runs a batch for the command, and writes one outcome for each row that was read from the input.

This holds for each reason why a batch ends: a signal, an invalid row, an error that all requests share, or an
output or a journal that can't be written. A row whose request has no outcome is written as `not_attempted`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, evolve, field

from plaid_relay_async.cli.messages import ExitStatus
from plaid_relay_async.cli.output import BrokenOutputError, OutcomeWriter, failure_reason, outcome_fields
from plaid_relay_async.cli.progress import OutcomeCounts, ProgressDisplay
from plaid_relay_async.cli.row_iterators import FileRows, PipedRows
from plaid_relay_async.cli.rows import BadInputError
from plaid_relay_async.cli.signals import Signals
from plaid_relay_async.client import RelayClient
from plaid_relay_async.config import RetryPolicy
from plaid_relay_async.error_codes import affects_report
from plaid_relay_async.errors import (
    BatchStoppedError,
    ConfigurationError,
    JournalError,
    PlaidRelayError,
    reason_of,
)
from plaid_relay_async.outcomes import Failed, Unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plaid_relay_async.batch import Batch, BatchResult, Progress
    from plaid_relay_async.journal import Journal


@contextlib.asynccontextmanager
async def recorded_in(journal: Journal | None) -> AsyncIterator[dict[str, Any]]:
    """Open a journal, if there is one, and yield the arguments of a batch that it records."""
    async with journal or contextlib.nullcontext():
        yield {"journal": journal}


@define(eq=False)
class BatchRunner:
    """Sends one batch of creations, writes an outcome for each row, and reports progress and problems.

    Subclasses send other operations.

    Attributes:
        outcome_kinds: the kinds of outcomes, in the order of the closing table.
        client: the client, which is not open yet.
        rows: the rows of the input.
        output: receives each outcome.
        display: shows progress and messages on standard error.
        signals: the first signal starts a drain, the second one abandons it.
        concurrency: the maximum number of concurrent calls.
        retry: a policy in place of the client's.
        recording: opens what records the calls, and yields the arguments of the batch for it.
        print_errors: whether the text of each error is printed.
    """

    outcome_kinds: ClassVar[tuple[str, ...]] = ("created", "failed", "unknown", "not_attempted")

    client: RelayClient
    rows: FileRows[Any] | PipedRows[Any]
    output: OutcomeWriter
    display: ProgressDisplay
    signals: Signals
    concurrency: int
    retry: RetryPolicy | None = None
    recording: AbstractAsyncContextManager[dict[str, Any]] = field(factory=lambda: contextlib.nullcontext({}))
    print_errors: bool = False
    _interruptions: int = 0
    _draining: bool = False
    _journal_error: PlaidRelayError | None = field(default=None, init=False)
    _counts: Counter[str] = field(factory=Counter, init=False)
    _error_codes: Counter[str] = field(factory=Counter, init=False)
    # Requests that were not sent because their report has failed, by the code of that failure.
    _unsent_by_code: Counter[str] = field(factory=Counter, init=False)
    _error_by_code: dict[str, PlaidRelayError] = field(factory=dict, init=False)

    async def __call__(self) -> OutcomeCounts:
        """Send the batch, write its outcomes, and print what a user must know; the caller shows the table.

        Returns:
            The number of outcomes of each kind.

        Raises:
            JournalError: the journal can't be opened; nothing was sent.
            NotSentError: the Temporal server can't be used; nothing was sent.
            ConfigurationError: the journal has another key; nothing was sent.
            Exception: a bug; the tokens that were created before it are in the output.
        """
        async with self.recording as arguments, self.client:
            batch = self._create_batch(arguments)
            # In a separate task, because a signal cancels the sending and not the writing of the remaining
            # rows.
            sending = asyncio.create_task(self._send_all(batch))
            with self.signals.handled_by(partial(self._on_signal, batch, sending)):
                display_task = asyncio.create_task(
                    self.display.show_progress(partial(self._written_progress, batch))
                )
                await asyncio.wait([sending])  # unlike `await sending`, raises nothing
                display_task.cancel()
                await asyncio.wait([display_task])
                self._journal_error = _journal_error_of(sending)
                await self._write_remaining(batch.result)
        self._print_explanations(batch.result)
        # An OSError was printed above. Anything else is a bug.
        if self.output.error is not None and not isinstance(self.output.error, OSError):
            raise self.output.error
        return OutcomeCounts(
            Counter({kind: self._counts[kind] for kind in self.outcome_kinds}), self._error_codes
        )

    # --------------------------------------------------------------------------- overridden by subclasses

    def _create_batch(self, arguments: dict[str, Any]) -> Batch[Any, Any]:
        """Create the batch, which passes each outcome to `_on_outcome`."""
        return self.client.relay.create_many(
            self._iter_requests(),
            concurrency=self.concurrency,
            retry=self.retry,
            on_outcome=self._on_outcome,
            **arguments,
        )

    async def _iter_requests(self) -> AsyncIterator[Any]:
        """Yield the requests of the remaining rows."""
        async for row in self._remaining_rows():
            yield row

    def _output_fields(self, outcome: Any) -> dict[str, Any]:
        """Return the fields of an output line.

        Args:
            outcome: an outcome, or a request that was not attempted.
        """
        request = getattr(outcome, "request", outcome)
        return outcome_fields(outcome, request.secondary_client_id)

    def _output_problem(self) -> str | None:
        """Return why no further outcome can be written or recorded, or `None`."""
        if self.output.error is not None:
            return f"the output can't be written: {failure_reason(self.output.error)}"
        return None if self._journal_error is None else str(self._journal_error)

    # ----------------------------------------------------------------------------- while the batch runs

    async def _send_all(self, batch: Batch[Any, Any]) -> None:
        async with batch as outcomes:
            # `_on_outcome` has already written the outcome. Waiting for the output here is backpressure: the
            # batch sends nothing more while the reader of the output is slow.
            async for _ in outcomes:
                await self.output.drain()
                if self.output.error is not None:
                    # Otherwise the batch, when it drains, would wait for the next row of a pipe.
                    self.rows.close()
                    break
            self._draining = True

    async def _remaining_rows(self) -> AsyncIterator[Any]:
        if isinstance(self.rows, PipedRows):
            async for row in self.rows:
                yield row
        else:
            for row in self.rows:
                yield row

    def _on_outcome(self, outcome: Any) -> None:
        self._write_line(self._output_fields(outcome), journalled=outcome.journalled)
        if (cause := _shared_report_error(outcome)) is not None:
            code = reason_of(cause)
            self._unsent_by_code[code] += 1
            self._error_by_code.setdefault(code, cause)
        elif self.print_errors and isinstance(outcome, Failed | Unknown):
            self.display.print_message(str(outcome.error))
        # An exception in `on_outcome` stops the batch: it sends nothing that could not be written.
        if self._output_problem() is not None:
            raise BrokenOutputError

    def _write_line(self, fields: dict[str, Any], *, journalled: bool = False) -> None:
        self._counts[fields["outcome"]] += 1
        if fields["error_code"] is not None:
            self._error_codes[fields["error_code"]] += 1
        self.output.write(fields, journalled=journalled)

    def _written_progress(self, batch: Batch[Any, Any]) -> Progress:
        """Return the progress with counts of written outcomes, which include rows that needed no request."""
        failed, unknown = self._counts["failed"], self._counts["unknown"]
        succeeded = self._counts.total() - failed - unknown
        return evolve(batch.progress, succeeded=succeeded, failed=failed, unknown=unknown)

    def _on_signal(self, batch: Batch[Any, Any], sending: asyncio.Task[None]) -> None:
        self._interruptions += 1
        self.rows.close()
        progress = self._written_progress(batch)
        if self._interruptions == 1:
            self.display.print_message(
                f"stopping: {progress.done} done, {progress.pending} pending; "
                "press Ctrl-C again to abandon the calls in flight"
            )
            # The cancellation leaves `async with batch`, which drains. If it drains already, it isn't
            # interrupted.
            if not self._draining:
                sending.cancel()
        elif self._interruptions == 2:
            self.display.print_message(
                f"abandoning the calls in flight: {progress.done} done, {progress.pending} abandoned"
            )
            self.output.stop_waiting()
            batch.abandon()

    # -------------------------------------------------------------------------------- after the batch

    async def _write_remaining(self, result: BatchResult[Any, Any]) -> None:
        """Write the rows that were not attempted: those that the batch returned, and those not read yet."""
        # The batch has read these requests from the input without sending them.
        for request in result.not_attempted:
            await self._write_not_attempted(request)
        # If nothing can be written, there is no reason to wait for the other rows of a pipe.
        if self.output.error is not None:
            self.rows.close()
        with contextlib.suppress(BadInputError):  # `rows.problem` describes it
            async for request in self._iter_requests():
                await self._write_not_attempted(request)
        await self.output.drain()

    async def _write_not_attempted(self, request: object) -> None:
        self._write_line(self._output_fields(request))
        await self.output.drain()

    def _print_explanations(self, result: BatchResult[Any, Any]) -> None:
        if self.rows.problem is not None:
            self.display.print_message(self.rows.problem.text, "no row after it was sent")
        elif (problem := self._output_problem()) is not None:
            self.display.print_message(problem)
        elif result.stopped_by is not None and not self.print_errors:
            self.display.print_message(
                f"stopped early, because all requests share this error: {result.stopped_by}"
            )
        for code, count in self._unsent_by_code.items():
            self.display.print_message(f"{count} requests: {self._error_by_code[code]}")
        if not self.rows.exhausted:
            self.display.print_message("the input was not read to its end")

    def exit_status(self, counts: OutcomeCounts) -> ExitStatus:
        """Return the exit status of the batch."""
        if counts.by_outcome["unknown"] or self.output.token_lost:
            return ExitStatus.UNKNOWN
        if self.rows.problem is not None:
            return ExitStatus.USAGE
        incomplete = (
            counts.by_outcome["failed"] or counts.by_outcome["not_attempted"] or not self.rows.exhausted
        )
        return ExitStatus.FAILED if incomplete or self._output_problem() is not None else ExitStatus.DONE


def _shared_report_error(outcome: object) -> PlaidRelayError | None:
    """Return the error of the report because of which a request wasn't sent, or `None`."""
    # After a few equal errors of a report, the batch fails its other requests with that error and without an
    # attempt.
    if not isinstance(outcome, Failed | Unknown) or outcome.attempts:
        return None
    error = outcome.error if isinstance(outcome, Failed) else outcome.error.__cause__
    return error if isinstance(error, PlaidRelayError) and not error.sent and affects_report(error) else None


def _journal_error_of(sending: asyncio.Task[None]) -> PlaidRelayError | None:
    """Return the error of the journal that ended the batch, or `None`.

    The command's own cancellation, an invalid row and a failed output are expected, and reported elsewhere.

    Raises:
        Exception: the batch ended with an unexpected error.
    """
    error = None if sending.cancelled() else sending.exception()
    # The batch wraps an error of its input, of `on_outcome` or of the journal.
    if isinstance(error, BatchStoppedError):
        error = error.__cause__
    # A ConfigurationError appears here if the journal's keys decrypt only some of its tokens.
    if isinstance(error, JournalError | ConfigurationError):
        return error
    if error is not None and not isinstance(error, BadInputError | BrokenOutputError):
        raise error
    return None
