"""The list of the webhooks that were sent, and its pages."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from plaid_relay_async.simulator.simulated_time import SimulatedTime
from plaid_relay_async.simulator.webhook_log import WebhookLog

LIST = "/beta/webhook_events/list"
FIRE = "/sandbox/item/fire_webhook"
HOOK = "https://lender.example/plaid"
DAY = 86_400


@pytest.fixture
async def access_token(api):
    """An Item with all products and a webhook URL outside this machine."""
    return await api.access_token(products=("assets", "transactions"), options={"webhook": HOOK})


@pytest.fixture
def fire(api, access_token):
    """Return a function that fires a webhook of an Item."""

    async def fire(code="LOGIN_REPAIRED", token=access_token):
        return (await api(FIRE, {"access_token": token, "webhook_code": code})).json["webhook_fired"]

    return fire


@pytest.fixture
def codes(api):
    """Return a function that lists the codes of the webhooks that match a request."""

    async def codes(**request):
        return [event["webhook_code"] for event in (await api(LIST, request)).json["webhook_events"]]

    return codes


async def test_an_event(api, fire):
    """A webhook is listed with Plaid's fields."""
    await fire()
    response = (await api(LIST)).json
    assert response.keys() == {"webhook_events", "has_more", "next_cursor", "request_id"}
    [event] = response["webhook_events"]
    assert len(event.pop("webhook_message_id")) == 36
    assert event["item_id"] == event["payload"]["item_id"]
    sent_at = datetime.fromisoformat(event.pop("sent_time"))
    assert abs(datetime.now(UTC) - sent_at) < timedelta(minutes=10)
    assert event["payload"]["webhook_type"] == event["webhook_type"] == "ITEM"
    assert event["payload"]["webhook_code"] == event["webhook_code"] == "LOGIN_REPAIRED"
    assert event["destination_url"] == HOOK


async def test_the_list_is_stable(api, fire):
    """An event stays the same from one request to the next."""
    await fire()
    first, second = [(await api(LIST)).json["webhook_events"] for _ in range(2)]
    assert first == second


async def test_the_webhooks_of_another_client(api, fire):
    """A client's list has only its own webhooks."""
    await fire()
    assert (await api(LIST, client="other")).json["webhook_events"] == []


async def test_transactions_are_not_listed(plaid, fire, codes):
    """The list lacks webhooks of the type TRANSACTIONS."""
    await fire("DEFAULT_UPDATE")
    await fire("PRODUCT_READY")
    assert await codes() == ["PRODUCT_READY"]
    assert [fired["webhook_code"] for fired in plaid.webhooks] == ["DEFAULT_UPDATE", "PRODUCT_READY"]


async def test_filters(api, fire, codes):
    """An event matches one value of each filter; an empty filter matches all events."""
    other = await api.access_token(options={"webhook": HOOK})
    for code in ("LOGIN_REPAIRED", "PENDING_DISCONNECT", "PRODUCT_READY"):
        await fire(code)
    await fire("ERROR", other)
    other_id = (await api(LIST)).json["webhook_events"][-1]["item_id"]
    assert await codes(webhook_types=["ITEM"]) == ["LOGIN_REPAIRED", "PENDING_DISCONNECT"]
    assert await codes(webhook_types=["item"]) == []
    assert await codes(webhook_codes=["ERROR", "LOGIN_REPAIRED"]) == ["LOGIN_REPAIRED", "ERROR"]
    assert await codes(webhook_types=["ASSETS"], item_ids=[other_id, "unknown"]) == ["ERROR"]
    assert await codes(webhook_types=["ITEM"], item_ids=[other_id]) == []
    assert len(await codes(webhook_types=[], webhook_codes=[], item_ids=[], delivery_statuses=[])) == 4
    assert await codes(delivery_statuses=["DELIVERED"]) == []


async def test_pages(api, fire):
    """Pages follow each other by their cursors, and the last cursor returns only newer events."""
    for code in ("ERROR", "LOGIN_REPAIRED", "PRODUCT_READY"):
        await fire(code)
    first = (await api(LIST, {"count": 2})).json
    second = (await api(LIST, {"count": 2, "cursor": first["next_cursor"]})).json
    third = (await api(LIST, {"cursor": second["next_cursor"]})).json
    await fire("PENDING_DISCONNECT")
    # A cursor makes the start time irrelevant, also one that is out of range.
    newer = {"cursor": third["next_cursor"], "start_time": "2020-01-01T00:00:00Z"}
    pages = [first, second, third, (await api(LIST, newer)).json]
    assert [page["has_more"] for page in pages] == [True, False, False, False]
    assert [[event["webhook_code"] for event in page["webhook_events"]] for page in pages] == [
        ["ERROR", "LOGIN_REPAIRED"],
        ["PRODUCT_READY"],
        [],
        ["PENDING_DISCONNECT"],
    ]


