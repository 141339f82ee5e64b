"""Fields of a body that Plaid adds before this package does: the argument `extra` of the operations."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
import pickle
from collections import UserDict
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from canaries import assert_error_is_clean, assert_no_canary
from recorder import Recorder
from support import CREATE, GET, OWNER, QUICK

from plaid_relay_async import (
    Created,
    DuplicateRequestError,
    Failed,
    PlaidRelayError,
    RelayClient,
    RelayCreateRequest,
    RelayGetRequest,
    RelayRemoveRequest,
    RequestValidationError,
    RetryPolicy,
    models,
)
from plaid_relay_async.codec import ENDPOINTS
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXTRA = {"field_of_tomorrow": {"canary-name": ["canary-value", 1.5, None, True]}}
CREATED = {"relay_token": "credit-relay-sandbox-1", "request_id": "r"}

CALLS = {
    "relay.create": lambda client, **extra: client.relay.create(["t"], "p", **extra),
    "relay.get": lambda client, **extra: client.relay.get("t", **extra),
    "relay.wait_until_ready": lambda client, **extra: client.relay.wait_until_ready("t", **extra),
    "relay.get_pdf": lambda client, **extra: client.relay.get_pdf("t", **extra),
    "relay.download_pdf": lambda client, **extra: client.relay.download_pdf("t", "unused.pdf", **extra),
    "relay.refresh": lambda client, **extra: client.relay.refresh("t", **extra),
    "relay.remove": lambda client, **extra: client.relay.remove("t", **extra),
    "relay.get_many": lambda client, **extra: client.relay.get_many(["t"], **extra),
    "relay.get_pdf_many": lambda client, **extra: client.relay.get_pdf_many(["t"], **extra),
    "relay.refresh_many": lambda client, **extra: client.relay.refresh_many(["t"], **extra),
    "relay.remove_many": lambda client, **extra: client.relay.remove_many(["t"], **extra),
    "relay.create_many": lambda client, **extra: client.relay.create_many(
        RelayCreateRequest.fan_out(["t"], ["p"], **extra)
    ),
    "asset_report.create": lambda client, **extra: client.asset_report.create(["t"], 30, **extra),
    "asset_report.get": lambda client, **extra: client.asset_report.get("t", **extra),
    "asset_report.wait_until_ready": lambda client, **extra: client.asset_report.wait_until_ready(
        "t", **extra
    ),
    "asset_report.get_pdf": lambda client, **extra: client.asset_report.get_pdf("t", **extra),
    "asset_report.download_pdf": lambda client, **extra: client.asset_report.download_pdf(
        "t", "unused.pdf", **extra
    ),
    "asset_report.refresh": lambda client, **extra: client.asset_report.refresh("t", **extra),
    "asset_report.filter": lambda client, **extra: client.asset_report.filter("t", ["a"], **extra),
    "asset_report.remove": lambda client, **extra: client.asset_report.remove("t", **extra),
    "sandbox.create_public_token": lambda client, **extra: client.sandbox.create_public_token(**extra),
    "sandbox.fire_webhook": lambda client, **extra: client.sandbox.fire_webhook("t", "X", **extra),
    "item.exchange_public_token": lambda client, **extra: client.item.exchange_public_token("t", **extra),
    "item.remove": lambda client, **extra: client.item.remove("t", **extra),
    "webhook_verification_key.get": lambda client, **extra: client.webhook_verification_key.get("k", **extra),
    "webhook_events.list": lambda client, **extra: client.webhook_events.list(**extra),
}


@pytest.fixture
async def upstream() -> AsyncIterator[Recorder]:
    async with Recorder() as recorder:
        yield recorder


@pytest.fixture
async def owner(upstream: Recorder) -> AsyncIterator[RelayClient]:
    async with RelayClient(OWNER, base_url=upstream.url, retry=RetryPolicy(attempts=1)) as client:
        yield client


# ------------------------------------------------------------------------------------- what is sent


def test_every_operation_has_the_argument():
    """The calls above are all methods that send a request, and every request has the attribute."""
    client = RelayClient(OWNER)
    groups = ("relay", "asset_report", "sandbox", "item", "webhook_verification_key", "webhook_events")
    methods = {
        f"{group}.{name}": method
        for group in groups
        for name, method in inspect.getmembers(getattr(client, group), inspect.ismethod)
        if not name.startswith("_")
    }
    assert methods.keys() == CALLS.keys()
    without = {name for name, each in methods.items() if "extra" not in inspect.signature(each).parameters}
    assert without == {"relay.create_many"}  # each of its requests has one
    assert all(issubclass(endpoint.request_type, models.PlaidRequest) for endpoint in ENDPOINTS)


@pytest.mark.parametrize("name", CALLS)
async def test_the_fields_are_sent(upstream, owner, tmp_path, monkeypatch, name):
    """The body has the additional fields, besides those that it has without them."""
    monkeypatch.chdir(tmp_path)
    for extra in ({}, {"extra": EXTRA}):
        with contextlib.suppress(PlaidRelayError):  # most operations expect another response
            await CALLS[name](owner, **extra)
    without, with_extra = upstream.body(0), upstream.body(1)
    assert EXTRA.keys().isdisjoint(without)
    assert with_extra == without | EXTRA


async def test_numbers_are_sent_exactly(upstream, owner):
    """A Decimal is a number with all its digits; the fields are also added to a body with credentials."""
    number = Decimal("12345678901234567890.10")
    await owner.relay.create(["t"], "p", extra={"x": {"y": [number]}})
    assert b'"x":{"y":[12345678901234567890.10]}' in upstream.requests[0]
    async with RelayClient(OWNER, base_url=upstream.url, credentials_in="body") as client:
        await client.relay.create(["t"], "p", extra={"x": 1})
    body = upstream.body()
    assert (body["x"], body["client_id"], body["secret"]) == (1, OWNER.client_id, OWNER.secret)


async def test_what_was_checked_is_sent(upstream, owner):
    """A change of the caller's mapping after the call was created has no effect; any mapping will do."""
    settings = {"limit": 1}
    call = owner.relay.create(["t"], "p", extra=UserDict(settings=settings))
    settings["client_id"] = "x"
    await call
    assert upstream.body()["settings"] == {"limit": 1}
    await owner.relay.create(["t"], "p", extra=MappingProxyType({"x": "y"}))
    assert upstream.body()["x"] == "y"


