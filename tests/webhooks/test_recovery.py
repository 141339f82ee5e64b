"""Recovery: what Plaid has sent and the inbox doesn't have is added to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from datetime import datetime
from decimal import Decimal

import pytest
from aiohttp import web
from attrs import evolve
from canaries import assert_error_is_clean, assert_no_canary
from cancel_points import CancelPoint
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_support import KEY
from support import OWNER, QUICK
from webhook_events_support import EXPIRED, UNAVAILABLE, event_of, listing, page_of
from webhook_signing import EXAMPLES

from plaid_relay_async import (
    CursorExpiredError,
    InvalidRequestError,
    RelayClient,
    RequestValidationError,
    ResponseDecodeError,
    from_json,
    models,
)
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.simulator import Simulator, WebhookFault
from plaid_relay_async.webhooks import IncomingWebhook, MemoryInbox, Recovery, StaleWebhookError, parse
from plaid_relay_async.webhooks.inbox import DEDUPLICATION_SECONDS, content_digest, read_pair_id
from plaid_relay_async.webhooks.recovery import to_incoming

PAIR = "0123456789abcdef0123456789abcdef"
SENT_AT = datetime.fromisoformat("2026-11-30T12:00:00.125Z").timestamp()


class StoppingInbox(MemoryInbox):
    """An inbox whose process ends before a cursor is stored."""

    async def store_cursor(self, cursor):
        raise ConnectionError


async def bodies_of(inbox):
    return [json.loads(webhook.body)["number"] async for webhook in inbox.webhooks()]


async def test_missing_webhooks_are_added_and_the_cursor_is_stored(clean_logs):
    """All pages are read; what the inbox has is skipped, and the cursor is stored after each page."""
    inbox = MemoryInbox()
    await inbox.add(to_incoming(from_json(json.dumps(event_of(2)), models.SentWebhook)))
    pages = (
        page_of(event_of(1), event_of(2), cursor="after-2", has_more=True),
        page_of(event_of(3), cursor="after-3"),
    )
    async with listing(*pages) as (client, requests):
        recovery = await client.webhooks.recover(inbox, count=50)
    assert recovery == Recovery(read=3, added=2, cursor="after-3", cursor_expired=False)
    assert await inbox.load_cursor() == "after-3"
    assert await bodies_of(inbox) == [2, 1, 3]
    assert requests == [{"count": 50}, {"count": 50, "cursor": "after-2"}]


async def test_a_recovery_continues_where_the_previous_one_ended():
    """The cursor of the inbox is sent, and moves on even if there is nothing new."""
    inbox = MemoryInbox()
    await inbox.store_cursor("before")
    async with listing(page_of(cursor="after")) as (client, requests):
        assert await client.webhooks.recover(inbox) == Recovery(0, 0, "after", cursor_expired=False)
    assert requests == [{"cursor": "before"}]
    assert await inbox.load_cursor() == "after"


async def test_an_added_webhook_has_what_plaid_sent():
    """The pair comes from the URL, and the time and the ID from the list."""
    inbox = MemoryInbox()
    event = event_of(destination_url=f"https://lender.example/relay/{PAIR}?a=b")
    async with listing(page_of(event, cursor="after")) as (client, _):
        await client.webhooks.recover(inbox)
    [webhook] = [webhook async for webhook in inbox.webhooks()]
    assert (webhook.pair, webhook.message_id, webhook.sent_at) == (PAIR, "message-1", SENT_AT)
    assert parse(webhook.body).webhook_type == "ASSETS"


async def test_a_webhook_is_the_same_one_whether_delivered_or_listed():
    """A delivery before or after the recovery is a duplicate, also if Plaid writes its JSON in another way."""
    payload = {"webhook_type": "ASSETS", "amount": 10.50, "names": ["é", "\U0001f600"], "count": 100}
    body = b'{"count": 1e2,\n "names": ["\\u00e9", "\xf0\x9f\x98\x80"], "amount": 10.5, "webhook_type": "ASSETS"}'
    event = event_of(payload=payload, destination_url=f"https://lender.example/{PAIR}")
    delivered = IncomingWebhook(body, SENT_AT + DEDUPLICATION_SECONDS - 1, PAIR)
    for first in ("delivered", "listed"):
        inbox = MemoryInbox()
        if first == "delivered":
            assert await inbox.add(delivered)
        async with listing(page_of(event, cursor="after")) as (client, _):
            recovery = await client.webhooks.recover(inbox)
        assert recovery.added == (first == "listed")
        assert not await inbox.add(delivered)


async def test_equal_webhooks_with_different_ids_are_two():
    """Two webhooks of the list are two, although they have the same content at nearly the same time."""
    inbox = MemoryInbox()
    events = [event_of(1, payload={"number": 1}), event_of(2, payload={"number": 1})]
    async with listing(page_of(*events, cursor="after")) as (client, _):
        assert (await client.webhooks.recover(inbox)).added == 2


async def test_an_expired_cursor_restarts_at_the_oldest_webhook():
    """The list is read from its beginning, and the result says that webhooks may be missing."""
    inbox = MemoryInbox()
    await inbox.store_cursor("old")
    async with listing(EXPIRED, page_of(event_of(1), cursor="after-1")) as (client, requests):
        recovery = await client.webhooks.recover(inbox)
    assert recovery == Recovery(1, 1, "after-1", cursor_expired=True)
    assert await inbox.load_cursor() == "after-1"
    assert requests == [{"cursor": "old"}, {}]


async def test_a_recovery_without_a_cursor_does_not_restart():
    """If Plaid reports an expired cursor to a request without one, that is an error."""
    async with listing(EXPIRED) as (client, _):
        with pytest.raises(CursorExpiredError):
            await client.webhooks.recover(MemoryInbox())


async def test_a_recovery_that_was_interrupted_continues():
    """After an error, the next recovery reads the page that was not completed."""
    inbox = MemoryInbox()
    pages = (
        page_of(event_of(1), cursor="after-1", has_more=True),
        UNAVAILABLE,
        page_of(event_of(2), cursor="after-2"),
    )
    async with listing(*pages) as (client, requests):
        with pytest.raises(InvalidRequestError):
            await client.webhooks.recover(inbox)
        assert await inbox.load_cursor() == "after-1"
        assert (await client.webhooks.recover(inbox)).added == 1
    assert requests[1:] == [{"cursor": "after-1"}] * 2
    assert await bodies_of(inbox) == [1, 2]


async def test_the_cursor_is_stored_after_the_webhooks():
    """If the process ends in between, the page is read again, and nothing is added twice."""
    inbox = StoppingInbox()
    async with listing(page_of(event_of(1), cursor="after-1")) as (client, _):
        with pytest.raises(ConnectionError):
            await client.webhooks.recover(inbox)
    assert (await bodies_of(inbox), await inbox.load_cursor()) == ([1], None)
    inbox.__class__ = MemoryInbox
    async with listing(page_of(event_of(1), cursor="after-1")) as (client, _):
        assert await client.webhooks.recover(inbox) == Recovery(1, 0, "after-1", cursor_expired=False)


async def test_webhooks_of_other_applications_are_left_out():
    """With a prefix, only webhooks that were sent to a URL with this beginning are added."""
    inbox = MemoryInbox()
    events = [
        event_of(1, destination_url="https://lender.example/relay/1"),
        event_of(2, destination_url="https://lender.example/items"),
    ]
    async with listing(page_of(*events, cursor="after")) as (client, _):
        recovery = await client.webhooks.recover(inbox, url_prefix="https://lender.example/relay/")
    assert (recovery.read, recovery.added) == (2, 1)
    assert await bodies_of(inbox) == [1]


async def test_an_empty_list_without_a_position():
    """An empty cursor is not stored: Plaid would reject it."""
    inbox = MemoryInbox()
    async with listing(page_of(cursor="")) as (client, _):
        assert await client.webhooks.recover(inbox) == Recovery(0, 0, None, cursor_expired=False)
    assert await inbox.load_cursor() is None


async def test_an_invalid_count_is_rejected_at_once():
    """Nothing is sent, and the error is raised by the method itself."""
    async with listing() as (client, requests):
        with pytest.raises(RequestValidationError, match="count must be a whole number"):
            client.webhooks.recover(MemoryInbox(), count=0)
    assert not requests


async def test_no_error_shows_the_content_of_a_webhook():
    """An invalid webhook of the list is an error with its place, and without its payload and URL."""
    event = event_of(attempt_count="canary-count")
    async with listing(page_of(event_of(), event, cursor="after")) as (client, _):
        with pytest.raises(ResponseDecodeError) as caught:
            await client.webhooks.recover(MemoryInbox())
    assert caught.value.path == "$.webhook_events[1].attempt_count"
    assert_error_is_clean(caught.value)


async def test_no_repr_shows_the_content_of_a_webhook():
    """Neither the records of a recovery nor its log lines have the payload."""
    incoming = to_incoming(from_json(json.dumps(event_of()), models.SentWebhook))
    assert_no_canary(repr(incoming))
    assert b"canary" in incoming.body


# --------------------------------------------------------------------------------- the same webhook


def join_surrogates(text):
    """Return a text without surrogate pairs: in JSON, an escaped pair is one character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


