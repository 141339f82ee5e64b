"""Rotation: re-encrypt a column of secrets with the first key."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Text, and_, select, update

from plaid_relay_async.journal.statements import input_rows, rows_parameter
from plaid_relay_async.redaction import Hidden, strip_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy import Connection

    from plaid_relay_async.journal.encryption import Keyring

    RunTransaction = Callable[[Callable[[Connection], Any]], Coroutine[Any, Any, Any]]


async def reencrypt_column(
    run_transaction: RunTransaction, keyring: Keyring, secret: Column[Any], page_size: int
) -> int:
    """Re-encrypt the values of a column that aren't encrypted with the first key, and return their number.

    Other processes may write meanwhile.

    Args:
        run_transaction: runs a function in a transaction, and returns its result.
        keyring: the keys.
        secret: the column, whose table has an integer as the primary key.
        page_size: the number of rows in a transaction.

    Raises:
        ConfigurationError: none of the keys decrypts a value.
    """
    last: int | None = -1
    count = 0
    while last is not None:
        page = await run_transaction(partial(_select_page, secret, last, page_size))
        # Encryption takes longest, so it runs outside of transactions and of the event loop.
        changes = await asyncio.to_thread(_reencrypt, keyring, page)
        last = page.reveal()[-1][0] if len(page.reveal()) == page_size else None
        started = time.monotonic()
        count += await run_transaction(partial(_store, secret, changes))
        # Other processes can write for at least half of the time.
        await asyncio.sleep(time.monotonic() - started)
    return count


def _id_of(secret: Column[Any]) -> Column[Any]:
    return next(iter(secret.table.primary_key))


def _select_page(
    secret: Column[Any], after: int, page_size: int, connection: Connection
) -> Hidden[list[tuple[int, str]]]:
    row_id = _id_of(secret)
    query = select(row_id, secret).where(row_id > after, secret.is_not(None)).order_by(row_id)
    return Hidden([(row[0], row[1]) for row in connection.execute(query.limit(page_size))])


@strip_traceback
def _reencrypt(keyring: Keyring, page: Hidden[list[tuple[int, str]]]) -> Hidden[list[dict[str, Any]]]:
    """Return the changes to store."""
    return Hidden(
        [
            {"id": row_id, "old": stored, "new": keyring.encrypt(keyring.decrypt(stored))}
            for row_id, stored in page.reveal()
            if not keyring.is_up_to_date(stored)
        ]
    )


def _store(secret: Column[Any], changes: Hidden[list[dict[str, Any]]], connection: Connection) -> int:
    """Store the changes of values that haven't changed since they were read, and return their number."""
    if not changes.reveal():
        return 0
    row_id = _id_of(secret)
    columns = (Column("id", row_id.type), Column("old", Text), Column("new", Text))
    source = input_rows(connection.dialect.name, *columns)
    is_unchanged = and_(row_id == source.c.id, secret == source.c.old)
    statement = update(secret.table).where(is_unchanged).values({secret: source.c.new})
    return connection.execute(statement, rows_parameter(changes.reveal())).rowcount
