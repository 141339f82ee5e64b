"""A durable inbox of webhooks, in SQLite or PostgreSQL.

It requires the extras `journal` and `webhooks`; PostgreSQL requires the extra `postgres`. It may be in the
same database as a journal: its tables and their version are separate. `metadata` has the tables, for schema
management with Alembic.
"""

try:
    from plaid_relay_async.inbox.inbox import SQLInbox
    from plaid_relay_async.inbox.schema import metadata
except ModuleNotFoundError as error:
    message = f"the inbox needs {error.name}: pip install 'plaid_relay_async[journal,webhooks]'"
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = ["SQLInbox", "metadata"]
