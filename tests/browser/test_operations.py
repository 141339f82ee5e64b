"""The page's tables compared with the package: the operations, and which inputs are valid."""

from __future__ import annotations

import inspect
from itertools import product
from operator import attrgetter

import pytest_asyncio
from attrs import NOTHING, fields_dict

from plaid_relay_async import RelayClient, models
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


async def test_the_page_has_every_operation(operations):
    """The page has the operations of the endpoint table, with their idempotency."""
    assert {(each["path"], each["idempotency"]) for each in operations} == {
        (endpoint.path, endpoint.idempotency.name) for endpoint in ENDPOINTS
    }
    assert [each["group"] == "Relay" for each in operations] == [True] * 5 + [False] * 11


async def test_the_inputs_are_the_fields_of_the_records(operations):
    """Each field of a request is an input, fixed, or listed as not offered; required fields are required inputs."""
    records = {endpoint.path: endpoint.request_type for endpoint in ENDPOINTS}
    for operation in operations:
        record = records[operation["path"]]
        fields = field_names(record)
        inputs = {
            ".".join(filter(None, (each.get("within"), each["name"]))): each["required"]
            for each in operation["inputs"]
        }
        offered = {*inputs, *operation["fixed"], *operation["notOffered"]}
        nested = {name.partition(".")[0] for name in offered if "." in name}
        expected = fields if nested else {name for name in fields if "." not in name}
        assert offered | nested == expected, operation["path"]
        for name, attribute in fields_dict(record).items():
            if attribute.default is NOTHING:
                assert inputs[name], f"{operation['path']} {name}"


def field_names(record):
    """Return the names of a record's fields, those of its options as `options.name`."""
    names = set(fields_dict(record))
    kind = str(fields_dict(record)["options"].type).partition(" ")[0] if "options" in names else None
    if kind:
        options = getattr(models, kind, None) or getattr(models.asset_report, kind)
        names |= {f"options.{name}" for name in fields_dict(options)}
    return names


async def test_issued_tokens_are_fields_of_the_responses(operations):
    """The token that an operation issues is the field that its response record hides."""
    responses = {endpoint.path: endpoint.response_type for endpoint in ENDPOINTS}
    for operation in operations:
        fields = fields_dict(responses[operation["path"]])
        hidden = {name for name, field in fields.items() if name.endswith("_token") and not field.repr}
        issued = {operation["issues"]} if "issues" in operation else set()
        assert hidden == issued, operation["path"]
        assert ("creates" in operation) == (operation["idempotency"] == "NON_IDEMPOTENT")


async def test_the_code_calls_existing_methods(operations):
    """The client has each method, and takes each input by name or position as in the code."""
    async with RelayClient(gateway_key="key", base_url="http://127.0.0.1:1") as client:
        for operation in operations:
            parameters = inspect.signature(attrgetter(operation["python"])(client)).parameters
            named = {each["name"] for each in operation["inputs"] if each.get("named")}
            placed = [each["name"] for each in operation["inputs"] if not each.get("named")]
            keyword = {name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
            assert named <= keyword, operation["path"]
            assert [*parameters][: len(placed)] == placed, operation["path"]
            if operation["many"]:
                assert callable(attrgetter(operation["many"])(client))


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
    """An input's check accepts and rejects the same values as the request's record."""
    records = {endpoint.path: endpoint.request_type for endpoint in ENDPOINTS}
    chosen = [o for o in operations if o["path"] in {"/credit/relay/create", "/asset_report/refresh"}]
    problems = await module_page.evaluate(
        """async ([chosen, values]) => {
          const { problemWith } = await import('/console/checks.js');
          const of = (input) => Object.fromEntries(values.map((value) => [value, problemWith(input, value)]));
          return chosen.map(({ inputs }) => inputs.map(of));
        }""",
        [chosen, VALUES],
    )
    for operation, problem in zip(chosen, problems, strict=True):
        for (index, definition), value in product(enumerate(operation["inputs"]), VALUES):
            if not value.strip() and not definition["required"]:
                continue  # an optional input that is empty isn't sent
            valid = is_accepted(records[operation["path"]], operation, definition, value)
            assert (problem[index][value] is None) == valid, f"{definition['name']}={value!r}"


def is_accepted(record, operation, definition, value):
    arguments = {"report_tokens": ["token"], "asset_report_token": "token", "secondary_client_id": "id"}
    arguments = {name: default for name, default in arguments.items() if name in fields_dict(record)}
    if definition["kind"] == "days":
        value = int(value) if value.lstrip("-").isdigit() else value
    try:
        if definition.get("within"):
            models.AssetReportRefreshOptions(**{definition["name"]: value})
        else:
            record(**arguments | {definition["name"]: [value] if definition.get("list") else value})
    except RequestValidationError:
        return False
    return True


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
