"""Webhooks that the simulator delivers: which, when, how they are signed, and when they are repeated."""

import asyncio
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import aiohttp
import pytest
from virtual_clock import run_virtually
from webhook_receivers import running_receiver

from plaid_relay_async.models import JWKPublicKey
from plaid_relay_async.simulator import Simulator, WebhookFault
from plaid_relay_async.simulator.deliveries import read_retry_after
from plaid_relay_async.webhooks import VerificationKey, parse, verify

LIST = "/beta/webhook_events/list"
FIRE = "/sandbox/item/fire_webhook"
CREATE = "/credit/relay/create"
GET = "/credit/relay/get"
DAY = 86_400
# By Plaid's schedule: after 30 s, and then after four times as long each.
SCHEDULE = [0, 30, 150, 630, 2_550, 10_230, 40_950]
EVENT = {"webhook_type": "ITEM", "webhook_code": "ERROR", "item_id": "1", "environment": "sandbox"}


@pytest.fixture
async def receiver(plaid):
    async with running_receiver(plaid.world.time) as receiver:
        yield receiver


@pytest.fixture
def events(api):
    """Return a function that returns a client's list of webhooks."""

    async def events(client="owner", **request):
        return (await api(LIST, request, client=client)).json["webhook_events"]

    return events


@pytest.fixture
def send(plaid, receiver):
    """Return a function that sends webhooks with these codes to the receiver."""

    def send(*codes, url=None):
        for code in codes:
            plaid.world.webhooks.send("owner", url or receiver.url, EVENT | {"webhook_code": code})

    return send


def moments(receiver):
    """Return when webhooks were received, in seconds since the first one."""
    return [round(received.time - receiver.received[0].time) for received in receiver.received]


# ------------------------------------------------------------------------------------ which webhooks are sent


async def test_a_report_is_ready(api, plaid, receiver, events):
    """When a report is ready, a signed webhook is sent to its URL, and the list says so."""
    report = await api.report(webhook=receiver.url)
    await plaid.advance(9.9)
    assert (receiver.received, await events()) == ([], [])
    await plaid.advance(0.1)
    [received] = receiver.received
    assert received.path == "/plaid"
    assert received.json == {
        "webhook_type": "ASSETS",
        "webhook_code": "PRODUCT_READY",
        "asset_report_id": report["asset_report_id"],
        "report_type": "FULL",
        "environment": "sandbox",
    }
    key = (await api("/webhook_verification_key/get", {"key_id": received.key_id})).json["key"]
    keys = [VerificationKey.from_jwk(JWKPublicKey(**key))]
    assert verify(received.body, received.headers, keys=keys, environment="sandbox").body == received.body
    [event] = await events()
    assert event["payload"] == received.json
    assert event["last_attempt_time"] == event["sent_time"]
    assert event["destination_url"] == receiver.url
    fields = ("item_id", "delivery_status", "last_http_status_code", "attempt_count")
    assert [event[name] for name in fields] == [None, "DELIVERED", 200, 1]
    [sent] = plaid.sent_webhooks
    assert sent == event | {"client_id": "owner", "error": None}


async def test_the_body_is_not_compact(plaid, send, receiver):
    """The body is indented, as Plaid's are, so a receiver that serializes it again gets another hash."""
    send("ERROR")
    await plaid.advance()
    assert receiver.received[0].body == json.dumps(EVENT, indent=2).encode()


async def test_a_fast_report(api, plaid, receiver):
    """The fast version of a report has a webhook of its own, which is sent first."""
    await api.report(webhook=receiver.url, add_ons=["fast_assets"])
    await plaid.advance(10)
    assert [received.json["report_type"] for received in receiver.received] == ["FAST", "FULL"]
    assert moments(receiver) == [0, 5]


@pytest.mark.parametrize("add_ons", [[], ["fast_assets"]])
async def test_a_report_has_failed(api, plaid, receiver, add_ons):
    """When the generation of a report fails, there is one webhook, with the error and without a request ID."""
    access_token = await api.access_token()
    options = {"webhook": receiver.url, "add_ons": add_ons}
    body = {"access_tokens": [access_token], "days_requested": 30, "options": options}
    report = (await api("/asset_report/create", body)).json
    plaid.break_item(access_token)
    await plaid.advance(10)
    [received] = receiver.received
    error = received.json["error"]
    assert received.json == {
        "webhook_type": "ASSETS",
        "webhook_code": "ERROR",
        "asset_report_id": report["asset_report_id"],
        "error": error,
        "environment": "sandbox",
    }
    assert (error["error_type"], error["error_code"]) == ("ASSET_REPORT_ERROR", "DATA_UNAVAILABLE")
    assert error["causes"]
    assert "request_id" not in error


