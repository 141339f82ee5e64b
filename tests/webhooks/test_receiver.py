"""The receiver: what it stores, what it refuses, and what it says about that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from random import Random

import pytest
from canaries import SERVER_TEXT, assert_error_is_clean, assert_no_canary
from webhook_receiving import FaultyInbox, InboxError, ready, stored

from plaid_relay_async import ConfigurationError
from plaid_relay_async.simulator import Fault, sign_webhook
from plaid_relay_async.webhooks import (
    MemoryInbox,
    NotStoredReason,
    RawBodyRequiredError,
    RefusalReason,
    StaleWebhookError,
    WebhookError,
    WebhookKeyLookupError,
    WebhookNotStoredError,
    WebhookReceiver,
    WebhookRefusedError,
    WebhookRouter,
    WebhookState,
)

PAIR = "0123456789abcdef" * 2
BODY = ready()
JSON = ("content-type", "application/json")


@pytest.fixture
def receiver(client, inbox, reasons):
    return WebhookReceiver(client.webhooks, inbox, on_refused=reasons.append)


def reading(*chunks: bytes):
    """Return a function that returns the chunks of a body, and then its end."""
    iterator = iter(chunks)

    async def read_chunk() -> bytes:
        return next(iterator, b"")

    return read_chunk


async def respond(receiver, body=BODY, *, method="POST", path="/plaid", headers=None):
    pairs = sign_webhook(body) if headers is None else headers
    return await receiver.respond(method, path, [*dict(pairs).items()], reading(body))


async def test_a_webhook_is_stored_before_it_is_acknowledged(receiver, inbox, reasons):
    """`receive` returns when the webhook is in the inbox, with the pair ID of its path."""
    before = time.time()
    assert await receiver.receive(BODY, sign_webhook(BODY), f"/plaid/{PAIR}") is True
    (webhook,) = await stored(inbox)
    assert (webhook.body, webhook.pair, webhook.state) == (BODY, PAIR, WebhookState.PENDING)
    assert before - 1 <= webhook.sent_at <= time.time()
    assert reasons == []


async def test_a_duplicate_is_acknowledged(receiver, inbox):
    """A webhook that Plaid delivers again is acknowledged, and stored once."""
    assert await receiver.receive(BODY, sign_webhook(BODY), "/plaid")
    assert not await receiver.receive(BODY, sign_webhook(BODY, at=time.time() - 100), "/plaid")
    assert (await respond(receiver)).status == 200
    assert len(await stored(inbox)) == 1


async def test_headers_of_any_form(receiver, inbox):
    """Headers may be a mapping, or pairs, also of bytes and from a generator."""
    headers = sign_webhook(BODY)
    assert await receiver.receive(BODY, headers, "/")
    assert not await receiver.receive(BODY, ((k, v) for k, v in headers.items()), "/")
    assert not await receiver.receive(BODY, [(k.encode(), v.encode()) for k, v in headers.items()], "/")


async def test_a_forgery_is_refused(receiver, inbox, reasons, clean_logs):
    """A forgery isn't stored. Its reason is in the log and passed to the callback, and isn't in the response."""
    with pytest.raises(WebhookRefusedError) as caught:
        await receiver.receive(BODY, sign_webhook(b"another body"), f"/plaid/{PAIR}")
    assert caught.value.reason is RefusalReason.OTHER_BODY
    assert_error_is_clean(caught.value)
    response = await respond(receiver, headers={})
    assert (response.status, response.headers) == (400, {})
    assert await stored(inbox) == []
    assert reasons == ["other_body", "no_header"]
    records = [record for record in clean_logs.records if record.name == "plaid_relay_async.webhooks"]
    assert [record.levelno for record in records] == [logging.WARNING] * 2
    assert records[0].getMessage() == "a webhook wasn't stored: other_body"
    assert PAIR not in clean_logs.text


async def test_a_failed_lookup_makes_plaid_send_it_again(receiver, plaid, reasons, clean_logs):
    """If the key can't be looked up, the status is 503."""
    plaid.fail(Fault(status=500))
    response = await respond(receiver)
    assert response.status == 503
    assert reasons == ["key_lookup_failed"]
    with pytest.raises(WebhookKeyLookupError):
        await receiver.receive(BODY, sign_webhook(BODY), "/plaid")


