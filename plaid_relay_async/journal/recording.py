"""One creation, or one removal, on its way through the journal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field

from plaid_relay_async.batch import REMOVE, TakenError
from plaid_relay_async.errors import DuplicateRequestError, Hidden, JournalError, OutcomeUnknownError
from plaid_relay_async.journal import decisions
from plaid_relay_async.journal.database import closed
from plaid_relay_async.journal.decisions import Policy, Refuse, Row, Serve, Wait, decide, facts_of
from plaid_relay_async.journal.holders import Moment
from plaid_relay_async.journal.keys import Digests, Keyring
from plaid_relay_async.journal.schema import State
from plaid_relay_async.journal.writing import (
    NOTHING,
    Accept,
    Answer,
    Begin,
    BeginRemoval,
    End,
    EndRemoval,
    Found,
    Rename,
    Writer,
    accepted,
    ended,
)
from plaid_relay_async.models import RelayCreateRequest, RelayRemoveRequest, RelayRemoveResponse
from plaid_relay_async.outcomes import Created, Failed, Outcome, Removed, Unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

E = TypeVar("E", bound="_Entered")
_logger = logging.getLogger("plaid_relay_async.journal")
_LOOK_AGAIN = (0.02, 1.0)  # seconds, at first and at most
_NEWS = 100


@define(eq=False, repr=False)
class Recorder:
    """Enters creations and removals for one holder."""

    writer: Writer
    digests: Digests
    keyring: Keyring
    policy: Policy
    _under_way: dict[str, asyncio.Future[None]] = field(factory=dict, init=False)
    _in_flight: set[str] = field(factory=set, init=False)
    _keeper: asyncio.Task[None] | None = field(default=None, init=False)
    _new: int = field(default=0, init=False)

    async def creation(
        self, request: RelayCreateRequest, policy: Policy, namespace: str, former: str | None
    ) -> Creation:
        """Enter a creation, once no other call is in progress for its pair.

        Args:
            request: what is to be created.
            policy: the caller's.
            namespace: of its pair.
            former: the namespace by which earlier releases named the pair, if that was another.
        """
        partner = request.secondary_client_id
        pair = self.digests.pair(namespace, request.report_tokens, partner)
        former_pair = None if former is None else self.digests.pair(former, request.report_tokens, partner)
        return await self._in_turn(pair, lambda: self._creation(request, policy, pair, former_pair))

    async def removal(self, request: RelayRemoveRequest) -> Removal | Unrecorded:
        """Enter the removal of a token, once nobody else is at its pair, if the journal knows of it."""
        await self.writer.catch_up()
        digest = self.digests.token(request.relay_token)
        row = (await self.writer.find(digest)).own
        if row is None:
            return Unrecorded()
        return await self._in_turn(row.pair, lambda: self._removal(request, digest))

    async def _in_turn(self, pair: str, enter: Callable[[], Awaitable[E | None]]) -> E:
        pause, longest = _LOOK_AGAIN
        while True:
            await self._turn(pair)
            try:
                await self.writer.catch_up()
                entered = await enter()
            except BaseException:
                self.leave(pair)
                raise
            if entered is not None:
                return entered
            self.leave(pair)
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _turn(self, pair: str) -> None:
        while (other := self._under_way.get(pair)) is not None:
            await asyncio.wait([other])
        self._under_way[pair] = asyncio.get_running_loop().create_future()

    def leave(self, pair: str) -> None:
        """Let the next one of this process have the pair."""
        self._in_flight.discard(pair)
        self._under_way.pop(pair).set_result(None)

    def begins(self, pair: str) -> None:
        """Count a pair as in flight until it is left.

        Raises:
            JournalError: the journal is being closed.
        """
        if self.writer.closing:
            raise closed()
        self._in_flight.add(pair)
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Keep the event loop running until what is in flight is recorded.

        `asyncio.run` ends by cancelling all tasks and waiting for them, but not for what they start then. So
        this task ignores its cancellation: it waits for calls that are cancelled too, and for bounded writes.
        """
        while self._in_flight or not self.writer.idle:
            with contextlib.suppress(asyncio.CancelledError):
                await self._settled()

    async def _settled(self) -> None:
        while self._in_flight:
            await asyncio.wait([self._under_way[pair] for pair in self._in_flight])
        await self.writer.drain()

    async def close(self, until: float) -> None:
        """Begin nothing more, wait for what is in flight, and write what there is to write.

        It may be cancelled, and called again.

        Args:
            until: the moment, by the event loop's clock, after which nothing is waited for.
        """
        self.writer.halt()
        with contextlib.suppress(TimeoutError, JournalError):  # the calls concerned meet the error
            async with asyncio.timeout_at(until):
                await self._settled()
                await self.writer.catch_up()
        await self.writer.close(settled=not self._in_flight)

    async def _creation(
        self, request: RelayCreateRequest, policy: Policy, pair: str, former_pair: str | None
    ) -> Creation | None:
        found = await (self._look_up(pair) if former_pair is None else self.writer.look_up(pair))
        decision = decide(found.own, found.claim, policy, alive=found.alive, late=found.late)
        if former_pair is not None:
            former = await self.writer.look_up(former_pair)
            if _have_both_a_token(found, former):
                decision = _decide_on_two(found, former, request.secondary_client_id)
            elif former.own is not None or former.claim is not None:
                await self.writer.note(Rename(former_pair, pair))
                return None
        if isinstance(decision, Wait):
            return None
        if isinstance(decision, decisions.Begin):
            values = self.writer.values(pair, request.secondary_client_id, decision.row)
            accept = accepted(values)
            noted = self.writer.note(accept) if decision.row is None else None
            doubt = next((row.doubt() for row in decision.retire if row.doubtful), None)
            begin = Begin(values, decision.retire)
            return Creation(self, pair, begin, accept, noted, doubt=doubt, guessed=found is NOTHING)
        if isinstance(decision, Refuse):
            return Creation(self, pair, known=await self._refused(request, pair, found.own, decision))
        await self._note_elsewhere(request, pair, found.own, decision.row)
        return Creation(self, pair, known=self._served(request, decision.row))

    async def _look_up(self, pair: str) -> Found:
        # After so many that were new, the next is taken to be new as well: if it isn't, it can't be begun.
        if self._new >= _NEWS:
            return NOTHING
        found = await self.writer.look_up(pair)
        self._new = self._new + 1 if found.own is None and found.claim is None else 0
        return found

    def taken(self) -> TakenError:
        """Give the error for a pair that somebody else has begun, or that wasn't new."""
        self._new = 0
        return TakenError()

    async def _note_elsewhere(
        self, request: RelayCreateRequest, pair: str, own: Row | None, served: Row
    ) -> None:
        if served.run_id == self.policy.run_id:
            return
        if own is None:
            values = self.writer.values(pair, request.secondary_client_id, None)
            await self.writer.note(accepted(values, State.ELSEWHERE))
        elif own.free and own.state is not State.ELSEWHERE:
            await self.writer.note(ended(own.id, State.ELSEWHERE))

    def _served(self, request: RelayCreateRequest, row: Row) -> Outcome:
        facts: dict[str, Any] = {
            "request": request,
            "attempts": 0,
            "elapsed": 0.0,
            "request_id": row.request_id,
            "journalled": True,
        }
        if row.token is not None:
            return Created(relay_token=self.keyring.open(row.token), **facts)
        if row.state is State.FAILED:
            return Failed(error=row.problem(), **facts)
        return Unknown(error=row.doubt(), **facts)

    async def _refused(
        self, request: RelayCreateRequest, pair: str, own: Row | None, refusal: Refuse
    ) -> Failed:
        error = DuplicateRequestError(refusal.why, advice=refusal.advice)
        noted = own is None or own.free
        if noted:
            values = self.writer.values(pair, request.secondary_client_id, own)
            if own is None:
                self.writer.note(accepted(values))
            await self.writer.note(ended(values["id"], State.FAILED, **facts_of(error)))
        return Failed(
            request=request, error=error, attempts=0, elapsed=0.0, request_id=None, journalled=noted
        )

    async def _removal(self, request: RelayRemoveRequest, digest: str) -> Removal | None:
        found = await self.writer.find(digest)
        if found.alive or found.own is None:
            return None
        if found.own.state is not State.REMOVED:
            return Removal(self, found.own.pair, BeginRemoval(found.own))
        facts: dict[str, Any] = {"attempts": 0, "elapsed": 0.0, "request_id": None, "journalled": True}
        known = Removed(request=request, response=RelayRemoveResponse.gone(), **facts)
        return Removal(self, found.own.pair, BeginRemoval(found.own), known)


