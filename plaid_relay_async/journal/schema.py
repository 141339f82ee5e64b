"""The journal's tables, and how an older journal becomes one of today's."""

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
    inspect,
    text,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from plaid_relay_async.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection


class CreationState(enum.StrEnum):
    """Where one creation stands."""

    ACCEPTED = "accepted"
    """Taken up; nothing was sent."""
    INTENT = "begun"
    """An attempt may be under way; if its holder is dead, nobody can tell what became of it."""
    CREATED = "created"
    FAILED = "failed"
    UNKNOWN = "unknown"
    HELD_ELSEWHERE = "elsewhere"
    """Another run has the claim on the pair: what became of that is what became of this."""
    REMOVING = "removing"
    """The token is being removed, and may be gone."""
    REMOVED = "removed"


class now(FunctionElement[float]):  # noqa: N801  # it stands where a function of SQL stands
    """Seconds since 1970, by the clock of whoever holds the database."""

    type = Float()
    inherit_cache = True


@compiles(now)
def _compile_now(_element: object, _compiler: object, **_: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"


@compiles(now, "sqlite")
def _compile_now_in_sqlite(_element: object, _compiler: object, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


metadata: Final = MetaData()
_AutoIncrement = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up no other type by itself

journals: Final = Table(
    "relay_journal",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("pair_key", Text, nullable=False),
)

runs: Final = Table(
    "relay_runs",
    metadata,
    Column("id", _AutoIncrement, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("started_at", Float, nullable=False),
)

# Each opening that creates is a holder of its own: its number is never used again, and so tells who is meant.
workers: Final = Table(
    "relay_holders",
    metadata,
    Column("id", _AutoIncrement, primary_key=True),
    Column("run_id", BigInteger, nullable=False),
    Column("lock", Text),  # the name of its lock, where the operating system tells whether it is alive
    Column("expires_at", Float),  # or the end of its lease
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
    Column("claim", Boolean, nullable=False),
    Column("holder_id", BigInteger, nullable=False),
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


def _partial_index(name: str, *columns: Column[Any], where: Any, unique: bool) -> None:
    Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


# The conditions are spelt as the queries' are: otherwise SQLite doesn't see that the indexes serve them.
# One row of all runs has the claim on a pair; one row of each run is the current one of a pair.
_partial_index("relay_entries_claim", entries.c.pair, where=entries.c.claim == true(), unique=True)
_partial_index(
    "relay_entries_current", entries.c.run_id, entries.c.pair, where=entries.c.current == true(), unique=True
)
_partial_index(
    "relay_entries_token", entries.c.token_digest, where=entries.c.token_digest.is_not(None), unique=False
)
# Those that had the claim on a pair once, and may have it again.
_partial_index(
    "relay_entries_heirs",
    entries.c.pair,
    where=and_(entries.c.claim == false(), entries.c.begun_at.is_not(None)),
    unique=False,
)
Index("relay_entries_run", entries.c.run_id, entries.c.id)

# What makes a journal of version n + 1 of one of version n, in order.
MIGRATIONS: Final[tuple[Callable[[Connection], object], ...]] = ()


def create_or_migrate(
    connection: Connection, pair_key: str, migrations: Sequence[Callable[[Connection], object]] = MIGRATIONS
) -> str:
    """Make the tables if they aren't there, or bring them up to date, and give the pair key as it is stored.

    Args:
        connection: in a transaction.
        pair_key: for a new journal.
        migrations: what has changed since the first version.

    Raises:
        JournalError: the journal was made by a later release.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('relay_journal'))"))
    newest = len(migrations) + 1
    if not inspect(connection).has_table(journals.name):
        metadata.create_all(connection)
    found = connection.execute(journals.select()).one_or_none()
    if found is None:
        connection.execute(journals.insert(), {"id": 1, "version": newest, "pair_key": pair_key})
        return pair_key
    if found.version > newest:
        raise JournalError(
            f"the journal has version {found.version} of its tables, and this release knows {newest}",
            advice="Install the release that made it, or a later one.",
        )
    for migrate in migrations[found.version - 1 :]:
        migrate(connection)
    if found.version < newest:
        connection.execute(journals.update().values(version=newest))
    stored: str = found.pair_key
    return stored
