"""The look-up of webhooks' keys: cached, shared, and bounded whatever an attacker sends."""

from __future__ import annotations

import asyncio
import collections
import gc
import inspect
import itertools
import json
import random
import time
import tracemalloc
import warnings

import pytest
from canaries import CREDENTIALS, SECRET, assert_error_is_clean, assert_no_canary
from processes import wait_until_async
from support import OWNER, QUICK
from webhook_signing import (
    BODY,
    HEADER,
    KEY_ID,
    NOW,
    claims_for,
    headers_of,
    jwk_of,
    token_of,
)

from plaid_relay_async import (
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConnectionLostError,
    Environment,
    InvalidRequestError,
    PlaidServerError,
    RelayClient,
    ResponseDecodeError,
    RetryPolicy,
)
from plaid_relay_async.client import Webhooks
from plaid_relay_async.simulator import Fault, Simulator, sign_webhook
from plaid_relay_async.webhooks import (
    AssetsProductReadyWebhook,
    RawBodyRequiredError,
    RefusalReason,
    StaleWebhookError,
    VerificationKey,
    WebhookDecodeError,
    WebhookKeyLookupError,
    WebhookRefusedError,
    verify,
)
from plaid_relay_async.webhooks.lookup import (
    BUDGET,
    BUDGET_PER_SECOND,
    KEY_SECONDS,
    REFUSAL_SECONDS,
    KeyCache,
)

KEY_PATH = "/webhook_verification_key/get"
ONE_ATTEMPT = RetryPolicy(attempts=1)
REPORT = {"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY", "asset_report_id": "canary-report-1"}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Endpoint:
    """An endpoint that has the keys that a test adds, and counts its requests."""

    def __init__(self):
        self.keys, self.requests, self.error = {}, [], None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, key_id):
        self.requests.append(key_id)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        async with (
            Simulator() as plaid,
            RelayClient(OWNER, base_url=plaid.url, retry=ONE_ATTEMPT) as client,
        ):
            # The simulator's own response to an unknown key.
            return self.keys.get(key_id) or (await client.webhook_verification_key.get(key_id)).key


@pytest.fixture
async def plaid():
    async with Simulator() as plaid:
        yield plaid


@pytest.fixture
async def client(plaid):
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client:
        yield client


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def endpoint():
    return Endpoint()


@pytest.fixture
def cache(endpoint, clock):
    return KeyCache(endpoint, clock=clock)


def forged(number, body=BODY):
    """Return the headers of a webhook with an unknown key ID."""
    return headers_of(token_of(HEADER | {"kid": f"forged-{number}"}, claims_for(body, iat=int(time.time()))))


async def refusal(client, body, headers):
    with pytest.raises(WebhookRefusedError) as caught:
        await client.webhooks.unwrap(body, headers)
    assert_error_is_clean(caught.value)
    return caught.value.reason


# ------------------------------------------------------------------------------------------ the client


async def test_a_webhook_is_verified_and_parsed(plaid, client):
    """One call looks up the key, verifies the webhook, and returns its event."""
    body = json.dumps(REPORT).encode()
    event = await client.webhooks.unwrap(body, sign_webhook(body))
    assert event == AssetsProductReadyWebhook(**REPORT)
    verified = await client.webhooks.verify(body, sign_webhook(body))
    assert verified.body == body
    assert plaid.counts == {KEY_PATH: 1}


async def test_a_forged_webhook_is_refused(plaid, client):
    """Neither a signature of another key nor another body is accepted."""
    body = json.dumps(REPORT).encode()
    headers = sign_webhook(body)
    assert await refusal(client, body + b" ", headers) is RefusalReason.OTHER_BODY
    kid = plaid.rotate_webhook_key()
    own = headers_of(token_of(HEADER | {"kid": kid}, claims_for(body, iat=int(time.time()))))
    assert await refusal(client, body, own) is RefusalReason.WRONG_SIGNATURE
    assert await refusal(client, body, forged(1)) is RefusalReason.UNKNOWN_KEY
    assert await refusal(client, body, {}) is RefusalReason.NO_HEADER
    assert await refusal(client, body, headers_of("canary-token")) is RefusalReason.MALFORMED_TOKEN


