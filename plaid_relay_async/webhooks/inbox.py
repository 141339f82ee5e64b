"""The inbox: the webhooks that an application has received, and what became of each.

A receiver stores a webhook in an inbox before it responds. Afterwards its handler runs, at least once, until
the webhook is done or, after too many failures, a dead letter. `MemoryInbox` is for tests; `SQLInbox` of
`plaid_relay_async.inbox` is durable.

Plaid delivers a webhook repeatedly if a response is lost, and the delivered webhooks have no ID. So two
webhooks are the same one if they have the same content and the same pair, and were sent within
`DEDUPLICATION_SECONDS` of each other, unless both have a `message_id` and these differ.
"""

from __future__ import annotations

import decimal
import enum
import hashlib
import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

RETRY_SECONDS: Final = 86_400.0
"""How long Plaid continues to send a webhook (https://plaid.com/docs/api/webhooks/)."""
DEDUPLICATION_SECONDS: Final = RETRY_SECONDS + 3600.0
"""The time between two deliveries of the same content for which they are one webhook; Plaid's 24 hours, and an
hour for clocks and slow deliveries."""

_PAIR_ID: Final = re.compile("[0-9a-f]{32}")


class WebhookState(enum.StrEnum):
    """The state of a stored webhook; the values are stored."""

    PENDING = "pending"
    """Its handler hasn't succeeded yet."""
    DONE = "done"
    DEAD = "dead"
    """A dead letter: its handler has failed too often. `redeliver` makes it pending again."""


@frozen
class IncomingWebhook:
    """A webhook to store.

    Attributes:
        body: its body, which was verified, or the payload from Plaid's list of sent webhooks, as JSON.
        sent_at: when Plaid signed or first sent it, in seconds of Unix time.
        pair: the pair ID in its URL, or `None`.
        message_id: Plaid's `webhook_message_id`, which only the list of sent webhooks has.
    """

    body: bytes = field(repr=False)
    sent_at: float
    pair: str | None = None
    message_id: str | None = None


@frozen
class StoredWebhook:
    """A webhook in an inbox.

    Attributes:
        id: its ID in the inbox. With the name of the application it is an idempotency key: it stays the same
            each time that its handler runs.
        body: its body; `None` if it was deleted at the end of the retention.
        sent_at: when Plaid signed or first sent it, in seconds of Unix time.
        received_at: when it was stored, in seconds of Unix time.
        pair: the pair ID in its URL, or `None`.
        message_id: Plaid's `webhook_message_id`, if it is known.
        state: its state.
        attempts: how many times its handler was started; in a lease, including this time.
        error: the name of the exception class with which its handler last failed, or `None`.
    """

    id: str
    body: bytes | None = field(repr=False)
    sent_at: float
    received_at: float
    pair: str | None
    message_id: str | None
    state: WebhookState
    attempts: int
    error: str | None


@frozen
class Lease:
    """The right of one process to run the handler of a webhook, until the lease expires.

    Attributes:
        webhook: the webhook; it has a body.
        fencing_token: the number of the lease. A lease that has expired, and was followed by another one,
            can't change the webhook any more.
    """

    webhook: StoredWebhook
    fencing_token: int


@runtime_checkable
class Inbox(Protocol):
    """Where received webhooks are stored. All methods may be called concurrently.

    Attributes:
        durable: whether a webhook that `add` has stored survives the end of the process.
        lease_seconds: for how long a lease is valid unless it is renewed.
    """

    @property
    def durable(self) -> bool:
        """Whether a stored webhook survives the end of the process."""
        ...

    @property
    def lease_seconds(self) -> float:
        """For how long a lease is valid unless it is renewed."""
        ...

    async def add(self, webhook: IncomingWebhook) -> bool:
        """Store a webhook as pending, and return whether it is new.

        If the same webhook is stored already, only its `message_id` may change: from `None` to the given one.
        """
        ...

    async def lease(self, limit: int) -> Sequence[Lease]:
        """Return leases of pending webhooks that are due and that no process has leased, oldest first."""
        ...

    async def renew(self, lease: Lease) -> bool:
        """Extend a lease by `lease_seconds` from now; return whether it was still valid."""
        ...

    async def complete(self, lease: Lease) -> bool:
        """Mark a webhook as done; return whether the lease was still valid."""
        ...

    async def retry(self, lease: Lease, *, delay: float, error: str) -> bool:
        """End the lease, and make the webhook due in `delay` seconds; return whether the lease was valid."""
        ...

    async def bury(self, lease: Lease, *, error: str) -> bool:
        """Make the webhook a dead letter; return whether the lease was still valid."""
        ...

    async def wait_until_due(self, timeout: float) -> None:
        """Wait until a webhook may be due, for at most `timeout` seconds."""
        ...

    async def wait_for_report(self, asset_report_id: str) -> None:
        """Wait until the inbox has a webhook that a report is ready or has failed; it may be done already."""
        ...

    def webhooks(self, state: WebhookState | None = None) -> AsyncIterator[StoredWebhook]:
        """Yield the stored webhooks, oldest first; with a state, only those in it."""
        ...

    async def redeliver(self, webhook_id: str) -> bool:
        """Make a dead letter pending and due, with `attempts` 0; return whether there was such a dead letter."""
        ...

    async def load_cursor(self) -> str | None:
        """Return the cursor of the list of sent webhooks up to which they were stored, or `None`."""
        ...

    async def store_cursor(self, cursor: str | None) -> None:
        """Store that cursor; `None` removes it."""
        ...


def content_digest(body: bytes, pair: str | None) -> str:
    """Return the digest of a webhook's content and pair, in hexadecimal digits.

    A body that is a JSON object is compared by its values: the list of sent webhooks has the payload, but not
    the bytes that were sent. So `1.0` and `1e0` are the same number, and of two members with the same name
    the last one counts. Any other body is compared by its bytes.
    """
    try:
        payload = json.loads(body, parse_int=_read_number, parse_float=_read_number, parse_constant=float)
        content = _canonical_json(payload).encode() if isinstance(payload, dict) else body
    except (ValueError, ArithmeticError, RecursionError):
        content = body
    return hashlib.sha256(f"{pair or ''}:".encode() + content).hexdigest()


# Without a limit on digits: a number is compared exactly.
_EXACT: Final = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


def _read_number(text: str) -> Decimal:
    """Return a number in its shortest form; zero has no sign."""
    return Decimal(text).normalize(_EXACT) or Decimal(0)


def _canonical_json(value: Any) -> str:
    if isinstance(value, dict):
        members = (f"{json.dumps(name)}:{_canonical_json(value[name])}" for name in sorted(value))
        return f"{{{','.join(members)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_canonical_json, value))}]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value, allow_nan=False)


def read_pair_id(url: str) -> str | None:
    """Return the pair ID in a webhook's URL or path, which is its last segment, or `None`."""
    segment = url.partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2]
    return segment if _PAIR_ID.fullmatch(segment) else None
