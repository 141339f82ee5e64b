"""What each operation does to the state, and to whom it answers."""

import aiohttp
from hypothesis import given, settings
from hypothesis import strategies as st

from plaid_relay_async.simulator import Simulator

NO_RELAY = (400, "INVALID_INPUT", "INVALID_RELAY_TOKEN")
NO_REPORT = (400, "INVALID_INPUT", "INVALID_ASSET_REPORT_TOKEN")
NOT_READY = (400, "ASSET_REPORT_ERROR", "PRODUCT_NOT_READY")


def shared(relay_token, **more):
    return {"relay_token": relay_token, "report_type": "asset", **more}


async def test_from_login_to_report(ask, clock):
    """A login becomes a public token, an item, a report token, and after a while a report."""
    made = await ask.report(days=30)
    assert made["asset_report_token"].startswith("assets-sandbox-")
    body = {"asset_report_token": made["asset_report_token"]}
    for path in ("/asset_report/get", "/asset_report/pdf/get"):
        assert (await ask(path, body)).refusal == NOT_READY
    clock.now += 10
    answer = await ask("/asset_report/get", body)
    assert answer.json["report"]["asset_report_id"] == made["asset_report_id"]
    assert answer.json["report"]["days_requested"] == 30
    assert answer.json["warnings"] == []
    assert answer.json["request_id"].isalnum()


async def test_default_generating_time(asking):
    """Without a word about it a report takes half a second."""
    async with Simulator() as plaid:
        ask = asking(plaid)
        body = {"client_id": "owner", "secret": "any"}
        login = {"institution_id": "ins_3", "initial_products": ["assets"], **body}
        public_token = (await ask("/sandbox/public_token/create", login, client=None)).json["public_token"]
        exchange = {"public_token": public_token, **body}
        access_token = (await ask("/item/public_token/exchange", exchange, client=None)).json["access_token"]
        create = {"access_tokens": [access_token], "days_requested": 0, **body}
        token = (await ask("/asset_report/create", create, client=None)).json["asset_report_token"]
        get = {"asset_report_token": token, **body}
        assert (await ask("/asset_report/get", get, client=None)).refusal == NOT_READY


async def test_public_token(ask, clock):
    """It serves its own client, again and again, for thirty minutes."""
    login = {"institution_id": "ins_109508", "initial_products": ["assets"]}
    made = await ask("/sandbox/public_token/create", login)
    body = {"public_token": made.json["public_token"]}
    first, second = (
        await ask("/item/public_token/exchange", body),
        await ask("/item/public_token/exchange", body),
    )
    assert first.json["access_token"] == second.json["access_token"]
    refusal = (400, "INVALID_INPUT", "INVALID_PUBLIC_TOKEN")
    assert (await ask("/item/public_token/exchange", body, client="other")).refusal == refusal
    clock.now += 30 * 60
    assert (await ask("/item/public_token/exchange", body)).refusal == refusal
    assert (await ask("/item/public_token/exchange", {"public_token": "public-sandbox-0"})).refusal == refusal


async def test_unknown_institution(ask):
    """An institution_id that is none is refused."""
    answer = await ask(
        "/sandbox/public_token/create", {"institution_id": "bank", "initial_products": ["assets"]}
    )
    assert answer.refusal == (400, "INVALID_INPUT", "INVALID_INSTITUTION")


async def test_item_without_assets(ask):
    """A report needs Items that were initialised with the product."""
    token = await ask.access_token(products=("auth",))
    answer = await ask("/asset_report/create", {"access_tokens": [token], "days_requested": 1})
    assert answer.refusal == (400, "ASSET_REPORT_ERROR", "PRODUCT_NOT_ENABLED")


