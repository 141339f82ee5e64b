"""Bytes that have arrived when a call is cancelled, or its deadline passes, determine its outcome."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from manual_server import end_drain, manual_server, response_for, token_for
from support import OWNER

from plaid_relay_async import (
    OutcomeUnknownError,
    RelayClient,
    RelayCreateRequest,
    Timeouts,
)
from plaid_relay_async.exchange import RequestBody, SessionExchange

EXCHANGES = pytest.mark.parametrize("direct", [True, False], ids=["directly", "through a session"])
WITH_AND_WITHOUT_TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
COMPLETE = response_for("p")
HEAD, _, BODY = COMPLETE.partition(b"\r\n\r\n")
HEAD += b"\r\n\r\n"


async def result_of_cancelled_batch(data, *, direct, tls, iterations=0):
    """Return the result of a batch with one request, cancelled some event loop iterations after `data` has arrived."""
    async with (
        manual_server(tls=tls) as (server, settings),
        RelayClient(OWNER, direct=direct, timeouts=Timeouts(drain=30), **settings) as client,
    ):
        batch = client.relay.create_many([RelayCreateRequest(["t"], "p")])
        task = asyncio.ensure_future(batch)
        (request,) = await server.wait_for_requests(1)
        request.respond(data)
        for _ in range(iterations):
            await asyncio.sleep(0)
        end_drain(batch)
        await task
        assert client.statistics().in_flight == 0
        return batch.result


@EXCHANGES
@WITH_AND_WITHOUT_TLS
@pytest.mark.parametrize("iterations", range(5))
async def test_a_token_that_has_arrived_is_reported_though_its_call_is_cancelled(direct, tls, iterations):
    """A token that is still in the socket, or in the process, at the cancellation is reported."""
    result = await result_of_cancelled_batch(COMPLETE, direct=direct, tls=tls, iterations=iterations)
    assert [created.relay_token for created in result.created] == [token_for("p")]


@EXCHANGES
@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + COMPLETE, "created"),
        (HEAD + BODY[:-2], "created"),
        (HEAD + BODY[:8], "unknown"),
        (HEAD, "unknown"),
        (HEAD[:-4], "unknown"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", "unknown"),
        (response_for("p", b"400 Bad Request"), "failed"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "unknown"),
        (b"This is not HTTP.\r\n\r\n", "unknown"),
    ],
    ids=["hint", "cut token", "cut", "head", "half a head", "only a hint", "400", "500", "not HTTP"],
)
async def test_the_outcome_of_a_partial_response(direct, data, outcome):
    """A readable token is created, a 4xx is failed, and a response that proves nothing is unknown."""
    result = await result_of_cancelled_batch(data, direct=direct, tls=False)
    assert dict(result.counts) == {outcome: 1}


@EXCHANGES
async def test_a_response_of_many_pieces_is_processed_to_its_end(direct):
    """A response is read to its end even if a very small TLS buffer needs many reads."""
    padding = b'{"padding": "' + b"x" * 50_000 + b'", "relay_token": "T-1"}'
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(padding), padding)
    result = await result_of_cancelled_batch(data, direct=direct, tls=True)
    assert [created.relay_token for created in result.created] == ["T-1"]


@EXCHANGES
async def test_a_cancellation_without_a_response_ends_a_call(direct):
    """The outcome is unknown, and bytes that arrive later are ignored."""
    result = await result_of_cancelled_batch(b"", direct=direct, tls=False)
    assert isinstance(result.unknown[0].error, OutcomeUnknownError)


@EXCHANGES
@pytest.mark.parametrize("data", [b"", HEAD + BODY[:8]], ids=["closed", "cut"])
async def test_a_response_that_breaks_off_does_not_undo_the_cancellation(direct, data):
    """The call ends as cancelled, although its connection is lost in the same moment: nothing more is sent."""
    async with (
        manual_server(tls=False) as (server, settings),
        RelayClient(OWNER, direct=direct, **settings) as client,
    ):
        batch = client.relay.create_many(RelayCreateRequest.fan_out(["t"], ["p", "q"]), concurrency=1)
        task = asyncio.ensure_future(batch)
        (request,) = await server.wait_for_requests(1)
        request.respond(data)
        request.writer.close()
        end_drain(batch)
        await asyncio.wait([task], timeout=60)
        assert len(server.requests) == 1
        assert dict(batch.result.counts) == {"unknown": 1}


@EXCHANGES
async def test_a_call_that_is_cancelled_repeatedly_reads_its_response(direct):
    """Cancellations in each iteration of the event loop, as those of an AnyIO scope, count as one."""
    async with (
        manual_server(tls=False) as (server, settings),
        RelayClient(OWNER, direct=direct, **settings) as client,
    ):
        batch = client.relay.create_many([RelayCreateRequest(["t"], "p")])
        task = asyncio.ensure_future(batch)
        (request,) = await server.wait_for_requests(1)
        request.respond()
        while batch.sending.calls:
            for worker in list(batch.sending.calls):
                worker.cancel()
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert [created.relay_token for created in batch.result.created] == [token_for("p")]


@EXCHANGES
@WITH_AND_WITHOUT_TLS
async def test_a_server_that_never_stops_sending_delays_a_cancellation_only_briefly(direct, tls):
    """An endless response delays a cancellation by a limited number of iterations of the event loop."""
    flood = True

    async def pour(request):
        with contextlib.suppress(ConnectionError):
            while flood and not request.writer.is_closing():
                request.writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
                await asyncio.sleep(0)

    async with (
        manual_server(tls=tls) as (server, settings),
        RelayClient(OWNER, direct=direct, **settings) as client,
    ):
        batch = client.relay.create_many([RelayCreateRequest(["t"], "p")])
        task = asyncio.ensure_future(batch)
        (request,) = await server.wait_for_requests(1)
        pouring = asyncio.create_task(pour(request))
        await asyncio.sleep(0.01)
        end_drain(batch)
        await task
        flood = False
        await pouring
    assert dict(batch.result.counts) == {"unknown": 1}


@EXCHANGES
@WITH_AND_WITHOUT_TLS
async def test_a_token_that_has_arrived_is_returned_though_the_client_is_closed(direct, tls):
    """A client that is closed while a call is in flight processes what has arrived before it closes the pool."""
    async with manual_server(tls=tls) as (server, settings):
        async with RelayClient(OWNER, direct=direct, **settings) as client:
            task = asyncio.create_task(client.relay.create(["t"], "p"))
            (request,) = await server.wait_for_requests(1)
            request.respond()
        assert (await task).relay_token == token_for("p")


# ------------------------------------------------------------------------------------- a slow session


class Session:
    """A session whose `post` is a coroutine of the test."""

    def __init__(self, post):
        self._post = post

    def post(self, url, **options):
        return self._post()


def start_post(post):
    return asyncio.create_task(SessionExchange(Session(post)).post(("", {}), RequestBody(b"", lambda: None)))


async def test_a_session_that_yields_without_a_future_is_cancelled():
    """Before the request is sent, a cancellation takes effect immediately."""
    seen = []

    async def post():
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = start_post(post)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_a_session_may_clean_up_when_it_is_cancelled():
    """A session's cleanup is waited for, and further cancellations reach it."""
    seen = []

    async def connect():
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("connection cancelled")
        raise asyncio.CancelledError

    async def post():
        try:
            await asyncio.create_task(connect())
        finally:
            await asyncio.sleep(0.01)
            seen.append("cleaned up")

    task = start_post(post)
    for _ in range(3):
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen[:2] == ["connection cancelled"] * 2
