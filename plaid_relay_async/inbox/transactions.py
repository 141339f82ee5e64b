"""The inbox's transactions: functions of a connection.

Most of them may be repeated after a commit whose confirmation was lost.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from attrs import define, evolve, field, frozen
from sqlalchemy import (
    Float,
    Integer,
    and_,
    bindparam,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    null,
    select,
    text,
    true,
    update,
)

from plaid_relay_async.inbox.schema import (
    HAS_BODY_AND_IS_DONE,
    HAS_MESSAGE_ID,
    HAS_REPORT,
    has_state,
    inboxes,
    webhooks,
)
from plaid_relay_async.journal.schema import now
from plaid_relay_async.journal.statements import input_rows, rows_parameter
from plaid_relay_async.redaction import strip_traceback
from plaid_relay_async.webhooks.inbox import Lease, StoredWebhook, WebhookState, find_same

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from plaid_relay_async.journal.encryption import Keyring

ROWS_PER_PAGE: Final = 100  # listed in one transaction
_ROWS_PER_PURGE: Final = 500
# Plaid's list of sent webhooks has a webhook for 7 days; the inbox must recognize it there. One day is added.
_MIN_ROW_SECONDS: Final = 8 * 86_400.0
_LOCK_FOR_ADDING: Final = text("SELECT pg_advisory_xact_lock(hashtext('relay_webhooks'))")
# As a subquery, the time is read once, so that PostgreSQL can look it up in an index.
_NOW: Final = select(now()).scalar_subquery()
_SELECT_COMPARED: Final = select(webhooks.c.id, webhooks.c.digest, webhooks.c.sent_at, webhooks.c.message_id)
_IDENTIFY: Final = (
    update(webhooks).where(webhooks.c.id == bindparam("same")).values(message_id=bindparam("message"))
)


@define(eq=False)
class NewRow:
    """A webhook to store.

    Attributes:
        id: its ID, which is chosen before the transaction, so that a repeated transaction recognizes it.
        digest: the digest of its content and pair.
        report_digest: the digest of the ID of the report that is ready or has failed, or `None`.
        body: its body, as it is stored.
        sent_at: when Plaid signed or first sent it.
        pair: the pair ID in its URL, or `None`.
        message_id: Plaid's ID of it, as it is stored.
    """

    id: str
    digest: str
    report_digest: str | None
    body: str = field(repr=False)
    sent_at: float
    pair: str | None = field(repr=False)
    message_id: str | None

    def columns(self) -> dict[str, Any]:
        """Return the columns of its row that depend on it."""
        return {name: getattr(self, name) for name in _NEW_COLUMNS}


_NEW_COLUMNS: Final = ("id", "digest", "report_digest", "body", "sent_at", "pair", "message_id")


@functools.cache
def _insert(kind: str) -> Any:
    """Return the statement that inserts rows, for a kind of database."""
    source = input_rows(kind, *(webhooks.c[name] for name in _NEW_COLUMNS))
    others = {
        "received_at": now(),
        "state": literal(WebhookState.PENDING.value),
        "attempts": literal(0),
        "due_at": now(),
        "fencing_token": literal(0),
        "leased": false(),
        "changed_at": now(),
    }
    rows = select(*(source.c[name] for name in _NEW_COLUMNS), *others.values())
    return insert(webhooks).from_select([*_NEW_COLUMNS, *others], rows)


@frozen
class Change:
    """A change of a leased webhook.

    Attributes:
        webhook_id: the webhook.
        fencing_token: the number of its lease.
        state: its new state.
        leased: whether the lease continues.
        delay: seconds until it is due, or until the lease expires.
        error: the name of the exception class with which its handler failed, or `None`.
    """

    webhook_id: str
    fencing_token: int
    state: WebhookState
    leased: bool = False
    delay: float = 0.0
    error: str | None = None


def _is_lease() -> Any:
    token: Any = bindparam("token", type_=Integer)
    return and_(webhooks.c.id == bindparam("webhook"), webhooks.c.fencing_token == token)


_CHANGE: Final = (
    update(webhooks)
    .where(_is_lease(), webhooks.c.leased == true())
    .values(
        state=bindparam("new_state"),
        leased=bindparam("continues"),
        due_at=now() + bindparam("delay", type_=Float),
        error=func.coalesce(bindparam("new_error"), webhooks.c.error),
        changed_at=now(),
    )
)
_SELECT_ENDED_STATE: Final = select(webhooks.c.state).where(_is_lease(), webhooks.c.leased == false())


def encode(value: str | None) -> str | None:
    """Return a text that Plaid chose as it is stored: every database accepts its characters."""
    return None if value is None else json.dumps(value)


def decode(stored: str | None) -> str | None:
    """Return a text that Plaid chose from its stored form."""
    return None if stored is None else str(json.loads(stored))


def write(connection: Connection, commands: Sequence[NewRow | Change]) -> list[bool]:
    """Store new webhooks and apply changes; return for each whether it was new, or its lease was valid."""
    new_rows = [each for each in commands if isinstance(each, NewRow)]
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif new_rows:
        # One transaction at a time stores new webhooks, so that it sees all that are stored.
        connection.execute(_LOCK_FOR_ADDING)
    # Adding may change the message ID of a row, and a repeated transaction needs the rows as they were.
    is_new = iter(_add(connection, [evolve(row) for row in new_rows]))
    return [
        next(is_new) if isinstance(each, NewRow) else _apply_change(connection, each) for each in commands
    ]


def _add(connection: Connection, new_rows: Sequence[NewRow]) -> list[bool]:
    candidates: defaultdict[str, list[NewRow]] = defaultdict(list)  # by digest and by message ID
    for row in _select_candidates(connection, new_rows):
        for key in _keys(row):
            candidates[key].append(row)
    results, inserted, identified = [], [], []
    for row in new_rows:
        same = find_same(row, [each for key in _keys(row) for each in candidates[key]])
        # After a lost commit, the row itself is stored already.
        results.append(same is None or same.id == row.id)
        if same is None:
            inserted.append(row)
            for key in _keys(row):
                candidates[key].append(row)
        elif same.message_id is None and row.message_id is not None:
            same.message_id = row.message_id
            identified.append({"same": same.id, "message": same.message_id})
            candidates[row.message_id].append(same)
    if inserted:
        rows = rows_parameter([row.columns() for row in inserted])
        connection.execute(_insert(connection.dialect.name), rows)
    for each in identified:
        connection.execute(_IDENTIFY, each)
    return results


def _keys(row: NewRow) -> tuple[str, ...]:
    # A message ID is stored as JSON, so it begins with a quotation mark, and a digest doesn't.
    return (row.digest,) if row.message_id is None else (row.digest, row.message_id)


def _select_candidates(connection: Connection, new_rows: Sequence[NewRow]) -> list[NewRow]:
    """Return the stored rows with the content and pair, or with the message ID, of a new one."""
    digests = [row.digest for row in new_rows]
    message_ids = [row.message_id for row in new_rows if row.message_id is not None]
    # There are two queries, so that each one uses its index.
    queries = [_SELECT_COMPARED.where(webhooks.c.digest.in_(digests))] if digests else []
    if message_ids:
        queries.append(_SELECT_COMPARED.where(HAS_MESSAGE_ID, webhooks.c.message_id.in_(message_ids)))
    rows = {row.id: row for query in queries for row in connection.execute(query)}
    return [NewRow(row.id, row.digest, None, "", row.sent_at, None, row.message_id) for row in rows.values()]


def _apply_change(connection: Connection, change: Change) -> bool:
    lease = {"webhook": change.webhook_id, "token": change.fencing_token}
    values = {
        "new_state": change.state.value,
        "continues": change.leased,
        "delay": change.delay,
        "new_error": change.error,
    }
    if connection.execute(_CHANGE, {**lease, **values}).rowcount:
        return True
    # A repeated change, such as one whose commit wasn't confirmed, has taken effect already.
    state = connection.execute(_SELECT_ENDED_STATE, lease).scalar_one_or_none()
    return not change.leased and state == change.state.value


def lease(connection: Connection, keyring: Keyring, limit: int, lease_seconds: float) -> list[Lease]:
    """Lease pending webhooks that are due.

    If it is repeated after a lost commit, the webhooks that were leased before are due again when those
    leases expire.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    query = (
        select(webhooks)
        .where(has_state(WebhookState.PENDING), webhooks.c.due_at <= _NOW)
        .order_by(webhooks.c.due_at, webhooks.c.number)
        .limit(max(0, limit))
        .with_for_update(skip_locked=True)
    )
    leases = [
        Lease(to_stored(row, keyring, attempts=row.attempts + 1), row.fencing_token + 1)
        for row in connection.execute(query)
    ]
    if leases:
        connection.execute(
            update(webhooks)
            .where(webhooks.c.id.in_([each.webhook.id for each in leases]))
            .values(
                due_at=now() + lease_seconds,
                attempts=webhooks.c.attempts + 1,
                fencing_token=webhooks.c.fencing_token + 1,
                leased=True,
                changed_at=now(),
            )
        )
    return leases


