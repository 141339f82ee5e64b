"""`MemoryInbox`: an inbox for tests, which is lost at the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any

from attrs import define, evolve

from plaid_relay_async.webhooks.inbox import (
    Lease,
    StoredWebhook,
    WebhookState,
    content_digest,
    find_same,
    read_report_id,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from plaid_relay_async.webhooks.inbox import IncomingWebhook


@define(eq=False, repr=False)
class _Entry:
    """A webhook, with what only the inbox needs.

    Attributes:
        webhook: the webhook as it is now.
        digest: the digest of its content and pair.
        report_id: the report that it says is ready or has failed, or `None`.
        due_at: when its handler may run: the end of its lease, if it has one.
        fencing_token: the number of its latest lease.
        leased: whether that lease hasn't ended.
    """

    webhook: StoredWebhook
    digest: str
    report_id: str | None
    due_at: float
    fencing_token: int = 0
    leased: bool = False

    @property
    def sent_at(self) -> float:
        """When Plaid signed or first sent it."""
        return self.webhook.sent_at

    @property
    def message_id(self) -> str | None:
        """Plaid's ID of it, if it is known."""
        return self.webhook.message_id

    def update(self, **changes: Any) -> None:
        """Change attributes of the webhook."""
        self.webhook = evolve(self.webhook, **changes)


class MemoryInbox:
    """An inbox in memory, for tests: it isn't durable.

    Args:
        lease_seconds: for how long a lease is valid unless it is renewed.
        max_webhooks: with more webhooks than this, those that were done first are dropped. Webhooks that
            aren't done are always kept.
        clock: returns the time in seconds of Unix time.
    """

    durable = False

    def __init__(
        self,
        *,
        lease_seconds: float = 60.0,
        max_webhooks: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lease_seconds = lease_seconds
        self._max_webhooks = max_webhooks
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._done: dict[str, None] = {}  # the IDs of the webhooks that are done, in order
        self._cursor: str | None = None
        self._changed = asyncio.Event()  # it is set, and replaced, at each change that a call may wait for

    async def add(self, webhook: IncomingWebhook) -> bool:
        """Store a webhook as pending, and return whether it is new; see `Inbox.add`."""
        digest = content_digest(webhook.body, webhook.pair)
        same = find_same(webhook, self._candidates(digest, webhook.message_id))
        if same is not None:
            same.update(message_id=same.message_id or webhook.message_id)
            return False
        now = self._clock()
        stored = StoredWebhook(
            id=secrets.token_hex(16),
            body=webhook.body,
            sent_at=webhook.sent_at,
            received_at=now,
            pair=webhook.pair,
            message_id=webhook.message_id,
            state=WebhookState.PENDING,
            attempts=0,
            error=None,
        )
        self._entries[stored.id] = _Entry(stored, digest, read_report_id(webhook.body), now)
        self._drop_done()
        self._notify()
        return True

    async def lease(self, limit: int) -> Sequence[Lease]:
        """Return leases of pending webhooks that are due; see `Inbox.lease`."""
        now = self._clock()
        due = sorted((each for each in self._pending() if each.due_at <= now), key=lambda each: each.due_at)
        for entry in due[:limit]:
            entry.update(attempts=entry.webhook.attempts + 1)
            entry.due_at, entry.leased = now + self.lease_seconds, True
            entry.fencing_token += 1
        return [Lease(entry.webhook, entry.fencing_token) for entry in due[:limit]]

    async def renew(self, lease: Lease) -> bool:
        """Extend a lease; return whether it was still valid."""
        entry = self._entry_of(lease)
        if entry is None or not entry.leased:
            return False
        entry.due_at = self._clock() + self.lease_seconds
        return True

    async def complete(self, lease: Lease) -> bool:
        """Mark a webhook as done; return whether the lease was still valid."""
        valid = self._end(lease, WebhookState.DONE)
        if valid:
            self._done.setdefault(lease.webhook.id)
            self._drop_done()
        return valid

    async def retry(self, lease: Lease, *, delay: float, error: str) -> bool:
        """End the lease, and make the webhook due in `delay` seconds; return whether the lease was valid."""
        valid = self._end(lease, WebhookState.PENDING, error, delay)
        self._notify()
        return valid

    async def bury(self, lease: Lease, *, error: str) -> bool:
        """Make the webhook a dead letter; return whether the lease was still valid."""
        return self._end(lease, WebhookState.DEAD, error)

    async def wait_until_due(self, timeout: float) -> None:  # noqa: ASYNC109  # it doesn't raise
        """Wait until a webhook may be due, for at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while True:
                    changed = self._changed
                    first = min((each.due_at for each in self._pending()), default=None)
                    delay = None if first is None else first - self._clock()
                    if delay is not None and delay <= 0:
                        return
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(delay):
                            await changed.wait()

    async def wait_for_report(self, asset_report_id: str) -> None:
        """Wait until the inbox has a webhook that a report is ready or has failed."""
        while all(each.report_id != asset_report_id for each in self._entries.values()):
            await self._changed.wait()

    async def webhooks(self, state: WebhookState | None = None) -> AsyncIterator[StoredWebhook]:
        """Yield the stored webhooks, oldest first; with a state, only those in it."""
        for entry in list(self._entries.values()):
            if state is None or entry.webhook.state is state:
                yield entry.webhook

    async def redeliver(self, webhook_id: str) -> bool:
        """Make a dead letter pending and due; return whether there was such a dead letter."""
        entry = self._entries.get(webhook_id)
        if entry is None or entry.webhook.state is not WebhookState.DEAD:
            return False
        entry.update(state=WebhookState.PENDING, attempts=0)
        entry.due_at = self._clock()
        entry.fencing_token += 1  # so that the lease that ended in this dead letter isn't valid any more
        self._notify()
        return True

    async def load_cursor(self) -> str | None:
        """Return the stored cursor, or `None`."""
        return self._cursor

    async def store_cursor(self, cursor: str | None) -> None:
        """Store the cursor; `None` removes it."""
        self._cursor = cursor

    def _candidates(self, digest: str, message_id: str | None) -> list[_Entry]:
        return [
            each
            for each in self._entries.values()
            if each.digest == digest or (message_id is not None and each.message_id == message_id)
        ]

    def _pending(self) -> list[_Entry]:
        return [each for each in self._entries.values() if each.webhook.state is WebhookState.PENDING]

    def _entry_of(self, lease: Lease) -> _Entry | None:
        """Return the entry of a lease, unless another lease followed it."""
        entry = self._entries.get(lease.webhook.id)
        return entry if entry is not None and entry.fencing_token == lease.fencing_token else None

    def _end(self, lease: Lease, state: WebhookState, error: str | None = None, delay: float = 0.0) -> bool:
        entry = self._entry_of(lease)
        if entry is None:
            return False
        if entry.leased:
            entry.update(state=state, error=error or entry.webhook.error)
            entry.due_at, entry.leased = self._clock() + delay, False
        return entry.webhook.state is state

    def _drop_done(self) -> None:
        while self._done and len(self._entries) > self._max_webhooks:
            first = next(iter(self._done))
            del self._done[first], self._entries[first]

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
