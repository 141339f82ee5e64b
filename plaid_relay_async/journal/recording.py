"""One creation, or one removal, on its way through the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field

from plaid_relay_async.batch import REMOVE, LostRaceError
from plaid_relay_async.errors import DuplicateRequestError, Hidden, JournalError, OutcomeUnknownError
from plaid_relay_async.journal import decisions
from plaid_relay_async.journal.database import closed_error
from plaid_relay_async.journal.decisions import (
    PairPolicy,
    RejectDuplicate,
    Row,
    ServeRecorded,
    WaitForOther,
    decide,
    error_columns,
)
from plaid_relay_async.journal.encryption import Digests, Keyring
from plaid_relay_async.journal.schema import CreationState
from plaid_relay_async.journal.workers import ClockReading
from plaid_relay_async.journal.writer import (
    EMPTY_LOOKUP,
    PairLookup,
    RecordAccepted,
    RecordIntent,
    RecordOutcome,
    RecordRemovalIntent,
    RecordRemovalOutcome,
    RenamePair,
    Writer,
    WriteResult,
    accepted_command,
    outcome_command,
)
from plaid_relay_async.models import RelayCreateRequest, RelayRemoveRequest, RelayRemoveResponse
from plaid_relay_async.outcomes import Created, Failed, Outcome, Removed, Unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

E = TypeVar("E", bound="_PairRecorder")
_logger = logging.getLogger("plaid_relay_async.journal")
_POLL_SECONDS = (0.02, 1.0)  # seconds, at first and at most
_ASSUME_NEW_AFTER = 100


@define(eq=False, repr=False)
class CallCoordinator:
    """Enters creations and removals for one holder."""

    writer: Writer
    digests: Digests
    keyring: Keyring
    policy: PairPolicy
    _held_pairs: dict[str, asyncio.Future[None]] = field(factory=dict, init=False)
    _in_flight: set[str] = field(factory=set, init=False)
    _drain_task: asyncio.Task[None] | None = field(default=None, init=False)
    _consecutive_new: int = field(default=0, init=False)

    async def acquire_creation(
        self, request: RelayCreateRequest, policy: PairPolicy, namespace: str, former: str | None
    ) -> CreationRecorder:
        """Enter a creation, once no other call is in progress for its pair.

        Args:
            request: what is to be created.
            policy: the caller's.
            namespace: of its pair.
            former: the namespace by which earlier releases named the pair, if that was another.
        """
        partner = request.secondary_client_id
        pair = self.digests.pair_digest(namespace, request.report_tokens, partner)
        former_pair = (
            None if former is None else self.digests.pair_digest(former, request.report_tokens, partner)
        )
        return await self._acquire_pair(
            pair, lambda: self._create_creation_recorder(request, policy, pair, former_pair)
        )

    async def acquire_removal(self, request: RelayRemoveRequest) -> RemovalRecorder | NullRecorder:
        """Enter the removal of a token, once nobody else is at its pair, if the journal knows of it."""
        await self.writer.write_pending()
        digest = self.digests.token_digest(request.relay_token)
        row = (await self.writer.look_up_token(digest)).own
        if row is None:
            return NullRecorder()
        return await self._acquire_pair(row.pair, lambda: self._create_removal_recorder(request, digest))

    async def _acquire_pair(self, pair: str, create_recorder: Callable[[], Awaitable[E | None]]) -> E:
        pause, longest = _POLL_SECONDS
        while True:
            await self._hold_pair(pair)
            try:
                await self.writer.write_pending()
                entered = await create_recorder()
            except BaseException:
                self.release_pair(pair)
                raise
            if entered is not None:
                return entered
            self.release_pair(pair)
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _hold_pair(self, pair: str) -> None:
        while (other := self._held_pairs.get(pair)) is not None:
            await asyncio.wait([other])
        self._held_pairs[pair] = asyncio.get_running_loop().create_future()

    def release_pair(self, pair: str) -> None:
        """Let the next one of this process have the pair."""
        self._in_flight.discard(pair)
        self._held_pairs.pop(pair).set_result(None)

    def add_in_flight(self, pair: str) -> None:
        """Count a pair as in flight until it is left.

        Raises:
            JournalError: the journal is being closed.
        """
        if self.writer.closing:
            raise closed_error()
        self._in_flight.add(pair)
        if self._drain_task is None or self._drain_task.done():
            self._drain_task = asyncio.create_task(self._keep_loop_running())

    async def _keep_loop_running(self) -> None:
        """Keep the event loop running until what is in flight is recorded.

        `asyncio.run` ends by cancelling all tasks and waiting for them, but not for what they start then. So
        this task ignores its cancellation: it waits for calls that are cancelled too, and for bounded writes.
        """
        while self._in_flight or not self.writer.idle:
            with contextlib.suppress(asyncio.CancelledError):
                await self._drain()

    async def _drain(self) -> None:
        while self._in_flight:
            await asyncio.wait([self._held_pairs[pair] for pair in self._in_flight])
        await self.writer.drain()

    async def close(self, deadline: float) -> None:
        """Begin nothing more, wait for what is in flight, and write what there is to write.

        It may be cancelled, and called again.

        Args:
            until: the moment, by the event loop's clock, after which nothing is waited for.
        """
        self.writer.stop_intents()
        with contextlib.suppress(TimeoutError, JournalError):  # the calls concerned meet the error
            async with asyncio.timeout_at(deadline):
                await self._drain()
                await self.writer.write_pending()
        await self.writer.close(drained=not self._in_flight)

    async def _create_creation_recorder(
        self, request: RelayCreateRequest, policy: PairPolicy, pair: str, former_pair: str | None
    ) -> CreationRecorder | None:
        found = await (
            self._look_up_or_assume_new(pair) if former_pair is None else self.writer.look_up_pair(pair)
        )
        decision = decide(
            found.own,
            found.holding,
            policy,
            in_progress=found.in_progress,
            maybe_in_flight=found.maybe_in_flight,
        )
        if former_pair is not None:
            former = await self.writer.look_up_pair(former_pair)
            if _both_have_tokens(found, former):
                decision = _decide_on_two_tokens(found, former, request.secondary_client_id)
            elif former.own is not None or former.holding is not None:
                await self.writer.submit(RenamePair(former_pair, pair))
                return None
        if isinstance(decision, WaitForOther):
            return None
        if isinstance(decision, decisions.StartAttempt):
            values = self.writer.row_values(pair, request.secondary_client_id, decision.row)
            accept = accepted_command(values)
            noted = self.writer.submit(accept) if decision.row is None else None
            doubt = next((row.doubt_error() for row in decision.retire if row.in_doubt), None)
            begin = RecordIntent(values, decision.retire)
            return CreationRecorder(
                self, pair, begin, accept, noted, earlier_doubt=doubt, assumed_new=found is EMPTY_LOOKUP
            )
        if isinstance(decision, RejectDuplicate):
            return CreationRecorder(
                self, pair, recorded_outcome=await self._reject_duplicate(request, pair, found.own, decision)
            )
        await self._record_held_elsewhere(request, pair, found.own, decision.row)
        return CreationRecorder(self, pair, recorded_outcome=self._recorded_outcome(request, decision.row))

    async def _look_up_or_assume_new(self, pair: str) -> PairLookup:
        # After so many that were new, the next is taken to be new as well: if it isn't, it can't be begun.
        if self._consecutive_new >= _ASSUME_NEW_AFTER:
            return EMPTY_LOOKUP
        found = await self.writer.look_up_pair(pair)
        self._consecutive_new = (
            self._consecutive_new + 1 if found.own is None and found.holding is None else 0
        )
        return found

    def lost_race_error(self) -> LostRaceError:
        """Give the error for a pair that somebody else has begun, or that wasn't new."""
        self._consecutive_new = 0
        return LostRaceError()

    async def _record_held_elsewhere(
        self, request: RelayCreateRequest, pair: str, own: Row | None, served: Row
    ) -> None:
        if served.run_id == self.policy.run_id:
            return
        if own is None:
            values = self.writer.row_values(pair, request.secondary_client_id, None)
            await self.writer.submit(accepted_command(values, CreationState.HELD_ELSEWHERE))
        elif own.startable and own.state is not CreationState.HELD_ELSEWHERE:
            await self.writer.submit(outcome_command(own.id, CreationState.HELD_ELSEWHERE))

    def _recorded_outcome(self, request: RelayCreateRequest, row: Row) -> Outcome:
        facts: dict[str, Any] = {
            "request": request,
            "attempts": 0,
            "elapsed": 0.0,
            "request_id": row.request_id,
            "journalled": True,
        }
        if row.token is not None:
            return Created(relay_token=self.keyring.decrypt(row.token), **facts)
        if row.state is CreationState.FAILED:
            return Failed(error=row.recorded_error(), **facts)
        return Unknown(error=row.doubt_error(), **facts)

    async def _reject_duplicate(
        self, request: RelayCreateRequest, pair: str, own: Row | None, refusal: RejectDuplicate
    ) -> Failed:
        error = DuplicateRequestError(refusal.reason, advice=refusal.advice)
        noted = own is None or own.startable
        if noted:
            values = self.writer.row_values(pair, request.secondary_client_id, own)
            if own is None:
                self.writer.submit(accepted_command(values))
            await self.writer.submit(
                outcome_command(values["id"], CreationState.FAILED, **error_columns(error))
            )
        return Failed(
            request=request, error=error, attempts=0, elapsed=0.0, request_id=None, journalled=noted
        )

    async def _create_removal_recorder(
        self, request: RelayRemoveRequest, digest: str
    ) -> RemovalRecorder | None:
        found = await self.writer.look_up_token(digest)
        if found.in_progress or found.own is None:
            return None
        if found.own.state is not CreationState.REMOVED:
            return RemovalRecorder(self, found.own.pair, RecordRemovalIntent(found.own))
        facts: dict[str, Any] = {"attempts": 0, "elapsed": 0.0, "request_id": None, "journalled": True}
        known = Removed(request=request, response=RelayRemoveResponse.already_removed(), **facts)
        return RemovalRecorder(self, found.own.pair, RecordRemovalIntent(found.own), known)


