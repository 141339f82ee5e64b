from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
from support import OWNER, QUICK, RecordingJournal
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
)
from plaid_relay_async.simulator import Fault, Simulator

CREATE, GET, REMOVE = "/credit/relay/create", "/credit/relay/get", "/credit/relay/remove"
REFRESH = "/credit/relay/refresh"
MAINTENANCE = {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}


def tokens(plaid: Simulator) -> list[str]:
    return [entry["relay_token"] for entry in plaid.ledger]


@contextlib.asynccontextmanager
async def serving(handle):
    """A bare TCP server: what it does to a connection is up to the test."""
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
    ("fault", "minted"),
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
async def test_a_creation_whose_end_nobody_knows_is_not_repeated(plaid, client, fault, minted):
    """One attempt, and an error that says that there may be a token."""
    plaid.fail(fault)
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.relay.create([plaid.add_report()], "p")
    assert plaid.counts[CREATE] == caught.value.attempts == 1
    assert caught.value.sent is True
    assert len(plaid.ledger) == minted


async def test_an_answer_cut_behind_its_token_is_created(plaid, client):
    """Less than the whole answer, and the whole of the token."""
    plaid.fail(Fault(path=CREATE, truncate=75))
    made = await client.relay.create([plaid.add_report()], "p")
    assert [made.relay_token] == tokens(plaid)


async def test_a_stalled_creation_is_unknown(plaid):
    """When time runs out on a creation that was sent, nobody can tell."""
    plaid.fail(Fault(path=CREATE, stall=30, when="after"))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(slow_read=0.3)) as client:
        with pytest.raises(OutcomeUnknownError, match="time ran out"):
            await client.relay.create([plaid.add_report()], "p")
        with pytest.raises(OutcomeUnknownError, match="time ran out"):
            await client.relay.create([plaid.add_report()], "p", timeout=0.5)
    assert plaid.counts[CREATE] == 2


async def test_a_creation_that_plaid_refused_for_now_is_repeated(plaid, client):
    """429 and Plaid's own maintenance say that nothing was carried out."""
    plaid.fail(
        Fault(path=CREATE, status=429, times=1),
        Fault(path=CREATE, status=503, body=MAINTENANCE, times=1),
    )
    made = await client.relay.create([plaid.add_report()], "p")
    assert tokens(plaid) == [made.relay_token]
    assert plaid.counts[CREATE] == 3


@pytest.mark.parametrize("code", ["CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"])
async def test_a_limit_that_no_waiting_mends_is_final(plaid, client, code):
    """Some 429s will never pass."""
    plaid.fail(Fault(path=CREATE, status=429, body={"error_code": code}))
    with pytest.raises(RateLimitError) as caught:
        await client.relay.create([plaid.add_report()], "p")
    assert (caught.value.error_code, caught.value.attempts, plaid.counts[CREATE]) == (code, 1, 1)


async def test_a_refusal_is_final(plaid, client):
    """What Plaid calls wrong is not asked again."""
    with pytest.raises(InvalidRequestError) as caught:
        await client.relay.create(["assets-sandbox-unknown"], "p")
    assert (caught.value.error_code, caught.value.sent) == ("INVALID_ASSET_REPORT_TOKEN", True)
    assert plaid.counts[CREATE] == 1


async def test_who_opts_out_gets_a_second_token(plaid):
    """With replay="always" a lost creation is repeated, and may be doubled."""
    plaid.fail(Fault(path=CREATE, close=True, when="after", times=1))
    always = RetryPolicy(backoff=0.001, replay="always")
    async with RelayClient(OWNER, base_url=plaid.url, retry=always) as client:
        made = await client.relay.create([plaid.add_report()], "p")
    assert len(tokens(plaid)) == 2
    assert made.relay_token == tokens(plaid)[1]