async def test_a_changed_request_keeps_its_fields(upstream, owner):
    """Even if a program changes the mapping of a request, it can't replace a field that was checked."""
    [request] = RelayCreateRequest.fan_out(["t"], ["p"], extra={"new": 1})
    request.extra["secondary_client_id"] = "another"
    await owner.relay.create_many([request])
    assert upstream.body()["secondary_client_id"] == "p"


@pytest.mark.parametrize("webhook", [None, "https://lender.example/hook"])
async def test_fields_of_the_options(upstream, owner, webhook):
    """Fields of an object that the request has are added to that object, or create it."""
    extra = {"options": {"new": {"webhook": "another"}}, "other": 1}
    with contextlib.suppress(PlaidRelayError):
        await owner.asset_report.create(["t"], 30, webhook=webhook, extra=extra)
    options = {} if webhook is None else {"webhook": webhook}
    expected = {"access_tokens": ["t"], "days_requested": 30, "other": 1}
    assert upstream.body() == expected | {"options": options | extra["options"]}


async def test_nested_options(upstream, owner):
    """The rule applies to objects inside of the options as well."""
    transactions = models.SandboxTransactions(days_requested=3)
    options = models.SandboxPublicTokenCreateOptions(transactions=transactions)
    extra = {"options": {"transactions": {"new": 1}, "statements": {"newer": 2}}}
    with contextlib.suppress(PlaidRelayError):
        await owner.sandbox.create_public_token(options=options, extra=extra)
    assert upstream.body()["options"] == {
        "transactions": {"days_requested": 3, "new": 1},
        "statements": {"newer": 2},
    }


async def test_each_attempt_sends_the_fields(plaid, client):
    """A retry sends the same body."""
    plaid.fail(Fault(path=CREATE, status=429, times=1), Fault(path=CREATE, status=200, body=CREATED))
    created = await client.relay.create(["t"], "p", extra=EXTRA)
    assert (created.relay_token, plaid.counts[CREATE]) == (CREATED["relay_token"], 2)


async def test_plaid_rejects_fields_that_it_does_not_know(plaid, client):
    """As at Plaid, an unknown field is an InvalidRequestError, and nothing is created."""
    with pytest.raises(PlaidRelayError, match="field_of_tomorrow") as caught:
        await client.relay.create([plaid.add_report()], "p", extra=EXTRA)
    assert caught.value.error_code == "UNKNOWN_FIELDS"
    assert not plaid.ledger


# ------------------------------------------------------------------------------------------- batches