async def test_a_refreshed_report(api, plaid, receiver):
    """A new version of a report has the webhook of the old one, another one, or none."""
    token = (await api.report(webhook=receiver.url))["asset_report_token"]
    for options in ({}, {"webhook": f"{receiver.url}/2"}, {"webhook": ""}):
        await api("/asset_report/refresh", {"asset_report_token": token, "options": options})
    await plaid.advance(10)
    assert sorted(received.path for received in receiver.received) == ["/plaid", "/plaid", "/plaid/2"]


async def test_no_webhook_is_requested(api, plaid):
    """A report without a webhook URL has no webhook."""
    await api.report()
    await plaid.advance(10)
    assert plaid.sent_webhooks == ()


async def test_a_partner_reads_a_report(api, plaid, receiver, events):
    """The lender gets a webhook for each time that the partner reads the report, without token or partner."""
    body = {"report_tokens": ["ready"], "secondary_client_id": "partner", "webhook": receiver.url}
    relay_token = (await api(CREATE, body)).json["relay_token"]
    read = {"relay_token": relay_token, "report_type": "asset"}
    await api("/credit/relay/pdf/get", read, client="partner")
    await api(GET, read | {"relay_token": "unknown"}, client="partner")
    await plaid.advance()
    assert receiver.received == []
    report = (await api(GET, read, client="partner")).json["report"]
    await api(GET, read, client="partner")
    await plaid.advance()
    assert [received.json for received in receiver.received] == [
        {
            "webhook_type": "CREDIT_RELAY",
            "webhook_code": "REPORT_RETRIEVED",
            "asset_report_id": report["asset_report_id"],
            "environment": "sandbox",
        }
    ] * 2
    assert (len(await events()), await events("partner")) == (2, [])


async def test_a_report_that_is_not_ready_was_not_read(api, plaid, receiver):
    """A failed attempt to read a shared report leads to no webhook."""
    token = (await api.report())["asset_report_token"]
    body = {"report_tokens": [token], "secondary_client_id": "partner", "webhook": receiver.url}
    relay_token = (await api(CREATE, body)).json["relay_token"]
    await api(GET, {"relay_token": relay_token, "report_type": "asset"}, client="partner")
    await plaid.advance()
    assert receiver.received == []


async def test_a_partner_refreshes_a_report(api, plaid, receiver, events):
    """The partner, and not the lender, gets a webhook when the report that it has refreshed is ready."""
    token = (await api.report(webhook=f"{receiver.url}/lender"))["asset_report_token"]
    await plaid.advance(10)
    relay_token = await api.relay_token(token)
    body = {"relay_token": relay_token, "report_type": "asset", "webhook": f"{receiver.url}/partner"}
    report_id = (await api("/credit/relay/refresh", body, client="partner")).json["asset_report_id"]
    del body["webhook"]
    await api("/credit/relay/refresh", body, client="partner")
    await plaid.advance(10)
    assert [received.path for received in receiver.received] == ["/plaid/lender", "/plaid/partner"]
    assert receiver.received[1].json["asset_report_id"] == report_id
    assert (len(await events()), len(await events("partner"))) == (1, 1)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("PRODUCT_READY", "AssetsProductReadyWebhook"),
        ("ERROR", "AssetsErrorWebhook"),
        ("LOGIN_REPAIRED", "ItemLoginRepairedWebhook"),
        ("NEW_ACCOUNTS_AVAILABLE", "NewAccountsAvailableWebhook"),
        ("PENDING_DISCONNECT", "PendingDisconnectWebhook"),
        ("USER_ACCOUNT_REVOKED", "UserAccountRevokedWebhook"),
        ("USER_PERMISSION_REVOKED", "UserPermissionRevokedWebhook"),
        ("SYNC_UPDATES_AVAILABLE", "UnknownWebhook"),
    ],
)
async def test_a_fired_webhook(api, plaid, receiver, code, name):
    """A fired webhook is sent to the Item's URL, with the fields that Plaid documents."""
    products = ("assets", "transactions")
    access_token = await api.access_token(products=products, options={"webhook": receiver.url})
    await api(FIRE, {"access_token": access_token, "webhook_code": code})
    await plaid.advance()
    [received] = receiver.received
    assert type(parse(received.body)).__name__ == name
    assert received.json["environment"] == "sandbox"
    [fired] = plaid.webhooks
    assert fired["item_id"] == plaid.sent_webhooks[0]["item_id"]


