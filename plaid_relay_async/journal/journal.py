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

from plaid_relay_async.cancellation import run_to_completion
from plaid_relay_async.config import check_seconds
from plaid_relay_async.errors import (
    ConfigurationError,
    Hidden,
    JournalError,
    strip_init_traceback,
    strip_traceback,
)
from plaid_relay_async.journal.database import Database, JournalConnection, journal_errors
from plaid_relay_async.journal.decisions import OnExisting, PairPolicy
from plaid_relay_async.journal.encryption import Digests, Keyring, load_keyring
from plaid_relay_async.journal.recording import (
    CallCoordinator,
    CreationRecorder,
    NullRecorder,
    RemovalRecorder,
)
from plaid_relay_async.journal.records import PAGE, Record, RunStatus, read_page, read_status, to_record
from plaid_relay_async.journal.schema import create_or_migrate, entries, journals, now, runs
from plaid_relay_async.journal.statements import rows_parameter, statements_for
from plaid_relay_async.journal.workers import WorkerRegistry
from plaid_relay_async.journal.writer import Writer
from plaid_relay_async.models import RelayCreateRequest, RelayRemoveRequest

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from types import TracebackType

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from plaid_relay_async.batch import CallContext

T = TypeVar("T")

_UNLIMITED_REQUEST_SECONDS = 3600.0  # seconds that a request may take whose client sets it no time
_LEASES_PER_MAINTENANCE = 10  # for a transaction that isn't a call's: it may read or change millions of rows
_TOKENS_PER_PAGE = 500  # tokens in one transaction
_INSERT_RUN = {
    name: dialect.insert(runs).on_conflict_do_nothing()
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}


@define(eq=False, repr=False)
class _OpenResources:
    """What there is while a journal is open.

    Attributes:
        loop: the event loop in which it was opened.
        recorder: once something was entered.
        seconds: that others know a request of the recorder's may be under way for.
        closing: once it is being closed, the moment after which no call is waited for.
    """

    loop: asyncio.AbstractEventLoop
    digests: Digests
    registry: WorkerRegistry
    connection: JournalConnection
    coordinator: CallCoordinator | None = None
    request_seconds: float = 0.0
    close_deadline: float | None = None


