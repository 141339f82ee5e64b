"""The inbox: the webhooks that an application has received, each with its state.

A receiver stores a webhook in an inbox before it responds. Afterwards its handler runs, at least once, until
the webhook is done or, after too many failures, a dead letter. `MemoryInbox` is for tests; `SQLInbox` of
`plaid_relay_async.inbox` is durable.

Plaid delivers a webhook repeatedly if a response is lost, and the delivered webhooks have no ID. So two
webhooks are the same one if they have the same content and the same pair, and were sent within
`DEDUPLICATION_SECONDS` of each other. If both have a `message_id`, only that decides.
"""

from __future__ import annotations

import contextlib
import decimal
import enum
import hashlib
import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

RETRY_SECONDS: Final = 86_400.0
"""How long Plaid continues to send a webhook (https://plaid.com/docs/api/webhooks/)."""
DEDUPLICATION_SECONDS: Final = RETRY_SECONDS + 3600.0
"""Deliveries of the same content within this time are one webhook: Plaid's 24 hours, and an hour for clocks
and slow deliveries."""

_REPORT_CODES: Final = ("PRODUCT_READY", "ERROR")
_PAIR_ID: Final = re.compile("[0-9a-f]{32}")


class WebhookState(enum.StrEnum):
    """The state of a stored webhook; the values are stored."""

    PENDING = "pending"
    """Its handler hasn't succeeded yet."""
    DONE = "done"
    DEAD = "dead"
    """Its handler has failed too often, so it is a dead letter. `redeliver` makes it pending again."""


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
    pair: str | None = field(default=None, repr=False)  # as secret as the URL
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
    pair: str | None = field(repr=False)  # as secret as the URL
    message_id: str | None
    state: WebhookState
    attempts: int
    error: str | None


@frozen
class Lease:
    """The right of one process to run the handler of a webhook, until the lease expires.

    A lease that has expired remains valid until the webhook is leased again. After that, the old lease can't
    change the webhook any more. Repeating the call that ended a lease changes nothing and returns true.

    Attributes:
        webhook: the webhook; it has a body.
        fencing_token: the number of the lease; each lease of a webhook has a greater one.
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
        """Return leases of pending webhooks that are due and that no process has leased.

        Those that have been due for longest are the first; a new webhook is due when it is stored.
        """
        ...

    async def renew(self, lease: Lease) -> bool:
        """Extend a lease, so that it expires in `lease_seconds`; return whether it was still valid."""
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

    async def wait_until_due(self, timeout: float) -> None:  # noqa: ASYNC109  # it doesn't raise
        """Wait until a webhook may be due, for at most `timeout` seconds."""
        ...

    async def wait_for_report(self, asset_report_id: str) -> None:
        """Wait until the inbox has a webhook that a report is ready or has failed; it may be done already."""
        ...

    def webhooks(self, state: WebhookState | None = None) -> AsyncIterator[StoredWebhook]:
        """Yield the stored webhooks, oldest first; with a state, only those in it."""
        ...

    async def redeliver(self, webhook_id: str) -> bool:
        """Make a dead letter pending and due, with `attempts` 0; return whether there was one."""
        ...

    async def load_cursor(self) -> str | None:
        """Return the position in the list of sent webhooks up to which they are stored, or `None`."""
        ...

    async def store_cursor(self, cursor: str | None) -> None:
        """Store the position in the list of sent webhooks; `None` removes it."""
        ...


class Comparable(Protocol):
    """A webhook that `find_same` compares with others of the same content and pair, or message ID."""

    @property
    def sent_at(self) -> float:
        """When Plaid signed or first sent it."""
        ...

    @property
    def message_id(self) -> str | None:
        """Plaid's ID of it, if it is known."""
        ...


W = TypeVar("W", bound=Comparable)


def find_same(webhook: Comparable, stored: Iterable[W]) -> W | None:
    """Return the stored webhook that is the same as another one, or `None`.

    Args:
        webhook: the other one.
        stored: the webhooks with its content and pair, or with its `message_id`.
    """

    def is_same(each: Comparable) -> bool:
        if None not in (webhook.message_id, each.message_id):
            return webhook.message_id == each.message_id
        return abs(webhook.sent_at - each.sent_at) <= DEDUPLICATION_SECONDS

    def distance(each: Comparable) -> tuple[bool, float]:
        return (webhook.message_id != each.message_id, abs(webhook.sent_at - each.sent_at))

    return min(filter(is_same, stored), key=distance, default=None)


def content_digest(body: bytes, pair: str | None) -> str:
    """Return the digest of a webhook's content and pair, in hexadecimal digits.

    A body that is a JSON object is compared by its values: the list of sent webhooks has the payload, but not
    the bytes that were sent. So `1.0` and `1e0` are the same number, and of two members with the same name
    the last one counts. Any other body is compared by its bytes.
    """
    payload = _read_payload(body)
    content = body
    if payload is not None:
        with contextlib.suppress(RecursionError):
            content = _canonical_json(payload).encode()
    return hashlib.sha256(f"{pair or ''}:".encode() + content).hexdigest()


def read_report_id(body: bytes) -> str | None:
    """Return the `asset_report_id` of a webhook that a report is ready or has failed, or `None`."""
    payload = _read_payload(body) or {}
    if payload.get("webhook_type") != "ASSETS" or payload.get("webhook_code") not in _REPORT_CODES:
        return None
    report_id = payload.get("asset_report_id")
    return report_id if isinstance(report_id, str) else None


def _read_payload(body: bytes) -> dict[str, Any] | None:
    """Return the values of a body, with numbers as Decimals, or `None` if it isn't an object of JSON."""
    try:
        payload = json.loads(
            body, parse_int=_read_number, parse_float=_read_number, parse_constant=_reject_constant
        )
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


# No limit on digits, so that a number is never rounded.
_EXACT: Final = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


def _read_number(text: str) -> Decimal:
    """Return a number in its shortest form; zero has no sign."""
    return Decimal(text).normalize(_EXACT) or Decimal(0)


def _reject_constant(name: str) -> float:
    raise ValueError(name)  # NaN and infinities aren't JSON


def _canonical_json(value: Any) -> str:
    if isinstance(value, dict):
        members = (f"{json.dumps(name)}:{_canonical_json(value[name])}" for name in sorted(value))
        return f"{{{','.join(members)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_canonical_json, value))}]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


def read_pair_id(url: str) -> str | None:
    """Return the pair ID in a webhook's URL or path, which is its last segment, or `None`."""
    segment = url.partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2]
    return segment if _PAIR_ID.fullmatch(segment) else None
