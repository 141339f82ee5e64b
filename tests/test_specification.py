"""Requests and responses generated from Plaid's OpenAPI document go through the codec and back."""

from __future__ import annotations

import json
import string
import traceback
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import drift
import jsonschema
import pytest
from attrs import frozen
from drift import ALLOWED, CREDENTIALS, Kind, Shape, describe_code
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from specification import Schema, Specification, as_of_mid_2026

from plaid_relay_async import codec, models
from plaid_relay_async.codec import ENDPOINTS, RawResponse
from plaid_relay_async.errors import RequestValidationError, ResponseDecodeError
from plaid_relay_async.redaction import Hidden

CODE = describe_code()
ANSWERS = sorted(
    {
        n
        for each in CODE.operations.values()
        if each.response
        for n in drift.reachable_records(CODE, each.response)
    }
)
REQUESTS = sorted(
    {n for each in CODE.operations.values() for n in drift.reachable_records(CODE, each.request)}
)
WHOLE = sorted({each.response for each in CODE.operations.values() if each.response})
DEEP = 9  # deeper than any response
OUR_NAMES = {name for record in CODE.records.values() for name in record.fields}


def bounded(examples: int) -> settings:
    """Return settings for a fixed number of examples, always the same ones, however slow the machine.

    Failing examples aren't reduced: that takes minutes for a report, and a failure names its place anyway.
    """
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=slow,
    )


# ------------------------------------------------------------------------------------- JSON to the digit


@frozen
class Number:
    """A number as its text in JSON."""

    text: str


def written(value: Any) -> str:
    """Return JSON, with numbers as their texts have them."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(inner) for inner in value) + "]"
    return json.dumps(value)


def parsed(text: str | bytes) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def exact(value: Any) -> Any:
    """Return the result of `unstructure` with numbers in the form that `parsed` returns."""
    if isinstance(value, dict):
        return {name: exact(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [exact(inner) for inner in value]
    return Decimal(repr(value)) if type(value) in {int, float} else value


# ------------------------------------------------------------------------ responses from their schemas

DIGITS = st.text(string.digits, min_size=1, max_size=25)
WHOLE_NUMBERS = st.integers(-(10**30), 10**30).map(str) | st.sampled_from(["0", "-0", "1", "-1"])
EXPONENTS = st.builds(
    "{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 400)
)
NUMBERS = st.builds(
    "{}{}{}".format, WHOLE_NUMBERS, DIGITS.map(".{}".format) | st.just(""), EXPONENTS | st.just("")
)

DATES = st.dates().map(date.isoformat)
ZONES = st.sampled_from(["Z", "z", "+00:00", "-00:00", "+05:30", "-11:00", "+23:59"])
FRACTIONS = st.just("") | st.text(string.digits, min_size=1, max_size=9).map(".{}".format)
MOMENTS = st.builds(
    "{}{}{}{}{}".format,
    st.dates(date(2, 1, 1), date(9998, 12, 31)),
    st.sampled_from("Tt"),
    st.times().map(lambda time: time.isoformat("seconds")),
    FRACTIONS,
    ZONES,
)

TEXTS = st.text(max_size=12) | st.sampled_from(['"', "\\", "null", "\u2028", "\U0001f600", "\ud800", "1E5"])
ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | TEXTS | NUMBERS.map(Number),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
NAMES_UNKNOWN = st.text(max_size=8).filter(lambda name: name not in OUR_NAMES) | st.sampled_from(
    ["raw", "additional_properties", "self", "__class__", "class", ""]
)
UNKNOWN = st.dictionaries(NAMES_UNKNOWN, ANY_JSON, max_size=2)

LEAVES = {
    "boolean": st.booleans(),
    "integer": WHOLE_NUMBERS.map(Number),
    "number": NUMBERS.map(Number),
    "date": DATES,
    "date-time": MOMENTS,
}


@frozen(eq=False)
class Maker:
    """Strategies for values that a document allows.

    Attributes:
        spec: the document.
        texts: strings, where any string is allowed.
        unknown: the unknown fields of an object.
    """

    spec: Specification
    texts: st.SearchStrategy[str] = TEXTS
    unknown: st.SearchStrategy[dict[str, Any]] = UNKNOWN

    def value(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        """Return a strategy for values of a schema; at depth 0 its objects have only required fields."""
        schema = self.spec.resolve(schema)
        some = self.not_null(schema, depth)
        return st.none() | some if drift.is_nullable(schema) else some

    def not_null(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        kind = drift.kind_of(schema)
        if kind == "object":
            return self.object(schema, depth)
        if kind == "array":
            return st.lists(self.value(schema["items"], depth), max_size=2 if depth else 1)
        if kind == "string":
            constants = [value for value in schema.get("enum", ()) if value is not None]
            return st.sampled_from(constants) | self.texts if constants else self.texts
        return {"anything": ANY_JSON, "any object": self.unknown, **LEAVES}[kind]

    def object(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        required = schema.get("required", ())
        properties = {
            name: self.value(inner, depth - 1 if depth else 0)
            for name, inner in schema["properties"].items()
            if depth or name in required
        }
        if "relay_token" in properties:
            # With an empty token a creation is unknown; see tests/codec/test_responses.py.
            properties["relay_token"] = properties["relay_token"].filter(bool)
        known = st.fixed_dictionaries(
            {name: some for name, some in properties.items() if name in required},
            optional={name: some for name, some in properties.items() if name not in required},
        )
        return st.builds(lambda one, other: {**one, **other}, self.unknown, known)


@pytest.fixture(scope="session")
def documents(openapi: Specification) -> list[Specification]:
    """Return Plaid's document as received, and as changed since mid-2026."""
    return [openapi, as_of_mid_2026(openapi)]