async def test_fired_transactions(api, plaid, receiver):
    """The number of new transactions of a request is in its webhook."""
    access_token = await api.access_token(products=("transactions",), options={"webhook": receiver.url})
    body = {"access_token": access_token, "webhook_code": "DEFAULT_UPDATE"}
    await api(FIRE, body | {"options": {"new_transactions": 3}})
    await api(FIRE, body)
    await plaid.advance()
    assert sorted(received.json["new_transactions"] for received in receiver.received) == [0, 3]


async def test_a_fired_webhook_of_a_report(api, plaid, receiver):
    """A fired webhook about a report names the latest report of the Item."""
    other = await api.access_token()
    access_token = await api.access_token(options={"webhook": receiver.url})
    reports = [
        (await api("/asset_report/create", {"access_tokens": [token], "days_requested": 30})).json
        for token in (access_token, other)
    ]
    await api(FIRE, {"access_token": access_token, "webhook_code": "PRODUCT_READY"})
    await plaid.advance()
    assert receiver.received[0].json["asset_report_id"] == reports[0]["asset_report_id"]


@pytest.mark.parametrize(
    "url",
    [
        "https://lender.example/plaid",
        "http://10.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://localhost.example/",
    ],
)
async def test_another_machine(plaid, send, url):
    """A webhook to another machine is never sent, and has failed without an attempt."""
    send("ERROR", url=url)
    await plaid.advance(DAY)
    [sent] = plaid.sent_webhooks
    assert (sent["delivery_status"], sent["attempt_count"], sent["last_attempt_time"]) == ("FAILED", 0, None)
    assert sent["error"] == "not sent: the simulator sends webhooks only to this machine"


async def test_a_webhook_is_sent_by_itself(receiver):
    """Without `advance`, webhooks are sent when their time has come."""
    async with Simulator(generation_delay=0.01) as plaid:
        plaid.world.webhooks.send("owner", receiver.url, EVENT)
        plaid.world.webhooks.send("owner", receiver.url, EVENT)
        while len([sent for sent in plaid.sent_webhooks if sent["delivery_status"] == "DELIVERED"]) < 2:
            await asyncio.sleep(0.001)
    assert receiver.codes == ["ERROR", "ERROR"]


# ---------------------------------------------------------------------------------- when they are sent again


async def test_the_schedule(plaid, send, receiver):
    """A webhook is sent again for a day, by Plaid's schedule, and has failed then."""
    receiver.respond_with(*[(500, {})] * 10)
    send("ERROR")
    await plaid.advance(DAY - 1)
    assert moments(receiver) == SCHEDULE
    [sent] = plaid.sent_webhooks
    assert (sent["delivery_status"], sent["last_http_status_code"], sent["attempt_count"]) == (
        "FAILED",
        500,
        7,
    )
    assert sent["error"] == "the status is 500"
    sent_at, last = (datetime.fromisoformat(sent[name]) for name in ("sent_time", "last_attempt_time"))
    assert round((last - sent_at).total_seconds()) == SCHEDULE[-1]
    assert len({received.body for received in receiver.received}) == 1


async def test_a_later_success(plaid, send, receiver):
    """A webhook is pending until it has been delivered, and is then never sent again."""
    receiver.respond_with((500, {}), (302, {"Location": "/elsewhere"}))
    send("ERROR")
    await plaid.advance(60)
    assert plaid.sent_webhooks[0]["delivery_status"] == "PENDING"
    await plaid.advance(DAY)
    assert moments(receiver) == SCHEDULE[:3]
    assert {received.path for received in receiver.received} == {"/plaid"}
    assert plaid.sent_webhooks[0]["delivery_status"] == "DELIVERED"


