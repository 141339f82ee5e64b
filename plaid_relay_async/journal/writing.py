"""What is written about creations and removals: in groups, each in one transaction of one connection."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import define, frozen
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from plaid_relay_async.errors import Hidden, JournalError
from plaid_relay_async.journal.database import closed
from plaid_relay_async.journal.decisions import Row
from plaid_relay_async.journal.groups import Groups
from plaid_relay_async.journal.schema import State, now
from plaid_relay_async.journal.statements import NOBODY, rows, statements

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sqlalchemy import Connection, CursorResult

    from plaid_relay_async.journal.database import Database, Line
    from plaid_relay_async.journal.holders import Alive, Holder, Holders

_ENTRIES_OF_A_HOLDER: Final = 2**32
_AGAIN_AFTER: Final = 1.0  # seconds


class _ThereFirstError(Exception):
    """Somebody else was quicker with a pair."""


@frozen
class Found:
    """What the journal has on a pair: the row of this run, and the one with the claim; see `decide`."""

    own: Row | None
    claim: Row | None
    alive: bool
    late: bool


NOTHING: Final = Found(None, None, alive=False, late=False)


@define(eq=False, repr=False)
class Accept:
    """A creation was taken up, and has this row; `begun` once that says more."""

    values: dict[str, Any]
    begun: bool = False


_NO_NEWS: Final = Accept({}, begun=True)


@define(eq=False, repr=False)
class Begin:
    """An attempt is about to leave."""

    values: dict[str, Any]
    retire: tuple[Row, ...] = ()


@frozen(eq=False, repr=False)
class End:
    """This is what became of a row, and the token that it has, if it has one."""

    values: dict[str, Any]
    token: Hidden[str] | None = None


@frozen(eq=False, repr=False)
class BeginRemoval:
    """A removal of a row's token is about to leave."""

    row: Row


@frozen(eq=False, repr=False)
class EndRemoval:
    """A removal isn't under way any more, and this is the state of its row."""

    row: int
    state: State


@frozen(eq=False, repr=False)
class Rename:
    """A pair that an earlier release recorded under another name gets its present name."""

    former: str
    pair: str