def _have_both_a_token(found: Found, former: Found) -> bool:
    return all(
        any(row is not None and row.issued for row in (each.own, each.claim)) for each in (found, former)
    )


def _decide_on_two(found: Found, former: Found, partner: str) -> Serve | Refuse:
    """Return the decision on a pair that has a token under each of two names, which are never merged."""
    why = "this pair has two relay tokens, recorded under two spellings of the host"
    _logger.warning("partner %s: %s", partner, why)
    for own in (found.own, former.own):
        if own is not None and own.state is State.CREATED and own.token is not None:
            return Serve(own)
    return Refuse(why, advice="Remove one of them: the records of the journal's runs have both.")


@define(eq=False, repr=False)
class _Entered(ABC):
    """What has its turn at a pair, until nothing more comes of it.

    Attributes:
        kept: always.
    """

    recorder: Recorder
    pair: str
    kept: bool = field(default=True, init=False)
    _left_open: asyncio.Future[Answer] | None = field(default=None, init=False)

    async def _begin(self, note: Begin | BeginRemoval) -> None:
        """Return once that is on record, and while the lease lasts.

        Raises:
            TakenError: somebody else was quicker.
            JournalError: it can't be written, or the lease has lapsed.
        """
        self.recorder.begins(self.pair)
        while True:
            since = Moment() if self.recorder.writer.leased else None
            noted = self.recorder.writer.note(note)
            # The first: where the next of this loop isn't granted, nothing has left on that one either.
            self._left_open = self._left_open or noted
            # Whoever is cancelled here has to know what was written all the same.
            left = await asyncio.shield(noted)
            if left is None:
                raise self.recorder.taken()
            if isinstance(left, JournalError):
                raise left
            if isinstance(note, Begin):
                note.retire = ()
            if since is None or since.passed() < left:
                return

    def _ended(self, note: End | EndRemoval) -> Awaitable[object]:
        self._left_open = None
        return self.recorder.writer.note(note)

    @abstractmethod
    def _never_left(self) -> End | EndRemoval:
        """Give what undoes the beginning."""

    def leave(self) -> None:
        """Nothing more comes of it here; what was begun and has no end never left."""
        if self._left_open is None:
            self.recorder.leave(self.pair)
        else:
            self._left_open.add_done_callback(self._take_back)

    def _take_back(self, noted: asyncio.Future[Answer]) -> None:
        # One that failed may have been written all the same: its connection was lost before that was told.
        if noted.exception() or isinstance(noted.result(), float):
            self.recorder.writer.note(self._never_left())
        self.recorder.leave(self.pair)