async def test_a_stale_webhook(client):
    """A webhook that was signed too long ago is stale, unless the caller's tolerance is longer."""
    headers = sign_webhook(b"{}", at=time.time() - 400)
    with pytest.raises(StaleWebhookError) as caught:
        await client.webhooks.unwrap(b"{}", headers)
    assert 400 <= caught.value.age < 1000
    assert (await client.webhooks.verify(b"{}", headers, tolerance=1000)).body == b"{}"
    ahead = sign_webhook(b"{}", at=time.time() + 600)
    assert await refusal(client, b"{}", ahead) is RefusalReason.ISSUED_IN_FUTURE
    assert (await client.webhooks.verify(b"{}", ahead, skew=1000)).body == b"{}"


async def test_mistakes_are_raised_immediately(plaid, client):
    """A body that was parsed, and an invalid setting, are errors of the call itself; nothing is sent."""
    with pytest.raises(RawBodyRequiredError):
        client.webhooks.unwrap({"webhook_type": "ASSETS"}, {})
    with pytest.raises(ConfigurationError, match="tolerance"):
        client.webhooks.verify(b"{}", {}, tolerance=-1)
    assert not plaid.counts


async def test_an_unwrap_that_is_cancelled_before_it_starts(client):
    """A task that is cancelled before its first step leaves no coroutine behind that was never awaited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = asyncio.create_task(client.webhooks.unwrap(b"{}", sign_webhook(b"{}")))
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is RuntimeWarning] == []


async def test_an_authentic_webhook_of_another_form(client):
    """An authentic webhook that isn't what Plaid's document says isn't refused: it has a JSON path."""
    with pytest.raises(WebhookDecodeError) as caught:
        await client.webhooks.unwrap(b"[]", sign_webhook(b"[]"))
    assert caught.value.body.reveal() == b"[]"


async def test_the_environment_is_that_of_the_client(plaid, client):
    """A client of one of Plaid's environments refuses webhooks of the other; one of a simulator knows none."""
    body = b'{"environment": "production"}'
    sandbox = Webhooks(
        client.webhook_verification_key, client.webhook_events, client.asset_report, Environment.SANDBOX
    )
    assert (await client.webhooks.verify(body, sign_webhook(body))).body == body
    with pytest.raises(WebhookRefusedError) as caught:
        await sandbox.verify(body, sign_webhook(body))
    assert caught.value.reason is RefusalReason.OTHER_ENVIRONMENT
    for each in Environment:
        assert RelayClient(OWNER, environment=each).webhooks._environment is each


async def test_keys_are_rotated(plaid, client):
    """A new key is looked up when a webhook names it, and the old one stays valid until it expires."""
    old, old_id = sign_webhook(b"{}"), plaid.world.webhook_keys.current_id
    await client.webhooks.verify(b"{}", old)
    plaid.rotate_webhook_key()
    await client.webhooks.verify(b"{}", plaid.sign_webhook(b"{}"))
    await client.webhooks.verify(b"{}", old)
    assert plaid.counts == {KEY_PATH: 2}
    plaid.expire_webhook_key(old_id)
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as later:
        assert await refusal(later, b"{}", old) is RefusalReason.EXPIRED_KEY
        assert await refusal(later, b"{}", old) is RefusalReason.EXPIRED_KEY
    assert plaid.counts == {KEY_PATH: 3}


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault(status=500), PlaidServerError),
        (Fault(close=True), ConnectionLostError),
        (Fault(status=200, body={"key": 7}), ResponseDecodeError),
    ],
)
async def test_a_failed_lookup_is_no_forgery(plaid, clean_logs, fault, cause):
    """If the key can't be looked up, the webhook isn't refused, and the next one is looked up again."""
    plaid.fail(fault)
    headers = sign_webhook(b"{}")
    async with RelayClient(CREDENTIALS, base_url=plaid.url, retry=ONE_ATTEMPT) as client:
        with pytest.raises(WebhookKeyLookupError) as caught:
            await client.webhooks.verify(b"{}", headers)
        assert type(caught.value.__cause__) is cause
        assert (caught.value.sent, caught.value.response_status) == (True, 503)
        assert_error_is_clean(caught.value)
        plaid.clear_faults()
        assert (await client.webhooks.verify(b"{}", headers)).body == b"{}"


async def test_wrong_credentials_are_no_forgery():
    """If Plaid rejects the client's own credentials, the webhook isn't refused."""
    async with (
        Simulator(clients={"owner": SECRET}) as plaid,
        RelayClient(OWNER, base_url=plaid.url) as client,
    ):
        with pytest.raises(WebhookKeyLookupError) as caught:
            await client.webhooks.verify(b"{}", sign_webhook(b"{}"))
    assert caught.value.__cause__.error_code == "INVALID_API_KEYS"


