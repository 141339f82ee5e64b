"""The reports that the simulator makes, held against every object and every property that Plaid's can have."""

import json

import pytest

from plaid_relay_async.simulator import report_bytes
from plaid_relay_async.simulator.outline import REPORT_PARTS
from plaid_relay_async.simulator.samples import render_unfinished_body
from plaid_relay_async.simulator.world import World

# Properties of Plaid's that the simulator leaves out, each with the reason.
NEVER = {
    "Cause.causes": "never inside of a warning, says its description",
    "Cause.documentation_url": "the example of a cause has none",
    "Cause.error_code_reason": "for OAuth logins alone",
    "Cause.provided_account_subtypes": "for Items with the product investments_auth alone",
    "Cause.request_id": "a cause belongs to no request",
    "Cause.required_account_subtypes": "for Items with the product investments_auth alone",
    "Cause.status": "in webhooks alone",
    "Cause.suggested_action": "the example of a cause has none",
}


def bodies():
    """Reports of several seeds, of all kinds."""
    for seed in range(8):
        yield json.loads(report_bytes(300, seed=seed, insights=True, investments=True))
    world = World(generation_delay=0, transactions=None, seed=0, clock=lambda: 0.0)
    for token in (world.add_report(investments=True, missing=[part]) for part in REPORT_PARTS):
        outline = world.ready_outline(world.get_report("anyone", token))
        yield json.loads(render_unfinished_body(outline, insights=False) + b"}")


class Walk:
    """Which properties a document has, and which of them were met, and null, in some bodies."""

    def __init__(self, document):
        self.schemas = document["components"]["schemas"]
        self.there, self.met, self.null = set(), set(), set()

    def fields(self, schema):
        """The properties of a schema, and of those that it is made of."""
        found = dict(schema.get("properties", {}))
        for part in schema.get("allOf", ()):
            found |= self.fields(self.resolve(part)[1])
        return found

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
            if f"{name}.{field}" not in self.there:
                self.there.add(f"{name}.{field}")
                self.list_all(inner, f"{name}.{field}")

    def visit(self, schema, value, name=""):
        name, schema = self.resolve(schema, name)
        if isinstance(value, list):
            for entry in value:
                self.visit(schema["items"], entry, name)
        if isinstance(value, dict):
            for field, inner in self.fields(schema).items():
                if field in value:
                    (self.null if value[field] is None else self.met).add(f"{name}.{field}")
                    self.visit(inner, value[field], f"{name}.{field}")


def test_every_property_occurs(document):
    """Each property of each object below AssetReportGetResponse is somewhere in what the simulator makes."""
    walk = Walk(document)
    root = {"$ref": "#/components/schemas/AssetReportGetResponse"}
    walk.list_all(root)
    for body in bodies():
        walk.visit(root, body)
    # The user and the name of a report are the caller's own words, and the request_id the server's.
    told = {name for name in walk.there if name.startswith("AssetReportUser.")}
    told |= {"AssetReport.client_report_id", "AssetReportGetResponse.request_id"}
    assert walk.there - walk.met - walk.null - told == NEVER.keys()
    # Banks and their customers are American; what is told to a user is for errors that a user can mend.
    always_null = {
        name for name in walk.null - walk.met - told if not name.endswith(".unofficial_currency_code")
    }
    assert always_null == {"Cause.display_message"}


@pytest.mark.parametrize("insights", [False, True])
def test_insights_are_for_who_asks(insights):
    """Only a report with insights has those of an account, and of all of them together."""
    report = json.loads(report_bytes(100, insights=insights))["report"]
    accounts = [account for item in report["items"] for account in item["accounts"]]
    assert ("insights" in report) is insights
    assert any("account_insights" in account for account in accounts) is insights
