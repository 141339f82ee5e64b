"""Write commands and look-ups of one worker.

A write command is one change to the journal, such as a new creation, an intent, or an outcome. Commands are
written by group commit: those that arrive while one transaction runs share the next transactions. Look-ups
share transactions in the same way, on separate connections, so that they don't wait behind writes.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import define, frozen
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from plaid_relay_async.display import escape_surrogates
from plaid_relay_async.journal.database import JOURNAL
from plaid_relay_async.journal.decisions import Row
from plaid_relay_async.journal.group_commit import GroupExecutor
from plaid_relay_async.journal.schema import CreationState, now
from plaid_relay_async.journal.statements import NO_WORKER, rows_parameter, statements_for
from plaid_relay_async.redaction import Hidden

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sqlalchemy import Connection, CursorResult

    from plaid_relay_async.journal.database import Database, JournalConnection
    from plaid_relay_async.journal.workers import Liveness, Worker, WorkerRegistry

# Each worker numbers its new rows from a multiple of this, so that workers need no common sequence.
_ROWS_PER_WORKER: Final = 2**32
_REWRITE_DELAY: Final = 1.0  # seconds until commands that couldn't be written are written again


class _CompareAndSetError(Exception):
    """A row isn't in the expected state: another call has changed it since it was read."""


@frozen
class PairLookup:
    """The recorded state of a pair, from which `decide` makes its decision.

    Attributes:
        own: the current row of this run; after `look_up_token`, the row of the token.
        holding: the row, of any run, that holds the pair.
        in_progress: whether a live worker is creating or removing a token of the pair.
        maybe_in_flight: whether a request of a worker with an expired lease may still be in flight.
    """

    own: Row | None
    holding: Row | None
    in_progress: bool
    maybe_in_flight: bool


# Stands for a look-up that was skipped. It is compared by identity, because the look-up of a new pair is
# equal to it.
ASSUMED_NEW: Final = PairLookup(None, None, in_progress=False, maybe_in_flight=False)


@define(eq=False, repr=False)
class InsertCreation:
    """A creation isn't attempted yet, or another run holds its pair.

    Attributes:
        values: the columns of its new row.
        skip: whether the command needs no write any more, because an intent for the same row follows it, or
            because the pair is looked up again.
    """

    values: dict[str, Any]
    skip: bool = False


# A command that writes nothing itself: its group writes the commands that are still pending.
_FLUSH: Final = InsertCreation({}, skip=True)


@define(eq=False, repr=False)
class RecordIntent:
    """An attempt is about to be sent.

    Attributes:
        values: the columns of its row.
        retire: rows that lose the pair to it. If one has changed since it was read, the intent has lost the
            race.
    """

    values: dict[str, Any]
    retire: tuple[Row, ...] = ()


@frozen(eq=False, repr=False)
class RecordOutcome:
    """A creation has ended.

    Attributes:
        values: the columns of its row that change; the `worker_id` of the attempt is by default this one's.
        token: the relay token that it received, if any.
    """

    values: dict[str, Any]
    token: Hidden[str] | None = None


@frozen(eq=False, repr=False)
class UndoIntent:
    """An intent to create is undone, because no attempt can have been executed.

    Attributes:
        values: the columns of its row as they are restored.
    """

    values: dict[str, Any]


@frozen(eq=False, repr=False)
class RecordRemovalIntent:
    """A removal of a row's token is about to be sent.

    Attributes:
        row: the row, as it was read.
    """

    row: Row


@frozen(eq=False, repr=False)
class RecordRemovalOutcome:
    """A removal has ended, or its intent is undone.

    Attributes:
        row_id: the ID of its row.
        state: the new state of the row.
    """

    row_id: int
    state: CreationState


@frozen(eq=False, repr=False)
class RenamePair:
    """A pair that an earlier version recorded under another digest gets its current digest.

    Attributes:
        former: the digest with the host as it was typed.
        pair: the digest with the normal spelling of the host.
    """

    former: str
    pair: str


