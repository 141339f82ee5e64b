"""The list of the webhooks that Plaid has sent: its pages, its cursor, its arguments and its errors."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from attrs import evolve
from canaries import assert_no_canary
from support import OWNER, QUICK
from webhook_events_support import LIST, UNAVAILABLE, event_of, listing, page_of

from plaid_relay_async import (
    CursorExpiredError,
    InvalidRequestError,
    RelayClient,
    RequestValidationError,
    ResponseDecodeError,
    codec,
    from_json,
    models,
    structure,
    to_json,
    unstructure,
)
from plaid_relay_async.simulator import Fault, Simulator

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


async def fired_webhooks(plaid, client, *codes):
    """Make a simulator send webhooks of an Item."""
    options = models.SandboxPublicTokenCreateOptions(webhook="https://lender.example/plaid")
    public = await client.sandbox.create_public_token(options=options)
    token = (await client.item.exchange_public_token(public.public_token)).access_token
    for code in codes:
        await client.sandbox.fire_webhook(token, code)


# ------------------------------------------------------------------------------------------------- pages


async def test_webhooks_are_listed_page_by_page(plaid, client):
    """Each webhook is yielded once, oldest first, and each request continues at the cursor of the previous one."""
    await fired_webhooks(plaid, client, *["LOGIN_REPAIRED", "ERROR", "USER_PERMISSION_REVOKED"] * 2)
    sent = client.webhook_events.list(count=4)
    assert sent.cursor is None
    webhooks = [webhook async for webhook in sent]
    assert [webhook.webhook_code for webhook in webhooks] == [
        *["LOGIN_REPAIRED", "ERROR", "USER_PERMISSION_REVOKED"] * 2
    ]
    assert len({webhook.webhook_message_id for webhook in webhooks}) == 6
    assert webhooks[0].payload["webhook_code"] == "LOGIN_REPAIRED"
    assert webhooks[0].sent_time.tzinfo is not None
    assert plaid.counts[LIST] == 2
    assert sent.cursor is not None


async def test_a_later_loop_yields_what_was_sent_since(plaid, client):
    """A second loop continues at the cursor, and so does a list that gets the cursor as its argument."""
    await fired_webhooks(plaid, client, "ERROR")
    sent = client.webhook_events.list()
    assert [webhook.webhook_code async for webhook in sent] == ["ERROR"]
    assert [webhook.webhook_code async for webhook in sent] == []
    cursor = sent.cursor
    await fired_webhooks(plaid, client, "LOGIN_REPAIRED")
    assert [webhook.webhook_code async for webhook in sent] == ["LOGIN_REPAIRED"]
    other = client.webhook_events.list(cursor=cursor)
    assert [webhook.webhook_code async for webhook in other] == ["LOGIN_REPAIRED"]


async def test_a_page_can_be_awaited(plaid, client):
    """`await` returns one page, and the cursor stays, so that a loop yields the page again."""
    await fired_webhooks(plaid, client, "ERROR", "LOGIN_REPAIRED")
    sent = client.webhook_events.list(count=1)
    page = await sent
    assert ([webhook.webhook_code for webhook in page.webhook_events], page.has_more) == (["ERROR"], True)
    assert sent.cursor is None
    assert [webhook.webhook_code async for webhook in sent] == ["ERROR", "LOGIN_REPAIRED"]
    assert page.next_cursor != sent.cursor


async def test_the_cursor_follows_the_pages_that_were_read_completely():
    """While the webhooks of a page are processed, the cursor is still before the page."""
    pages = (
        page_of(event_of(1), event_of(2), cursor="after-2", has_more=True),
        page_of(cursor="after-3", has_more=True),
        page_of(event_of(4), cursor="after-4"),
    )
    async with listing(*pages) as (client, requests):
        sent = client.webhook_events.list(cursor="start")
        cursors = [(webhook.webhook_message_id, sent.cursor) async for webhook in sent]
    assert cursors == [("message-1", "start"), ("message-2", "start"), ("message-4", "after-3")]
    assert sent.cursor == "after-4"
    assert requests == [{"cursor": each} for each in ("start", "after-2", "after-3")]


async def test_a_failed_page_can_be_read_again():
    """After an error, the next loop continues with the page that wasn't read."""
    webhooks = []
    pages = (
        page_of(event_of(1), cursor="after-1", has_more=True),
        UNAVAILABLE,
        page_of(event_of(2), cursor="after-2"),
    )
    async with listing(*pages) as (client, requests):
        sent = client.webhook_events.list(count=1)
        with pytest.raises(InvalidRequestError):
            async for webhook in sent:
                webhooks.append(webhook)
        webhooks += [webhook async for webhook in sent]
    assert [webhook.webhook_message_id for webhook in webhooks] == ["message-1", "message-2"]
    assert requests == [{"count": 1}, *[{"cursor": "after-1", "count": 1}] * 2]


