"""The check that `nox -s drift` runs finds each difference, and no others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import drift
import pytest
from attrs import evolve
from drift import (
    ALLOWED,
    Allowed,
    Description,
    Documents,
    Field,
    Kind,
    Operation,
    Record,
    Shape,
    describe_code,
)
from specification import Specification, UnreadableError, as_of_mid_2026, copy_document

import plaid_relay_async

CODE = describe_code()
OURS = ("AssetReportGetResponse.raw", *(f"{name}.inferred" for name in CODE.records if "Remove" in name))
FIELDS = [(record, name) for record in CODE.records for name in CODE.records[record].fields]
PLAIDS = [(record, name) for record, name in FIELDS if f"{record}.{name}" not in OURS]

# Plaid always sends a value, so it doesn't matter whether null would be written.
NEVER_NULL = {each.where for each in ALLOWED if each.kind is Kind.LAX}


ANSWERS = {
    name
    for each in CODE.operations.values()
    if each.response
    for name in drift.reachable_records(CODE, each.response)
}

NULLABLE = [
    (record, name)
    for record, name in PLAIDS
    if record in ANSWERS and CODE.records[record].fields[name].shape.nullable
    if f"{record}.{name}" not in NEVER_NULL
]
LISTS = [
    (record, name)
    for record, name in PLAIDS
    if (items := CODE.records[record].fields[name].shape.items) is not None and items.kind != "anything"
]


@pytest.fixture(scope="module")
def newer(openapi: Specification) -> Specification:
    return as_of_mid_2026(openapi)


@pytest.fixture(scope="module")
def drift_places(openapi: Specification, newer: Specification):
    """Return a function for the places of drift in either document with another field."""

    def places_with(record: str, name: str, field: Field) -> set[str]:
        description = changed(record, name, field)
        return named(openapi, description) | named(newer, description)

    return places_with


@pytest.fixture(scope="module")
def document_with_drift(openapi: Specification, newer: Specification):
    """Return the first of the two documents that has drift for a record."""
    records_of_openapi = {
        name for side in (False, True) for name, _ in drift.compared_schemas(openapi, CODE, is_response=side)
    }
    return lambda record: openapi if record in records_of_openapi else newer


def changed(record: str, name: str, to: Field | None) -> Description:
    """Return the code's description with another field in a place, or without one."""
    others = {n: f for n, f in CODE.records[record].fields.items() if n != name}
    fields = others if to is None else {**others, name: to}
    return evolve(CODE, records={**CODE.records, record: evolve(CODE.records[record], fields=fields)})


def named(spec: Specification, description: Description) -> set[str]:
    return {difference.where for difference in drift.find_drift(spec, description)}


def flipped(field: Field) -> Field:
    """Return the field with the opposite requiredness."""
    could_do_without = not field.required and field.default in {None, False}
    shape = evolve(field.shape, nullable=not could_do_without)
    return Field(shape, could_do_without)


def retyped(shape: Shape) -> Shape:
    return Shape("string" if shape.kind == "boolean" else "boolean", shape.nullable)


# -------------------------------------------------------------------------------------- Plaid's document


def test_the_records_match_the_document(openapi):
    """No difference is unexpected, and every expected one is needed."""
    assert drift.find_drift(openapi, CODE) == []


def test_the_records_match_the_document_of_mid_2026(newer):
    """The same records read Plaid's later changes, and the other exceptions are for those."""
    assert drift.find_drift(newer, CODE) == []


def test_a_missing_field_is_reported(document_with_drift):
    """Any field missing in any record is drift, and so is a client-side field that no longer exists."""
    assert len(FIELDS) > 300
    for record, name in FIELDS:
        assert f"{record}.{name}" in named(document_with_drift(record), changed(record, name, None))


def test_another_requiredness_is_reported(drift_places):
    """A required field that is optional in the document, or the other way round, is drift."""
    for record, name in PLAIDS:
        other = flipped(CODE.records[record].fields[name])
        assert f"{record}.{name}" in drift_places(record, name, other)


def test_another_type_is_reported(drift_places):
    """A field of another type is drift."""
    for record, name in PLAIDS:
        field = CODE.records[record].fields[name]
        other = evolve(field, shape=retyped(field.shape))
        assert f"{record}.{name}" in drift_places(record, name, other)


