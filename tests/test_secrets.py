"""Canaries: a secret and tokens that must not show anywhere except where the caller requests them."""

from __future__ import annotations

import asyncio
import traceback

import pytest
from canaries import CREDENTIALS, REPORT_TOKEN, SECRET, assert_error_is_clean, assert_no_canary
from support import CREATE, GET, QUICK, REMOVE, session_of

from plaid_relay_async import (
    BatchStoppedError,
    ConfigurationError,
    Credentials,
    PlaidRelayError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    RequestValidationError,
    RetryPolicy,
    Timeouts,
    models,
)
from plaid_relay_async.redaction import strip_traceback
from plaid_relay_async.simulator import Fault, Simulator

ECHO = {
    "error_message": f"{SECRET} and {REPORT_TOKEN} and credit-relay-sandbox-x",
    "error_code": "X",
    "error_type": "Y",
}


@pytest.mark.parametrize("where", ["headers", "body"])
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 400, "body": ECHO},
        {"status": 500, "body": ECHO, "when": "after"},
        {"status": 500, "body": f"<html>{SECRET} {REPORT_TOKEN}</html>"},
        {"status": 429, "body": ECHO},
        {"status": 302, "headers": {"Location": f"http://127.0.0.1:9/{SECRET}"}},
        {"status": 200, "body": [REPORT_TOKEN, SECRET], "when": "after"},
        {"status": 200, "body": {"relay_token": ["credit-relay-sandbox-x"], "removed": REPORT_TOKEN}},
        {"close": True, "when": "after"},
        {"truncate": 10},
        {"stall": 30, "when": "after"},
    ],
    ids=lambda fault: "-".join(map(str, [*fault][:2])),
)
@pytest.mark.parametrize("path", [CREATE, GET, REMOVE])
async def test_no_error_shows_a_secret(clean_logs, where, fault, path):
    """Text, repr, attributes, traceback and locals are clean, even if a server quotes the request."""
    timeouts = Timeouts(read=0.05, slow_read=0.05, total=2)
    async with (
        Simulator(clients={"owner": SECRET}, reports=[REPORT_TOKEN]) as plaid,
        RelayClient(
            CREDENTIALS,
            base_url=plaid.url,
            credentials_in=where,
            timeouts=timeouts,
            retry=RetryPolicy(attempts=2, backoff=0.001),
        ) as client,
    ):
        created = await client.relay.create([REPORT_TOKEN], "owner")
        plaid.fail(Fault(path=path, **fault))
        call = {
            CREATE: lambda: client.relay.create([REPORT_TOKEN], "p"),
            GET: lambda: client.relay.get(created.relay_token),
            REMOVE: lambda: client.relay.remove(created.relay_token),
        }[path]
        with pytest.raises(PlaidRelayError) as caught:
            await call()
        assert_error_is_clean(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 400, "body": ECHO},
        {"status": 200, "body": f"%PDF-1.4 {REPORT_TOKEN} {SECRET}"},
        {"status": 200, "body": {"report": [REPORT_TOKEN], "request_id": SECRET}},
        {"status": 200, "body": {"report": {"items": [{"item_id": [REPORT_TOKEN] * 9_000}]}}},
        {"truncate": 10},
        {"stall": 30, "when": "after"},
    ],
    ids=lambda fault: "-".join(map(str, [*fault][:2])),
)
async def test_neither_polling_nor_downloading_shows_a_secret(clean_logs, fault, tmp_path):
    """Threads, files and loops of attempts keep secrets as a plain call does."""
    timeouts = Timeouts(read=0.05, slow_read=0.05, total=2)
    async with (
        Simulator(clients={"owner": SECRET}, reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url, timeouts=timeouts, retry=QUICK) as client,
    ):
        created = await client.relay.create([REPORT_TOKEN], "owner")
        plaid.fail(Fault(**fault))
        for call in (
            lambda: client.relay.wait_until_ready(created.relay_token, timeout=0.4),
            lambda: client.relay.download_pdf(created.relay_token, tmp_path / "x.pdf"),
            lambda: client.asset_report.wait_until_ready(REPORT_TOKEN, timeout=0.4),
            lambda: client.asset_report.download_pdf(REPORT_TOKEN, tmp_path / "x.pdf"),
        ):
            with pytest.raises(PlaidRelayError) as caught:
                await call()
            assert_error_is_clean(caught.value)


