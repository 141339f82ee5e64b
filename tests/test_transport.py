from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
from support import OWNER, QUICK, RecordingJournal, throttle_of
from virtual_clock import run_virtually

from plaid_relay_async import (
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConnectionLostError,
    Credentials,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    PlaidServerError,
    RateLimitError,
    ReadTimeoutError,
    RelayClient,
    RelayCreateRequest,
    ReportNotReadyError,
    RetryPolicy,
    Timeouts,
    WaitTooLongError,
)
from plaid_relay_async.simulator import Fault, Simulator

CREATE, GET, REMOVE = "/credit/relay/create", "/credit/relay/get", "/credit/relay/remove"
REFRESH = "/credit/relay/refresh"
MAINTENANCE = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}


def tokens(plaid: Simulator) -> list[str]:
    return [entry["relay_token"] for entry in plaid.ledger]


@contextlib.asynccontextmanager
async def serving(handle):
    """Run a bare TCP server; the test decides what it does with each connection."""
    connections = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    finally:
        server.close()
        for writer in connections:
            writer.close()
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    await reader.readexactly(length)


# ------------------------------------------------------------------------- creations are not repeated


@pytest.mark.parametrize(
    ("fault", "token_count"),
    [
        (Fault(path=CREATE, status=500, when="before"), 0),
        (Fault(path=CREATE, status=500, when="after"), 1),
        (Fault(path=CREATE, status=502, body="<html>", when="after"), 1),
        (Fault(path=CREATE, status=503, body="<html>", when="before"), 0),
        (Fault(path=CREATE, close=True, when="before"), 0),
        (Fault(path=CREATE, close=True, when="after"), 1),
        (Fault(path=CREATE, truncate=0), 1),
        (Fault(path=CREATE, truncate=30), 1),
        (Fault(path=CREATE, status=200, body={"request_id": "q"}, when="after"), 1),
        (Fault(path=CREATE, status=204, when="after"), 1),
    ],
)
async def test_a_creation_in_doubt_is_not_repeated(plaid, client, fault, token_count):
    """The client makes one attempt, and the error says that a token may exist."""
    plaid.fail(fault)
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.relay.create([plaid.add_report()], "p")
    assert plaid.counts[CREATE] == caught.value.attempts == 1
    assert caught.value.sent is True
    assert len(plaid.ledger) == token_count


async def test_a_response_cut_after_its_token_is_created(plaid, client):
    """The response is incomplete, but its token is complete."""
    plaid.fail(Fault(path=CREATE, truncate=75))
    created = await client.relay.create([plaid.add_report()], "p")
    assert [created.relay_token] == tokens(plaid)


async def test_a_stalled_creation_is_unknown(plaid):
    """A creation that was sent and then timed out is unknown."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(slow_read=0.3)) as client:
        with pytest.raises(OutcomeUnknownError, match="time ran out"):
            await client.relay.create([plaid.add_report()], "p")
        with pytest.raises(OutcomeUnknownError, match="time ran out"):
            await client.relay.create([plaid.add_report()], "p", timeout=0.5)
    assert plaid.counts[CREATE] == 2


async def test_a_declined_creation_is_repeated(plaid, client):
    """A 429 and Plaid's own maintenance prove that nothing was executed."""
    plaid.fail(
        Fault(path=CREATE, status=429, times=1),
        Fault(path=CREATE, status=503, body=MAINTENANCE, times=1),
    )
    created = await client.relay.create([plaid.add_report()], "p")
    assert tokens(plaid) == [created.relay_token]
    assert plaid.counts[CREATE] == 3


@pytest.mark.parametrize("code", ["CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"])
async def test_a_permanent_limit_is_final(plaid, client, code):
    """Some 429s never pass, so the client doesn't repeat the request."""
    plaid.fail(Fault(path=CREATE, status=429, body={"error_code": code}))
    with pytest.raises(RateLimitError) as caught:
        await client.relay.create([plaid.add_report()], "p")
    assert (caught.value.error_code, caught.value.attempts, plaid.counts[CREATE]) == (code, 1, 1)