async def test_full_last_page(api, fire):
    """A last page that is full isn't followed by an empty one."""
    await fire()
    assert (await api(LIST, {"count": 1})).json["has_more"] is False


async def test_the_default_page(api, plaid):
    """A page has a hundred events unless the request says otherwise."""
    for _ in range(101):
        plaid.world.webhooks.send("owner", HOOK, {"webhook_type": "ITEM", "webhook_code": "ERROR"})
    for request in ({}, {"count": None}):
        page = (await api(LIST, request)).json
        assert (len(page["webhook_events"]), page["has_more"]) == (100, True)


async def test_start_time(api, fire, clock, codes):
    """A start time selects the events from then on."""
    await fire("ERROR")
    clock.now += 3 * DAY
    await fire("PRODUCT_READY")
    ago = datetime.now(UTC) - timedelta(days=1)
    assert await codes(start_time=ago.isoformat()) == ["PRODUCT_READY"]
    assert await codes(start_time=(ago - timedelta(days=3)).isoformat()) == ["ERROR", "PRODUCT_READY"]
    assert await codes(start_time=None) == ["ERROR", "PRODUCT_READY"]
    [_, ready] = (await api(LIST)).json["webhook_events"]
    assert await codes(start_time=ready["sent_time"]) == ["PRODUCT_READY"]


@pytest.mark.parametrize("days", [-7.1, 0.1])
async def test_start_time_out_of_range(api, days):
    """A start time must be within the last seven days."""
    start_time = (datetime.now(UTC) + timedelta(days=days)).isoformat()
    response = await api(LIST, {"start_time": start_time})
    assert response.error == (400, "INVALID_INPUT", "WEBHOOK_EVENTS_START_TIME_OUT_OF_RANGE")


async def test_retention(fire, clock, plaid, codes):
    """Webhooks are kept for seven days."""
    await fire("ERROR")
    clock.now += 5 * DAY
    await fire("PRODUCT_READY")
    clock.now += 2 * DAY + 1
    assert await codes() == ["PRODUCT_READY"]
    assert [fired["webhook_code"] for fired in plaid.webhooks] == ["PRODUCT_READY"]


async def test_expired_cursor(api, clock):
    """A cursor expires seven days after it was returned."""
    cursor = (await api(LIST)).json["next_cursor"]
    clock.now += 7 * DAY
    assert (await api(LIST, {"cursor": cursor})).status == 200
    clock.now += 1
    response = await api(LIST, {"cursor": cursor})
    assert response.error == (400, "INVALID_INPUT", "WEBHOOK_EVENTS_CURSOR_EXPIRED")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cursor", "x"),
        ("cursor", "MQ=="),  # a number in JSON
        ("cursor", "WyJhIiwgMSwgMV0="),  # the cursor of another list
        ("cursor", ""),
        ("cursor", "x" * 513),
        ("cursor", None),
        ("start_time", 1),
        ("start_time", "2026-06-30"),
        ("start_time", "2026-06-30T12:00:00"),
        ("start_time", "2026-02-30T12:00:00Z"),
        ("count", 0),
        ("count", 101),
        ("webhook_types", None),
        ("webhook_codes", "ERROR"),
        ("item_ids", [1]),
        ("delivery_statuses", ["delivered"]),
    ],
)
async def test_invalid_fields(api, field, value):
    """Invalid fields are rejected."""
    response = await api(LIST, {field: value})
    assert response.error == (400, "INVALID_REQUEST", "INVALID_FIELD")
    assert field in response.json["error_message"]


def test_the_log_is_bounded():
    """The log has no more than its size, and removes the oldest webhook first."""
    log = WebhookLog(SimulatedTime(itertools.count().__next__), size=2)
    removed = []
    log.on_remove = lambda webhook: removed.append(webhook.url)
    for url in "abc":
        log.send("owner", url, {"webhook_type": "ITEM", "webhook_code": "ERROR"})
    assert removed == ["a"]
    assert [webhook.url for webhook in log] == ["b", "c"]
