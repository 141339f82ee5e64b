"""The formats of an input, and the messages about its problems."""

import io
import json

import pytest

from plaid_relay_async.cli.cells import InputFormat, InputTable
from plaid_relay_async.cli.rows import InputProblem, creation_form, parse_rows

TOKEN = "assets-sandbox-all"


def open_table(text, name="in.csv", columns=None, **settings):
    raw = text if isinstance(text, bytes) else text.encode()
    columns = columns or creation_form(TOKEN).columns
    return InputTable(io.BufferedReader(io.BytesIO(raw)), name, columns, InputFormat(**settings))


def read(text, name="in.csv", token=TOKEN, **settings):
    form = creation_form(token)
    return [row for _, row in parse_rows(open_table(text, name, form.columns, **settings), form)]


def read_texts(text, name="in.csv", token=TOKEN, **settings):
    return [
        row.text
        if isinstance(row, InputProblem)
        else (*row.report_tokens, row.secondary_client_id, row.webhook)
        for row in read(text, name, token, **settings)
    ]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("in.csv", "", []),
        ("in.csv", "secondary_client_id\n", []),
        ("in.csv", "a\nb\n", [(TOKEN, "a", None), (TOKEN, "b", None)]),
        ("in.csv", "secondary_client_id\na\nb", [(TOKEN, "a", None), (TOKEN, "b", None)]),
        ("-", "a\n\nb\n", [(TOKEN, "a", None), (TOKEN, "b", None)]),
        ("-", "\n  \n\na\n", [(TOKEN, "a", None)]),
        ("in.csv", "\ufeffsecondary_client_id\r\na\r\n\r\n", [(TOKEN, "a", None)]),
        (
            "in.csv",
            "webhook,name, secondary_client_id,report_token\nhttps://x.example,Ann,a,t1\n,,b,\n,,,\n",
            [("t1", "a", "https://x.example"), (TOKEN, "b", None)],
        ),
        (
            "in.csv",
            'secondary_client_id,report_tokens\na,t1\nb,"[""t2""]"\nc\n',
            [("t1", "a", None), ("t2", "b", None), (TOKEN, "c", None)],
        ),
        (
            "-",
            '"secondary_client_id","webhook"\n"a","https://x.example"\n',
            [(TOKEN, "a", "https://x.example")],
        ),
        ("-", '"secondary_client_id"\n"a"\n', [(TOKEN, "a", None)]),
        ("-", '"a"\n"b"\n', [(TOKEN, "a", None), (TOKEN, "b", None)]),
        (
            "-",
            '{"secondary_client_id": "a", "webhook": null, "note": 5}\n\n"b"\n',
            [(TOKEN, "a", None), (TOKEN, "b", None)],
        ),
        ("in.jsonl", '{"secondary_client_id": "a", "report_tokens": ["t1"]}', [("t1", "a", None)]),
    ],
)
def test_input_formats(name, text, rows):
    """CSV with or without a header, JSON Lines, byte order marks, CRLF, blank lines, other columns."""
    assert read_texts(text, name) == rows


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "in.csv",
            "name,webhook\n",
            "in.csv:1: secondary_client_id: isn't in the header; the header has name, webhook; the columns are",
        ),
        ("in.csv", "secondary_client_id,webook\n", "in.csv:1: unknown column webook; did you mean webhook?"),
        ("in.csv", "secondary_client_id,webhook,webhook\n", "in.csv:1: webhook: occurs twice"),
        ("in.csv", "a\nb,c\n", "in.csv:2: column 2: has no name: the number of columns in the header is 1"),
        ("in.csv", "secondary_client_id,webhook\na,nowhere\n", "in.csv:2: webhook: must be an http(s) URL"),
        ("in.csv", "secondary_client_id,name\n,Ann\n", "in.csv:2: secondary_client_id: is empty"),
        (
            "in.csv",
            'note,secondary_client_id\n"two\nlines",a\n"two\nlines",b c\n',
            "in.csv:4: secondary_client_id: contains whitespace or control characters",
        ),
        (
            "in.csv",
            "secondary_client_id,report_token\na,t 1\n",
            "in.csv:2: report_token: contains whitespace",
        ),
        (
            "in.csv",
            "secondary_client_id,report_tokens\na,t 1\n",
            "in.csv:2: report_tokens[0]: contains white",
        ),
        ("in.csv", "secondary_client_id,report_tokens\na,[t\n", "in.csv:2: report_tokens: isn't a JSON list"),
        (
            "in.csv",
            "secondary_client_id,report_token,report_tokens\na,t1,t1\n",
            "in.csv:2: report_tokens: can't be used with report_token; use one of the two",
        ),
        ("in.csv", 'secondary_client_id\n"a\nb\n', "in.csv:2: isn't CSV: "),
        ("in.csv", b"secondary_client_id\na\xff\n", "in.csv:2:2: isn't UTF-8"),
        ("-", '{"secondary_client_id": a}\n', "-:1:25: isn't JSON: "),
        ("-", "{" * 5 + "[" * 100_000, "-:1:2: isn't JSON: "),
        ("in.json", "[" * 100_000, "in.json:1: can't be read as JSON"),
        ("-", "[1]\n", "-:1: must be an object with secondary_client_id"),
        ("-", '"a\n', "-:1: isn't CSV: "),
        ("-", '{"secondary_client": "a"}\n', "-:1: unknown column secondary_client; did you"),
        ("-", '{"webhook": null}\n', "-:1: secondary_client_id: is missing"),
        ("-", '{"secondary_client_id": 7}\n', "-:1: secondary_client_id: must be a string, not int"),
        ("-", '{"secondary_client_id": "a", "report_tokens": "t"}\n', "-:1: report_tokens: must be a list"),
        ("-", '{"secondary_client_id": "a", "report_token": ["t"]}\n', "-:1: report_token: must be a string"),
    ],
)
def test_problems(name, text, problem):
    """A problem is reported with the file, the line where the row begins, and the column."""
    problems = [row for row in read_texts(text, name) if isinstance(row, str)]
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_json_continues_after_an_invalid_line():
    """Each invalid line of JSON Lines is reported."""
    assert read_texts('"a"\n{\n\n"b"\n{"": 1, "": 2}\n', "x.jsonl") == [
        (TOKEN, "a", None),
        "x.jsonl:2:2: isn't JSON: Expecting property name enclosed in double quotes",
        (TOKEN, "b", None),
        "x.jsonl:5: can't be read as JSON: a name occurs twice in an object",
    ]