def schemas_of(
    documents: list[Specification], record: str, *, is_response: bool
) -> list[tuple[Specification, Schema]]:
    found_schemas = [
        (spec, schema)
        for spec in documents
        for name, schema in drift.compared_schemas(spec, CODE, is_response=is_response)
        if name == record
    ]
    assert found_schemas, f"no document has {record}"
    return found_schemas


def fields_of(schemas: list[tuple[Specification, Schema]]) -> set[str]:
    """Return all fields of the documents, so that a test can check whether it met each of them."""
    return {name for _, schema in schemas for name in schema["properties"]}


def lost(spec: Specification, schema: Schema, sent: Any, result: Any, place: str = "$") -> list[str]:
    """Return where something sent isn't in the result; absent and null fields are equal."""
    schema = spec.resolve(schema)
    if sent is None or result is None:
        return [] if sent is result else [place]
    kind = drift.kind_of(schema)
    if kind == "object":
        return lost_of_object(spec, schema, sent, result, place)
    if kind == "array":
        pairs = enumerate(zip(sent, result, strict=False))
        inner = [each for i, (a, b) in pairs for each in lost(spec, schema["items"], a, b, f"{place}[{i}]")]
        return inner if len(sent) == len(result) else [place]
    if kind == "date-time":
        return [] if to_microseconds(sent) == to_microseconds(result) else [place]
    return [] if identical(sent, result) else [place]


def lost_of_object(spec: Specification, schema: Schema, sent: Any, result: Any, place: str) -> list[str]:
    properties = schema["properties"]
    if not identical(*({n: v for n, v in side.items() if n not in properties} for side in (sent, result))):
        return [f"{place}.*"]
    return [
        each
        for name in properties
        for each in lost(spec, properties[name], sent.get(name), result.get(name), f"{place}.{name}")
    ]


def identical(one: Any, other: Any) -> bool:
    """Return whether two JSON values are the same; True isn't 1, as it is in Python."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other)


def to_microseconds(text: str) -> datetime:
    """Return a time to the microsecond, which is what Python's type can represent."""
    return datetime.fromisoformat(text.upper())


def cls_of(record: str) -> Any:
    return getattr(models, record)


def check_round_trip(spec: Specification, schema: Schema, text: str, record: str) -> None:
    """Convert JSON to the record and back by text and by dicts, and compare the records."""
    result = codec.from_json(text.encode(), cls_of(record))
    written_again = codec.to_json(result)
    assert lost(spec, schema, parsed(text), parsed(written_again)) == []
    assert codec.from_json(written_again, cls_of(record)) == result
    plain = codec.unstructure(result)
    assert lost(spec, schema, parsed(text), exact(plain)) == []
    assert codec.structure(plain, cls_of(record)) == result


# ---------------------------------------------------------------------------------------------- responses