def test_other_list_elements_are_reported(drift_places):
    """The elements of a list are compared: their type, and whether they may be null."""
    for record, name in LISTS:
        field = CODE.records[record].fields[name]
        for items in (
            retyped(field.shape.items),
            evolve(field.shape.items, nullable=not field.shape.items.nullable),
        ):
            other = evolve(field, shape=evolve(field.shape, items=items))
            assert f"{record}.{name}[]" in drift_places(record, name, other)


def test_another_handling_of_null_is_reported(drift_places):
    """A field that is always sent is written even if it is null; one that may be absent isn't."""
    for record, name in NULLABLE:
        field = CODE.records[record].fields[name]
        other = evolve(field, always_sent=not field.always_sent)
        assert f"{record}.{name}" in drift_places(record, name, other)


def with_values(field: Field, values: frozenset[str] | None) -> Field:
    if field.shape.items is not None:
        return evolve(field, shape=evolve(field.shape, items=evolve(field.shape.items, values=values)))
    return evolve(field, shape=evolve(field.shape, values=values))


def places_of_values():
    """Yield each field with constants: the record, the name, the values and their place."""
    for record, name in PLAIDS:
        shape = CODE.records[record].fields[name].shape
        values, where = (shape.items.values, "[]") if shape.items else (shape.values, "")
        if values is not None:
            yield record, name, values, f"{record}.{name}{where}"


def test_a_value_without_a_constant_is_reported(drift_places):
    """Each constant that is missing, or unknown to Plaid, is drift, and so is the lack of all."""
    for record, name, values, where in places_of_values():
        field = CODE.records[record].fields[name]
        for value in values:
            assert f"{where}={value}" in drift_places(record, name, with_values(field, values - {value}))
        assert f"{where}=unknown" in drift_places(record, name, with_values(field, values | {"unknown"}))
        assert where in drift_places(record, name, with_values(field, None))


def test_a_record_that_drops_unknown_fields_is_reported(document_with_drift):
    """Every record of a response keeps unknown fields."""
    for name in ANSWERS:
        dropping = evolve(CODE.records[name], keeps_unknown=False)
        assert name in named(
            document_with_drift(name), evolve(CODE, records={**CODE.records, name: dropping})
        )


@pytest.mark.parametrize("path", CODE.operations)
def test_a_missing_operation_is_reported(path, newer):
    """An operation that is missing in the code or the document is drift."""
    fewer = {name: operation for name, operation in CODE.operations.items() if name != path}
    assert path in named(newer, evolve(CODE, operations=fewer))
    document = copy_document(newer)
    del document["paths"][path]
    reported = named(Specification(document), CODE)
    missing_from_an_excerpt = {"/item/remove", "/sandbox/item/fire_webhook"}
    assert (path in reported) is (path not in missing_from_an_excerpt)
    document["paths"].update({f"/of_the_whole/{number}": {} for number in range(100)})
    assert path in named(Specification(document), CODE)


@pytest.mark.parametrize("path", CODE.operations)
def test_an_operation_with_another_response_is_reported(path, newer):
    """JSON for a file, a file for JSON, a request without JSON and a method other than POST are drift."""
    document = copy_document(newer)
    operation = document["paths"][path]["post"]
    is_file = CODE.operations[path].response is None
    content = {"application/json": {"schema": {"type": "object"}}} if is_file else {"application/pdf": {}}
    operation["responses"]["200"]["content"] = content
    del operation["requestBody"]
    differences = drift.find_drift(Specification(document), CODE)
    assert {d.kind for d in differences if d.where == path} == {Kind.OTHER_RESPONSE, Kind.OTHER_REQUEST}
    document["paths"][path] = {"get": operation}
    assert drift.Difference(path, Kind.NOT_POSTED) in drift.find_drift(Specification(document), CODE)


