"""Requests and answers made from Plaid's OpenAPI document, through the codec and back."""

from __future__ import annotations

import json
import string
import traceback
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import drift
import jsonschema
import pytest
from attrs import frozen
from drift import ALLOWED, CREDENTIALS, Kind, Shape, described
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from specification import Schema, Specification, of_mid_2026

from plaid_relay_async import codec, models
from plaid_relay_async.codec import ENDPOINTS, Answer
from plaid_relay_async.errors import Hidden, InvalidRequestError, ResponseDecodeError

CODE = described()
ANSWERS = sorted(
    {n for each in CODE.operations.values() if each.answer for n in drift.reached(CODE, each.answer)}
)
REQUESTS = sorted({n for each in CODE.operations.values() for n in drift.reached(CODE, each.request)})
WHOLE = sorted({each.answer for each in CODE.operations.values() if each.answer})
OUR_NAMES = {name for record in CODE.records.values() for name in record.fields}


def bounded(examples: int) -> settings:
    """Always the same examples, so many of them, however slow the machine."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=slow)


# ------------------------------------------------------------------------------------- JSON to the digit


@frozen
class Number:
    """A number as its text in JSON."""

    text: str


def written(value: Any) -> str:
    """JSON, of numbers as they are told."""
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
    """What `unstructure` gave, with its numbers as `parsed` has them."""
    return parsed(json.dumps(value, default=lambda number: f"<{number}>").replace('"<', "").replace('>"', ""))


# ----------------------------------------------------------------------------- answers by their schemas

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
UNKNOWN = st.text(max_size=8).filter(lambda name: name not in OUR_NAMES) | st.sampled_from(
    ["raw", "additional_properties", "self", "__class__", "class", ""]
)

LEAVES = {
    "boolean": st.booleans(),
    "integer": WHOLE_NUMBERS.map(Number),
    "number": NUMBERS.map(Number),
    "date": DATES,
    "date-time": MOMENTS,
}


@frozen(eq=False)
class Maker:
    """Makes what a document allows.

    Attributes:
        spec: the document.
        texts: strings, where any is allowed.
        unknown: what may stand beside the fields of an object.
    """

    spec: Specification
    texts: st.SearchStrategy[str] = TEXTS
    unknown: st.SearchStrategy[dict[str, Any]] = st.dictionaries(UNKNOWN, ANY_JSON, max_size=2)

    def value(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        """Anything that fits a schema; at depth 0 the objects in it have their required fields alone."""
        schema = self.spec.resolved(schema)
        some = self.not_null(schema, depth)
        return st.none() | some if drift.is_nullable(schema) else some

    def not_null(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        kind = drift.kind_of(schema)
        if kind == "object":
            return self.object(schema, depth)
        if kind == "array":
            return st.lists(self.value(schema["items"], depth), max_size=2 if depth else 1)
        if kind == "string":
            known = [value for value in schema.get("enum", ()) if value is not None]
            return st.sampled_from(known) | self.texts if known else self.texts
        return ANY_JSON if kind == "anything" else LEAVES[kind]

    def object(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        required = schema.get("required", ())
        properties = {
            name: self.value(inner, depth - 1 if depth else 0)
            for name, inner in schema["properties"].items()
            if depth or name in required
        }
        known = st.fixed_dictionaries(
            {name: some for name, some in properties.items() if name in required},
            optional={name: some for name, some in properties.items() if name not in required},
        )
        return st.builds(lambda one, other: {**one, **other}, self.unknown, known)


@pytest.fixture(scope="session")
def documents(openapi: Specification) -> list[Specification]:
    """Plaid's document as it was given, and as it is since mid-2026."""
    return [openapi, of_mid_2026(openapi)]


def schemas_of(
    documents: list[Specification], record: str, *, is_answer: bool
) -> list[tuple[Specification, Schema]]:
    found = [
        (spec, schema)
        for spec in documents
        for name, schema in drift.compared(spec, CODE, is_answer=is_answer)
        if name == record
    ]
    assert found, f"no document has {record}"
    return found


def lost(spec: Specification, schema: Schema, sent: Any, got: Any, place: str = "$") -> list[str]:
    """Where something of what was sent isn't in what was got; absent and null fields are alike."""
    schema = spec.resolved(schema)
    if sent is None or got is None:
        return [] if sent is got else [place]
    kind = drift.kind_of(schema)
    if kind == "object":
        return lost_of_object(spec, schema, sent, got, place)
    if kind == "array":
        pairs = enumerate(zip(sent, got, strict=False))
        inner = [each for i, (a, b) in pairs for each in lost(spec, schema["items"], a, b, f"{place}[{i}]")]
        return inner if len(sent) == len(got) else [place]
    if kind == "date-time":
        return [] if moment(sent) == moment(got) else [place]
    return [] if identical(sent, got) else [place]


def lost_of_object(spec: Specification, schema: Schema, sent: Any, got: Any, place: str) -> list[str]:
    known = schema["properties"]
    if not identical(*({n: v for n, v in side.items() if n not in known} for side in (sent, got))):
        return [f"{place}.*"]
    return [
        each
        for name in known
        for each in lost(spec, known[name], sent.get(name), got.get(name), f"{place}.{name}")
    ]


def identical(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same; True isn't 1, as it is for Python."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other)


def moment(text: str) -> datetime:
    """A moment to the microsecond, for that is what Python's can hold."""
    return datetime.fromisoformat(text.upper())


def cls_of(record: str) -> Any:
    return getattr(models, record)


def check_round_trip(spec: Specification, schema: Schema, text: str, record: str) -> None:
    """JSON to the record and back by way of text and of dicts, and then the same record again."""
    got = codec.from_json(text.encode(), cls_of(record))
    again = codec.to_json(got)
    assert lost(spec, schema, parsed(text), parsed(again)) == []
    assert codec.from_json(again, cls_of(record)) == got
    plain = codec.unstructure(got)
    assert lost(spec, schema, parsed(text), exact(plain)) == []
    assert codec.structure(plain, cls_of(record)) == got


# ---------------------------------------------------------------------------------------------- answers


def test_plaids_own_examples_are_read_and_written(openapi):
    """Each example of the document is read as an answer, and comes out of its record as it went in."""
    endpoints = {endpoint.path: endpoint for endpoint in ENDPOINTS if endpoint.path in openapi.paths}
    read = set()
    for path, endpoint in endpoints.items():
        for example in openapi.examples(path):
            text = json.dumps(example)
            record = CODE.operations[path].answer
            check_round_trip(openapi, openapi.answer(path), text, record)
            answer = Answer(200, {}, bytearray(text.encode()))
            assert codec.read(endpoint, answer, None, Hidden("")) == codec.from_json(text, cls_of(record))
            read.add(path)
    assert endpoints.keys() - read == {path for path in endpoints if CODE.operations[path].answer is None}


@pytest.mark.parametrize("record", ANSWERS)
def test_nothing_of_an_object_is_lost(record, documents):
    """Whatever Plaid's schema of an object allows, and fields of tomorrow with it, comes out as it went in."""
    found = schemas_of(documents, record, is_answer=True)
    made = st.one_of([st.tuples(st.just(pair), Maker(pair[0]).object(pair[1], 2)) for pair in found])

    @bounded(12)
    @given(made)
    def check(drawn):
        (spec, schema), value = drawn
        check_round_trip(spec, schema, written(value), record)

    check()