async def test_a_closed_client(client):
    """A closed client can't look up a key; the error says so."""
    await client.close()
    with pytest.raises(WebhookKeyLookupError) as caught:
        await client.webhooks.verify(b"{}", sign_webhook(b"{}"))
    assert isinstance(caught.value.__cause__, ClientClosedError)


async def test_concurrent_webhooks_share_a_lookup(plaid, client):
    """A hundred webhooks that name the same key at the same time cost one request."""
    plaid.fail(Fault(latency=0.05))
    bodies = [json.dumps({"n": n}).encode() for n in range(100)]
    await asyncio.gather(*(client.webhooks.verify(body, sign_webhook(body)) for body in bodies))
    assert plaid.counts == {KEY_PATH: 1}


async def check_flood(plaid, client, count):
    """Verify webhooks of three keys, a tenth of which are forged, and check how many requests this costs."""
    authentic = []
    for _ in range(3):
        plaid.rotate_webhook_key()
        authentic.append(plaid.sign_webhook(BODY))
        await client.webhooks.verify(BODY, authentic[-1])
    assert plaid.counts == {KEY_PATH: 3}
    results = {True: 0, RefusalReason.UNKNOWN_KEY: 0, WebhookKeyLookupError: 0}

    async def verify(number):
        headers = forged(number) if number % 10 == 0 else authentic[number % 3]
        try:
            await client.webhooks.verify(BODY, headers)
        except WebhookRefusedError as error:
            results[error.reason] += 1
        except WebhookKeyLookupError:
            results[WebhookKeyLookupError] += 1
        else:
            results[True] += 1

    start = time.monotonic()
    for first in range(0, count, 500):
        await asyncio.gather(*map(verify, range(first, min(first + 500, count))))
    allowed = BUDGET + (time.monotonic() - start) * BUDGET_PER_SECOND + 1
    assert results[True] == count - count // 10
    assert BUDGET <= results[RefusalReason.UNKNOWN_KEY] <= allowed
    assert results[RefusalReason.UNKNOWN_KEY] + results[WebhookKeyLookupError] == count // 10
    assert plaid.counts[KEY_PATH] == 3 + results[RefusalReason.UNKNOWN_KEY]
    assert len(client.webhooks._cache) == plaid.counts[KEY_PATH]


async def test_a_flood_of_forged_keys(plaid, client):
    """Forged key IDs cost a bounded number of requests, and authentic webhooks none."""
    await check_flood(plaid, client, 600)


@pytest.mark.slow
async def test_ten_thousand_webhooks(plaid, client):
    """10,000 webhooks, 1,000 of them forged, cost a request for each key and a bounded number; so is memory."""
    tracemalloc.start()
    try:
        await check_flood(plaid, client, 10_000)
        assert tracemalloc.get_traced_memory()[0] < 20_000_000
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------- the cache


async def test_a_key_is_looked_up_again_after_an_hour(endpoint, cache, clock):
    """A cached key is read again after an hour, because it may have expired meanwhile."""
    endpoint.keys["k"] = jwk_of(kid="k")
    first = await cache.get("k")
    clock.now = KEY_SECONDS - 1
    assert await cache.get("k") is first
    clock.now = KEY_SECONDS
    endpoint.keys["k"] = jwk_of(kid="k", expired_at=NOW)
    assert (await cache.get("k")).expired_at == NOW
    assert endpoint.requests == ["k", "k"]


async def test_a_key_expires_in_the_cache(endpoint, cache):
    """A cached key is refused from the time at which it expires, without another look-up."""
    endpoint.keys[KEY_ID] = jwk_of(expired_at=NOW)
    headers = headers_of(token_of(claims=claims_for(iat=NOW - 1)))
    assert verify(BODY, headers, keys=[await cache.get(KEY_ID)], now=NOW - 1).issued_at == NOW - 1
    with pytest.raises(WebhookRefusedError) as caught:
        verify(BODY, headers, keys=[await cache.get(KEY_ID)], now=NOW)
    assert caught.value.reason is RefusalReason.EXPIRED_KEY
    assert endpoint.requests == [KEY_ID]