def _both_have_tokens(found: PairLookup, former: PairLookup) -> bool:
    return all(
        any(row is not None and row.issued for row in (each.own, each.holding)) for each in (found, former)
    )


def _decide_on_two_tokens(
    found: PairLookup, former: PairLookup, partner: str
) -> ServeRecorded | RejectDuplicate:
    """Return the decision on a pair that has a token under each of two names, which are never merged."""
    why = "this pair has two relay tokens, recorded under two spellings of the host"
    _logger.warning("partner %s: %s", partner, why)
    for own in (found.own, former.own):
        if own is not None and own.state is CreationState.CREATED and own.token is not None:
            return ServeRecorded(own)
    return RejectDuplicate(why, advice="Remove one of them: the records of the journal's runs have both.")


@define(eq=False, repr=False)
class _PairRecorder(ABC):
    """What has its turn at a pair, until nothing more comes of it.

    Attributes:
        kept: always.
    """

    coordinator: CallCoordinator
    pair: str
    journalled: bool = field(default=True, init=False)
    _open_intent: asyncio.Future[WriteResult] | None = field(default=None, init=False)

    async def _record_intent(self, note: RecordIntent | RecordRemovalIntent) -> None:
        """Return once that is on record, and while the lease lasts.

        Raises:
            TakenError: somebody else was quicker.
            JournalError: it can't be written, or the lease has lapsed.
        """
        self.coordinator.add_in_flight(self.pair)
        while True:
            since = ClockReading() if self.coordinator.writer.has_lease else None
            noted = self.coordinator.writer.submit(note)
            # The first: where the next of this loop isn't granted, nothing has left on that one either.
            self._open_intent = self._open_intent or noted
            # Whoever is cancelled here has to know what was written all the same.
            left = await asyncio.shield(noted)
            if left is None:
                raise self.coordinator.lost_race_error()
            if isinstance(left, JournalError):
                raise left
            if isinstance(note, RecordIntent):
                note.retire = ()
            if since is None or since.elapsed_seconds() < left:
                return

    def _submit_outcome(self, note: RecordOutcome | RecordRemovalOutcome) -> Awaitable[object]:
        self._open_intent = None
        return self.coordinator.writer.submit(note)

    @abstractmethod
    def _undo_command(self) -> RecordOutcome | RecordRemovalOutcome:
        """Give what undoes the beginning."""

    def release(self) -> None:
        """Nothing more comes of it here; what was begun and has no end never left."""
        if self._open_intent is None:
            self.coordinator.release_pair(self.pair)
        else:
            self._open_intent.add_done_callback(self._undo_and_release)

    def _undo_and_release(self, noted: asyncio.Future[WriteResult]) -> None:
        # One that failed may have been written all the same: its connection was lost before that was told.
        if noted.exception() or isinstance(noted.result(), float):
            self.coordinator.writer.submit(self._undo_command())
        self.coordinator.release_pair(self.pair)


