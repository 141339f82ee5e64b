"""Recorders: what a call does with the journal, from the look-up of its pair to the recorded outcome.

A recorder holds its pair in memory, so that calls of this process take turns. The database decides between
processes: an intent is a compare-and-set on the rows that the decision was based on. In the database, at most
one row holds a pair (`Row.holds_pair`), also after its call has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, evolve, field, frozen

from plaid_relay_async.batch import REMOVE, LostRaceError
from plaid_relay_async.display import escape_unprintable
from plaid_relay_async.errors import DuplicateRequestError, JournalError, OutcomeUnknownError
from plaid_relay_async.journal.database import JOURNAL
from plaid_relay_async.journal.decisions import (
    Decision,
    PairPolicy,
    RejectDuplicate,
    Row,
    ServeRecorded,
    StartAttempt,
    WaitForOther,
    decide,
    error_columns,
    first_in_doubt,
)
from plaid_relay_async.journal.encryption import Digests, Keyring
from plaid_relay_async.journal.schema import CreationState
from plaid_relay_async.journal.workers import ClockReading
from plaid_relay_async.journal.writer import (
    ASSUMED_NEW,
    InsertCreation,
    IntentGranted,
    LeaseExpired,
    PairLookup,
    RecordIntent,
    RecordOutcome,
    RecordRemovalIntent,
    RecordRemovalOutcome,
    RenamePair,
    UndoIntent,
    Writer,
    WriteResult,
    insert_command,
    outcome_command,
)
from plaid_relay_async.models import (
    RelayCreateRequest,
    RelayCreateResponse,
    RelayRemoveRequest,
    RelayRemoveResponse,
)
from plaid_relay_async.outcomes import Created, Failed, Outcome, Removed, Unknown
from plaid_relay_async.redaction import Hidden, redact_identifier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RecorderT = TypeVar("RecorderT", bound="_PairRecorder")
_logger = logging.getLogger("plaid_relay_async.journal")
_POLL_SECONDS = (0.02, 1.0)  # the first and the longest wait between two look-ups
_ASSUME_NEW_AFTER = 100  # consecutive look-ups of new pairs


@frozen
class IntentKey:
    """Identifies the intent of an attempt, in all processes.

    Attributes:
        row: the ID of its row.
        worker: the worker that recorded it; the fencing token of its outcome.
    """

    row: int
    worker: int


class _TokenMovedError(Exception):
    """The token was forgotten, or its pair was renamed, while its removal waited for the pair."""


@define(eq=False, repr=False)
class CallCoordinator:
    """Coordinates the calls of this process that use one opened journal.

    Attributes:
        writer: the worker's commands and look-ups.
        digests: computes the digests of pairs and tokens.
        keyring: decrypts recorded tokens.
        policy: the journal's settings; a call may override some of them.
    """

    writer: Writer
    digests: Digests
    keyring: Keyring
    policy: PairPolicy
    _held_pairs: dict[str, asyncio.Future[None]] = field(factory=dict, init=False)
    _in_flight: set[str] = field(factory=set, init=False)
    _drain_task: asyncio.Task[None] | None = field(default=None, init=False)
    _consecutive_new: int = field(default=0, init=False)

    async def acquire_creation(
        self, request: RelayCreateRequest, policy: PairPolicy, namespace: str, former_namespace: str | None
    ) -> CreationRecorder:
        """Wait until no other call is in progress for the pair, and return a recorder that holds the pair.

        Args:
            request: the creation.
            policy: the settings for this call.
            namespace: the namespace of its pair.
            former_namespace: the namespace in which earlier versions recorded the pair, if it was a different
                one.

        Raises:
            ConfigurationError: no key decrypts the pair's token.
            JournalError: the journal can't be read or written.
        """
        partner = request.secondary_client_id
        pair = self.digests.pair_digest(namespace, request.report_tokens, partner)
        former_pair = (
            None
            if former_namespace is None
            else self.digests.pair_digest(former_namespace, request.report_tokens, partner)
        )
        return await self._acquire_pair(
            pair, lambda: self._create_creation_recorder(request, policy, pair, former_pair)
        )

    async def acquire_removal(self, request: RelayRemoveRequest) -> RemovalRecorder | NullRecorder:
        """Wait until no other call is in progress for the token's pair, and return a recorder that holds it.

        Returns:
            A recorder that records nothing if the journal doesn't have the token.

        Raises:
            JournalError: the journal can't be read or written.
        """
        await self.writer.write_pending()
        digest = self.digests.token_digest(request.relay_token)
        while (row := (await self.writer.look_up_token(digest)).own) is not None:
            with contextlib.suppress(_TokenMovedError):
                return await self._acquire_pair(
                    row.pair, partial(self._create_removal_recorder, request, digest, row.pair)
                )
        return NullRecorder()

    async def _acquire_pair(
        self, pair: str, create_recorder: Callable[[], Awaitable[RecorderT | None]]
    ) -> RecorderT:
        wait, longest_wait = _POLL_SECONDS
        while True:
            await self._hold_pair(pair)
            try:
                await self.writer.write_pending()
                recorder = await create_recorder()
            except BaseException:
                self.release_pair(pair)
                raise
            if recorder is not None:
                return recorder
            # Another process has a call in progress for the pair, or its request may still be in flight. Only
            # polling shows when that has ended. A renamed pair is looked up again in the same way.
            self.release_pair(pair)
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest_wait)

    async def _hold_pair(self, pair: str) -> None:
        while (other := self._held_pairs.get(pair)) is not None:
            await asyncio.wait([other])
        self._held_pairs[pair] = asyncio.get_running_loop().create_future()

    def release_pair(self, pair: str) -> None:
        """Let the next call of this process have the pair."""
        self._in_flight.discard(pair)
        self._held_pairs.pop(pair).set_result(None)

    def add_in_flight(self, pair: str) -> None:
        """Count a pair as in flight until it is released.

        Raises:
            JournalError: the journal is being closed.
        """
        if self.writer.closing:
            raise JOURNAL.closed_error()
        self._in_flight.add(pair)
        if self._drain_task is None or self._drain_task.done():
            self._drain_task = asyncio.create_task(self._keep_loop_running())

    async def _keep_loop_running(self) -> None:
        """Keep the event loop running until the outcome of each call in flight is recorded.

        `asyncio.run` cancels all tasks at its end and waits for them, but not for tasks that they start then.
        This task ignores its cancellation. It still ends, because the calls that it waits for are cancelled
        as well, and the writes have a time limit.
        """
        while self._in_flight or not self.writer.idle:
            with contextlib.suppress(asyncio.CancelledError):
                await self._drain()

    async def _drain(self) -> None:
        while self._in_flight:
            await asyncio.wait([self._held_pairs[pair] for pair in self._in_flight])
        await self.writer.drain()

    async def close(self, deadline: float) -> None:
        """Accept no further intent, drain, and deregister the worker.

        It may be cancelled, and called again.

        Args:
            deadline: the time of the event loop's clock at which draining stops.
        """
        self.writer.stop_intents()
        with contextlib.suppress(TimeoutError, JournalError):  # each call gets the JournalError of its write
            async with asyncio.timeout_at(deadline):
                await self._drain()
                await self.writer.write_pending()
        await self.writer.close(drained=not self._in_flight)

    async def _create_creation_recorder(
        self, request: RelayCreateRequest, policy: PairPolicy, pair: str, former_pair: str | None
    ) -> CreationRecorder | None:
        """Return a recorder, or `None` if the pair must be looked up again later."""
        lookup = await (
            self._look_up_or_assume_new(pair, policy)
            if former_pair is None
            else self.writer.look_up_pair(pair)
        )
        decision = _decide(lookup, policy)
        if former_pair is not None:
            # An earlier version may have recorded the pair under the host as it was typed.
            former_lookup = await self.writer.look_up_pair(former_pair)
            if _both_have_tokens(lookup, former_lookup):
                decision = _decide_on_two_tokens(lookup, former_lookup, request.secondary_client_id)
            elif former_lookup.own is not None or former_lookup.holding is not None:
                await self.writer.submit(RenamePair(former_pair, pair))
                return None  # the next look-up finds the renamed rows
        if isinstance(decision, WaitForOther):
            return None
        if isinstance(decision, StartAttempt):
            values = self.writer.row_values(pair, request.secondary_client_id, decision.row)
            insert = insert_command(values)
            # The call doesn't wait for this write, which lists the pair as not attempted until the intent
            # replaces it.
            insert_write = self.writer.submit(insert) if decision.row is None else None
            row_in_doubt = first_in_doubt(decision.retire)
            return CreationRecorder(
                self,
                pair,
                RecordIntent(values, decision.retire),
                UndoIntent(decision.values_to_restore(self.policy.run_id) | {"id": values["id"]}),
                insert,
                insert_write,
                earlier_in_doubt_error=None if row_in_doubt is None else row_in_doubt.in_doubt_error(),
                assumed_new=lookup is ASSUMED_NEW,
                rows_before=(lookup.own, lookup.holding),
            )
        if isinstance(decision, RejectDuplicate):
            return CreationRecorder(
                self, pair, recorded_outcome=await self._reject_duplicate(request, pair, lookup.own, decision)
            )
        await self._record_held_elsewhere(request, pair, lookup.own, decision.row)
        return CreationRecorder(self, pair, recorded_outcome=self._recorded_outcome(request, decision.row))

    async def _look_up_or_assume_new(self, pair: str, policy: PairPolicy) -> PairLookup:
        # A large new run needs no look-up for each pair: after many consecutive new pairs, the next one is
        # assumed to be new as well. If it isn't, its intent loses the race, and the call looks it up. With
        # permission to repeat, pairs aren't new, and a task queue needs to know what is repeated.
        may_repeat = policy.retry_unknown or policy.retry_failed
        if self._consecutive_new >= _ASSUME_NEW_AFTER and not may_repeat:
            return ASSUMED_NEW
        lookup = await self.writer.look_up_pair(pair)
        self._consecutive_new = (
            self._consecutive_new + 1 if lookup.own is None and lookup.holding is None else 0
        )
        return lookup

    def lost_race_error(self) -> LostRaceError:
        """Return the error for a pair that was taken or wasn't new, and stop assuming that pairs are new."""
        self._consecutive_new = 0
        return LostRaceError()

    async def _record_held_elsewhere(
        self, request: RelayCreateRequest, pair: str, own: Row | None, served: Row
    ) -> None:
        """Record in the run that another run holds the pair, if the served row belongs to another run."""
        if served.run_id == self.policy.run_id:
            return
        if own is None:
            values = self.writer.row_values(pair, request.secondary_client_id, None)
            await self.writer.submit(insert_command(values, CreationState.HELD_ELSEWHERE))
        elif own.startable and own.state is not CreationState.HELD_ELSEWHERE:
            await self.writer.submit(outcome_command(own.id, CreationState.HELD_ELSEWHERE))

    def _recorded_outcome(self, request: RelayCreateRequest, row: Row) -> Outcome:
        fields: dict[str, Any] = {
            "request": request,
            "attempts": 0,
            "elapsed": 0.0,
            "request_id": row.request_id,
            "journalled": True,
        }
        if row.token is not None:
            response = RelayCreateResponse(self.keyring.decrypt(row.token), row.request_id)
            return Created(response=response, **fields)
        if row.state is CreationState.FAILED:
            return Failed(error=row.recorded_error(), **fields)
        return Unknown(error=row.in_doubt_error(), **fields)

    async def read_outcome(
        self, request: RelayCreateRequest, pair: str, before: tuple[Row | None, Row | None]
    ) -> Outcome | None:
        """Return the outcome that is recorded for a pair, or `None` if an attempt may start.

        Wait while another process may still record one.

        Args:
            request: the creation.
            pair: the digest of its pair.
            before: the run's own row and the row that held the pair, when the recorder was created. If they
                haven't changed, no attempt was started since.

        Raises:
            ConfigurationError: no key decrypts the pair's token.
            JournalError: the journal can't be read or written.
        """
        policy = evolve(self.policy, retry_unknown=False, retry_failed=False)
        wait, longest_wait = _POLL_SECONDS
        while True:
            lookup = await self.writer.look_up_pair(pair)
            if (lookup.own, lookup.holding) == before:
                return None
            decision = _decide(lookup, policy)
            if not isinstance(decision, WaitForOther):
                break
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest_wait)
        if isinstance(decision, RejectDuplicate):
            return await self._reject_duplicate(request, pair, lookup.own, decision)
        if isinstance(decision, StartAttempt):
            return None
        outcome: Outcome = self._recorded_outcome(request, decision.row)
        return evolve(outcome, attempts=decision.row.attempts)

    async def _reject_duplicate(
        self, request: RelayCreateRequest, pair: str, own: Row | None, decision: RejectDuplicate
    ) -> Failed:
        error = DuplicateRequestError(decision.reason, advice=decision.advice)
        # A row that says more, for example that its token was removed, isn't overwritten with the rejection.
        journalled = own is None or own.startable
        if journalled:
            values = self.writer.row_values(pair, request.secondary_client_id, own)
            if own is None:
                self.writer.submit(insert_command(values))
            await self.writer.submit(
                outcome_command(values["id"], CreationState.FAILED, **error_columns(error))
            )
        return Failed(
            request=request, error=error, attempts=0, elapsed=0.0, request_id=None, journalled=journalled
        )

    async def _create_removal_recorder(
        self, request: RelayRemoveRequest, digest: str, pair: str
    ) -> RemovalRecorder | None:
        """Return a recorder, or `None` if the token must be looked up again later.

        Raises:
            _TokenMovedError: the token isn't recorded for this pair any more.
        """
        lookup = await self.writer.look_up_token(digest)
        if lookup.own is None or lookup.own.pair != pair:
            raise _TokenMovedError
        if lookup.in_progress:
            return None
        if lookup.own.state is not CreationState.REMOVED:
            return RemovalRecorder(self, pair, RecordRemovalIntent(lookup.own))
        fields: dict[str, Any] = {"attempts": 0, "elapsed": 0.0, "request_id": None, "journalled": True}
        outcome = Removed(request=request, response=RelayRemoveResponse.already_removed(), **fields)
        return RemovalRecorder(self, pair, RecordRemovalIntent(lookup.own), outcome)