def test_without_a_report_token():
    """Without --report-token each row needs a report, and a list of partner IDs is not accepted."""
    assert read_texts("secondary_client_id,report_token\na,t\nb,\n", token=None) == [
        ("t", "a", None),
        "in.csv:3: report_token: is missing; add that column, or pass --report-token for all rows",
    ]
    assert read_texts("a\nb\n", token=None)[0].startswith(
        "in.csv:1: secondary_client_id: isn't in the header"
    )


def test_no_token_is_repeated():
    """A problem with a row doesn't repeat its tokens."""
    invalid_rows = [
        {"report_token": "assets-sandbox-x y", "secondary_client_id": "a"},
        {"report_tokens": ["assets-sandbox-x", "assets-sandbox-x"], "secondary_client_id": "a"},
        {"report_token": "assets-sandbox-x", "secondary_client_id": ""},
    ]
    problems = read("\n".join(map(json.dumps, invalid_rows)), "x.jsonl")
    assert all(isinstance(problem, InputProblem) for problem in problems)
    assert "assets-sandbox" not in repr(problems)


def test_an_input_that_fails():
    """An error of the operating system while reading is reported."""

    class Failing(io.RawIOBase):
        def __init__(self):
            self.pieces = [b"a\n"]

        def readable(self):
            return True

        def readinto(self, buffer):
            if not self.pieces:
                raise OSError(5, "Input/output error")
            piece = self.pieces.pop()
            buffer[: len(piece)] = piece
            return len(piece)

    form = creation_form(TOKEN)
    with io.BufferedReader(Failing()) as stream:
        rows = [row for _, row in parse_rows(InputTable(stream, "in.csv", form.columns, InputFormat()), form)]
    assert rows[-1] == InputProblem("in.csv: can't be read: Input/output error")


# Real inputs

