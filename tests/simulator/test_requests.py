"""What a request must be before anything is done: Plaid's checks, in Plaid's order."""

import json

import pytest

from plaid_relay_async.simulator import Simulator

CREATE = "/credit/relay/create"
GOOD = {"report_tokens": ["ready"], "secondary_client_id": "partner"}
MISSING = (400, "INVALID_REQUEST", "MISSING_FIELDS")
INVALID_FIELD = (400, "INVALID_REQUEST", "INVALID_FIELD")
WRONG_KEYS = (400, "INVALID_INPUT", "INVALID_API_KEYS")


async def test_error_body_is_always_full(ask):
    """Every refusal holds all of Plaid's fields, a fresh request_id among them."""
    first, second = await ask("/nowhere"), await ask("/nowhere")
    assert set(first.json) == {
        "display_message",
        "documentation_url",
        "error_code",
        "error_message",
        "error_type",
        "request_id",
        "suggested_action",
    }
    assert first.json["display_message"] is first.json["suggested_action"] is None
    assert first.json["documentation_url"].startswith("https://plaid.com/docs/?ref=error#")
    assert len(first.json["request_id"]) == 15
    assert first.json["request_id"].isalnum()
    assert first.json["request_id"] != second.json["request_id"]
    assert first.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/nowhere"), ("GET", CREATE), ("PUT", CREATE), ("POST", "/")]
)
async def test_unknown_path_or_method(ask, method, path):
    """There is nothing but Plaid's own paths, and POST."""
    assert (await ask(path, GOOD, method=method)).refusal == (404, "INVALID_REQUEST", "NOT_FOUND")


async def test_content_type(ask):
    """JSON must be called JSON; a charset beside it is fine."""
    raw = json.dumps(GOOD).encode()
    assert (await ask(CREATE, data=raw)).refusal == (400, "INVALID_REQUEST", "INVALID_HEADERS")
    fine = await ask(CREATE, data=raw, headers={"Content-Type": "application/json; charset=utf-8"})
    assert fine.status == 200


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"[" * 100_000])
async def test_body_must_be_one_object(ask, raw):
    """Anything but one JSON object is no body at all."""
    answer = await ask(CREATE, data=raw, headers={"Content-Type": "application/json"})
    assert answer.refusal == (400, "INVALID_REQUEST", "INVALID_BODY")


@pytest.mark.parametrize(
    ("headers", "body", "named"),
    [
        ({}, {}, "client_id, secret"),
        ({"PLAID-CLIENT-ID": "owner"}, {}, "secret"),
        ({}, {"secret": "owner-secret"}, "client_id"),
        ({"PLAID-CLIENT-ID": "", "PLAID-SECRET": ""}, {}, "client_id, secret"),
        ({}, {"client_id": "", "secret": None}, "client_id, secret"),
    ],
)
async def test_missing_credentials_are_named(ask, headers, body, named):
    """Credentials that are absent or empty are missing fields, and the error says which."""
    answer = await ask(CREATE, GOOD | body, client=None, headers=headers)
    assert answer.refusal == MISSING
    assert answer.json["error_message"].endswith(f": {named}")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"PLAID-CLIENT-ID": "owner", "PLAID-SECRET": "owner-secret"}, {}),
        ({}, {"client_id": "owner", "secret": "owner-secret"}),
        ({"PLAID-CLIENT-ID": "owner"}, {"secret": "owner-secret"}),
        (
            {"PLAID-CLIENT-ID": "owner", "PLAID-SECRET": "owner-secret"},
            {"client_id": "owner", "secret": "owner-secret"},
        ),
    ],
)
async def test_credentials_in_headers_or_body(ask, plaid, headers, body):
    """Both places are taken, and a mixture of them."""
    answer = await ask(CREATE, GOOD | body, client=None, headers=headers)
    assert answer.status == 200
    assert plaid.ledger[0]["client_id"] == plaid.requests[0].client_id == "owner"