async def test_a_lost_attempt_outweighs_a_later_refusal(plaid, client):
    """If the first attempt may have made a token, a refusal of the second doesn't make it a failure."""
    plaid.fail(
        Fault(path=CREATE, close=True, when="after", times=1),
        Fault(path=CREATE, status=400),
    )
    with pytest.raises(OutcomeUnknownError) as caught:
        await client.relay.create(
            [plaid.add_report()], "p", retry=RetryPolicy(backoff=0.001, replay="always")
        )
    assert caught.value.attempts == 2
    assert len(plaid.ledger) == 1


async def test_a_lost_attempt_outweighs_a_pause_that_is_too_long(plaid, client):
    """Also in a batch: whoever may have a token is unknown, whatever Plaid said to the next attempt."""
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
async def test_a_limiter_that_breaks_when_it_is_told_does_no_harm(plaid, headers):
    """Plaid refused, so nothing was carried out, whatever the limiter makes of it."""

    class Broken(Limiter):
        def on_rate_limited(self, endpoint: str, retry_after: float | None) -> None:
            raise ZeroDivisionError

    plaid.fail(Fault(path=CREATE, status=429, headers=headers))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Broken()) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert (caught.value.attempts, caught.value.sent) == (1, True)
        # The pause is kept all the same.
        assert client._transport._admission.throttles[CREATE].pause_count == 1


async def test_a_refresh_is_as_careful_as_a_creation(plaid, client, partner):
    """Each refresh makes a report: a lost one isn't repeated."""
    made = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(Fault(path=REFRESH, close=True, when="after"))
    with pytest.raises(OutcomeUnknownError):
        await partner.relay.refresh(made.relay_token)
    assert plaid.counts[REFRESH] == len(plaid.refreshes) == 1


# ------------------------------------------------------------------------------------- what never left


async def test_what_never_left_is_repeated_and_then_failed():
    """A port that nobody listens on: four attempts, and the certainty that there is no token."""
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


async def test_a_server_that_comes_up_in_between_gets_the_request_once():
    """What never left may be sent again, by whatever operation."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    patient = RetryPolicy(attempts=1_000, backoff=0.01, max_backoff=0.02)
    async with RelayClient(OWNER, base_url=f"http://127.0.0.1:{port}", retry=patient) as client:
        report = "assets-sandbox-1"
        making = asyncio.create_task(client.relay.create([report], "p"))
        await asyncio.sleep(0.03)
        async with Simulator(port=port, reports=[report]) as plaid:
            made = await making
            assert tokens(plaid) == [made.relay_token]


async def test_a_name_that_is_not_known_never_left():
    """DNS is a way to fail before anything is sent."""
    async with RelayClient(OWNER, base_url="https://plaid.invalid", retry=RetryPolicy(attempts=1)) as client:
        with pytest.raises(NotSentError, match="was not sent"):
            await client.relay.create(["t"], "p", timeout=20)


async def test_tls_that_fails_never_left():
    """A server that speaks no TLS, or isn't trusted, has seen no request."""

    async def gibberish(reader, writer):
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 no TLS here\r\n\r\n")

    async with serving(gibberish) as (url, _):
        address = url.replace("http://", "https://")
        async with RelayClient(OWNER, base_url=address, retry=RetryPolicy(attempts=1)) as client:
            with pytest.raises(NotSentError, match=r"TLS with 127\.0\.0\.1:\d+ failed: .*doesn't use TLS"):
                await client.relay.create(["t"], "p")


async def test_a_connection_that_is_not_made_in_time_never_left():
    """A handshake that nobody answers runs into the connect timeout, and nothing was sent."""

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


# ------------------------------------------------------------------------------------ half an answer


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
async def test_half_an_answer_is_unknown_to_a_creation_and_lost_to_a_read(sent):
    """Wherever the bytes end: a creation says unknown at once, a read tries again and then says lost."""

    async def half(reader, writer):
        await read_request(reader)
        writer.write(sent)
        await writer.drain()

    async with serving(half) as (url, connections):
        async with RelayClient(OWNER, base_url=url, retry=QUICK) as client:
            with pytest.raises(OutcomeUnknownError) as unknown:
                await client.relay.create(["t"], "p")
            assert len(connections) == unknown.value.attempts == 1
            with pytest.raises(ConnectionLostError) as lost:
                await client.relay.get("t")
            assert lost.value.attempts == 4
            assert lost.value.sent is True


