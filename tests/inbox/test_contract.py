"""What every inbox does: in memory, in SQLite, in PostgreSQL, and behind PgBouncer."""

from __future__ import annotations

import asyncio
import json

import pytest
from attrs import evolve
from inbox_support import PAIR, about_report, add_many, incoming, lease_one, stored

from plaid_relay_async.webhooks import Inbox, IncomingWebhook, WebhookState
from plaid_relay_async.webhooks.inbox import (
    DEDUPLICATION_SECONDS,
    content_digest,
    read_pair_id,
    read_report_id,
)

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own

WINDOW = DEDUPLICATION_SECONDS


async def test_an_inbox_implements_the_protocol(inbox):
    """It has all methods and attributes of the protocol."""
    assert isinstance(inbox, Inbox)
    assert inbox.lease_seconds == 60.0


async def test_a_stored_webhook(inbox):
    """A new webhook is pending, with everything that was passed; the same one isn't stored again."""
    webhook = incoming(pair=PAIR, message_id="m1")
    assert await inbox.add(webhook)
    assert not await inbox.add(webhook)
    (found,) = await stored(inbox)
    assert (found.body, found.sent_at, found.pair, found.message_id) == (webhook.body, 1_000.0, PAIR, "m1")
    assert (found.state, found.attempts, found.error) == (WebhookState.PENDING, 0, None)
    assert found.received_at > 1.7e9
    shown = repr(found) + repr(webhook) + repr(await inbox.lease(1))
    assert "content" not in shown
    assert PAIR not in shown


async def test_whether_a_webhook_is_the_same(inbox):
    """Content, pair and time decide, as long as only one webhook has a message ID."""
    cases = [
        ({}, False),
        ({"pair": PAIR}, True),
        ({"sent_at": 1_000.0 + WINDOW}, False),
        ({"sent_at": 1_001.0 + WINDOW}, True),
        ({"sent_at": 1_000.0 - WINDOW}, False),
        ({"sent_at": 999.0 - WINDOW}, True),
        ({"message_id": "m"}, False),
    ]
    for number, (changes, is_new) in enumerate(cases):
        first = incoming(f"content {number}")
        assert await inbox.add(first)
        assert (changes, await inbox.add(evolve(first, **changes))) == (changes, is_new)
    reordered = b'{ "content":"content 0",\n"webhook_type":"X"}'
    assert not await inbox.add(IncomingWebhook(reordered, 1_000.0))
    assert len(await stored(inbox)) == len(cases) + sum(is_new for _, is_new in cases)


async def test_message_ids(inbox):
    """The same ID is always the same webhook; two IDs are two webhooks; an ID that was unknown is stored."""
    assert await inbox.add(incoming())
    assert not await inbox.add(incoming(sent_at=1_100.0, message_id="m1"))
    assert await inbox.add(incoming(sent_at=1_200.0, message_id="m2"))
    assert not await inbox.add(incoming("other", sent_at=9e8, message_id="m1"))
    assert not await inbox.add(incoming(sent_at=1_100.0))
    assert [(each.message_id, each.sent_at) for each in await stored(inbox)] == [("m1", 1e3), ("m2", 1.2e3)]


async def test_the_nearest_webhook_gets_the_message_id(inbox):
    """Of two webhooks that may be the same as a third one, the one that was sent next to it is."""
    for sent_at in (0.0, 2 * WINDOW - 10):
        assert await inbox.add(incoming(sent_at=sent_at))
    assert not await inbox.add(incoming(sent_at=WINDOW - 1, message_id="m"))
    assert [each.message_id for each in await stored(inbox)] == [None, "m"]


async def test_webhooks_of_one_moment_are_compared_with_each_other(inbox):
    """Of equal webhooks that are added concurrently, one is new, and a message ID is stored."""
    webhooks = [incoming()] * 40 + [incoming(message_id="m")] * 40 + [incoming("b", message_id="m")] * 40
    assert sum(await add_many(inbox, webhooks)) == 1
    assert [each.message_id for each in await stored(inbox)] == ["m"]


async def test_any_body_and_any_id_are_stored(inbox):
    """A body needn't be JSON or text, and an ID may have any character of JSON."""
    bodies = [b"", b"[1]", b"\xff\x00\xed\xa0\x80", b'{"a": NaN}', b"[" * 100_000]
    for number, body in enumerate(bodies):
        strange = f"{number}\x00\ud800'\""
        assert await inbox.add(IncomingWebhook(body, 1.0, None, strange))
        assert not await inbox.add(IncomingWebhook(body, 1.0, None, strange))
        lease = await lease_one(inbox)
        assert (lease.webhook.body, lease.webhook.message_id) == (body, strange)
        await inbox.store_cursor(strange)
        assert await inbox.load_cursor() == strange


