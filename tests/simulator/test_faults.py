"""Scripted faults: each effect, before and after the execution, and the choice of the requests."""

import asyncio
import json
import time

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaid_relay_async.simulator import Fault, Simulator, WebhookFault

CREATE = "/credit/relay/create"
VALID_BODY = {"report_tokens": ["ready"], "secondary_client_id": "partner"}
INVALID_BODY = {"report_tokens": ["no such"], "secondary_client_id": "partner"}
LONG = 1000.0


@pytest.mark.parametrize(
    ("status", "error_type", "error_code"),
    [
        (400, "INVALID_REQUEST", "INVALID_FIELD"),
        (404, "INVALID_REQUEST", "NOT_FOUND"),
        (429, "RATE_LIMIT_EXCEEDED", "RATE_LIMIT"),
        (500, "API_ERROR", "INTERNAL_SERVER_ERROR"),
        (502, "API_ERROR", "INTERNAL_SERVER_ERROR"),
        (503, "API_ERROR", "PLANNED_MAINTENANCE"),
    ],
)
async def test_status_without_body_sends_plaids_error(api, plaid, status, error_type, error_code):
    """A status without a body leads to the complete error body that Plaid sends with that status."""
    plaid.fail(Fault(status=status))
    response = await api(CREATE, VALID_BODY)
    assert response.error == (status, error_type, error_code)
    assert response.json["request_id"] == plaid.requests[0].request_id
    assert len(response.json) == 7


@pytest.mark.parametrize(
    ("code", "status", "error_type"),
    [
        ("DATA_QUALITY_CHECK_FAILED", 400, "ASSET_REPORT_ERROR"),
        ("CREDITS_EXHAUSTED", 429, "RATE_LIMIT_EXCEEDED"),
        ("ITEM_LOGIN_REQUIRED", 400, "ITEM_ERROR"),
        ("NO_LONGER_AVAILABLE", 404, "INVALID_REQUEST"),
    ],
)
async def test_error_code_determines_the_type(api, plaid, code, status, error_type):
    """An error body with one of Plaid's codes is completed with the other fields of that code."""
    plaid.fail(Fault(status=status, body={"error_code": code}))
    response = await api(CREATE, VALID_BODY)
    assert response.error == (status, error_type, code)
    assert response.json["request_id"] == plaid.requests[0].request_id


@pytest.mark.parametrize(("when", "issued"), [("before", 0), ("after", 1)])
@pytest.mark.parametrize(
    "effect", [{"status": 500}, {"close": True}, {"stall": 0.01}, {"status": 200, "body": {}}]
)
async def test_before_and_after(api, plaid, when, issued, effect):
    """Before: the state is unchanged. After: a relay token was issued, and is in the ledger."""
    plaid.fail(Fault(path=CREATE, when=when, **effect))
    if "status" in effect:
        assert (await api(CREATE, VALID_BODY)).status == effect["status"]
    else:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await api(CREATE, VALID_BODY)
    assert len(plaid.ledger) == issued
    [received] = plaid.requests
    assert received.executed is bool(issued)
    assert received.status == effect.get("status")


@pytest.mark.parametrize("effect", [{"status": 500}, {"close": True}, {"truncate": 3}])
async def test_fault_after_an_invalid_request(api, plaid, effect):
    """The fault still applies, and nothing was executed."""
    plaid.fail(Fault(when="after", **effect))
    if "status" in effect:
        assert (await api(CREATE, INVALID_BODY)).status == 500
    else:
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)):
            await api(CREATE, INVALID_BODY)
    assert len(plaid.ledger) == 0
    assert plaid.requests[0].executed is False