WriteCommand: TypeAlias = (
    InsertCreation
    | RecordIntent
    | RecordOutcome
    | UndoIntent
    | RecordRemovalIntent
    | RecordRemovalOutcome
    | RenamePair
)


@frozen
class IntentGranted:
    """The intent is durable: its attempt may be sent before the lease expires.

    Attributes:
        lease_remaining: seconds that were left of the worker's lease in the transaction; infinite without a
            lease.
    """

    lease_remaining: float


@frozen
class LeaseExpired:
    """The worker's lease has expired: other workers may have taken over, so the intent wasn't recorded."""


@frozen
class LostRace:
    """The intent wasn't recorded, because another call has changed one of its rows."""


IntentResult: TypeAlias = IntentGranted | LeaseExpired | LostRace
WriteResult: TypeAlias = IntentResult | None
"""The result of an intent; `None` for any other command."""


class Writer:
    """The commands and look-ups of one worker.

    Args:
        database: the journal's database.
        registry: all workers of the journal.
        worker: the worker that writes.
        run_id: the run of its creations.
        retry_seconds: seconds for which a transaction is repeated after a temporary error.
        token_columns: returns the columns in which a relay token is stored.
        on_commit: called with the seconds that each transaction took.

    Attributes:
        closing: whether the journal is being closed, so that no intent is accepted any more.
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
        on_commit: Callable[[float], object] | None = None,
    ) -> None:
        self._database = database
        self._statements = statements_for(database.kind)
        self._registry = registry
        self._worker = worker
        self._run_id = run_id
        self._retry_seconds = retry_seconds
        self._token_columns = token_columns
        self._on_commit = on_commit
        self._new_rows = 0
        self._pending: list[WriteCommand] = []
        self._retry_timer: asyncio.TimerHandle | None = None
        self._failing = False
        self.closing = False
        # Each executor has its own connection, for one transaction at a time. A command is written even if
        # its caller was cancelled, because it may record what has happened. A cancelled look-up isn't
        # repeated.
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
        """Whether the worker has a lease, so that an intent is valid for a limited time."""
        return self._worker.lease is not None

    async def set_request_seconds(self, request_seconds: float) -> None:
        """Record how many seconds a request of this worker may be in flight.

        Raises:
            JournalError: the journal can't be written.
        """
        await self._worker.set_request_seconds(request_seconds)

    def row_values(self, pair: str, partner: str, row: Row | None) -> dict[str, Any]:
        """Return the columns for a command that writes a given row, or a new one with a new ID."""
        if row is None:
            self._new_rows += 1
        row_id = self._worker.id * _ROWS_PER_WORKER + self._new_rows if row is None else row.id
        return {
            "id": row_id,
            "run_id": self._run_id,
            "pair": pair,
            "partner": partner,
            "worker_id": self._worker.id,
            "attempts": 0,
        }

    def look_up_pair(self, pair: str) -> Awaitable[PairLookup]:
        """Return an awaitable of the recorded state of a pair."""
        return self._pair_lookups.submit(pair)

    def look_up_token(self, digest: str) -> Awaitable[PairLookup]:
        """Return an awaitable of the state of a token: its row, of any run, is `own`."""
        return self._token_lookups.submit(digest)

    def submit(self, command: WriteCommand) -> asyncio.Future[WriteResult]:
        """Add a command to the next group; return a future that is done once the command is durable.

        The future fails with `JournalError` if the command can't be written.
        """
        return self._commands.submit(command)

    @property
    def idle(self) -> bool:
        """Whether each command was written, or has failed."""
        return self._commands.idle

    async def drain(self) -> None:
        """Wait until each command was written, or has failed."""
        await self._commands.drain()

    async def write_pending(self) -> None:
        """Write the commands that couldn't be written before; other processes may wait for their outcomes.

        Raises:
            JournalError: they still can't be written.
        """
        if self._pending:
            await self.submit(_FLUSH)

    def stop_intents(self) -> None:
        """Accept no further intent or look-up. Outcomes are still written, but no transaction is repeated."""
        self.closing = True
        self._retry_seconds = 0.0
        self._pair_lookups.stop(JOURNAL.closed_error)
        self._token_lookups.stop(JOURNAL.closed_error)

    async def close(self, *, drained: bool) -> None:
        """Stop writing, and deregister the worker.

        It may be cancelled, and called again.

        Args:
            drained: whether no request is in flight.
        """
        self._commands.stop(JOURNAL.closed_error)
        await self._commands.drain()
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        await self._worker.deregister(drained=drained)

    # -------------------------------------------------------------------------------------- look-ups

    async def _look_up_pairs(self, connection: JournalConnection, pairs: list[str]) -> list[PairLookup]:
        parameters = rows_parameter([{"pair": pair} for pair in pairs]) | {"run": self._run_id}

        def work(connection: Connection) -> list[PairLookup]:
            def read() -> list[Row]:
                result = connection.execute(self._statements.select_pairs, parameters)
                return [Row(**row) for row in result.mappings()]

            rows, liveness = self._registry.read_with_liveness(connection, read, _worker_ids_to_check)
            abandoned = [{"id": row.id} for row in rows if row.holds_pair and _is_abandoned(row, liveness)]
            if abandoned:
                # The worker of such an intent is dead. If the intent was for a second token, it has taken the
                # pair from the row with the first token, and that row gets the pair back. Otherwise the
                # abandoned row keeps the pair, and is in doubt.
                for statement in self._statements.reassign_holding:
                    connection.execute(statement, rows_parameter(abandoned))
                rows, liveness = self._registry.read_with_liveness(connection, read, _worker_ids_to_check)
            # The database's clock has set `begun_at`, so only that clock can say how long ago it was.
            time = float(connection.execute(select(now())).scalar_one()) if liveness.request_seconds else 0.0
            own = {row.pair: row for row in rows if row.current and row.run_id == self._run_id}
            holding = {row.pair: row for row in rows if row.holds_pair}
            return [_to_lookup(own.get(pair), holding.get(pair), liveness, time) for pair in pairs]

        return await self._database.run_transaction(connection, work, self._retry_seconds)

    async def _look_up_tokens(self, connection: JournalConnection, digests: list[str]) -> list[PairLookup]:
        parameters = rows_parameter([{"token_digest": digest} for digest in digests])

        def work(connection: Connection) -> list[PairLookup]:
            def read() -> list[Row]:
                result = connection.execute(self._statements.select_by_digest, parameters)
                return [Row(**row) for row in result.mappings()]

            rows, liveness = self._registry.read_with_liveness(connection, read, _worker_ids_to_check)
            by_digest = {row.token_digest: row for row in rows}
            # The time matters only for an intent to create; no row with a token digest has one.
            return [_to_lookup(by_digest.get(digest), None, liveness, 0.0) for digest in digests]

        return await self._database.run_transaction(connection, work, self._retry_seconds)

    # ---------------------------------------------------------------------------------------- writes

    async def _write_group(
        self, connection: JournalConnection, commands: list[WriteCommand]
    ) -> list[WriteResult]:
        pending, self._pending = self._pending, []
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        try:
            results = await self._write_or_split(connection, [*pending, *commands])
        except asyncio.CancelledError:
            self._pending = pending  # the executor repeats the group itself
            raise
        except BaseException:
            # The caller of an intent gets the error and sends nothing. Outcomes and new creations are kept
            # until they can be written.
            self._pending = [command for command in (*pending, *commands) if _must_be_written(command)]
            self._retry_timer = asyncio.get_running_loop().call_later(_REWRITE_DELAY, self.submit, _FLUSH)
            self._failing = True
            raise
        self._failing = False
        return results[len(pending) :]

    async def _write_or_split(
        self, connection: JournalConnection, commands: list[WriteCommand]
    ) -> list[WriteResult]:
        # One lost race rolls back the transaction of all commands, so each is then written by itself.
        try:
            return await self._write_in_transaction(connection, commands)
        except (_CompareAndSetError, IntegrityError):
            pass
        return [await self._write_alone(connection, command) for command in commands]

    async def _write_alone(self, connection: JournalConnection, command: WriteCommand) -> WriteResult:
        if not isinstance(command, RecordIntent | RecordRemovalIntent):
            # A late token and another worker's new intent may take the pair at the same time. If the database
            # has rejected the token, the intent is committed by now: this transaction sees it and succeeds.
            return (await self._write_in_transaction(connection, [command]))[0]
        try:
            return (await self._write_in_transaction(connection, [command]))[0]
        except (_CompareAndSetError, IntegrityError):
            return LostRace()

    async def _write_in_transaction(
        self, connection: JournalConnection, commands: list[WriteCommand]
    ) -> list[WriteResult]:
        statements, worker_column = self._statements, {"worker_id": self._worker.id}
        insertions = [
            command.values for command in commands if isinstance(command, InsertCreation) and not command.skip
        ]
        outcomes = [command for command in commands if isinstance(command, RecordOutcome)]
        undone = [worker_column | command.values for command in commands if isinstance(command, UndoIntent)]
        removals = [
            worker_column | {"id": command.row_id, "state": command.state}
            for command in commands
            if isinstance(command, RecordRemovalOutcome)
        ]
        intents = [command for command in commands if isinstance(command, RecordIntent | RecordRemovalIntent)]
        renames = [
            {"former": command.former, "pair": command.pair}
            for command in commands
            if isinstance(command, RenamePair)
        ]

        def work(connection: Connection) -> list[WriteResult]:
            # Tokens are encrypted here because that takes long, and with SQLite this function runs in a
            # thread, not in the event loop.
            creations = [self._outcome_values(command) for command in outcomes]
            renamed = self._rename_pairs(connection, renames) if renames else []
            changed_rows = [{"id": each["id"]} for each in (*creations, *undone, *removals, *renamed)]
            # Outcomes are written before intents: an intent in this group may follow on one of them.
            changes = [
                (statements.insert_creations, insertions),
                (statements.update_outcomes, creations),
                (statements.undo_intents, undone),
                (statements.update_removal_outcomes, removals),
            ]
            for statement, values in (
                *changes,
                *((statement, changed_rows) for statement in statements.reassign_holding),
            ):
                if values:
                    connection.execute(statement, rows_parameter(values))
            result = self._record_intents(connection, intents) if intents else None
            return [
                result if isinstance(command, RecordIntent | RecordRemovalIntent) else None
                for command in commands
            ]

        # After a group has failed, each group is tried only once until one succeeds: all other commands wait
        # behind the group that is being written.
        started = asyncio.get_running_loop().time()
        results = await self._database.run_transaction(
            connection, work, 0.0 if self._failing else self._retry_seconds
        )
        if self._on_commit is not None:
            self._on_commit(asyncio.get_running_loop().time() - started)
        return results

    def _rename_pairs(self, connection: Connection, renames: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rename pairs, and return the rows that were renamed."""
        result = connection.execute(
            self._statements.select_former_pairs, rows_parameter(renames) | {"run": self._run_id}
        )
        renamed = [dict(row) for row in result.mappings()]
        connection.execute(self._statements.rename_pairs, rows_parameter(renamed))
        return renamed

    def _outcome_values(self, command: RecordOutcome) -> dict[str, Any]:
        token = {} if command.token is None else self._token_columns(command.token.reveal())
        return {"worker_id": self._worker.id} | command.values | token

    def _record_intents(
        self, connection: Connection, commands: list[RecordIntent | RecordRemovalIntent]
    ) -> IntentResult:
        # A worker whose lease has expired may record outcomes, but no intents. Reading the lease locks the
        # worker's row, so that the lease doesn't change until the commit.
        remaining = self._worker.lease_remaining(connection)
        if remaining <= 0:  # pragma: no cover  # after a switch of greenlets, which coverage can't follow
            return LeaseExpired()
        removals = [
            _expected_values(command.row) for command in commands if isinstance(command, RecordRemovalIntent)
        ]
        for values in removals:
            _check_one_row(
                connection.execute(
                    self._statements.update_removal_intent, values | {"worker": self._worker.id}
                )
            )
        creations = [command for command in commands if isinstance(command, RecordIntent)]
        for values in [_values_to_retire(row) for command in creations for row in command.retire]:
            _check_one_row(connection.execute(self._statements.retire_row, values | {"run": self._run_id}))
        if creations:
            result = connection.execute(
                self._statements.upsert_intents, rows_parameter([command.values for command in creations])
            )
            if result.rowcount != len(creations):
                raise _CompareAndSetError
        if removals:
            changed_rows = rows_parameter([{"id": values["row"]} for values in removals])
            for statement in self._statements.reassign_holding:
                connection.execute(statement, changed_rows)
        return IntentGranted(remaining)


