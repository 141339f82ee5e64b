"""What is written about creations and removals: in groups, each in one transaction of one connection."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import define, frozen
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from plaid_relay_async.errors import Hidden, JournalError
from plaid_relay_async.journal.database import closed_error
from plaid_relay_async.journal.decisions import Row
from plaid_relay_async.journal.group_commit import GroupExecutor
from plaid_relay_async.journal.schema import CreationState, now
from plaid_relay_async.journal.statements import NO_WORKER, rows_parameter, statements_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sqlalchemy import Connection, CursorResult

    from plaid_relay_async.journal.database import Database, JournalConnection
    from plaid_relay_async.journal.workers import Liveness, Worker, WorkerRegistry

_ROWS_PER_WORKER: Final = 2**32
_REWRITE_DELAY: Final = 1.0  # seconds


class _CompareAndSetError(Exception):
    """Somebody else was quicker with a pair."""


@frozen
class PairLookup:
    """What the journal has on a pair: the row of this run, and the one with the claim; see `decide`."""

    own: Row | None
    holding: Row | None
    in_progress: bool
    maybe_in_flight: bool


EMPTY_LOOKUP: Final = PairLookup(None, None, in_progress=False, maybe_in_flight=False)


@define(eq=False, repr=False)
class RecordAccepted:
    """A creation was taken up, and has this row; `begun` once that says more."""

    values: dict[str, Any]
    superseded: bool = False


_FLUSH: Final = RecordAccepted({}, superseded=True)


@define(eq=False, repr=False)
class RecordIntent:
    """An attempt is about to leave."""

    values: dict[str, Any]
    retire: tuple[Row, ...] = ()


@frozen(eq=False, repr=False)
class RecordOutcome:
    """This is what became of a row, and the token that it has, if it has one."""

    values: dict[str, Any]
    token: Hidden[str] | None = None


@frozen(eq=False, repr=False)
class RecordRemovalIntent:
    """A removal of a row's token is about to leave."""

    row: Row


@frozen(eq=False, repr=False)
class RecordRemovalOutcome:
    """A removal isn't under way any more, and this is the state of its row."""

    row: int
    state: CreationState


@frozen(eq=False, repr=False)
class RenamePair:
    """A pair that an earlier release recorded under another name gets its present name."""

    former: str
    pair: str


WriteCommand: TypeAlias = (
    RecordAccepted | RecordIntent | RecordOutcome | RecordRemovalIntent | RecordRemovalOutcome | RenamePair
)
WriteResult: TypeAlias = float | JournalError | None
"""To a beginning: the seconds that the lease has left, or why it may not be; None if somebody was quicker."""