IDS = ["5f3a9c2e1b7d4a0011223344", "60aa17b2c9d84f0055667788", "123456789012345678901234"]
EXPECTED = [(TOKEN, identifier, None) for identifier in IDS]
TABLE = "Name;Secondary Client ID;Land\n" + "".join(f"Bänk; {identifier};DE\n" for identifier in IDS)


@pytest.mark.parametrize(
    ("text", "delimiter", "unknown"),
    [
        (TABLE, ";", ["Name", "Land"]),
        ("\ufeff\ufeff" + TABLE.replace("\n", "\r\n"), ";", ["Name", "Land"]),
        (TABLE.replace("\n", "\r"), ";", ["Name", "Land"]),
        (TABLE.replace(";", "\t"), "\t", ["Name", "Land"]),
        (TABLE.replace(";", "|"), "|", ["Name", "Land"]),
        (TABLE.replace(";", ","), ",", ["Name", "Land"]),
        (TABLE.encode("utf-16"), ";", ["Name", "Land"]),
        (("\ufeff" + TABLE).encode("utf-16-be"), ";", ["Name", "Land"]),
        ("\n;;;\n" + TABLE.replace(";DE\n", ";DE;;\n\n;;\n"), ";", ["Name", "Land"]),
        ("sep=;\n" + TABLE, ";", ["Name", "Land"]),
        ('"sep=;"\r\n' + TABLE, ";", ["Name", "Land"]),
        ("sep=;;;\n" + "\n".join(IDS), None, []),
        ("SEP=\t\n" + TABLE.replace(";", "\t"), "\t", ["Name", "Land"]),
        (TABLE.replace("Name", "Name, first"), ";", ["Name, first", "Land"]),
        (TABLE.replace("Land", '"Land\noder;Staat"'), ";", ["Land\noder;Staat"]),
        (TABLE.replace("Secondary Client ID", "secondary-clientId"), ";", ["Name", "Land"]),
        (TABLE.replace("Bänk", "B" * 200_000), ";", ["Name", "Land"]),
        ("\r".join(IDS), None, []),
        ("\n".join(IDS), None, []),
    ],
)
def test_real_tables(text, delimiter, unknown):
    """Delimiters, line ends, encodings, byte order marks, blank rows, sep= and large cells are recognized."""
    table = open_table(text, "in.txt")
    assert [cells["secondary_client_id"] for _, cells in table] == IDS
    assert table.delimiter == delimiter
    assert set(unknown) <= set(table.unknown)


@pytest.mark.parametrize(
    ("text", "settings", "problem"),
    [
        (b"Name;secondary_client_id\nB\xe4nk;a\n", {}, "in.csv:2:2: isn't UTF-8; save the file as CSV UTF-8"),
        (TABLE.encode("utf-16")[:-1], {}, "in.csv:4: this line or a later one isn't UTF-16"),
        (
            TABLE.encode("utf-16")[:-2] + b"\x00\xd8\x00\x00",
            {},
            "in.csv:1: this line or a later one isn't UTF-16",
        ),
        (TABLE.encode("utf-16-le"), {}, "in.csv:1: is either not text, or UTF-16 without a byte order mark"),
        ("sep=:\n" + TABLE, {}, "in.csv:1: sep= isn't followed by a delimiter; use --delimiter"),
        (TABLE, {"delimiter": ","}, "in.csv:1: secondary_client_id: isn't in the header"),
        ('"Name;a\nb\n', {}, "in.csv:1: isn't CSV: "),
        ('secondary_client_id;"a"b;\n', {"delimiter": ";"}, "in.csv:1: isn't CSV: "),
        ("secondary_client_id;Secondary Client ID\n", {}, "in.csv:1: secondary_client_id: occurs twice"),
        (
            TABLE,
            {"column_names": {"webhook": "Hook"}},
            "in.csv:1: --column webhook: the input has no column Hook",
        ),
        (
            "\n".join(IDS),
            {"column_names": {"secondary_client_id": "x"}},
            "in.csv:1: --column secondary_client_id: the",
        ),
        (
            TABLE,
            {"may_have_header": False},
            "in.csv:1: --no-header requires a list of secondary_client_id alone",
        ),
        ("Lenders\nx\n", {"may_have_header": False}, "in.csv:1: secondary_client_id: is a heading"),
        ("partner_id;webhook\n", {}, "in.csv:1: secondary_client_id: isn't in the header"),
        ("Partner 7\nx\n", {}, "in.csv:1: secondary_client_id: contains whitespace"),
        (f"{IDS[0]}\nTOTAL\n", {}, "in.csv:2: secondary_client_id: is a heading, a total"),
        (f'="{IDS[0]}"\n', {}, "in.csv:1: secondary_client_id: begins with =; --allow-odd-ids accepts it"),
        (f"'{IDS[0]}\n", {}, "in.csv:1: secondary_client_id: "),
        ("5.00E+23\n", {}, "in.csv:1: secondary_client_id: is a number as a spreadsheet formats it; --allow"),
        (f"secondary_client_id\n{IDS[0]}|x\n", {}, "in.csv:2: secondary_client_id: contains the delimiter |"),
    ],
)
def test_misread_tables(text, settings, problem):
    """An input that may be misread is an error with its line and the remedy."""
    (text,) = [row for row in read_texts(text, **settings) if isinstance(row, str)]
    assert text.startswith(problem)