async def test_a_token_before_the_end_of_the_connection_is_created():
    """Chunks that break off behind the token: it reached us, so it is handed on."""

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


async def test_a_deadline_in_the_middle_of_an_answer_keeps_what_arrived():
    """A slow answer whose token came in time is created when the time is up."""

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
async def test_a_read_is_repeated_after_anything_that_may_pass(plaid, client, partner, fault):
    """A read changes nothing, so it is asked again."""
    made = await client.relay.create([plaid.add_report()], "partner")
    plaid.fail(fault)
    assert (await partner.relay.get(made.relay_token)).report.items
    assert plaid.counts[GET] == 2


async def test_a_read_gives_up_after_its_attempts(plaid, client):
    """The number of attempts is a bound, per client and per call, and the error tells it."""
    plaid.fail(Fault(path=GET, status=500))
    with pytest.raises(PlaidServerError) as caught:
        await client.relay.get("t")
    assert caught.value.attempts == plaid.counts[GET] == 4
    with pytest.raises(PlaidServerError) as caught:
        await client.relay.get("t", retry=RetryPolicy(attempts=1))
    assert caught.value.attempts == 1


async def test_a_read_whose_answer_does_not_come_is_a_timeout(plaid, partner):
    """A read that ran out of time is a TimeoutError, too."""
    plaid.fail(Fault(path=GET, stall=30))
    with pytest.raises(TimeoutError) as caught:
        await partner.relay.get("t", timeout=0.5)
    assert isinstance(caught.value, ReadTimeoutError)


async def test_a_read_that_stops_in_the_middle_is_a_timeout_as_well():
    """Half an answer and then nothing: time ran out, and the error is of that class."""

    async def slow(reader, writer):
        await read_request(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"report": ')
        await writer.drain()
        await reader.read()

    async with serving(slow) as (url, _), RelayClient(OWNER, base_url=url) as client:
        with pytest.raises(ReadTimeoutError):
            await client.relay.get("t", timeout=0.5)


async def test_chunks_whose_framing_breaks_do_not_hold_a_call():
    """Where aiohttp forgets its timer, ours goes on: the token that came is handed on."""

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
    """A server in trouble may ask for a day; whoever has no deadline isn't held so long."""
    plaid.fail(Fault(path=GET, status=503, body="<html>", headers={"Retry-After": "86400"}))
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(total=None)) as client:
        with pytest.raises(PlaidServerError) as caught:
            await client.relay.get("t")
    assert (caught.value.retry_after, caught.value.attempts) == (86400.0, 1)


async def test_a_pause_that_begins_while_credentials_are_fetched_is_kept(plaid):
    """Between its turn and its secret, a call may be told to wait by another's refusal."""
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
        began = time.monotonic()
        slow.set()
        await waiting
        assert time.monotonic() - began > 1
        await refused
    assert plaid.counts[CREATE] == 3


async def test_a_cancellation_that_nobody_asked_for_is_an_error(plaid):
    """A limiter that is cancelled inside doesn't make the call look cancelled."""

    class Cancelled:
        async def acquire(self, endpoint: str) -> None:
            raise asyncio.CancelledError

    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Cancelled()) as client:
        with pytest.raises(NotSentError, match="the rate limiter raised CancelledError"):
            await client.relay.create([plaid.add_report()], "p")


async def test_settings_of_a_call_are_checked(plaid, client):
    """A number is no policy, and nothing is sent with it."""
    with pytest.raises(ConfigurationError, match="retry must be a RetryPolicy, not int"):
        await client.relay.create([plaid.add_report()], "p", retry=3)  # type: ignore[arg-type]  # the mistake that is meant
    with pytest.raises(ConfigurationError, match="total must be"):
        await client.relay.create([plaid.add_report()], "p", timeout=0)
    with pytest.raises(ConfigurationError, match="timeouts must be a Timeouts, not int"):
        RelayClient(OWNER, timeouts=5)  # type: ignore[arg-type]  # the same
    assert plaid.counts[CREATE] == 0


