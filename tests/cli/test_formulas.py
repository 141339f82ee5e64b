"""CSV that the command writes is text for a spreadsheet, and is read back unchanged by the command."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CREATE

from plaid_relay_async.cli.cells import InputFormat, InputTable
from plaid_relay_async.cli.formulas import neutralize, restore
from plaid_relay_async.cli.output import OUTCOME_COLUMNS, open_output
from plaid_relay_async.cli.rows import creation_form, parse_rows, shared_report_form
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"
CELLS = json.loads(Path(__file__).parents[1].joinpath("cells.json").read_text("utf-8"))
SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20"
CONTROLS = "\t\r\n"
BEGINNINGS = st.lists(st.sampled_from(f"'{SIGNS}{CONTROLS}"), max_size=4).map("".join)
TEXTS = st.builds(str.__add__, BEGINNINGS, st.text(st.characters(codec="utf-8")))
IDENTIFIERS = st.builds(
    str.__add__,
    st.lists(st.sampled_from(SIGNS), max_size=3).map("".join),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "P"]), min_size=1),
)


@pytest.mark.parametrize("case", CELLS)
def test_a_cell_is_text_to_a_spreadsheet(case):
    """A text that a spreadsheet could execute as a formula gets a leading apostrophe."""
    assert neutralize(case["text"]) == case["cell"]
    assert restore(case["cell"]) == case["text"]


@given(TEXTS)
def test_any_text_is_restored(text):
    """Each text is read back unchanged, even one with a leading apostrophe."""
    assert restore(neutralize(text)) == text
    assert neutralize(text)[:1] not in {*SIGNS, *CONTROLS}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.csv"


def write_rows(out, lines):
    """Write outcomes, and return the rows as a spreadsheet reads them."""
    out.unlink(missing_ok=True)
    with open_output(str(out), use_rescue=False) as output:
        for line in lines:
            output.write(dict.fromkeys(OUTCOME_COLUMNS) | line)
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def read_requests(text, form):
    """Read the requests of an input."""
    table = InputTable(io.BufferedReader(io.BytesIO(text)), "in.csv", form.columns, InputFormat())
    return [request for _, request in parse_rows(table, form)]


@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_any_text_is_written_and_read_back(tmp_path_factory, texts):
    """A cell with any error code, request ID or partner is not a formula, and holds the text."""
    columns = ("secondary_client_id", "request_id", "error_code")
    out = tmp_path_factory.mktemp("texts") / "out.csv"
    rows = write_rows(out, [dict.fromkeys(columns, text) for text in texts])
    assert [[restore(row[name]) for name in columns] for row in rows] == [[text] * 3 for text in texts]


@given(partners=st.lists(IDENTIFIERS, min_size=1, max_size=5))
def test_an_output_is_an_input(tmp_path_factory, partners):
    """The partners of an output are read back from it, and from a list of them."""
    out = tmp_path_factory.mktemp("partners") / "out.csv"
    write_rows(out, [{"outcome": "failed", "secondary_client_id": partner} for partner in partners])
    rows = list(csv.reader(io.StringIO(out.read_text("utf-8"), newline="")))
    partner_list = "".join(f"{row[1]}\n" for row in rows).encode()
    for text in (out.read_bytes(), partner_list):
        requests = read_requests(text, creation_form(REPORT, allow_odd=True))
        assert [request.secondary_client_id for request in requests] == partners


@given(token=st.builds(str.__add__, st.just("'=") | st.just("@"), IDENTIFIERS))
def test_a_token_is_never_changed(tmp_path_factory, token):
    """A relay token is written and read unchanged, whatever its first character is."""
    out = tmp_path_factory.mktemp("tokens") / "out.csv"
    (row,) = write_rows(out, [{"outcome": "created", "relay_token": token}])
    assert row["relay_token"] == token
    (row,) = read_requests(out.read_bytes(), shared_report_form(str))
    assert row.request == token


def test_outcomes_are_not_formulas(plaid, run, out, tmp_path):
    """`bulk` and `export` write the same cells, and JSON Lines has the original text."""
    plaid.fail(Fault(path=CREATE, status=400, body={"error_code": "=HYPERLINK(A1)", "request_id": "+1"}))
    rows = tmp_path / "in.jsonl"
    rows.write_text('"a"\n', encoding="utf-8")
    journal = ("--journal", tmp_path / "relay.db")
    assert run("bulk", rows, "--report-token", REPORT, "--output", out, *journal, "--run", "r").status == 1
    exported = tmp_path / "exported.csv"
    assert run("export", "r", *journal, "--output", exported).status == 0
    for path in (out, exported):
        with path.open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file, strict=True)
        assert (row["error_code"], row["request_id"]) == ("'=HYPERLINK(A1)", "'+1")
    (line,) = run("export", "r", *journal).lines
    assert (line["error_code"], line["request_id"]) == ("=HYPERLINK(A1)", "+1")
