"""The journal: a durable record of bulk runs, in SQLite or PostgreSQL. It comes with the extra `journal`.

`metadata` has its tables, for those who look after their schemas with Alembic.
"""

from plaid_relay_async.journal.book import Journal
from plaid_relay_async.journal.records import Record, RunStatus
from plaid_relay_async.journal.schema import metadata

__all__ = ["Journal", "Record", "RunStatus", "metadata"]