TEXTS = st.text(
    st.characters() | st.characters(categories=["Cs"]) | st.sampled_from('"\\/\b\f\n\r\t\0'), max_size=6
).map(join_surrogates)
# Each example is written in several ways, which takes long.
SPELLINGS = settings(EXAMPLES, max_examples=60)
# Digits and an exponent.
NUMBERS = st.tuples(st.integers(-(10**40), 10**40), st.integers(-40, 40))
VALUES = st.recursive(
    st.none() | st.booleans() | TEXTS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)
PAYLOADS = st.dictionaries(TEXTS, VALUES, max_size=4)
SPACE = st.text(" \t\r\n", max_size=2)


@st.composite
def numbers_written(draw, digits, exponent):
    """Return a spelling of a number in JSON."""
    zeros = draw(st.integers(0, 5))
    number = digits * 10**zeros, exponent - zeros
    if draw(st.booleans()):
        return (
            f"{number[0]}{draw(st.sampled_from(['e', 'E']))}{number[1]:{draw(st.sampled_from(['', '+']))}d}"
        )
    written = f"{exact(*number):f}"
    return written if "." in written else written + draw(st.sampled_from(["", ".0", ".00"]))


def exact(digits, exponent):
    return Decimal(f"{digits}e{exponent}")


@st.composite
def texts_written(draw, text):
    """Return a spelling of a string in JSON, with any of its characters escaped or not."""
    written = []
    for character in text:
        escaped = json.dumps(character)[1:-1]
        must_escape = character in '"\\' or ord(character) < 32 or "\ud800" <= character <= "\udfff"
        units = character.encode("utf-16-be", "surrogatepass").hex()
        by_code = "".join(f"\\u{units[index : index + 4]}" for index in range(0, len(units), 4))
        spellings = [escaped, by_code, by_code.upper().replace("\\U", "\\u")]
        written.append(draw(st.sampled_from(spellings if must_escape else [*spellings, character])))
    return f'"{"".join(written)}"'


