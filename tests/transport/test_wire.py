"""One attempt, and what a server can do to it in addition to the faults of the matrix."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import aiohttp
import pytest
from servers import read_request, serving, stay_silent
from support import BOTH_EXCHANGES, CREATE, OWNER, QUICK, RecordingJournal, issued_tokens

from plaid_relay_async import (
    ConfigurationError,
    ConnectionLostError,
    NotSentError,
    OutcomeUnknownError,
    ReadTimeoutError,
    RelayClient,
    RelayCreateRequest,
    ResponseDecodeError,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.exchange import RequestBody
from plaid_relay_async.simulator import Fault

# ------------------------------------------------------------------------- servers that receive no request


async def test_an_unresolvable_name_means_not_sent():
    """A failed DNS lookup happens before anything is sent."""
    async with RelayClient(OWNER, base_url="https://plaid.invalid", retry=RetryPolicy(attempts=1)) as client:
        with pytest.raises(NotSentError, match="was not sent"):
            await client.relay.create(["t"], "p", timeout=20)


async def test_a_failed_tls_handshake_means_not_sent():
    """A server that doesn't speak TLS, or isn't trusted, has received no request."""

    async def gibberish(reader, writer):
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 no TLS here\r\n\r\n")

    async with serving(gibberish, "https") as (url, _):
        async with RelayClient(OWNER, base_url=url, retry=RetryPolicy(attempts=1)) as client:
            with pytest.raises(NotSentError, match=r"TLS with 127\.0\.0\.1:\d+ failed: .*doesn't use TLS"):
                await client.relay.create(["t"], "p")


async def test_a_connect_timeout_means_not_sent():
    """An unanswered handshake ends with the connect timeout, and nothing was sent."""
    settings = {"retry": RetryPolicy(attempts=1), "timeouts": Timeouts(connect=0.05)}
    async with serving(stay_silent, "https") as (url, _):
        async with RelayClient(OWNER, base_url=url, **settings) as client:
            with pytest.raises(NotSentError, match="time ran out"):
                await client.relay.create(["t"], "p")


# --------------------------------------------------------------------------------------- partial responses


async def test_a_response_cut_after_its_token_is_created(plaid, client):
    """The response is incomplete, but its token is complete."""
    plaid.fail(Fault(path=CREATE, truncate=75))
    created = await client.relay.create([plaid.add_report()], "p")
    assert [created.relay_token] == issued_tokens(plaid)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b'{"relay_tok',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{" + b"}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!",
    ],
)
async def test_a_partial_response_is_unknown_for_a_creation_and_lost_for_a_read(sent):
    """Wherever the bytes end, a creation is unknown immediately; a read is repeated, and then lost."""

    async def half(reader, writer):
        await read_request(reader)
        writer.write(sent)
        await writer.drain()

    async with serving(half) as (url, connections):
        async with RelayClient(OWNER, base_url=url, retry=QUICK) as client:
            with pytest.raises(OutcomeUnknownError) as unknown:
                await client.relay.create(["t"], "p")
            assert len(connections) == unknown.value.attempts == 1
            with pytest.raises(ConnectionLostError) as connection_lost:
                await client.relay.get("t")
            assert connection_lost.value.attempts == 4
            assert connection_lost.value.sent is True


async def test_a_token_before_the_end_of_the_connection_is_created():
    """Chunks that break off after the token: the token was received, so it is returned."""

    async def half(reader, writer):
        await read_request(reader)
        chunk = b'{"relay_token": "T-1", "r'
        writer.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(chunk), chunk)
        )
        await writer.drain()

    async with serving(half) as (url, _):
        async with RelayClient(OWNER, base_url=url) as client:
            assert (await client.relay.create(["t"], "p")).relay_token == "T-1"


async def test_a_deadline_during_a_response_keeps_the_received_token():
    """A slow response whose token arrived before the deadline is created."""

    async def slow(reader, writer):
        await read_request(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"relay_token": "T-1", ')
        await writer.drain()
        await reader.read()

    async with serving(slow) as (url, _):
        async with RelayClient(OWNER, base_url=url) as client:
            assert (await client.relay.create(["t"], "p", timeout=1)).relay_token == "T-1"


async def test_a_read_that_stalls_is_a_timeout():
    """After half a response and then silence, the error is a timeout as well."""

    async def slow(reader, writer):
        await read_request(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"report": ')
        await writer.drain()
        await reader.read()

    async with serving(slow) as (url, _), RelayClient(OWNER, base_url=url) as client:
        with pytest.raises(ReadTimeoutError):
            await client.relay.get("t", timeout=0.5)


async def test_broken_chunked_framing_does_not_block_a_call():
    """The client's own timer ends a wait whose timer aiohttp has lost; the received token is returned."""

    async def broken(reader, writer):
        await read_request(reader)
        chunk = b'{"relay_token": "T-1", "request_id": "q"}'
        writer.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(chunk), chunk)
        )
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"zz\r\n")
        await writer.drain()
        await reader.read()

    timeouts = Timeouts(slow_read=0.2, total=None)
    async with serving(broken) as (url, _), RelayClient(OWNER, base_url=url, timeouts=timeouts) as client:
        async with asyncio.timeout(60):
            assert (await client.relay.create(["t"], "p")).relay_token == "T-1"


# ------------------------------------------------------------ stray and long responses, and the connection


def http_response(**fields: object) -> bytes:
    body = json.dumps(fields).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@BOTH_EXCHANGES
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


@BOTH_EXCHANGES
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
