"""`Journal`: what a client and a batch write into, and what a person asks afterwards."""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial
from pathlib import Path  # noqa: TC003  # its documentation resolves it
from typing import TYPE_CHECKING, Any, Self, TypeVar

from attrs import define
from sqlalchemy import exists, select, update
from sqlalchemy.dialects import postgresql, sqlite

from plaid_relay_async.cancellation import finish
from plaid_relay_async.config import check_seconds
from plaid_relay_async.errors import ConfigurationError, Hidden, JournalError, sealed, sealed_init
from plaid_relay_async.journal.database import Database, Line, telling
from plaid_relay_async.journal.decisions import OnExisting, Policy
from plaid_relay_async.journal.holders import Holders
from plaid_relay_async.journal.keys import Digests, Keyring, keyring
from plaid_relay_async.journal.recording import Creation, Recorder, Removal, Unrecorded
from plaid_relay_async.journal.records import PAGE, Record, RunStatus, page_of, record, status_of
from plaid_relay_async.journal.schema import entries, journals, now, prepare, runs
from plaid_relay_async.journal.statements import rows, statements
from plaid_relay_async.journal.writing import Writer
from plaid_relay_async.models import RelayCreateRequest, RelayRemoveRequest

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from types import TracebackType

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from plaid_relay_async.batch import Caller

T = TypeVar("T")

_UNBOUNDED = 3600.0  # seconds that a request may take whose client sets it no time
_LEASES = 10  # for a transaction that isn't a call's: it may read or change millions of rows
_ROTATED = 500  # tokens in one transaction
_NEW_RUN = {
    name: dialect.insert(runs).on_conflict_do_nothing()
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}


@define(eq=False, repr=False)
class _Opened:
    """What there is while a journal is open.

    Attributes:
        loop: the event loop in which it was opened.
        recorder: once something was entered.
        seconds: that others know a request of the recorder's may be under way for.
        closing: once it is being closed, the moment after which no call is waited for.
    """

    loop: asyncio.AbstractEventLoop
    digests: Digests
    holders: Holders
    line: Line
    recorder: Recorder | None = None
    seconds: float = 0.0
    closing: float | None = None


