"""The action that each error response suggests: each test sees the error, takes the action, and succeeds."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from gateway_setup import UPSTREAM_CREDENTIALS, running_gateway, wait_for_keys
from raw_http import CREATE, CREATE_BODY, REMOVE, build_request
from support import OWNER, PARTNER, issued_tokens
from yarl import URL

from plaid_relay_async import (
    AuthenticationError,
    OutcomeUnknownError,
    PlaidServerError,
    RateLimitError,
    RelayClient,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.gateway import Gateway, KeyFile, new_key
from plaid_relay_async.gateway.error_responses import ERROR_REASONS
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.simulator import Fault, Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REPORT = "assets-sandbox-1111"
ONCE = RetryPolicy(attempts=1)


@pytest.fixture
async def plaid() -> AsyncIterator[Simulator]:
    async with Simulator(reports=[REPORT], generation_delay=0.0) as simulator:
        yield simulator


@contextlib.asynccontextmanager
async def client_and_gateway(keys, upstream, key, **options) -> AsyncIterator[tuple[RelayClient, Gateway]]:
    """Yield a client of a gateway that makes one attempt for each call, and the gateway."""
    settings = {"upstream": upstream, "credentials": {"default": OWNER}} | options
    async with (
        Gateway(keys, **settings) as gateway,
        RelayClient(gateway_key=key, base_url=gateway.url, retry=ONCE) as client,
    ):
        yield client, gateway


# ----------------------------------------------------------------------------------------- correct the request


def large_body():
    return CREATE_BODY | {"x": "x" * 2**20}


CORRECTABLE = {
    "UNAUTHORIZED_KEY": lambda keys: build_request(key=keys["lender"][:-1]),
    "UNAUTHORIZED_OPERATION": lambda keys: build_request(key=keys["remover"]),
    "PARTNER_NOT_ALLOWED": lambda keys: build_request(
        CREATE, CREATE_BODY | {"secondary_client_id": "p3"}, key=keys["bound"]
    ),
    "UNAUTHORIZED_CREDENTIALS": lambda keys: build_request(key=keys["lost"]),
    "HOST_NOT_ALLOWED": lambda keys: build_request(key=keys["lender"], host="gateway.example"),
    "ORIGIN_NOT_ALLOWED": lambda keys: build_request(
        CREATE, CREATE_BODY, "Origin: https://page.example", key=keys["lender"]
    ),
    "NOT_FOUND": lambda keys: build_request(f"{CREATE}?x=1", key=keys["lender"]),
    "METHOD_NOT_ALLOWED": lambda keys: build_request(key=keys["lender"], method="GET"),
    "INVALID_HTTP": lambda keys: build_request(key=keys["lender"]).replace(b"HTTP/1.1", b"HTTP/one"),
    "INVALID_HEADERS": lambda keys: build_request(CREATE, CREATE_BODY, "Expect: another", key=keys["lender"]),
    "INVALID_BODY": lambda keys: build_request(CREATE, b"[]", key=keys["lender"]),
    "AMBIGUOUS_MEMBER": lambda keys: build_request(
        CREATE, {"Secondary_Client_Id": "p2"} | CREATE_BODY, key=keys["lender"]
    ),
    "UNSUPPORTED_MEDIA_TYPE": lambda keys: build_request(key=keys["lender"], content_type="text/plain"),
    "BODY_TOO_LARGE": lambda keys: build_request(CREATE, large_body(), key=keys["lender"]),
    "BODY_TIMEOUT": lambda keys: build_request(key=keys["lender"])[:-5],
}
TEMPORARY = {
    "RATE_LIMIT",
    "BUSY",
    "UPSTREAM_UNREACHABLE",
    "UPSTREAM_LOST",
    "UPSTREAM_ENCODING",
    "UPSTREAM_TIMEOUT",
}
WITHOUT_ACTION = {"CALLER_GONE", "INTERNAL_ERROR"}  # only in the audit log; an unknown outcome


@pytest.mark.parametrize("code", CORRECTABLE)
async def test_a_corrected_request_succeeds(code):
    """A rejected request succeeds once it is changed as its `suggested_action` says."""
    async with running_gateway(caller_timeout=1.0) as setup:
        error_response = await setup.exchange_one(CORRECTABLE[code](setup.keys))
        assert error_response.error_code == code
        assert error_response.json["suggested_action"]
        setup.assert_upstream_requests()
        assert (await setup.exchange_one(build_request(key=setup.keys["lender"]))).status == 200


def test_each_reason_has_its_test():
    """Each reason is tested here, unless a caller can't do anything about it."""
    assert {*CORRECTABLE, *TEMPORARY, *WITHOUT_ACTION} == {reason.code for reason in ERROR_REASONS}