async def test_a_rejected_request_is_not_repeated(plaid, client):
    """A request that Plaid calls invalid is not sent again."""
    with pytest.raises(InvalidRequestError) as caught:
        await client.relay.create(["assets-sandbox-unknown"], "p")
    assert (caught.value.error_code, caught.value.sent) == ("INVALID_ASSET_REPORT_TOKEN", True)
    assert plaid.counts[CREATE] == 1


async def test_replay_always_may_create_a_second_token(plaid):
    """With replay="always" a lost creation is repeated, and there may be two tokens."""
    plaid.fail(Fault(path=CREATE, close=True, when="after", times=1))
    always = RetryPolicy(backoff=0.001, replay="always")
    async with RelayClient(OWNER, base_url=plaid.url, retry=always) as client:
        created = await client.relay.create([plaid.add_report()], "p")
    assert len(tokens(plaid)) == 2
    assert created.relay_token == tokens(plaid)[1]


async def test_a_lost_attempt_outweighs_a_later_rejection(plaid, client):
    """If the first attempt may have created a token, a rejected second one doesn't make the call failed."""
    plaid.fail(
        Fault(path=CREATE, close=True, when="after", times=1),
        Fault(path=CREATE, status=400),
    )
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.relay.create(
            [plaid.add_report()], "p", retry=RetryPolicy(backoff=0.001, replay="always")
        )
    assert caught.value.attempts == 2
    assert isinstance(caught.value.__cause__, InvalidRequestError)
    assert len(plaid.ledger) == 1


async def test_a_lost_attempt_outweighs_a_pause_that_is_too_long(plaid, client):
    """In a batch, too, a creation in doubt stays unknown, whatever Plaid responds to the next attempt."""
    plaid.fail(
        Fault(path=CREATE, close=True, when="after", times=1),
        Fault(path=CREATE, status=429, headers={"Retry-After": "301"}),
    )
    always = RetryPolicy(backoff=0.001, replay="always")
    rows = RelayCreateRequest.fan_out([plaid.add_report()], ["p"])
    result = await client.relay.create_many(rows, retry=always)
    (unknown,) = result.unknown
    assert (unknown.attempts, len(plaid.ledger)) == (2, 1)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "301"}])
async def test_an_error_of_the_rate_limit_hook_is_not_an_unknown_outcome(plaid, headers):
    """Plaid declined the attempt, so nothing was executed, even if the limiter's hook raises."""

    class Broken(Limiter):
        def on_rate_limited(self, endpoint: str, retry_after: float | None) -> None:
            raise ZeroDivisionError

    plaid.fail(Fault(path=CREATE, status=429, headers=headers))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Broken()) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert (caught.value.attempts, caught.value.sent) == (1, True)
        # The pause applies nevertheless.
        assert throttle_of(client, CREATE).breaker.pause_count == 1


async def test_a_lost_refresh_is_not_repeated(plaid, client, partner):
    """Each refresh creates a report, so a lost one is not repeated."""
    created = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(Fault(path=REFRESH, close=True, when="after"))
    with pytest.raises(OutcomeUnknownError):
        await partner.relay.refresh(created.relay_token)
    assert plaid.counts[REFRESH] == len(plaid.refreshes) == 1


# ------------------------------------------------------------------------------------- unsent requests