# --------------------------------------------------------------------------------------------- leases


async def test_leases_are_in_order_and_exclusive(inbox):
    """Those that have been due for longest are leased first, and none of them twice."""
    for content in "abc":
        await inbox.add(incoming(content))
    first, second = await inbox.lease(2)
    assert [json.loads(each.webhook.body)["content"] for each in (first, second)] == ["a", "b"]
    assert await inbox.retry(first, delay=0.0, error="E")
    third, fourth = await inbox.lease(5)
    assert [json.loads(each.webhook.body)["content"] for each in (third, fourth)] == ["c", "a"]
    assert [each.webhook.attempts for each in (first, second, third, fourth)] == [1, 1, 1, 2]
    assert fourth.webhook.id == first.webhook.id
    assert fourth.fencing_token > first.fencing_token
    assert await inbox.lease(5) == []


async def test_no_lease_is_requested(inbox):
    """With a limit of zero or less, nothing is leased."""
    await inbox.add(incoming())
    assert [await inbox.lease(limit) for limit in (0, -1)] == [[], []]


async def test_a_lease_is_renewed(tested, inbox):
    """A renewed lease expires later."""
    await inbox.add(incoming())
    lease = await lease_one(inbox)
    for _ in range(3):
        await tested.advance(50)
        assert await inbox.lease(1) == []
        assert await inbox.renew(lease)
    assert await inbox.complete(lease)
    assert not await inbox.renew(lease)


async def test_an_expired_lease_is_followed_by_another(tested, inbox):
    """The webhook is leased again, and the first lease can't change it any more."""
    await inbox.add(incoming())
    first = await lease_one(inbox)
    await tested.advance(61)
    second = await lease_one(inbox)
    assert (second.webhook.id, second.webhook.attempts) == (first.webhook.id, 2)
    assert not await inbox.renew(first)
    assert not await inbox.complete(first)
    assert not await inbox.retry(first, delay=0.0, error="E")
    assert not await inbox.bury(first, error="E")
    assert await inbox.lease(1) == []
    assert await inbox.complete(second)
    assert not await inbox.complete(first)
    ((state, error),) = [(each.state, each.error) for each in await stored(inbox)]
    assert (state, error) == (WebhookState.DONE, None)


async def test_an_expired_lease_without_a_follower_is_valid(tested, inbox):
    """A handler that was slow and wasn't replaced may complete its webhook."""
    await inbox.add(incoming())
    lease = await lease_one(inbox)
    await tested.advance(3600)
    assert await inbox.complete(lease)


async def test_done_is_final(tested, inbox):
    """Completing again changes nothing, and no other call changes a webhook that is done."""
    await inbox.add(incoming())
    lease = await lease_one(inbox)
    assert await inbox.complete(lease)
    assert await inbox.complete(lease)
    assert not await inbox.retry(lease, delay=0.0, error="E")
    assert not await inbox.bury(lease, error="E")
    assert not await inbox.redeliver(lease.webhook.id)
    await tested.advance(7200)
    assert await inbox.lease(1) == []
    assert not await inbox.add(incoming())
    assert [each.state for each in await stored(inbox)] == [WebhookState.DONE]


async def test_a_retry_waits_for_its_delay(tested, inbox):
    """The webhook is leased after the delay, and has the error; the first lease has ended."""
    await inbox.add(incoming())
    lease = await lease_one(inbox)
    assert await inbox.retry(lease, delay=100.0, error="ValueError")
    assert await inbox.retry(lease, delay=9e9, error="ValueError")  # a repeated call changes nothing
    assert not await inbox.complete(lease)
    await tested.advance(90)
    assert await inbox.lease(1) == []
    await tested.advance(20)
    again = await lease_one(inbox)
    assert (again.webhook.attempts, again.webhook.error) == (2, "ValueError")
    assert not await inbox.retry(lease, delay=0.0, error="E")