Note: TypeAlias = Accept | Begin | End | BeginRemoval | EndRemoval | Rename
Answer: TypeAlias = float | JournalError | None
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
        holders: Holders,
        holder: Holder,
        *,
        run_id: int,
        patience: float,
        seal: Callable[[str], dict[str, str]],
    ) -> None:
        self._database = database
        self._statements = statements(database.kind)
        self._holders = holders
        self._holder = holder
        self._run_id = run_id
        self._patience = patience
        self._seal = seal
        self._count = 0
        self._owed: list[Note] = []
        self._again: asyncio.TimerHandle | None = None
        self._failing = False
        self.closing = False
        # Each has a connection of its own, for one transaction at a time.
        self._notes: Groups[Note, Answer] = Groups(partial(self._write, database.line()), detached=True)
        self._pairs: Groups[str, Found] = Groups(partial(self._look_up, database.line()), detached=False)
        self._tokens: Groups[str, Found] = Groups(partial(self._find, database.line()), detached=False)

    @property
    def leased(self) -> bool:
        """Whether what may be begun depends on the time."""
        return self._holder.lease is not None

    async def allow(self, request_seconds: float) -> None:
        """Let others know that a request may be under way for so long.

        Raises:
            JournalError: it can't be written.
        """
        await self._holder.allow(request_seconds)

    def values(self, pair: str, partner: str, row: Row | None) -> dict[str, Any]:
        """Give what names a row: one that is there, or a new one."""
        if row is None:
            self._count += 1
        number = self._holder.id * _ENTRIES_OF_A_HOLDER + self._count if row is None else row.id
        return {
            "id": number,
            "run_id": self._run_id,
            "pair": pair,
            "partner": partner,
            "holder_id": self._holder.id,
            "attempts": 0,
        }

    def look_up(self, pair: str) -> Awaitable[Found]:
        """Ask what there is on a pair."""
        return self._pairs.put(pair)

    def find(self, digest: str) -> Awaitable[Found]:
        """Ask for the row of a token, whichever run's it is."""
        return self._tokens.put(digest)

    def note(self, note: Note) -> asyncio.Future[Answer]:
        """Have something written; what this gives is done once it is durable."""
        return self._notes.put(note)

    @property
    def idle(self) -> bool:
        """Whether everything was written, as far as it could be."""
        return self._notes.idle

    async def drain(self) -> None:
        """Wait until everything was written, as far as it could be."""
        await self._notes.drain()

    async def catch_up(self) -> None:
        """Write what couldn't be written before: others wait for it.

        Raises:
            JournalError: it still can't be.
        """
        if self._owed:
            await self.note(_NO_NEWS)

    def halt(self) -> None:
        """Begin and look up nothing more; what has happened is still written."""
        self.closing = True
        self._patience = 0.0
        self._pairs.stop(closed)
        self._tokens.stop(closed)

    async def close(self, *, settled: bool) -> None:
        """Write nothing more, and show other processes that this one has ended.

        It may be cancelled, and called again.

        Args:
            settled: whether nothing is in flight.
        """
        self._notes.stop(closed)
        await self._notes.drain()
        if self._again is not None:
            self._again.cancel()
        await self._holder.end(settled=settled)

    # ------------------------------------------------------------------------------------- to look up

    async def _look_up(self, line: Line, pairs: list[str]) -> list[Found]:
        asked = rows([{"pair": pair} for pair in pairs]) | {"run": self._run_id}

        def work(connection: Connection) -> list[Found]:
            def look() -> list[Row]:
                return [Row(**row) for row in connection.execute(self._statements.look_up, asked).mappings()]

            found, alive = self._holders.seen(connection, look, _at_work)
            dead = [{"id": row.id} for row in found if row.claim and _is_left_by_the_dead(row, alive)]
            if dead:
                # A creation beside a token took the claim from it, and ended without passing it back.
                for settle in self._statements.settle:
                    connection.execute(settle, rows(dead))
                found, alive = self._holders.seen(connection, look, _at_work)
            at = float(connection.execute(select(now())).scalar_one()) if alive.patience else 0.0
            own = {row.pair: row for row in found if row.current and row.run_id == self._run_id}
            claims = {row.pair: row for row in found if row.claim}
            return [_found(own.get(pair), claims.get(pair), alive, at) for pair in pairs]

        return await self._database.write(line, work, self._patience)

    async def _find(self, line: Line, digests: list[str]) -> list[Found]:
        asked = rows([{"token_digest": digest} for digest in digests])

        def work(connection: Connection) -> list[Found]:
            def look() -> list[Row]:
                return [Row(**row) for row in connection.execute(self._statements.find, asked).mappings()]

            found, alive = self._holders.seen(connection, look, _at_work)
            by_digest = {row.token_digest: row for row in found}
            return [_found(by_digest.get(digest), None, alive, 0.0) for digest in digests]

        return await self._database.write(line, work, self._patience)

    # --------------------------------------------------------------------------------------- to write

    async def _write(self, line: Line, notes: list[Note]) -> list[Answer]:
        owed, self._owed = self._owed, []
        if self._again is not None:
            self._again.cancel()
        try:
            answers = await self._at_once(line, [*owed, *notes])
        except asyncio.CancelledError:
            self._owed = owed  # the group itself is repeated
            raise
        except BaseException:
            # What is about to leave doesn't then, but what has happened has.
            self._owed = [note for note in (*owed, *notes) if _has_happened(note)]
            self._again = asyncio.get_running_loop().call_later(_AGAIN_AFTER, self.note, _NO_NEWS)
            self._failing = True
            raise
        self._failing = False
        return answers[len(owed) :]

    async def _at_once(self, line: Line, notes: list[Note]) -> list[Answer]:
        try:
            return await self._in_one(line, notes)
        except (_ThereFirstError, IntegrityError):
            pass
        return [await self._alone(line, note) for note in notes]

    async def _alone(self, line: Line, note: Note) -> Answer:
        if not isinstance(note, Begin | BeginRemoval):
            # Whoever got the claim as a late token came is there to be seen by now.
            return (await self._in_one(line, [note]))[0]
        try:
            return (await self._in_one(line, [note]))[0]
        except (_ThereFirstError, IntegrityError):
            return None

    async def _in_one(self, line: Line, notes: list[Note]) -> list[Answer]:
        do, own = self._statements, {"holder_id": self._holder.id}
        accepted = [note.values for note in notes if isinstance(note, Accept) and not note.begun]
        ended = [note for note in notes if isinstance(note, End)]
        removed = [
            own | {"id": note.row, "state": note.state} for note in notes if isinstance(note, EndRemoval)
        ]
        begun = [note for note in notes if isinstance(note, Begin | BeginRemoval)]
        renamed = [{"former": note.former, "pair": note.pair} for note in notes if isinstance(note, Rename)]

        def work(connection: Connection) -> list[Answer]:
            # With SQLite in a thread: it takes its time, and gives up the interpreter's lock on the way.
            sealed = [self._columns(note) for note in ended]
            moved = self._rename(connection, renamed) if renamed else []
            pairs = [{"id": each["id"]} for each in (*sealed, *removed, *moved)]
            changes = [(do.accept, accepted), (do.end, sealed), (do.remove, removed)]
            for statement, values in (*changes, *((settle, pairs) for settle in do.settle)):
                if values:
                    connection.execute(statement, rows(values))
            answer = self._begin(connection, begun) if begun else None
            return [answer if isinstance(note, Begin | BeginRemoval) else None for note in notes]

        # After a failure that lasted that long there is one attempt: others wait behind it.
        return await self._database.write(line, work, 0.0 if self._failing else self._patience)

    def _rename(self, connection: Connection, names: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rename pairs, and return the rows that were renamed."""
        found = connection.execute(self._statements.named, rows(names) | {"run": self._run_id})
        moved = [dict(row) for row in found.mappings()]
        connection.execute(self._statements.rename, rows(moved))
        return moved

    def _columns(self, note: End) -> dict[str, Any]:
        sealed = {} if note.token is None else self._seal(note.token.reveal())
        return note.values | sealed | {"holder_id": self._holder.id}

    def _begin(self, connection: Connection, notes: list[Begin | BeginRemoval]) -> Answer:
        left = self._holder.left(connection)
        if left <= 0:  # pragma: no cover  # behind a switch of greenlets, which coverage loses sight of
            return JournalError(
                "the lease on the journal lapsed: this process, or its machine, was held up for too long",
                advice="Nothing more was begun. Run it again: it goes on from where it was.",
            )
        removing = [_seen(note.row) for note in notes if isinstance(note, BeginRemoval)]
        for values in removing:
            _one(connection.execute(self._statements.removing, values | {"holder": self._holder.id}))
        creating = [note for note in notes if isinstance(note, Begin)]
        for values in [_seen(row) for note in creating for row in note.retire]:
            _one(connection.execute(self._statements.retire, values | {"run": self._run_id}))
        if creating:
            begun = connection.execute(self._statements.begin, rows([note.values for note in creating]))
            if begun.rowcount != len(creating):
                raise _ThereFirstError
        if removing:
            pairs = rows([{"id": values["row"]} for values in removing])
            for settle in self._statements.settle:
                connection.execute(settle, pairs)
        return left


def _seen(row: Row) -> dict[str, Any]:
    return {"row": row.id, "seen": row.state, "seen_holder": row.holder_id}


def _one(result: CursorResult[Any]) -> None:
    if result.rowcount != 1:
        raise _ThereFirstError


def _is_at_work(row: Row) -> bool:
    return row.holder_id != NOBODY and row.state in (State.REMOVING, State.BEGUN)


def _at_work(found: Iterable[Row | None]) -> set[int]:
    return {row.holder_id for row in found if row is not None and _is_at_work(row)}


def _found(own: Row | None, claim: Row | None, alive: Alive, at: float) -> Found:
    living = not alive.living.isdisjoint(_at_work((own, claim)))
    return Found(own, claim, living, late=any(_is_late(row, alive, at) for row in (own, claim)))


def _is_left_by_the_dead(row: Row, alive: Alive) -> bool:
    return row.state is State.BEGUN and row.holder_id not in alive.living


def _is_late(row: Row | None, alive: Alive, at: float) -> bool:
    # Only after a lapsed lease is it unknown whether the request is still in flight.
    if row is None or row.state is not State.BEGUN or row.holder_id not in alive.patience:
        return False
    return at - (row.begun_at or 0.0) < alive.patience[row.holder_id]


def _has_happened(note: Note) -> bool:
    return isinstance(note, End | EndRemoval) or (isinstance(note, Accept) and not note.begun)


def accepted(values: dict[str, Any], state: State = State.ACCEPTED) -> Accept:
    """Give the note of a creation that was taken up."""
    return Accept(values | {"state": state})


def ended(number: int, state: State, token: Hidden[str] | None = None, **facts: Any) -> End:
    """Give the note of what became of a row."""
    told = {name: _storable(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
    return End({"attempts": 0, **told, "id": number, "state": state}, token)


def _storable(text: str) -> str:
    """Escape what a server may send and no database stores: the whole group would fail with it."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode(errors="backslashreplace").decode().replace("\0", r"\x00")