@define(eq=False, repr=False)
class Creation(_Entered):
    """A creation that was entered: it may be begun, or it is known what became of it.

    Attributes:
        known: what became of it, if that is known; it has no beginning then.
        noted: the write of `accept`, if its row is new.
        doubt: the error of the attempt that makes way for it.
        guessed: whether its pair was taken to be new without a look-up.
    """

    beginning: Begin | None = None
    accept: Accept | None = None
    noted: asyncio.Future[Answer] | None = None
    known: Outcome | None = None
    doubt: OutcomeUnknownError | None = None
    guessed: bool = False

    async def begin(self) -> None:
        """Return once it is on record that an attempt is about to leave; for the errors see `_begin`."""
        assert self.beginning is not None  # noqa: S101  # what is known isn't begun
        assert self.accept is not None  # noqa: S101
        self.accept.begun = True
        await self._begin(self.beginning)

    def end(self, outcome: Outcome | None) -> Awaitable[object]:
        """Record the outcome, or with `None` that it is not attempted; it is durable once awaited."""
        if outcome is None:
            return self._not_attempted()
        facts: dict[str, Any] = {"attempts": outcome.attempts, "request_id": outcome.request_id}
        if isinstance(outcome, Created):
            state = State.CREATED
            facts["token"] = Hidden(outcome.relay_token)
        else:
            state = State.FAILED if isinstance(outcome, Failed) else State.UNKNOWN
            facts |= facts_of(outcome.error)
        return self._ended(self._end(state, **facts))

    async def _not_attempted(self) -> None:
        """Return once it is on record as accepted.

        Raises:
            TakenError: its pair wasn't looked up, so that it isn't known whether it has an outcome.
            JournalError: it can't be written.
        """
        assert self.accept is not None  # noqa: S101  # what is known needs no attempt
        if self.guessed and not self.accept.begun:
            self.accept.begun = True  # not to be written: it is entered again
            raise self.recorder.taken()
        if self.noted is not None:
            await self.noted

    def _end(self, state: State, **facts: Any) -> End:
        assert self.beginning is not None  # noqa: S101
        return ended(self.beginning.values["id"], state, **facts)

    def _never_left(self) -> End:
        if self.doubt is None:
            return self._end(State.ACCEPTED)
        return self._end(State.UNKNOWN, **facts_of(self.doubt))


@define(eq=False, repr=False)
class Removal(_Entered):
    """A removal that was entered.

    Attributes:
        known: its outcome, if the token was removed before.
    """

    beginning: BeginRemoval
    known: Removed | None = None

    @property
    def doubt(self) -> OutcomeUnknownError | None:
        """The error of one that was begun before, by whoever."""
        if self.beginning.row.state is not State.REMOVING:
            return None
        return OutcomeUnknownError("a removal of it was begun, and its end isn't known", advice=REMOVE.advice)

    async def begin(self) -> None:
        """Return once it is on record that the token may be gone; for the errors see `_begin`."""
        await self._begin(self.beginning)

    def end(self, outcome: Removed | Failed | Unknown) -> Awaitable[object]:
        """Take what became of it; what this gives is done once it is durable."""
        state = State.REMOVING
        if isinstance(outcome, Removed):
            state = State.REMOVED
        elif isinstance(outcome, Failed):
            state = State.CREATED
        return self._ended(EndRemoval(self.beginning.row.id, state))

    def _never_left(self) -> EndRemoval:
        return EndRemoval(self.beginning.row.id, self.beginning.row.state)


class Unrecorded:
    """The removal of a token that the journal doesn't have."""

    known = doubt = None
    kept = False

    async def begin(self) -> None:
        """There is nothing to write down."""

    async def end(self, outcome: Removed | Failed | Unknown) -> None:
        """There is nothing to write down."""

    def leave(self) -> None:
        """Nobody waits for it."""
