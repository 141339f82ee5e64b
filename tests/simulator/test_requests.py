"""The validation of requests: Plaid's checks, in Plaid's order."""

import json

import pytest

from plaid_relay_async.simulator import Simulator

CREATE = "/credit/relay/create"
VALID_BODY = {"report_tokens": ["ready"], "secondary_client_id": "partner"}
MISSING = (400, "INVALID_REQUEST", "MISSING_FIELDS")
INVALID_FIELD = (400, "INVALID_REQUEST", "INVALID_FIELD")
WRONG_KEYS = (400, "INVALID_INPUT", "INVALID_API_KEYS")


async def test_error_body_is_complete(api):
    """Every error has all of Plaid's fields, with a new request_id."""
    first, second = await api("/nowhere"), await api("/nowhere")
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
async def test_unknown_path_or_method(api, method, path):
    """Only Plaid's own paths exist, and only for POST."""
    assert (await api(path, VALID_BODY, method=method)).error == (404, "INVALID_REQUEST", "NOT_FOUND")


async def test_content_type(api):
    """The content type must be JSON, optionally with a charset."""
    raw = json.dumps(VALID_BODY).encode()
    assert (await api(CREATE, data=raw)).error == (400, "INVALID_REQUEST", "INVALID_HEADERS")
    response = await api(CREATE, data=raw, headers={"Content-Type": "application/json; charset=utf-8"})
    assert response.status == 200


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"[" * 100_000])
async def test_body_must_be_one_object(api, raw):
    """A body that isn't one JSON object is invalid."""
    response = await api(CREATE, data=raw, headers={"Content-Type": "application/json"})
    assert response.error == (400, "INVALID_REQUEST", "INVALID_BODY")


@pytest.mark.parametrize(
    ("headers", "body", "field"),
    [
        ({}, {}, "client_id, secret"),
        ({"PLAID-CLIENT-ID": "owner"}, {}, "secret"),
        ({}, {"secret": "owner-secret"}, "client_id"),
        ({"PLAID-CLIENT-ID": "", "PLAID-SECRET": ""}, {}, "client_id, secret"),
        ({}, {"client_id": "", "secret": None}, "client_id, secret"),
    ],
)
async def test_missing_credentials_are_named(api, headers, body, field):
    """Credentials that are absent or empty are missing fields, and the error names them."""
    response = await api(CREATE, VALID_BODY | body, client=None, headers=headers)
    assert response.error == MISSING
    assert response.json["error_message"].endswith(f": {field}")


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
async def test_credentials_in_headers_or_body(api, plaid, headers, body):
    """Credentials may be in headers, in the body, or one in each."""
    response = await api(CREATE, VALID_BODY | body, client=None, headers=headers)
    assert response.status == 200
    assert plaid.ledger[0]["client_id"] == plaid.requests[0].client_id == "owner"


@pytest.mark.parametrize("pair", [("owner", "other-secret"), ("stranger", "owner-secret")])
async def test_wrong_credentials(api, pair):
    """A pair that belongs to no client is an error with status 400, as at Plaid, and not 401."""
    body = VALID_BODY | {"client_id": pair[0], "secret": pair[1]}
    assert (await api(CREATE, body, client=None)).error == WRONG_KEYS


async def test_credentials_of_the_wrong_type(api, plaid):
    """A client_id that is a number is an invalid field."""
    response = await api(CREATE, VALID_BODY | {"client_id": 7, "secret": "owner-secret"}, client=None)
    assert response.error == INVALID_FIELD
    assert plaid.requests[0].client_id is None


async def test_any_credentials_without_clients(api_for):
    """Without a list of clients any credentials are accepted, but they are required."""
    async with Simulator(reports=["ready"]) as plaid:
        api = api_for(plaid)
        assert (await api(CREATE, VALID_BODY | {"client_id": "a", "secret": "b"}, client=None)).status == 200
        assert (await api(CREATE, VALID_BODY, client=None)).error == MISSING


@pytest.mark.parametrize("version", ["2020-09-14", "2019-05-29", "2018-05-22", "2017-03-08"])
async def test_known_version_is_echoed(api, version):
    """A version that Plaid has published is accepted, and echoed in the response, also in an error."""
    assert (await api(CREATE, VALID_BODY, headers={"Plaid-Version": version})).headers[
        "Plaid-Version"
    ] == version
    assert (await api("/nowhere", headers={"Plaid-Version": version})).headers["Plaid-Version"] == version


async def test_unknown_version(api):
    """Any other version is an error; the header is optional."""
    response = await api(CREATE, VALID_BODY, headers={"Plaid-Version": "2031-01-01"})
    assert response.error == (400, "INVALID_REQUEST", "INCOMPATIBLE_API_VERSION")
    assert "Plaid-Version" not in (await api(CREATE, VALID_BODY)).headers


