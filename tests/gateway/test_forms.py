"""What the console's page gets about each operation, compared with the package."""

from __future__ import annotations

import inspect
import json
from operator import attrgetter

import aiohttp
import pytest
from attrs import NOTHING, fields_dict

from plaid_relay_async import Credentials, RelayClient, RequestValidationError, models
from plaid_relay_async.codec import ENDPOINTS, Idempotency
from plaid_relay_async.gateway import Gateway
from plaid_relay_async.gateway.forms import console_data

DATA = console_data()
OPERATIONS = DATA["operations"]
BY_PATH = {endpoint.path: endpoint for endpoint in ENDPOINTS}
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation["path"])


def full_name(definition):
    return ".".join(filter(None, (definition["within"], definition["name"])))


def test_the_page_has_every_operation():
    """The page has the operations of the endpoint table in its order, with their properties."""
    assert [(each["path"], each["idempotency"], each["issues"]) for each in OPERATIONS] == [
        (endpoint.path, endpoint.idempotency.name, endpoint.issues) for endpoint in ENDPOINTS
    ]
    assert [each["group"] == "Relay" for each in OPERATIONS] == [True] * 5 + [False] * 12
    assert {each["path"]: each["returns"] for each in OPERATIONS if each["returns"]} == {
        "/credit/relay/get": "report",
        "/credit/relay/pdf/get": "pdf",
        "/asset_report/get": "report",
        "/asset_report/pdf/get": "pdf",
    }
    for each in OPERATIONS:
        non_idempotent = BY_PATH[each["path"]].idempotency is Idempotency.NON_IDEMPOTENT
        assert (each["creates"] is not None) == non_idempotent


@each_operation
def test_each_field_is_an_input_fixed_or_not_offered(operation):
    """Required fields are required inputs, and a token has a variable from which the code reads it."""
    request_type = BY_PATH[operation["path"]].request_type
    names = models.plaid_field_names(request_type)
    record = {name: attribute for name, attribute in fields_dict(request_type).items() if name in names}
    inputs = {full_name(each): each for each in operation["inputs"]}
    offered = [*inputs, *operation["fixed"], *operation["not_offered"]]
    assert len(set(offered)) == len(offered)
    assert {name.partition(".")[0] for name in offered} == names
    for name, attribute in record.items():
        if attribute.default is NOTHING:
            assert inputs[name]["required"], name
    for name, each in inputs.items():
        is_token = each["kind"] in {"token", "tokens"}
        assert is_token == bool(each["env"]) == name.endswith(("_token", "_tokens")), name
        assert "{" not in each["hint"]


def test_the_bounds_are_those_of_the_records():
    """A value at its bound is accepted, and one beyond it is rejected with the text that the page shows."""
    bounds = {
        (each["path"], name["name"]): (name["kind"], name.get("min"), name["max"], name["problem"])
        for each in OPERATIONS
        for name in each["inputs"]
        if "max" in name
    }
    days = ("number", 0, 731, "must be a whole number from 0 to 731")
    assert bounds == {
        ("/asset_report/create", "access_tokens"): (
            *("tokens", None, 99),
            "has {count} access tokens: the limit is 99",
        ),
        ("/asset_report/create", "days_requested"): days,
        ("/asset_report/refresh", "days_requested"): days,
        ("/asset_report/get", "days_to_include"): days,
        ("/asset_report/pdf/get", "days_to_include"): days,
        ("/item/remove", "reason_note"): ("text", None, 512, "has more than 512 characters"),
        ("/beta/webhook_events/list", "cursor"): ("text", None, 512, "has more than 512 characters"),
        ("/beta/webhook_events/list", "count"): ("number", 1, 100, "must be a whole number from 1 to 100"),
    }
    models.AssetReportCreateRequest(["token"] * 99, 731)
    models.ItemRemoveRequest("token", reason_note="x" * 512)
    with pytest.raises(RequestValidationError, match="has 100 access tokens: the limit is 99"):
        models.AssetReportCreateRequest(["token"] * 100, 731)


@each_operation
async def test_the_code_calls_existing_methods(operation):
    """The client has each method, and takes required inputs by position and the others by name, as the code does."""
    async with RelayClient(gateway_key="key", base_url="http://127.0.0.1:1") as client:
        parameters = inspect.signature(attrgetter(operation["method"])(client)).parameters
        named = {each["name"] for each in operation["inputs"] if not each["required"]}
        placed = [each["name"] for each in operation["inputs"] if each["required"]]
        keyword = {name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
        assert named <= keyword
        assert [*parameters][: len(placed)] == placed
        assert operation["batch_method"] is None or callable(attrgetter(operation["batch_method"])(client))


def test_each_issued_token_goes_into_the_first_input_of_other_operations():
    """For every token that a response may contain, the page offers operations whose first input takes it."""
    assert set(DATA["next"]) == {endpoint.issues for endpoint in ENDPOINTS if endpoint.issues}
    operations = {each["path"]: each for each in OPERATIONS}
    for token, paths in DATA["next"].items():
        for path in paths:
            first = operations[path]["inputs"][0]
            assert first["env"]
            name = first["name"].removeprefix("asset_").removesuffix("s")
            assert name == token.removeprefix("asset_")


async def test_the_gateway_serves_it_without_a_credential():
    """Whatever a gateway serves, its page gets the same data, which contains nothing of its credentials."""
    credentials = {"default": Credentials("canary-client", "canary-secret")}
    async with (
        Gateway([], credentials=credentials, operations=["/credit/relay/get"]) as gateway,
        aiohttp.ClientSession() as session,
        session.get(f"{gateway.url}/console/operations.json") as response,
    ):
        text = await response.text()
    assert (response.status, response.content_type) == (200, "application/json")
    assert json.loads(text) == json.loads(json.dumps(DATA))
    assert "canary" not in text