@pytest.mark.parametrize("length", [0, 10])
async def test_truncate(plaid, session, length):
    """The headers and the first `length` bytes of the body are sent, and the connection is closed."""
    plaid.fail(Fault(truncate=length))
    keys = {"client_id": "owner", "secret": "owner-secret"}
    async with session.post(plaid.url + CREATE, json=VALID_BODY | keys) as response:
        assert response.status == 200
        received = await response.content.readany() if length else b""
        assert len(received) == length < int(response.headers["Content-Length"])
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    complete = json.dumps(
        {"relay_token": plaid.ledger[0]["relay_token"], "request_id": plaid.ledger[0]["request_id"]}
    )
    assert int(response.headers["Content-Length"]) == len(complete)
    assert complete.encode().startswith(received)
    assert plaid.requests[0].executed is True
    assert plaid.requests[0].status is None


async def test_unused_faults(api, plaid):
    """`unused_faults` has the faults that have not applied yet, without those that never do."""
    used, unused, webhook_fault = Fault(status=500, times=2), Fault(status=503), WebhookFault(lose=True)
    plaid.fail(used, unused, Fault(status=400, times=0), webhook_fault)
    assert plaid.unused_faults == (used, unused, webhook_fault)
    await api(CREATE, VALID_BODY)
    assert plaid.unused_faults == (unused, webhook_fault)
    plaid.clear_faults()
    assert plaid.unused_faults == ()


async def test_stall_ends_after_its_time(api, plaid):
    """Nothing is sent for that many seconds, and the connection is closed."""
    plaid.fail(Fault(stall=0.05))
    started_at = time.monotonic()
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await api(CREATE, VALID_BODY)
    assert time.monotonic() - started_at >= 0.045


@pytest.mark.parametrize("when", ["before", "after"])
async def test_latency_alone(api, plaid, when, wait_for_requests):
    """The wait is before or after the execution; the response is the usual one."""
    plaid.fail(Fault(latency=0.3, when=when))
    task = asyncio.create_task(api(CREATE, VALID_BODY))
    await wait_for_requests(1)
    await asyncio.sleep(0.01)
    assert len(plaid.ledger) == (when == "after")
    assert (await task).json["relay_token"] == plaid.ledger[0]["relay_token"]


@pytest.mark.parametrize("effect", [{"status": 503}, {"close": True}, {"truncate": 1}, {"stall": 0.0}])
async def test_latency_with_each_other_effect(api, plaid, effect):
    """The other effect follows the wait."""
    plaid.fail(Fault(latency=0.03, **effect))
    started_at = time.monotonic()
    try:
        assert (await api(CREATE, VALID_BODY)).status == 503
    except aiohttp.ClientError:
        assert "status" not in effect
    assert time.monotonic() - started_at >= 0.025


async def test_base_latency(api_for):
    """A simulator can delay all requests."""
    async with Simulator(latency=0.03) as plaid:
        started_at = time.monotonic()
        await api_for(plaid)("/nowhere")
        assert time.monotonic() - started_at >= 0.025


async def test_body_replaces_fields_of_the_error(api, plaid):
    """The fields of an object with an error_code or error_type replace those of Plaid's error body."""
    plaid.fail(Fault(status=429, body={"error_code": "CREDITS_EXHAUSTED"}, headers={"Retry-After": "7"}))
    response = await api(CREATE, VALID_BODY)
    assert response.error == (429, "RATE_LIMIT_EXCEEDED", "CREDITS_EXHAUSTED")
    assert response.json["request_id"]
    assert response.headers["Retry-After"] == "7"


@pytest.mark.parametrize("body", [{"message": "no"}, [1, 2], 5, False, {}])
async def test_other_json_is_sent_as_it_is(api, plaid, body):
    """A body that is no error of Plaid's isn't changed."""
    plaid.fail(Fault(status=500, body=body))
    assert (await api(CREATE, VALID_BODY)).json == body


async def test_text_is_sent_as_html(api, plaid):
    """A string is sent as HTML, as an intermediary's error page."""
    plaid.fail(Fault(status=502, body="<h1>Bad Gateway</h1>"))
    response = await api(CREATE, VALID_BODY)
    assert (response.status, response.raw) == (502, b"<h1>Bad Gateway</h1>")
    assert response.headers["Content-Type"] == "text/html"


