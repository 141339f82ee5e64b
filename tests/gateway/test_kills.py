"""Processes killed under load: nothing is created twice, and no outcome is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from processes import wait_until_async
from raw_http import CREATE, CREATE_BODY, build_request, raw_connection
from recorder import Recorder
from support import OWNER

from plaid_relay_async import Created, Failed, RelayClient, RelayCreateRequest, RetryPolicy, Timeouts, Unknown
from plaid_relay_async.gateway import Gateway, new_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.may_block

TESTS = Path(__file__).parent.parent
REPORT = "assets-sandbox-1"
# Patient enough to wait for a process that is restarted.
MANY_ATTEMPTS = RetryPolicy(attempts=12, backoff=0.1, max_backoff=0.5)

GATEWAY = """
import asyncio, json, sys
from datetime import UTC, datetime
from plaid_relay_async import Credentials
from plaid_relay_async.gateway import Gateway, Key
async def main(upstream, port, digest):
    key = Key("one", digest, created=datetime.now(UTC))
    async with Gateway([key], upstream=upstream, port=int(port), credentials={"default": Credentials("a", "b" * 30)}) as g:
        print(g.url, flush=True)
        await asyncio.wait_for(asyncio.Event().wait(), 300)
asyncio.run(main(*sys.argv[1:]))
"""
CALLER = """
import asyncio, sys
from plaid_relay_async import RelayClient, RelayCreateRequest
async def main(url, first):
    print("started", flush=True)
    async with RelayClient(gateway_key=sys.stdin.readline().strip(), base_url=url) as client:
        partners = (f"p{n}" for n in range(int(first), int(first) + 5_000))
        await client.relay.create_many(RelayCreateRequest.fan_out(["assets-sandbox-1"], partners), concurrency=20)
asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.asynccontextmanager
async def python_process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a Python process, and yield it with the first line that it printed."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=pipe, stdout=pipe, cwd=TESTS
    )
    try:
        assert child.stdout is not None
        yield child, (await child.stdout.readline()).decode().strip()
    finally:
        await kill_process(child)


async def kill_process(child: asyncio.subprocess.Process) -> None:
    """Kill a process with SIGKILL, and wait for its end."""
    if child.returncode is None:
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
    if child.stdin is not None:
        child.stdin.close()


def read_ledger(path: Path) -> dict[str, str]:
    """Return partner and token of each executed creation; a partner with two tokens is an error."""
    lines = [json.loads(each) for each in path.read_text().splitlines()] if path.exists() else []
    repeated = [partner for partner, times in Counter(partner for partner, _ in lines).items() if times > 1]
    assert not repeated
    return dict(lines)


def assert_outcomes_match(outcomes, executed: dict[str, str]) -> None:
    """Check that Created has the token in the ledger, Failed has none, and no other token is missing."""
    missing = dict(executed)
    for outcome in outcomes:
        partner = outcome.request.secondary_client_id
        match outcome:
            case Created():
                assert missing.pop(partner) == outcome.relay_token
            case Failed():
                assert partner not in executed, outcome.error
            case Unknown():
                missing.pop(partner, None)
    assert not missing


async def run_batch_with_kills(url, key, kills, *, partners: int) -> list:
    """Return the outcomes of a batch during which `kills` runs."""
    outcomes = []
    async with RelayClient(
        gateway_key=key, base_url=url, retry=MANY_ATTEMPTS, timeouts=Timeouts(slow_read=5)
    ) as client:
        requests = RelayCreateRequest.fan_out([REPORT], [f"p{n}" for n in range(partners)])
        killing = asyncio.ensure_future(kills(outcomes))
        async with client.relay.create_many(requests, concurrency=20) as batch:
            async for outcome in batch:
                outcomes.append(outcome)
        await killing
    return outcomes