def test_an_exception_that_is_not_needed_is_reported(openapi, newer):
    """The list of expected differences has no stale entry."""
    stale = Allowed("AssetReport.user", Kind.NO_FIELD, "a test")
    assert drift.find_drift(openapi, CODE, (*ALLOWED, stale)) == [
        drift.Difference("AssetReport.user", Kind.STALE, Kind.NO_FIELD.value)
    ]
    older_only = evolve(stale, documents=Documents.OLDER)
    assert named(openapi, CODE) == set()
    assert drift.find_drift(openapi, CODE, (*ALLOWED, older_only)) != []
    assert drift.find_drift(newer, CODE, (*ALLOWED, older_only)) == []
    newer_only = evolve(stale, documents=Documents.NEWER)
    assert drift.find_drift(openapi, CODE, (*ALLOWED, newer_only)) == []
    assert drift.find_drift(newer, CODE, (*ALLOWED, newer_only)) != []


def test_every_exception_is_needed(openapi, newer):
    """Each expected difference is drift in one of the two documents if it isn't allowed."""
    for number, each in enumerate(ALLOWED):
        allowed = [*ALLOWED[:number], *ALLOWED[number + 1 :]]
        differences = {*drift.find_drift(openapi, CODE, allowed), *drift.find_drift(newer, CODE, allowed)}
        assert {(one.where, one.kind) for one in differences} == {(each.where, each.kind)}
        assert len(each.reason) > 10


def test_an_intermediate_document_may_have_either(openapi, newer):
    """Plaid changed one thing after the other, so either state may apply in between."""
    for spec in (openapi, newer):
        document = copy_document(spec)
        document["info"]["version"] = "2020-09-14_1.710.0"
        assert named(Specification(document), CODE) == set()


def test_operations_missing_in_an_excerpt_are_optional(openapi, newer):
    """An older document may have the operations that an excerpt lacks, and a newer one may lack them."""
    lacking = ("/item/remove", "/sandbox/item/fire_webhook")
    older, newest = copy_document(openapi), copy_document(newer)
    for path in lacking:
        older["paths"][path] = newest["paths"].pop(path)
    assert named(Specification(older), CODE) == {"SandboxItemFireWebhookRequest.options"}
    assert named(Specification(newest), CODE) == set()


# ------------------------------------------------------------------------------------ the program itself

DRIFT = str(Path(drift.__file__))