# ------------------------------------------------------------------------------------- ask the operator


@pytest.mark.may_block
@pytest.mark.parametrize(
    ("bound", "code"),
    [
        (None, "UNAUTHORIZED_KEY"),
        ({"operations": [REMOVE]}, "UNAUTHORIZED_OPERATION"),
        ({"partners": ["another"]}, "PARTNER_NOT_ALLOWED"),
    ],
)
async def test_another_key_for_the_operation_succeeds(tmp_path, plaid, bound, code):
    """A running gateway accepts a key that is added for the operation and the partner."""
    keys = KeyFile(tmp_path / "keys.json")
    first_key = new_key("ann")[1] if bound is None else keys.add("ann", **bound)
    async with client_and_gateway(keys, plaid.url, first_key) as (client, gateway):
        with pytest.raises(AuthenticationError) as caught:
            await client.relay.create([REPORT], "p")
        assert caught.value.error_code == code
        assert "key" in caught.value.advice
        added = keys.add("ann-2", operations=[CREATE], partners=["p"])
        await wait_for_keys(gateway, *(key.name for key in keys.read()))
        async with RelayClient(gateway_key=added, base_url=gateway.url, retry=ONCE) as again:
            created = await again.relay.create([REPORT], "p")
    assert issued_tokens(plaid) == [created.relay_token]


async def test_a_missing_set_of_credentials_is_added(plaid):
    """The same key works once the gateway is started with the set that the key is bound to."""
    record, key = new_key("ann", credentials="acme-bank")
    async with client_and_gateway([record], plaid.url, key) as (client, _):
        with pytest.raises(AuthenticationError, match="add that set of credentials"):
            await client.relay.create([REPORT], "p")
    async with client_and_gateway([record], plaid.url, key, credentials={"acme-bank": OWNER}) as (client, _):
        assert await client.relay.create([REPORT], "p")


async def test_a_missing_host_name_is_allowed():
    """Once the gateway is started with that host name, the same request succeeds."""
    record, key = new_key("ann")
    request_bytes = build_request(key=key, host="gateway.example")
    async with running_gateway() as setup:
        error_response = await setup.exchange_one(request_bytes)
        assert (error_response.error_code, "--name" in error_response.json["suggested_action"]) == (
            "HOST_NOT_ALLOWED",
            True,
        )
        options = {
            "upstream": setup.upstream.url,
            "credentials": UPSTREAM_CREDENTIALS,
            "allowed_hosts": ["gateway.example"],
        }
        async with Gateway([record], **options) as gateway:
            first, setup.gateway = setup.gateway, gateway
            assert (await setup.exchange_one(request_bytes)).status == 200
            setup.gateway = first


@pytest.mark.may_block
async def test_open_permissions_are_corrected(tmp_path, plaid, caplog):
    """A running gateway admits callers again after the chmod that its log suggests."""
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("ann")
    async with client_and_gateway(keys, plaid.url, key) as (client, gateway):
        keys.path.chmod(0o644)
        await wait_for_keys(gateway)
        with pytest.raises(AuthenticationError):
            await client.relay.create([REPORT], "p")
        assert "chmod 600" in caplog.text
        keys.path.chmod(0o600)
        await wait_for_keys(gateway, "ann")
        assert await client.relay.create([REPORT], "p")


@pytest.mark.may_block
async def test_a_key_is_rotated(tmp_path, plaid):
    """A second key is added and the first one revoked, and no call fails."""
    keys = KeyFile(tmp_path / "keys.json")
    old = keys.add("nightly-job")
    async with client_and_gateway(keys, plaid.url, old) as (client, gateway):
        new = keys.add("nightly-job-2")
        await wait_for_keys(gateway, "nightly-job", "nightly-job-2")
        await client.relay.create([REPORT], "p")
        async with RelayClient(gateway_key=new, base_url=gateway.url, retry=ONCE) as again:
            await again.relay.create([REPORT], "q")
            keys.revoke("nightly-job")
            await wait_for_keys(gateway, "nightly-job-2")
            await again.relay.create([REPORT], "r")
        with pytest.raises(AuthenticationError):
            await client.relay.create([REPORT], "s")
    assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["p", "q", "r"]


