"""`Journal`: records the calls of clients and batches, and reports on runs afterwards."""

from __future__ import annotations

import asyncio
import datetime as dt  # noqa: TC003  # Sphinx resolves the annotation
import re
import secrets
from collections.abc import Collection
from pathlib import Path  # noqa: TC003  # Sphinx resolves the annotation
from typing import TYPE_CHECKING, Any, Self, TypeVar

from attrs import define, frozen
from sqlalchemy import exists, select, update
from sqlalchemy.dialects import postgresql, sqlite

from plaid_relay_async.cancellation import run_to_completion
from plaid_relay_async.config import check_seconds
from plaid_relay_async.errors import ConfigurationError, JournalError
from plaid_relay_async.journal.database import Database, JournalConnection
from plaid_relay_async.journal.decisions import RECORD_OUTCOMES, OnExisting, PairPolicy, outcome_name
from plaid_relay_async.journal.encryption import Digests, Keyring, load_keyring
from plaid_relay_async.journal.recording import (
    CallCoordinator,
    CreationRecorder,
    NullRecorder,
    RemovalRecorder,
)
from plaid_relay_async.journal.records import (
    ROWS_PER_PAGE,
    PairRecord,
    Record,
    RunStatus,
    read_page,
    read_retrieved_pair,
    read_status,
    to_record,
)
from plaid_relay_async.journal.rotation import reencrypt_column
from plaid_relay_async.journal.schema import create_or_migrate, entries, journals, now, runs
from plaid_relay_async.journal.statements import rows_parameter, statements_for
from plaid_relay_async.journal.workers import WorkerRegistry
from plaid_relay_async.journal.writer import Writer
from plaid_relay_async.models import RelayCreateRequest, RelayRemoveRequest
from plaid_relay_async.redaction import strip_init_traceback
from plaid_relay_async.telemetry import connect_journal

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from plaid_relay_async.batch import CallContext
    from plaid_relay_async.journal.decisions import Row
    from plaid_relay_async.telemetry import Telemetry

T = TypeVar("T")

_UNLIMITED_REQUEST_SECONDS = 3600.0  # for a client without a total timeout
# The time limit, in leases, of a transaction that may read or change millions of rows.
_LEASES_PER_MAINTENANCE = 10
_PAIR_ID = re.compile("[0-9a-f]{32}")
_TOKENS_PER_PAGE = 500  # re-encrypted in one transaction
_INSERT_RUN = {
    name: dialect.insert(runs).on_conflict_do_nothing()
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}


@define(eq=False, repr=False)
class _OpenResources:
    """What an open journal holds.

    Attributes:
        loop: the event loop in which it was opened.
        digests: computes the digests of pairs and tokens.
        registry: the workers of the journal.
        connection: the connection for the journal's own methods.
        coordinator: the coordinator of this process's calls, created with the first call: a journal that only
            reads registers no worker.
        request_seconds: seconds for which a request of this process may be in flight, as recorded.
        close_deadline: once the journal is being closed, the time of the event loop's clock at which draining
            stops.
    """

    loop: asyncio.AbstractEventLoop
    digests: Digests
    registry: WorkerRegistry
    connection: JournalConnection
    coordinator: CallCoordinator | None = None
    request_seconds: float = 0.0
    close_deadline: float | None = None


@frozen
class JournalSettings:
    """The run of a journal, and its settings for pairs that it already has; see `Journal`.

    Attributes:
        run: the run name.
        on_existing: what happens to a pair that has a token from another run.
        retry_unknown: whether to create again if the outcome of an earlier attempt is unknown.
        retry_failed: whether to create again after a permanent error.
    """

    run: str
    on_existing: OnExisting
    retry_unknown: bool
    retry_failed: bool


