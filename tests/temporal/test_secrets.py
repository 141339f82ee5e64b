"""Neither Temporal nor PostgreSQL stores a token or a secret unencrypted, and no response of Temporal has one."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from canaries import CREDENTIALS, REPORT_TOKEN, SECRET
from journal_support import KEY
from processes import read_until, wait_until_async
from stored_secrets import find_secrets
from support import CREATE, QUICK, issued_tokens
from temporalio import activity
from temporalio.client import ActivityExecution, Client
from temporalio.common import RetryPolicy
from temporalio.worker import Worker as ActivityWorker

from plaid_relay_async import BatchStoppedError, Created, RelayClient, RelayCreateRequest
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator
from plaid_relay_async.temporal import TaskQueue, Worker

# Neither token nor secret, but what it contains is as confidential as a token.
WEBHOOK = "http://127.0.0.1:9/canary-webhook"
UNENCRYPTED = "canary-unencrypted-5d0c"


@activity.defn
async def return_same(text: str) -> str:
    return text


async def wait_until_listed(temporal_client: Client, run: str, count: int) -> None:
    """Wait until Temporal lists the activities of a run, which it does a moment after they have started."""

    async def list_activities() -> list[ActivityExecution]:
        return [each async for each in temporal_client.list_activities(f"PlaidRelayRun = '{run}'")]

    await read_until(list_activities, lambda listed: len(listed) >= count)


async def test_the_search_finds_what_is_not_encrypted(temporal_server, temporal_client, postgres, task_queue):
    """Without the data converter, a value is found in the database, in the files and in the API's responses."""
    client = await Client.connect(temporal_server.address)
    async with ActivityWorker(client, task_queue=task_queue, activities=[return_same]):
        handle = await client.start_activity(
            return_same,
            UNENCRYPTED,
            id=task_queue,
            task_queue=task_queue,
            start_to_close_timeout=timedelta(seconds=60),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )
        assert await handle.result() == UNENCRYPTED
    await postgres.reset()
    await postgres.execute(
        "CREATE TABLE found (value text)", f"INSERT INTO found VALUES (repeat('{UNENCRYPTED}', 999))"
    )
    async with asyncio.timeout(60):
        # The list of activities is updated later.
        while True:
            findings = await find_secrets(
                [UNENCRYPTED, "canary-absent-5d0c"], temporal_server, client, postgres
            )
            places = " ".join(each.place for each in findings)
            if all(place in places for place in ("temporal.db", "Temporal's table", "describe", "result")):
                break
    assert "table found" in places
    assert {each.secret for each in findings} == {UNENCRYPTED}


async def test_a_run_stores_and_shows_no_secret(
    temporal_server, temporal_client, postgres, journal_url, task_queue, clean_logs
):
    """Creations with all kinds of outcomes, and removals, leave only encrypted tokens behind, and none in the log."""
    clean_logs.set_level(logging.DEBUG, logger="temporalio")
    faults = (
        Fault(path=CREATE, secondary_client_id="p1", status=400, body={"error_message": REPORT_TOKEN}),
        Fault(path=CREATE, secondary_client_id="p2", close=True, when="after"),
        Fault(path=CREATE, secondary_client_id="p3", status=429, times=1),
        Fault(path=CREATE, secondary_client_id="p4", truncate=20),
    )
    async with (
        Simulator(clients={CREDENTIALS.client_id: SECRET}, reports=[REPORT_TOKEN], faults=faults) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url, retry=QUICK) as client,
        Journal(journal_url, run="secrets", key=KEY) as journal,
    ):
        worker = Worker(temporal_client, task_queue, client, journal_url, key=KEY, retry=QUICK)
        running = asyncio.create_task(worker.run())
        queue = TaskQueue(temporal_client, task_queue, journal=journal)
        requests = [RelayCreateRequest([REPORT_TOKEN], f"p{n}", webhook=WEBHOOK) for n in range(8)]
        result = await client.relay.create_many(requests, task_queue=queue)
        assert (len(result.created), len(result.failed), len(result.unknown)) == (5, 1, 2)
        tokens = [each.relay_token for each in result.created if isinstance(each, Created)]
        removal = await client.relay.remove_many(tokens[:2], task_queue=queue)
        assert len(removal.succeeded) == 2
        await wait_until_listed(temporal_client, "secrets", len(requests) + 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        secrets = [SECRET, REPORT_TOKEN, WEBHOOK, KEY, *issued_tokens(plaid)]
    assert await find_secrets(secrets, temporal_server, temporal_client, postgres) == []


async def test_a_token_that_the_journal_does_not_have_is_encrypted(
    temporal_server, temporal_client, postgres, journal_url, task_queue
):
    """If the database fails during a call, its token is in the activity's result, encrypted."""
    faults = [Fault(path=CREATE, latency=2.0, when="after")]
    async with (
        Simulator(clients={CREDENTIALS.client_id: SECRET}, reports=[REPORT_TOKEN], faults=faults) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url, retry=QUICK) as client,
        Journal(journal_url, run="down", key=KEY, lease=3) as journal,
    ):
        worker = Worker(temporal_client, task_queue, client, journal_url, key=KEY, lease=3, retry=QUICK)
        running = asyncio.create_task(worker.run())
        queue = TaskQueue(temporal_client, task_queue, journal=journal)
        batch = client.relay.create_many([RelayCreateRequest([REPORT_TOKEN], "p")], task_queue=queue)
        creating = asyncio.ensure_future(batch)
        await wait_until_async(lambda: plaid.ledger)
        await postgres.kill()
        try:
            with pytest.raises(BatchStoppedError) as raised:
                await creating
        finally:
            await postgres.start()
        [created] = raised.value.result.created
        assert (created.relay_token, created.journalled) == (issued_tokens(plaid)[0], False)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await wait_until_listed(temporal_client, "down", 1)
        secrets = [SECRET, REPORT_TOKEN, *issued_tokens(plaid)]
    assert await find_secrets(secrets, temporal_server, temporal_client, postgres) == []
