"""The inbox's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    literal_column,
)

from plaid_relay_async.webhooks.inbox import WebhookState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

metadata: Final = MetaData()

inboxes: Final = Table(
    "relay_inbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("digest_key", Text, nullable=False),  # the key of all digests, encrypted like the bodies
    Column("cursor", Text),  # as JSON, as is `message_id`
)

webhooks: Final = Table(
    "relay_webhooks",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),  # their order
    Column("id", Text, nullable=False, unique=True),
    Column("digest", Text, nullable=False),  # of the content and the pair
    Column("report_digest", Text),  # of the ID of the report that is ready or has failed
    Column("body", Text),  # encrypted; NULL after the retention
    Column("sent_at", Float, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("pair", Text),
    # Plaid chooses it, and as JSON it has only characters that each database accepts.
    Column("message_id", Text),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    Column("due_at", Float, nullable=False),  # when its handler may run: the end of its lease, if it has one
    Column("fencing_token", BigInteger, nullable=False),  # the number of its latest lease
    Column("leased", Boolean, nullable=False),  # whether that lease hasn't ended
    Column("changed_at", Float, nullable=False),  # when its state or its lease last changed
    sqlite_autoincrement=True,
)


def has_state(state: WebhookState) -> Any:
    """Return the condition that a webhook is in a state.

    The state isn't a parameter: SQLite uses a partial index only for a query with the same constant.
    """
    return webhooks.c.state == literal_column(f"'{state.value}'")


# The conditions of the partial indexes, which queries use as they are.
HAS_BODY_AND_IS_DONE: Final = and_(has_state(WebhookState.DONE), webhooks.c.body.is_not(None))
HAS_MESSAGE_ID: Final = webhooks.c.message_id.is_not(None)
HAS_REPORT: Final = webhooks.c.report_digest.is_not(None)


def _partial_index(name: str, column: Column[Any], where: Any) -> None:
    Index(name, column, sqlite_where=where, postgresql_where=where)


Index("relay_webhooks_digest", webhooks.c.digest)
_partial_index("relay_webhooks_due", webhooks.c.due_at, has_state(WebhookState.PENDING))
_partial_index("relay_webhooks_dead", webhooks.c.number, has_state(WebhookState.DEAD))
_partial_index("relay_webhooks_message", webhooks.c.message_id, HAS_MESSAGE_ID)
_partial_index("relay_webhooks_report", webhooks.c.report_digest, HAS_REPORT)
_partial_index("relay_webhooks_body", webhooks.c.changed_at, HAS_BODY_AND_IS_DONE)
_partial_index("relay_webhooks_done", webhooks.c.changed_at, has_state(WebhookState.DONE))

# The function at index n migrates the tables from version n + 1 to version n + 2.
MIGRATIONS: Final[tuple[Callable[[Connection], object], ...]] = ()
