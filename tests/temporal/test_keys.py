"""Workers with other keys than those of the run."""

from __future__ import annotations

import pytest
from journal_support import KEY, OTHER_KEY
from temporal_support import create_on_queue, open_queue, running_worker
from temporalio.client import Client

from plaid_relay_async import ConfigurationError
from plaid_relay_async.journal import Journal
from plaid_relay_async.temporal import TaskQueue, Worker, data_converter

pytestmark = pytest.mark.may_block  # temporalio's and psycopg's own


async def test_a_worker_whose_temporal_client_has_another_key_is_a_clear_error(
    client, plaid, report, temporal_server, temporal_client, task_queue, journal_url
):
    """The worker can't read the task. Nothing is sent, and the call fails with the reason."""
    other = await Client.connect(temporal_server.address, data_converter=data_converter([KEY, OTHER_KEY]))
    async with (
        open_queue(temporal_client, task_queue, journal_url) as (queue, journal),
        running_worker(
            await Client.connect(temporal_server.address, data_converter=data_converter(OTHER_KEY)),
            task_queue,
            client,
            journal_url,
        ),
    ):
        result = await create_on_queue(queue, client, report, 1)
        # A client that has both keys can read why.
        reading_queue = TaskQueue(other, task_queue, journal=journal)
        again = await create_on_queue(reading_queue, client, report, 1)
    assert not list(plaid.ledger)
    assert "can't be read" in str(result.unknown[0].error)
    assert "a worker can't make the call: no key" in str(again.failed[0].error)


async def test_a_worker_with_another_key_for_the_journal_doesnt_start(
    client, temporal_client, task_queue, journal_url
):
    """It fails before it receives a task."""
    async with Journal(journal_url, key=KEY):
        pass
    worker = Worker(temporal_client, task_queue, client, journal_url, key=OTHER_KEY)
    with pytest.raises(ConfigurationError, match="doesn't match"):
        await worker.run()