async def test_plaids_secret_is_rotated():
    """The gateway is restarted with the new secret; the callers' keys stay the same."""
    record, key = new_key("ann")
    async with Simulator(clients={"owner": "new-secret"}, reports=[REPORT]) as plaid:
        old, new = OWNER, type(OWNER)("owner", "new-secret")
        async with client_and_gateway([record], plaid.url, key, credentials={"default": old}) as (client, _):
            with pytest.raises(AuthenticationError, match="INVALID_API_KEYS"):
                await client.relay.create([REPORT], "p")
        async with client_and_gateway([record], plaid.url, key, credentials={"default": new}) as (client, _):
            assert await client.relay.create([REPORT], "p")


# ------------------------------------------------------------------------------------------------ wait, and repeat


async def test_a_rate_limit_passes(plaid):
    """After `Retry-After` the same call succeeds."""
    record, key = new_key("ann", rate=RateLimit(1, 3.0))
    async with client_and_gateway([record], plaid.url, key) as (client, _):
        await client.relay.create([REPORT], "p")
        with pytest.raises(RateLimitError, match="Wait as long as Retry-After says") as caught:
            await client.relay.create([REPORT], "q", timeout=0.5)
        assert caught.value.error_code == "RATE_LIMIT"
        await asyncio.sleep(caught.value.retry_after)
        await client.relay.create([REPORT], "q")
    assert len(plaid.ledger) == 2


async def test_a_busy_gateway_recovers(plaid):
    """After `Retry-After`, and once a call in flight has ended, the same call succeeds."""
    record, key = new_key("ann")
    plaid.fail(Fault(path=CREATE, latency=1.5, times=1))
    async with client_and_gateway([record], plaid.url, key, upstream_connections=1, caller_timeout=0.3) as (
        client,
        _,
    ):
        first = asyncio.ensure_future(client.relay.create([REPORT], "p"))
        while not plaid.counts[CREATE]:
            await asyncio.sleep(0.01)
        with pytest.raises(RateLimitError, match="Wait as long as Retry-After says") as caught:
            await client.relay.create([REPORT], "q")
        assert (caught.value.error_code, caught.value.retry_after) == ("BUSY", 1)
        await asyncio.gather(first, asyncio.sleep(caught.value.retry_after))
        await client.relay.create([REPORT], "q")
    assert len(plaid.ledger) == 2


async def test_an_unreachable_upstream_recovers():
    """Nothing was sent to Plaid: once Plaid can be reached, the same creation succeeds and creates one token."""
    record, key = new_key("ann")
    async with Simulator() as closed:
        address = closed.url
    async with client_and_gateway([record], address, key) as (client, _):
        with pytest.raises(PlaidServerError, match="safe to try again") as caught:
            await client.relay.create([REPORT], "p")
        assert caught.value.error_code == "UPSTREAM_UNREACHABLE"
        async with Simulator(port=URL(address).port, reports=[REPORT]) as plaid:
            await asyncio.sleep(caught.value.retry_after or 0)
            assert await client.relay.create([REPORT], "p", timeout=30)
            assert len(plaid.ledger) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(close=True), "UPSTREAM_LOST"),
        (Fault(headers={"Content-Encoding": "unknown"}, status=200, body={}), "UPSTREAM_ENCODING"),
        (Fault(stall=5), "UPSTREAM_TIMEOUT"),
    ],
    ids=["lost", "encoding", "timeout"],
)
async def test_a_response_that_the_gateway_lost(plaid, fault, code):
    """A read is repeated and succeeds; a creation is unknown, and can be created again deliberately."""
    record, key = new_key("ann", credentials="partner")
    owner, owners_key = new_key("ben")
    short = Timeouts(read=0.3, slow_read=0.3)
    sets = {"default": OWNER, "partner": PARTNER}
    async with (
        client_and_gateway([record, owner], plaid.url, key, credentials=sets, timeouts=short) as (
            partner,
            gateway,
        ),
        RelayClient(gateway_key=owners_key, base_url=gateway.url, retry=ONCE) as lender,
    ):
        created = await lender.relay.create([REPORT], PARTNER.client_id)
        plaid.fail(fault)
        with pytest.raises(PlaidServerError, match="Repeat a read") as caught:
            await partner.relay.get(created.relay_token)
        assert caught.value.error_code == code
        with pytest.raises(OutcomeUnknownError) as unknown:
            await lender.relay.create([REPORT], "q")
        assert unknown.value.error_code == code
        plaid.clear_faults()
        assert (await partner.relay.get(created.relay_token)).report
        assert await lender.relay.create([REPORT], "q")