@pytest.mark.parametrize("cursor", ["", "here"])
async def test_pages_without_an_end_are_an_error(cursor):
    """A page that says that another one follows, at the same cursor, ends the loop after its webhooks."""
    webhooks = []
    async with listing(page_of(event_of(1), cursor=cursor, has_more=True)) as (client, _):
        with pytest.raises(ResponseDecodeError) as caught:
            async for webhook in client.webhook_events.list(cursor="here"):
                webhooks.append(webhook)
    assert (len(webhooks), caught.value.path, caught.value.request_id) == (1, "$.next_cursor", "r")


@pytest.mark.parametrize("before", [None, "here"])
async def test_an_empty_cursor_is_no_position(before):
    """The cursor stays as it was if Plaid returns an empty one, which could not be sent."""
    async with listing(page_of(cursor="")) as (client, _):
        sent = client.webhook_events.list(cursor=before)
        assert [webhook async for webhook in sent] == []
    assert sent.cursor == before


async def test_a_request_is_repeated(plaid, client):
    """The list is a read, so a lost response is requested again."""
    await fired_webhooks(plaid, client, "ERROR")
    plaid.fail(Fault(path=LIST, when="after", close=True, times=1))
    assert len([webhook async for webhook in client.webhook_events.list()]) == 1
    assert plaid.counts[LIST] == 2


# --------------------------------------------------------------------------------------------- arguments


async def test_all_arguments_are_sent():
    """Plaid gets the filters with each page, and the start only with the first one."""
    pages = (page_of(cursor="next", has_more=True), page_of(cursor="last"))
    async with listing(*pages) as (client, requests):
        sent = client.webhook_events.list(
            start_time=NOW.astimezone(timezone(timedelta(hours=2))),
            webhook_types=["ASSETS"],
            webhook_codes={"PRODUCT_READY"},
            item_ids=(item_id for item_id in ["item-1", "item-2"]),
            delivery_statuses=(models.WebhookDeliveryStatus.FAILED,),
        )
        assert [webhook async for webhook in sent] == []
    common = {
        "webhook_types": ["ASSETS"],
        "webhook_codes": ["PRODUCT_READY"],
        "item_ids": ["item-1", "item-2"],
        "delivery_statuses": ["FAILED"],
    }
    assert requests == [
        {"start_time": "2026-11-30T14:00:00+02:00", **common},
        {"cursor": "next", **common},
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be a whole number from 1 to 100"),
        ({"count": 101}, "count must be a whole number from 1 to 100"),
        ({"cursor": ""}, "cursor is empty"),
        ({"cursor": "x" * 513}, "cursor has more than 512 characters"),
        ({"start_time": datetime(2026, 11, 30)}, "start_time has no time zone"),  # noqa: DTZ001  # on purpose
        ({"start_time": date(2026, 11, 30)}, "start_time must be a datetime, not date"),
        ({"webhook_types": "ASSETS"}, "webhook_types must be a list of strings"),
        ({"webhook_codes": "ERROR"}, "webhook_codes must be a list of strings"),
        ({"item_ids": []}, "item_ids is empty"),
        ({"delivery_statuses": ["FAILED", ""]}, r"delivery_statuses\[1\] is empty"),
    ],
)
async def test_an_invalid_argument_is_rejected_before_anything_is_sent(plaid, client, arguments, message):
    """An invalid argument is rejected by `list` itself, with the name of the field."""
    with pytest.raises(RequestValidationError, match=message):
        client.webhook_events.list(**arguments)
    assert not plaid.requests