async def test_a_creation_asks_for_a_plain_answer(plaid, client, partner):
    """Of a zipped answer that breaks off nothing could be read; reports are large, and come zipped."""
    made = await client.relay.create([plaid.add_report()], "partner")
    await partner.relay.get(made.relay_token)
    creation, reading = plaid.requests
    assert creation.headers["accept-encoding"] == "identity"
    assert "gzip" in reading.headers["accept-encoding"]


async def test_a_report_in_the_making_is_said_to_be(plaid, client):
    """PRODUCT_NOT_READY is an error of its own, so that one can wait."""
    public = await client.sandbox.create_public_token()
    item = await client.item.exchange_public_token(public.public_token)
    report = await client.asset_report.create([item.access_token], 60, client_report_id="mine")
    with pytest.raises(ReportNotReadyError):
        await client.asset_report.get(report.asset_report_token)


@pytest.mark.parametrize("fault", [{"close": True}, {"status": 500}])
async def test_a_removal_is_repeated_and_may_be_inferred(plaid, client, fault):
    """If the first try was carried out unheard, the next is told that there is no such token: so it is gone."""
    made = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=REMOVE, when="after", times=1, **fault))
    gone = await client.relay.remove(made.relay_token)
    assert (gone.removed, gone.inferred) == (True, True)
    assert plaid.ledger[0]["removed"] is True


async def test_a_removal_that_was_not_carried_out_is_not_inferred(plaid, client):
    """If the repeat removes it, Plaid has said so itself; and an unknown token is an error, not a removal."""
    made = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=REMOVE, close=True, when="before", times=1))
    assert (await client.relay.remove(made.relay_token)).inferred is False
    plaid.fail(Fault(path=REMOVE, status=429, times=1))
    with pytest.raises(InvalidRequestError):
        await client.relay.remove(made.relay_token)


async def test_a_lost_removal_outweighs_a_later_refusal(plaid, client):
    """If the first try may have removed the token, a refusal of the repeat doesn't say that it is there."""
    made = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(
        Fault(path=REMOVE, close=True, when="after", times=1),
        Fault(
            path=REMOVE, status=400, body={"error_type": "INVALID_INPUT", "error_code": "INVALID_API_KEYS"}
        ),
    )
    with pytest.raises(ConnectionLostError, match="safe to try again") as caught:
        await client.relay.remove(made.relay_token)
    assert caught.value.attempts == plaid.counts[REMOVE] == 2


# ----------------------------------------------------------------------------------------------- pauses


async def test_retry_after_is_waited_in_full(plaid, client):
    """The server's delay is kept, to the last part of it."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=1))
    began = time.monotonic()
    await client.relay.create([plaid.add_report()], "p")
    assert time.monotonic() - began >= 1.0


async def test_a_delay_that_does_not_fit_is_raised_at_once(plaid, client):
    """A deadline doesn't shorten the server's delay: the error has it, and comes without waiting."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "60"}, times=1))
    report = plaid.add_report()
    began = time.monotonic()
    with pytest.raises(RateLimitError) as caught:
        await client.relay.create([report], "p", timeout=5)
    assert (caught.value.retry_after, caught.value.attempts) == (60.0, 1)
    with pytest.raises(RateLimitError, match=r"longer than this call may wait.*not sent") as caught:
        await client.relay.create([report], "p", timeout=5)
    assert 50 < caught.value.retry_after <= 60
    assert time.monotonic() - began < 20
    assert plaid.counts[CREATE] == 1


async def test_a_pause_concerns_its_operation_alone(plaid, client):
    """While creation pauses, removal goes on."""
    made = await client.relay.create([plaid.add_report()], "p")
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "60"}, times=1))
    with pytest.raises(RateLimitError):
        await client.relay.create([plaid.add_report()], "p", timeout=1)
    assert (await client.relay.remove(made.relay_token)).removed


