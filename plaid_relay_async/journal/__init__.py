"""The journal: a durable record of calls that create and remove tokens, in SQLite or PostgreSQL.

It writes an intent before each attempt (a write-ahead record) and the outcome at the end of the call, so that
a run can be resumed after a crash. It requires the extra `journal`; PostgreSQL requires the extra `postgres`.
`metadata` has the tables, for schema management with Alembic.
"""

try:
    from plaid_relay_async.journal.journal import Journal
    from plaid_relay_async.journal.records import PairRecord, Record, RunStatus
    from plaid_relay_async.journal.schema import metadata
except ModuleNotFoundError as error:
    message = f"the journal needs {error.name}: pip install 'plaid_relay_async[journal]'"
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = ["Journal", "PairRecord", "Record", "RunStatus", "metadata"]