@strip_init_traceback
class Journal:
    """A durable record of creations and removals; use it with `async with`, in one event loop.

    Pass it as `journal=` to `client.relay.create`, `create_many`, `remove` and `remove_many`. A creation
    whose pair of report and partner has a recorded token returns that token, and no two processes create for
    one pair at the same time.

    Args:
        url: the path of a file, a URL of SQLite or PostgreSQL, or an `AsyncEngine`, which the caller disposes
            of. A path is resolved immediately, with its symbolic links.
        run: the run name under which creations are recorded; reuse it to resume the run.
        key: a Fernet key, several keys, or the `Path` of a file (0600) that contains them, which is read
            immediately. The first key encrypts, all keys decrypt. In a string or a file, commas or whitespace
            separate them.
            Default: PLAID_RELAY_KEY. Without a key, tokens are stored unencrypted, and a warning is logged.
        namespace: keeps pairs of different lenders apart. Default: the host and the client ID. Required
            behind a gateway, because the gateway has the client ID.
        on_existing: what happens to a pair that has a token from another run: `"reuse"` returns it,
            `"refuse"` makes the creation fail with `DuplicateRequestError`, `"create"` creates another one.
        retry_unknown: create again if the outcome of an earlier attempt is unknown. The pair may then have
            two tokens.
        retry_failed: create again if the recorded failure is an `InvalidRequestError` or an
            `AssetReportError`; use it once the cause is fixed. Other failures are retried in any case.
        lease: on PostgreSQL, seconds without a heartbeat after which other processes consider this one dead.
            On both databases, the time limits of transactions and of `close` depend on it.
        telemetry: as for `RelayClient`; its meter provider receives the duration of each commit.

    Raises:
        ConfigurationError: an argument or PLAID_RELAY_KEY is invalid, or the address is ambiguous.
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
        telemetry: Telemetry | None = None,
    ) -> None:
        if on_existing not in ("reuse", "refuse", "create"):  # no set: the value may be unhashable
            raise ConfigurationError(
                f"on_existing must be 'reuse', 'refuse' or 'create', not {on_existing!r}"
            )
        _check_printable("run", run)
        if namespace is not None:
            _check_printable("namespace", namespace)
        check_seconds("lease", lease)
        for name, value in (("retry_unknown", retry_unknown), ("retry_failed", retry_failed)):
            if not isinstance(value, bool):  # a text such as "no" would count as true
                raise ConfigurationError(f"{name} must be True or False, not {value!r}")
        self._database = Database(url, lease)
        self._run = run
        self._keyring = load_keyring(key)
        self._namespace = namespace
        self._on_existing: OnExisting = on_existing
        self._retry_unknown = retry_unknown
        self._retry_failed = retry_failed
        self._on_commit = connect_journal(telemetry)
        self._lease = float(lease)
        self._maintenance_seconds = max(
            _LEASES_PER_MAINTENANCE * self._lease, self._database.transaction_seconds
        )
        self._resources: _OpenResources | None = None
        self._lifecycle_lock = asyncio.Lock()

    @property
    def run(self) -> str:
        """The run name under which creations are recorded."""
        return self._run

    @property
    def settings(self) -> JournalSettings:
        """The run and the settings for its pairs; with them, another process can open the same journal."""
        return JournalSettings(self._run, self._on_existing, self._retry_unknown, self._retry_failed)

    @property
    def path(self) -> Path | None:
        """The file that the journal is stored in, with symbolic links resolved; `None` for PostgreSQL."""
        return self._database.path

    def __repr__(self) -> str:
        return f"<Journal, run {self._run!r}>"

    # ------------------------------------------------------------------------------------ open and close

    async def open(self) -> None:
        """Open the journal, and create its tables if they don't exist; `async with` does it.

        Raises:
            JournalError: the journal is already open, it can't be read or written, or a later release created
                it.
            ConfigurationError: the key doesn't match, other users may read or write the file, it isn't a
                regular file or has a hard link, an option of the URL is invalid, the encoding isn't UTF8, or
                the driver isn't installed.
        """
        if self._resources is not None:
            raise JournalError(
                "the journal is already open",
                advice="One `async with` is enough; for another run or event loop, create another Journal.",
            )
        try:
            await self._open()
        except BaseException:
            self._resources = None
            await run_to_completion(self._database.close)
            raise

    async def _open(self) -> None:
        await self._database.open()
        connection = self._database.new_connection()
        new_pair_key = secrets.token_hex(32)

        def work(connection: Connection) -> str:
            return create_or_migrate(connection, self._keyring.encrypt(new_pair_key))

        with self._database.errors():
            await self._database.check_encoding(connection)
            pair_key = await connection.run(work, self._maintenance_seconds)
        self._resources = _OpenResources(
            asyncio.get_running_loop(),
            Digests(self._keyring.decrypt(pair_key)),
            WorkerRegistry(self._database, self._database.new_connection()),
            connection,
        )
        if not self._keyring.is_up_to_date(pair_key):
            await self._encrypt_pair_key(pair_key)

    async def _encrypt_pair_key(self, stored: str) -> None:
        """Encrypt the pair key with the first key; if it was unencrypted, encrypt all tokens first."""
        # The order matters: as long as the pair key is unencrypted, the next opening knows that tokens may be
        # unencrypted, too.
        if Keyring.is_unencrypted(stored):
            await self.rotate()
        encrypted = self._keyring.encrypt(self._keyring.decrypt(stored))

        def work(connection: Connection) -> None:
            connection.execute(
                update(journals).where(journals.c.pair_key == stored).values(pair_key=encrypted)
            )

        await self._run_transaction(work)
        if Keyring.is_unencrypted(stored):
            await self._database.truncate_wal(self._open_resources.connection)

    async def close(self) -> None:
        """Drain, write what is pending, and close the journal; `async with` does it.

        Calls that use the journal start no further attempt. The journal waits for calls in flight for as long
        as the lease, or the time limit of a transaction if that is longer; an outcome that arrives later has
        `journalled=False`. A cancellation is raised once the journal is closed. Closing it more than once is
        harmless.
        """
        if self._resources is not None and self._resources.close_deadline is None:
            drain_seconds = max(self._lease, self._database.transaction_seconds)
            self._resources.close_deadline = asyncio.get_running_loop().time() + drain_seconds
        await run_to_completion(self._close)

    async def _close(self) -> None:
        async with self._lifecycle_lock:
            resources = self._resources
            if resources is None or resources.close_deadline is None:
                return
            if resources.coordinator is not None:
                await resources.coordinator.close(resources.close_deadline)
            await self._database.close()
            self._resources = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
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
        # This isn't a part of `_open_resources`, which is also used in threads that run transactions.
        if self._open_resources.loop is not asyncio.get_running_loop():
            raise JournalError(
                "the journal was opened in another event loop", advice="Open one in each event loop."
            )

    # -------------------------------------------------------------------------------- for clients and batches

    async def acquire_recorder(
        self, request: RelayCreateRequest | RelayRemoveRequest, context: CallContext
    ) -> CreationRecorder | RemovalRecorder | NullRecorder:
        """Return a recorder for a creation or a removal; for clients and batches.

        It waits while another call is in progress for the same pair: in this process and, unless the pair is
        assumed to be new, in any other.

        Args:
            request: the request of the call.
            context: the client, and the options of the call.

        Raises:
            ConfigurationError: the journal needs a namespace, no key decrypts the pair's token, or the source
                of the credentials didn't return `Credentials`.
            JournalError: the journal can't be read or written, or was opened in another event loop.
            NotSentError: the source of the credentials raised.
        """
        self._check_loop()
        coordinator = await self._get_coordinator(context)
        if isinstance(request, RelayRemoveRequest):
            return await coordinator.acquire_removal(request)
        namespace, former_namespace = await self._resolve_namespaces(context)
        policy = coordinator.policy.with_overrides(
            retry_unknown=context.retry_unknown, retry_failed=context.retry_failed
        )
        return await coordinator.acquire_creation(request, policy, namespace, former_namespace)

    async def pair_id(self, request: RelayCreateRequest, context: CallContext) -> str:
        """Return the ID of a creation's pair; see `acquire_recorder` for the arguments and errors."""
        namespace, _ = await self._resolve_namespaces(context)
        digests = self._open_resources.digests
        return digests.pair_digest(namespace, request.report_tokens, request.secondary_client_id)

    async def _resolve_namespaces(self, context: CallContext) -> tuple[str, str | None]:
        """Return the namespace, and the one that earlier versions used if it was different."""
        if self._namespace is not None:
            return self._namespace, None
        client_id = await context.get_client_id()
        if client_id is None:
            raise ConfigurationError(
                "behind a gateway, which has the client ID, a journal needs namespace=, a name for the lender"
            )
        former_namespace = (
            None if context.legacy_host in {None, context.host} else f"{context.legacy_host} {client_id}"
        )
        return f"{context.host} {client_id}", former_namespace

    async def _get_coordinator(self, context: CallContext) -> CallCoordinator:
        seconds = (
            _UNLIMITED_REQUEST_SECONDS if context.max_request_seconds is None else context.max_request_seconds
        )
        if self._open_resources.coordinator is not None and seconds <= self._open_resources.request_seconds:
            return self._open_resources.coordinator
        async with self._lifecycle_lock:
            resources = self._open_resources
            # Another call may have created the coordinator while this one waited for the lock.
            if resources.coordinator is None:
                resources.coordinator = await self._create_coordinator(resources, seconds)
            elif seconds > resources.request_seconds:
                await resources.coordinator.writer.set_request_seconds(seconds)
            resources.request_seconds = max(seconds, resources.request_seconds)
            return resources.coordinator

    async def _create_coordinator(self, resources: _OpenResources, request_seconds: float) -> CallCoordinator:
        insert = _INSERT_RUN[self._database.kind].values(name=self._run, started_at=now())

        def work(connection: Connection) -> int:
            connection.execute(insert)
            query = select(runs.c.id).where(runs.c.name == self._run)
            return int(connection.execute(query).scalar_one())

        def token_columns(relay_token: str) -> dict[str, str]:
            digest = resources.digests.token_digest(relay_token)
            return {"token": self._keyring.encrypt(relay_token), "token_digest": digest}

        run_id = await self._database.run_transaction(resources.registry.connection, work, self._lease)
        worker = await resources.registry.register(run_id, self._lease, request_seconds)
        writer = Writer(
            self._database,
            resources.registry,
            worker,
            run_id=run_id,
            retry_seconds=self._lease,
            token_columns=token_columns,
            on_commit=self._on_commit,
        )
        policy = PairPolicy(run_id, self._on_existing, self._retry_unknown, self._retry_failed)
        return CallCoordinator(writer, resources.digests, self._keyring, policy)

    # -------------------------------------------------------------------------------- reports and maintenance

    async def runs(self) -> list[RunStatus]:
        """Return the status of each run that has records, the oldest run first.

        Raises:
            JournalError: the journal can't be read.
        """

        def work(connection: Connection) -> list[RunStatus]:
            has_entries = exists(select(1).where(entries.c.run_id == runs.c.id))
            rows = connection.execute(select(runs).where(has_entries).order_by(runs.c.id)).all()
            return [read_status(connection, self._open_resources.registry, row) for row in rows]

        return await self._run_transaction(work)

    async def status(self, run: str) -> RunStatus:
        """Return the status of a run.

        Args:
            run: the run name.

        Raises:
            JournalError: the run doesn't exist, or the journal can't be read.
        """

        def work(connection: Connection) -> RunStatus:
            return read_status(connection, self._open_resources.registry, _get_run(connection, run))

        return await self._run_transaction(work)

    async def records(
        self, run: str, *, outcomes: Collection[str] = (), partner: str | None = None
    ) -> AsyncIterator[Record]:
        """Yield the records of a run; those of each process are in the order in which it inserted them.

        Args:
            run: the run name.
            outcomes: yield only records with one of these outcomes; see `Record`. Default: all.
            partner: yield only records of this partner. Default: all.

        Raises:
            ConfigurationError: `outcomes` isn't a collection or has an unknown name, `partner` is empty or
                has characters that aren't printable, or no key decrypts a token.
            JournalError: the run doesn't exist, or the journal can't be read.
        """
        _check_outcomes(outcomes)
        async for row, source, alive in self._read_rows(run, partner):
            if not outcomes or outcome_name(source.state, alive=alive) in outcomes:
                yield to_record(source, self._keyring, own=source is row, alive=alive)

    async def pair_ids(
        self, run: str, *, outcomes: Collection[str] = (), partner: str | None = None
    ) -> AsyncIterator[str]:
        """Yield the ID of each pair of a run; see `records` for the order, the arguments and the errors.

        Unlike those of `records`, `outcomes` are only the run's own: a pair that another run holds is
        `not_attempted`.
        """
        _check_outcomes(outcomes)
        async for row, _, alive in self._read_rows(run, partner):
            # A pair has other rows if tokens of it were removed.
            if row.current and (not outcomes or outcome_name(row.state, alive=alive) in outcomes):
                yield row.pair

    async def _read_rows(self, run: str, partner: str | None) -> AsyncIterator[tuple[Row, Row, bool]]:
        """Yield the rows of a run, as `read_page` returns them; see `records` for the arguments."""
        if partner is not None:
            _check_printable("partner", partner)
        after = -1
        while True:

            def work(connection: Connection, after: int = after) -> list[tuple[Row, Row, bool]]:
                run_id = _get_run(connection, run).id
                return read_page(connection, self._open_resources.registry, run_id, after, partner)

            page = await self._run_transaction(work)
            for each in page:
                yield each
            if len(page) < ROWS_PER_PAGE:
                return
            after = page[-1][0].id

    def keyed_hash(self, *parts: str) -> str:
        """Return a digest of texts, in hexadecimal digits, which only a process with the journal can compute.

        It doesn't change when the keys are rotated.

        Raises:
            JournalError: the journal isn't open.
        """
        return self._open_resources.digests.keyed_hash(b"name", *parts)

    async def flush(self) -> None:
        """Record the outcomes that couldn't be recorded when their calls ended; the journal also retries it.

        Raises:
            JournalError: they still can't be recorded, or the journal isn't open.
        """
        if (coordinator := self._open_resources.coordinator) is not None:
            await coordinator.writer.drain()
            await coordinator.writer.write_pending()

    async def record_retrieval(
        self, pair_id: str, *, retrieved_at: dt.datetime | None = None
    ) -> PairRecord | None:
        """Record that a pair's partner has retrieved the report, and return the pair.

        Call it for a verified webhook at the pair's URL. It proves that the pair has a token, even if the
        outcome of its creation is unknown. It may be called repeatedly: the earliest time is kept.

        Args:
            pair_id: the pair ID in the URL of the webhook.
            retrieved_at: when the report was retrieved; must have a time zone. Default: now.

        Returns:
            The pair, or `None` if the journal doesn't know it.

        Raises:
            ConfigurationError: `retrieved_at` has no time zone.
            JournalError: the journal can't be read or written.
        """
        if retrieved_at is not None and retrieved_at.tzinfo is None:
            raise ConfigurationError("retrieved_at must have a time zone")
        if not _PAIR_ID.fullmatch(pair_id):
            return None
        values = {"pair_id": pair_id, "time": None if retrieved_at is None else retrieved_at.timestamp()}

        def record(connection: Connection) -> int | None:
            statement = statements_for(self._database.kind).record_retrieval
            return connection.execute(statement, values).scalar_one_or_none()

        row_id = await self._run_transaction(record)
        if row_id is None:
            return None
        # In a second transaction, because the first one must succeed even if a worker can't be checked.
        return await self._run_transaction(
            lambda connection: read_retrieved_pair(connection, self._open_resources.registry, row_id)
        )

    async def forget(self, run: str) -> int:
        """Delete the tokens of a run from the journal, and return their number.

        Everything else stays recorded. The tokens remain valid at Plaid, and the journal can no longer return
        them. First close the journals of the run that create or remove tokens.

        Args:
            run: the run name.

        Raises:
            JournalError: a process, which may be this one, is working on the run, the run doesn't exist, the
                journal can't be written, or a file of SQLite, which the message names, may still contain the
                tokens.
        """

        def work(connection: Connection) -> int:
            run_id = _get_run(connection, run).id
            if self._open_resources.registry.live_workers_of(connection, run_id):
                raise JournalError(
                    f"a process is working on the run {run!r}",
                    advice="Wait until it has ended, or end it; in this process, close the run's journal.",
                )
            with_token = (entries.c.run_id == run_id) & entries.c.token.is_not(None)
            deleted = connection.execute(update(entries).where(with_token).values(token=None)).rowcount
            statements = statements_for(self._database.kind)
            # A pair may have another token. That token can be returned to other runs, now that this one is
            # gone.
            superseded = connection.execute(statements.select_superseded, {"run": run_id}).scalars()
            superseded_rows = rows_parameter([{"id": row} for row in superseded])
            for statement in statements.reassign_holding:
                connection.execute(statement, superseded_rows)
            return deleted

        count = await self._run_transaction(work)
        await self._database.truncate_wal(self._open_resources.connection)
        return count

    async def rotate(self) -> int:
        """Encrypt with the first key all tokens that aren't encrypted with it, and return their number.

        Afterwards, once each process has the first key, the other keys can be removed.

        Raises:
            JournalError: the journal can't be read or written, or a file of SQLite, which the message names,
                may still contain tokens as they were stored before.
            ConfigurationError: none of the keys decrypts a token.
        """
        tokens = entries.c.token
        count = await reencrypt_column(self._run_transaction, self._keyring, tokens, _TOKENS_PER_PAGE)
        await self._database.truncate_wal(self._open_resources.connection)
        return count

    async def _run_transaction(self, work: Callable[[Connection], T]) -> T:
        self._check_loop()
        return await self._database.run_transaction(
            self._open_resources.connection, work, self._lease, self._maintenance_seconds
        )


def _check_printable(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ConfigurationError(f"{name} must be a non-empty string of printable characters")


def _check_outcomes(outcomes: object) -> None:
    # A string would be a collection of letters, and an iterator would be empty after the first record.
    if isinstance(outcomes, str | bytes) or not isinstance(outcomes, Collection):
        raise ConfigurationError("outcomes must be a collection of names, such as {'created'}")
    for name in outcomes:
        if name not in RECORD_OUTCOMES:
            known = ", ".join(map(repr, RECORD_OUTCOMES))
            raise ConfigurationError(f"outcomes has an unknown name, {name!r}; the names are {known}")


def _get_run(connection: Connection, run: str) -> Any:
    row = None
    if run.isprintable():
        row = connection.execute(select(runs).where(runs.c.name == run)).one_or_none()
    if row is None:
        raise JournalError(
            f"the journal has no run {run!r}",
            advice="List the runs with `await journal.runs()` or `plaid-relay runs`.",
        )
    return row