@st.composite
def values_written(draw, value):
    """Return a spelling of a value in JSON: with any space, order of members, escapes, and form of numbers."""
    space = draw(SPACE)
    if isinstance(value, tuple):
        written = draw(numbers_written(*value))
    elif isinstance(value, str):
        written = draw(texts_written(value))
    elif isinstance(value, list):
        written = f"[{','.join(draw(values_written(inner)) for inner in value)}{space}]"
    elif isinstance(value, dict):
        members = [
            f"{draw(texts_written(name))}{space}:{draw(values_written(value[name]))}"
            for name in draw(st.permutations(sorted(value)))
        ]
        # Of two members with the same name, parsers use the last one.
        repeated = [f"{draw(texts_written(name))}:null" for name in value if draw(st.booleans())]
        written = f"{{{','.join([*repeated, *members])}{space}}}"
    else:
        written = json.dumps(value)
    return f"{space}{written}{draw(SPACE)}"


def listed_body(payload_json):
    """Return the body that a recovery stores for the JSON of a payload in Plaid's list."""
    event = json.dumps(event_of(payload="PAYLOAD")).replace('"PAYLOAD"', payload_json)
    return to_incoming(from_json(event, models.SentWebhook)).body


@SPELLINGS
@given(st.data())
def test_any_object_is_the_same_webhook_whether_delivered_or_listed(data):
    """The digest depends on the values of a payload, and not on how they are written."""
    payload = data.draw(PAYLOADS)
    delivered, listed = (data.draw(values_written(payload)) for _ in range(2))
    digest = content_digest(delivered.encode(), PAIR)
    assert digest == content_digest(listed_body(listed), PAIR)
    assert digest != content_digest(listed_body(listed), None)


