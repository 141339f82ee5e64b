"""The journal: a durable record of bulk runs, in SQLite or PostgreSQL. It comes with the extra `journal`.

`metadata` has its tables, for those who look after their schemas with Alembic.
"""

try:
    from plaid_relay_async.journal.journal import Journal
    from plaid_relay_async.journal.records import Record, RunStatus
    from plaid_relay_async.journal.schema import metadata
except ModuleNotFoundError as error:
    needed = f"the journal needs {error.name}: pip install 'plaid_relay_async[journal]'"
    raise ModuleNotFoundError(needed, name=error.name) from None

__all__ = ["Journal", "Record", "RunStatus", "metadata"]