@strip_traceback
def to_stored(row: Any, keyring: Keyring, *, attempts: int) -> StoredWebhook:
    """Return the webhook of a row.

    Raises:
        ConfigurationError: no key decrypts its body.
    """
    return StoredWebhook(
        id=row.id,
        body=None if row.body is None else decrypt_body(row.body, keyring),
        sent_at=row.sent_at,
        received_at=row.received_at,
        pair=row.pair,
        message_id=decode(row.message_id),
        state=WebhookState(row.state),
        attempts=attempts,
        error=row.error,
    )


def encrypt_body(body: bytes, keyring: Keyring) -> str:
    """Return a body, which needn't be text, as it is stored."""
    return keyring.encrypt(body.decode("utf-8", "surrogateescape"))


def decrypt_body(stored: str, keyring: Keyring) -> bytes:
    """Return a body from its stored form."""
    return keyring.decrypt(stored).encode("utf-8", "surrogateescape")


def read_page(
    connection: Connection, keyring: Keyring, state: WebhookState | None, after: int
) -> list[tuple[int, StoredWebhook]]:
    """Return the next webhooks after a number, each with its number; with a state, only those in it."""
    query = select(webhooks).where(webhooks.c.number > after).order_by(webhooks.c.number)
    if state is not None:
        query = query.where(has_state(state))
    rows = connection.execute(query.limit(ROWS_PER_PAGE))
    return [(row.number, to_stored(row, keyring, attempts=row.attempts)) for row in rows]