@SPELLINGS
@given(st.data())
def test_other_objects_are_other_webhooks(data):
    """Payloads with different values have different digests."""
    one, other = data.draw(PAYLOADS), data.draw(PAYLOADS)
    digests = {content_digest(listed_body(data.draw(values_written(each))), None) for each in (one, other)}
    assert len(digests) == 1 + (plain(one) != plain(other))


def plain(value):
    """Return a payload in a form that can be compared: a number isn't a string, and True isn't 1."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return ["number", exact(*value)]
    return [plain(inner) for inner in value] if isinstance(value, list) else [str(type(value)), value]


@SPELLINGS
@given(st.data())
def test_numbers_of_a_payload_are_stored_exactly(data):
    """The stored body has each digit of a number with a point or an exponent."""
    digits, exponent = data.draw(NUMBERS)
    written = data.draw(numbers_written(digits, exponent))
    body = listed_body(f'{{"number": {written}}}')
    assert json.loads(body, parse_int=Decimal, parse_float=Decimal) == {"number": Decimal(written)}
    assert str(Decimal(body.decode().partition(": ")[2][:-1])) == str(Decimal(written))


@pytest.mark.parametrize(
    "numbers",
    [("0", "-0", "0.0", "-0.0", "0e5", "-0E-3"), ("100", "1e2", "100.00", "1E+2"), ("-0.5", "-5e-1")],
)
def test_the_spelling_of_a_number_does_not_matter(numbers):
    """Numbers of the same value are the same, and a number isn't the string of its digits."""
    bodies = [f'{{"a": [{number}]}}'.encode() for number in numbers]
    assert len({content_digest(body, None) for body in bodies}) == 1
    as_text = [f'{{"a": ["{number}"]}}'.encode() for number in numbers]
    assert len({content_digest(body, None) for body in as_text}) == len(numbers)
    assert len({content_digest(body, None) for body in (*bodies, *as_text)}) == 1 + len(numbers)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e9999999999999999999999}',
        b'{"a": \xff}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_object_is_compared_by_its_bytes(body):
    """Such a body is the same as itself, and another one with one more byte."""
    assert content_digest(body, None) == content_digest(bytes(body), None)
    assert content_digest(body, None) != content_digest(body + b" ", None)


def test_an_object_that_is_nested_deeply_has_a_digest():
    """An object that the parser reads, and that is nested too deeply to be compared, is compared by its bytes."""
    for depth in range(100, 1200, 50):
        body = b'{"a": ' + b"[" * depth + b"]" * depth + b"}"
        assert len(content_digest(body, None)) == 64


def test_a_listed_webhook_is_stored_without_what_is_not_in_its_payload():
    """The fields of the list, known and unknown, aren't part of the body."""
    webhook = from_json(json.dumps(event_of(region="us")), models.SentWebhook)
    assert json.loads(to_incoming(webhook).body) == webhook.payload
    assert to_incoming(evolve(webhook, payload={})).body == b"{}"


# -------------------------------------------------------------------------------- with the simulator


