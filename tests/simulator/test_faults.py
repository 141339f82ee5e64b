"""Scripted faults: each kind, before and after the state is acted upon, and the rules that choose."""

import asyncio
import json
import time

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaid_relay_async.simulator import Fault, Simulator

CREATE = "/credit/relay/create"
GOOD = {"report_tokens": ["ready"], "secondary_client_id": "partner"}
BAD = {"report_tokens": ["no such"], "secondary_client_id": "partner"}
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
async def test_status_alone_is_plaids_own_error(ask, plaid, status, error_type, error_code):
    """A status without a body gets the full error that Plaid would send with it."""
    plaid.fail(Fault(status=status))
    answer = await ask(CREATE, GOOD)
    assert answer.refusal == (status, error_type, error_code)
    assert answer.json["request_id"] == plaid.requests[0].request_id
    assert len(answer.json) == 7


@pytest.mark.parametrize(
    ("code", "status", "error_type"),
    [
        ("DATA_QUALITY_CHECK_FAILED", 400, "ASSET_REPORT_ERROR"),
        ("CREDITS_EXHAUSTED", 429, "RATE_LIMIT_EXCEEDED"),
        ("ITEM_LOGIN_REQUIRED", 400, "ITEM_ERROR"),
        ("NO_LONGER_AVAILABLE", 404, "INVALID_REQUEST"),
    ],
)
async def test_code_of_plaids_brings_its_type(ask, plaid, code, status, error_type):
    """Of an error body with one of Plaid's codes the rest is what belongs to the code."""
    plaid.fail(Fault(status=status, body={"error_code": code}))
    answer = await ask(CREATE, GOOD)
    assert answer.refusal == (status, error_type, code)
    assert answer.json["request_id"] == plaid.requests[0].request_id


@pytest.mark.parametrize(("when", "minted"), [("before", 0), ("after", 1)])
@pytest.mark.parametrize(
    "effect", [{"status": 500}, {"close": True}, {"stall": 0.01}, {"status": 200, "body": {}}]
)
async def test_before_and_after(ask, plaid, when, minted, effect):
    """Before: the state is as it was. After: a relay token was minted, and the ledger knows it."""
    plaid.fail(Fault(path=CREATE, when=when, **effect))
    if "status" in effect:
        assert (await ask(CREATE, GOOD)).status == effect["status"]
    else:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await ask(CREATE, GOOD)
    assert len(plaid.ledger) == minted
    [received] = plaid.requests
    assert received.executed is bool(minted)
    assert received.status == effect.get("status")


@pytest.mark.parametrize("effect", [{"status": 500}, {"close": True}, {"truncate": 3}])
async def test_after_a_request_that_is_refused_anyway(ask, plaid, effect):
    """The fault shows all the same, and nothing was carried out."""
    plaid.fail(Fault(when="after", **effect))
    if "status" in effect:
        assert (await ask(CREATE, BAD)).status == 500
    else:
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)):
            await ask(CREATE, BAD)
    assert len(plaid.ledger) == 0
    assert plaid.requests[0].executed is False


@pytest.mark.parametrize("length", [0, 10])
async def test_truncate(plaid, session, length):
    """The true headers, so many bytes of the true body, and the end of the connection."""
    plaid.fail(Fault(truncate=length))
    keys = {"client_id": "owner", "secret": "owner-secret"}
    async with session.post(plaid.url + CREATE, json=GOOD | keys) as answer:
        assert answer.status == 200
        got = await answer.content.readany() if length else b""
        assert len(got) == length < int(answer.headers["Content-Length"])
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    whole = json.dumps(
        {"relay_token": plaid.ledger[0]["relay_token"], "request_id": plaid.ledger[0]["request_id"]}
    )
    assert int(answer.headers["Content-Length"]) == len(whole)
    assert whole.encode().startswith(got)
    assert plaid.requests[0].executed is True
    assert plaid.requests[0].status is None