@pytest.mark.parametrize("pair", [("owner", "other-secret"), ("stranger", "owner-secret")])
async def test_wrong_credentials(ask, pair):
    """A pair that isn't one of the clients' is refused with 400, as Plaid does, not 401."""
    body = GOOD | {"client_id": pair[0], "secret": pair[1]}
    assert (await ask(CREATE, body, client=None)).refusal == WRONG_KEYS


async def test_credentials_of_the_wrong_type(ask, plaid):
    """A number is no client_id."""
    answer = await ask(CREATE, GOOD | {"client_id": 7, "secret": "owner-secret"}, client=None)
    assert answer.refusal == INVALID_FIELD
    assert plaid.requests[0].client_id is None


async def test_any_credentials_where_no_clients_are_given(asking):
    """Without a list of clients whoever names itself is taken, but nobody without a name."""
    async with Simulator(reports=["ready"]) as plaid:
        ask = asking(plaid)
        assert (await ask(CREATE, GOOD | {"client_id": "a", "secret": "b"}, client=None)).status == 200
        assert (await ask(CREATE, GOOD, client=None)).refusal == MISSING


@pytest.mark.parametrize("version", ["2020-09-14", "2019-05-29", "2018-05-22", "2017-03-08"])
async def test_known_version_is_echoed(ask, version):
    """A version that Plaid has published is taken, and told back, in a refusal too."""
    assert (await ask(CREATE, GOOD, headers={"Plaid-Version": version})).headers["Plaid-Version"] == version
    assert (await ask("/nowhere", headers={"Plaid-Version": version})).headers["Plaid-Version"] == version


async def test_unknown_version(ask):
    """Any other is refused; none at all is fine."""
    answer = await ask(CREATE, GOOD, headers={"Plaid-Version": "2031-01-01"})
    assert answer.refusal == (400, "INVALID_REQUEST", "INCOMPATIBLE_API_VERSION")
    assert "Plaid-Version" not in (await ask(CREATE, GOOD)).headers


async def test_order_of_the_checks(ask):
    """Where several things are wrong, the earlier check speaks: keys, version, missing, unknown, values, state."""
    wrong = {"secondary_client_id": 5, "x": 1}
    old = {"Plaid-Version": "1999-01-01"}
    codes = [
        await ask(CREATE, wrong, client="stranger", headers={"PLAID-SECRET": "-", **old}),
        await ask(CREATE, wrong, headers=old),
        await ask(CREATE, wrong),
        await ask(CREATE, wrong | {"report_tokens": ["no"]}),
        await ask(CREATE, {"secondary_client_id": 5, "report_tokens": ["no"]}),
        await ask(CREATE, {"secondary_client_id": "5", "report_tokens": ["no"]}),
    ]
    assert [answer.json["error_code"] for answer in codes] == [
        "INVALID_API_KEYS",
        "INCOMPATIBLE_API_VERSION",
        "MISSING_FIELDS",
        "UNKNOWN_FIELDS",
        "INVALID_FIELD",
        "INVALID_ASSET_REPORT_TOKEN",
    ]


async def test_missing_and_unknown_fields_are_named(ask):
    """All of them, in one sentence each."""
    missing = await ask(CREATE, {})
    assert missing.json["error_message"] == (
        "the following required fields are missing: report_tokens, secondary_client_id"
    )
    extra = await ask(CREATE, GOOD | {"idempotency_key": "k", "memo": "m"})
    assert extra.refusal == (400, "INVALID_REQUEST", "UNKNOWN_FIELDS")
    assert extra.json["error_message"] == (
        "the following fields are not recognized by this endpoint: idempotency_key, memo"
    )