@define(eq=False, repr=False)
class CreationRecorder(_PairRecorder):
    """A creation that was entered: it may be begun, or it is known what became of it.

    Attributes:
        known: what became of it, if that is known; it has no beginning then.
        noted: the write of `accept`, if its row is new.
        doubt: the error of the attempt that makes way for it.
        guessed: whether its pair was taken to be new without a look-up.
    """

    intent: RecordIntent | None = None
    accept: RecordAccepted | None = None
    accept_write: asyncio.Future[WriteResult] | None = None
    recorded_outcome: Outcome | None = None
    earlier_doubt: OutcomeUnknownError | None = None
    assumed_new: bool = False

    async def record_intent(self) -> None:
        """Return once it is on record that an attempt is about to leave; for the errors see `_begin`."""
        assert self.intent is not None  # noqa: S101  # what is known isn't begun
        assert self.accept is not None  # noqa: S101
        self.accept.superseded = True
        await self._record_intent(self.intent)

    def record_outcome(self, outcome: Outcome | None) -> Awaitable[object]:
        """Record the outcome, or with `None` that it is not attempted; it is durable once awaited."""
        if outcome is None:
            return self._record_not_attempted()
        facts: dict[str, Any] = {"attempts": outcome.attempts, "request_id": outcome.request_id}
        if isinstance(outcome, Created):
            state = CreationState.CREATED
            facts["token"] = Hidden(outcome.relay_token)
        else:
            state = CreationState.FAILED if isinstance(outcome, Failed) else CreationState.UNKNOWN
            facts |= error_columns(outcome.error)
        return self._submit_outcome(self._outcome_command(state, **facts))

    async def _record_not_attempted(self) -> None:
        """Return once it is on record as accepted.

        Raises:
            TakenError: its pair wasn't looked up, so that it isn't known whether it has an outcome.
            JournalError: it can't be written.
        """
        assert self.accept is not None  # noqa: S101  # what is known needs no attempt
        if self.assumed_new and not self.accept.superseded:
            self.accept.superseded = True  # not to be written: it is entered again
            raise self.coordinator.lost_race_error()
        if self.accept_write is not None:
            await self.accept_write

    def _outcome_command(self, state: CreationState, **facts: Any) -> RecordOutcome:
        assert self.intent is not None  # noqa: S101
        return outcome_command(self.intent.values["id"], state, **facts)

    def _undo_command(self) -> RecordOutcome:
        if self.earlier_doubt is None:
            return self._outcome_command(CreationState.ACCEPTED)
        return self._outcome_command(CreationState.UNKNOWN, **error_columns(self.earlier_doubt))