class Writer:
    """Writes for one holder, and looks up what there is.

    Args:
        database: where to.
        holders: who else is at work.
        holder: who is meant.
        run_id: the run that creations are written down under.
        patience: seconds for which a lost connection is taken up again.
        seal: gives the columns that a token has.

    Attributes:
        closing: whether nothing may be begun any more.
    """

    def __init__(
        self,
        database: Database,
        registry: WorkerRegistry,
        worker: Worker,
        *,
        run_id: int,
        retry_seconds: float,
        token_columns: Callable[[str], dict[str, str]],
    ) -> None:
        self._database = database
        self._statements = statements_for(database.kind)
        self._registry = registry
        self._worker = worker
        self._run_id = run_id
        self._retry_seconds = retry_seconds
        self._token_columns = token_columns
        self._new_rows = 0
        self._pending: list[WriteCommand] = []
        self._retry_timer: asyncio.TimerHandle | None = None
        self._failing = False
        self.closing = False
        # Each has a connection of its own, for one transaction at a time.
        self._commands: GroupExecutor[WriteCommand, WriteResult] = GroupExecutor(
            partial(self._write_group, database.new_connection()), process_cancelled=True
        )
        self._pair_lookups: GroupExecutor[str, PairLookup] = GroupExecutor(
            partial(self._look_up_pairs, database.new_connection()), process_cancelled=False
        )
        self._token_lookups: GroupExecutor[str, PairLookup] = GroupExecutor(
            partial(self._look_up_tokens, database.new_connection()), process_cancelled=False
        )

    @property
    def has_lease(self) -> bool:
        """Whether what may be begun depends on the time."""
        return self._worker.lease is not None

    async def set_request_seconds(self, request_seconds: float) -> None:
        """Let others know that a request may be under way for so long.

        Raises:
            JournalError: it can't be written.
        """
        await self._worker.set_request_seconds(request_seconds)

    def row_values(self, pair: str, partner: str, row: Row | None) -> dict[str, Any]:
        """Give what names a row: one that is there, or a new one."""
        if row is None:
            self._new_rows += 1
        number = self._worker.id * _ROWS_PER_WORKER + self._new_rows if row is None else row.id
        return {
            "id": number,
            "run_id": self._run_id,
            "pair": pair,
            "partner": partner,
            "holder_id": self._worker.id,
            "attempts": 0,
        }

    def look_up_pair(self, pair: str) -> Awaitable[PairLookup]:
        """Ask what there is on a pair."""
        return self._pair_lookups.submit(pair)

    def look_up_token(self, digest: str) -> Awaitable[PairLookup]:
        """Ask for the row of a token, whichever run's it is."""
        return self._token_lookups.submit(digest)

    def submit(self, note: WriteCommand) -> asyncio.Future[WriteResult]:
        """Have something written; what this gives is done once it is durable."""
        return self._commands.submit(note)

    @property
    def idle(self) -> bool:
        """Whether everything was written, as far as it could be."""
        return self._commands.idle

    async def drain(self) -> None:
        """Wait until everything was written, as far as it could be."""
        await self._commands.drain()

    async def write_pending(self) -> None:
        """Write what couldn't be written before: others wait for it.

        Raises:
            JournalError: it still can't be.
        """
        if self._pending:
            await self.submit(_FLUSH)

    def stop_intents(self) -> None:
        """Begin and look up nothing more; what has happened is still written."""
        self.closing = True
        self._retry_seconds = 0.0
        self._pair_lookups.stop(closed_error)
        self._token_lookups.stop(closed_error)

    async def close(self, *, drained: bool) -> None:
        """Write nothing more, and show other processes that this one has ended.

        It may be cancelled, and called again.

        Args:
            settled: whether nothing is in flight.
        """
        self._commands.stop(closed_error)
        await self._commands.drain()
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        await self._worker.deregister(drained=drained)

    # ------------------------------------------------------------------------------------- to look up

    async def _look_up_pairs(self, connection: JournalConnection, pairs: list[str]) -> list[PairLookup]:
        asked = rows_parameter([{"pair": pair} for pair in pairs]) | {"run": self._run_id}

        def work(connection: Connection) -> list[PairLookup]:
            def look() -> list[Row]:
                return [
                    Row(**row) for row in connection.execute(self._statements.select_pairs, asked).mappings()
                ]

            found, alive = self._registry.read_with_liveness(connection, look, _active_worker_ids)
            dead = [{"id": row.id} for row in found if row.claim and _is_abandoned(row, alive)]
            if dead:
                # A creation beside a token took the claim from it, and ended without passing it back.
                for settle in self._statements.reassign_holding:
                    connection.execute(settle, rows_parameter(dead))
                found, alive = self._registry.read_with_liveness(connection, look, _active_worker_ids)
            at = float(connection.execute(select(now())).scalar_one()) if alive.request_seconds else 0.0
            own = {row.pair: row for row in found if row.current and row.run_id == self._run_id}
            claims = {row.pair: row for row in found if row.claim}
            return [_to_lookup(own.get(pair), claims.get(pair), alive, at) for pair in pairs]

        return await self._database.run_transaction(connection, work, self._retry_seconds)

    async def _look_up_tokens(self, connection: JournalConnection, digests: list[str]) -> list[PairLookup]:
        asked = rows_parameter([{"token_digest": digest} for digest in digests])

        def work(connection: Connection) -> list[PairLookup]:
            def look() -> list[Row]:
                return [
                    Row(**row)
                    for row in connection.execute(self._statements.select_by_digest, asked).mappings()
                ]

            found, alive = self._registry.read_with_liveness(connection, look, _active_worker_ids)
            by_digest = {row.token_digest: row for row in found}
            return [_to_lookup(by_digest.get(digest), None, alive, 0.0) for digest in digests]

        return await self._database.run_transaction(connection, work, self._retry_seconds)

    # --------------------------------------------------------------------------------------- to write

    async def _write_group(
        self, connection: JournalConnection, notes: list[WriteCommand]
    ) -> list[WriteResult]:
        owed, self._pending = self._pending, []
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        try:
            answers = await self._write_or_split(connection, [*owed, *notes])
        except asyncio.CancelledError:
            self._pending = owed  # the group itself is repeated
            raise
        except BaseException:
            # What is about to leave doesn't then, but what has happened has.
            self._pending = [note for note in (*owed, *notes) if _is_fact(note)]
            self._retry_timer = asyncio.get_running_loop().call_later(_REWRITE_DELAY, self.submit, _FLUSH)
            self._failing = True
            raise
        self._failing = False
        return answers[len(owed) :]

    async def _write_or_split(
        self, connection: JournalConnection, notes: list[WriteCommand]
    ) -> list[WriteResult]:
        try:
            return await self._write_in_transaction(connection, notes)
        except (_CompareAndSetError, IntegrityError):
            pass
        return [await self._write_alone(connection, note) for note in notes]

    async def _write_alone(self, connection: JournalConnection, note: WriteCommand) -> WriteResult:
        if not isinstance(note, RecordIntent | RecordRemovalIntent):
            # Whoever got the claim as a late token came is there to be seen by now.
            return (await self._write_in_transaction(connection, [note]))[0]
        try:
            return (await self._write_in_transaction(connection, [note]))[0]
        except (_CompareAndSetError, IntegrityError):
            return None

    async def _write_in_transaction(
        self, connection: JournalConnection, notes: list[WriteCommand]
    ) -> list[WriteResult]:
        do, own = self._statements, {"holder_id": self._worker.id}
        accepted = [note.values for note in notes if isinstance(note, RecordAccepted) and not note.superseded]
        ended = [note for note in notes if isinstance(note, RecordOutcome)]
        removed = [
            own | {"id": note.row, "state": note.state}
            for note in notes
            if isinstance(note, RecordRemovalOutcome)
        ]
        begun = [note for note in notes if isinstance(note, RecordIntent | RecordRemovalIntent)]
        renamed = [
            {"former": note.former, "pair": note.pair} for note in notes if isinstance(note, RenamePair)
        ]

        def work(connection: Connection) -> list[WriteResult]:
            # With SQLite in a thread: it takes its time, and gives up the interpreter's lock on the way.
            sealed = [self._outcome_values(note) for note in ended]
            moved = self._rename_pairs(connection, renamed) if renamed else []
            pairs = [{"id": each["id"]} for each in (*sealed, *removed, *moved)]
            changes = [
                (do.insert_accepted, accepted),
                (do.update_outcomes, sealed),
                (do.update_removal_outcomes, removed),
            ]
            for statement, values in (*changes, *((settle, pairs) for settle in do.reassign_holding)):
                if values:
                    connection.execute(statement, rows_parameter(values))
            answer = self._record_intents(connection, begun) if begun else None
            return [
                answer if isinstance(note, RecordIntent | RecordRemovalIntent) else None for note in notes
            ]

        # After a failure that lasted that long there is one attempt: others wait behind it.
        return await self._database.run_transaction(
            connection, work, 0.0 if self._failing else self._retry_seconds
        )

    def _rename_pairs(self, connection: Connection, names: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rename pairs, and return the rows that were renamed."""
        found = connection.execute(
            self._statements.select_former_pairs, rows_parameter(names) | {"run": self._run_id}
        )
        moved = [dict(row) for row in found.mappings()]
        connection.execute(self._statements.rename_pairs, rows_parameter(moved))
        return moved

    def _outcome_values(self, note: RecordOutcome) -> dict[str, Any]:
        sealed = {} if note.token is None else self._token_columns(note.token.reveal())
        return note.values | sealed | {"holder_id": self._worker.id}

    def _record_intents(
        self, connection: Connection, notes: list[RecordIntent | RecordRemovalIntent]
    ) -> WriteResult:
        left = self._worker.lease_remaining(connection)
        if left <= 0:  # pragma: no cover  # behind a switch of greenlets, which coverage loses sight of
            return JournalError(
                "the lease on the journal lapsed: this process, or its machine, was held up for too long",
                advice="Nothing more was begun. Run it again: it goes on from where it was.",
            )
        removing = [_expected_values(note.row) for note in notes if isinstance(note, RecordRemovalIntent)]
        for values in removing:
            _check_one_row(
                connection.execute(
                    self._statements.update_removal_intent, values | {"holder": self._worker.id}
                )
            )
        creating = [note for note in notes if isinstance(note, RecordIntent)]
        for values in [_expected_values(row) for note in creating for row in note.retire]:
            _check_one_row(connection.execute(self._statements.retire_row, values | {"run": self._run_id}))
        if creating:
            begun = connection.execute(
                self._statements.upsert_intents, rows_parameter([note.values for note in creating])
            )
            if begun.rowcount != len(creating):
                raise _CompareAndSetError
        if removing:
            pairs = rows_parameter([{"id": values["row"]} for values in removing])
            for settle in self._statements.reassign_holding:
                connection.execute(settle, pairs)
        return left


def _expected_values(row: Row) -> dict[str, Any]:
    return {"row": row.id, "seen": row.state, "seen_holder": row.holder_id}


def _check_one_row(result: CursorResult[Any]) -> None:
    if result.rowcount != 1:
        raise _CompareAndSetError


def _has_active_worker(row: Row) -> bool:
    return row.holder_id != NO_WORKER and row.state in (CreationState.REMOVING, CreationState.INTENT)


def _active_worker_ids(found: Iterable[Row | None]) -> set[int]:
    return {row.holder_id for row in found if row is not None and _has_active_worker(row)}


def _to_lookup(own: Row | None, claim: Row | None, alive: Liveness, at: float) -> PairLookup:
    living = not alive.live_ids.isdisjoint(_active_worker_ids((own, claim)))
    return PairLookup(
        own, claim, living, maybe_in_flight=any(_may_be_in_flight(row, alive, at) for row in (own, claim))
    )


def _is_abandoned(row: Row, alive: Liveness) -> bool:
    return row.state is CreationState.INTENT and row.holder_id not in alive.live_ids


def _may_be_in_flight(row: Row | None, alive: Liveness, at: float) -> bool:
    # Only after a lapsed lease is it unknown whether the request is still in flight.
    if row is None or row.state is not CreationState.INTENT or row.holder_id not in alive.request_seconds:
        return False
    return at - (row.begun_at or 0.0) < alive.request_seconds[row.holder_id]


def _is_fact(note: WriteCommand) -> bool:
    return isinstance(note, RecordOutcome | RecordRemovalOutcome) or (
        isinstance(note, RecordAccepted) and not note.superseded
    )


def accepted_command(values: dict[str, Any], state: CreationState = CreationState.ACCEPTED) -> RecordAccepted:
    """Give the note of a creation that was taken up."""
    return RecordAccepted(values | {"state": state})


def outcome_command(
    number: int, state: CreationState, token: Hidden[str] | None = None, **facts: Any
) -> RecordOutcome:
    """Give the note of what became of a row."""
    told = {name: _escape_unstorable(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
    return RecordOutcome({"attempts": 0, **told, "id": number, "state": state}, token)


def _escape_unstorable(text: str) -> str:
    """Escape what a server may send and no database stores: the whole group would fail with it."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode(errors="backslashreplace").decode().replace("\0", r"\x00")