async def test_an_unknown_key_is_looked_up_again_after_five_minutes(endpoint, cache, clock):
    """That there is no such key is cached, and not for long: Plaid may create it."""
    for now in (0, 1, REFUSAL_SECONDS - 1):
        clock.now = now
        with pytest.raises(WebhookRefusedError) as caught:
            await cache.get("k")
        assert caught.value.reason is RefusalReason.UNKNOWN_KEY
    assert endpoint.requests == ["k"]
    clock.now = REFUSAL_SECONDS
    endpoint.keys["k"] = jwk_of(kid="k")
    assert await cache.get("k") == VerificationKey.from_jwk(jwk_of(kid="k"))
    assert endpoint.requests == ["k", "k"]


@pytest.mark.parametrize(
    ("jwk", "reason"),
    [
        (jwk_of(kid="other"), RefusalReason.UNSUITABLE_KEY),
        (jwk_of(kid="k", crv="P-384"), RefusalReason.UNSUITABLE_KEY),
        (jwk_of(kid="k", x="AA"), RefusalReason.INVALID_POINT),
    ],
)
async def test_an_unsuitable_key_is_cached(endpoint, cache, jwk, reason):
    """A key with another ID, or one that can't verify a webhook, is refused, and not looked up each time."""
    endpoint.keys["k"] = jwk
    for _ in range(2):
        with pytest.raises(WebhookRefusedError) as caught:
            await cache.get("k")
        assert caught.value.reason is reason
    assert endpoint.requests == ["k"]


async def test_the_budget_for_unknown_keys(endpoint, cache, clock):
    """Twenty unknown keys are looked up at once, and then five a second; known ones cost nothing."""
    endpoint.keys["known"] = jwk_of(kid="known")
    await cache.get("known")
    for number in range(BUDGET):
        with pytest.raises(WebhookRefusedError):
            await cache.get(f"forged-{number}")
    with pytest.raises(WebhookKeyLookupError, match="too many") as caught:
        await cache.get("forged")
    assert (caught.value.__cause__, caught.value.sent) == (None, False)
    clock.now = 0.19
    with pytest.raises(WebhookKeyLookupError):
        await cache.get("forged")
    clock.now = 0.21
    with pytest.raises(WebhookRefusedError):
        await cache.get("forged")
    with pytest.raises(WebhookKeyLookupError):
        await cache.get("forged-again")
    clock.now = KEY_SECONDS - 1
    for number in range(BUDGET):
        with pytest.raises(WebhookRefusedError):
            await cache.get(f"later-{number}")
    with pytest.raises(WebhookKeyLookupError):
        await cache.get("forged")
    clock.now = KEY_SECONDS
    await cache.get("known")
    assert len(endpoint.requests) == 2 + 2 * BUDGET + 1


async def test_failed_lookups_of_a_known_key_are_bounded(endpoint, cache, clock):
    """If a cached key can't be read again, the ID of a real key can't become a flood of requests either."""
    endpoint.keys["known"] = jwk_of(kid="known")
    await cache.get("known")
    clock.now, endpoint.error = KEY_SECONDS, AuthenticationError("the secret was rotated")
    for _ in range(5 * BUDGET):
        with pytest.raises(WebhookKeyLookupError):
            await cache.get("known")
    assert len(endpoint.requests) == 1 + BUDGET
    clock.now, endpoint.error = KEY_SECONDS + 0.21, None
    assert (await cache.get("known")).key_id == "known"


async def test_real_keys_have_no_budget(endpoint, cache):
    """A look-up that finds a key doesn't count, so any number of real keys can be looked up."""
    for number in range(3 * BUDGET):
        endpoint.keys[f"k{number}"] = jwk_of(kid=f"k{number}")
        await cache.get(f"k{number}")
    for number in range(BUDGET):
        with pytest.raises(WebhookRefusedError):
            await cache.get(f"forged-{number}")
    with pytest.raises(WebhookKeyLookupError):
        await cache.get("forged")


async def test_memory_is_bounded_over_time(endpoint, cache, clock):
    """Refusals are dropped when they are stale, so a flood that lasts for hours needs no more memory."""
    endpoint.error = InvalidRequestError("no such key", error_code="INVALID_WEBHOOK_VERIFICATION_KEY_ID")
    results, sizes = collections.Counter(), []
    for number in range(10_000):
        clock.now += 0.1
        with pytest.raises((WebhookRefusedError, WebhookKeyLookupError)) as caught:
            await cache.get(f"forged-{number}")
        results[caught.type] += 1
        sizes.append(len(cache))
    looked_up = 1000 * BUDGET_PER_SECOND
    assert looked_up <= results[WebhookRefusedError] <= BUDGET + looked_up + 1
    assert max(sizes) <= BUDGET + REFUSAL_SECONDS * BUDGET_PER_SECOND + 1