def seconds_until_due(connection: Connection) -> float | None:
    """Return the seconds until a pending webhook is due, or `None` if there is none."""
    first = select(func.min(webhooks.c.due_at) - _NOW)
    seconds: float | None = connection.execute(first.where(has_state(WebhookState.PENDING))).scalar_one()
    return seconds


def has_report(connection: Connection, report_digest: str) -> bool:
    """Return whether a webhook says that a report is ready or has failed."""
    is_about = and_(HAS_REPORT, webhooks.c.report_digest == report_digest)
    return bool(connection.execute(select(exists().where(is_about))).scalar_one())


def redeliver(connection: Connection, webhook_id: str) -> bool:
    """Make a dead letter pending and due; return whether there was such a dead letter."""
    return _change_dead_letter(
        connection,
        webhook_id,
        state=WebhookState.PENDING.value,
        attempts=0,
        due_at=now(),
        # So that the lease that ended in this dead letter isn't valid any more.
        fencing_token=webhooks.c.fencing_token + 1,
    )


def discard(connection: Connection, webhook_id: str) -> bool:
    """Make a dead letter done, and delete its body; return whether there was such a dead letter."""
    return _change_dead_letter(connection, webhook_id, state=WebhookState.DONE.value, body=null())


def _change_dead_letter(connection: Connection, webhook_id: str, **values: Any) -> bool:
    is_dead = and_(webhooks.c.id == webhook_id, has_state(WebhookState.DEAD))
    statement = update(webhooks).where(is_dead).values(changed_at=now(), **values)
    return bool(connection.execute(statement).rowcount)


def purge(connection: Connection, retention: float) -> bool:
    """Delete what is older than the retention, up to a limit; return whether there may be more."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    bodies = _oldest(HAS_BODY_AND_IS_DONE, retention)
    rows = _oldest(has_state(WebhookState.DONE), max(retention, _MIN_ROW_SECONDS))
    counts = (
        connection.execute(update(webhooks).where(bodies).values(body=null())).rowcount,
        connection.execute(delete(webhooks).where(rows)).rowcount,
    )
    return max(counts) == _ROWS_PER_PURGE


def _oldest(condition: Any, seconds: float) -> Any:
    """Return the condition that selects rows, up to a limit, whose last change is some time ago."""
    oldest = select(webhooks.c.number).where(condition, webhooks.c.changed_at <= _NOW - seconds)
    return webhooks.c.number.in_(
        oldest.order_by(webhooks.c.changed_at).limit(_ROWS_PER_PURGE).with_for_update(skip_locked=True)
    )


def load_cursor(connection: Connection) -> str | None:
    """Return the stored cursor, or `None`."""
    return decode(connection.execute(select(inboxes.c.cursor)).scalar_one())


def store_cursor(connection: Connection, cursor: str | None) -> None:
    """Store the cursor."""
    connection.execute(update(inboxes).values(cursor=encode(cursor)))


def replace_key(connection: Connection, old: str, new: str) -> None:
    """Store the key of the digests, encrypted with another key, unless another process has replaced it."""
    connection.execute(update(inboxes).where(inboxes.c.digest_key == old).values(digest_key=new))
