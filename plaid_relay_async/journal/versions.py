"""The version of a store's tables. Each store has its own, so two stores in one database are independent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, Table

    from plaid_relay_async.journal.database import Store


def create_or_migrate_tables(
    connection: Connection,
    store: Store,
    versions: Table,
    values: Mapping[str, Any],
    migrations: Sequence[Callable[[Connection], object]],
) -> Any:
    """Create a store's tables if they don't exist, or migrate them, and return the row of its version.

    Args:
        connection: a connection in a transaction.
        store: the store.
        versions: its table with the columns `id` and `version`, and with one row.
        values: the other columns of that row in a new store.
        migrations: a migration for each version after the first, in order.

    Raises:
        PlaidRelayError: a later release created the tables.
    """
    # Only one process may create or migrate the tables at a time. Any other process waits here, and then
    # finds them.
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": versions.name})
    newest = len(migrations) + 1
    if not inspect(connection).has_table(versions.name):
        versions.metadata.create_all(connection)
    row = connection.execute(versions.select()).one_or_none()
    if row is None:
        connection.execute(versions.insert(), {"id": 1, "version": newest, **values})
        return connection.execute(versions.select()).one()
    if row.version > newest:
        raise store.error(
            f"the {store.name} has version {row.version} of its tables, and this release supports {newest}",
            advice="Install the release that created it, or a later one.",
        )
    for migrate in migrations[row.version - 1 :]:
        migrate(connection)
    if row.version < newest:
        connection.execute(versions.update().values(version=newest))
    return row
