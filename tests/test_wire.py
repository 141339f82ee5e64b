"""What a server can do to one attempt, in addition to the faults of the matrix."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import aiohttp
import pytest
from support import OWNER, QUICK, RecordingJournal
from test_exchange import BOTH
from test_transport import read_request, serving

from plaid_relay_async import (
    ConfigurationError,
    NotSentError,
    OutcomeUnknownError,
    RelayClient,
    RelayCreateRequest,
    ResponseDecodeError,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.exchange import RequestBody

CREATE = "/credit/relay/create"


def http_response(**fields: object) -> bytes:
    body = json.dumps(fields).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@BOTH
async def test_a_response_received_before_its_request_is_dropped(direct):
    """A second response on a kept connection would pass for the next partner's token: it is dropped."""
    count = 0

    async def twice(reader, writer):
        nonlocal count
        while True:
            await read_request(reader)
            count += 1
            writer.write(
                http_response(relay_token=f"T-{count}") + http_response(relay_token=f"stray-{count}")
            )
            await writer.drain()

    async with (
        serving(twice) as (url, connections),
        RelayClient(OWNER, base_url=url, retry=QUICK, direct=direct) as client,
    ):
        for n in range(1, 4):
            assert (await client.relay.create(["t"], f"p{n}")).relay_token == f"T-{n}"
        assert len(connections) == 3


@BOTH
async def test_a_stray_response_on_an_idle_connection_is_dropped(direct):
    """The same if it arrives while the connection is idle: no request is sent on that connection."""

    async def late(reader, writer):
        await read_request(reader)
        writer.write(http_response(relay_token=f"T-{len(connections)}"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(http_response(relay_token="stray"))
        written.set()
        await reader.read()

    written = asyncio.Event()
    async with (
        serving(late) as (url, connections),
        RelayClient(OWNER, base_url=url, retry=QUICK, direct=direct) as client,
    ):
        assert (await client.relay.create(["t"], "p")).relay_token == "T-1"
        await written.wait()
        await asyncio.sleep(0.05)  # it arrives
        assert (await client.relay.create(["t"], "q")).relay_token == "T-2"
        assert client.statistics().attempts == {"definitive": 2, "not_sent": 1}


async def test_a_stray_response_before_the_last_attempt_means_not_sent():
    """If no attempt is left, the error says that nothing was sent."""

    async def late(reader, writer):
        await read_request(reader)
        writer.write(http_response(relay_token="T-1"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(http_response(relay_token="stray"))
        written.set()
        await reader.read()

    written, once = asyncio.Event(), RetryPolicy(attempts=1)
    async with serving(late) as (url, _), RelayClient(OWNER, base_url=url, retry=once) as client:
        await client.relay.create(["t"], "p")
        await written.wait()
        await asyncio.sleep(0.05)  # it arrives
        with pytest.raises(NotSentError, match="was not sent"):
            await client.relay.create(["t"], "q")


async def test_a_body_is_not_written_to_a_closing_connection():
    """The order of aiohttp's steps depends on the Python version, so the body checks the connection."""
    body = RequestBody(b"{}", lambda: None)
    with pytest.raises(aiohttp.ClientConnectionError):
        body.begin_send(SimpleNamespace(should_close=True, exception=lambda: None))
    assert body.sent is False


async def test_a_creation_is_not_sent_after_its_deadline(plaid):
    """An attempt that could only time out is not made, because it would be unknown without need."""
    report = plaid.add_report()

    class Slow(RecordingJournal):
        intents = 0

        async def record_intent(self, request: RelayCreateRequest) -> None:
            self.intents += 1
            await asyncio.sleep(0.05)

        async def record_outcome(self, outcome: object) -> None: ...

    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client:
        await client.relay.create([report], "warm")
        rows = RelayCreateRequest.fan_out([report], ["p"])
        result = await client.relay.create_many(rows, timeout=0.02, journal=Slow())
    assert isinstance(result.failed[0].error, NotSentError)
    assert plaid.counts[CREATE] == len(plaid.ledger) == 1


@pytest.mark.parametrize("spaces", [0, 1_000_000])
async def test_a_response_that_is_too_long_is_not_read_completely(spaces):
    """A creation has its token if it is within the limit, and is unknown otherwise; no read is repeated."""

    async def endless(reader, writer):
        await read_request(reader)
        body = b"{" + b" " * spaces + b'"relay_token": "T-1", "padding": "' + b"x" * 3000
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + body)
        while True:
            writer.write(b"x" * 1000)
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(endless) as (url, connections):
        async with RelayClient(OWNER, base_url=url, max_response_bytes=4000, retry=QUICK) as client:
            if spaces:
                with pytest.raises(OutcomeUnknownError, match="longer than 4000 bytes"):
                    await client.relay.create(["t"], "p")
            else:
                assert (await client.relay.create(["t"], "p")).relay_token == "T-1"
            with pytest.raises(ResponseDecodeError, match=r"longer than 4000 bytes.*max_response_bytes"):
                await client.relay.get("t")
    assert len(connections) == 2


async def test_a_response_of_exactly_the_limit_is_accepted():
    """The limit itself is allowed."""

    async def exact(reader, writer):
        await read_request(reader)
        writer.write(http_response(relay_token="T-1"))
        await writer.drain()

    length = len(json.dumps({"relay_token": "T-1"}))
    async with serving(exact) as (url, _):
        async with RelayClient(OWNER, base_url=url, max_response_bytes=length) as client:
            assert (await client.relay.create(["t"], "p")).relay_token == "T-1"


def test_max_response_bytes_is_checked():
    """A limit of zero bytes is invalid."""
    with pytest.raises(ConfigurationError, match="max_response_bytes must be a whole number of 1 or more"):
        RelayClient(OWNER, max_response_bytes=0)


async def test_an_idle_connection_is_closed_after_the_idle_timeout():
    """After `Timeouts.idle` a connection isn't used again, whatever the server does."""

    async def willing(reader, writer):
        while True:
            await read_request(reader)
            writer.write(http_response(relay_token="T"))
            await writer.drain()

    timeouts = Timeouts(idle=1)
    async with serving(willing) as (url, connections):
        async with RelayClient(OWNER, base_url=url, timeouts=timeouts) as client:
            for pause, opened in ((0, 1), (1.5, 1), (0, 2)):
                await client.relay.create(["t"], "p")
                assert len(connections) == opened
                await asyncio.sleep(pause)