async def test_a_dead_letter_is_redelivered(tested, inbox):
    """A dead letter isn't leased before it is redelivered; its attempts then start again."""
    await inbox.add(incoming())
    lease = await lease_one(inbox)
    assert await inbox.bury(lease, error="KeyError")
    assert await inbox.bury(lease, error="KeyError")
    await tested.advance(1e7)
    assert await inbox.lease(1) == []
    (dead,) = await stored(inbox, WebhookState.DEAD)
    assert (dead.error, dead.attempts, dead.body) == ("KeyError", 1, incoming().body)
    assert await inbox.redeliver(dead.id)
    assert not await inbox.redeliver(dead.id)
    assert not await inbox.redeliver("unknown")
    assert not await inbox.bury(lease, error="KeyError")
    again = await lease_one(inbox)
    assert (again.webhook.id, again.webhook.attempts, again.webhook.error) == (dead.id, 1, "KeyError")
    assert await inbox.complete(again)


async def test_webhooks_are_listed_by_state(inbox):
    """More webhooks than one page are listed, oldest first, all or those in a state."""
    await add_many(inbox, [incoming(f"{number}", float(number)) for number in range(250)])
    for lease in await inbox.lease(120):
        await inbox.complete(lease)
    assert len(await stored(inbox)) == 250
    assert [each.sent_at for each in await stored(inbox, WebhookState.DONE)] == list(range(120))
    assert [each.sent_at for each in await stored(inbox, WebhookState.PENDING)] == list(range(120, 250))
    assert await stored(inbox, WebhookState.DEAD) == []


async def test_the_cursor(inbox):
    """The cursor is stored, replaced and removed."""
    assert await inbox.load_cursor() is None
    for cursor in ("one", "two", None):
        await inbox.store_cursor(cursor)
        assert await inbox.load_cursor() == cursor


# ---------------------------------------------------------------------------------------------- waits


async def test_waiting_ends_with_a_webhook_that_is_due(inbox):
    """The wait ends immediately if a webhook is due, and otherwise with the timeout."""
    await inbox.wait_until_due(0.01)
    await inbox.add(incoming())
    await inbox.wait_until_due(600)
    await inbox.lease(1)
    await inbox.wait_until_due(0.01)
    await inbox.wait_until_due(0)
    assert await inbox.lease(1) == []


async def test_waiting_is_ended_by_each_change(inbox):
    """A new webhook, a retry whose delay ends, and a redelivery end the wait."""
    await inbox.wait_until_due(0.01)
    waiting = asyncio.create_task(inbox.wait_until_due(600))
    await asyncio.sleep(0.05)
    await inbox.add(incoming())
    await waiting
    await inbox.retry(await lease_one(inbox), delay=0.3, error="E")
    assert await inbox.lease(1) == []
    await inbox.wait_until_due(600)
    lease = await lease_one(inbox)
    await inbox.bury(lease, error="E")
    waiting = asyncio.create_task(inbox.wait_until_due(600))
    await asyncio.sleep(0.05)
    await inbox.redeliver(lease.webhook.id)
    await waiting
    assert len(await inbox.lease(1)) == 1


@pytest.mark.parametrize("code", ["PRODUCT_READY", "ERROR"])
async def test_waiting_for_a_report(inbox, code):
    """The wait ends when a webhook about the report arrives; later waits end immediately."""
    await inbox.add(about_report("other", code))
    waiting = asyncio.create_task(inbox.wait_for_report("r1"))
    await asyncio.sleep(0.05)
    await inbox.add(about_report("r1", "UNKNOWN"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await inbox.add(about_report("r1", code))
    await waiting
    for lease in await inbox.lease(5):
        await inbox.complete(lease)
    await inbox.wait_for_report("r1")
    assert len(await stored(inbox, WebhookState.DONE)) == 3


# ------------------------------------------------------------------------------------------ functions


@pytest.mark.parametrize(
    ("url", "pair"),
    [
        (f"https://lender.example/relay/{PAIR}", PAIR),
        (f"/relay/{PAIR}/?x=1#y", PAIR),
        (f"/relay/{PAIR}0", None),
        (f"/{PAIR}/relay", None),
        ("", None),
    ],
)
def test_the_pair_in_a_url(url, pair):
    """The pair ID is the last segment of the path."""
    assert read_pair_id(url) == pair


def test_the_digest_of_a_content():
    """It depends on the values of an object, on the bytes of anything else, and on the pair."""
    digests = {content_digest(body, pair) for body in (b"{}", b"{ }", b"[]", b"[ ]") for pair in (None, PAIR)}
    assert len(digests) == 6


@pytest.mark.parametrize("body", [b"", b"[]", b'{"webhook_type": "ASSETS"}', about_report(7).body])
def test_a_body_without_a_report(body):
    """A body without a report's ID, or with another value in its place, is about no report."""
    assert read_report_id(body) is None
