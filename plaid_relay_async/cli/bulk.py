"""Runs a batch for the command: every row gets an outcome, whatever comes in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, evolve, field

from plaid_relay_async.cli.board import Board, Tally
from plaid_relay_async.cli.output import BrokenOutputError, Sink, reason_for, told
from plaid_relay_async.cli.rows import BadInputError, FileRows, PipedRows
from plaid_relay_async.cli.signals import Signals
from plaid_relay_async.cli.status import Exit
from plaid_relay_async.client import RelayClient
from plaid_relay_async.config import RetryPolicy
from plaid_relay_async.errors import (
    BatchStoppedError,
    ConfigurationError,
    JournalError,
    PlaidRelayError,
    concerns_report,
    reason_of,
)
from plaid_relay_async.outcomes import Failed, Unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plaid_relay_async.batch import Batch
    from plaid_relay_async.journal import Journal  # noqa: TC004  # it comes with an extra
    from plaid_relay_async.outcomes import BatchResult, Progress


@define(eq=False)
class Run:
    """One batch, of creations unless a subclass says otherwise, from its first row to its table.

    Attributes:
        kinds: the outcomes that there may be, as the table shows them.
        client: not open yet.
        rows: what to do.
        output: takes each outcome.
        board: tells people.
        signals: the first drains, the second abandons the drain.
        concurrency: so many calls at once.
        retry: in place of the client's policy.
        journal: not open yet, if there is one.
        aloud: whether the text of each error is told.
    """

    kinds: ClassVar[tuple[str, ...]] = ("created", "failed", "unknown", "not_attempted")

    client: RelayClient
    rows: FileRows[Any] | PipedRows[Any]
    output: Sink
    board: Board
    signals: Signals
    concurrency: int
    retry: RetryPolicy | None = None
    journal: Journal | None = None
    aloud: bool = False
    _interruptions: int = 0
    _draining: bool = False
    _journal_trouble: PlaidRelayError | None = field(default=None, init=False)
    _counts: Counter[str] = field(factory=Counter, init=False)
    _error_codes: Counter[str] = field(factory=Counter, init=False)
    _unsent: Counter[str] = field(factory=Counter, init=False)  # by the code that stopped their report
    _causes: dict[str, PlaidRelayError] = field(factory=dict, init=False)

    async def __call__(self) -> Tally:
        """Send, write down, and tell what was out of the ordinary; the table is the caller's to show.

        Raises:
            JournalError: the journal can't be opened; nothing was sent.
            ConfigurationError: its key is another; nothing was sent.
            Exception: a bug; what was created until then is in the output.
        """
        async with self.journal or contextlib.nullcontext(), self.client:
            batch = self._batch()
            sending = asyncio.create_task(self._send(batch))
            with self.signals.told(partial(self._interrupt, batch, sending)):
                following = asyncio.create_task(self.board.follow(partial(self._progress, batch)))
                await asyncio.wait([sending])
                following.cancel()
                await asyncio.wait([following])
                self._journal_trouble = _trouble_of(sending)
                await self._write_rest(batch.result)
        self._explain(batch.result)
        if self.output.trouble is not None and not isinstance(self.output.trouble, OSError):
            raise self.output.trouble
        return Tally(Counter({kind: self._counts[kind] for kind in self.kinds}), self._error_codes)

    # --------------------------------------------------------------------------- what a subclass may change

    def _batch(self) -> Batch[Any]:
        """Give the batch, which tells `_write` of each outcome."""
        return self.client.relay.create_many(
            self._requests(),
            concurrency=self.concurrency,
            journal=self.journal,
            retry=self.retry,
            on_outcome=self._write,
        )

    async def _requests(self) -> AsyncIterator[Any]:
        """Give the requests of the rows that are left."""
        async for row in self._rows_left():
            yield row

    def _line(self, outcome: Any) -> dict[str, Any]:
        """Give the fields of an outcome's line; a bare request is one that was not attempted."""
        request = getattr(outcome, "request", outcome)
        return told(outcome, request.secondary_client_id)

    def _broken(self) -> str | None:
        """Say why no more can be written down."""
        if self.output.trouble is not None:
            return f"the output takes no more: {reason_for(self.output.trouble)}"
        return None if self._journal_trouble is None else str(self._journal_trouble)

    # ---------------------------------------------------------------------------------------- on the way

    async def _send(self, batch: Batch[Any]) -> None:
        async with batch as outcomes:
            async for _ in outcomes:  # each was written before it came here
                await self.output.settle()
                if self.output.trouble is not None:
                    self.rows.close()  # a drain would wait for the next row of a pipe
                    break
            self._draining = True

    async def _rows_left(self) -> AsyncIterator[Any]:
        if isinstance(self.rows, PipedRows):
            async for row in self.rows:
                yield row
        else:
            for row in self.rows:
                yield row

    def _write(self, outcome: Any) -> None:
        self._put(self._line(outcome), journalled=outcome.journalled)
        if (cause := _stopped_by(outcome)) is not None:
            code = reason_of(cause)
            self._unsent[code] += 1
            self._causes.setdefault(code, cause)
        elif self.aloud and isinstance(outcome, Failed | Unknown):
            self.board.say(str(outcome.error))
        if self._broken() is not None:
            raise BrokenOutputError

    def _put(self, line: dict[str, Any], *, journalled: bool = False) -> None:
        self._counts[line["outcome"]] += 1
        if line["error_code"] is not None:
            self._error_codes[line["error_code"]] += 1
        self.output.write(line, journalled=journalled)

    def _progress(self, batch: Batch[Any]) -> Progress:
        """Where the batch stands by what is written: a row may have its outcome without it."""
        failed, unknown = self._counts["failed"], self._counts["unknown"]
        succeeded = self._counts.total() - failed - unknown
        return evolve(batch.progress, succeeded=succeeded, failed=failed, unknown=unknown)

    def _interrupt(self, batch: Batch[Any], sending: asyncio.Task[None]) -> None:
        self._interruptions += 1
        self.rows.close()
        now = self._progress(batch)
        if self._interruptions == 1:
            self.board.say(
                f"stopping: {now.done} done, {now.in_flight} in flight; press Ctrl-C again to stop at once"
            )
            if not self._draining:
                sending.cancel()
        elif self._interruptions == 2:
            self.board.say(f"stopping at once: {now.done} done, {now.in_flight} in flight are given up")
            self.output.hurry()
            batch.abandon()

    # ----------------------------------------------------------------------------------------- afterwards

    async def _write_rest(self, result: BatchResult[Any]) -> None:
        """Write down what was not attempted: what the batch gave back, and what nobody has read yet."""
        for request in result.not_attempted:
            await self._write_unsent(request)
        if self.output.trouble is not None:
            self.rows.close()
        with contextlib.suppress(BadInputError):  # the rows know which
            async for request in self._requests():
                await self._write_unsent(request)
        await self.output.settle()

    async def _write_unsent(self, request: object) -> None:
        self._put(self._line(request))
        await self.output.settle()

    def _explain(self, result: BatchResult[Any]) -> None:
        if self.rows.problem is not None:
            self.board.say(self.rows.problem.text, "from there on nothing was sent")
        elif (broken := self._broken()) is not None:
            self.board.say(broken)
        elif result.stopped_by is not None and not self.aloud:
            self.board.say(f"stopped early, for all would meet this: {result.stopped_by}")
        for code, count in self._unsent.items():
            self.board.say(f"{count} requests: {self._causes[code]}")
        if not self.rows.ended:
            self.board.say("the input was not read to its end")

    def status(self, tally: Tally) -> Exit:
        """Give the exit status that a batch deserves."""
        if tally.counts["unknown"] or self.output.lost:
            return Exit.UNKNOWN
        if self.rows.problem is not None:
            return Exit.USAGE
        partly = tally.counts["failed"] or tally.counts["not_attempted"] or not self.rows.ended
        return Exit.FAILED if partly or self._broken() is not None else Exit.DONE


def _stopped_by(outcome: object) -> PlaidRelayError | None:
    """Return the error of the report because of which a request wasn't sent, or `None`."""
    if not isinstance(outcome, Failed | Unknown) or outcome.attempts:
        return None
    error = outcome.error if isinstance(outcome, Failed) else outcome.error.__cause__
    return error if isinstance(error, PlaidRelayError) and not error.sent and concerns_report(error) else None


def _trouble_of(sending: asyncio.Task[None]) -> PlaidRelayError | None:
    """Give what ended it on the journal's side, and raise what isn't foreseen.

    Our own interruption is, and a row or an output that can't pass.
    """
    error = None if sending.cancelled() else sending.exception()
    if isinstance(error, BatchStoppedError):
        error = error.__cause__
    if isinstance(error, JournalError | ConfigurationError):  # its keys may open some tokens, and not others
        return error
    if error is not None and not isinstance(error, BadInputError | BrokenOutputError):
        raise error
    return None
