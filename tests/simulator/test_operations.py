"""The effect of each operation on the state, and the clients that may use it."""

import aiohttp
from hypothesis import given, settings
from hypothesis import strategies as st

from plaid_relay_async.simulator import Simulator

NO_RELAY = (400, "INVALID_INPUT", "INVALID_RELAY_TOKEN")
NO_REPORT = (400, "INVALID_INPUT", "INVALID_ASSET_REPORT_TOKEN")
NOT_READY = (400, "ASSET_REPORT_ERROR", "PRODUCT_NOT_READY")


def relay_body(relay_token, **fields):
    return {"relay_token": relay_token, "report_type": "asset", **fields}


async def test_from_login_to_report(api, clock):
    """A login leads to a public token, an Item, a report token, and after the generation a report."""
    created = await api.report(days=30)
    assert created["asset_report_token"].startswith("assets-sandbox-")
    body = {"asset_report_token": created["asset_report_token"]}
    for path in ("/asset_report/get", "/asset_report/pdf/get"):
        assert (await api(path, body)).error == NOT_READY
    clock.now += 10
    response = await api("/asset_report/get", body)
    assert response.json["report"]["asset_report_id"] == created["asset_report_id"]
    assert response.json["report"]["days_requested"] == 30
    assert response.json["warnings"] == []
    assert response.json["request_id"].isalnum()


async def test_default_generation_delay(api_for):
    """By default the generation of a report takes half a second."""
    async with Simulator() as plaid:
        api = api_for(plaid)
        body = {"client_id": "owner", "secret": "any"}
        login = {"institution_id": "ins_3", "initial_products": ["assets"], **body}
        public_token = (await api("/sandbox/public_token/create", login, client=None)).json["public_token"]
        exchange = {"public_token": public_token, **body}
        access_token = (await api("/item/public_token/exchange", exchange, client=None)).json["access_token"]
        create = {"access_tokens": [access_token], "days_requested": 0, **body}
        token = (await api("/asset_report/create", create, client=None)).json["asset_report_token"]
        get = {"asset_report_token": token, **body}
        assert (await api("/asset_report/get", get, client=None)).error == NOT_READY


async def test_public_token(api, clock):
    """A public token can be exchanged by its own client, repeatedly, for thirty minutes."""
    login = {"institution_id": "ins_109508", "initial_products": ["assets"]}
    created = await api("/sandbox/public_token/create", login)
    body = {"public_token": created.json["public_token"]}
    first, second = (
        await api("/item/public_token/exchange", body),
        await api("/item/public_token/exchange", body),
    )
    assert first.json["access_token"] == second.json["access_token"]
    error = (400, "INVALID_INPUT", "INVALID_PUBLIC_TOKEN")
    assert (await api("/item/public_token/exchange", body, client="other")).error == error
    clock.now += 30 * 60
    assert (await api("/item/public_token/exchange", body)).error == error
    assert (await api("/item/public_token/exchange", {"public_token": "public-sandbox-0"})).error == error


async def test_unknown_institution(api):
    """An institution_id of another form is an error."""
    response = await api(
        "/sandbox/public_token/create", {"institution_id": "bank", "initial_products": ["assets"]}
    )
    assert response.error == (400, "INVALID_INPUT", "INVALID_INSTITUTION")


async def test_item_without_assets(api):
    """A report needs Items that were initialised with the product assets."""
    token = await api.access_token(products=("auth",))
    response = await api("/asset_report/create", {"access_tokens": [token], "days_requested": 1})
    assert response.error == (400, "ASSET_REPORT_ERROR", "PRODUCT_NOT_ENABLED")