async def test_access_token_is_its_clients_own(ask):
    """Another client's access token, and one that was removed, are unknown."""
    token = await ask.access_token()
    refusal = (400, "INVALID_INPUT", "INVALID_ACCESS_TOKEN")
    report = {"access_tokens": [token], "days_requested": 1}
    assert (await ask("/asset_report/create", report, client="other")).refusal == refusal
    assert (await ask("/item/remove", {"access_token": token}, client="other")).refusal == refusal
    removed = await ask("/item/remove", {"access_token": token, "reason_code": "OTHER", "reason_note": None})
    assert set(removed.json) == {"request_id"}
    assert (await ask("/asset_report/create", report)).refusal == refusal
    assert (await ask("/item/remove", {"access_token": token})).refusal == refusal


async def test_report_is_its_owners_own(ask, clock):
    """Another client can neither read, share nor remove a report."""
    token = (await ask.report())["asset_report_token"]
    clock.now += 10
    body = {"asset_report_token": token}
    for path in ("/asset_report/get", "/asset_report/pdf/get", "/asset_report/remove"):
        assert (await ask(path, body, client="other")).refusal == NO_REPORT
    create = {"report_tokens": [token], "secondary_client_id": "partner"}
    assert (await ask("/credit/relay/create", create, client="other")).refusal == NO_REPORT


async def test_ready_reports_serve_every_owner(ask, plaid):
    """Those given at the start and those added are ready, whoever asks."""
    fresh = plaid.add_report()
    assert fresh.startswith("assets-sandbox-")
    assert plaid.add_report("named") == "named"
    for token in ("ready", fresh, "named"):
        for client in ("owner", "other"):
            assert (
                await ask("/asset_report/get", {"asset_report_token": token}, client=client)
            ).status == 200


async def test_relay_token_before_the_report_is_ready(ask, clock, plaid):
    """Sharing needs no ready report, reading does: the practised order."""
    report = await ask.report()
    relay_token = await ask.relay_token(report["asset_report_token"])
    assert relay_token.startswith("credit-relay-sandbox-")
    for path in ("/credit/relay/get", "/credit/relay/pdf/get"):
        assert (await ask(path, shared(relay_token), client="partner")).refusal == NOT_READY
    clock.now += 10
    answer = await ask("/credit/relay/get", shared(relay_token), client="partner")
    own = await ask("/asset_report/get", {"asset_report_token": report["asset_report_token"]})
    assert answer.json["report"] == own.json["report"]


async def test_each_create_mints_a_token(ask, plaid):
    """The same pair twice gets two tokens, each with its line in the ledger."""
    tokens = [await ask.relay_token("ready") for _ in range(2)]
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


async def test_relay_token_is_its_partners_own(ask):
    """The partner alone reads and refreshes, the owner alone removes; all others are told the same."""
    relay_token = await ask.relay_token("ready")
    for client in ("owner", "other"):
        for path in ("/credit/relay/get", "/credit/relay/pdf/get", "/credit/relay/refresh"):
            assert (await ask(path, shared(relay_token), client=client)).refusal == NO_RELAY
    for client in ("partner", "other"):
        answer = await ask("/credit/relay/remove", {"relay_token": relay_token}, client=client)
        assert answer.refusal == NO_RELAY
    assert (
        await ask("/credit/relay/get", shared("credit-relay-sandbox-0"), client="partner")
    ).refusal == NO_RELAY
    assert (await ask("/credit/relay/get", shared(relay_token), client="partner")).status == 200


async def test_removed_relay_token(ask, plaid):
    """It is unknown to every call from then on, a second remove too; others of the same report go on."""
    gone, kept = await ask.relay_token("ready"), await ask.relay_token("ready")
    answer = await ask("/credit/relay/remove", {"relay_token": gone})
    assert answer.json["removed"] is True
    for path in ("/credit/relay/get", "/credit/relay/pdf/get", "/credit/relay/refresh"):
        assert (await ask(path, shared(gone), client="partner")).refusal == NO_RELAY
    assert (await ask("/credit/relay/remove", {"relay_token": gone})).refusal == NO_RELAY
    assert (await ask("/credit/relay/get", shared(kept), client="partner")).status == 200
    assert [entry["removed"] for entry in plaid.ledger] == [True, False]