@define(eq=False, repr=False)
class RemovalRecorder(_PairRecorder):
    """A removal that was entered.

    Attributes:
        known: its outcome, if the token was removed before.
    """

    intent: RecordRemovalIntent
    recorded_outcome: Removed | None = None

    @property
    def earlier_doubt(self) -> OutcomeUnknownError | None:
        """The error of one that was begun before, by whoever."""
        if self.intent.row.state is not CreationState.REMOVING:
            return None
        return OutcomeUnknownError("a removal of it was begun, and its end isn't known", advice=REMOVE.advice)

    async def record_intent(self) -> None:
        """Return once it is on record that the token may be gone; for the errors see `_begin`."""
        await self._record_intent(self.intent)

    def record_outcome(self, outcome: Removed | Failed | Unknown) -> Awaitable[object]:
        """Take what became of it; what this gives is done once it is durable."""
        state = CreationState.REMOVING
        if isinstance(outcome, Removed):
            state = CreationState.REMOVED
        elif isinstance(outcome, Failed):
            state = CreationState.CREATED
        return self._submit_outcome(RecordRemovalOutcome(self.intent.row.id, state))

    def _undo_command(self) -> RecordRemovalOutcome:
        return RecordRemovalOutcome(self.intent.row.id, self.intent.row.state)


class NullRecorder:
    """The removal of a token that the journal doesn't have."""

    recorded_outcome = earlier_doubt = None
    journalled = False

    async def record_intent(self) -> None:
        """There is nothing to write down."""

    async def record_outcome(self, outcome: Removed | Failed | Unknown) -> None:
        """There is nothing to write down."""

    def release(self) -> None:
        """Nobody waits for it."""
