"""The page's rules compared with the package's: which inputs are valid, and what a response means."""

from __future__ import annotations

from itertools import product

import pytest_asyncio
from attrs import fields_dict

from plaid_relay_async.certainty import certainty_of
from plaid_relay_async.codec import ENDPOINTS
from plaid_relay_async.error_codes import GATEWAY_ERROR, affects_all_requests, affects_report, error_class_for
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.gateway.error_responses import CALLER_GONE, ERROR_REASONS

OPERATIONS = "import('/console/operations.js').then((module) => module.OPERATIONS)"


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def operations(module_page):
    """The page's operations."""
    return await module_page.evaluate(OPERATIONS)


VALUES = [
    *(
        "",
        " ",
        "a",
        "a b",
        "a\tb",
        "a\nb",
        "a\u00a0b",
        "\u200b",
        "\u202ea",
        "\x7f",
        "é",
        "😀",
        "\ue000",
        '"$`\\',
    ),
    *("http://a", "HTTPS://a.example/x?y#z", "https://", "https:///x", "http:a", "ftp://a", "http://a:0"),
    *(
        "http://a:99999",
        "http://a:80",
        "http://[::1]",
        "http://[::1",
        "https://a b",
        "//a",
        "javascript:alert(1)",
    ),
    *("0", "731", "732", "-1", "1.5", "x", "60"),
]


async def test_the_page_accepts_what_the_records_accept(module_page, operations):
    """An input's check accepts the same values as the request's record, and rejects others with the same text."""
    checked = [(o, i) for o in operations for i in o["inputs"] if i["kind"] in CHECKED_KINDS]
    problems = await module_page.evaluate(
        """async ([inputs, values]) => {
          const { problemWith } = await import('/console/checks.js');
          return inputs.map((input) => [...values, "a\\ud800"].map((value) => problemWith(input, value)));
        }""",
        [[definition for _, definition in checked], VALUES],
    )
    for (operation, definition), shown in zip(checked, problems, strict=True):
        for value, problem in zip([*VALUES, "a\ud800"], shown, strict=True):
            expected = problem_of(operation, definition, value)
            if value.strip():
                assert problem == expected, f"{operation['path']} {definition['name']}={value!r}"
            elif definition["required"]:  # an optional input that is empty isn't sent
                assert problem == "is empty"
                assert expected is not None


CHECKED_KINDS = {"identifier", "token", "text", "url", "number"}
REQUIRED_VALUES = {
    "report_tokens": ["token"],
    "access_tokens": ["token"],
    "account_ids_to_exclude": ["id"],
    "initial_products": ["assets"],
    "days_requested": 60,
}


def problem_of(operation, definition, value):
    """Return the problem that the request's record has with the value of an input, or None."""
    record = next(each for each in ENDPOINTS if each.path == operation["path"]).request_type
    values = {
        each["name"]: REQUIRED_VALUES.get(each["name"], "id")
        for each in operation["inputs"]
        if each["required"]
    }
    if definition["kind"] == "number":
        value = int(value) if value.lstrip("-").isdigit() else value
    if definition["within"]:
        record, values = fields_dict(record)[definition["within"]].validator.validator.cls, {}
    try:
        record(**values | {definition["name"]: [value] if definition["list"] else value})
    except RequestValidationError as error:
        return error.problem
    return None


async def explain(module_page, path, responses):
    """Return how the page explains responses to an operation: status, error_type, error_code, message, action."""
    return await module_page.evaluate(
        """async ([path, responses]) => {
          const { certaintyOf, explain } = await import('/console/explain.js');
          const { operationOf } = await import('/console/operations.js');
          return responses.map(([status, error_type, error_code, error_message, suggested_action]) => {
            const json = { error_type, error_code, error_message, suggested_action };
            const response = {
              status, json, text: '', headers: new Headers(), complete: true, bytes: new Uint8Array(),
            };
            const operation = operationOf(path);
            return { certainty: certaintyOf(operation, response), ...explain(operation, response) };
          });
        }""",
        [path, responses],
    )


async def test_errors_of_the_gateway_are_shown_in_its_words(module_page):
    """The page shows the message, and the advice unless the call is in doubt: then its own is more specific."""
    reasons = [each for each in ERROR_REASONS if each is not CALLER_GONE]
    responses = [
        (each.status, GATEWAY_ERROR, each.code, f"message of {each.code}", f"advice on {each.code}")
        for each in reasons
    ]
    explanations = await explain(module_page, "/credit/relay/create", responses)
    for reason, explanation in zip(reasons, explanations, strict=True):
        message, *advice = explanation["texts"]
        assert message == f"The gateway says: “message of {reason.code}”."
        in_doubt = reason.status >= 500 and reason.code != "UPSTREAM_UNREACHABLE"
        assert explanation["kind"] in ({"unknown"} if in_doubt else {"definitive", "declined"}), reason.code
        if in_doubt:
            assert advice[0].startswith("A relay token may exist that was not received.")
        else:
            assert advice == [f"advice on {reason.code}"]


TYPES = (None, "API_ERROR", "GATEWAY_ERROR", "RATE_LIMIT_EXCEEDED", "INVALID_REQUEST", "ITEM_ERROR")
CODES = (
    *(None, "INTERNAL_SERVER_ERROR", "PLANNED_MAINTENANCE", "UPSTREAM_UNREACHABLE", "UPSTREAM_LOST"),
    *("RATE_LIMIT", "CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT", "INVALID_FIELD", "UNKNOWN"),
)
STATUSES = (400, 401, 403, 404, 408, 421, 429, 500, 502, 503, 504)


async def test_the_page_has_the_same_certainty_as_the_client(module_page):
    """What status, type and code prove is the same as in the package's client, and is called the same."""
    responses = [(*each, None, None) for each in product(STATUSES, TYPES, CODES)]
    explanations = await explain(module_page, "/credit/relay/create", responses)
    for (status, error_type, error_code, *_), explanation in zip(responses, explanations, strict=True):
        facts = {"status": status, "error_type": error_type, "error_code": error_code}
        error = error_class_for(error_type, error_code, status)("it", **facts)
        assert explanation["certainty"] == certainty_of(error).value, facts


async def test_errors_that_affect_all_rows_stop_a_list(module_page):
    """The page stops at the errors at which a batch of the package stops, because its rows share a report."""
    pairs = list(product((*TYPES, "ASSET_REPORT_ERROR", "ASSETS_ERROR"), (*CODES, *SHARED_CODES)))
    stops = await module_page.evaluate(
        """async (pairs) => {
          const { affectsAllRows } = await import('/console/explain.js');
          return pairs.map(([type, code]) => affectsAllRows(code, type));
        }""",
        pairs,
    )
    for (error_type, error_code), stop in zip(pairs, stops, strict=True):
        facts = {"status": 400, "error_type": error_type, "error_code": error_code}
        error = error_class_for(error_type, error_code, 400)("it", **facts)
        assert stop == (affects_all_requests(error) or affects_report(error)), facts


SHARED_CODES = ("INVALID_API_KEYS", "UNAUTHORIZED_KEY", "INVALID_ASSET_REPORT_TOKEN", "PRODUCT_NOT_READY")