@strip_init_traceback
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
        _check_printable("run", run)
        if namespace is not None:
            _check_printable("namespace", namespace)
        check_seconds("lease", lease)
        self._database = Database(url, lease)
        self._run = run
        self._keyring = load_keyring(key)
        self._namespace = namespace
        self._on_existing: OnExisting = on_existing
        self._retry_unknown = retry_unknown
        self._retry_failed = retry_failed
        self._lease = float(lease)
        self._maintenance_seconds = max(_LEASES_PER_MAINTENANCE * self._lease, self._database.attempt_seconds)
        self._resources: _OpenResources | None = None
        self._lifecycle_lock = asyncio.Lock()

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
        if self._resources is not None:
            raise JournalError("the journal is open already")
        try:
            await self._open()
        except BaseException:
            self._resources = None
            await run_to_completion(self._database.close)
            raise

    async def _open(self) -> None:
        await self._database.open()
        line = self._database.new_connection()
        fresh = secrets.token_hex(32)

        def work(connection: Connection) -> str:
            return create_or_migrate(connection, self._keyring.encrypt(fresh))

        with journal_errors(self._database.path):
            await self._database.check_encoding(line)
            stored = await line.run(work, self._maintenance_seconds)
        self._resources = _OpenResources(
            asyncio.get_running_loop(),
            Digests(self._keyring.decrypt(stored)),
            WorkerRegistry(self._database, self._database.new_connection()),
            line,
        )
        if not self._keyring.is_up_to_date(stored):
            await self._encrypt_pair_key(stored)

    async def _encrypt_pair_key(self, stored: str) -> None:
        """Have today's key open what an older one did, and leave nothing in clear that was so."""
        if Keyring.is_unencrypted(stored):
            await self.rotate()  # first: that the pair key is in clear says that tokens may be
        wrapped = self._keyring.encrypt(self._keyring.decrypt(stored))

        def work(connection: Connection) -> None:
            connection.execute(update(journals).where(journals.c.pair_key == stored).values(pair_key=wrapped))

        await self._run_transaction(work)
        if Keyring.is_unencrypted(stored):
            await self._database.truncate_wal(self._open_resources.connection)

    async def close(self) -> None:
        """Write everything that is known, and close the journal; `async with` does it.

        No further call begins. Calls in flight are waited for as long as the lease; an outcome that arrives
        later has `journalled=False`. A cancellation is raised once the journal is closed. Closing it more
        than once is harmless.
        """
        if self._resources is not None and self._resources.close_deadline is None:
            bound = max(self._lease, self._database.attempt_seconds)
            self._resources.close_deadline = asyncio.get_running_loop().time() + bound
        await run_to_completion(self._close)

    async def _close(self) -> None:
        async with self._lifecycle_lock:
            opened = self._resources
            if opened is None or opened.close_deadline is None:
                return
            if opened.coordinator is not None:
                await opened.coordinator.close(opened.close_deadline)
            await self._database.close()
            self._resources = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _open_resources(self) -> _OpenResources:
        if self._resources is None or self._resources.close_deadline is not None:
            raise JournalError(
                "the journal isn't open", advice="Use it inside `async with Journal(...) as journal:`."
            )
        return self._resources

    def _check_loop(self) -> None:
        # Not in `_state`, which threads that run transactions use as well.
        if self._open_resources.loop is not asyncio.get_running_loop():
            raise JournalError(
                "the journal was opened in another event loop", advice="Open one in each event loop."
            )

    # -------------------------------------------------------------------------------- for clients and batches

    async def acquire_recorder(
        self, request: RelayCreateRequest | RelayRemoveRequest, context: CallContext
    ) -> CreationRecorder | RemovalRecorder | NullRecorder:
        """Enter a creation or a removal; for clients and batches.

        A creation waits while somebody else is at the same pair.

        Raises:
            ConfigurationError: it has no namespace.
            JournalError: it can't be read or written, or was opened in another event loop.
        """
        self._check_loop()
        recorder = await self._get_coordinator(context)
        if isinstance(request, RelayRemoveRequest):
            return await recorder.acquire_removal(request)
        namespace, former = await self._resolve_namespaces(context)
        policy = recorder.policy.with_overrides(
            retry_unknown=context.retry_unknown, retry_failed=context.retry_failed
        )
        return await recorder.acquire_creation(request, policy, namespace, former)

    async def _resolve_namespaces(self, caller: CallContext) -> tuple[str, str | None]:
        """Return the namespace, and that of earlier releases if it was a different one."""
        if self._namespace is not None:
            return self._namespace, None
        client_id = await caller.get_client_id()
        if client_id is None:
            raise ConfigurationError(
                "behind a gateway, which has the client id, a journal needs a namespace=: name the owner"
            )
        former = None if caller.legacy_host in {None, caller.host} else f"{caller.legacy_host} {client_id}"
        return f"{caller.host} {client_id}", former

    async def _get_coordinator(self, caller: CallContext) -> CallCoordinator:
        seconds = (
            _UNLIMITED_REQUEST_SECONDS if caller.max_request_seconds is None else caller.max_request_seconds
        )
        if self._open_resources.coordinator is not None and seconds <= self._open_resources.request_seconds:
            return self._open_resources.coordinator
        async with self._lifecycle_lock:
            state = self._open_resources
            if state.coordinator is None:
                state.coordinator = await self._create_coordinator(state, seconds)
            elif seconds > state.request_seconds:
                await state.coordinator.writer.set_request_seconds(seconds)
            state.request_seconds = max(seconds, state.request_seconds)
            return state.coordinator

    async def _create_coordinator(self, state: _OpenResources, request_seconds: float) -> CallCoordinator:
        run = _INSERT_RUN[self._database.kind].values(name=self._run, started_at=now())

        def work(connection: Connection) -> int:
            connection.execute(run)
            named = select(runs.c.id).where(runs.c.name == self._run)
            return int(connection.execute(named).scalar_one())

        def seal(relay_token: str) -> dict[str, str]:
            digest = state.digests.token_digest(relay_token)
            return {"token": self._keyring.encrypt(relay_token), "token_digest": digest}

        run_id = await self._database.run_transaction(state.registry.connection, work, self._lease)
        holder = await state.registry.register(run_id, self._lease, request_seconds)
        writer = Writer(
            self._database,
            state.registry,
            holder,
            run_id=run_id,
            retry_seconds=self._lease,
            token_columns=seal,
        )
        policy = PairPolicy(run_id, self._on_existing, self._retry_unknown, self._retry_failed)
        return CallCoordinator(writer, state.digests, self._keyring, policy)

    # -------------------------------------------------------------------------------------------- afterwards

    async def runs(self) -> list[RunStatus]:
        """Give where each run stands that has taken up anything, the oldest first.

        Raises:
            JournalError: it can't be read.
        """

        def work(connection: Connection) -> list[RunStatus]:
            any_of_it = exists(select(1).where(entries.c.run_id == runs.c.id))
            found = connection.execute(select(runs).where(any_of_it).order_by(runs.c.id)).all()
            return [read_status(connection, self._open_resources.registry, run) for run in found]

        return await self._run_transaction(work)

    async def status(self, run: str) -> RunStatus:
        """Give where a run stands.

        Raises:
            JournalError: there is no such run, or the journal can't be read.
        """

        def work(connection: Connection) -> RunStatus:
            return read_status(connection, self._open_resources.registry, _get_run(connection, run))

        return await self._run_transaction(work)

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
            _check_printable("partner", partner)
        after = -1
        while True:

            def work(connection: Connection, after: int = after) -> Any:
                run_id = _get_run(connection, run).id
                return read_page(connection, self._open_resources.registry, run_id, after, partner)

            page = await self._run_transaction(work)
            for row, shown, alive in page:
                told = to_record(shown, self._keyring, own=shown is row, alive=alive)
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
            run_id = _get_run(connection, run).id
            if self._open_resources.registry.live_workers_of(connection, run_id):
                raise JournalError(
                    f"somebody works on the run {run!r}", advice="Wait until that has ended, or end it."
                )
            held = (entries.c.run_id == run_id) & entries.c.token.is_not(None)
            deleted = connection.execute(update(entries).where(held).values(token=None)).rowcount
            do = statements_for(self._database.kind)
            superseded = connection.execute(do.select_superseded, {"run": run_id}).scalars()
            pairs = rows_parameter([{"id": row} for row in superseded])
            for settle in do.reassign_holding:
                connection.execute(settle, pairs)
            return deleted

        many = await self._run_transaction(work)
        await self._database.truncate_wal(self._open_resources.connection)
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
            page = await self._run_transaction(partial(_select_tokens, last))
            # Decrypting and encrypting take longest: not in a transaction, and not in the event loop.
            last, changes = await asyncio.to_thread(self._reencrypt, page)
            begun = time.monotonic()
            count += await self._run_transaction(partial(self._store_tokens, changes))
            await asyncio.sleep(time.monotonic() - begun)  # Others can write for at least half of the time.
        await self._database.truncate_wal(self._open_resources.connection)
        return count

    @strip_traceback
    def _reencrypt(self, page: Hidden[list[Any]]) -> tuple[int | None, Hidden[list[dict[str, Any]]]]:
        """Return the last row of a page, or `None` if no page follows, and the changes to store."""
        found = page.reveal()
        changes = [
            {"id": row.id, "old": row.token, "new": self._keyring.encrypt(self._keyring.decrypt(row.token))}
            for row in found
            if not self._keyring.is_up_to_date(row.token)
        ]
        return found[-1].id if len(found) == _TOKENS_PER_PAGE else None, Hidden(changes)

    def _store_tokens(self, changes: Hidden[list[dict[str, Any]]], connection: Connection) -> int:
        if not changes.reveal():
            return 0
        replace = statements_for(self._database.kind).replace_tokens
        return connection.execute(replace, rows_parameter(changes.reveal())).rowcount

    async def _run_transaction(self, work: Callable[[Connection], T]) -> T:
        self._check_loop()
        return await self._database.run_transaction(
            self._open_resources.connection, work, self._lease, self._maintenance_seconds
        )


def _check_printable(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ConfigurationError(f"{name} must be a string that isn't empty, of characters that can be shown")


def _select_tokens(row: int, connection: Connection) -> Hidden[list[Any]]:
    tokens = select(entries.c.id, entries.c.token).where(entries.c.id > row, entries.c.token.is_not(None))
    return Hidden(list(connection.execute(tokens.order_by(entries.c.id).limit(_TOKENS_PER_PAGE)).all()))


def _get_run(connection: Connection, run: str) -> Any:
    found = None
    if run.isprintable():
        found = connection.execute(select(runs).where(runs.c.name == run)).one_or_none()
    if found is None:
        raise JournalError(
            f"the journal has no run {run!r}", advice="`await journal.runs()` gives those it has."
        )
    return found