async def test_a_real_key_during_a_flood(endpoint, cache, clock):
    """While a hundred forged IDs a second arrive, a real one is found after some of Plaid's deliveries."""
    endpoint.error = InvalidRequestError("no such key", error_code="INVALID_WEBHOOK_VERIFICATION_KEY_ID")
    unknown, endpoint.keys["real"], chance = endpoint.error, jwk_of(kid="real"), random.Random(7)
    deliveries = 0
    for number in itertools.count():
        clock.now += chance.expovariate(100)
        is_forged = number < 1000 or number % 50
        endpoint.error = unknown if is_forged else None
        deliveries += not is_forged
        try:
            await cache.get(f"forged-{number}" if is_forged else "real")
            break
        except (WebhookRefusedError, WebhookKeyLookupError):
            continue
    assert 1 < deliveries < 100


async def test_a_cancelled_waiter_cancels_no_other(endpoint, cache):
    """If the first of several waiters is cancelled, the others get the key, with one request."""
    endpoint.keys["k"] = jwk_of(kid="k")
    endpoint.gate.clear()
    waiters = [asyncio.create_task(cache.get("k")) for _ in range(3)]
    await wait_until_async(lambda: endpoint.requests)
    assert len(cache) == 1
    waiters[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]
    endpoint.gate.set()
    assert await waiters[1] is await waiters[2] is await cache.get("k")
    assert endpoint.requests == ["k"]


async def test_a_lookup_without_waiters_is_completed(endpoint, cache):
    """If all waiters are cancelled, the key is cached nevertheless; its failure is no lost exception."""
    endpoint.keys["k"] = jwk_of(kid="k")
    for error in (PlaidServerError("down"), None):
        endpoint.gate.clear()
        endpoint.error = error
        waiter = asyncio.create_task(cache.get("k"))
        await wait_until_async(lambda: cache._lookups and endpoint.requests)
        waiter.cancel()
        await asyncio.wait([waiter])
        endpoint.gate.set()
        await wait_until_async(lambda: not cache._lookups)
    assert (await cache.get("k")).key_id == "k"
    assert endpoint.requests == ["k", "k"]


async def test_waiters_share_a_failure(endpoint, cache):
    """All waiters of a failed look-up get the error, and it isn't cached."""
    endpoint.error = PlaidServerError("down", sent=True)
    results = await asyncio.gather(*(cache.get("k") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [WebhookKeyLookupError] * 3
    assert all(result.__cause__ is endpoint.error for result in results)
    assert len({id(result) for result in results}) == 3
    endpoint.error, endpoint.keys["k"] = None, jwk_of(kid="k")
    await cache.get("k")
    assert endpoint.requests == ["k", "k"]


async def test_an_unexpected_error_reaches_the_waiters(endpoint, cache):
    """An exception that isn't this package's is raised as it is, and the next look-up is a new one."""
    endpoint.error = KeyError("bug")
    for _ in range(2):
        with pytest.raises(KeyError, match="bug"):
            await cache.get("k")
    assert endpoint.requests == ["k", "k"]


async def test_no_canary_is_logged(plaid, clean_logs):
    """Neither a webhook nor its token appears in a log, an error or a repr."""
    body = BODY.replace(b"FULL", b"canary-full")
    async with RelayClient(CREDENTIALS, base_url=plaid.url, retry=QUICK) as client:
        event = await client.webhooks.unwrap(body, sign_webhook(body))
        assert event.report_type == "canary-full"
        with pytest.raises(WebhookRefusedError) as caught:
            await client.webhooks.unwrap(body, headers_of(token_of(HEADER | {"kid": "canary-kid"})))
        assert_no_canary(f"{caught.value} {caught.value!r} {vars(caught.value)}")
        assert_no_canary(f"{client.webhooks!r} {client.webhooks._cache!r}")


def test_the_client_has_the_defaults_of_the_function():
    """`tolerance` and `skew` have the same defaults, with or without a client."""
    for method in (Webhooks.unwrap, Webhooks.verify):
        for name in ("tolerance", "skew"):
            parameters = [inspect.signature(function).parameters[name] for function in (method, verify)]
            assert parameters[0].default == parameters[1].default
