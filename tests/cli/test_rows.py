"""What the input may look like, and how what is wrong with it is named."""

import json

import pytest

from plaid_relay_async.cli.rows import Problem, creations, parse

TOKEN = "assets-sandbox-all"


def read(text, name="in.csv", token=TOKEN):
    raw = text if isinstance(text, bytes) else text.encode()
    return list(parse(iter(raw.splitlines(keepends=True)), name, creations(token)))


def told(text, name="in.csv", token=TOKEN):
    return [
        row.text if isinstance(row, Problem) else (*row.report_tokens, row.secondary_client_id, row.webhook)
        for row in read(text, name, token)
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
def test_forms(name, text, rows):
    """CSV with or without a header, JSON Lines, a byte order mark, CRLF, blank lines, any order, other columns."""
    assert told(text, name) == rows


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("in.csv", "name,webhook\n", "in.csv:1: secondary_client_id: isn't in the header; the columns are"),
        ("in.csv", "secondary_client_id,webook\n", "in.csv:1: webook: isn't a column; webhook is"),
        ("in.csv", "Secondary_Client_ID\n", "in.csv:1: Secondary_Client_ID: isn't a column; secondary_cl"),
        ("in.csv", "secondary_client_id,webhook,webhook\n", "in.csv:1: the header has a column twice"),
        ("in.csv", "a\nb,c\n", "in.csv:2: column 2: is one too many: the header has 1"),
        ("in.csv", "secondary_client_id,webhook\na,nowhere\n", "in.csv:2: webhook: must be an http(s) URL"),
        ("in.csv", "secondary_client_id,name\n,Ann\n", "in.csv:2: secondary_client_id: is empty"),
        (
            "in.csv",
            'note,secondary_client_id\n"two\nlines",a\n"two\nlines",b c\n',
            "in.csv:4: secondary_client_id: holds white space or control characters",
        ),
        ("in.csv", "secondary_client_id,report_token\na,t 1\n", "in.csv:2: report_token: holds white space"),
        ("in.csv", "secondary_client_id,report_tokens\na,t 1\n", "in.csv:2: report_tokens[0]: holds white"),
        ("in.csv", "secondary_client_id,report_tokens\na,[t\n", "in.csv:2: report_tokens: isn't a JSON list"),
        (
            "in.csv",
            "secondary_client_id,report_token,report_tokens\na,t1,t1\n",
            "in.csv:2: report_tokens: stands beside report_token; give one of the two",
        ),
        ("in.csv", 'secondary_client_id\n"a\nb\n', "in.csv:2: isn't CSV: "),
        ("in.csv", b"secondary_client_id\na\xff\n", "in.csv:2:2: isn't UTF-8"),
        ("-", '{"secondary_client_id": a}\n', "-:1:25: isn't JSON: "),
        ("-", "{" * 5 + "[" * 100_000, "-:1:2: isn't JSON: "),
        ("in.json", "[" * 100_000, "in.json:1: isn't JSON that can be read"),
        ("-", "[1]\n", "-:1: must be an object with secondary_client_id"),
        ("-", '"a\n', "-:1: isn't CSV: "),
        ("-", '{"secondary_client": "a"}\n', "-:1: secondary_client: isn't a column; secondary_client_id is"),
        ("-", '{"webhook": null}\n', "-:1: secondary_client_id: is missing"),
        ("-", '{"secondary_client_id": 7}\n', "-:1: secondary_client_id: must be a string, not int"),
        ("-", '{"secondary_client_id": "a", "report_tokens": "t"}\n', "-:1: report_tokens: must be a list"),
        ("-", '{"secondary_client_id": "a", "report_token": ["t"]}\n', "-:1: report_token: must be a string"),
    ],
)
def test_problems(name, text, problem):
    """The file, the line where the row begins, and the column are named."""
    problems = [row for row in told(text, name) if isinstance(row, str)]
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_json_goes_on_after_a_bad_line():
    """Each bad line is named."""
    assert told('{\n"a"\n{\n', "x.jsonl") == [
        "x.jsonl:1:2: isn't JSON: Expecting property name enclosed in double quotes",
        (TOKEN, "a", None),
        "x.jsonl:3:2: isn't JSON: Expecting property name enclosed in double quotes",
    ]


def test_without_a_report_token():
    """Then each row must have one, and a list of bare ids won't do."""
    assert told("secondary_client_id,report_token\na,t\nb,\n", token=None) == [
        ("t", "a", None),
        "in.csv:3: report_token: is missing; give it here, or --report-token for all rows",
    ]
    assert told("a\nb\n", token=None)[0].startswith("in.csv:1: secondary_client_id: isn't in the header")


def test_no_token_is_quoted():
    """Whatever is wrong with a row, its tokens aren't told."""
    bad = [
        {"report_token": "assets-sandbox-x y", "secondary_client_id": "a"},
        {"report_tokens": ["assets-sandbox-x", "assets-sandbox-x"], "secondary_client_id": "a"},
        {"report_token": "assets-sandbox-x", "secondary_client_id": ""},
    ]
    problems = read("\n".join(map(json.dumps, bad)), "x.jsonl")
    assert all(isinstance(problem, Problem) for problem in problems)
    assert "assets-sandbox" not in repr(problems)


def test_an_input_that_fails():
    """An error of the system in the middle is named, too."""

    def lines():
        yield b"a\n"
        raise OSError(5, "Input/output error")

    assert list(parse(lines(), "in.csv", creations(TOKEN)))[-1] == Problem(
        "in.csv: can't be read: Input/output error"
    )