async def test_another_success(plaid, send, receiver):
    """After a 204, a webhook is delivered, and is sent again nevertheless."""
    receiver.respond_with((204, {}), *[(500, {})] * 10)
    send("ERROR")
    await plaid.advance(60)
    assert plaid.sent_webhooks[0]["delivery_status"] == "DELIVERED"
    await plaid.advance(DAY)
    [sent] = plaid.sent_webhooks
    assert (sent["delivery_status"], sent["attempt_count"], sent["error"]) == (
        "DELIVERED",
        7,
        "the status is 500",
    )


async def test_no_connection(plaid, send, unused_port):
    """A receiver that can't be reached is tried again."""
    send("ERROR", url=f"http://127.0.0.1:{unused_port}/")
    await plaid.advance(30)
    [sent] = plaid.sent_webhooks
    assert (sent["delivery_status"], sent["last_http_status_code"], sent["attempt_count"]) == (
        "PENDING",
        None,
        2,
    )
    assert sent["error"] == "ClientConnectorError"


@pytest.fixture
async def unused_port():
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def test_the_last_status_is_kept(plaid, send, receiver):
    """The status of the list is the last one that the receiver has sent."""
    receiver.respond_with((503, {}))
    plaid.fail(WebhookFault(attempt=2, lose=True))
    send("ERROR")
    await plaid.advance(30)
    [sent] = plaid.sent_webhooks
    assert (sent["last_http_status_code"], sent["attempt_count"]) == (503, 2)


def test_a_slow_receiver():
    """A receiver that doesn't respond within ten seconds gets the webhook again."""

    async def main():
        loop = asyncio.get_running_loop()
        pauses = iter([11, 9])

        async def respond():
            await asyncio.sleep(next(pauses))
            return aiohttp.web.Response()

        async with Simulator(clock=loop.time) as plaid, running_receiver(loop.time) as receiver:
            receiver.respond = respond
            plaid.world.webhooks.send("owner", receiver.url, EVENT)
            await asyncio.sleep(15)
            first = plaid.sent_webhooks[0]
            await asyncio.sleep(60)
            return moments(receiver), first, plaid.sent_webhooks[0]

    times, first, second = run_virtually(main())
    assert times == [0, 40]
    assert (first["delivery_status"], first["error"]) == ("PENDING", "no response within 10 seconds")
    assert (second["delivery_status"], second["attempt_count"]) == ("DELIVERED", 2)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("120", 120),
        ("0", 1),
        ("99999", 4 * 3600),
        ("9" * 400, 4 * 3600),
        ("soon", 30),
        ("-5", 30),
        (None, 30),
    ],
)
async def test_retry_after(plaid, send, receiver, retry_after, seconds):
    """A 429 is repeated when its Retry-After says so, after four hours at most."""
    receiver.respond_with((429, {"Retry-After": retry_after} if retry_after else {}))
    send("ERROR")
    await plaid.advance(DAY)
    assert moments(receiver) == [0, seconds]


async def test_retry_after_of_another_status(plaid, send, receiver):
    """The Retry-After of any other status is ignored, and that of a 429 doesn't change the schedule."""
    receiver.respond_with((503, {"Retry-After": "60"}), (429, {"Retry-After": "60"}), (500, {}))
    send("ERROR")
    await plaid.advance(DAY)
    assert moments(receiver) == [0, 30, 90, 210]


def test_forms_of_retry_after():
    """A Retry-After may be a time in the form of HTTP or of ISO 8601."""
    moment = datetime(2026, 6, 30, 12, 0, tzinfo=UTC)
    now = moment.timestamp() - 60
    assert read_retry_after(format_datetime(moment, usegmt=True), now) == 60
    assert read_retry_after(moment.isoformat(), now) == 60
    assert read_retry_after("2026-06-30T14:00:00+02:00", now) == 60
    assert read_retry_after("2026-06-30T12:00:00", now) == 60
    assert read_retry_after("later", now) is None


async def test_each_attempt_is_signed_again(plaid, send, receiver):
    """By default, each attempt is signed with its own time."""
    receiver.respond_with(*[(500, {})] * 3)
    send("ERROR")
    await plaid.advance(SCHEDULE[3])
    ages = [time.time() - received.claims["iat"] for received in receiver.received]
    assert len(ages) == 4
    assert all(-1 <= age < 60 for age in ages)