@contextlib.asynccontextmanager
async def receiving(client, inbox, *, fails):
    """Run a receiver that stores verified webhooks, and that fails now and then; yield its URL."""

    async def receive(request):
        body = await request.read()
        try:
            webhook = await client.webhooks.verify(body, request.headers)
        except StaleWebhookError as error:
            webhook = error.webhook
        if next(fails):
            return web.Response(status=500)
        await inbox.add(IncomingWebhook(webhook.body, webhook.issued_at, read_pair_id(request.path)))
        return web.Response(status=500 if next(fails) else 200)

    app = web.Application()
    app.router.add_post("/relay/{pair}", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/relay"
    finally:
        await runner.cleanup()


@pytest.mark.may_block  # SQLAlchemy's own
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_no_webhook_is_missing_or_stored_twice_after_loss(kind, tmp_path):
    """Whatever is lost, duplicated or late, after a recovery the inbox has each webhook once."""
    if kind == "memory":
        await lose_and_recover(MemoryInbox())
    else:
        async with SQLInbox(tmp_path / "inbox.db", key=KEY) as inbox:
            await lose_and_recover(inbox)


async def lose_and_recover(inbox):
    count = 60
    faults = (
        WebhookFault(webhook_code="ERROR", lose=True),
        WebhookFault(rate=0.3, ignore_response=True),
        WebhookFault(rate=0.3, duplicates=2),
        WebhookFault(rate=0.3, delay=900, stale=True),
    )
    async with (
        Simulator(faults=faults) as plaid,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client,
        receiving(client, inbox, fails=itertools.cycle([False, False, True, False, False])) as url,
    ):
        for number in range(count):
            payload = {
                "webhook_type": "ASSETS",
                "webhook_code": "ERROR" if number % 4 == 0 else "PRODUCT_READY",
                "asset_report_id": f"report-{number}",
            }
            plaid.world.webhooks.send(OWNER.client_id, f"{url}/{number:032x}", payload)
        await plaid.advance(120)
        before = {webhook.pair async for webhook in inbox.webhooks()}
        assert 0 < len(before) < count
        recovery = await client.webhooks.recover(inbox, count=7)
        assert (recovery.read, recovery.added) == (count, count - len(before))
        await plaid.advance(2 * 86_400)
        again = await client.webhooks.recover(inbox, count=7)
        assert (again.read, again.added) == (0, 0)
    stored = [webhook async for webhook in inbox.webhooks()]
    assert sorted(webhook.pair for webhook in stored) == [f"{number:032x}" for number in range(count)]
    assert len({webhook.message_id for webhook in stored}) == count
    assert {json.loads(webhook.body)["asset_report_id"] for webhook in stored} == {
        f"report-{number}" for number in range(count)
    }


class YieldingInbox(MemoryInbox):
    """An inbox that waits before and after each change, as one in a database does."""

    async def add(self, webhook):
        await asyncio.sleep(0)
        added = await super().add(webhook)
        await asyncio.sleep(0)
        return added

    async def store_cursor(self, cursor):
        await asyncio.sleep(0)
        await super().store_cursor(cursor)
        await asyncio.sleep(0)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
async def test_a_recovery_that_is_cancelled_at_any_point_can_be_repeated(plaid, client, late):
    """Wherever a recovery was cancelled, the next one adds what is missing, and nothing twice."""
    for number in range(5):
        payload = {"webhook_type": "ASSETS", "webhook_code": "ERROR", "number": number}
        plaid.world.webhooks.send(OWNER.client_id, "https://lender.example/relay", payload)
    for number in itertools.count(1):
        inbox, point = YieldingInbox(), CancelPoint(number, late)
        task = point.start(client.webhooks.recover(inbox, count=2))
        await asyncio.wait([task])
        assert task.cancelled() or task.result()
        await client.webhooks.recover(inbox, count=2)
        assert sorted(await bodies_of(inbox)) == [0, 1, 2, 3, 4]
        if not point.reached:
            break
    assert number > 15