@sealed_init
class Journal:
    """A durable record of creations, in SQLite or PostgreSQL; use it with `async with`, in one event loop.

    Pass it as `journal=` to `client.relay.create`, `create_many`, `remove` and `remove_many`. A pair of
    report and partner for which it has a token is served from it, and none is begun twice, whoever asks.

    Args:
        url: the path of a file, a URL of SQLite or PostgreSQL, or an `AsyncEngine`, which stays the caller's.
            A path is resolved immediately, with its symbolic links.
        run: the name under which creations are written down.
        key: a Fernet key, or several, or the `Path` of a file (0600) that holds them, which is read at once:
            the first one encrypts, all of them decrypt; commas separate several in one string. Without,
            PLAID_RELAY_KEY; without that, tokens lie in it in clear, which is said once.
        namespace: what sets its pairs apart, in place of host and client id; behind a gateway, which has the
            client id, it has to be given.
        on_existing: what happens to a pair that has a token from another run: `"reuse"` serves it,
            `"refuse"` fails, `"create"` makes another.
        retry_unknown: create again if it is unknown whether there is a token; there may be two then.
        retry_failed: create again if Plaid refused the request, once the reason is fixed. A failure that may
            pass by itself is attempted again in any case.
        lease: seconds without a renewal after which other processes consider this one dead; for PostgreSQL.

    Raises:
        ConfigurationError: an argument or PLAID_RELAY_KEY can't be used, or the address may have been meant
            in another way; the message says why.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | AsyncEngine,
        *,
        run: str = "default",
        key: str | bytes | Sequence[str | bytes] | Path | None = None,
        namespace: str | None = None,
        on_existing: OnExisting = "reuse",
        retry_unknown: bool = False,
        retry_failed: bool = False,
        lease: float = 30.0,
    ) -> None:
        if on_existing not in {"reuse", "refuse", "create"}:
            raise ConfigurationError(
                f"on_existing must be 'reuse', 'refuse' or 'create', not {on_existing!r}"
            )
        _check_word("run", run)
        if namespace is not None:
            _check_word("namespace", namespace)
        check_seconds("lease", lease)
        self._database = Database(url, lease)
        self._run = run
        self._keyring = keyring(key)
        self._namespace = namespace
        self._on_existing: OnExisting = on_existing
        self._retry_unknown = retry_unknown
        self._retry_failed = retry_failed
        self._lease = float(lease)
        self._long = max(_LEASES * self._lease, self._database.limit)
        self._opened: _Opened | None = None
        self._joining = asyncio.Lock()

    @property
    def path(self) -> Path | None:
        """The file that it is stored in, without symbolic links; `None` for PostgreSQL."""
        return self._database.path

    def __repr__(self) -> str:
        return f"<Journal, run {self._run!r}>"

    # ------------------------------------------------------------------------------------ open and close

    async def open(self) -> None:
        """Open it, and make its tables if they aren't there; `async with` does it.

        Raises:
            JournalError: it can't be read or written, or a later release made it.
            ConfigurationError: its key is another, other users may read the file, an option of the URL is
                invalid, or the encoding isn't UTF8.
        """
        if self._opened is not None:
            raise JournalError("the journal is open already")
        try:
            await self._open()
        except BaseException:
            self._opened = None
            await finish(self._database.close)
            raise

    async def _open(self) -> None:
        await self._database.open()
        line = self._database.line()
        fresh = secrets.token_hex(32)

        def work(connection: Connection) -> str:
            return prepare(connection, self._keyring.lock(fresh))

        with telling(self._database.path):
            await self._database.check(line)
            stored = await line.run(work, self._long)
        self._opened = _Opened(
            asyncio.get_running_loop(),
            Digests(self._keyring.open(stored)),
            Holders(self._database, self._database.line()),
            line,
        )
        if not self._keyring.is_up_to_date(stored):
            await self._wrap(stored)

    async def _wrap(self, stored: str) -> None:
        """Have today's key open what an older one did, and leave nothing in clear that was so."""
        if Keyring.is_clear(stored):
            await self.rotate()  # first: that the pair key is in clear says that tokens may be
        wrapped = self._keyring.lock(self._keyring.open(stored))

        def work(connection: Connection) -> None:
            connection.execute(update(journals).where(journals.c.pair_key == stored).values(pair_key=wrapped))

        await self._write(work)
        if Keyring.is_clear(stored):
            await self._database.clear_log(self._state.line)

    async def close(self) -> None:
        """Write everything that is known, and close the journal; `async with` does it.

        No further call begins. Calls in flight are waited for as long as the lease; an outcome that arrives
        later has `journalled=False`. A cancellation is raised once the journal is closed. Closing it more
        than once is harmless.
        """
        if self._opened is not None and self._opened.closing is None:
            bound = max(self._lease, self._database.limit)
            self._opened.closing = asyncio.get_running_loop().time() + bound
        await finish(self._close)

    async def _close(self) -> None:
        async with self._joining:
            opened = self._opened
            if opened is None or opened.closing is None:
                return
            if opened.recorder is not None:
                await opened.recorder.close(opened.closing)
            await self._database.close()
            self._opened = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _state(self) -> _Opened:
        if self._opened is None or self._opened.closing is not None:
            raise JournalError(
                "the journal isn't open", advice="Use it inside `async with Journal(...) as journal:`."
            )
        return self._opened

    def _check_loop(self) -> None:
        # Not in `_state`, which threads that run transactions use as well.
        if self._state.loop is not asyncio.get_running_loop():
            raise JournalError(
                "the journal was opened in another event loop", advice="Open one in each event loop."
            )

    # -------------------------------------------------------------------------------- for clients and batches

    async def enter(
        self, request: RelayCreateRequest | RelayRemoveRequest, caller: Caller
    ) -> Creation | Removal | Unrecorded:
        """Enter a creation or a removal; for clients and batches.

        A creation waits while somebody else is at the same pair.

        Raises:
            ConfigurationError: it has no namespace.
            JournalError: it can't be read or written, or was opened in another event loop.
        """
        self._check_loop()
        recorder = await self._recorder(caller)
        if isinstance(request, RelayRemoveRequest):
            return await recorder.removal(request)
        namespace, former = await self._namespaces_of(caller)
        policy = recorder.policy.adapted(retry_unknown=caller.retry_unknown, retry_failed=caller.retry_failed)
        return await recorder.creation(request, policy, namespace, former)

    async def _namespaces_of(self, caller: Caller) -> tuple[str, str | None]:
        """Return the namespace, and that of earlier releases if it was a different one."""
        if self._namespace is not None:
            return self._namespace, None
        client_id = await caller.client_id()
        if client_id is None:
            raise ConfigurationError(
                "behind a gateway, which has the client id, a journal needs a namespace=: name the owner"
            )
        former = None if caller.former_host in {None, caller.host} else f"{caller.former_host} {client_id}"
        return f"{caller.host} {client_id}", former

    async def _recorder(self, caller: Caller) -> Recorder:
        seconds = _UNBOUNDED if caller.seconds is None else caller.seconds
        if self._state.recorder is not None and seconds <= self._state.seconds:
            return self._state.recorder
        async with self._joining:
            state = self._state
            if state.recorder is None:
                state.recorder = await self._join(state, seconds)
            elif seconds > state.seconds:
                await state.recorder.writer.allow(seconds)
            state.seconds = max(seconds, state.seconds)
            return state.recorder

    async def _join(self, state: _Opened, request_seconds: float) -> Recorder:
        run = _NEW_RUN[self._database.kind].values(name=self._run, started_at=now())

        def work(connection: Connection) -> int:
            connection.execute(run)
            named = select(runs.c.id).where(runs.c.name == self._run)
            return int(connection.execute(named).scalar_one())

        def seal(relay_token: str) -> dict[str, str]:
            digest = state.digests.token(relay_token)
            return {"token": self._keyring.lock(relay_token), "token_digest": digest}

        run_id = await self._database.write(state.holders.line, work, self._lease)
        holder = await state.holders.join(run_id, self._lease, request_seconds)
        writer = Writer(self._database, state.holders, holder, run_id=run_id, patience=self._lease, seal=seal)
        policy = Policy(run_id, self._on_existing, self._retry_unknown, self._retry_failed)
        return Recorder(writer, state.digests, self._keyring, policy)

    # -------------------------------------------------------------------------------------------- afterwards

    async def runs(self) -> list[RunStatus]:
        """Give where each run stands that has taken up anything, the oldest first.

        Raises:
            JournalError: it can't be read.
        """

        def work(connection: Connection) -> list[RunStatus]:
            any_of_it = exists(select(1).where(entries.c.run_id == runs.c.id))
            found = connection.execute(select(runs).where(any_of_it).order_by(runs.c.id)).all()
            return [status_of(connection, self._state.holders, run) for run in found]

        return await self._write(work)

    async def status(self, run: str) -> RunStatus:
        """Give where a run stands.

        Raises:
            JournalError: there is no such run, or the journal can't be read.
        """

        def work(connection: Connection) -> RunStatus:
            return status_of(connection, self._state.holders, _named(connection, run))

        return await self._write(work)

    async def records(
        self, run: str, *, outcomes: Collection[str] = (), partner: str | None = None
    ) -> AsyncIterator[Record]:
        """Give what there is on each pair of a run, in the order in which they were taken up.

        Args:
            run: its name.
            outcomes: those that are wanted; all, without.
            partner: the one that is wanted; all, without.

        Raises:
            ConfigurationError: `partner` isn't a word.
            JournalError: there is no such run, or the journal can't be read.
        """
        if partner is not None:
            _check_word("partner", partner)
        after = -1
        while True:

            def work(connection: Connection, after: int = after) -> Any:
                run_id = _named(connection, run).id
                return page_of(connection, self._state.holders, run_id, after, partner)

            page = await self._write(work)
            for row, shown, alive in page:
                told = record(shown, self._keyring, own=shown is row, alive=alive)
                if not outcomes or told.outcome in outcomes:
                    yield told
            if len(page) < PAGE:
                return
            after = page[-1][0].id

    async def forget(self, run: str) -> int:
        """Delete the tokens of a run, keep everything else, and give how many; none can be removed then.

        Raises:
            JournalError: a process is working on the run, there is no such run, the journal can't be written,
                or a file of SQLite, which the message names, may still contain the tokens.
        """

        def work(connection: Connection) -> int:
            run_id = _named(connection, run).id
            if self._state.holders.of_run(connection, run_id):
                raise JournalError(
                    f"somebody works on the run {run!r}", advice="Wait until that has ended, or end it."
                )
            held = (entries.c.run_id == run_id) & entries.c.token.is_not(None)
            deleted = connection.execute(update(entries).where(held).values(token=None)).rowcount
            do = statements(self._database.kind)
            superseded = connection.execute(do.superseded, {"run": run_id}).scalars()
            pairs = rows([{"id": row} for row in superseded])
            for settle in do.settle:
                connection.execute(settle, pairs)
            return deleted

        many = await self._write(work)
        await self._database.clear_log(self._state.line)
        return many

    async def rotate(self) -> int:
        """Encrypt with the first key what lies under another, or in clear, and give how many tokens it was.

        Once it is done, and each process has the first key, the other keys may go.

        Raises:
            JournalError: the journal can't be read or written, or a file of SQLite, which the message names,
                may still contain what was encrypted with another key.
        """
        last: int | None = -1
        count = 0
        while last is not None:
            page = await self._write(partial(_tokens_after, last))
            # Decrypting and encrypting take longest: not in a transaction, and not in the event loop.
            last, changes = await asyncio.to_thread(self._encrypted_again, page)
            begun = time.monotonic()
            count += await self._write(partial(self._replace, changes))
            await asyncio.sleep(time.monotonic() - begun)  # Others can write for at least half of the time.
        await self._database.clear_log(self._state.line)
        return count

    @sealed
    def _encrypted_again(self, page: Hidden[list[Any]]) -> tuple[int | None, Hidden[list[dict[str, Any]]]]:
        """Return the last row of a page, or `None` if no page follows, and the changes to store."""
        found = page.reveal()
        changes = [
            {"id": row.id, "old": row.token, "new": self._keyring.lock(self._keyring.open(row.token))}
            for row in found
            if not self._keyring.is_up_to_date(row.token)
        ]
        return found[-1].id if len(found) == _ROTATED else None, Hidden(changes)

    def _replace(self, changes: Hidden[list[dict[str, Any]]], connection: Connection) -> int:
        if not changes.reveal():
            return 0
        replace = statements(self._database.kind).replace
        return connection.execute(replace, rows(changes.reveal())).rowcount

    async def _write(self, work: Callable[[Connection], T]) -> T:
        self._check_loop()
        return await self._database.write(self._state.line, work, self._lease, self._long)


def _check_word(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ConfigurationError(f"{name} must be a string that isn't empty, of characters that can be shown")


def _tokens_after(row: int, connection: Connection) -> Hidden[list[Any]]:
    tokens = select(entries.c.id, entries.c.token).where(entries.c.id > row, entries.c.token.is_not(None))
    return Hidden(list(connection.execute(tokens.order_by(entries.c.id).limit(_ROTATED)).all()))


def _named(connection: Connection, run: str) -> Any:
    found = None
    if run.isprintable():
        found = connection.execute(select(runs).where(runs.c.name == run)).one_or_none()
    if found is None:
        raise JournalError(
            f"the journal has no run {run!r}", advice="`await journal.runs()` gives those it has."
        )
    return found