async def test_an_unsent_request_is_repeated_and_then_fails():
    """Nothing listens on the port: the client makes four attempts, and no token can exist."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        async with RelayClient(OWNER, base_url=f"http://127.0.0.1:{port}", retry=QUICK) as client:
            with pytest.raises(NotSentError) as caught:
                await client.relay.create(["t"], "p")
    assert (caught.value.sent, caught.value.attempts) == (False, 4)
    assert caught.value.errno is not None
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_a_server_that_starts_late_receives_the_request_once():
    """A request that was not sent may be sent again, for every operation."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    patient = RetryPolicy(attempts=1_000, backoff=0.01, max_backoff=0.02)
    async with RelayClient(OWNER, base_url=f"http://127.0.0.1:{port}", retry=patient) as client:
        report = "assets-sandbox-1"
        making = asyncio.create_task(client.relay.create([report], "p"))
        await asyncio.sleep(0.03)
        async with Simulator(port=port, reports=[report]) as plaid:
            created = await making
            assert tokens(plaid) == [created.relay_token]


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

    async with serving(gibberish) as (url, _):
        address = url.replace("http://", "https://")
        async with RelayClient(OWNER, base_url=address, retry=RetryPolicy(attempts=1)) as client:
            with pytest.raises(NotSentError, match=r"TLS with 127\.0\.0\.1:\d+ failed: .*doesn't use TLS"):
                await client.relay.create(["t"], "p")


async def test_a_connect_timeout_means_not_sent():
    """An unanswered handshake ends with the connect timeout, and nothing was sent."""

    async def silence(reader, writer):
        await reader.read()

    async with serving(silence) as (url, _):
        address = url.replace("http://", "https://")
        timeouts = Timeouts(connect=0.05)
        async with RelayClient(
            OWNER, base_url=address, retry=RetryPolicy(attempts=1), timeouts=timeouts
        ) as client:
            with pytest.raises(NotSentError, match="time ran out"):
                await client.relay.create(["t"], "p")


# ----------------------------------------------------------------------------------- partial responses


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


# ------------------------------------------------------------------------------------ reads and removals


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path=GET, status=500, times=1),
        Fault(path=GET, status=502, body="<html>", times=1),
        Fault(path=GET, close=True, times=1),
        Fault(path=GET, truncate=50, times=1),
        Fault(path=GET, status=429, times=1),
    ],
)
async def test_a_read_is_repeated_after_a_transient_error(plaid, client, partner, fault):
    """A read is safe, so it is repeated."""
    created = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(fault)
    assert (await partner.relay.get(created.relay_token)).report.items
    assert plaid.counts[GET] == 2


async def test_a_read_fails_after_its_last_attempt(plaid, client):
    """The client and the call can limit the number of attempts, and the error has it."""
    plaid.fail(Fault(path=GET, status=500))
    with pytest.raises(PlaidServerError) as caught:
        await client.relay.get("t")
    assert caught.value.attempts == plaid.counts[GET] == 4
    with pytest.raises(PlaidServerError) as caught:
        await client.relay.get("t", retry=RetryPolicy(attempts=1))
    assert caught.value.attempts == 1


async def test_a_read_without_a_response_is_a_timeout(plaid, partner):
    """A read that timed out is also a TimeoutError."""
    plaid.fail(Fault(path=GET, stall=30))
    with pytest.raises(TimeoutError) as caught:
        await partner.relay.get("t", timeout=0.5)
    assert isinstance(caught.value, ReadTimeoutError)


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


async def test_a_read_waits_no_longer_than_the_policy_allows(plaid, partner):
    """A server may request a pause of a day; a call without a deadline waits at most for `max_pause`."""
    plaid.fail(Fault(path=GET, status=503, body="<html>", headers={"Retry-After": "86400"}))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(total=None)) as client:
        with pytest.raises(PlaidServerError) as caught:
            await client.relay.get("t")
    assert (caught.value.retry_after, caught.value.attempts) == (86400.0, 1)


async def test_a_pause_that_begins_while_credentials_are_fetched_is_kept(plaid):
    """A call that fetches its credentials when the circuit breaker opens waits for the pause to end."""
    slow, report = asyncio.Event(), plaid.add_report()
    first = True

    async def vault() -> Credentials:
        nonlocal first
        if not first:
            await slow.wait()
        first = False
        return OWNER

    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "2"}, times=1))
    async with RelayClient(vault, base_url=plaid.url) as client:
        refused = asyncio.create_task(client.relay.create([report], "p"))
        waiting = asyncio.create_task(client.relay.create([report], "q"))
        while not plaid.requests or plaid.requests[0].status is None:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        started = time.monotonic()
        slow.set()
        await waiting
        assert time.monotonic() - started > 1
        await refused
    assert plaid.counts[CREATE] == 3


