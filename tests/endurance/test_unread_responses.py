"""Thousands of responses that arrive close to the moment at which their calls are cancelled or time out."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import time
from collections import Counter

import pytest
from manual_server import AUTHORITY, end_drain, manual_server, token_for
from support import OWNER, RecordingJournal, python_process

from plaid_relay_async import RelayClient, RelayCreateRequest, Timeouts

pytestmark = pytest.mark.slow

CALLS = 50
SECONDS = 0.25  # of a drain and of a read timeout
SESSIONS = pytest.mark.parametrize("direct", [True, False], ids=["direct", "session"])
PLAIN_AND_TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])


def moment_around(moment, rng):
    """Return a time close to a moment; one in ten is early enough to be before it on any busy machine."""
    return moment + (rng.uniform(-0.008, 0.004) if rng.random() < 0.9 else -0.1)


def block_loop(moment, rng):
    """In half of the rounds, block the event loop from 2 ms before a moment until 4 ms after it."""
    if rng.random() < 0.5:
        asyncio.get_running_loop().call_at(moment - 0.002, time.sleep, 0.006)


async def respond_around_drain_end(client, requests, server, rng):
    """Send responses around the end of the drain, which starts when the task is cancelled."""
    loop = asyncio.get_running_loop()
    batch = client.relay.create_many(requests)
    task = asyncio.ensure_future(batch)
    received = await server.wait_for_requests(CALLS)
    moment = loop.time() + SECONDS
    task.cancel()
    for request in received:
        loop.call_at(moment_around(moment, rng), request.respond)
    block_loop(moment, rng)
    await asyncio.wait([task])
    return batch.result, dict.fromkeys((request.partner for request in received), moment)


async def respond_around_abandon(client, requests, server, rng):
    """Send responses around the moment at which the batch is abandoned, without a drain."""
    loop, moments = asyncio.get_running_loop(), {}

    def abandon():
        # The responses sent here have arrived, but the event loop hasn't seen them when the calls are cancelled.
        for request in rng.sample(received, CALLS // 5):
            if request.responded_at is None:
                request.respond()
        moments.update(dict.fromkeys((request.partner for request in received), loop.time()))
        end_drain(batch)

    batch = client.relay.create_many(requests)
    task = asyncio.ensure_future(batch)
    received = await server.wait_for_requests(CALLS)
    moment = loop.time() + 0.1
    for request in received:
        loop.call_at(
            moment_around(moment, rng), lambda request=request: request.responded_at or request.respond()
        )
    block_loop(moment, rng)
    loop.call_at(moment, abandon)
    await asyncio.wait([task])
    return batch.result, moments


class AttemptTimes(RecordingJournal):
    """A journal that records when each attempt is about to be sent."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    async def record_intent(self, request: RelayCreateRequest) -> None:
        self.times[request.secondary_client_id] = asyncio.get_running_loop().time()

    async def record_outcome(self, outcome: object) -> None: ...