async def test_order_of_the_checks(api):
    """The first failed check determines the error: keys, version, missing, unknown, values, state."""
    invalid = {"secondary_client_id": 5, "x": 1}
    old = {"Plaid-Version": "1999-01-01"}
    responses = [
        await api(CREATE, invalid, client="stranger", headers={"PLAID-SECRET": "-", **old}),
        await api(CREATE, invalid, headers=old),
        await api(CREATE, invalid),
        await api(CREATE, invalid | {"report_tokens": ["no"]}),
        await api(CREATE, {"secondary_client_id": 5, "report_tokens": ["no"]}),
        await api(CREATE, {"secondary_client_id": "5", "report_tokens": ["no"]}),
    ]
    assert [response.json["error_code"] for response in responses] == [
        "INVALID_API_KEYS",
        "INCOMPATIBLE_API_VERSION",
        "MISSING_FIELDS",
        "UNKNOWN_FIELDS",
        "INVALID_FIELD",
        "INVALID_ASSET_REPORT_TOKEN",
    ]


async def test_missing_and_unknown_fields_are_named(api):
    """The message lists all missing, or all unknown, fields."""
    missing = await api(CREATE, {})
    assert missing.json["error_message"] == (
        "the following required fields are missing: report_tokens, secondary_client_id"
    )
    extra = await api(CREATE, VALID_BODY | {"idempotency_key": "k", "memo": "m"})
    assert extra.error == (400, "INVALID_REQUEST", "UNKNOWN_FIELDS")
    assert extra.json["error_message"] == (
        "the following fields are not recognized by this endpoint: idempotency_key, memo"
    )


RELAY = {"relay_token": "t", "report_type": "asset"}
REPORT = {"access_tokens": ["t"], "days_requested": 1}
LOGIN = {"institution_id": "ins_1", "initial_products": ["assets"]}
GET = {"asset_report_token": "t"}
FIRE = "/sandbox/item/fire_webhook"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CREATE, VALID_BODY | {"report_tokens": []}, "report_tokens"),
        (CREATE, VALID_BODY | {"report_tokens": "ready"}, "report_tokens"),
        (CREATE, VALID_BODY | {"report_tokens": ["ready", "ready"]}, "report_tokens"),
        (CREATE, VALID_BODY | {"report_tokens": [""]}, "report_tokens[0]"),
        (CREATE, VALID_BODY | {"report_tokens": [None]}, "report_tokens[0]"),
        (CREATE, VALID_BODY | {"report_tokens": None}, "report_tokens"),
        (CREATE, VALID_BODY | {"secondary_client_id": ""}, "secondary_client_id"),
        (CREATE, VALID_BODY | {"secondary_client_id": None}, "secondary_client_id"),
        (CREATE, VALID_BODY | {"webhook": "ftp://lender.example"}, "webhook"),
        (CREATE, VALID_BODY | {"webhook": "https://"}, "webhook"),
        (CREATE, VALID_BODY | {"webhook": "https://[::1"}, "webhook"),
        (CREATE, VALID_BODY | {"webhook": 5}, "webhook"),
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
        (CREATE, VALID_BODY | {"client_id": 5}, "client_id"),  # although the header is valid
        ("/item/remove", {"access_token": "t", "reason_note": "n" * 513}, "reason_note"),
        ("/item/remove", {"access_token": "t", "reason_code": "BORED"}, "reason_code"),
    ],
)
async def test_invalid_field_is_named(api, path, body, field):
    """A value of the wrong type, out of range or empty is an error that names the field."""
    response = await api(path, body)
    assert response.error == INVALID_FIELD
    assert response.json["error_message"].startswith(f"{field} must be ")


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
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
async def test_nested_fields(api, path, body, code, field):
    """Nested objects are validated too."""
    response = await api(path, body)
    assert response.json["error_code"] == code
    assert response.json["error_message"].endswith(f": {field}")


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (CREATE, VALID_BODY | {"webhook": None}, None),
        (CREATE, VALID_BODY | {"webhook": "http://lender.example:8080/hook"}, None),
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
async def test_values_that_the_schema_allows(api, path, body, code):
    """Null is accepted where Plaid's schema says nullable, and further fields where it allows them."""
    response = await api(path, body)
    assert response.status == (400 if code else 200)
    assert response.json.get("error_code") == code


async def test_accept_is_ignored(api):
    """The response is JSON whatever the Accept header says."""
    response = await api(CREATE, VALID_BODY, headers={"Accept": "text/html"})
    assert response.headers["Content-Type"] == "application/json"