def test_plaids_own_examples_are_read_and_written(openapi):
    """Each example of the document is read as a response, and is written as it was."""
    endpoints = {endpoint.path: endpoint for endpoint in ENDPOINTS if endpoint.path in openapi.paths}
    read = set()
    for path, endpoint in endpoints.items():
        for example in openapi.examples(path):
            text = json.dumps(example)
            record = CODE.operations[path].response
            check_round_trip(openapi, openapi.response_schema(path), text, record)
            response = RawResponse(200, {}, bytearray(text.encode()))
            assert codec.read_response(endpoint, response, None, Hidden("")) == codec.from_json(
                text, cls_of(record)
            )
            read.add(path)
    assert endpoints.keys() - read == {path for path in endpoints if CODE.operations[path].response is None}


@pytest.mark.parametrize("record", ANSWERS)
def test_nothing_of_an_object_is_lost(record, documents):
    """Whatever Plaid's schema of an object allows, with unknown fields, is written as it was read."""
    schemas = schemas_of(documents, record, is_response=True)
    strategies = [Maker(spec).object(schema, 2) for spec, schema in schemas]
    seen_fields: set[str] = set()

    @bounded(80)
    @given(st.data())
    def check(data):
        number = data.draw(st.integers(0, len(schemas) - 1))
        value = data.draw(strategies[number])
        check_round_trip(*schemas[number], written(value), record)
        seen_fields.update(name for name in value if value[name] is not None)

    check()
    assert fields_of(schemas) <= seen_fields


@pytest.mark.parametrize("record", WHOLE)
def test_nothing_of_a_response_is_lost(record, documents):
    """A response with all lists and objects, unknown fields and values, is written as it was read."""
    schemas = schemas_of(documents, record, is_response=True)
    strategies = [Maker(spec).object(schema, DEEP).map(written) for spec, schema in schemas]

    @bounded(100)
    @given(st.data())
    def check(data):
        number = data.draw(st.integers(0, len(schemas) - 1))
        check_round_trip(*schemas[number], data.draw(strategies[number]), record)

    check()


def test_a_time_is_kept_to_the_microsecond():
    """Python's times end there: further digits stay in the response's bytes only."""
    text = '{"original_purchase_datetime": "2026-03-30t18:27:37.123456789-05:30"}'
    result = codec.from_json(text, models.HoldingTaxLot)
    assert (
        json.loads(codec.to_json(result))["original_purchase_datetime"] == "2026-03-30T18:27:37.123456-05:30"
    )


def test_a_time_may_end_in_a_small_z():
    """RFC 3339 allows it, and so does the format date-time."""
    result = codec.from_json('{"original_purchase_datetime": "2026-03-30t18:27:37z"}', models.HoldingTaxLot)
    assert result.original_purchase_datetime == datetime(2026, 3, 30, 18, 27, 37, tzinfo=UTC)


def test_numbers_in_unknown_fields_are_exact():
    """A number in an unknown field is a float among dicts, and exact again in the record."""
    result = codec.from_json('{"field_of_tomorrow": [{"a": 0.1, "b": 5, "c": 1e400}]}', models.HoldingTaxLot)
    plain = codec.unstructure(result)
    assert plain["field_of_tomorrow"] == [{"a": 0.1, "b": 5, "c": Decimal("1e400")}]
    record = codec.structure(plain, models.HoldingTaxLot)
    assert record == result
    assert type(record.additional_properties["field_of_tomorrow"][0]["a"]) is Decimal


# -------------------------------------------------------------------------------------- invalid responses

CANARY = "canary"
CANARY_NUMBER = Number("98765432123456789.5")
CANARIES = st.text(max_size=5).map(f"{CANARY}{{}}".format)
OF_CANARIES = st.dictionaries(CANARIES, CANARIES | st.just(CANARY_NUMBER), max_size=1)

# Values that aren't of a kind, including some that are nearly so.
NO_STRING = [CANARY_NUMBER, True, [CANARY], {CANARY: CANARY}]
NO_NUMBER = [CANARY, "5", True, [CANARY], {CANARY: CANARY}]
WRONG = {
    "string": NO_STRING,
    "boolean": [CANARY, "true", Number("1"), Number("0"), [], {}],
    "number": NO_NUMBER,
    "integer": [*NO_NUMBER, CANARY_NUMBER, Number("5.0")],
    "date": [*NO_STRING, CANARY, "", "2026-02-30", "2026-03-30T18:27:37Z"],
    "date-time": [*NO_STRING, CANARY, "", "2026-02-30T18:27:37Z", "2026-03-30T18:27:37" + CANARY],
    "array": [CANARY, CANARY_NUMBER, True, {}, {"0": CANARY}],
    "object": [CANARY, CANARY_NUMBER, True, [], [CANARY]],
    "any object": [CANARY, CANARY_NUMBER, True, [], [CANARY]],
}