async def test_the_log_of_a_failed_lookup_quotes_nothing(receiver, plaid, clean_logs):
    """Plaid's text may quote the ID of the key, which the sender has chosen; the log has only the error code."""
    error = {"error_type": "INVALID_REQUEST", "error_code": "INVALID_FIELD", "error_message": "canary-key"}
    plaid.fail(Fault(status=400, body=error))
    assert (await respond(receiver)).status == 503
    records = [record for record in clean_logs.records if record.name == "plaid_relay_async.webhooks"]
    assert [each.getMessage() for each in records] == [
        "a webhook wasn't stored: key_lookup_failed (INVALID_FIELD)"
    ]


async def test_a_failing_inbox_makes_plaid_send_it_again(receiver, inbox, reasons, clean_logs):
    """If the inbox fails, the status is 503, and the text of its error stays out of the log."""
    inbox.failures["add"] = 2
    with pytest.raises(WebhookNotStoredError) as caught:
        await receiver.receive(BODY, sign_webhook(BODY), "/plaid")
    assert caught.value.reason is NotStoredReason.INBOX_FAILED
    assert caught.value.response_status == 503
    assert isinstance(caught.value.__cause__, InboxError)
    assert (await respond(receiver)).status == 503
    assert "a webhook wasn't stored: inbox_failed (InboxError)" in clean_logs.text
    assert (await respond(receiver)).status == 200
    assert reasons == ["inbox_failed"] * 2


async def test_a_slow_inbox_makes_plaid_send_it_again(client, inbox, reasons):
    """If storing takes longer than the limit, the status is 503, and the webhook isn't stored later."""
    receiver = WebhookReceiver(client.webhooks, inbox, time_limit=0.2, on_refused=reasons.append)
    inbox.delays["add"] = 60.0
    assert (await respond(receiver)).status == 503
    with pytest.raises(WebhookNotStoredError, match="too_slow"):
        await receiver.receive(BODY, sign_webhook(BODY), "/plaid")
    assert reasons == ["too_slow"] * 2
    assert await stored(inbox) == []


async def test_backpressure(client, inbox, reasons):
    """More webhooks than `max_pending` are refused with 429 and Retry-After; forgeries take no place."""
    receiver = WebhookReceiver(client.webhooks, inbox, max_pending=2, on_refused=reasons.append)
    inbox.delays["add"] = 0.2
    bodies = [ready(str(number)) for number in range(5)]
    assert (await respond(receiver, headers=sign_webhook(b"forged"))).status == 400
    responses = await asyncio.gather(*(respond(receiver, body) for body in bodies))
    assert sorted(each.status for each in responses) == [200, 200, 429, 429, 429]
    assert {each.headers.get("retry-after") for each in responses if each.status == 429} == {"10"}
    assert reasons == ["other_body", *["too_many"] * 3]
    assert (await respond(receiver, bodies[-1])).status == 200


async def test_a_cancelled_request_frees_its_place(client, inbox):
    """A request that is cancelled while it waits for the inbox leaves nothing behind."""
    receiver = WebhookReceiver(client.webhooks, inbox, max_pending=1)
    inbox.delays["add"] = 60.0
    task = asyncio.create_task(respond(receiver))
    while not inbox.calls["add"]:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del inbox.delays["add"]
    assert (await respond(receiver)).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "post"])