async def test_a_pause_concerns_every_call_of_its_operation(plaid, client):
    """A second call waits out the pause that the first one was told of, and then both pass."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "2"}, times=1))
    report = plaid.add_report()
    first = asyncio.create_task(client.relay.create([report], "p"))
    while plaid.counts[CREATE] == 0:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await client.relay.create([report], "q")
    assert time.monotonic() - began > 1
    await first
    assert plaid.counts[CREATE] == 3


async def test_a_pause_longer_than_the_policy_allows_is_not_shortened(plaid, client):
    """Beyond `max_pause` the call fails, also where it has all the time in the world."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "400"}, times=1))
    unhurried = Timeouts(total=None)
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=unhurried) as patient:
        for _ in range(2):
            with pytest.raises(RateLimitError) as caught:
                await patient.relay.create([plaid.add_report()], "p")
            assert caught.value.retry_after > 390
    assert plaid.counts[CREATE] == 1


async def test_many_refusals_at_once_are_one_pause(plaid):
    """Calls that are refused together wait together, and don't add their delays up."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "1"}, times=5))
    policy = RetryPolicy(max_pause=1.5)
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url, retry=policy) as client:
        await asyncio.gather(*(client.relay.create([report], f"p{n}") for n in range(5)))
    assert len(plaid.ledger) == 5


async def test_a_pause_that_begins_while_a_call_queues_is_kept(plaid):
    """Whoever gets a connection after the pause began waits like everybody."""
    plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "2"}, times=1))
    report = plaid.add_report()
    async with RelayClient(OWNER, base_url=plaid.url, connections=1) as client:
        calls = [asyncio.ensure_future(client.relay.create([report], f"p{n}")) for n in range(3)]
        await asyncio.sleep(0.5)
        assert plaid.counts[CREATE] == 1
        await asyncio.gather(*calls)
    assert (len(plaid.ledger), plaid.counts[CREATE]) == (3, 4)


async def test_a_client_that_is_closed_while_a_call_queues_says_so(plaid):
    """A call that has not left when the client is closed never leaves."""
    go = asyncio.Event()

    class Gate:
        async def acquire(self, endpoint: str) -> None:
            await go.wait()

    async with RelayClient(OWNER, base_url=plaid.url, rate_limiter=Gate()) as client:
        call = asyncio.create_task(client.relay.create([plaid.add_report()], "p"))
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(ClientClosedError) as caught:
        await call
    assert (caught.value.sent, plaid.counts[CREATE]) == (False, 0)


# ------------------------------------------------------------------------------------ limiter, identity


class Limiter:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.told: list[tuple[str, float | None]] = []

    async def acquire(self, endpoint: str) -> None:
        self.asked.append(endpoint)

    def on_rate_limited(self, endpoint: str, retry_after: float | None) -> None:
        self.told.append((endpoint, retry_after))


async def test_a_limiter_is_asked_before_each_attempt_and_told_of_each_429(plaid):
    """The limiter sees each attempt's operation, and each 429 with its delay; maintenance is no limit."""
    plaid.fail(
        Fault(path=CREATE, status=429, times=1),
        Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=1),
        Fault(path=CREATE, status=503, body=MAINTENANCE, times=1),
    )
    limiter = Limiter()
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=limiter) as client:
        await client.relay.create([plaid.add_report()], "p")
    assert limiter.asked == [CREATE] * 4
    assert limiter.told == [(CREATE, None), (CREATE, 0.0)]


async def test_time_spent_queueing_at_the_limiter_is_not_the_calls(plaid):
    """A call's timeout begins to count when it is its turn."""

    class Slow:
        async def acquire(self, endpoint: str) -> None:
            await asyncio.sleep(0.6)

    plaid.fail(Fault(path=CREATE, status=429, times=1))
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Slow()) as client:
        made = await client.relay.create([plaid.add_report()], "p", timeout=1)
    assert tokens(plaid) == [made.relay_token]
    no_end = Timeouts(total=None)
    async with RelayClient(OWNER, base_url=plaid.url, timeouts=no_end, rate_limiter=Slow()) as client:
        await client.relay.create([plaid.add_report()], "q")


