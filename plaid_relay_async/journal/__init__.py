"""The journal: a durable record of calls that create and remove tokens, in SQLite or PostgreSQL.

It writes an intent before each attempt and the outcome after it (a write-ahead record), so that a run can be
resumed after a crash. It requires the extra `journal`. `metadata` has the tables, for schema management with
Alembic.
"""

try:
    from plaid_relay_async.journal.journal import Journal
    from plaid_relay_async.journal.records import Record, RunStatus
    from plaid_relay_async.journal.schema import metadata
except ModuleNotFoundError as error:
    needed = f"the journal needs {error.name}: pip install 'plaid_relay_async[journal]'"
    raise ModuleNotFoundError(needed, name=error.name) from None

__all__ = ["Journal", "Record", "RunStatus", "metadata"]
