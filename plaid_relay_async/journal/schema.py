"""The journal's tables, and migrations from older versions of them.

The stored names are older than the names in the code, and stay, so that existing journals can be opened: the
table `relay_entries` has the creations, and `relay_holders` has the workers. A column whose stored name would
mislead has another name in the code, its `key`. `begun_at` is the time of the latest intent.
"""

from __future__ import annotations

import enum
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
    false,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from plaid_relay_async.journal.database import JOURNAL
from plaid_relay_async.journal.versions import create_or_migrate_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection


class CreationState(enum.StrEnum):
    """The state of one creation; the values are stored."""

    NOT_ATTEMPTED = "accepted"  # the stored value is older, as is that of `INTENT`
    """No attempt was sent, or Plaid has declined each one."""
    INTENT = "begun"
    """An attempt may be in flight. If its worker is dead, its outcome is unknown."""
    CREATED = "created"
    FAILED = "failed"
    UNKNOWN = "unknown"
    HELD_ELSEWHERE = "elsewhere"
    """Another run holds the pair, and its row has the outcome."""
    REMOVING = "removing"
    """A removal of the token may be in flight, or has an unknown outcome. The token may be valid."""
    REMOVED = "removed"


class now(FunctionElement[float]):  # noqa: N801  # it is used as a function of SQL
    """Seconds since 1970, by the clock of PostgreSQL's server, or of this machine with SQLite."""

    type = Float()
    inherit_cache = True


@compiles(now)
def _compile_now(_element: object, _compiler: object, **_: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"


@compiles(now, "sqlite")
def _compile_now_in_sqlite(_element: object, _compiler: object, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"  # the Julian day of 1970-01-01, and seconds per day


metadata: Final = MetaData()
_AutoIncrement = BigInteger().with_variant(Integer, "sqlite")  # SQLite increments no other type

journals: Final = Table(
    "relay_journal",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("pair_key", Text, nullable=False),  # the key of all digests, encrypted like the tokens
)

runs: Final = Table(
    "relay_runs",
    metadata,
    Column("id", _AutoIncrement, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("started_at", Float, nullable=False),
)

# Each opening of the journal that writes is a new worker. Its ID is a fencing token, and is never reused.
workers: Final = Table(
    "relay_holders",
    metadata,
    Column("id", _AutoIncrement, primary_key=True),
    Column("run_id", BigInteger, nullable=False),
    Column("lock", Text),  # the name of its lock file, on SQLite
    Column("expires_at", Float),  # the end of its lease, on PostgreSQL
    Column("ended", Boolean, nullable=False),
    Column("request_seconds", Float, nullable=False),
    sqlite_autoincrement=True,
)

entries: Final = Table(
    "relay_entries",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("run_id", BigInteger, nullable=False),
    Column("pair", Text, nullable=False),
    Column("partner", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("current", Boolean, nullable=False),
    Column("claim", Boolean, key="holds_pair", nullable=False),
    Column("holder_id", BigInteger, key="worker_id", nullable=False),
    Column("begun_at", Float),
    Column("ended_at", Float),
    Column("attempts", Integer, nullable=False),
    Column("request_id", Text),
    Column("error", Text),
    Column("error_type", Text),
    Column("error_code", Text),
    Column("status", Integer),
    Column("token", Text),
    Column("token_digest", Text),
)

# The columns of a row, labelled with their names in the code.
entry_columns: Final = tuple(column.label(column.key) for column in entries.c)


def _partial_index(name: str, *columns: Column[Any], where: Any, unique: bool) -> None:
    Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


# The conditions are written exactly as in the queries. Otherwise SQLite doesn't use the indexes. The unique
# indexes are the guarantee between processes: at most one row, over all runs, holds a pair, and each run has
# at most one current row for a pair.
_partial_index("relay_entries_claim", entries.c.pair, where=entries.c.holds_pair == true(), unique=True)
_partial_index(
    "relay_entries_current", entries.c.run_id, entries.c.pair, where=entries.c.current == true(), unique=True
)
_partial_index(
    "relay_entries_token", entries.c.token_digest, where=entries.c.token_digest.is_not(None), unique=False
)
# Rows that have held a pair, and may hold it again.
_partial_index(
    "relay_entries_heirs",
    entries.c.pair,
    where=and_(entries.c.holds_pair == false(), entries.c.begun_at.is_not(None)),
    unique=False,
)
Index("relay_entries_run", entries.c.run_id, entries.c.id)

# The function at index n migrates the tables from version n + 1 to version n + 2.
MIGRATIONS: Final[tuple[Callable[[Connection], object], ...]] = ()


def create_or_migrate(
    connection: Connection, pair_key: str, migrations: Sequence[Callable[[Connection], object]] = MIGRATIONS
) -> str:
    """Create the tables if they don't exist, or migrate them, and return the pair key as it is stored.

    Args:
        connection: a connection in a transaction.
        pair_key: the pair key to store in a new journal.
        migrations: a migration for each version after the first, in order.

    Raises:
        JournalError: a later release created the journal.
    """
    journal = create_or_migrate_tables(connection, JOURNAL, journals, {"pair_key": pair_key}, migrations)
    stored: str = journal.pair_key
    return stored