def _decide(lookup: PairLookup, policy: PairPolicy) -> Decision:
    """Return the decision on a pair that was looked up."""
    return decide(
        lookup.own,
        lookup.holding,
        policy,
        in_progress=lookup.in_progress,
        maybe_in_flight=lookup.maybe_in_flight,
    )


def _both_have_tokens(current: PairLookup, former: PairLookup) -> bool:
    return all(
        any(row is not None and row.issued for row in (each.own, each.holding)) for each in (current, former)
    )


def _decide_on_two_tokens(
    current: PairLookup, former: PairLookup, partner: str
) -> ServeRecorded | RejectDuplicate:
    """Return the decision on a pair that has a token under each of two digests; it isn't renamed."""
    reason = "this pair has two relay tokens, recorded under two spellings of the host"
    _logger.warning("partner %s: %s", escape_unprintable(redact_identifier(partner)), reason)
    for own in (current.own, former.own):
        if own is not None and own.has_returnable_token:
            return ServeRecorded(own)
    return RejectDuplicate(
        reason, advice="Remove one of them; `Journal.records()` returns each in the run that created it."
    )


def _outcome_command(outcome: Outcome, intent: IntentKey) -> RecordOutcome:
    columns: dict[str, Any] = {"attempts": outcome.attempts, "request_id": outcome.request_id}
    if isinstance(outcome, Created):
        state = CreationState.CREATED
        columns["token"] = Hidden(outcome.relay_token)
    else:
        state = CreationState.FAILED if isinstance(outcome, Failed) else CreationState.UNKNOWN
        columns |= error_columns(outcome.error)
    return outcome_command(intent.row, state, worker_id=intent.worker, **columns)