async def test_stale_attempts(plaid, send, receiver):
    """With `stale`, attempts have the time at which the webhook was sent first, by the simulator's time."""
    receiver.respond_with(*[(500, {})] * 3)
    plaid.fail(WebhookFault(stale=True))
    send("ERROR")
    await plaid.advance(SCHEDULE[3])
    ages = [time.time() - received.claims["iat"] for received in receiver.received]
    assert [age - SCHEDULE[index] < 60 for index, age in enumerate(ages)] == [True] * 4
    assert ages[3] > 600


async def test_key_rotation(plaid, send, receiver):
    """An attempt is signed with the key that is current at that moment."""
    receiver.respond_with((500, {}))
    send("ERROR")
    await plaid.advance()
    key_id = plaid.rotate_webhook_key()
    await plaid.advance(30)
    assert [received.key_id == key_id for received in receiver.received] == [False, True]


# --------------------------------------------------------------------------------------------------- faults


async def test_a_lost_attempt(plaid, send, receiver):
    """A lost attempt counts, and the next one arrives."""
    plaid.fail(WebhookFault(attempt=1, lose=True))
    send("ERROR")
    await plaid.advance()
    assert (receiver.received, plaid.sent_webhooks[0]["attempt_count"]) == ([], 1)
    await plaid.advance(30)
    assert receiver.codes == ["ERROR"]


async def test_a_lost_webhook(plaid, send, receiver, events):
    """A webhook of which every attempt is lost is still in the list."""
    plaid.fail(WebhookFault(webhook_code="ERROR", lose=True))
    send("ERROR", "LOGIN_REPAIRED")
    await plaid.advance(DAY)
    assert receiver.codes == ["LOGIN_REPAIRED"]
    [lost, _] = await events()
    assert (lost["delivery_status"], lost["last_http_status_code"]) == ("FAILED", None)


async def test_an_ignored_response(plaid, send, receiver):
    """If the response is ignored, the webhook is delivered a second time."""
    plaid.fail(WebhookFault(ignore_response=True, times=1))
    send("ERROR")
    await plaid.advance(30)
    assert receiver.codes == ["ERROR", "ERROR"]
    assert plaid.sent_webhooks[0]["attempt_count"] == 2


async def test_duplicates(plaid, send, receiver):
    """Copies belong to one attempt, and a 200 for one of them is enough."""
    receiver.respond_with((500, {}), (200, {}))
    plaid.fail(WebhookFault(duplicates=2))
    send("ERROR")
    await plaid.advance(DAY)
    assert receiver.codes == ["ERROR"] * 3
    assert (plaid.sent_webhooks[0]["delivery_status"], plaid.sent_webhooks[0]["attempt_count"]) == (
        "DELIVERED",
        1,
    )


async def test_disorder(plaid, send, receiver, events):
    """A webhook that is delayed arrives after those that were sent later."""
    plaid.fail(WebhookFault(webhook_code="ERROR", delay=400, stale=True))
    send("ERROR")
    await plaid.advance(100)
    [delayed] = await events()
    assert (delayed["attempt_count"], delayed["last_attempt_time"]) == (0, None)
    send("LOGIN_REPAIRED")
    await plaid.advance(400)
    assert receiver.codes == ["LOGIN_REPAIRED", "ERROR"]
    assert 390 < time.time() - receiver.received[1].claims["iat"] < 460


async def test_a_url(plaid, send, receiver):
    """A rule may be for one URL or one type."""
    plaid.fail(WebhookFault(url=f"{receiver.url}/2", lose=True), WebhookFault(webhook_type="AUTH", lose=True))
    send("ERROR")
    send("LOGIN_REPAIRED", url=f"{receiver.url}/2")
    await plaid.advance()
    assert receiver.codes == ["ERROR"]
    plaid.clear_faults()
    send("LOGIN_REPAIRED", url=f"{receiver.url}/2")
    await plaid.advance()
    assert receiver.codes == ["ERROR", "LOGIN_REPAIRED"]