async def test_a_cancellation_inside_the_limiter_is_an_error(plaid):
    """A limiter that raises CancelledError doesn't make the call look cancelled."""

    class Cancelled:
        async def acquire(self, endpoint: str) -> None:
            raise asyncio.CancelledError

    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Cancelled()) as client:
        with pytest.raises(NotSentError, match="the rate limiter raised CancelledError"):
            await client.relay.create([plaid.add_report()], "p")


async def test_settings_of_a_call_are_checked(plaid, client):
    """A number is not a policy, and nothing is sent with it."""
    with pytest.raises(ConfigurationError, match="retry must be a RetryPolicy, not int"):
        await client.relay.create([plaid.add_report()], "p", retry=3)  # type: ignore[arg-type]  # the intended mistake
    with pytest.raises(ConfigurationError, match="total must be"):
        await client.relay.create([plaid.add_report()], "p", timeout=0)
    with pytest.raises(ConfigurationError, match="timeouts must be a Timeouts, not int"):
        RelayClient(OWNER, timeouts=5)  # type: ignore[arg-type]  # the same
    assert plaid.counts[CREATE] == 0


async def test_a_creation_requests_an_uncompressed_response(plaid, client, partner):
    """A compressed response that breaks off couldn't be read; reports are large and are compressed."""
    created = await client.relay.create([plaid.add_report()], "partner")
    await partner.relay.get(created.relay_token)
    creation, reading = plaid.requests
    assert creation.headers["accept-encoding"] == "identity"
    assert "gzip" in reading.headers["accept-encoding"]


async def test_a_report_that_is_not_ready_has_its_own_error(plaid, client):
    """PRODUCT_NOT_READY has a class of its own, so that a caller can wait."""
    public = await client.sandbox.create_public_token()
    item = await client.item.exchange_public_token(public.public_token)
    report = await client.asset_report.create([item.access_token], 60, client_report_id="mine")
    with pytest.raises(ReportNotReadyError):
        await client.asset_report.get(report.asset_report_token)


@pytest.mark.parametrize("fault", [{"close": True}, {"status": 500}])
async def test_a_removal_is_repeated_and_may_be_inferred(plaid, client, fault):
    """If the response to an executed attempt is lost, the next finds no such token: it is removed."""
    created = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=REMOVE, when="after", times=1, **fault))
    removal = await client.relay.remove(created.relay_token)
    assert (removal.removed, removal.inferred) == (True, True)
    assert plaid.ledger[0]["removed"] is True


async def test_a_removal_that_was_not_executed_is_not_inferred(plaid, client):
    """If the repeat removes the token, Plaid confirms it; an unknown token is an error, not a removal."""
    created = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=REMOVE, close=True, when="before", times=1))
    assert (await client.relay.remove(created.relay_token)).inferred is False
    plaid.fail(Fault(path=REMOVE, status=429, times=1))
    with pytest.raises(InvalidRequestError):
        await client.relay.remove(created.relay_token)