@define(eq=False, repr=False)
class _PairRecorder(ABC):
    """Base of the recorders that hold a pair.

    Attributes:
        coordinator: the coordinator of the opened journal.
        pair: the digest of the pair.
        journalled: whether the journal records the call's outcome; always true, unlike in `NullRecorder`.
    """

    coordinator: CallCoordinator
    pair: str
    journalled: bool = field(default=True, init=False)
    _open_intent: asyncio.Future[WriteResult] | None = field(default=None, init=False)

    def request_to_send(self, request: Any) -> Any:
        """Return the request as it is sent."""
        return request

    async def _record_intent(self, command: RecordIntent | RecordRemovalIntent) -> None:
        """Return once the intent is durable and the worker's lease is valid.

        Raises:
            LostRaceError: another call has taken the pair, or the pair was assumed to be new and isn't.
            JournalError: the journal can't be written, or the lease has expired.
        """
        self.coordinator.add_in_flight(self.pair)
        while True:
            since = ClockReading() if self.coordinator.writer.has_lease else None
            write = self.coordinator.writer.submit(command)
            # A later write doesn't replace the first one here: if the first one was granted and a later one
            # isn't, `release` must still undo the intent.
            self._open_intent = self._open_intent or write
            # The write is shielded, because its result is needed to restore the row after a cancellation.
            result = await asyncio.shield(write)
            if isinstance(result, LeaseExpired):
                raise JournalError(
                    "the journal lease expired: for too long, this process was suspended or blocked, or "
                    "couldn't reach the database",
                    advice="Nothing more was sent. Run again: the run resumes where it stopped. A process "
                    "that continues to run must open the journal again.",
                )
            if not isinstance(result, IntentGranted):
                raise self.coordinator.lost_race_error()
            if isinstance(command, RecordIntent):
                command.retire = ()  # a repeat must not expect the retired rows to be unchanged
            # The commit may have taken longer than the lease had left: then the intent is written again.
            if since is None or since.elapsed_seconds() < result.lease_remaining:
                return

    def _submit_outcome(
        self, command: RecordOutcome | UndoIntent | RecordRemovalOutcome
    ) -> Awaitable[object]:
        self._open_intent = None
        return self.coordinator.writer.submit(command)

    @abstractmethod
    def _undo_command(self) -> UndoIntent | RecordRemovalOutcome:
        """Return the command that undoes an intent of which no attempt can have been executed."""

    def release(self) -> None:
        """Release the pair.

        An intent without an outcome is undone first: no attempt was sent, or Plaid declined each one. Nothing
        waits for that write: the call was cancelled, has lost a race, or can't use the journal.
        """
        if self._open_intent is None:
            self.coordinator.release_pair(self.pair)
        else:
            self._open_intent.add_done_callback(self._undo_and_release)

    def _undo_and_release(self, write: asyncio.Future[WriteResult]) -> None:
        # A write that failed may be durable: its connection may have been lost after the commit.
        if write.exception() or isinstance(write.result(), IntentGranted):
            self.coordinator.writer.submit(self._undo_command())
        self.coordinator.release_pair(self.pair)