RELAY = {"relay_token": "t", "report_type": "asset"}
REPORT = {"access_tokens": ["t"], "days_requested": 1}
LOGIN = {"institution_id": "ins_1", "initial_products": ["assets"]}
GET = {"asset_report_token": "t"}
FIRE = "/sandbox/item/fire_webhook"


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (CREATE, GOOD | {"report_tokens": []}, "report_tokens"),
        (CREATE, GOOD | {"report_tokens": "ready"}, "report_tokens"),
        (CREATE, GOOD | {"report_tokens": ["ready", "ready"]}, "report_tokens"),
        (CREATE, GOOD | {"report_tokens": [""]}, "report_tokens[0]"),
        (CREATE, GOOD | {"report_tokens": [None]}, "report_tokens[0]"),
        (CREATE, GOOD | {"report_tokens": None}, "report_tokens"),
        (CREATE, GOOD | {"secondary_client_id": ""}, "secondary_client_id"),
        (CREATE, GOOD | {"secondary_client_id": None}, "secondary_client_id"),
        (CREATE, GOOD | {"webhook": "ftp://lender.example"}, "webhook"),
        (CREATE, GOOD | {"webhook": "https://"}, "webhook"),
        (CREATE, GOOD | {"webhook": "https://[::1"}, "webhook"),
        (CREATE, GOOD | {"webhook": 5}, "webhook"),
        ("/credit/relay/get", RELAY | {"report_type": "assets"}, "report_type"),
        ("/credit/relay/get", RELAY | {"report_type": ["asset"]}, "report_type"),
        ("/credit/relay/get", RELAY | {"include_insights": "true"}, "include_insights"),
        ("/credit/relay/get", RELAY | {"include_insights": None}, "include_insights"),
        ("/asset_report/create", REPORT | {"days_requested": -1}, "days_requested"),
        ("/asset_report/create", REPORT | {"days_requested": 732}, "days_requested"),
        ("/asset_report/create", REPORT | {"days_requested": True}, "days_requested"),
        ("/asset_report/create", REPORT | {"days_requested": 30.0}, "days_requested"),
        ("/asset_report/create", REPORT | {"access_tokens": []}, "access_tokens"),
        ("/asset_report/create", REPORT | {"access_tokens": ["t"] * 100}, "access_tokens"),
        ("/asset_report/create", REPORT | {"options": None}, "options"),
        ("/asset_report/create", REPORT | {"options": {"user": {"ssn": 5}}}, "options.user.ssn"),
        ("/asset_report/create", REPORT | {"options": {"user": []}}, "options.user"),
        ("/asset_report/create", REPORT | {"options": {"add_ons": ["gold"]}}, "options.add_ons[0]"),
        ("/asset_report/get", GET | {"options": {"days_to_include": 800}}, "options.days_to_include"),
        ("/asset_report/get", {"asset_report_token": None}, "asset_report_token"),
        ("/sandbox/public_token/create", LOGIN | {"initial_products": ["gold"]}, "initial_products[0]"),
        (
            "/sandbox/public_token/create",
            LOGIN | {"options": {"transactions": {"start_date": "yesterday"}}},
            "options.transactions.start_date",
        ),
        (
            "/sandbox/public_token/create",
            LOGIN | {"options": {"transactions": {"start_date": 5}}},
            "options.transactions.start_date",
        ),
        (
            "/sandbox/public_token/create",
            LOGIN | {"options": {"transactions": {"start_date": "20260630"}}},
            "options.transactions.start_date",
        ),
        (
            "/sandbox/public_token/create",
            LOGIN | {"options": {"income_verification": {"bank_income": {"days_requested": "1"}}}},
            "options.income_verification.bank_income.days_requested",
        ),
        ("/asset_report/get", GET | {"user_token": 5}, "user_token"),
        ("/asset_report/get", GET | {"fast_report": None}, "fast_report"),
        ("/asset_report/refresh", GET | {"days_requested": 732}, "days_requested"),
        ("/asset_report/refresh", GET | {"options": None}, "options"),
        ("/asset_report/refresh", GET | {"options": {"webhook": "lender.example"}}, "options.webhook"),
        ("/asset_report/refresh", GET | {"options": {"client_report_id": 5}}, "options.client_report_id"),
        ("/asset_report/filter", GET | {"account_ids_to_exclude": "a"}, "account_ids_to_exclude"),
        ("/asset_report/filter", GET | {"account_ids_to_exclude": [5]}, "account_ids_to_exclude[0]"),
        ("/webhook_verification_key/get", {"key_id": 5}, "key_id"),
        (FIRE, {"access_token": "t", "webhook_code": "RELAYED"}, "webhook_code"),
        (FIRE, {"access_token": "t", "webhook_code": "ERROR", "webhook_type": "RELAY"}, "webhook_type"),
        (
            FIRE,
            {"access_token": "t", "webhook_code": "ERROR", "options": {"new_transactions": -1}},
            "options.new_transactions",
        ),
        (CREATE, GOOD | {"client_id": 5}, "client_id"),  # though the header has a good one
        ("/item/remove", {"access_token": "t", "reason_note": "n" * 513}, "reason_note"),
        ("/item/remove", {"access_token": "t", "reason_code": "BORED"}, "reason_code"),
    ],
)
async def test_invalid_field_is_named(ask, path, body, named):
    """A value of the wrong type, out of range or empty is refused by the name of its field."""
    answer = await ask(path, body)
    assert answer.refusal == INVALID_FIELD
    assert answer.json["error_message"].startswith(f"{named} must be ")