async def respond_around_timeout(client, requests, server, rng):
    """Send responses around the read timeout of each call."""
    loop, journal = asyncio.get_running_loop(), AttemptTimes()
    batch = client.relay.create_many(requests, journal=journal)
    task = asyncio.ensure_future(batch)
    received = await server.wait_for_requests(CALLS)
    moments = {partner: started + SECONDS for partner, started in journal.times.items()}
    for request in received:
        loop.call_at(moment_around(moments[request.partner], rng), request.respond)
    block_loop(moments[received[CALLS // 2].partner], rng)
    await asyncio.wait([task])
    return batch.result, moments


@SESSIONS
@PLAIN_AND_TLS
@pytest.mark.parametrize(
    "scenario",
    [respond_around_drain_end, respond_around_abandon, respond_around_timeout],
    ids=["drain", "abandon", "timeout"],
)
@pytest.mark.timeout(1_200)
async def test_every_token_that_arrived_in_time_is_reported(scenario, tls, direct, size):
    """A token is reported as created if it was sent before the moment, or if the process has ever read it."""
    counts: Counter[tuple[bool, bool]] = Counter()
    timeouts = Timeouts(
        drain=SECONDS if scenario is respond_around_drain_end else 30,
        slow_read=SECONDS if scenario is respond_around_timeout else 30,
    )
    for seed in range(size(1, 19)):
        rng = random.Random(seed)
        async with (
            manual_server(tls=tls) as (server, settings),
            RelayClient(OWNER, direct=direct, timeouts=timeouts, **settings) as client,
        ):
            partners = [f"partner-{number}" for number in range(CALLS)]
            server.holds_responses = False  # open all connections first
            await client.relay.create_many(RelayCreateRequest.fan_out(["warm"], partners))
            server.holds_responses = True
            requests = RelayCreateRequest.fan_out(["t"], partners)
            result, moments = await scenario(client, requests, server, rng)
            created = {outcome.request.secondary_client_id: outcome.relay_token for outcome in result.created}
            assert all(relay_token == token_for(partner) for partner, relay_token in created.items())
            for request in server.requests:
                reported = request.partner in created
                while request.responded_at is None or (request.reset_by_client is None and not reported):
                    # Wait until all responses are sent, and the connections of unreported calls are closed.
                    await asyncio.sleep(0.001)
                if request.client_gone:
                    continue
                before = request.responded_at < moments[request.partner]
                # Closing a socket with unread bytes resets the connection; without a reset, the client has read
                # them. With TLS this proves nothing, because some bytes are read after the call has ended.
                was_read = request.reset_by_client is False and not tls
                assert reported or not (before or was_read), f"seed {seed}: {request}"
                counts[before, reported] += 1
    print(  # noqa: T201  # the figures of the proof
        f"\n{counts.total()} responses: {counts[True, True]} arrived before the moment and were reported; "
        f"{counts[False, True] + counts[False, False]} arrived later, {counts[False, True]} of them reported"
    )
    assert counts[True, True]


STOPPED_PROGRAM = """
import asyncio, json, ssl, sys
from plaid_relay_async import Credentials, RelayClient, RelayCreateRequest, Timeouts

async def main(calls, seconds, url, authority, direct, limit):
    timeouts = Timeouts(drain=seconds if limit == "drain" else 60, slow_read=seconds if limit == "read" else 60)
    async with RelayClient(
        Credentials("lender", "secret-of-the-lender"),
        base_url=url,
        ssl=ssl.create_default_context(cadata=authority) if authority else None,
        direct=direct,
        timeouts=timeouts,
    ) as client:
        requests = RelayCreateRequest.fan_out(["t"], [f"partner-{number}" for number in range(calls)])
        batch = client.relay.create_many(requests, timeout=seconds if limit == "total" else 120)
        task = asyncio.ensure_future(batch)
        await asyncio.to_thread(input)
        if limit == "drain":
            task.cancel()
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.wait([task])
    print(json.dumps(batch.result.counts))

asyncio.run(main(*json.loads(sys.argv[1])))
"""


async def counts_of_stopped_process(limit, seconds, *, calls, direct, tls):
    """Stop a process for longer than a timeout while its responses arrive, and return the counts it prints.

    The timeout, in seconds, must be longer than a busy machine takes to connect.
    """
    authority = AUTHORITY.cert_pem.bytes().decode() if tls else ""
    async with manual_server(tls=tls) as (server, settings):
        arguments = json.dumps([calls, seconds, settings["base_url"], authority, direct, limit])
        async with python_process(STOPPED_PROGRAM, arguments) as process:
            received = await server.wait_for_requests(calls)
            process.stdin.write(b"\n")
            while await process.stdout.readline() != b"ready\n":
                pass  # asyncio's debug mode prints warnings about slow callbacks
            process.send_signal(signal.SIGSTOP)
            for request in received:
                request.respond()
            await asyncio.sleep(seconds + 0.5)
            process.send_signal(signal.SIGCONT)
            output, _ = await process.communicate()
    lines = [line for line in output.splitlines() if line.startswith(b"{")]
    assert len(lines) == 1, output
    return json.loads(lines[0])


async def test_a_stopped_process_reads_before_it_applies_a_timeout(size):
    """A process is stopped for longer than a timeout: each response that arrived meanwhile is created."""
    cases = list(itertools.product(("read", "total", "drain"), (True, False), (False, True)))
    results = await asyncio.gather(
        *[
            counts_of_stopped_process(limit, size(10, 20), calls=40, direct=direct, tls=tls)
            for limit, direct, tls in cases[:: size(5, 1)]  # the sample has each value of each parameter
        ]
    )
    assert results == [{"created": 40}] * size(3, 12)