@define(eq=False, repr=False)
class CreationRecorder(_PairRecorder):
    """Records one creation, or has its recorded outcome.

    Attributes:
        intent: the intent of its attempts; `None` if there is a recorded outcome.
        undo: the command that undoes the intent; `None` if there is a recorded outcome.
        insert: the command that inserts its row, listed as not attempted; `None` if there is a recorded
            outcome.
        insert_write: the write of `insert`, if its row is new.
        recorded_outcome: the outcome from the journal, if the request needs no attempt.
        earlier_in_doubt_error: the error of an attempt in doubt whose row the intent retires, if any.
        assumed_new: whether its pair was assumed to be new, without a look-up.
        rows_before: the run's own row and the row that held the pair, as they were looked up.
    """

    intent: RecordIntent | None = None
    undo: UndoIntent | None = None
    insert: InsertCreation | None = None
    insert_write: asyncio.Future[WriteResult] | None = None
    recorded_outcome: Outcome | None = None
    earlier_in_doubt_error: OutcomeUnknownError | None = None
    assumed_new: bool = False
    rows_before: tuple[Row | None, Row | None] = (None, None)

    @property
    def row_in_doubt(self) -> int | None:
        """The ID of the row with the attempt in doubt that the intent replaces, if there is one."""
        row = first_in_doubt(self.rows_before)
        return None if row is None else row.id

    async def read_outcome(self, request: RelayCreateRequest) -> Outcome | None:
        """Return the outcome that another process has recorded; see `CallCoordinator.read_outcome`."""
        return await self.coordinator.read_outcome(request, self.pair, self.rows_before)

    @property
    def intent_key(self) -> IntentKey:
        """The key of the intent with which `record_outcome_of` records the outcome in another process."""
        assert self.intent is not None  # noqa: S101  # a recorded outcome needs no attempt
        return IntentKey(self.intent.values["id"], self.intent.values["worker_id"])

    def request_to_send(self, request: RelayCreateRequest) -> RelayCreateRequest:
        """Return the request with the pair ID in the URL of its webhook."""
        return request.with_pair_id(self.pair)

    async def record_intent(self) -> None:
        """Return once the intent of the next attempt is durable.

        Raises:
            LostRaceError: another call has taken the pair, or the pair was assumed to be new and isn't.
            JournalError: the journal can't be written, or the lease has expired.
        """
        assert self.intent is not None  # noqa: S101  # a recorded outcome needs no attempt
        assert self.insert is not None  # noqa: S101
        self.insert.skip = True
        await self._record_intent(self.intent)

    def record_outcome(self, outcome: Outcome | None) -> Awaitable[object]:
        """Record the outcome, durable once awaited; `None` means that the request is not attempted."""
        if outcome is None:
            return self._record_not_attempted()
        return self._submit_outcome(_outcome_command(outcome, self.intent_key))

    async def record_outcome_of(self, intent: IntentKey, outcome: Outcome) -> Row | None:
        """Record the outcome of an attempt of another process, which couldn't record it.

        The effect is the same as if that process recorded it: nothing changes if the row has a token, or
        another attempt, by now.

        Returns:
            The row of the outcome's token; `None` if the journal doesn't have it, or the outcome has none.

        Raises:
            JournalError: the journal can't be written.
        """
        writer = self.coordinator.writer
        await writer.submit(_outcome_command(outcome, intent))
        if not isinstance(outcome, Created):
            return None
        digest = self.coordinator.digests.token_digest(outcome.relay_token)
        return (await writer.look_up_token(digest)).own

    async def _record_not_attempted(self) -> None:
        """Return once the journal has what it had before the call; a new creation is listed as not attempted.

        Raises:
            LostRaceError: its pair wasn't looked up, so it may have an outcome.
            JournalError: the journal can't be written.
        """
        assert self.insert is not None  # noqa: S101  # a recorded outcome needs no attempt
        if self.assumed_new and not self.insert.skip:
            # Without an intent (`record_intent` sets `skip` as well), the look-up decides. The row needn't be
            # written, and if it is already, the look-up finds it.
            self.insert.skip = True
            raise self.coordinator.lost_race_error()
        if self._open_intent is not None:
            await self._submit_outcome(self._undo_command())
        elif self.insert_write is not None:
            await self.insert_write

    def _undo_command(self) -> UndoIntent:
        assert self.undo is not None  # noqa: S101  # a recorded outcome has no intent
        return self.undo