@pytest.mark.slow
async def test_the_upstream_is_killed_under_load(tmp_path):
    """It is killed and restarted three times: no partner has two tokens, and each lost response is unknown."""
    path, (key, secret) = tmp_path / "books", new_key("one")
    server = ("ledger_server.py",)
    async with contextlib.AsyncExitStack() as stack:
        upstream, port = await stack.enter_async_context(python_process(*server, "0", str(path)))
        gateway = await stack.enter_async_context(
            Gateway([key], upstream=f"http://127.0.0.1:{port}", credentials={"default": OWNER})
        )

        async def kills(outcomes):
            running = upstream
            for number in (100, 250, 400):
                while len(outcomes) < number:
                    await asyncio.sleep(0.005)
                await kill_process(running)
                await asyncio.sleep(0.05)
                running, _ = await stack.enter_async_context(python_process(*server, port, str(path)))

        outcomes = await run_batch_with_kills(gateway.url, secret, kills, partners=600)
        assert gateway.calls_in_flight == 0
        counts = Counter(type(each).__name__ for each in outcomes)
        assert counts.total() == 600
        assert counts["Created"] > 300
        assert counts["Unknown"] > 0
        assert_outcomes_match(outcomes, read_ledger(path))
        async with asyncio.timeout(60):
            while gateway.open_connections:
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_callers_are_killed_under_load(tmp_path):
    """What four callers had sent is executed once at most, their connections are freed, and others are served."""
    path, (key, secret) = tmp_path / "books", new_key("one")
    async with python_process("ledger_server.py", "0", str(path)) as (_, port):
        async with Gateway(
            [key],
            upstream=f"http://127.0.0.1:{port}",
            credentials={"default": OWNER},
            upstream_connections=30,
        ) as gateway:
            for number in range(4):
                async with python_process("-c", CALLER, gateway.url, str(number * 5_000)) as (caller, _):
                    caller.stdin.write(f"{secret}\n".encode())
                    before = len(read_ledger(path))
                    while len(read_ledger(path)) < before + 60:
                        await asyncio.sleep(0.01)
                    await kill_process(caller)
            async with asyncio.timeout(60):
                while gateway.calls_in_flight or gateway.open_connections:
                    await asyncio.sleep(0.02)
            executed = len(read_ledger(path))
            await asyncio.sleep(0.2)
            assert len(read_ledger(path)) == executed
            async with RelayClient(gateway_key=secret, base_url=gateway.url) as client:
                result = await client.relay.create_many(
                    RelayCreateRequest.fan_out([REPORT], [f"after{n}" for n in range(100)])
                )
            assert len(result.created) == 100
            assert_outcomes_match(
                result.created, {k: v for k, v in read_ledger(path).items() if k.startswith("after")}
            )


async def test_the_gateway_is_killed_under_load(tmp_path):
    """It is restarted on its port: no partner has two tokens, and each lost response is unknown."""
    path, (key, secret) = tmp_path / "books", new_key("one")
    async with contextlib.AsyncExitStack() as stack:
        _, port = await stack.enter_async_context(python_process("ledger_server.py", "0", str(path)))
        upstream = f"http://127.0.0.1:{port}"
        first, url = await stack.enter_async_context(python_process("-c", GATEWAY, upstream, "0", key.digest))

        async def kills(outcomes):
            running = first
            for number in (100, 250):
                while len(outcomes) < number:
                    await asyncio.sleep(0.005)
                await kill_process(running)
                arguments = (upstream, url.rpartition(":")[2], key.digest)
                running, _ = await stack.enter_async_context(python_process("-c", GATEWAY, *arguments))

        outcomes = await run_batch_with_kills(url, secret, kills, partners=500)
    counts = Counter(type(each).__name__ for each in outcomes)
    assert counts.total() == 500
    assert counts["Created"] > 200
    assert_outcomes_match(outcomes, read_ledger(path))


async def test_the_audit_log_records_an_undelivered_response(caplog):
    """A creation whose caller disconnected is executed once, and its audit line has `delivered: false`."""
    caplog.set_level("INFO", logger="plaid_relay_async.gateway.audit")
    key, secret = new_key("one")
    async with Recorder() as upstream:
        upstream.respond, upstream.pause = lambda received: [b"", *upstream.creation_response(received)], 1.0
        async with Gateway([key], upstream=upstream.url, credentials={"default": OWNER}) as gateway:
            async with raw_connection(gateway.url) as connection:
                await connection.send(build_request(CREATE, CREATE_BODY, key=secret))
                await wait_until_async(lambda: upstream.requests)
            await wait_until_async(lambda: caplog.records)
    (record,) = [json.loads(each.message) for each in caplog.records]
    assert (record["delivered"], record["request_id"], record["partner"]) == (False, "request1", "p1")
    assert len(upstream.requests) == 1
