"""Workers: whether one is alive, and what its rows mean then."""

from __future__ import annotations

import pytest
from journal_support import KEY
from sqlalchemy import text

from plaid_relay_async.journal import Journal, schema

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


async def test_rows_are_read_again_if_their_worker_has_ended(plaid, client, report, url):
    """What the worker wrote between the read and the liveness check is seen."""
    async with Journal(url, run="x", key=KEY) as x, Journal(url, run="y", key=KEY) as y:
        await client.relay.create([report], "p0", journal=x)
        registry, worker = y._open_resources.registry, x._open_resources.coordinator.writer._worker
        query = text("SELECT state FROM relay_entries")
        set_intent = text("UPDATE relay_entries SET state = 'begun'")
        await y._run_transaction(lambda connection: connection.execute(set_intent).close())
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
                connection, read, lambda state: {worker.id} if state == "begun" else set()
            )

        state, liveness = await y._run_transaction(work)
        assert (states, state, liveness.live_ids) == (["begun", "created"], "created", frozenset())
