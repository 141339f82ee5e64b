"""`SQLInbox`: a durable inbox of webhooks."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from functools import partial
from pathlib import Path  # noqa: TC003  # Sphinx resolves the annotation
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from attrs import define

from plaid_relay_async.cancellation import run_to_completion
from plaid_relay_async.config import check_seconds
from plaid_relay_async.errors import InboxError
from plaid_relay_async.inbox import schema, transactions
from plaid_relay_async.inbox.transactions import Change, NewRow
from plaid_relay_async.journal.database import Database, JournalConnection, Store
from plaid_relay_async.journal.encryption import Digests, Keyring, load_keyring
from plaid_relay_async.journal.group_commit import GroupExecutor
from plaid_relay_async.journal.rotation import reencrypt_column
from plaid_relay_async.journal.versions import create_or_migrate_tables
from plaid_relay_async.redaction import strip_init_traceback
from plaid_relay_async.webhooks.inbox import WebhookState, content_digest, read_report_id

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from plaid_relay_async.webhooks.inbox import IncomingWebhook, Lease, StoredWebhook

T = TypeVar("T")

# One for changes, one for leases and maintenance, and one for waits.
_INBOX: Final = Store("inbox", InboxError, 3)
# Plaid waits 10 seconds for a response. On PostgreSQL, a transaction may take 3 seconds, and is repeated
# after temporary errors for 4 seconds.
_TIME_LIMIT_SECONDS: Final = 9.0
_TRANSACTION_RETRY_SECONDS: Final = 4.0
_MAINTENANCE_SECONDS: Final = 300.0  # the time limit of creating the tables, and of re-encrypting rows
_POLL_SECONDS: Final = 1.0  # between two looks at what other processes have changed
_PURGE_SECONDS: Final = 60.0  # between two purges
_BODIES_PER_PAGE: Final = 50  # re-encrypted in one transaction


@define(eq=False, repr=False)
class _OpenResources:
    """What an open inbox holds.

    Attributes:
        loop: the event loop in which it was opened.
        digests: computes the digests of contents and report IDs.
        commands: writes new webhooks and changes.
        connection: the connection for leases and maintenance.
        reader: the connection for waits.
    """

    loop: asyncio.AbstractEventLoop
    digests: Digests
    commands: GroupExecutor[NewRow | Change, bool]
    connection: JournalConnection
    reader: JournalConnection


@strip_init_traceback
class SQLInbox:
    """A durable inbox of webhooks in SQLite or PostgreSQL; use it with `async with`, in one event loop.

    Several processes may use one inbox. It may be in the database of a journal. See `Inbox` for its methods.

    Args:
        url: the path of a file, a URL of SQLite or PostgreSQL, or an `AsyncEngine`, as for a `Journal`.
        key: the keys with which bodies are encrypted, as for a `Journal`. Default: PLAID_RELAY_KEY.
        lease_seconds: for how long a lease is valid unless it is renewed.
        retention: seconds for which the body of a webhook is kept after it is done. Everything else about it
            is kept for at least 8 days, so that it is recognized if Plaid sends it again. Dead letters are
            kept until they are redelivered or discarded.

    Raises:
        ConfigurationError: an argument or PLAID_RELAY_KEY is invalid, or the address is ambiguous.
    """

    durable = True

    def __init__(
        self,
        url: str | os.PathLike[str] | AsyncEngine,
        *,
        key: str | bytes | Sequence[str | bytes] | Path | None = None,
        lease_seconds: float = 60.0,
        retention: float = 30 * 86_400.0,
    ) -> None:
        check_seconds("lease_seconds", lease_seconds)
        check_seconds("retention", retention, zero_allowed=True)
        self._database = Database(url, _TIME_LIMIT_SECONDS, _INBOX)
        self._keyring = load_keyring(key, _INBOX.name)
        self._lease_seconds = float(lease_seconds)
        self._retention = float(retention)
        self._next_purge = 0.0  # of the monotonic clock
        self._changed = asyncio.Event()  # it is set, and replaced, at each change that a call may wait for
        self._resources: _OpenResources | None = None
        self._closing: _OpenResources | None = None
        self._lifecycle_lock = asyncio.Lock()

    @property
    def path(self) -> Path | None:
        """The file that the inbox is stored in, with symbolic links resolved; `None` for PostgreSQL."""
        return self._database.path

    @property
    def lease_seconds(self) -> float:
        """For how long a lease is valid unless it is renewed."""
        return self._lease_seconds

    def __repr__(self) -> str:
        return "<SQLInbox>"

    # ------------------------------------------------------------------------------------ open and close

    async def open(self) -> None:
        """Open the inbox, and create its tables if they don't exist; `async with` does it.

        Raises:
            InboxError: the inbox is already open, it can't be read or written, or a later release created it.
            ConfigurationError: the key doesn't match, other users may read or write the file, it isn't a
                regular file or has a hard link, an option of the URL is invalid, the encoding isn't UTF8, or
                the driver isn't installed.
        """
        if self._resources is not None:
            raise InboxError(
                "the inbox is already open",
                advice="One `async with` is enough; for another event loop, create another SQLInbox.",
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
        new_key = self._keyring.encrypt(secrets.token_hex(32))

        def work(connection: Connection) -> str:
            row = create_or_migrate_tables(
                connection, _INBOX, schema.inboxes, {"digest_key": new_key}, schema.MIGRATIONS
            )
            return str(row.digest_key)

        with self._database.errors():
            await self._database.check_encoding(connection)
            digest_key = await connection.run(work, _MAINTENANCE_SECONDS)
        writer = self._database.new_connection()

        async def write(commands: list[NewRow | Change]) -> list[bool]:
            work = partial(transactions.write, commands=commands)
            return await self._database.run_transaction(writer, work, _TRANSACTION_RETRY_SECONDS)

        self._resources = _OpenResources(
            asyncio.get_running_loop(),
            Digests(self._keyring.decrypt(digest_key)),
            GroupExecutor(write, process_cancelled=True),
            connection,
            self._database.new_connection(),
        )
        if not self._keyring.is_up_to_date(digest_key):
            await self._encrypt_digest_key(digest_key)

    async def _encrypt_digest_key(self, stored: str) -> None:
        """Encrypt the key of the digests with the first key; if it was unencrypted, all bodies first."""
        # As long as this key is unencrypted, `open` assumes that bodies may be unencrypted, too.
        if Keyring.is_unencrypted(stored):
            await self.rotate()
        encrypted = self._keyring.encrypt(self._keyring.decrypt(stored))
        await self._run(partial(transactions.replace_key, old=stored, new=encrypted))
        if Keyring.is_unencrypted(stored):
            await self._database.truncate_wal(self._open_resources.connection)

    async def close(self) -> None:
        """Write what is pending, and close the inbox; `async with` does it.

        A cancellation is raised once the inbox is closed. Closing it more than once is harmless.
        """
        if self._resources is not None:
            self._closing, self._resources = self._resources, None
            self._notify()
        await run_to_completion(self._close)

    async def _close(self) -> None:
        async with self._lifecycle_lock:
            if self._closing is None:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._database.transaction_seconds):
                    await self._closing.commands.drain()
            self._closing.commands.stop(_INBOX.closed_error)
            await self._database.close()
            self._closing = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _open_resources(self) -> _OpenResources:
        if self._resources is None:
            raise InboxError(
                "the inbox isn't open", advice="Use it inside `async with SQLInbox(...) as inbox:`."
            )
        if self._resources.loop is not asyncio.get_running_loop():
            raise InboxError(
                "the inbox was opened in another event loop", advice="Open one in each event loop."
            )
        return self._resources

    # -------------------------------------------------------------------------------------- the protocol

    async def add(self, webhook: IncomingWebhook) -> bool:
        """Store a webhook as pending, and return whether it is new; see `Inbox.add`.

        It is on disk when this returns.

        Raises:
            InboxError: the inbox can't be read or written, isn't open, or belongs to another event loop.
        """
        is_new = await self._open_resources.commands.submit(self._to_row(webhook))
        if is_new:
            self._notify()
        return is_new

    def _to_row(self, webhook: IncomingWebhook) -> NewRow:
        digests = self._open_resources.digests
        report_id = read_report_id(webhook.body)
        return NewRow(
            id=secrets.token_hex(16),
            digest=digests.keyed_hash(b"webhook", content_digest(webhook.body, webhook.pair)),
            report_digest=None if report_id is None else self._report_digest(report_id),
            body=transactions.encrypt_body(webhook.body, self._keyring),
            sent_at=webhook.sent_at,
            pair=webhook.pair,
            message_id=transactions.encode(webhook.message_id),
        )

    def _report_digest(self, report_id: str) -> str:
        return self._open_resources.digests.keyed_hash(b"report", report_id)

    async def lease(self, limit: int) -> Sequence[Lease]:
        """Return leases of pending webhooks that are due and that no process has leased; see `Inbox.lease`.

        First, at most once a minute, it deletes what is older than the retention.

        Raises:
            InboxError: the inbox can't be read or written.
            ConfigurationError: no key decrypts a body.
        """
        if time.monotonic() >= self._next_purge:
            more = await self._run(partial(transactions.purge, retention=self._retention))
            self._next_purge = time.monotonic() + (0.0 if more else _PURGE_SECONDS)
        return await self._run(
            partial(transactions.lease, keyring=self._keyring, limit=limit, lease_seconds=self._lease_seconds)
        )

    async def renew(self, lease: Lease) -> bool:
        """Extend a lease; return whether it was still valid."""
        return await self._change(lease, WebhookState.PENDING, leased=True, delay=self._lease_seconds)

    async def complete(self, lease: Lease) -> bool:
        """Mark a webhook as done; return whether the lease was still valid."""
        return await self._change(lease, WebhookState.DONE)

    async def retry(self, lease: Lease, *, delay: float, error: str) -> bool:
        """End the lease, and make the webhook due in `delay` seconds; return whether the lease was valid."""
        valid = await self._change(lease, WebhookState.PENDING, delay=delay, error=error)
        self._notify()
        return valid

    async def bury(self, lease: Lease, *, error: str) -> bool:
        """Make the webhook a dead letter; return whether the lease was still valid."""
        return await self._change(lease, WebhookState.DEAD, error=error)

    async def _change(self, lease: Lease, state: WebhookState, **values: Any) -> bool:
        change = Change(lease.webhook.id, lease.fencing_token, state, **values)
        return await self._open_resources.commands.submit(change)

    async def wait_until_due(self, timeout: float) -> None:  # noqa: ASYNC109  # it doesn't raise
        """Wait until a webhook may be due, for at most `timeout` seconds.

        It takes up to a second to notice what other processes store.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            changed = self._changed
            delay = await self._read(transactions.seconds_until_due)
            remaining = deadline - loop.time()
            if min(remaining, remaining if delay is None else delay) <= 0:
                return
            await _wait(changed, min(remaining, _POLL_SECONDS if delay is None else delay, _POLL_SECONDS))

    async def wait_for_report(self, asset_report_id: str) -> None:
        """Wait until the inbox has a webhook that a report is ready or has failed; it may be done already.

        It takes up to a second to notice what other processes store.
        """
        digest = self._report_digest(asset_report_id)
        while True:
            changed = self._changed
            if await self._read(partial(transactions.has_report, report_digest=digest)):
                return
            await _wait(changed, _POLL_SECONDS)

    async def webhooks(self, state: WebhookState | None = None) -> AsyncIterator[StoredWebhook]:
        """Yield the stored webhooks, oldest first; with a state, only those in it.

        Raises:
            InboxError: the inbox can't be read.
            ConfigurationError: no key decrypts a body.
        """
        after = 0
        while True:
            page = await self._run(
                partial(transactions.read_page, keyring=self._keyring, state=state, after=after)
            )
            for _, webhook in page:
                yield webhook
            if len(page) < transactions.ROWS_PER_PAGE:
                return
            after = page[-1][0]

    async def redeliver(self, webhook_id: str) -> bool:
        """Make a dead letter pending and due, with `attempts` 0; return whether there was one."""
        redelivered = await self._run(partial(transactions.redeliver, webhook_id=webhook_id), 0.0)
        self._notify()
        return redelivered

    async def load_cursor(self) -> str | None:
        """Return the position in the list of sent webhooks up to which they are stored, or `None`."""
        return await self._run(transactions.load_cursor)

    async def store_cursor(self, cursor: str | None) -> None:
        """Store the position in the list of sent webhooks; `None` removes it."""
        await self._run(partial(transactions.store_cursor, cursor=cursor))

    # --------------------------------------------------------------------------------------- maintenance

    async def discard(self, webhook_id: str) -> bool:
        """Mark a dead letter as done and delete its body; return whether there was such a dead letter."""
        return await self._run(partial(transactions.discard, webhook_id=webhook_id), 0.0)

    async def rotate(self) -> int:
        """Encrypt with the first key all bodies that aren't encrypted with it, and return their number.

        Afterwards, once each process has the first key, the other keys can be removed.

        Raises:
            InboxError: the inbox can't be read or written, or a file of SQLite, which the message names, may
                still contain bodies as they were stored before.
            ConfigurationError: none of the keys decrypts a body.
        """
        run = partial(self._run, limit=_MAINTENANCE_SECONDS)
        count = await reencrypt_column(run, self._keyring, schema.webhooks.c.body, _BODIES_PER_PAGE)
        await self._database.truncate_wal(self._open_resources.connection)
        return count

    async def _run(
        self,
        work: Callable[[Connection], T],
        retry_seconds: float = _TRANSACTION_RETRY_SECONDS,
        limit: float | None = None,
    ) -> T:
        connection = self._open_resources.connection
        return await self._database.run_transaction(connection, work, retry_seconds, limit)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        reader = self._open_resources.reader
        return await self._database.run_transaction(reader, work, _TRANSACTION_RETRY_SECONDS)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, for at most some seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