async def test_requests_of_a_batch_have_their_own_fields(upstream, owner):
    """A batch sends the fields of each request; its own are for tokens."""
    requests = [RelayCreateRequest(["t"], f"p{n}", extra={"n": n}) for n in range(3)]
    result = await owner.relay.create_many(requests, concurrency=1)
    assert [created.request.extra for created in result.created] == [{"n": n} for n in range(3)]
    assert [upstream.body(n)["n"] for n in range(3)] == [0, 1, 2]
    await owner.relay.get_many([RelayGetRequest("t1"), "t2"], extra={"n": 3}, concurrency=1)
    assert [upstream.body(n).get("n") for n in (3, 4)] == [None, 3]


async def test_the_fields_do_not_identify_a_request(upstream, owner):
    """Two requests of a batch for one pair are duplicates, even if their additional fields differ."""
    requests = [RelayCreateRequest(["t"], "p", extra={"n": n}) for n in range(2)]
    result = await owner.relay.create_many(requests)
    assert (len(result.created), len(upstream.requests)) == (1, 1)
    assert isinstance(result.failed[0].error, DuplicateRequestError)


@pytest.mark.may_block  # SQLAlchemy's own
async def test_a_journal_returns_the_token_of_the_pair(upstream, owner, tmp_path):
    """With a journal, the fields are sent with `{pair}` replaced, and another call for the pair sends nothing."""
    webhook = "https://lender.example/{pair}"
    async with Journal(str(tmp_path / "relay.db"), run="x") as journal:
        first = await owner.relay.create(["t"], "p", webhook=webhook, extra=EXTRA, journal=journal)
        body = upstream.body()
        assert EXTRA.items() <= body.items()
        assert "{" not in body["webhook"]
        request = RelayCreateRequest(["t"], "p", webhook=webhook, extra={"other": 1})
        batch = await owner.relay.create_many([request], journal=journal)
        again = await owner.relay.create(["t"], "p", journal=journal)
    assert first.relay_token == again.relay_token == batch.created[0].relay_token
    assert len(upstream.requests) == 1
    assert "canary" not in (tmp_path / "relay.db").read_bytes().decode(errors="replace")


# ------------------------------------------------------------------------------------- what is refused


def nested(levels: int) -> list[object]:
    value: list[object] = ["canary-deep"]
    for _ in range(levels):
        value = [value]
    return value


def recursive() -> dict[str, object]:
    value: dict[str, object] = {"x": "canary-recursive"}
    value["again"] = value
    return value


INVALID = [
    (["canary-list"], "must be a mapping, not list"),
    ("canary-text", "must be a mapping, not str"),
    ([("x", "canary-pair")], "must be a mapping"),
    (0, "must be a mapping, not int"),
    ({1: "canary-value"}, "must be a string, not int"),
    ({b"x": "canary-value"}, "must be a string, not bytes"),
    ({None: "canary-value"}, "must be a string, not NoneType"),
    ({"": "canary-value"}, "is empty"),
    ({"\udcff": "canary-value"}, "lone surrogate"),
    ({"x": {2: "canary-value"}}, "a name in extra.x must be a string"),
    ({"client_id": "canary-id"}, "contains client_id"),
    ({"secret": "canary-secret"}, "contains secret"),
    ({"x": 1, "secret": None}, "contains secret"),
    ({"report_tokens": ["canary-token"]}, "contains report_tokens, which the request has already"),
    ({"webhook": None}, "contains webhook, which"),
    ({"webhook": {"canary-x": 1}}, "contains webhook, which"),
    ({"x": float("nan")}, "extra.x must be a finite number"),
    ({"x": [1, {"y": float("-inf")}]}, r"extra.x\[1\].y must be a finite number"),
    ({"x": Decimal("sNaN")}, "must be a finite number"),
    ({"x": 10**5000}, "is too large a number"),
    ({"x": b"canary-bytes"}, "must be a JSON value, not bytes"),
    ({"x": date(2026, 1, 2)}, "must be a JSON value, not date"),
    ({"x": ("canary-tuple",)}, "must be a JSON value, not tuple"),
    ({"x": {"canary-set"}}, "must be a JSON value, not set"),
    ({"x": MappingProxyType({"y": "canary-z"})}, "must be a JSON value, not mappingproxy"),
    ({"x": object()}, "must be a JSON value, not object"),
    ({"x": nested(101)}, "is nested too deeply"),
    ({"x": nested(100_000)}, "is nested too deeply"),
    (recursive(), "is nested too deeply"),
    ({"x": {"access-sandbox-canary": b"y"}}, r"extra.x.\[hidden\] must be a JSON value"),
]