async def test_a_lost_removal_outweighs_a_later_rejection(plaid, client):
    """If the first attempt may have removed the token, a rejected repeat doesn't prove that it exists."""
    created = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(
        Fault(path=REMOVE, close=True, when="after", times=1),
        Fault(
            path=REMOVE, status=400, body={"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}
        ),
    )
    with pytest.raises(ConnectionLostError, match="safe to try again") as caught:
        await client.relay.remove(created.relay_token)
    assert caught.value.attempts == plaid.counts[REMOVE] == 2


# ----------------------------------------------------------------------------------------------- pauses


async def test_retry_after_is_waited_in_full(plaid, client):
    """The server's delay is never shortened."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1))
    started = time.monotonic()
    await client.relay.create([plaid.add_report()], "p")
    assert time.monotonic() - started >= 1.0


async def test_a_delay_beyond_the_deadline_is_raised_immediately(plaid, client):
    """A deadline doesn't shorten the server's delay: the error has it, and is raised without waiting."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "60"}, times=1))
    report = plaid.add_report()
    started = time.monotonic()
    with pytest.raises(RateLimitError) as caught:
        await client.relay.create([report], "p", timeout=5)
    assert (caught.value.retry_after, caught.value.attempts) == (60.0, 1)
    with pytest.raises(WaitTooLongError, match=r"longer wait than this call allows.*not sent") as caught:
        await client.relay.create([report], "p", timeout=5)
    assert 50 < caught.value.retry_after <= 60
    assert time.monotonic() - started < 20
    assert plaid.counts[CREATE] == 1


async def test_a_pause_affects_only_its_operation(plaid, client):
    """While creations pause, removals continue."""
    created = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "60"}, times=1))
    with pytest.raises(RateLimitError):
        await client.relay.create([plaid.add_report()], "p", timeout=1)
    assert (await client.relay.remove(created.relay_token)).removed


async def test_a_pause_affects_every_call_of_its_operation(plaid, client):
    """A second call waits for the pause that the first one's 429 began, and then both succeed."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "2"}, times=1))
    report = plaid.add_report()
    first = asyncio.create_task(client.relay.create([report], "p"))
    while plaid.counts[CREATE] == 0:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await client.relay.create([report], "q")
    assert time.monotonic() - started > 1
    await first
    assert plaid.counts[CREATE] == 3


async def test_a_pause_longer_than_the_policy_allows_is_not_shortened(plaid, client):
    """A call whose pause exceeds `max_pause` fails, even without a deadline."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "400"}, times=1))
    unhurried = Timeouts(total=None)
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=unhurried) as patient:
        for cls in (RateLimitError, WaitTooLongError):
            with pytest.raises(cls) as caught:
                await patient.relay.create([plaid.add_report()], "p")
            assert caught.value.retry_after > 390
            assert caught.value.exceeds_max_pause
    assert plaid.counts[CREATE] == 1


async def test_concurrent_429s_are_one_pause(plaid):
    """Calls that are declined together wait together; their delays don't add up."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=5))
    policy = RetryPolicy(max_pause=1.5)
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        await asyncio.gather(*(client.relay.create([report], f"p{n}") for n in range(5)))
    assert len(plaid.ledger) == 5


async def test_a_pause_that_begins_while_a_call_queues_is_kept(plaid):
    """A call that gets a connection after the pause began waits like all others."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "2"}, times=1))
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url, connections=1) as client:
        calls = [asyncio.ensure_future(client.relay.create([report], f"p{n}")) for n in range(3)]
        await asyncio.sleep(0.5)
        assert plaid.counts[CREATE] == 1
        await asyncio.gather(*calls)
    assert (len(plaid.ledger), plaid.counts[CREATE]) == (3, 4)


async def test_closing_the_client_ends_a_queued_call(plaid):
    """A call that is queued when the client is closed is never sent."""
    release = asyncio.Event()

    class Gate:
        async def acquire(self, endpoint: str) -> None:
            await release.wait()

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Gate()) as client:
        call = asyncio.create_task(client.relay.create([plaid.add_report()], "p"))
        await asyncio.sleep(0)
    release.set()
    with pytest.raises(ClientClosedError) as caught:
        await call
    assert (caught.value.sent, plaid.counts[CREATE]) == (False, 0)


# ------------------------------------------------------------------------------------ limiter, identity


class Limiter:
    def __init__(self) -> None:
        self.acquired: list[str] = []
        self.rate_limited: list[tuple[str, float | None]] = []

    async def acquire(self, endpoint: str) -> None:
        self.acquired.append(endpoint)

    def on_rate_limited(self, endpoint: str, retry_after: float | None) -> None:
        self.rate_limited.append((endpoint, retry_after))


