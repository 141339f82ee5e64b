"""One creation, or one removal, on its way through the journal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from attrs import define, field

from plaid_relay_async.batch import REMOVE, TakenError
from plaid_relay_async.errors import DuplicateRequestError, Hidden, JournalError, OutcomeUnknownError
from plaid_relay_async.journal.decisions import (
    Begin,
    Policy,
    Refuse,
    Row,
    Wait,
    decide,
    facts_of,
)
from plaid_relay_async.journal.holders import Moment
from plaid_relay_async.journal.keys import Digests, Keyring
from plaid_relay_async.journal.schema import State
from plaid_relay_async.journal.writing import NOTHING, Accept, Answer, Found, Writer, accepted, ended
from plaid_relay_async.journal.writing import Begin as Beginning
from plaid_relay_async.journal.writing import Removal as Change
from plaid_relay_async.models import RelayCreateRequest, RelayRemoveRequest, RelayRemoveResponse
from plaid_relay_async.outcomes import Created, Failed, Outcome, Removed, Unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable


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
    _new: int = field(default=0, init=False)

    async def creation(self, request: RelayCreateRequest, namespace: str) -> Creation:
        """Enter a creation, once nobody else is at its pair."""
        pair = self.digests.pair(namespace, request.report_tokens, request.secondary_client_id)
        pause, longest = _LOOK_AGAIN
        while True:
            await self._turn(pair)
            try:
                entered = await self._enter(request, pair)
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
        self._under_way.pop(pair).set_result(None)

    async def _enter(self, request: RelayCreateRequest, pair: str) -> Creation | None:
        await self.writer.catch_up()
        found = await self._look_up(pair)
        decision = decide(found.own, found.claim, self.policy, alive=found.alive, late=found.late)
        if isinstance(decision, Wait):
            return None
        if isinstance(decision, Begin):
            values = self.writer.values(pair, request.secondary_client_id, decision.row)
            accept = accepted(values)
            if decision.row is None:
                self.writer.note(accept)
            doubt = next((row.doubt() for row in decision.retire if row.doubtful), None)
            return Creation(self, pair, Beginning(values, decision.retire), accept, doubt=doubt)
        if isinstance(decision, Refuse):
            return Creation(self, pair, known=await self._refused(request, pair, found.own, decision.why))
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

    async def _refused(self, request: RelayCreateRequest, pair: str, own: Row | None, why: str) -> Failed:
        error = DuplicateRequestError(why, advice='on_existing="create" makes another.')
        if own is None or own.free:
            values = self.writer.values(pair, request.secondary_client_id, own)
            if own is None:
                self.writer.note(accepted(values))
            await self.writer.note(ended(values["id"], State.FAILED, **facts_of(error)))
        return Failed(request=request, error=error, attempts=0, elapsed=0.0, request_id=None, journalled=True)

    async def removal(self, request: RelayRemoveRequest) -> Removal:
        """Enter the removal of a token, whether or not the journal knows of it."""
        await self.writer.catch_up()
        row = await self.writer.find(self.digests.token(request.relay_token))
        if row is None or row.state is not State.REMOVED:
            return Removal(self.writer, row)
        facts: dict[str, Any] = {"attempts": 0, "elapsed": 0.0, "request_id": None, "journalled": True}
        known = Removed(request=request, response=RelayRemoveResponse.gone(), **facts)
        return Removal(self.writer, row, known)


@define(eq=False, repr=False)
class Creation:
    """A creation that was entered: it may be begun, or it is known what became of it.

    Attributes:
        known: what became of it, if that is known; it has no beginning then.
        doubt: the error of the attempt that makes way for it.
        kept: always.
    """

    recorder: Recorder
    pair: str
    beginning: Beginning | None = None
    accept: Accept | None = None
    known: Outcome | None = None
    doubt: OutcomeUnknownError | None = None
    kept: bool = True
    _left_open: asyncio.Future[Answer] | None = field(default=None, init=False)

    async def begin(self) -> None:
        """Return once it is on record that an attempt is about to leave, and while the lease lasts.

        Raises:
            TakenError: somebody else was quicker.
            JournalError: it can't be written, or the lease has lapsed.
        """
        assert self.beginning is not None  # noqa: S101  # what is known isn't begun
        assert self.accept is not None  # noqa: S101
        self.accept.begun = True
        while True:
            since = Moment() if self.recorder.writer.leased else None
            noted = self.recorder.writer.note(self.beginning)
            # The first: where a later one isn't granted, nothing has left on the first one either.
            self._left_open = self._left_open or noted
            # Whoever is cancelled here has to know what was written all the same.
            left = await asyncio.shield(noted)
            if left is None:
                raise self.recorder.taken()
            if isinstance(left, JournalError):
                raise left
            self.beginning.retire = ()
            if since is None or since.passed() < left:
                return

    def end(self, outcome: Outcome) -> Awaitable[object]:
        """Take what became of it; what this gives is done once it is durable."""
        assert self.beginning is not None  # noqa: S101
        self._left_open = None
        facts: dict[str, Any] = {"attempts": outcome.attempts, "request_id": outcome.request_id}
        if isinstance(outcome, Created):
            state = State.CREATED
            facts["token"] = Hidden(outcome.relay_token)
        else:
            state = State.FAILED if isinstance(outcome, Failed) else State.UNKNOWN
            facts |= facts_of(outcome.error)
        return self.recorder.writer.note(ended(self.beginning.values["id"], state, **facts))

    def leave(self) -> None:
        """Nothing more comes of it here; what was begun and has no end never left."""
        self.recorder.leave(self.pair)
        if self._left_open is not None:
            self._left_open.add_done_callback(self._take_back)

    def _take_back(self, noted: asyncio.Future[Answer]) -> None:
        # One that failed may have been written all the same: its connection was lost before that was told.
        if self.beginning is None or not (noted.exception() or isinstance(noted.result(), float)):
            return
        state, facts = State.ACCEPTED, {}
        if self.doubt is not None:
            state, facts = State.UNKNOWN, facts_of(self.doubt)
        self.recorder.writer.note(ended(self.beginning.values["id"], state, **facts))


@define(eq=False, repr=False)
class Removal:
    """A removal that was entered.

    Attributes:
        known: its outcome, if the token was removed before.
    """

    writer: Writer
    row: Row | None
    known: Removed | None = None
    _left_open: asyncio.Future[Answer] | None = field(default=None, init=False)

    @property
    def kept(self) -> bool:
        """Whether the journal has the token."""
        return self.row is not None

    @property
    def doubt(self) -> OutcomeUnknownError | None:
        """The error of one that was begun before, by whoever."""
        if self.row is None or self.row.state is not State.REMOVING:
            return None
        return OutcomeUnknownError("a removal of it was begun, and its end isn't known", advice=REMOVE.advice)

    async def begin(self) -> None:
        """Return once it is on record that the token may be gone."""
        if self.row is not None:
            noted = self.writer.note(Change(self.row.id, State.REMOVING, under_way=True))
            self._left_open = self._left_open or noted
            await asyncio.shield(noted)

    def end(self, outcome: Removed | Failed | Unknown) -> Awaitable[object]:
        """Take what became of it."""
        self._left_open = None
        if self.row is None:
            return asyncio.sleep(0)
        state = State.REMOVING
        if isinstance(outcome, Removed):
            state = State.REMOVED
        elif isinstance(outcome, Failed):
            state = State.CREATED
        return self.writer.note(Change(self.row.id, state))

    def leave(self) -> None:
        """Nothing more comes of it here; what was begun and has no end never left."""
        if self._left_open is not None:
            self._left_open.add_done_callback(self._take_back)

    def _take_back(self, _: asyncio.Future[Answer]) -> None:
        assert self.row is not None  # noqa: S101  # what the journal doesn't have isn't begun in it
        self.writer.note(Change(self.row.id, self.row.state))