async def test_access_token_of_another_client(api):
    """An access token is unknown to other clients, and to its own client after its removal."""
    token = await api.access_token()
    error = (400, "INVALID_INPUT", "INVALID_ACCESS_TOKEN")
    report = {"access_tokens": [token], "days_requested": 1}
    assert (await api("/asset_report/create", report, client="other")).error == error
    assert (await api("/item/remove", {"access_token": token}, client="other")).error == error
    removed = await api("/item/remove", {"access_token": token, "reason_code": "OTHER", "reason_note": None})
    assert set(removed.json) == {"request_id"}
    assert (await api("/asset_report/create", report)).error == error
    assert (await api("/item/remove", {"access_token": token})).error == error


async def test_report_of_another_client(api, clock):
    """Another client can't read, share or remove a report."""
    token = (await api.report())["asset_report_token"]
    clock.now += 10
    body = {"asset_report_token": token}
    for path in ("/asset_report/get", "/asset_report/pdf/get", "/asset_report/remove"):
        assert (await api(path, body, client="other")).error == NO_REPORT
    create = {"report_tokens": [token], "secondary_client_id": "partner"}
    assert (await api("/credit/relay/create", create, client="other")).error == NO_REPORT


async def test_ready_reports_of_every_client(api, plaid):
    """Reports of the constructor and those added later are ready, for every client."""
    added = plaid.add_report()
    assert added.startswith("assets-sandbox-")
    assert plaid.add_report("named") == "named"
    for token in ("ready", added, "named"):
        for client in ("owner", "other"):
            assert (
                await api("/asset_report/get", {"asset_report_token": token}, client=client)
            ).status == 200


async def test_relay_token_before_the_report_is_ready(api, clock, plaid):
    """A report can be shared before it is ready, but only read afterwards."""
    report = await api.report()
    relay_token = await api.relay_token(report["asset_report_token"])
    assert relay_token.startswith("credit-relay-sandbox-")
    for path in ("/credit/relay/get", "/credit/relay/pdf/get"):
        assert (await api(path, relay_body(relay_token), client="partner")).error == NOT_READY
    clock.now += 10
    response = await api("/credit/relay/get", relay_body(relay_token), client="partner")
    own = await api("/asset_report/get", {"asset_report_token": report["asset_report_token"]})
    assert response.json["report"] == own.json["report"]


async def test_each_create_issues_a_token(api, plaid):
    """Two creates for the same report and partner issue two tokens, each with an entry in the ledger."""
    tokens = [await api.relay_token("ready") for _ in range(2)]
    assert tokens[0] != tokens[1]
    assert [entry["relay_token"] for entry in plaid.ledger] == tokens
    assert plaid.ledger[0] == {
        "relay_token": tokens[0],
        "client_id": "owner",
        "secondary_client_id": "partner",
        "request_id": plaid.requests[0].request_id,
        "removed": False,
    }
    assert plaid.ledger[1:] == [plaid.ledger[-1]]


async def test_relay_token_of_another_client(api):
    """Only the partner reads and refreshes, and only the lender removes; all others get the same error."""
    relay_token = await api.relay_token("ready")
    for client in ("owner", "other"):
        for path in ("/credit/relay/get", "/credit/relay/pdf/get", "/credit/relay/refresh"):
            assert (await api(path, relay_body(relay_token), client=client)).error == NO_RELAY
    for client in ("partner", "other"):
        response = await api("/credit/relay/remove", {"relay_token": relay_token}, client=client)
        assert response.error == NO_RELAY
    assert (
        await api("/credit/relay/get", relay_body("credit-relay-sandbox-0"), client="partner")
    ).error == NO_RELAY
    assert (await api("/credit/relay/get", relay_body(relay_token), client="partner")).status == 200


async def test_removed_relay_token(api, plaid):
    """It is unknown to every later call, also to a second remove; other tokens of the report stay valid."""
    removed, valid = await api.relay_token("ready"), await api.relay_token("ready")
    response = await api("/credit/relay/remove", {"relay_token": removed})
    assert response.json["removed"] is True
    for path in ("/credit/relay/get", "/credit/relay/pdf/get", "/credit/relay/refresh"):
        assert (await api(path, relay_body(removed), client="partner")).error == NO_RELAY
    assert (await api("/credit/relay/remove", {"relay_token": removed})).error == NO_RELAY
    assert (await api("/credit/relay/get", relay_body(valid), client="partner")).status == 200
    assert [entry["removed"] for entry in plaid.ledger] == [True, False]