@define(eq=False, repr=False)
class RemovalRecorder(_PairRecorder):
    """Records one removal, or has its recorded outcome.

    Attributes:
        intent: the intent of its attempts.
        recorded_outcome: the outcome, if the token was removed before.
    """

    intent: RecordRemovalIntent
    recorded_outcome: Removed | None = None

    @property
    def earlier_in_doubt_error(self) -> OutcomeUnknownError | None:
        """The error of an earlier removal of the token, in any process, that is in doubt."""
        if self.intent.row.state is not CreationState.REMOVING:
            return None
        return OutcomeUnknownError(
            "an earlier removal of this token has an unknown outcome", advice=REMOVE.advice
        )

    async def record_intent(self) -> None:
        """Return once the intent of the next attempt is durable.

        Raises:
            LostRaceError: another call has changed the token's row.
            JournalError: the journal can't be written, or the lease has expired.
        """
        await self._record_intent(self.intent)

    def record_outcome(self, outcome: Removed | Failed | Unknown) -> Awaitable[object]:
        """Record the outcome; durable once awaited."""
        state = CreationState.REMOVING
        if isinstance(outcome, Removed):
            state = CreationState.REMOVED
        elif isinstance(outcome, Failed):
            state = CreationState.CREATED
        return self._submit_outcome(RecordRemovalOutcome(self.intent.row.id, state))

    def _undo_command(self) -> RecordRemovalOutcome:
        return RecordRemovalOutcome(self.intent.row.id, self.intent.row.state)


class NullRecorder:
    """Records nothing: for the removal of a token that the journal doesn't have.

    Attributes:
        recorded_outcome: always `None`.
        earlier_in_doubt_error: always `None`.
        journalled: always false.
    """

    recorded_outcome = earlier_in_doubt_error = None
    journalled = False

    def request_to_send(self, request: RelayRemoveRequest) -> RelayRemoveRequest:
        """Return the request."""
        return request

    async def record_intent(self) -> None:
        """Do nothing."""

    async def record_outcome(self, outcome: Removed | Failed | Unknown) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing: no pair is held."""