async def test_time_spent_queueing_for_a_connection_is_not_the_calls(plaid):
    """Forty calls over one connection, each slower than a fortieth of the timeout."""
    plaid.fail(Fault(path=CREATE, latency=0.02))
    report = plaid.add_report()
    timeouts = Timeouts(connect=0.3, slow_read=0.3, total=0.3)
    async with RelayClient(OWNER, base_url=plaid.url, connections=1, timeouts=timeouts) as client:
        made = await asyncio.gather(*(client.relay.create([report], f"p{n}") for n in range(40)))
    assert sorted(tokens(plaid)) == sorted(m.relay_token for m in made)


async def test_a_limiter_that_breaks_leaves_the_request_unsent(plaid):
    """An error of the caller's own limiter comes out as its cause, and nothing was sent."""

    class Broken:
        async def acquire(self, endpoint: str) -> None:
            raise ZeroDivisionError

    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Broken()) as client:
        with pytest.raises(NotSentError, match="the rate limiter raised ZeroDivisionError") as caught:
            await client.relay.create([plaid.add_report()], "p")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert plaid.counts[CREATE] == 0


async def test_credentials_may_rotate(plaid):
    """A callable is asked at each attempt; if it fails, nothing was sent; if it gives nonsense, it is named."""
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
        return "owner:secret"  # type: ignore[return-value]  # the mistake that is meant

    async with RelayClient(wrong, base_url=plaid.url) as client:
        with pytest.raises(ConfigurationError, match="source of the credentials returned str"):
            await client.relay.create([plaid.add_report()], "p")


async def test_a_source_of_credentials_that_hangs_runs_out_of_the_calls_time(plaid):
    """A call's timeout holds for the fetching of its secret, and then nothing was sent."""

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


@pytest.mark.may_block  # the mistake that is meant
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
    """An error of a last attempt that was not sent reports sent=True when the first one was."""

    class Hiccup:
        asked = 0

        async def acquire(self, endpoint: str) -> None:
            self.asked += 1
            if self.asked > 1:
                raise ZeroDivisionError

    async with Simulator(reports=["report"]) as plaid:
        plaid.fail(Fault(path=GET, close=True), Fault(path=CREATE, status=429))
        async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=Hiccup()) as client:
            call = client.relay.get("t") if operation == "get" else client.relay.create(["report"], "p")
            with pytest.raises(NotSentError, match=r"\[sent, attempts=1\]") as caught:
                await call
    assert (caught.value.sent, caught.value.attempts) == (True, 1)


async def test_credentials_in_the_body():
    """In the body, credentials aren't in the headers; a wrong pair is an authentication error."""
    async with Simulator(clients={"owner": OWNER.secret}) as plaid:
        async with RelayClient(OWNER, base_url=plaid.url, credentials_in="body") as client:
            await client.relay.create([plaid.add_report()], "p")
        assert "plaid-secret" not in plaid.requests[0].headers
        async with RelayClient(Credentials("owner", "wrong-secret"), base_url=plaid.url) as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.relay.create([plaid.add_report()], "p")
        assert caught.value.error_code == "INVALID_API_KEYS"


async def test_a_gateway_gets_its_key_and_no_credentials(plaid, monkeypatch):
    """With a gateway key no credentials are sent, whatever the environment has."""
    monkeypatch.setenv("PLAID_CLIENT_ID", "of-the-environment")
    monkeypatch.setenv("PLAID_SECRET", "of-the-environment")
    async with RelayClient(gateway_key="the-gateways-key", base_url=plaid.url) as client:
        with pytest.raises(InvalidRequestError, match="client_id"):
            await client.relay.create([plaid.add_report()], "p")
    headers = plaid.requests[0].headers
    assert headers["authorization"] == "Bearer the-gateways-key"
    assert "of-the-environment" not in str(headers)