@pytest.mark.parametrize(("extra", "problem"), INVALID, ids=[problem for _, problem in INVALID])
async def test_other_fields_are_refused(upstream, owner, extra, problem):
    """The error names `extra`, shows none of its values, and nothing is sent."""
    for call in (
        lambda: owner.relay.create(["t"], "p", extra=extra),
        lambda: RelayCreateRequest(["t"], "p", extra=extra),
        lambda: RelayCreateRequest.fan_out(["t"], ["p"], extra=extra),
    ):
        with pytest.raises(RequestValidationError, match=problem) as caught:
            call()
        assert caught.value.field == "extra"
        assert_error_is_clean(caught.value)
    assert not upstream.requests


@pytest.mark.parametrize(
    ("name", "extra", "field"),
    [
        ("relay.get", {"report_type": "asset"}, "report_type"),
        ("relay.get", {"include_insights": True}, "include_insights"),
        ("relay.remove_many", {"relay_token": "canary-token"}, "relay_token"),
        ("relay.get_many", {"relay_token": "canary-token"}, "relay_token"),
        ("relay.get_pdf_many", {"report_type": "canary-type"}, "report_type"),
        ("relay.refresh_many", {"webhook": "canary-url"}, "webhook"),
        ("asset_report.create", {"options": {"webhook": "canary-url"}}, "options.webhook"),
        ("asset_report.create", {"options": {"user": {"x": "canary"}}}, "options.user"),
        ("asset_report.create", {"options": "canary"}, "options"),
        ("asset_report.create", {"options": None}, "options"),
        ("asset_report.get", {"options": {"days_to_include": 3}}, "options.days_to_include"),
        (
            "sandbox.create_public_token",
            {"options": {"transactions": {"start_date": "canary"}}},
            "options.transactions.start_date",
        ),
    ],
)
async def test_known_fields_are_refused(upstream, owner, name, extra, field):
    """A field that the request can have has its own argument, also inside of the options."""
    with pytest.raises(RequestValidationError, match=f"extra contains {field}, which") as caught:
        CALLS[name](owner, extra=extra)
    assert caught.value.field == "extra"
    assert_error_is_clean(caught.value)
    assert not upstream.requests


# --------------------------------------------------------------------------------------------- secrets


async def test_no_error_or_log_shows_the_fields(plaid, clean_logs):
    """Even if a server quotes them, neither texts nor numbers appear in an error, a traceback or the log."""
    extra = {"x": {"y": ["canary-0815", 987654321]}, "z": Decimal("12345.75")}
    message = "invalid: canary-0815, 987654321 and 12345.75"
    body = {"error_type": "INVALID_REQUEST", "error_code": "INVALID_FIELD", "error_message": message}
    plaid.fail(
        Fault(path=CREATE, status=400, body=body | {"request_id": "canary-0815"}, times=2),
        Fault(path=GET, status=200, body={"canary-0815": [987654321]}),
    )
    async with RelayClient(OWNER, base_url=plaid.url, retry=QUICK) as client:
        for call in (
            lambda: client.relay.create(["t"], "p", extra=extra),
            lambda: client.relay.get("t", extra=extra),
        ):
            with pytest.raises(PlaidRelayError) as caught:
                await call()
            assert_error_is_clean(caught.value)
            assert "987654321" not in str(caught.value)
            assert "12345.75" not in str(caught.value)
        result = await client.relay.create_many([RelayCreateRequest(["t"], "p", extra=extra)])
    [failed] = result.failed
    assert isinstance(failed, Failed)
    assert_no_canary(f"{failed!r} {failed.error!r} {result!r}")
    log = "\n".join(logging.Formatter().format(record) for record in clean_logs.records)
    assert "987654321" not in log


def test_a_request_hides_the_fields():
    """A repr doesn't show them; they count for equality, and a request can be hashed, pickled and copied."""
    request = RelayRemoveRequest("credit-relay", extra=EXTRA)
    assert_no_canary(repr(request))
    assert request == RelayRemoveRequest("credit-relay", extra=copy.deepcopy(EXTRA))
    assert request != RelayRemoveRequest("credit-relay")
    assert hash(request) == hash(RelayRemoveRequest("credit-relay"))
    for clone in (pickle.loads(pickle.dumps(request)), copy.deepcopy(request)):
        assert (clone, clone.extra) == (request, EXTRA)


async def test_an_outcome_has_the_callers_request(upstream, owner):
    """The request of an outcome has the fields that were sent."""
    request = RelayCreateRequest(["t"], "p", extra=EXTRA)
    result = await owner.relay.create_many([request])
    [created] = result.created
    assert isinstance(created, Created)
    assert created.request == request
    assert json.loads(upstream.requests[0].partition(b"\r\n\r\n")[2])["field_of_tomorrow"]
