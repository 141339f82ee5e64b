"""A creation, a read and a report, and their responses, for the tests of the codec."""

from __future__ import annotations

import json

from plaid_relay_async import codec, models
from plaid_relay_async.codec import RawResponse, read_response
from plaid_relay_async.errors import ConnectionLostError
from plaid_relay_async.redaction import Hidden

REPORT_TOKEN = "assets-sandbox-5f2b0f6e-canary"
CREATE = models.RelayCreateRequest([REPORT_TOKEN], "partner")
GET = models.RelayGetRequest("credit-relay-sandbox-canary")
SECRET = Hidden("canary-secret")


def raw_response(
    body: bytes | str | dict | list, status: int = 200, *, cut_off: bool = False, **headers: str
) -> RawResponse:
    if isinstance(body, dict | list):
        body = json.dumps(body)
    raw = bytearray(body.encode() if isinstance(body, str) else body)
    body_error = ConnectionLostError("the response broke off") if cut_off else None
    return RawResponse(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, raw, body_error
    )


def create(*args, **kwargs):
    return read_response(codec.RELAY_CREATE, raw_response(*args, **kwargs), CREATE, SECRET)


def get(*args, **kwargs):
    return read_response(codec.RELAY_GET, raw_response(*args, **kwargs), GET, SECRET)


CAUSE = {
    "error_type": "ITEM_ERROR",
    "error_code": "X",
    "error_message": None,
    "display_message": None,
    "http_code": 400,
}
REPORT = {
    "report": {
        "asset_report_id": "r1",
        "client_report_id": None,
        "date_generated": "2026-03-30T18:27:37Z",
        "days_requested": 90,
        "user": {"ssn": None},
        "items": [
            {
                "item_id": "i1",
                "institution_id": "ins_109508",
                "institution_name": "First Platypus Bank",
                "date_last_updated": "2026-03-30T18:25:26+00:00",
                "accounts": [
                    {
                        "account_id": "a1",
                        "name": "Checking",
                        "official_name": None,
                        "mask": "0000",
                        "type": "depository",
                        "subtype": "a subtype of tomorrow",
                        "days_available": 90,
                        "owners": [],
                        "balances": {
                            "available": 100,
                            "current": 110.07,
                            "limit": None,
                            "iso_currency_code": "USD",
                            "unofficial_currency_code": None,
                        },
                        "historical_balances": [
                            {
                                "date": "2026-03-29",
                                "current": -373.67,
                                "iso_currency_code": "USD",
                                "unofficial_currency_code": None,
                            }
                        ],
                        "transactions": [
                            {
                                "account_id": "a1",
                                "transaction_id": "t1",
                                "amount": 0.1,
                                "date": "2026-03-28",
                                "pending": False,
                                "iso_currency_code": "USD",
                                "unofficial_currency_code": None,
                                "original_description": None,
                                "merchant_of_tomorrow": {"name": "x"},
                            }
                        ],
                    }
                ],
            }
        ],
    },
    "warnings": [{"warning_type": "ASSET_REPORT_WARNING", "warning_code": "NEW", "cause": CAUSE}],
    "request_id": "q1",
    "field_of_tomorrow": [1, 2.50],
}


def spoil(path: str, value: object) -> dict:
    report = json.loads(json.dumps(REPORT))
    *steps, last = path.split("/")
    place = report
    for step in steps:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return report