# ---------------------------------------------------------------------------------------------- the records


def test_unknown_fields_and_values_survive():
    """Fields and delivery statuses that Plaid adds later are kept, and so is each number of a payload."""
    event = event_of(
        delivery_status="POSTPONED",
        region="us",
        payload={"a": [1.10, 5, {"b": None}], "webhook_type": "X", "list": [[True]]},
    )
    body = json.dumps(
        {"webhook_events": [event], "has_more": False, "next_cursor": "c", "request_id": "r", "more": 1}
    ).replace("1.1,", "1.10,")
    response = from_json(body, models.WebhookEventsListResponse)
    [webhook] = response.webhook_events
    assert (webhook.delivery_status, webhook.additional_properties) == ("POSTPONED", {"region": "us"})
    assert str(webhook.payload["a"][0]) == "1.10"
    assert type(webhook.payload["a"][1]) is int
    assert response.additional_properties == {"more": 1}
    assert from_json(to_json(response), models.WebhookEventsListResponse) == response
    assert b'"a": [1.10, 5, {"b": null}]' in to_json(response)
    assert structure(unstructure(response), models.WebhookEventsListResponse) == response
    assert hash(response) == hash(evolve(response))


@pytest.mark.parametrize("payload", [None, [], "payload", 5])
def test_a_payload_that_is_no_object_is_an_error(payload):
    """The error has the place, and doesn't quote the payload."""
    body = json.dumps(event_of(payload=payload))
    with pytest.raises(ResponseDecodeError, match="expected an object") as caught:
        from_json(body, models.SentWebhook)
    assert caught.value.path == "$.payload"


def test_null_fields_are_read_and_written():
    """A webhook without an Item, an attempt and a response has `None` there, and is written with nulls."""
    event = event_of(last_http_status_code=None, last_attempt_time=None, attempt_count=0)
    webhook = from_json(json.dumps(event), models.SentWebhook)
    assert (webhook.item_id, webhook.last_http_status_code, webhook.last_attempt_time) == (None, None, None)
    assert json.loads(to_json(webhook)) == event | {"sent_time": "2026-11-30T12:00:00.125000Z"}


def test_no_repr_shows_the_content_of_a_webhook():
    """The repr of a webhook has neither the payload nor the URL, which contains the ID of a pair."""
    page = json.dumps(
        {"webhook_events": [event_of()], "has_more": False, "next_cursor": "cursor-1", "request_id": "r"}
    )
    response = from_json(page, models.WebhookEventsListResponse)
    assert_no_canary(repr(response))
    assert "message-1" in repr(response)
    assert "cursor-1" in repr(response)


# --------------------------------------------------------------------------------------------------- errors


async def test_an_expired_cursor_has_a_class_of_its_own():
    """A cursor that is older than 7 days is a CursorExpiredError, whose advice is to read without it."""
    now = 0.0
    async with (
        Simulator(clock=lambda: now) as plaid,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client,
    ):
        sent = client.webhook_events.list()
        assert [webhook async for webhook in sent] == []
        now = 8 * 86_400.0
        with pytest.raises(CursorExpiredError, match="without the cursor") as caught:
            await sent
    assert (caught.value.error_code, caught.value.attempts) == ("WEBHOOK_EVENTS_CURSOR_EXPIRED", 1)


async def test_a_start_that_is_too_early_says_what_is_possible(client):
    """The advice of the error names the argument and the 7 days."""
    with pytest.raises(InvalidRequestError, match="Pass a later start_time") as caught:
        await client.webhook_events.list(start_time=datetime.now(UTC) - timedelta(days=8))
    assert caught.value.error_code == "WEBHOOK_EVENTS_START_TIME_OUT_OF_RANGE"


def test_the_operation_is_a_read():
    """The list may be requested again, and its pages are short."""
    endpoint = codec.WEBHOOK_EVENTS_LIST
    assert (endpoint.path, endpoint.idempotency) == (LIST, codec.Idempotency.SAFE)
    assert (endpoint.issues, endpoint.slow, endpoint.returns_report) == (None, False, False)
