"""Workers: whether one is alive, and what its rows mean then."""

from __future__ import annotations

import pytest
from journal_support import KEY, execute, open_database
from sqlalchemy import text

from plaid_relay_async.journal import Journal, schema
from plaid_relay_async.journal.workers import WorkerRegistry

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_rows_are_read_again_if_their_worker_has_ended(plaid, client, report, url):
    """What the worker wrote between the read and the liveness check is seen."""
    async with Journal(url, run="x", key=KEY) as journal, open_database(url) as database:
        await client.relay.create([report], "p0", journal=journal)
        ((worker_id,),) = await execute(url, text("SELECT id FROM relay_holders"))
        registry = WorkerRegistry(database, database.new_connection())
        query = text("SELECT state FROM relay_entries")
        await execute(url, text("UPDATE relay_entries SET state = 'begun'"))
        states = []

        def work(connection):
            def read():
                states.append(connection.execute(query).scalar_one())
                if len(states) == 1:
                    set_created = text("UPDATE relay_entries SET state = 'created'")
                    connection.execute(set_created)
                    connection.execute(schema.workers.update().values(ended=True))
                return states[-1]

            return registry.read_with_liveness(
                connection, read, lambda state: {worker_id} if state == "begun" else set()
            )

        state, liveness = await database.run_transaction(registry.connection, work, 0.0)
        assert (states, state, liveness.live_ids) == (["begun", "created"], "created", frozenset())