async def test_stall_ends_when_its_time_is_up(ask, plaid):
    """Nothing is answered for so long, then the connection ends."""
    plaid.fail(Fault(stall=0.05))
    began = time.monotonic()
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await ask(CREATE, GOOD)
    assert time.monotonic() - began >= 0.045


@pytest.mark.parametrize("when", ["before", "after"])
async def test_latency_alone(ask, plaid, when, arrived):
    """The wait is before or after the request is acted upon; the answer is the usual one."""
    plaid.fail(Fault(latency=0.3, when=when))
    answering = asyncio.create_task(ask(CREATE, GOOD))
    await arrived(1)
    await asyncio.sleep(0.01)
    assert len(plaid.ledger) == (when == "after")
    assert (await answering).json["relay_token"] == plaid.ledger[0]["relay_token"]


@pytest.mark.parametrize("effect", [{"status": 503}, {"close": True}, {"truncate": 1}, {"stall": 0.0}])
async def test_latency_with_each_of_the_others(ask, plaid, effect):
    """The fault comes after the wait."""
    plaid.fail(Fault(latency=0.03, **effect))
    began = time.monotonic()
    try:
        assert (await ask(CREATE, GOOD)).status == 503
    except aiohttp.ClientError:
        assert "status" not in effect
    assert time.monotonic() - began >= 0.025


async def test_base_latency(asking):
    """A simulator may be slow as a whole."""
    async with Simulator(latency=0.03) as plaid:
        began = time.monotonic()
        await asking(plaid)("/nowhere")
        assert time.monotonic() - began >= 0.025


async def test_body_laid_over_the_error(ask, plaid):
    """An object with an error_code or error_type changes parts of the full body."""
    plaid.fail(Fault(status=429, body={"error_code": "CREDITS_EXHAUSTED"}, headers={"Retry-After": "7"}))
    answer = await ask(CREATE, GOOD)
    assert answer.refusal == (429, "RATE_LIMIT_EXCEEDED", "CREDITS_EXHAUSTED")
    assert answer.json["request_id"]
    assert answer.headers["Retry-After"] == "7"


@pytest.mark.parametrize("body", [{"message": "no"}, [1, 2], 5, False, {}])
async def test_other_json_is_sent_as_it_is(ask, plaid, body):
    """What is no error of Plaid's is left alone."""
    plaid.fail(Fault(status=500, body=body))
    assert (await ask(CREATE, GOOD)).json == body


async def test_text_is_sent_as_html(ask, plaid):
    """As a middle box would."""
    plaid.fail(Fault(status=502, body="<h1>Bad Gateway</h1>"))
    answer = await ask(CREATE, GOOD)
    assert (answer.status, answer.raw) == (502, b"<h1>Bad Gateway</h1>")
    assert answer.headers["Content-Type"] == "text/html"


async def test_headers_of_a_faults_own(ask, plaid):
    """They come beside the usual ones, or in their place."""
    plaid.fail(Fault(status=503, body="down", headers={"content-type": "text/plain", "Retry-After": "3"}))
    answer = await ask(CREATE, GOOD)
    assert answer.headers.getall("Content-Type") == ["text/plain"]
    assert answer.headers["Retry-After"] == "3"


async def test_redirect(ask, plaid):
    """Below 400 there is no body unless one is given."""
    plaid.fail(Fault(status=307, headers={"Location": "http://127.0.0.1:1/"}))
    answer = await ask(CREATE, GOOD)
    assert (answer.status, answer.raw, answer.headers["Location"]) == (307, b"", "http://127.0.0.1:1/")