async def test_another_method(receiver, method, reasons, clean_logs):
    """Another method than POST is answered with 405 and Allow."""
    response = await respond(receiver, method=method)
    assert (response.status, response.headers, response.close) == (405, {"allow": "POST"}, False)
    assert reasons == ["wrong_method"]
    assert [r.levelno for r in clean_logs.records if r.name == "plaid_relay_async.webhooks"] == [logging.INFO]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        (None, 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
async def test_the_content_type(receiver, content_type, status):
    """Another type than JSON is refused with 415; it may be missing."""
    headers = sign_webhook(BODY)
    del headers["Content-Type"]
    if content_type is not None:
        headers["content-TYPE"] = content_type
    assert (await respond(receiver, headers=headers)).status == status
    if status == 415:
        with pytest.raises(WebhookNotStoredError, match="wrong_content_type"):
            await receiver.receive(BODY, headers, "/plaid")


async def test_a_long_body_is_not_read_to_its_end(client, inbox, reasons):
    """A body that is longer than the limit is refused with 413, and no more of it is read."""
    receiver = WebhookReceiver(client.webhooks, inbox, max_body_bytes=1000, on_refused=reasons.append)
    read = 0

    async def read_chunk() -> bytes:
        nonlocal read
        read += 1
        return b" " * 300

    response = await receiver.respond("POST", "/", [JSON], read_chunk)
    assert (response.status, response.headers, response.close) == (413, {}, True)
    assert read == 4
    with pytest.raises(WebhookNotStoredError, match="body_too_large"):
        await receiver.receive(b" " * 1001, [JSON], "/")
    assert reasons == ["body_too_large"] * 2
    body = ready(padding="x" * (1000 - len(ready(padding=""))))
    assert len(body) == 1000
    assert (await respond(receiver, body)).status == 200


async def test_a_slow_body_ends_at_the_time_limit(client, inbox, reasons):
    """A body that doesn't arrive within the limit, however many pieces it has, is refused with 408."""
    receiver = WebhookReceiver(client.webhooks, inbox, time_limit=0.2, on_refused=reasons.append)

    async def read_chunk() -> bytes:
        await asyncio.sleep(0.05)
        return b" "

    response = await receiver.respond("POST", "/", [JSON], read_chunk)
    assert (response.status, response.headers, response.close) == (408, {}, True)
    assert reasons == ["body_too_slow"]


async def test_a_parsed_body_is_an_error_of_the_application(receiver):
    """A str or a dict raises the error that names the usual cause."""
    with pytest.raises(RawBodyRequiredError):
        await receiver.receive(BODY.decode(), sign_webhook(BODY), "/plaid")


# ------------------------------------------------------------------------------------ stale webhooks


def stale(seconds: float) -> dict[str, str]:
    return sign_webhook(BODY, at=time.time() - seconds)


async def test_a_stale_webhook_is_stored_durably(client):
    """A durable inbox accepts what Plaid may still send again; it has a replay already."""
    inbox = FaultyInbox(durable=True)
    receiver = WebhookReceiver(client.webhooks, inbox)
    assert await receiver.receive(BODY, stale(86_300), "/plaid") is True
    assert await receiver.receive(BODY, stale(400), "/plaid") is False
    with pytest.raises(StaleWebhookError):
        await receiver.receive(BODY, stale(86_500), "/plaid")
    assert len(await stored(inbox)) == 1


async def test_a_stale_webhook_is_refused_otherwise(client, receiver, inbox, reasons):
    """Without a durable inbox, or with `accept_stale=False`, a stale webhook is refused with 400."""
    assert (await respond(receiver, headers=stale(400))).status == 400
    strict = WebhookReceiver(client.webhooks, FaultyInbox(durable=True), accept_stale=False)
    assert (await respond(strict, headers=stale(400))).status == 400
    assert (await respond(receiver, headers=stale(200))).status == 200
    assert reasons == ["stale"]


async def test_stale_webhooks_need_a_durable_inbox(client):
    """A receiver that would accept replays after a restart can't be created."""
    with pytest.raises(ConfigurationError, match="needs a durable inbox"):
        WebhookReceiver(client.webhooks, MemoryInbox(), accept_stale=True)


# --------------------------------------------------------------------------------- faults at random


@pytest.mark.parametrize("seed", range(3))
async def test_faults_at_random(client, seed):
    """Whatever fails, each webhook that was acknowledged is done or a dead letter in the end, and is one."""
    rng, inbox, router, calls = Random(seed), FaultyInbox(lease_seconds=0.5), WebhookRouter(), Counter()

    @router.default
    async def handle(delivery):
        calls[delivery.idempotency_key] += 1
        await asyncio.sleep(rng.random() * 0.01)
        if rng.random() < 0.3:
            raise LookupError

    settings = {"backoff": 0.001, "max_backoff": 0.01, "max_attempts": 5, "concurrency": 3, "drain": 0.001}
    receivers = [WebhookReceiver(client.webhooks, inbox, router, **settings) for _ in range(3)]

    async def deliver(body):
        """Deliver a webhook until it is acknowledged, as Plaid does, to a receiver that may be closing."""
        while (await respond(rng.choice(receivers), body)).status != 200:
            await asyncio.sleep(0.001)

    bodies = [ready(str(number)) for number in range(60)]
    deliveries = [body for body in bodies for _ in range(rng.choice((1, 1, 2, 3)))]
    rng.shuffle(deliveries)
    for name in ("add", "lease", "complete", "retry"):
        inbox.failures[name] = rng.randrange(4)
    async with receivers[0]:
        async with receivers[1]:  # it is left in the middle, and cancels its handlers
            await asyncio.gather(*map(deliver, deliveries[:40]))
        async with receivers[2]:
            await asyncio.gather(*map(deliver, deliveries[40:]))
            while any(each.state is WebhookState.PENDING for each in await stored(inbox)):
                await asyncio.sleep(0.01)
    webhooks = await stored(inbox)
    assert sorted(each.body for each in webhooks) == sorted(bodies)
    assert all(calls[each.id] >= 1 for each in webhooks)


# ----------------------------------------------------------------------------------------- the rest


async def test_a_failing_callback_changes_nothing(client, inbox, caplog):
    """The class of an error of `on_refused` is logged, and the response is the same."""

    def fail(reason: str) -> None:
        raise RuntimeError(f"no metric {reason}")

    receiver = WebhookReceiver(client.webhooks, inbox, on_refused=fail)
    assert (await respond(receiver, headers={})).status == 400
    assert "on_refused raised RuntimeError" in caplog.text


async def test_a_failing_callback_does_not_show_the_cause_of_a_refusal(plaid, client, inbox, caplog):
    """Plaid's error about a key, which may quote the sender of the webhook, isn't in the log."""
    plaid.fail(
        Fault(
            path="/webhook_verification_key/get",
            status=400,
            body={"error_code": "INVALID_INPUT", "error_message": SERVER_TEXT},
        )
    )
    receiver = WebhookReceiver(client.webhooks, inbox, on_refused=lambda reason: 1 / 0)
    assert (await respond(receiver)).status >= 400
    assert "on_refused raised ZeroDivisionError" in caplog.text
    assert SERVER_TEXT not in caplog.text


async def test_a_closed_receiver_refuses(client, inbox):
    """A receiver that was closed refuses with 503; one that was never entered receives."""
    receiver = WebhookReceiver(client.webhooks, inbox)
    assert (await respond(receiver)).status == 200
    async with receiver as entered:
        assert entered is receiver
        assert (await respond(receiver)).status == 200
    assert (await respond(receiver)).status == 503
    with pytest.raises(WebhookNotStoredError, match="closing"):
        await receiver.receive(BODY, sign_webhook(BODY), "/plaid")
    with pytest.raises(ConfigurationError, match="only once"):
        async with receiver:
            pass


@pytest.mark.parametrize(
    "setting",
    [
        {"max_body_bytes": 0},
        {"max_pending": 0},
        {"time_limit": 0},
        {"time_limit": float("nan")},
        {"concurrency": 0},
        {"max_attempts": 0},
        {"backoff": -1},
        {"max_backoff": float("inf")},
        {"handler_timeout": 0},
        {"drain": -1},
    ],
)
async def test_invalid_settings(client, inbox, setting):
    """A setting out of its range is an error that names it."""
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        WebhookReceiver(client.webhooks, inbox, WebhookRouter(), **setting)


def test_every_reason_is_explained():
    """Each reason has an explanation, and a status for which Plaid sends the webhook again."""
    for reason in NotStoredReason:
        error = WebhookNotStoredError.of(reason)
        assert isinstance(error, WebhookError)
        assert reason.explanation in str(error)
        assert 400 <= error.response_status < 600
    assert_no_canary(str(error))
