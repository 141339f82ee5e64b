"""The page's rules compared with the package's: which inputs are valid, and what a response means."""

from __future__ import annotations

import pytest_asyncio
from attrs import fields_dict

from plaid_relay_async.certainty import certainty_of
from plaid_relay_async.codec import ENDPOINTS
from plaid_relay_async.error_codes import error_class_for
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


async def test_each_error_of_the_gateway_is_explained(module_page):
    """The page has a text for each error response of the gateway that a caller can receive."""
    reasons = [each for each in ERROR_REASONS if each is not CALLER_GONE]
    explanations = await module_page.evaluate(
        """async (reasons) => {
          const { explain } = await import('/console/explain.js');
          const { operationOf } = await import('/console/operations.js');
          const response = ({ status, code }) => ({
            status, headers: new Headers(), text: '', complete: true, bytes: new Uint8Array(),
            json: { error_type: 'GATEWAY_ERROR', error_code: code, error_message: 'unseen' },
          });
          return reasons.map((each) => explain(operationOf('/credit/relay/create'), response(each)));
        }""",
        [{"status": each.status, "code": each.code} for each in reasons],
    )
    for reason, explanation in zip(reasons, explanations, strict=True):
        not_executed = reason.status < 500 or reason.code == "UPSTREAM_UNREACHABLE"
        assert (explanation["kind"] in {"definitive", "declined"}) == not_executed, reason.code
        assert "The response is" not in explanation["texts"][0], reason.code
        assert all(explanation["texts"])
        assert "unseen" not in "".join(explanation["texts"])


RESPONSES = [
    (400, "INVALID_REQUEST", "INVALID_FIELD", "definitive"),
    (400, "API_ERROR", "INTERNAL_SERVER_ERROR", "in_doubt"),
    (429, "RATE_LIMIT_EXCEEDED", "RATE_LIMIT", "declined"),
    (429, "RATE_LIMIT_EXCEEDED", "CREDITS_EXHAUSTED", "definitive"),
    (500, "API_ERROR", "INTERNAL_SERVER_ERROR", "in_doubt"),
    (503, "API_ERROR", "PLANNED_MAINTENANCE", "declined"),
    (503, "INVALID_REQUEST", "PLANNED_MAINTENANCE", "in_doubt"),
    (502, None, None, "in_doubt"),
    (404, None, None, "definitive"),
]


async def test_the_page_has_the_same_certainty_as_the_client(module_page):
    """What status, type and code prove is the same as in the package's client."""
    certainties = await module_page.evaluate(
        """async (responses) => {
          const { certaintyOf } = await import('/console/explain.js');
          const { operationOf } = await import('/console/operations.js');
          return responses.map(([status, error_type, error_code]) => certaintyOf(operationOf('/credit/relay/create'), {
            status, json: error_type && { error_type, error_code }, text: '', headers: new Headers(),
          }));
        }""",
        RESPONSES,
    )
    assert certainties == [certainty for *_, certainty in RESPONSES]
    for status, error_type, error_code, certainty in RESPONSES:
        facts = {"status": status, "error_type": error_type, "error_code": error_code}
        error = error_class_for(error_type, error_code, status)("it", **facts)
        assert certainty_of(error).name.lower() == certainty