async def test_a_limiter_sees_each_attempt_and_each_429(plaid):
    """The limiter receives each attempt's operation, and each 429 with its delay, but no maintenance."""
    plaid.fail(
        Fault(path=CREATE, status=429, times=1),
        Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=1),
        Fault(path=CREATE, status=503, body=MAINTENANCE, times=1),
    )
    limiter = Limiter()
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=limiter) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert limiter.acquired == [CREATE] * 4
    assert limiter.rate_limited == [(CREATE, None), (CREATE, 0.0)]


async def test_the_wait_for_the_limiter_does_not_count_against_the_timeout(plaid):
    """A call's timeout starts when the limiter has granted its permit."""

    class Slow:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.sleep(0.6)

    plaid.fail(Fault(path=CREATE, status=429, times=1))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Slow()) as client:
        created = await client.relay.create([plaid.add_report()], "p", timeout=1)
    assert tokens(plaid) == [created.relay_token]
    no_end = Timeouts(total=None)
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=no_end, rate_limiter=Slow()) as client:
        await client.relay.create([plaid.add_report()], "q")


async def test_the_wait_for_a_connection_does_not_count_against_the_timeout(plaid):
    """Forty calls share one connection, and each takes more than a fortieth of the timeout."""
    plaid.fail(Fault(path=CREATE, latency=0.02))
    report = plaid.add_report()
    timeouts = Timeouts(connect=0.3, slow_read=0.3, total=0.3)
    async with RelayClient(OWNER, base_url=plaid.url, connections=1, timeouts=timeouts) as client:
        created = await asyncio.gather(*(client.relay.create([report], f"p{n}") for n in range(40)))
    assert sorted(tokens(plaid)) == sorted(m.relay_token for m in created)


async def test_an_error_of_the_limiter_leaves_the_request_unsent(plaid):
    """The error of the caller's limiter is the cause of the error, and nothing was sent."""

    class Broken:
        async def acquire(self, endpoint: str) -> None:
            raise ZeroDivisionError

    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Broken()) as client:
        with pytest.raises(NotSentError, match="the rate limiter raised ZeroDivisionError") as caught:
            await client.relay.create([plaid.add_report()], "p")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert plaid.counts[CREATE] == 0


async def test_credentials_may_rotate(plaid):
    """The callable is called for each attempt; if it raises, nothing was sent; a wrong result is named."""
    secrets = iter(["first-secret", "second-secret"])

    async def current() -> Credentials:
        return Credentials("owner", next(secrets))

    plaid.fail(Fault(path=CREATE, status=429, times=1))
    async with RelayClient(current, base_url=plaid.url, retry=QUICK) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert [r.headers["plaid-secret"] for r in plaid.requests] == ["first-secret", "second-secret"]

    async def broken() -> Credentials:
        raise LookupError

    async with RelayClient(broken, base_url=plaid.url, retry=QUICK) as client:
        with pytest.raises(NotSentError, match="source of the credentials raised LookupError"):
            await client.relay.create([plaid.add_report()], "p")

    async def wrong() -> Credentials:
        return "owner:secret"  # type: ignore[return-value]  # the intended mistake

    async with RelayClient(wrong, base_url=plaid.url) as client:
        with pytest.raises(ConfigurationError, match="source of the credentials returned str"):
            await client.relay.create([plaid.add_report()], "p")


async def test_the_timeout_includes_fetching_the_credentials(plaid):
    """If fetching the secret takes too long, the call times out, and nothing was sent."""

    async def never() -> Credentials:
        await asyncio.Event().wait()
        raise AssertionError

    async with RelayClient(never, base_url=plaid.url, retry=QUICK) as client:
        with pytest.raises(NotSentError, match="source of the credentials raised TimeoutError"):
            await client.relay.create([plaid.add_report()], "p", timeout=0.05)
    assert plaid.counts[CREATE] == 0