@frozen
class Place:
    """A place in a response: the steps to it, its shape, and whether it is required."""

    steps: tuple[str | int, ...]
    shape: Shape
    required: bool

    @property
    def path(self) -> str:
        return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)


def places(record: str, value: dict[str, Any], steps: tuple[str | int, ...] = ()) -> list[Place]:
    """Return each place in a response that has a type."""
    found_places = []
    for name, field in CODE.records[record].fields.items():
        if name in value:
            found_places.append(Place((*steps, name), field.shape, field.required))
            found_places.extend(inside(field.shape, value[name], (*steps, name)))
    return [place for place in found_places if place.shape.kind in WRONG]


def inside(shape: Shape, value: Any, steps: tuple[str | int, ...]) -> list[Place]:
    if shape.kind == "object" and value is not None:
        return places(shape.record, value, steps)
    inner_places = []
    for index, element in enumerate(value or () if shape.items else ()):
        inner_places.append(Place((*steps, index), shape.items, required=False))
        inner_places.extend(inside(shape.items, element, (*steps, index)))
    return inner_places


def needs_something(record: str) -> bool:
    return any(field.required for field in CODE.records[record].fields.values())


def holder(value: Any, steps: tuple[str | int, ...]) -> Any:
    for step in steps[:-1]:
        value = value[step]
    return value


def check_rejected(text: str, record: str, place: Place, problem: str) -> None:
    """Check that the JSON is rejected for what is at a place, and that only the place is shown."""
    with pytest.raises(ResponseDecodeError) as caught:
        codec.from_json(text, cls_of(record))
    assert caught.value.path == place.path
    assert problem in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(vars(caught.value))
    assert CANARY not in shown
    assert "98765432123456789" not in shown


@pytest.mark.parametrize("record", ANSWERS)
def test_a_wrong_type_is_an_error_with_its_path_only(record, documents):
    """Each value of a wrong type is rejected with its path; its content isn't shown."""
    schemas = schemas_of(documents, record, is_response=True)
    depth = DEEP if record in WHOLE else 1
    strategies = [Maker(spec, CANARIES, OF_CANARIES).object(schema, depth) for spec, schema in schemas]
    checked: set[tuple[str | int, ...]] = set()

    @bounded(30)
    @given(st.data())
    def check(data):
        value = data.draw(strategies[data.draw(st.integers(0, len(strategies) - 1))])
        index = data.draw(st.integers(0, 30))
        for place in places(record, value):
            wrong_values = [*WRONG[place.shape.kind], *([] if place.shape.nullable else [None])]
            around, last = holder(value, place.steps), place.steps[-1]
            original, around[last] = around[last], wrong_values[index % len(wrong_values)]
            check_rejected(written(value), record, place, "")
            around[last] = original
            checked.add(place.steps)
            index += 1

    check()
    assert fields_of(schemas) == {name for name, *further in checked if not further}


@pytest.mark.parametrize("record", [name for name in ANSWERS if needs_something(name)])
def test_a_missing_field_is_an_error_with_its_path(record, documents):
    """A missing required field is rejected with its path, wherever it is."""
    schemas = schemas_of(documents, record, is_response=True)
    depth = DEEP if record in WHOLE else 1
    strategies = [Maker(spec, CANARIES, OF_CANARIES).object(schema, depth) for spec, schema in schemas]

    @bounded(20)
    @given(st.data())
    def check(data):
        value = data.draw(strategies[data.draw(st.integers(0, len(strategies) - 1))])
        missing = [place for place in places(record, value) if place.required]
        assume(missing)
        place = data.draw(st.sampled_from(missing))
        del holder(value, place.steps)[place.steps[-1]]
        check_rejected(written(value), record, place, "required field missing")

    check()


# ---------------------------------------------------------------------------------------------- requests