@pytest.mark.parametrize(
    "header",
    ["partnerId", "Lenders", "client-id", "Partner ID", "Kunden", "id", '"Client ID"', "PARTNER_NAME"],
)
def test_headings_are_not_partners(header):
    """A header with another name is never sent; the error names the option that maps it."""
    (problem,) = read_texts(f"{header}\n{IDS[0]}\n", "-")
    name = header.strip('"')
    name = f'"{name}"' if " " in name else name
    assert problem.endswith(f"--column secondary_client_id={name}")


@pytest.mark.parametrize("header", ["secondaryClientId", "Secondary Client ID", "SECONDARY-CLIENT-ID"])
def test_spellings_of_a_header(header):
    """Case, spaces, hyphens and underscores don't matter."""
    assert read_texts(f"{header}\n{IDS[0]}\n") == EXPECTED[:1]


def test_a_header_with_another_name():
    """`--column` maps a name in any spelling; the column with the usual name is then unknown."""
    text = f"partner-id,secondary_client_id,Hook\n{IDS[0]},7,https://x.example\n"
    names = {"secondary_client_id": "Partner ID", "webhook": "hook"}
    assert read_texts(text, column_names=names) == [(TOKEN, IDS[0], "https://x.example")]


def test_a_formula_in_a_list():
    """A cell such as `="60aa"` is reported as a formula, and not because of its quotes."""
    (problem,) = read_texts(f'="{IDS[1]}"\n')
    assert problem.startswith("in.csv:1: secondary_client_id: begins with =; --allow-odd-ids accepts it")


def test_no_header():
    """With --no-header the first line is a row, whatever it looks like."""
    assert read_texts(f"acme\n{IDS[0]}\n", may_have_header=False) == [(TOKEN, "acme", None), *EXPECTED[:1]]
    assert read_texts("=a\n", may_have_header=False) == [
        "in.csv:1: secondary_client_id: begins with =; --allow-odd-ids accepts it"
    ]


