"""The credentials of an attempt: where they come from, how long that may take, and where they are sent."""

from __future__ import annotations

import asyncio
import time

import pytest
from support import CREATE, OWNER, QUICK
from virtual_clock import run_virtually

from plaid_relay_async import (
    AuthenticationError,
    ConfigurationError,
    Credentials,
    InvalidRequestError,
    NotSentError,
    RelayClient,
)
from plaid_relay_async.simulator import Fault, Simulator


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