async def test_removed_report(api, clock):
    """Its token is unknown, but a relay token that was issued before still works."""
    token = (await api.report())["asset_report_token"]
    relay_token = await api.relay_token(token)
    clock.now += 10
    assert (await api("/asset_report/remove", {"asset_report_token": token})).json["removed"] is True
    assert (await api("/asset_report/get", {"asset_report_token": token})).error == NO_REPORT
    assert (await api("/asset_report/remove", {"asset_report_token": token})).error == NO_REPORT
    assert (await api("/credit/relay/get", relay_body(relay_token), client="partner")).status == 200


async def test_refresh(api, clock, plaid):
    """The relay token points to a new version, which is generated first; each refresh is recorded."""
    relay_token = await api.relay_token("ready")
    old = (await api("/credit/relay/get", relay_body(relay_token), client="partner")).json["report"]
    refreshed = await api("/credit/relay/refresh", relay_body(relay_token, webhook=None), client="partner")
    assert refreshed.json["relay_token"] == relay_token
    assert (await api("/credit/relay/get", relay_body(relay_token), client="partner")).error == NOT_READY
    clock.now += 10
    new = (await api("/credit/relay/get", relay_body(relay_token), client="partner")).json["report"]
    assert new["asset_report_id"] == refreshed.json["asset_report_id"] != old["asset_report_id"]
    assert new["days_requested"] == old["days_requested"]
    assert new["items"] != old["items"]
    own = (await api("/asset_report/get", {"asset_report_token": "ready"})).json["report"]
    assert own == old
    assert plaid.refreshes == ((relay_token, new["asset_report_id"]),)
    assert len(plaid.ledger) == 1


async def test_pdf(api):
    """A PDF is sent with the request_id in a header, which no other response has."""
    relay_token = await api.relay_token("ready")
    for response in (
        await api("/credit/relay/pdf/get", relay_body(relay_token), client="partner"),
        await api("/asset_report/pdf/get", {"asset_report_token": "ready"}),
    ):
        assert response.headers["Content-Type"] == "application/pdf"
        assert len(response.headers["Plaid-Request-ID"]) == 15
        assert response.raw.startswith(b"%PDF-1.4")
    error = await api("/credit/relay/pdf/get", relay_body("no"), client="partner")
    assert error.headers["Content-Type"] == "application/json"
    for response in (error, await api("/credit/relay/get", relay_body(relay_token), client="partner")):
        assert "Plaid-Request-ID" not in response.headers


steps = st.lists(
    st.tuples(st.sampled_from(["create", "remove"]), st.sampled_from(["owner", "other"]), st.integers(0, 5)),
    max_size=25,
)


@given(steps=steps)
@settings(max_examples=25, deadline=None)
async def test_ledger_agrees_with_the_responses(steps):
    """After any sequence of creates and removes by two lenders, the ledger agrees with the responses."""
    async with Simulator(reports=["ready"]) as plaid, aiohttp.ClientSession() as session:

        async def post(path, body, owner):
            keys = {"client_id": owner, "secret": "any"}
            async with session.post(plaid.url + path, json=body | keys) as response:
                return response.status, await response.json()

        expected = []
        for step, owner, number in steps:
            if step == "create":
                body = {"report_tokens": ["ready"], "secondary_client_id": str(number)}
                _, created = await post("/credit/relay/create", body, owner)
                expected.append([created["relay_token"], owner, str(number), created["request_id"], False])
            elif number < len(expected):
                token = expected[number]
                status, _ = await post("/credit/relay/remove", {"relay_token": token[0]}, owner)
                assert (status == 200) == (token[1] == owner and not token[4])
                token[4] = token[4] or status == 200
        assert [list(entry.values()) for entry in plaid.ledger] == expected
