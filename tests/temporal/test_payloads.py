"""What the Temporal server stores is encrypted with the journal's keys."""

from __future__ import annotations

from datetime import timedelta

from journal_support import KEY, OTHER_KEY
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from plaid_relay_async.temporal import data_converter

TIMEOUT = timedelta(seconds=60)


@activity.defn
async def echo(text: str) -> str:
    return text


async def test_an_activity_receives_and_returns_what_was_sent(temporal_client, task_queue):
    """Input and result survive the encryption, and a worker and a submitter use the same keys."""
    async with Worker(temporal_client, task_queue=task_queue, activities=[echo]):
        result = await temporal_client.execute_activity(
            echo, "text", id=task_queue, task_queue=task_queue, start_to_close_timeout=TIMEOUT
        )
    assert result == "text"


async def test_results_are_readable_after_a_rotation(temporal_server, temporal_client, task_queue):
    """A client whose first key is new reads a result under the old key."""
    async with Worker(temporal_client, task_queue=task_queue, activities=[echo]):
        await temporal_client.execute_activity(
            echo, "text", id=task_queue, task_queue=task_queue, start_to_close_timeout=TIMEOUT
        )
    rotated = await Client.connect(temporal_server.address, data_converter=data_converter([OTHER_KEY, KEY]))
    assert await rotated.get_activity_handle(task_queue, result_type=str).result() == "text"
