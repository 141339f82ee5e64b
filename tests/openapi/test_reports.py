"""The simulator's reports, compared with every object and property in Plaid's schema of a report."""

import json

import pytest

from plaid_relay_async.simulator import report_bytes
from plaid_relay_async.simulator.outline import REPORT_PARTS
from plaid_relay_async.simulator.samples import render_unfinished_body
from plaid_relay_async.simulator.world import World

# Plaid's properties that the simulator omits, each with the reason.
OMITTED = {
    "Cause.causes": "never in a warning, according to its description",
    "Cause.documentation_url": "the example of a cause has none",
    "Cause.error_code_reason": "only for OAuth logins",
    "Cause.provided_account_subtypes": "only for Items with the product investments_auth",
    "Cause.request_id": "a cause belongs to no request",
    "Cause.required_account_subtypes": "only for Items with the product investments_auth",
    "Cause.status": "only in webhooks",
    "Cause.suggested_action": "the example of a cause has none",
}


def bodies():
    """Yield reports of several seeds and of all kinds."""
    for seed in range(8):
        yield json.loads(report_bytes(300, seed=seed, insights=True, investments=True))
    world = World(generation_delay=0, transactions=None, seed=0, clock=lambda: 0.0)
    for token in (world.add_report(investments=True, missing=[part]) for part in REPORT_PARTS):
        outline = world.ready_outline(world.get_report("anyone", token))
        yield json.loads(render_unfinished_body(outline, insights=False) + b"}")


class PropertyWalk:
    """Collects the properties of a schema, and those that are present, or null, in some bodies."""

    def __init__(self, document):
        self.schemas = document["components"]["schemas"]
        self.known, self.present, self.null = set(), set(), set()

    def fields(self, schema):
        """Return the properties of a schema, including those of the schemas in its allOf."""
        properties = dict(schema.get("properties", {}))
        for part in schema.get("allOf", ()):
            properties |= self.fields(self.resolve(part)[1])
        return properties

    def resolve(self, schema, name=""):
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return name, self.schemas[name]
        return name, schema

    def list_all(self, schema, name=""):
        name, schema = self.resolve(schema, name)
        if schema.get("type") == "array":
            self.list_all(schema["items"], name)
        for field, inner in self.fields(schema).items():
            if f"{name}.{field}" not in self.known:
                self.known.add(f"{name}.{field}")
                self.list_all(inner, f"{name}.{field}")

    def visit(self, schema, value, name=""):
        name, schema = self.resolve(schema, name)
        if isinstance(value, list):
            for entry in value:
                self.visit(schema["items"], entry, name)
        if isinstance(value, dict):
            for field, inner in self.fields(schema).items():
                if field in value:
                    (self.null if value[field] is None else self.present).add(f"{name}.{field}")
                    self.visit(inner, value[field], f"{name}.{field}")


def test_every_property_occurs(document):
    """Each property of each object in AssetReportGetResponse occurs in some report of the simulator."""
    walk = PropertyWalk(document)
    root = {"$ref": "#/components/schemas/AssetReportGetResponse"}
    walk.list_all(root)
    for body in bodies():
        walk.visit(root, body)
    # The user and the client_report_id are copied from the request, and the request_id is the server's.
    copied = {name for name in walk.known if name.startswith("AssetReportUser.")}
    copied |= {"AssetReport.client_report_id", "AssetReportGetResponse.request_id"}
    assert walk.known - walk.present - walk.null - copied == OMITTED.keys()
    # All accounts are in US dollars, and a display_message is only for errors that a user can resolve.
    always_null = {
        name for name in walk.null - walk.present - copied if not name.endswith(".unofficial_currency_code")
    }
    assert always_null == {"Cause.display_message"}


@pytest.mark.parametrize("insights", [False, True])
def test_insights_only_on_request(insights):
    """Only a report with insights has insights of an account, and of all accounts."""
    report = json.loads(report_bytes(100, insights=insights))["report"]
    accounts = [account for item in report["items"] for account in item["accounts"]]
    assert ("insights" in report) is insights
    assert any("account_insights" in account for account in accounts) is insights
