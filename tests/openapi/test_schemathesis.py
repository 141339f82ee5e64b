"""Schemathesis against the simulator: what Plaid's OpenAPI document allows, and what it doesn't.

    nox --session schemathesis -- --specification PATH

The document isn't part of this repository; without it these tests are skipped, and say so.
"""

import asyncio
import threading
from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks

from plaid_relay_async.simulator import Simulator
from plaid_relay_async.simulator.operations import OPERATIONS

KEYS = {"PLAID-CLIENT-ID": "both", "PLAID-SECRET": "secret-of-both"}  # owner and partner in one
EXAMPLES = 40

# Checks of Schemathesis's that don't fit Plaid, each with the reason.
EXCLUDED_CHECKS = {
    checks.unsupported_method: "wants 405; Plaid lists NOT_FOUND, of status 404, for what there is not",
    checks.ignored_auth: "wants 401; Plaid answers 400, with INVALID_API_KEYS or MISSING_FIELDS",
}

# Operations of the document that the simulator doesn't have, each with the reason.
EXCLUDED_OPERATIONS = dict.fromkeys(
    (
        "/asset_report/audit_copy/create",
        "/asset_report/audit_copy/get",
        "/asset_report/audit_copy/pdf/get",
        "/asset_report/audit_copy/remove",
    ),
    "audit copies are not what the package is for",
)

# Operations of the simulator's that the document in question doesn't have.
ELSEWHERE = {
    "/item/remove": "not in the part of Plaid's document that is about reports",
    "/sandbox/item/fire_webhook": "the same",
}


@pytest.fixture(scope="module")
def plaid():
    """A simulator beside the tests, in the event loop of another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start():
        running = Simulator(clients={"both": "secret-of-both"}, reports=["ready"], generation_delay=0)
        await running.start()
        return running

    running = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=10)
    yield running
    asyncio.run_coroutine_threadsafe(running.close(), loop).result(timeout=10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=10)
    loop.close()


@pytest.fixture(scope="module")
def schema(document, plaid):
    """Plaid's document, and one thing more that is so and that it doesn't say.

    Plaid refuses a field that it doesn't know (UNKNOWN_FIELDS); the schemas of requests would allow any. Those
    that say that they are open stay so.
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
def fresh(plaid):
    """A value that the simulator knows, for each field of a request that must be one."""

    def ask(path, **body):
        return requests.post(plaid.url + path, json=body, headers=KEYS, timeout=10).json()

    def public_token():
        login = {"institution_id": "ins_109508", "initial_products": ["assets"]}
        return ask("/sandbox/public_token/create", **login)["public_token"]

    def access_token():
        return ask("/item/public_token/exchange", public_token=public_token())["access_token"]

    def relay_token():
        body = {"report_tokens": ["ready"], "secondary_client_id": "both"}
        return ask("/credit/relay/create", **body)["relay_token"]

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


# What the document requires of no request, and Plaid needs all the same: there is no report without them.
NEEDED = {"/asset_report/create": "access_tokens", "/asset_report/get": "asset_report_token"}


def with_known_tokens(case, fresh):
    """The case, in which every token is one that there is, so that nothing but the schema can be in the way."""
    needed = [NEEDED[case.path]] if case.path in NEEDED else []
    for name in {*case.body, *needed} & fresh.keys():
        case.body[name] = fresh[name]()
    return case


def served(document):
    return sorted(document["paths"].keys() - EXCLUDED_OPERATIONS.keys())


def test_every_operation_is_tried(document):
    """The document has what the simulator has, but for what is excluded by name."""
    assert {*served(document), *ELSEWHERE} == OPERATIONS.keys()


@pytest.mark.parametrize("path", sorted(OPERATIONS.keys() - ELSEWHERE.keys()))
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_operation(path, mode, schema, fresh):
    """What the schema allows is carried out, what it doesn't is refused, and each answer is of its schema."""
    operation = schema[path]["POST"]
    answered = Counter()

    def check(case):
        if mode is GenerationMode.POSITIVE:
            with_known_tokens(case, fresh)
        answer = case.call(headers=KEYS)
        answered[answer.status_code] += 1
        case.validate_response(answer, excluded_checks=list(EXCLUDED_CHECKS))

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
    # The 404 are those for other methods, which Schemathesis counts among what isn't allowed.
    assert answered.keys() == ({200} if mode is GenerationMode.POSITIVE else {400, 404})