# Characters that show that a value was misread: Unicode's Quotation_Mark, a comma and a semicolon.
MISREAD = (
    "\"',;\xab\xbb\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u2e42\u300c\u300d\u300e\u300f"
    "\u301d\u301e\u301f\ufe41\ufe42\ufe43\ufe44\uff02\uff07\uff62\uff63"
)
WORDS = st.text(
    st.characters(exclude_categories=("Z", "C"), exclude_characters=MISREAD), min_size=1, max_size=20
)
URLS = st.builds(
    "{}://{}/{}".format,
    st.sampled_from(["http", "https"]),
    st.just("example.com"),
    st.text("abc%/-", max_size=9),
)

# Fields for which a record accepts less than the document.
NARROWER = {
    "SandboxBankIncome.days_requested": (1, 731, "the document has no limits; those of reports apply"),
}
# Not checked before it is sent: Plaid returns the data of a person in the report, whatever it is.
UNCHECKED = {"AssetReportUser"}


@frozen(eq=False)
class Asker:
    """Strategies for requests that a document allows, as arguments of their records."""

    spec: Specification

    def arguments(self, record: str, schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
        properties = self.spec.resolve(schema)["properties"]
        fields = CODE.records[record].fields
        strategies = {
            name: self.argument(f"{record}.{name}", fields[name].shape, properties[name]) for name in fields
        }
        arguments = st.fixed_dictionaries(
            {name: some for name, some in strategies.items() if fields[name].required},
            optional={name: some for name, some in strategies.items() if not fields[name].required},
        )
        if record == "AssetReportGetRequest":  # the document doesn't express that one of the two is required
            return arguments.filter({"asset_report_token", "user_token"}.intersection)
        return arguments.map(in_order)

    def argument(self, where: str, shape: Shape, schema: Schema) -> st.SearchStrategy[Any]:
        schema = self.spec.resolve(schema)
        if shape.kind == "array":
            element = self.argument(where, shape.items, schema["items"])
            some = st.lists(element, min_size=1, max_size=3)
            return some.filter(one_report) if where == "RelayCreateRequest.report_tokens" else some
        if shape.kind == "object":
            return self.arguments(shape.record, schema).map(lambda given: cls_of(shape.record)(**given))
        if shape.kind == "integer":
            least, most, _ = NARROWER.get(where) or (schema.get("minimum"), schema.get("maximum"), "")
            return st.integers(least, most)
        if shape.kind == "string":
            return words_of(schema)
        return {
            "date": st.dates(),
            "date-time": st.datetimes(timezones=st.timezones()),
            "boolean": st.booleans(),
        }[shape.kind]


def in_order(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return whether a time range starts before it ends; the document doesn't express that."""
    if {"start_date", "end_date"} <= arguments.keys():
        start, end = sorted((arguments["start_date"], arguments["end_date"]))
        return {**arguments, "start_date": start, "end_date": end}
    return arguments


def one_report(tokens: list[str]) -> bool:
    """Return whether there is one report of each type; the document says so in prose only."""
    return len(set(tokens)) == len(tokens) and sum(token.startswith("assets-") for token in tokens) < 2


def words_of(schema: Schema) -> st.SearchStrategy[str]:
    values = [value for value in schema.get("enum", ()) if value is not None]
    if values:
        return st.sampled_from(values)
    return URLS if schema.get("format") == "url" else WORDS


def checked_by(spec: Specification, schema: Schema) -> Schema:
    """Return the schema as JSON Schema: null is a type, and unknown fields are rejected."""
    schema = dict(spec.resolve(schema))
    if "properties" in schema:
        schema["properties"] = {name: checked_by(spec, inner) for name, inner in schema["properties"].items()}
        schema.setdefault("additionalProperties", False)
    if "items" in schema:
        schema["items"] = checked_by(spec, schema["items"])
    if "type" in schema and schema.pop("nullable", False):
        schema["type"] = [schema["type"], "null"]
    return schema


def plain(record: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the expected JSON of a request: its arguments without those that have their default."""
    fields = CODE.records[record].fields
    passed = {
        name: value
        for name, value in arguments.items()
        if not (fields[name].omitted_by_default and value is fields[name].default)
    }
    always = {
        name: field.default
        for name, field in fields.items()
        if not field.required and not field.omitted_by_default
    }
    return always | {name: plain_value(fields[name].shape, value) for name, value in passed.items()}


def plain_value(shape: Shape, value: Any) -> Any:
    if shape.kind == "object":
        own = {name: getattr(value, name) for name in CODE.records[shape.record].fields}
        return plain(shape.record, {name: inner for name, inner in own.items() if inner is not None})
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else value


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_a_request_matches_the_document(endpoint, documents):
    """All arguments that the document allows are accepted, and the JSON that is sent matches its schema."""
    record = CODE.operations[endpoint.path].request
    schemas = schemas_of(documents, record, is_response=False)
    strategies = [Asker(spec).arguments(record, schema) for spec, schema in schemas]
    checks = [
        jsonschema.Draft202012Validator(checked_by(spec, schema), format_checker=jsonschema.FormatChecker())
        for spec, schema in schemas
    ]

    @bounded(40)
    @given(st.data())
    def check(data):
        number = data.draw(st.integers(0, len(schemas) - 1))
        arguments = data.draw(strategies[number])
        credentials = dict.fromkeys(CREDENTIALS, "x")
        sent = json.loads(codec.encode_request(endpoint.request_type(**arguments), Hidden(credentials)))
        checks[number].validate(sent)
        assert sent == plain(record, arguments) | credentials

    check()


def invalid_values(where: str, shape: Shape, schema: Schema) -> list[Any]:
    """Return values that are invalid in a field."""
    if shape.kind == "array":
        too_many = [["x"] * (schema["maxItems"] + 1)] if "maxItems" in schema else []
        return ["word", b"word", 5, [], [5], [""], [None], ["with space"], *too_many]
    if shape.kind == "integer":
        least, most, _ = NARROWER.get(where) or (schema["minimum"], schema["maximum"], "")
        return [least - 1, most + 1, -(10**9), 10**9, "5", 5.0, True]
    if shape.kind == "string":
        too_long = ["x" * (schema["maxLength"] + 1)] if "maxLength" in schema else []
        no_url = (
            ["word", "ftp://example.com", "https://", "https://["] if schema.get("format") == "url" else []
        )
        return [5, "", b"word", ["word"], True, *too_long, *no_url]
    return {
        "boolean": ["true", 1, 0, "", []],
        "date": ["2026-03-30", 5, datetime(2026, 3, 30, 0, 0)],  # noqa: DTZ001  # a wrong value
        "date-time": ["2026-03-30", 5, date(2026, 3, 30), datetime(2026, 3, 30, 0, 0)],  # noqa: DTZ001  # a wrong value
        "object": [{}, "word", [], AskedNothing()],
    }[shape.kind]


class AskedNothing:
    """A class that isn't a record."""


def required_arguments(record: str) -> dict[str, Any]:
    """Return the required arguments of a record."""
    values = {"string": "word", "integer": 5, "array": ["word"], "date": date(2026, 3, 30)}
    required = {n: values[f.shape.kind] for n, f in CODE.records[record].fields.items() if f.required}
    return required | ({"asset_report_token": "word"} if record == "AssetReportGetRequest" else {})


@pytest.mark.parametrize("record", sorted(set(REQUESTS) - UNCHECKED))
def test_invalid_arguments_are_rejected_by_name(record, documents):
    """A value of a wrong type or out of range is rejected before anything is sent, with its field's name."""
    cls_of(record)(**required_arguments(record))
    for spec, schema in schemas_of(documents, record, is_response=False):
        for name, field in CODE.records[record].fields.items():
            inner = spec.resolve(spec.resolve(schema)["properties"][name])
            null = [] if field.shape.nullable else [None]
            for value in [*invalid_values(f"{record}.{name}", field.shape, inner), *null]:
                with pytest.raises(RequestValidationError, match=rf"^{name}\b"):
                    cls_of(record)(**{**required_arguments(record), name: value})


def test_the_exceptions_for_requests_are_needed(documents):
    """Each exception is narrower than the document, and each unchecked record is unchecked."""
    for where in NARROWER:
        record, _, name = where.partition(".")
        for spec, schema in schemas_of(documents, record, is_response=False):
            assert not {"minimum", "maximum"} & spec.resolve(schema)["properties"][name].keys()
    assert models.AssetReportUser(ssn=5).ssn == 5
    assert {"AssetReportUser"} == UNCHECKED
    assert any(each.kind is Kind.REQUIRED for each in ALLOWED)