def test_no_header_needs_a_report_token():
    """--no-header requires --report-token."""
    (problem,) = read_texts("a\n", token=None, may_have_header=False)
    assert "--no-header requires a list of secondary_client_id alone, and needs --report-token" in problem


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(IDS),
        json.dumps(IDS, indent=2),
        json.dumps([{"secondary_client_id": identifier} for identifier in IDS], indent=4),
        "\n\n".join(json.dumps({"secondaryClientId": identifier}, indent=2) for identifier in IDS),
        json.dumps([{"secondary_client_id": IDS[0]}]) + json.dumps(IDS[1:]),
        json.dumps(IDS, indent=2).replace("\n", "\r\n"),
        json.dumps(IDS).encode("utf-16"),
        "".join(json.dumps({"Secondary-Client-Id": identifier}) + "\r" for identifier in IDS),
        f'{{"secondary_client_id": "{IDS[0]}"}} {{"secondary_client_id": "{IDS[1]}"}}\n"{IDS[2]}"',
    ],
)
@pytest.mark.parametrize("name", ["in.json", "IN.JSONL"])
def test_json_documents(name, text):
    """An array, pretty-printed JSON and several values in sequence are read like JSON Lines."""
    assert read_texts(text, name) == EXPECTED


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[\n  "a",\n  7\n]', "-:3: must be an object with secondary_client_id"),
        ('\n[\n  "a",\n]', "-:4:1: isn't JSON: Expecting value"),
        ('[\n  "a"\n  "b"\n]', "-:3:3: isn't JSON: Expecting ',' delimiter"),
        ('[\n  "a",\n  "b"', "-:3:6: isn't JSON: Expecting ',' delimiter"),
        ('[\n  "a"\n', "-:3:1: isn't JSON: Expecting ',' delimiter"),
        ("[", "-:1:2: isn't JSON"),
        (
            '{\n"secondary_client_id": "a",\n"secondary_client_id": "b"}',
            "-:1: can't be read as JSON: a name",
        ),
        ('{"secondary_client_id": "a", "secondaryClientId": "b"}', "-:1: secondary_client_id: occurs twice"),
    ],
)
def test_problems_of_json_documents(text, problem):
    """They are reported with their line; an incomplete document isn't sent in part."""
    assert next(row for row in read_texts(text, "-") if isinstance(row, str)).startswith(problem)


def test_values_on_one_line_are_named_by_column():
    """Invalid elements on one line are reported with their column."""
    text = '["p1", 5,\n6, "TOTAL"]'
    assert [row.partition(": ")[0] for row in read_texts(text, "-") if isinstance(row, str)] == [
        "-:1:8",
        "-:2",
        "-:2:4",
    ]


def test_an_empty_array():
    """An empty array has no rows."""
    assert read_texts("[ ]", "-") == []


def test_a_column_that_no_object_has():
    """A mapped name that never occurs is an error, because it was probably mistyped."""
    text = json.dumps({"secondary_client_id": IDS[0], "hook": "https://x.example"})
    assert read_texts(text, "-", column_names={"webhook": "Hok"})[-1].startswith(
        "-:1: --column webhook: the input has no"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('"' + "ab\n" * 400_000, "-:1: isn't CSV: a row of more than 1,048,576 characters; is a quote not"),
        ('secondary_client_id;"' + "a\n" * 600_000, "-:1: unknown column"),
        (
            "secondary_client_id,x\n" + '5f3a,"' + f"{'x' * 1_000_000}\n" * 70,
            "-:2: isn't CSV: a row of more than 67,108,864 characters; is a quote not closed?",
        ),
        (
            "secondary_client_id,x\n5f3a" + f',"{"x" * 8_000_000}\n"' * 9,
            "-:2: isn't CSV: a row of more than 67,108,864 characters; is a quote not closed?",
        ),
    ],
    ids=["header", "other-delimiter", "row", "cells"],
)
def test_a_row_is_bounded(text, problem):
    """An unclosed quote, or a row that is too long, is an error before it fills the memory."""
    assert read_texts(text, "-")[-1].startswith(problem)


def test_documents_that_are_too_large():
    """A JSON document and a line above the limit are errors."""
    large = io.BufferedReader(io.BytesIO(b"{\n" + b" " * 65 * 1024 * 1024))
    (problem,) = [
        row
        for _, row in parse_rows(
            InputTable(large, "-", creation_form(TOKEN).columns, InputFormat()), creation_form(TOKEN)
        )
    ]
    assert "the line is too long; write one row per line (CSV or JSON Lines)" in problem.text
    large = io.BufferedReader(io.BytesIO(b"{\n" + (b" " * 1024 * 1024 + b"\n") * 65))
    (problem,) = [
        row
        for _, row in parse_rows(
            InputTable(large, "a.json", creation_form(TOKEN).columns, InputFormat()), creation_form(TOKEN)
        )
    ]
    assert "convert it to JSON Lines" in problem.text


def test_many_unknown_columns():
    """The number of unknown names in memory is limited."""
    table = open_table(
        "".join(json.dumps({"secondary_client_id": "a", f"x{n}": 1}) + "\n" for n in range(1100)), "-"
    )
    assert len(list(table)) == 1100
    assert len(table.unknown) == 1000