async def test_headers_of_a_fault(api, plaid):
    """They are added to the usual headers, or replace those of the same name."""
    plaid.fail(Fault(status=503, body="down", headers={"content-type": "text/plain", "Retry-After": "3"}))
    response = await api(CREATE, VALID_BODY)
    assert response.headers.getall("Content-Type") == ["text/plain"]
    assert response.headers["Retry-After"] == "3"


async def test_redirect(api, plaid):
    """Below 400 the default body is empty."""
    plaid.fail(Fault(status=307, headers={"Location": "http://127.0.0.1:1/"}))
    response = await api(CREATE, VALID_BODY)
    assert (response.status, response.raw, response.headers["Location"]) == (307, b"", "http://127.0.0.1:1/")


async def test_requests_that_a_fault_applies_to(api, plaid):
    """A rule's path and partner must match, if it has them; the first rule that matches is applied."""
    plaid.fail(
        Fault(path="/credit/relay/get", status=500),
        Fault(path=CREATE, secondary_client_id="p1", status=501),
        Fault(secondary_client_id="p2", status=502),
        Fault(path=CREATE, secondary_client_id="p2", status=503),
    )
    statuses = [(await api(CREATE, VALID_BODY | {"secondary_client_id": f"p{n}"})).status for n in range(3)]
    assert statuses == [200, 501, 502]
    assert (await api("/credit/relay/get", {})).status == 500
    assert (await api("/nowhere", {"secondary_client_id": "p2"})).status == 502


async def test_faults_apply_to_invalid_requests(api, plaid):
    """A fault before the execution applies to a request with an invalid body too."""
    plaid.fail(Fault(secondary_client_id="p", status=503), Fault(status=500))
    assert (await api(CREATE, data=b"{")).status == 500
    assert (await api(CREATE, {"secondary_client_id": ["p"]})).status == 500


async def test_times(api, plaid):
    """A rule applies to at most `times` requests; after that, later rules apply."""
    plaid.fail(Fault(status=500, times=2), Fault(status=503, times=1), Fault(status=429, times=0))
    assert [(await api(CREATE, VALID_BODY)).status for _ in range(4)] == [500, 500, 503, 200]


async def test_rate(api_for):
    """A rule applies to a fraction of the matching requests, to the same ones for the same seed."""

    async def statuses(seed):
        async with Simulator(
            seed=seed, faults=[Fault(status=500, rate=0.5), Fault(status=503, rate=0)]
        ) as plaid:
            return [(await api_for(plaid)("/nowhere")).status for _ in range(40)]

    first = await statuses(1)
    assert first == await statuses(1) != await statuses(2)
    assert 8 < first.count(500) < 32
    assert set(first) == {500, 404}


async def test_clear_faults(api, plaid):
    """All rules are removed."""
    plaid.fail(Fault(status=500), Fault(close=True))
    plaid.clear_faults()
    assert (await api(CREATE, VALID_BODY)).status == 200


INVALID_RULES = [
    ({}, "status"),
    ({"when": "after"}, "status"),
    ({"status": 500, "close": True}, "close"),
    ({"status": 500, "truncate": 0}, "truncate"),
    ({"close": True, "stall": 1}, "stall"),
    ({"truncate": 0, "stall": 0}, "stall"),
    ({"close": True, "body": {}}, "body"),
    ({"close": True, "headers": {"A": "b"}}, "headers"),
    ({"status": 199}, "status"),
    ({"status": 600}, "status"),
    ({"status": True}, "status"),
    ({"status": "500"}, "status"),
    ({"status": 500, "body": {1j}}, "body"),
    ({"status": 500, "headers": {"A": 1}}, "headers"),
    ({"status": 500, "headers": {"A": "b\r\nC: d"}}, "headers"),
    ({"status": 500, "headers": ["A"]}, "headers"),
    ({"status": 500, "headers": {"": "a"}}, "headers"),
    ({"status": 500, "headers": {5: "a"}}, "headers"),
    ({"status": 500, "headers": {"content-length": "5"}}, "headers"),
    ({"truncate": -1}, "truncate"),
    ({"truncate": 1.5}, "truncate"),
    ({"stall": -1}, "stall"),
    ({"latency": float("nan")}, "latency"),
    ({"close": 1}, "close"),
    ({"close": True, "rate": 1.1}, "rate"),
    ({"close": True, "rate": None}, "rate"),
    ({"close": True, "times": -1}, "times"),
    ({"close": True, "when": "during"}, "when"),
    ({"close": True, "when": ["before"]}, "when"),
    ({"close": True, "path": "credit"}, "path"),
    ({"close": True, "path": "/_simulator/ledger"}, "path"),
    ({"close": True, "path": 5}, "path"),
    ({"close": True, "secondary_client_id": 5}, "secondary_client_id"),
]