async def test_no_error_of_an_unsent_call_shows_a_secret(clean_logs):
    """The errors of a connection, a limiter and a timeout are just as clean."""

    class Broken:
        async def acquire(self, endpoint: str) -> None:
            raise ZeroDivisionError

    for more in ({}, {"rate_limiter": Broken()}, {"proxy": f"http://user:{SECRET}@127.0.0.1:9"}):
        async with RelayClient(CREDENTIALS, base_url="http://127.0.0.1:9", retry=QUICK, **more) as client:
            with pytest.raises(PlaidRelayError) as caught:
                await client.relay.create([REPORT_TOKEN], "p")
            assert_error_is_clean(caught.value)


async def test_a_cancelled_call_shows_no_secret(clean_logs):
    """The traceback of a CancelledError contains the package's frames as well."""
    async with (
        Simulator(reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as client,
    ):
        plaid.fail(Fault(path=CREATE, stall=30))
        for call in (
            lambda: client.relay.create([REPORT_TOKEN], "p"),
            lambda: client.relay.create_many(RelayCreateRequest.fan_out([REPORT_TOKEN], ["p"])),
        ):
            task = asyncio.ensure_future(call())
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert_error_is_clean(caught.value)


@pytest.mark.parametrize("operation", ["get", "create"])
async def test_an_error_does_not_show_the_result_of_its_task(clean_logs, operation):
    """A task that returns a token after it has caught an error: the error's traceback doesn't show the task."""
    errors: list[PlaidRelayError] = []

    async def read_twice() -> str:
        async with RelayClient(CREDENTIALS, base_url="http://127.0.0.1:9", retry=QUICK) as client:
            call = client.relay.get("t") if operation == "get" else client.relay.create(["t"], "p")
            try:
                await call
            except PlaidRelayError as error:
                errors.append(error)
        return SECRET

    assert await asyncio.create_task(read_twice()) == SECRET
    assert_error_is_clean(errors[0])


@pytest.mark.parametrize(
    "mistake",
    [
        lambda client: client.relay.create([REPORT_TOKEN], ""),
        lambda client: client.relay.create([REPORT_TOKEN, REPORT_TOKEN + "2"], "p"),
        lambda client: client.relay.create(REPORT_TOKEN, "p"),
        lambda client: client.relay.create([REPORT_TOKEN], "p", webhook="nowhere"),
        lambda client: client.relay.get(f" {REPORT_TOKEN}"),
        lambda client: client.relay.refresh(REPORT_TOKEN, webhook="nowhere"),
        lambda client: client.asset_report.create([REPORT_TOKEN], -1),
        lambda client: client.item.exchange_public_token(f"{REPORT_TOKEN}\n"),
        lambda client: client.item.remove(REPORT_TOKEN, reason_note=""),
        lambda client: client.asset_report.get(REPORT_TOKEN, days_to_include=800),
        lambda client: client.asset_report.wait_until_ready(REPORT_TOKEN, days_to_include=800),
        lambda client: client.asset_report.download_pdf(REPORT_TOKEN, "x.pdf", days_to_include=800),
        lambda client: client.asset_report.refresh(REPORT_TOKEN, webhook="nowhere"),
        lambda client: client.asset_report.filter(REPORT_TOKEN, []),
        lambda client: client.sandbox.fire_webhook(REPORT_TOKEN, ""),
        lambda client: client.webhook_events.list(cursor=f"{REPORT_TOKEN}{' ' * 512}"),
        lambda client: client.webhook_events.list(item_ids=[f" {REPORT_TOKEN}"]),
        lambda client: RelayCreateRequest([REPORT_TOKEN], ""),
        lambda client: models.AssetReportCreateRequest([REPORT_TOKEN], 800),
        lambda client: list(RelayCreateRequest.fan_out([REPORT_TOKEN], [""])),
        lambda client: RelayCreateRequest.fan_out([REPORT_TOKEN], [], webhook="nowhere"),
    ],
)
def test_invalid_input_is_rejected_without_showing_it(mistake):
    """A request check shows the name of the field, and neither its value nor other values."""
    with pytest.raises(RequestValidationError) as caught:
        mistake(RelayClient(CREDENTIALS))
    assert_error_is_clean(caught.value)


def test_an_invalid_option_is_rejected_without_showing_a_token():
    """The traceback has no frame with the tokens of the batch."""
    for options in ({"concurency": 2}, {"concurrency": 0}):
        with pytest.raises(ConfigurationError) as caught:
            RelayClient(CREDENTIALS).relay.get_many([REPORT_TOKEN], **options)
        assert_error_is_clean(caught.value)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: Credentials("owner", f"{SECRET}\n"),
        lambda: Credentials("", SECRET),
        lambda: RelayClient(gateway_key=f"{SECRET} "),
        lambda: RelayClient(CREDENTIALS, gateway_key=SECRET),
        lambda: RelayClient(CREDENTIALS, base_url=f"https://user:{SECRET}@plaid.example"),
        lambda: RelayClient(CREDENTIALS, base_url=f"ftp://{SECRET}"),
    ],
)
def test_invalid_settings_are_rejected_without_showing_them(mistake):
    """The same holds for a client's arguments."""
    with pytest.raises(ConfigurationError) as caught:
        mistake()
    assert_error_is_clean(caught.value)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: RelayClient(CREDENTIALS).relay.remove(REPORT_TOKEN, colour="red"),
        lambda: RelayClient(gateway_key=SECRET, colour="red"),
        lambda: Credentials("owner", SECRET, "colour"),
        lambda: RelayCreateRequest([REPORT_TOKEN], "p", colour="red"),
    ],
)
def test_a_misspelt_argument_shows_none_of_the_others(mistake):
    """Python's own TypeError is raised from frames that contain no secret."""
    with pytest.raises(TypeError) as caught:
        mistake()
    assert_error_is_clean(caught.value)