async def test_the_seed_determines_the_faults(receiver, clock):
    """The same seed affects the same attempts, with `rate`, in whatever order they end."""

    async def attempts(seed):
        fault = WebhookFault(rate=0.5, lose=True)
        async with Simulator(seed=seed, faults=[fault], clock=clock) as plaid:
            for number in range(30):
                plaid.world.webhooks.send("owner", receiver.url, EVENT | {"item_id": str(number)})
            await plaid.advance(SCHEDULE[2])
            return [sent["attempt_count"] for sent in plaid.sent_webhooks]

    first, second, other = await attempts(1), await attempts(1), await attempts(2)
    assert first == second != other
    assert 5 < first.count(1) < 25


async def test_a_script_over_http(api, plaid, send, receiver):
    """A script for another process may have rules for webhooks."""
    script = {"faults": [{"status": 503}], "webhook_faults": [{"lose": True}, {"delay": 1}]}
    assert (await api("/_simulator/faults", script, client=None)).json == {"faults": 3}
    send("ERROR")
    await plaid.advance()
    assert receiver.received == []
    await api("/_simulator/faults", {"faults": []}, client=None)
    await plaid.advance(30)
    assert receiver.codes == ["ERROR"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "lose: one of"),
        ({"delay": -1}, "delay: must be seconds from 0 to 86,400"),
        ({"lose": 1}, "lose: must be true or false"),
        ({"lose": True, "stale": True}, "stale: cannot be combined with lose"),
        ({"lose": True, "webhook_type": 1}, "webhook_type: must be a string or null"),
        ({"duplicates": 11}, "duplicates: must be an integer from 0 to 10"),
        ({"stale": True, "attempt": 0}, "attempt: must be an integer of at least 1"),
        ({"lose": True, "path": "/"}, "path: unknown field; allowed are: webhook_type, "),
    ],
)
async def test_invalid_rules(api, rule, message):
    """An invalid rule is rejected, with its location."""
    script = {"faults": [], "webhook_faults": [rule]}
    response = await api("/_simulator/faults", script, client=None)
    separator = "." if ":" in message else ": "
    assert (response.status, response.json["error"].startswith(f"webhook_faults[0]{separator}{message}")) == (
        400,
        True,
    )


# ------------------------------------------------------------------------------------- limits and life cycle


async def test_concurrency(plaid, send, receiver):
    """At most twenty attempts are made at a time."""
    active, most = 0, 0

    async def respond():
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.005)
        active -= 1
        return aiohttp.web.Response()

    receiver.respond = respond
    send(*["ERROR"] * 70)
    await plaid.advance()
    assert (len(receiver.received), most) == (70, 20)


async def test_close_during_an_attempt(clock):
    """An attempt that is in progress at the end fails, and is repeated after another start."""
    plaid = Simulator(clock=clock)
    async with running_receiver(clock) as receiver:
        arrived = asyncio.Event()

        async def respond():
            arrived.set()
            await asyncio.Event().wait()

        receiver.respond = respond
        before = asyncio.all_tasks()
        async with plaid:
            plaid.world.webhooks.send("owner", receiver.url, EVENT)
            await arrived.wait()
            # An attempt that has not begun is not lost either.
            plaid.world.webhooks.send("owner", receiver.url, EVENT)
        assert {task for task in asyncio.all_tasks() - before if "deliveries" in repr(task)} == set()
        assert plaid.sent_webhooks[0]["error"] == "the simulator was closed before a response arrived"
        assert plaid.sent_webhooks[0]["delivery_status"] == "PENDING"
        receiver.respond_with()
        async with plaid:
            await plaid.advance(30)
    assert [sent["delivery_status"] for sent in plaid.sent_webhooks] == ["DELIVERED"] * 2


async def test_close_at_once(clock, receiver):
    """An attempt whose task has not begun when the simulator closes is repeated as well."""
    plaid = Simulator(clock=clock)
    async with plaid:
        plaid.world.webhooks.send("owner", receiver.url, EVENT)
        advancing = asyncio.create_task(plaid.advance(60))
        await asyncio.sleep(0)
        await plaid.close()
    with pytest.raises(RuntimeError, match="not started"):
        await advancing
    assert [sent["attempt_count"] for sent in plaid.sent_webhooks] == [1]
    async with plaid:
        await plaid.advance(30)
    assert receiver.codes == ["ERROR"]