@pytest.mark.parametrize(("rule", "field"), INVALID_RULES)
def test_invalid_rules_raise_an_error_with_the_field(rule, field):
    """An invalid rule is a ValueError that names the field."""
    with pytest.raises(ValueError, match=f"^{field}: "):
        Fault(**rule)


def test_no_token_in_a_repr():
    """The repr of a fault shows neither body nor headers."""
    shown = repr(Fault(status=200, body={"relay_token": "canary"}, headers={"X": "canary"}))
    assert "canary" not in shown
    assert "status=200" in shown


# The script over HTTP


async def test_script_replaces_the_rules(api, plaid):
    """Posted rules replace those in force."""
    plaid.fail(Fault(status=500))
    script = {"faults": [{"path": CREATE, "status": 503, "times": 1}, {"latency": 0.0}]}
    response = await api("/_simulator/faults", script, client=None)
    assert (response.status, response.json) == (200, {"faults": 2})
    assert [(await api(CREATE, VALID_BODY)).status for _ in range(2)] == [503, 200]
    assert (await api("/_simulator/faults", {"faults": []}, client=None)).json == {"faults": 0}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({}, "the script must be"),
        ([], "the script must be"),
        ({"faults": [], "more": 1}, "the script must be"),
        ({"faults": {}}, "the script must be"),
        ({"faults": [{"close": True}, 5]}, "faults[1]: must be an object"),
        ({"faults": [{"close": True, "often": 1}]}, "faults[0].often: unknown field; allowed are: path, "),
        ({"faults": [{"status": 99}]}, "faults[0].status: must be an integer from 200 to 599"),
    ],
)
async def test_invalid_script(api, plaid, script, message):
    """It is rejected with the rule, the field and what is allowed; the rules in force don't change."""
    plaid.fail(Fault(status=503))
    response = await api("/_simulator/faults", script, client=None)
    assert response.status == 400
    assert response.json["error"].startswith(message)
    assert (await api(CREATE, VALID_BODY)).status == 503


rules = st.fixed_dictionaries(
    {},
    optional={
        "path": st.none() | st.text(max_size=5),
        "when": st.sampled_from(["before", "after", 1]),
        "times": st.none() | st.integers(-1, 3),
        "rate": st.floats() | st.booleans(),
        "status": st.none() | st.integers(100, 700),
        "close": st.booleans() | st.none(),
        "truncate": st.none() | st.integers(-1, 5),
        "stall": st.none() | st.floats(),
        "latency": st.none() | st.floats(),
        "headers": st.dictionaries(st.text(max_size=3), st.text(max_size=3)),
        "body": st.none() | st.text(max_size=3),
    },
)


@given(rule=rules)
@settings(deadline=None)
def test_a_rule_has_one_effect_or_is_invalid(rule):
    """Any arguments lead to a ValueError that names a field, or to a fault with at most one effect."""
    try:
        fault = Fault(**rule)
    except ValueError as error:
        field = str(error).partition(":")[0]
    else:
        field = None
    if field:
        assert field in {attribute.name for attribute in Fault.__attrs_attrs__}
    else:
        effects = [fault.status is not None, fault.close, fault.truncate is not None, fault.stall is not None]
        assert sum(effects) == 1 or (sum(effects) == 0 and fault.latency is not None)