async def test_which_requests_are_struck(ask, plaid):
    """Those of the path and of the partner, if these are given; the first rule that matches wins."""
    plaid.fail(
        Fault(path="/credit/relay/get", status=500),
        Fault(path=CREATE, secondary_client_id="p1", status=501),
        Fault(secondary_client_id="p2", status=502),
        Fault(path=CREATE, secondary_client_id="p2", status=503),
    )
    statuses = [(await ask(CREATE, GOOD | {"secondary_client_id": f"p{n}"})).status for n in range(3)]
    assert statuses == [200, 501, 502]
    assert (await ask("/credit/relay/get", {})).status == 500
    assert (await ask("/nowhere", {"secondary_client_id": "p2"})).status == 502


async def test_even_nonsense_is_struck(ask, plaid):
    """A fault before acting needs no request that makes sense."""
    plaid.fail(Fault(secondary_client_id="p", status=503), Fault(status=500))
    assert (await ask(CREATE, data=b"{")).status == 500
    assert (await ask(CREATE, {"secondary_client_id": ["p"]})).status == 500


async def test_times(ask, plaid):
    """A rule strikes so often, then the next one may."""
    plaid.fail(Fault(status=500, times=2), Fault(status=503, times=1), Fault(status=429, times=0))
    assert [(await ask(CREATE, GOOD)).status for _ in range(4)] == [500, 500, 503, 200]


async def test_rate(asking):
    """A fraction of the matching requests is struck, the same ones for the same seed."""

    async def struck(seed):
        async with Simulator(
            seed=seed, faults=[Fault(status=500, rate=0.5), Fault(status=503, rate=0)]
        ) as plaid:
            return [(await asking(plaid)("/nowhere")).status for _ in range(40)]

    first = await struck(1)
    assert first == await struck(1) != await struck(2)
    assert 8 < first.count(500) < 32
    assert set(first) == {500, 404}


async def test_heal(ask, plaid):
    """All rules are dropped."""
    plaid.fail(Fault(status=500), Fault(close=True))
    plaid.clear_faults()
    assert (await ask(CREATE, GOOD)).status == 200


NONSENSE = [
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


@pytest.mark.parametrize(("rule", "named"), NONSENSE)
def test_nonsense_is_refused_by_name(rule, named):
    """A rule that can't be meant says which field is wrong."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        Fault(**rule)


def test_no_token_in_a_repr():
    """What a scripted answer holds is not shown."""
    shown = repr(Fault(status=200, body={"relay_token": "canary"}, headers={"X": "canary"}))
    assert "canary" not in shown
    assert "status=200" in shown


# The script over HTTP


async def test_script_replaces_the_rules(ask, plaid):
    """Posted rules take the place of those in force."""
    plaid.fail(Fault(status=500))
    script = {"faults": [{"path": CREATE, "status": 503, "times": 1}, {"latency": 0.0}]}
    answer = await ask("/_simulator/faults", script, client=None)
    assert (answer.status, answer.json) == (200, {"faults": 2})
    assert [(await ask(CREATE, GOOD)).status for _ in range(2)] == [503, 200]
    assert (await ask("/_simulator/faults", {"faults": []}, client=None)).json == {"faults": 0}


@pytest.mark.parametrize(
    ("script", "named"),
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
async def test_bad_script(ask, plaid, script, named):
    """It is refused whole, with the rule, the field and what is allowed; the rules in force stay."""
    plaid.fail(Fault(status=503))
    answer = await ask("/_simulator/faults", script, client=None)
    assert answer.status == 400
    assert answer.json["error"].startswith(named)
    assert (await ask(CREATE, GOOD)).status == 503


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
def test_a_rule_does_one_thing_or_is_refused(rule):
    """Whatever is asked for: a ValueError that names a field, or a fault with at most one effect."""
    try:
        fault = Fault(**rule)
    except ValueError as error:
        named = str(error).partition(":")[0]
    else:
        named = None
    if named:
        assert named in {attribute.name for attribute in Fault.__attrs_attrs__}
    else:
        effects = [fault.status is not None, fault.close, fault.truncate is not None, fault.stall is not None]
        assert sum(effects) == 1 or (sum(effects) == 0 and fault.latency is not None)