def run(*arguments: str, code: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program without coverage, with the package from another folder if one is passed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    if code is not None:
        environment["PYTHONPATH"] = str(code)
    return subprocess.run(
        [sys.executable, DRIFT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "before", "after", "line"),
    [
        (
            "report.py",
            "    amount: Decimal\n    date: day",
            "    date: day",
            "AssetReportTransaction.amount: ",
        ),
        ("report.py", "    primary: bool | None = None\n", "", "Address.primary: "),
        (
            "report.py",
            "    current: Decimal\n",
            "    current: Decimal | None\n",
            "HistoricalBalance.current: ",
        ),
        (
            "report.py",
            "    ticker_symbol: str | None = nullable_field()\n",
            "    ticker_symbol: str | None = None\n",
            "AssetReportInvestmentSecurity.ticker_symbol: ",
        ),
        ("relay.py", "    removed: bool\n", "    removed: str\n", "RelayRemoveResponse.removed: "),
        (
            "relay.py",
            "    include_insights: bool = boolean_field()\n",
            "",
            "RelayGetRequest.include_insights: ",
        ),
        ("values.py", '    EBT = "ebt"\n', "", "AccountAssets.subtype=ebt: "),
        (
            "insights.py",
            "    transfers_in: AmountWithCurrency | None = None\n",
            "",
            "IncomeInsights.transfers_in: ",
        ),
    ],
)
def test_an_edit_of_the_source_is_drift(module, before, after, line, request, openapi, tmp_path):
    """The check reads the code itself: an edit of the package's source is drift."""
    shutil.copytree(
        Path(plaid_relay_async.__file__).parent,
        tmp_path / "plaid_relay_async",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    source = tmp_path / "plaid_relay_async" / "models" / module
    text = source.read_text(encoding="utf-8")
    assert before in text
    source.write_text(text.replace(before, after), encoding="utf-8")
    done = run(request.config.getoption("--specification"), code=tmp_path)
    assert done.returncode == 1, done.stderr
    assert line in done.stdout


def test_no_drift_is_a_success(request, openapi):
    """Without drift the program prints no line and succeeds."""
    done = run(request.config.getoption("--specification"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("0 differences from the document ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "can't be read"),
        (b"\xff\xfe\xff", "can't be read"),
        (b"a: [", "is neither YAML nor JSON"),
        (b"[1, 2]", "isn't an OpenAPI document: it has no paths"),
        (b'{"paths": []}', "isn't an OpenAPI document: it has no paths"),
        (b'{"paths": {}}', "the document's version is 'None'"),
    ],
)
def test_an_unreadable_document_is_an_error(content, problem, tmp_path, capsys):
    """A file that isn't an OpenAPI document is reported, with an exit status of its own."""
    path = tmp_path / "document"
    if content is not None:
        path.write_bytes(content)
    assert drift.main([str(path)]) == 2
    assert problem in capsys.readouterr().err


def test_the_program_explains_its_usage():
    """Without a path, the program prints how to run it."""
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "nox -s drift -- PATH" in done.stderr


def test_the_constants_of_requests_belong_to_fields():
    """The table of constants for requests names existing fields."""
    for place in drift.VALUES_OF_REQUESTS:
        record, _, name = place.partition(".")
        shape = CODE.records[record].fields[name].shape
        assert (shape.items or shape).values, place


# ------------------------------------------------------------------------------------ a small document

TEXT = Shape("string")
PERHAPS = Shape("string", nullable=True)
NAMED = Description(
    {"/item/remove": Operation("Ask", "Tell")},
    {
        "Ask": Record(
            {
                "token": Field(TEXT, required=True),
                "days": Field(Shape("integer", nullable=True), required=False),
                "loud": Field(Shape("boolean"), required=False, default=False),
                "sort": Field(Shape("string", values=frozenset({"a", "b"})), required=False, default="a"),
            },
            keeps_unknown=False,
        ),
        "Tell": Record(
            {
                "id": Field(TEXT, required=True),
                "mood": Field(Shape("string", True, frozenset({"good", "bad"})), False, always_sent=True),
                "parts": Field(Shape("array", items=Shape("object", record="Part")), required=True),
                "grid": Field(
                    Shape("array", True, items=Shape("array", items=Shape("number", nullable=True))), False
                ),
                "whole": Field(Shape("object", True, record="Part"), required=False),
                "extra": Field(Shape("array", True, items=Shape("anything")), required=False),
            },
            keeps_unknown=True,
        ),
        "Part": Record(
            {
                "on": Field(Shape("date"), required=True),
                "at": Field(Shape("date-time", nullable=True), required=False),
            },
            keeps_unknown=True,
        ),
    },
)

DOCUMENT = {
    "info": {"version": "2020-09-14_1.697.4"},
    "paths": {
        "/item/remove": {
            "post": {
                "requestBody": {
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}}
                },
                "responses": {
                    "200": {
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Tell"}}}
                    }
                },
            }
        },
        "/what/we/dont/serve": {"get": {}},
    },
    "components": {
        "schemas": {
            "Ask": {
                "type": "object",
                "required": ["token", "sort"],
                "properties": {
                    "client_id": {"type": "string"},
                    "secret": {"type": "string"},
                    "token": {"type": "string"},
                    "days": {"type": "integer", "minimum": 1, "nullable": True},
                    "loud": {"type": "boolean", "default": False},
                    "sort": {"type": "string", "enum": ["a", "b"]},
                },
            },
            "Tell": {
                "allOf": [
                    {"$ref": "#/components/schemas/Base"},
                    {
                        "required": ["mood"],
                        "properties": {
                            "mood": {"$ref": "#/components/schemas/Mood"},
                            "grid": {
                                "type": "array",
                                "items": {"type": "array", "items": {"$ref": "#/components/schemas/Amount"}},
                            },
                            "whole": {"allOf": [{"$ref": "#/components/schemas/MaybePart"}]},
                            "extra": {"type": "array", "items": {}},
                        },
                    },
                ],
            },
            "Base": {
                "type": "object",
                "required": ["id", "parts"],
                "properties": {
                    "id": {"type": "string"},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
                },
            },
            "Mood": {"type": "string", "enum": [None, "good", "bad"]},
            "Amount": {"type": "number", "format": "double", "nullable": True},
            "MaybePart": {"nullable": True, "allOf": [{"$ref": "#/components/schemas/Part"}]},
            "Part": {
                "type": "object",
                "required": ["on"],
                "properties": {
                    "on": {"type": "string", "format": "date"},
                    "at": {"type": "string", "format": "date-time"},
                },
            },
        }
    },
}


def lines_after(change) -> list[str]:
    document = copy_document(Specification(DOCUMENT))
    change(document["components"]["schemas"])
    return [str(line) for line in drift.find_drift(Specification(document), NAMED, ())]


def put(schema: str, *steps: object, to: object):
    """Return a change that puts something else at a place of a schema."""

    def change(schemas):
        place = schemas
        for step in (schema, *steps)[:-1]:
            place = place[step]
        place[(schema, *steps)[-1]] = to

    return change


def test_a_small_document_is_followed_completely():
    """References, allOf, nested lists, objects and each form of null are the same on both sides."""
    assert lines_after(lambda schemas: None) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put("Ask", "required", to=["token"]), None),
        (
            put("Ask", "required", to=["sort"]),
            "Ask.token: is optional in the document; the record requires it",
        ),
        (
            put("Ask", "required", 0, to="days"),
            "Ask.days: is required by the document; the record may omit it",
        ),
        (
            put("Ask", "properties", "more", to={}),
            "Ask.more: is in the document, and the record doesn't have it",
        ),
        (put("Ask", "properties", "loud", "default", to=True), "Ask.loud: is omitted while it is False"),
        (
            put("Ask", "properties", "sort", "enum", to=["a"]),
            "Ask.sort=b: is a constant; the document doesn't",
        ),
        (
            put("Ask", "properties", "token", "enum", to=["x"]),
            "Ask.token: has a set of values in the document",
        ),
        (
            put("Ask", "properties", "token", "oneOf", to=[]),
            "Ask.token: has a key that this check doesn't",
        ),
        (put("Ask", "additionalProperties", to=True), "Ask: drops unknown fields"),
        (put("Tell", "allOf", to=[]), "Tell.id: isn't in the document"),
        (
            put("Tell", "allOf", 1, "required", to=[]),
            "Tell.mood: may be absent in the document; the record always",
        ),
        (
            put("Base", "required", to=["parts"]),
            "Tell.id: may be absent or null in the document; the record requires",
        ),
        (
            put("Base", "properties", "id", "nullable", to=True),
            "Tell.id: may be absent or null in the document",
        ),
        (
            put("Mood", "enum", to=["good", "bad"]),
            "Tell.mood: is always present and never null in the document",
        ),
        (put("Mood", "enum", 1, to="new"), "Tell.mood=new: is a value in the document; no constant names it"),
        (
            put("Mood", to={"type": "string", "nullable": True}),
            "Tell.mood: has constants; the document lists no",
        ),
        (put("Amount", "nullable", to=False), "Tell.grid[][]: contains no null in the document"),
        (
            put("Amount", "type", to="integer"),
            "Tell.grid[][]: has another type: integer in the document, number",
        ),
        (put("Part", "nullable", to=True), "Tell.parts[]: may contain null in the document"),
        (put("Part", "properties", "on", "format", to="date-time"), "Part.on: has another type: date-time"),
        (
            put("Part", "properties", "new", to={}),
            "Part.new: is in the document, and the record doesn't have it",
        ),
        (put("Part", "properties", to={}), "Part.at: isn't in the document"),
        (put("MaybePart", "nullable", to=False), None),
        (put("Tell", "allOf", 1, "properties", "whole", "nullable", to=False), None),
        (put("Base", "properties", "parts", "items", to={}), "Tell.parts[]: has another type: anything"),
    ],
)
def test_a_change_of_the_small_document_is_one_line(change, line):
    """Each kind of difference is reported with its place and text; an equivalent change isn't."""
    lines = lines_after(change)
    if line is None:
        assert lines == []
    else:
        assert any(each.startswith(line) for each in lines), drift_places


def test_an_unresolvable_reference_is_an_error():
    """A broken document isn't reported as one without drift."""
    with pytest.raises(UnreadableError, match="#/components/schemas/Missing leads nowhere"):
        lines_after(put("Base", "properties", "id", to={"$ref": "#/components/schemas/Missing"}))