@pytest.mark.parametrize(
    ("path", "body", "code", "named"),
    [
        ("/asset_report/create", REPORT | {"options": {"hook": 1}}, "UNKNOWN_FIELDS", "options.hook"),
        (
            "/sandbox/public_token/create",
            LOGIN | {"options": {"statements": {}}},
            "MISSING_FIELDS",
            "options.statements.start_date, options.statements.end_date",
        ),
    ],
)
async def test_nested_fields(ask, path, body, code, named):
    """Nested objects are held to their schema too."""
    answer = await ask(path, body)
    assert answer.json["error_code"] == code
    assert answer.json["error_message"].endswith(f": {named}")


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (CREATE, GOOD | {"webhook": None}, None),
        (CREATE, GOOD | {"webhook": "http://lender.example:8080/hook"}, None),
        (
            "/asset_report/create",
            REPORT
            | {
                "options": {
                    "client_report_id": None,
                    "webhook": None,
                    "include_fast_report": None,
                    "require_all_items": None,
                    "products": ["assets"],
                    "user": {"ssn": None, "favourite_colour": ["any"]},
                }
            },
            "INVALID_ACCESS_TOKEN",
        ),
        ("/asset_report/get", GET | {"options": {"days_to_include": None}}, "INVALID_ASSET_REPORT_TOKEN"),
        (
            "/asset_report/refresh",
            GET
            | {
                "days_requested": None,
                "options": {"webhook": "https://lender.example", "user": {"ssn": "", "favourite_colour": 5}},
            },
            "INVALID_ASSET_REPORT_TOKEN",
        ),
        ("/item/remove", {"access_token": "t", "reason_code": None}, "INVALID_ACCESS_TOKEN"),
        (
            "/sandbox/public_token/create",
            LOGIN
            | {
                "options": {
                    "override_username": None,
                    "transactions": {"start_date": "2026-01-01", "days_requested": 730},
                    "statements": None,
                    "income_verification": {
                        "income_source_types": ["bank"],
                        "bank_income": {"days_requested": 1},
                    },
                }
            },
            None,
        ),
    ],
)
async def test_what_the_schema_allows(ask, path, body, code):
    """Null where Plaid's schema says nullable, and further fields where it is open."""
    answer = await ask(path, body)
    assert answer.status == (400 if code else 200)
    assert answer.json.get("error_code") == code


async def test_accept_is_ignored(ask):
    """JSON is answered whatever the client would rather have."""
    answer = await ask(CREATE, GOOD, headers={"Accept": "text/html"})
    assert answer.headers["Content-Type"] == "application/json"