async def test_no_repr_shows_a_secret(clean_logs):
    """Clients, requests, responses, outcomes, results and settings can be printed."""
    async with (
        Simulator(reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url) as client,
        RelayClient(gateway_key=SECRET, base_url=plaid.url) as gateway_client,
    ):
        plaid.fail(Fault(path=CREATE, secondary_client_id="lost", close=True))
        batch = client.relay.create_many(RelayCreateRequest.fan_out([REPORT_TOKEN], ["a", "lost", "a"]))
        result = await batch
        created = await client.relay.create([REPORT_TOKEN], "owner")
        shared = await client.relay.get(created.relay_token)
        objects = [
            CREDENTIALS,
            client,
            gateway_client,
            client.relay,
            batch,
            result,
            created,
            shared,
            plaid,
            *plaid.requests,
        ]
        objects += [*result.created, *result.failed, *result.unknown, vars(client), vars(session_of(client))]
        public = await client.sandbox.create_public_token()
        item = await client.item.exchange_public_token(public.public_token)
        objects += [public, item, await client.asset_report.create([item.access_token], 5)]
        assert_no_canary("\n".join(map(repr, objects)))
        assert result.created[0].relay_token == plaid.ledger[0]["relay_token"]


async def test_no_batch_of_tokens_shows_one(clean_logs):
    """Tokens as input: invalid, unknown and lost ones are clean, and so is the result."""
    async with (
        Simulator(reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url) as client,
    ):
        created = [(await client.relay.create([REPORT_TOKEN], "owner")).relay_token for _ in range(2)]
        plaid.fail(Fault(status=500, body=ECHO, when="after"))
        for many in (client.relay.remove_many, client.relay.refresh_many, client.relay.get_many):
            batch = many([*created, f"{created[0]} {SECRET}"], retry=RetryPolicy(attempts=1), concurrency=1)
            with pytest.raises(BatchStoppedError) as caught:
                await batch
            assert_error_is_clean(caught.value)
            outcomes = [*batch.result.failed, *batch.result.unknown]
            assert len(outcomes) == 2
            for outcome in outcomes:
                assert_error_is_clean(outcome.error)
            assert_no_canary("\n".join(map(repr, [batch, batch.result, *outcomes])))
            with pytest.raises(PlaidRelayError) as caught:
                many(created[0])
            assert_error_is_clean(caught.value)


async def test_logs_of_a_successful_run_are_clean(clean_logs):
    """With every logger at DEBUG and asyncio in debug mode, a successful run logs no secret."""
    async with (
        Simulator(reports=[REPORT_TOKEN]) as plaid,
        RelayClient(CREDENTIALS, base_url=plaid.url) as client,
    ):
        plaid.fail(Fault(path=CREATE, status=429, headers={"Retry-After": "0"}, times=2))
        await client.relay.create_many(RelayCreateRequest.fan_out([REPORT_TOKEN], map(str, range(20))))


def test_strip_traceback_passes_other_exceptions():
    """A decorated function returns its value, and doesn't change other exceptions."""

    @strip_traceback
    def divide(a: int, b: int) -> float:
        if b == 1:
            raise RateLimitError("x")
        return a / b

    assert divide(4, b=2) == 2
    with pytest.raises(ZeroDivisionError):
        divide(1, 0)
    with pytest.raises(RateLimitError) as caught:
        divide(1, 1)
    assert "divide" not in "".join(traceback.format_tb(caught.value.__traceback__)).replace(
        "divide(1, 1)", ""
    )