async def test_removed_report(ask, clock):
    """Its token is unknown, a relay token made of it before still works."""
    token = (await ask.report())["asset_report_token"]
    relay_token = await ask.relay_token(token)
    clock.now += 10
    assert (await ask("/asset_report/remove", {"asset_report_token": token})).json["removed"] is True
    assert (await ask("/asset_report/get", {"asset_report_token": token})).refusal == NO_REPORT
    assert (await ask("/asset_report/remove", {"asset_report_token": token})).refusal == NO_REPORT
    assert (await ask("/credit/relay/get", shared(relay_token), client="partner")).status == 200


async def test_refresh(ask, clock, plaid):
    """The same relay token points at a fresh version, which takes its time; each refresh is counted."""
    relay_token = await ask.relay_token("ready")
    old = (await ask("/credit/relay/get", shared(relay_token), client="partner")).json["report"]
    fresh = await ask("/credit/relay/refresh", shared(relay_token, webhook=None), client="partner")
    assert fresh.json["relay_token"] == relay_token
    assert (await ask("/credit/relay/get", shared(relay_token), client="partner")).refusal == NOT_READY
    clock.now += 10
    new = (await ask("/credit/relay/get", shared(relay_token), client="partner")).json["report"]
    assert new["asset_report_id"] == fresh.json["asset_report_id"] != old["asset_report_id"]
    assert new["days_requested"] == old["days_requested"]
    assert new["items"] != old["items"]
    own = (await ask("/asset_report/get", {"asset_report_token": "ready"})).json["report"]
    assert own == old
    assert plaid.refreshes == ((relay_token, new["asset_report_id"]),)
    assert len(plaid.ledger) == 1


async def test_pdf(ask):
    """Bytes of a PDF, with the request_id in a header: there, and nowhere else."""
    relay_token = await ask.relay_token("ready")
    for answer in (
        await ask("/credit/relay/pdf/get", shared(relay_token), client="partner"),
        await ask("/asset_report/pdf/get", {"asset_report_token": "ready"}),
    ):
        assert answer.headers["Content-Type"] == "application/pdf"
        assert len(answer.headers["Plaid-Request-ID"]) == 15
        assert answer.raw.startswith(b"%PDF-1.4")
    refused = await ask("/credit/relay/pdf/get", shared("no"), client="partner")
    assert refused.headers["Content-Type"] == "application/json"
    for answer in (refused, await ask("/credit/relay/get", shared(relay_token), client="partner")):
        assert "Plaid-Request-ID" not in answer.headers


steps = st.lists(
    st.tuples(st.sampled_from(["create", "remove"]), st.sampled_from(["owner", "other"]), st.integers(0, 5)),
    max_size=25,
)


@given(steps=steps)
@settings(max_examples=25, deadline=None)
async def test_ledger_agrees_with_what_was_answered(steps):
    """Whatever several owners create and remove, the ledger tells it as the answers did."""
    async with Simulator(reports=["ready"]) as plaid, aiohttp.ClientSession() as session:

        async def post(path, body, owner):
            keys = {"client_id": owner, "secret": "any"}
            async with session.post(plaid.url + path, json=body | keys) as answer:
                return answer.status, await answer.json()

        known = []
        for step, owner, number in steps:
            if step == "create":
                body = {"report_tokens": ["ready"], "secondary_client_id": str(number)}
                _, made = await post("/credit/relay/create", body, owner)
                known.append([made["relay_token"], owner, str(number), made["request_id"], False])
            elif number < len(known):
                token = known[number]
                status, _ = await post("/credit/relay/remove", {"relay_token": token[0]}, owner)
                assert (status == 200) == (token[1] == owner and not token[4])
                token[4] = token[4] or status == 200
        assert [list(entry.values()) for entry in plaid.ledger] == known