def _expected_values(row: Row) -> dict[str, Any]:
    return {"row": row.id, "expected_state": row.state, "expected_worker": row.worker_id}


def _values_to_retire(row: Row) -> dict[str, Any]:
    return _expected_values(row) | {"expected_retrieval": row.retrieved_at}


def _check_one_row(result: CursorResult[Any]) -> None:
    if result.rowcount != 1:
        raise _CompareAndSetError


def _depends_on_worker(row: Row) -> bool:
    return row.worker_id != NO_WORKER and row.state in (CreationState.REMOVING, CreationState.INTENT)


def _worker_ids_to_check(rows: Iterable[Row | None]) -> set[int]:
    return {row.worker_id for row in rows if row is not None and _depends_on_worker(row)}


def _to_lookup(own: Row | None, holding: Row | None, liveness: Liveness, time: float) -> PairLookup:
    in_progress = not liveness.live_ids.isdisjoint(_worker_ids_to_check((own, holding)))
    return PairLookup(
        own,
        holding,
        in_progress,
        maybe_in_flight=any(_may_be_in_flight(row, liveness, time) for row in (own, holding)),
    )


def _is_abandoned(row: Row, liveness: Liveness) -> bool:
    return row.state is CreationState.INTENT and row.worker_id not in liveness.live_ids