@pytest.mark.parametrize("seconds", [0.95, 0.6])
def test_credentials_that_arrive_late_leave_the_request_unsent(seconds):
    """A creation isn't sent when its credentials leave too little time for the response."""

    async def slowly() -> Credentials:
        await asyncio.sleep(seconds)
        return OWNER

    async def main():
        loop = asyncio.get_running_loop()
        async with (
            Simulator(reports=["report"], latency=0.2, clock=loop.time) as plaid,
            RelayClient(slowly, base_url=plaid.url, retry=QUICK) as client,
        ):
            with pytest.raises(NotSentError) as caught:
                await client.relay.create(["report"], "p", timeout=1)
            await client.relay.create(["report"], "p", timeout=4)
            return caught.value, plaid.counts[CREATE]

    error, attempts = run_virtually(main())
    assert (error.sent, error.attempts, attempts) == (False, 0, 1)


@pytest.mark.may_block  # intended
def test_credentials_that_block_the_loop_leave_the_request_unsent():
    """The remaining time is checked again after the credentials, even if fetching them blocked the loop."""

    async def blocking() -> Credentials:
        time.sleep(0.6)  # noqa: ASYNC251  # the same
        return OWNER

    async def main():
        async with (
            Simulator(reports=["report"]) as plaid,
            RelayClient(blocking, base_url=plaid.url) as client,
        ):
            with pytest.raises(NotSentError, match="the credentials arrived too late") as caught:
                await client.relay.create(["report"], "p", timeout=1)
            return caught.value.sent, plaid.counts[CREATE]

    assert asyncio.run(main()) == (False, 0)


async def test_a_journal_that_is_slow_leaves_the_request_unsent(plaid, client):
    """A creation isn't sent when the journal leaves too little time for the response."""

    class Slow(RecordingJournal):
        async def record_intent(self, request: object) -> None:
            await asyncio.sleep(0.6)

        async def record_outcome(self, outcome: object) -> None:
            """Record nothing."""

    with pytest.raises(NotSentError, match="the journal took so long") as caught:
        await client.relay.create([plaid.add_report()], "p", timeout=1, journal=Slow())
    assert (caught.value.sent, plaid.counts[CREATE]) == (False, 0)


@pytest.mark.parametrize("operation", ["get", "create"])
async def test_an_error_says_that_an_earlier_attempt_was_sent(operation):
    """The error of a last attempt that was not sent has sent=True if the first attempt was sent."""

    class Hiccup:
        permits = 0

        async def acquire(self, endpoint: str) -> None:
            self.permits += 1
            if self.permits > 1:
                raise ZeroDivisionError

    async with Simulator(reports=["report"]) as plaid:
        plaid.fail(Fault(path=GET, close=True), Fault(path=CREATE, status=429))
        async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Hiccup()) as client:
            call = client.relay.get("t") if operation == "get" else client.relay.create(["report"], "p")
            with pytest.raises(NotSentError, match=r"\[sent, attempts=1\]") as caught:
                await call
    assert (caught.value.sent, caught.value.attempts) == (True, 1)


async def test_credentials_in_the_body():
    """Credentials in the body aren't in the headers; a wrong pair is an authentication error."""
    async with Simulator(clients={"owner": OWNER.secret}) as plaid:
        async with RelayClient(OWNER, base_url=plaid.url, credentials_in="body") as client:
            await client.relay.create([plaid.add_report()], "p")
        assert "plaid-secret" not in plaid.requests[0].headers
        async with RelayClient(Credentials("owner", "wrong-secret"), base_url=plaid.url) as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.relay.create([plaid.add_report()], "p")
        assert caught.value.error_code == "INVALID_API_KEYS"


async def test_a_gateway_gets_its_key_and_no_credentials(plaid, monkeypatch):
    """With a gateway key no credentials are sent, even if the environment has some."""
    monkeypatch.setenv("PLAID_CLIENT_ID", "of-the-environment")
    monkeypatch.setenv("PLAID_SECRET", "of-the-environment")
    async with RelayClient(gateway_key="the-gateways-key", base_url=plaid.url) as client:
        with pytest.raises(InvalidRequestError, match="client_id"):
            await client.relay.create([plaid.add_report()], "p")
    headers = plaid.requests[0].headers
    assert headers["authorization"] == "Bearer the-gateways-key"
    assert "of-the-environment" not in str(headers)
