"""Schemathesis sends requests to the simulator that Plaid's OpenAPI document allows, and others.

    nox --session schemathesis -- --specification PATH

The document isn't part of this repository; without it these tests are skipped.
"""

from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks

from plaid_relay_async.simulator.operations import OPERATIONS
from plaid_relay_async.testing import SimulatorThread

KEYS = {"PLAID-CLIENT-ID": "both", "PLAID-SECRET": "secret-of-both"}  # lender and partner at the same time
EXAMPLES = 40

# Checks that don't fit Plaid, each with the reason.
EXCLUDED_CHECKS = {
    checks.unsupported_method: "expects 405; Plaid's code for it is NOT_FOUND, with status 404",
    checks.ignored_auth: "expects 401; Plaid responds with 400, with INVALID_API_KEYS or MISSING_FIELDS",
}

# Operations of the document that the simulator doesn't have, each with the reason.
EXCLUDED_OPERATIONS = dict.fromkeys(
    (
        "/asset_report/audit_copy/create",
        "/asset_report/audit_copy/get",
        "/asset_report/audit_copy/pdf/get",
        "/asset_report/audit_copy/remove",
    ),
    "the package doesn't support audit copies",
)

# Operations of the simulator that the document doesn't have.
NOT_IN_DOCUMENT = {
    "/item/remove": "not in the part of Plaid's document about reports",
    "/sandbox/item/fire_webhook": "not in the part of Plaid's document about reports",
    "/beta/webhook_events/list": "not in the part of Plaid's document about reports",
}


@pytest.fixture(scope="module")
def plaid():
    """A simulator in the event loop of another thread."""
    options = {"clients": {"both": "secret-of-both"}, "reports": ["ready"], "generation_delay": 0}
    with SimulatorThread(**options) as running:
        yield running


@pytest.fixture(scope="module")
def schema(document, plaid):
    """Plaid's document, with a rule that it doesn't state.

    Plaid rejects unknown fields (UNKNOWN_FIELDS), but the schemas of requests allow any. So they are closed
    here, unless they explicitly allow further fields.
    """
    schemathesis.openapi.format("url", st.sampled_from(["https://lender.example/hook", "http://a.example"]))
    for name, definition in document["components"]["schemas"].items():
        if "Request" in name:
            definition.setdefault("additionalProperties", False)
    config = SchemathesisConfig.from_dict(
        {"base-url": plaid.url, "generation": {"with-security-parameters": False}}
    )
    return schemathesis.openapi.from_dict(document, config=config)


@pytest.fixture(scope="module")
def valid_values(plaid):
    """For each field that must have a value known to the simulator, a function that returns one."""

    def post(path, **body):
        return requests.post(plaid.url + path, json=body, headers=KEYS, timeout=10).json()

    def public_token():
        login = {"institution_id": "ins_109508", "initial_products": ["assets"]}
        return post("/sandbox/public_token/create", **login)["public_token"]

    def access_token():
        return post("/item/public_token/exchange", public_token=public_token())["access_token"]

    def relay_token():
        body = {"report_tokens": ["ready"], "secondary_client_id": "both"}
        return post("/credit/relay/create", **body)["relay_token"]

    return {
        "access_tokens": lambda: [access_token()],
        "account_ids_to_exclude": list,
        "asset_report_token": lambda: plaid.add_report(investments=True, missing=["owners"]),
        "institution_id": lambda: "ins_109508",
        "key_id": lambda: "6c5516e1-92dc-479e-a8ff-5a51992e0001",
        "public_token": public_token,
        "relay_token": relay_token,
        "report_tokens": lambda: ["ready"],
        "secondary_client_id": lambda: "both",
    }


# Fields that are optional in the document, and that Plaid needs nevertheless to find a report.
NEEDED = {"/asset_report/create": "access_tokens", "/asset_report/get": "asset_report_token"}


def with_known_tokens(case, valid_values):
    """Replace the tokens of a case by valid ones, so that it can only fail because of its schema."""
    needed = [NEEDED[case.path]] if case.path in NEEDED else []
    for name in {*case.body, *needed} & valid_values.keys():
        case.body[name] = valid_values[name]()
    return case


def served_paths(document):
    return sorted(document["paths"].keys() - EXCLUDED_OPERATIONS.keys())


def test_every_operation_is_tried(document):
    """The document has the operations of the simulator, apart from the excluded ones."""
    assert {*served_paths(document), *NOT_IN_DOCUMENT} == OPERATIONS.keys()


@pytest.mark.parametrize("path", sorted(OPERATIONS.keys() - NOT_IN_DOCUMENT.keys()))
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_operation(path, mode, schema, valid_values):
    """Valid requests are executed, invalid ones are rejected, and each response conforms to its schema."""
    operation = schema[path]["POST"]
    statuses = Counter()

    def check(case):
        if mode is GenerationMode.POSITIVE:
            with_known_tokens(case, valid_values)
        response = case.call(headers=KEYS)
        statuses[response.status_code] += 1
        case.validate_response(response, excluded_checks=list(EXCLUDED_CHECKS))

    for case in schema.iter_coverage_cases(
        operation, generation_modes=[mode], generation_config=schema.config.generation
    ):
        check(case)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def generated(case):
        check(case)

    generated()
    # Requests with other methods get a 404; Schemathesis generates them in the negative mode.
    assert statuses.keys() == ({200} if mode is GenerationMode.POSITIVE else {400, 404})