async def test_webhooks_before_the_start(clock, receiver):
    """A webhook that was sent before the start is delivered after it."""
    plaid = Simulator(clock=clock)
    plaid.world.webhooks.send("owner", receiver.url, EVENT)
    async with plaid:
        await plaid.advance()
    assert receiver.codes == ["ERROR"]
    await plaid.close()


async def test_the_memory_is_bounded(plaid, send, receiver):
    """Webhooks that the list has lost are not sent again, whether or not an attempt is in progress."""
    release = asyncio.Event()

    async def respond():
        await release.wait()
        return aiohttp.web.Response(status=500)

    receiver.respond = respond
    plaid.fail(WebhookFault(webhook_code="DELAYED", delay=60))
    send("ERROR", "DELAYED")
    while not receiver.received:
        await asyncio.sleep(0.001)
    send(*["OTHER"] * 10_000, url="https://lender.example/")
    release.set()
    await plaid.advance(DAY)
    assert receiver.codes == ["ERROR"]
    assert (len(plaid.sent_webhooks), len(plaid.world.agenda)) == (10_000, 0)


@pytest.mark.parametrize("seconds", [-1, 1.1e9, float("nan")])
async def test_advance_by_an_invalid_time(api, plaid, seconds):
    """The time can only be moved forward, and not without limit."""
    with pytest.raises(ValueError, match="seconds: must be a number from 0 to 1e9"):
        await plaid.advance(seconds)
    assert (await api("/_simulator/advance", {"seconds": seconds}, client=None)).status == 400


@pytest.mark.parametrize("body", [{}, [], {"seconds": True}, {"seconds": "1"}, {"seconds": 1, "more": 1}])
async def test_advance_with_an_invalid_body(api, body):
    """A request to move the time has exactly one field, a number."""
    response = await api("/_simulator/advance", body, client=None)
    assert response.status == 400
    assert response.json["error"].startswith('the body must be an object such as {"seconds": 30}')


async def test_advance_over_http(api, plaid, send, receiver):
    """Another process can move the time, and its request ends with the attempts."""
    receiver.respond_with((500, {}))
    send("ERROR")
    response = await api("/_simulator/advance", {"seconds": 30}, client=None)
    assert (response.status, response.json) == (200, {"seconds": 30})
    assert moments(receiver) == [0, 30]
    assert plaid.counts == {}


async def test_close_during_advance_over_http(api, plaid, send, receiver):
    """The end of the simulator ends the request without a response."""
    receiver.respond = asyncio.Event().wait
    send("ERROR")
    advancing = asyncio.create_task(api("/_simulator/advance", {"seconds": 60}, client=None))
    while not receiver.received:
        await asyncio.sleep(0.001)
    await plaid.close()
    with pytest.raises(aiohttp.ClientConnectionError):
        await advancing


async def test_advance_without_a_start():
    """A simulator that isn't started can't deliver."""
    with pytest.raises(RuntimeError, match="not started"):
        await Simulator().advance()


async def test_advance_moves_everything(api, plaid):
    """The time of reports is moved as well."""
    token = (await api.report())["asset_report_token"]
    await plaid.advance(10)
    assert (await api("/asset_report/get", {"asset_report_token": token})).status == 200


def test_without_the_extra():
    """Without cryptography, the simulator works, sends no webhook, and says why once."""
    code = f"""
import asyncio, logging, sys
sys.modules["cryptography.hazmat.primitives.asymmetric"] = None
from plaid_relay_async.simulator import Simulator

async def main():
    async with Simulator() as plaid:
        for _ in range(2):
            plaid.world.webhooks.send("owner", "http://127.0.0.1:1/", {EVENT})
        await plaid.advance()
        for sent in plaid.sent_webhooks:
            print(sent["delivery_status"], sent["attempt_count"], sent["error"])

logging.basicConfig(level=20)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    module = "cryptography.hazmat.primitives.asymmetric"
    problem = f"signing webhooks needs {module}: pip install 'plaid_relay_async[webhooks]'"
    assert done.stdout.splitlines() == [f"FAILED 0 not sent: {problem}"] * 2
    assert done.stderr.splitlines() == [
        f"WARNING:plaid_relay_async.simulator:webhooks are not sent: {problem}"
    ]