def _may_be_in_flight(row: Row | None, liveness: Liveness, time: float) -> bool:
    # A worker whose lease has expired may be suspended, and may continue later. A worker that has
    # deregistered has no request in flight. On SQLite, a worker that doesn't hold its lock has ended.
    if row is None or row.state is not CreationState.INTENT or row.worker_id not in liveness.request_seconds:
        return False
    return time - (row.begun_at or 0.0) < liveness.request_seconds[row.worker_id]


def _must_be_written(command: WriteCommand) -> bool:
    return isinstance(command, RecordOutcome | UndoIntent | RecordRemovalOutcome) or (
        isinstance(command, InsertCreation) and not command.skip
    )


def insert_command(
    values: dict[str, Any], state: CreationState = CreationState.NOT_ATTEMPTED
) -> InsertCreation:
    """Return the command for a creation that isn't attempted yet, or whose pair another run holds.

    Args:
        values: the columns of its new row, without the state.
        state: `NOT_ATTEMPTED` or `HELD_ELSEWHERE`.
    """
    return InsertCreation(values | {"state": state})


def outcome_command(
    row_id: int, state: CreationState, token: Hidden[str] | None = None, **columns: Any
) -> RecordOutcome:
    """Return the command for the outcome of a creation.

    Args:
        row_id: the ID of its row.
        state: the new state of the row.
        token: its relay token, if it received one.
        columns: the number of attempts, Plaid's request ID, the error's columns, and the worker's ID.
    """
    values = {
        name: _escape_unstorable(value) if isinstance(value, str) else value
        for name, value in columns.items()
    }
    return RecordOutcome({"attempts": 0, **values, "id": row_id, "state": state}, token)


def _escape_unstorable(text: str) -> str:
    """Escape characters that a database may reject. One of them would make a whole group of commands fail."""
    if text.isascii() and "\0" not in text:
        return text
    return escape_surrogates(text).replace("\0", r"\x00")
