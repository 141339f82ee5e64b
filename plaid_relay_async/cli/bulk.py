"""Runs a batch for the command: every row gets an outcome, whatever comes in between."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from attrs import define

from plaid_relay_async.cli.board import Board, Tally
from plaid_relay_async.cli.output import BrokenOutputError, Sink, told
from plaid_relay_async.cli.rows import BadInputError, FileRows, PipedRows
from plaid_relay_async.cli.signals import Signals
from plaid_relay_async.cli.status import Exit
from plaid_relay_async.client import RelayClient
from plaid_relay_async.config import RetryPolicy
from plaid_relay_async.errors import BatchStoppedError
from plaid_relay_async.outcomes import Created, Failed, Unknown

if TYPE_CHECKING:
    from plaid_relay_async.batch import Batch
    from plaid_relay_async.models import RelayCreateRequest
    from plaid_relay_async.outcomes import BatchResult, Outcome

# Long enough for the first cancellation to have arrived: two at once would count as one.
_BETWEEN_CANCELLATIONS = 0.02


@define(eq=False)
class Run:
    """One batch, from its first row to its table.

    Attributes:
        client: not open yet.
        rows: what to create.
        output: takes each outcome.
        board: tells people.
        signals: the first drains, the second cancels.
        concurrency: so many calls at once.
        retry: in place of the client's policy.
        aloud: whether the text of each error is told.
    """

    client: RelayClient
    rows: FileRows | PipedRows
    output: Sink
    board: Board
    signals: Signals
    concurrency: int
    retry: RetryPolicy | None = None
    aloud: bool = False
    _interruptions: int = 0
    _draining: bool = False
    _not_attempted: int = 0

    async def __call__(self) -> Tally:
        """Send, write down, and tell what was out of the ordinary; the table is the caller's to show.

        Raises:
            Exception: a bug; what was created until then is in the output.
        """
        async with self.client:
            batch = self.client.relay.create_many(
                self.rows, concurrency=self.concurrency, retry=self.retry, on_outcome=self._write
            )
            sending = asyncio.create_task(self._send(batch))
            with self.signals.told(partial(self._interrupt, batch, sending)):
                following = asyncio.create_task(self.board.follow(lambda: batch.progress))
                await asyncio.wait([sending])
                following.cancel()
                await asyncio.wait([following])
                _raise_bugs(sending)
                await self._write_rest(batch.result)
        self._explain(batch.result)
        return self._tally(batch.result)

    # ---------------------------------------------------------------------------------------- on the way

    async def _send(self, batch: Batch[Created]) -> None:
        async with batch as outcomes:
            async for _ in outcomes:  # each was written before it came here
                await self.output.settle()
                if self.output.trouble is not None:
                    break
            self._draining = True

    def _write(self, outcome: Outcome) -> None:
        self.output.write(told(outcome))
        if self.aloud and isinstance(outcome, Failed | Unknown):
            self.board.say(str(outcome.error))
        if self.output.trouble is not None:
            raise BrokenOutputError

    def _interrupt(self, batch: Batch[Created], sending: asyncio.Task[None]) -> None:
        self._interruptions += 1
        self.rows.close()
        now = batch.progress
        if self._interruptions == 1:
            self.board.say(
                f"stopping: {now.done} done, {now.in_flight} in flight; press Ctrl-C again to stop at once"
            )
            if not self._draining:
                sending.cancel()
        elif self._interruptions == 2:
            self.board.say(f"stopping at once: {now.done} done, {now.in_flight} in flight are given up")
            self.output.hurry()
            asyncio.get_running_loop().call_later(_BETWEEN_CANCELLATIONS, sending.cancel)

    # ----------------------------------------------------------------------------------------- afterwards

    async def _write_rest(self, result: BatchResult[Created]) -> None:
        """Write down what was not attempted: what the batch gave back, and what nobody has read yet."""
        for request in result.not_attempted:
            await self._write_unsent(request)
        if self.output.trouble is not None:
            self.rows.close()
        try:
            if isinstance(self.rows, PipedRows):
                async for request in self.rows:
                    await self._write_unsent(request)
            else:
                for request in self.rows:
                    await self._write_unsent(request)
        except BadInputError:
            pass  # the rows know which
        await self.output.settle()

    async def _write_unsent(self, request: RelayCreateRequest) -> None:
        self._not_attempted += 1
        self.output.write(told(request))
        await self.output.settle()

    def _tally(self, result: BatchResult[Created]) -> Tally:
        return Tally(
            result.counts["created"],
            result.counts["failed"],
            result.counts["unknown"],
            self._not_attempted,
            result.error_codes,
        )

    def _explain(self, result: BatchResult[Created]) -> None:
        if self.rows.problem is not None:
            self.board.say(f"{self.rows.problem.text}\nfrom there on nothing was sent")
        elif self.output.trouble is not None:
            self.board.say(f"the output takes no more: {self.output.trouble.strerror}")
        elif result.stopped_by is not None and not self.aloud:
            self.board.say(f"stopped early, for every partner would meet this: {result.stopped_by}")
        for line in self.output.unwritten():
            self.board.say(line)
        if not self.rows.ended:
            self.board.say("the input was not read to its end")

    def status(self, tally: Tally) -> Exit:
        """Give the exit status that a batch deserves."""
        if tally.unknown:
            return Exit.UNKNOWN
        if self.rows.problem is not None:
            return Exit.USAGE
        partly = tally.failed or tally.not_attempted or not self.rows.ended
        return Exit.FAILED if partly or self.output.trouble is not None else Exit.DONE


def _raise_bugs(sending: asyncio.Task[None]) -> None:
    """Raise what isn't foreseen; a row or an output that can't pass, and our own interruption, are."""
    error = None if sending.cancelled() else sending.exception()
    if isinstance(error, BatchStoppedError):
        error = error.__cause__
    if error is not None and not isinstance(error, BadInputError | BrokenOutputError):
        raise error
