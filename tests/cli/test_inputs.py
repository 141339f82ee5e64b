"""How `bulk` and `create` read real inputs: an input that may have been misread is never sent."""

import os
import random
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plaid_relay_async.cli.identifiers import Shape, shape_of
from plaid_relay_async.cli.messages import UsageError
from plaid_relay_async.cli.rows import creation_form
from plaid_relay_async.cli.sources import InputSource

REPORT = "assets-sandbox-1111"
CHOICES = random.Random(5)
IDS = [f"{CHOICES.getrandbits(96):024x}" for _ in range(20)]
EXCEL = "\ufeffName;Secondary Client ID;Land\r\n" + "".join(f"Bank; {each};DE\r\n" for each in IDS)


def created_partners(plaid):
    return sorted(entry["secondary_client_id"] for entry in plaid.ledger)


@pytest.fixture
def bulk(run, tmp_path):
    """Run `bulk` on an input with a given text."""

    def bulk(text, *args):
        path = tmp_path / "in.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return run("bulk", path, "--report-token", REPORT, *args)

    return bulk


@pytest.mark.parametrize(
    ("text", "args"),
    [
        (EXCEL, []),
        ("sep=;\n" + EXCEL.removeprefix("\ufeff"), []),
        (EXCEL.replace(";", "\t"), ["--delimiter", "tab"]),
        (EXCEL.removeprefix("\ufeff").encode("utf-16"), []),
        (EXCEL.replace("\r\n", "\r"), []),
        (EXCEL.replace("Secondary Client ID", "Partner ID"), ["--column", "secondary_client_id=partner_id"]),
        ("\n".join(IDS), []),
        ("\n".join([f"{IDS[0]}-x", IDS[1]]), ["--no-header"]),
    ],
    ids=["excel", "sep", "tab", "utf-16", "cr", "partner-id", "list", "no-header"],
)
def test_files_that_are_sent(plaid, bulk, text, args):
    """Each partner gets a token, whichever program wrote the file."""
    dry = bulk(text, *args, "--dry-run")
    assert (dry.status, len(plaid.requests)) == (0, 0)
    result = bulk(text, *args)
    assert result.status == 0
    assert created_partners(plaid) == sorted(IDS if "--no-header" not in args else [f"{IDS[0]}-x", IDS[1]])


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (EXCEL + "Summe;;20\r\n", ["in.txt:22: secondary_client_id: is empty"]),
        (EXCEL + ";Summe;20\r\n", ["in.txt:22: secondary_client_id: is a heading, a total"]),
        (EXCEL.replace("Secondary Client ID", "Partner ID"), ["in.txt:1: secondary_client_id: isn't in the"]),
        (
            "\n".join([*IDS, "Sparkasse"]),
            ["in.txt:21: secondary_client_id: nine in ten rows are hexadecimal"],
        ),
        (
            "\n".join(["Sparkasse", *IDS, "acme"]),
            ["in.txt:1: uses other characters than", "in.txt:22: secondary_cl"],
        ),
        (
            "\n".join(["acme-1", *IDS, "a1-2"]),
            ["in.txt:1: uses other characters than", "in.txt:22: secondary_cl"],
        ),
        (
            f"Sparkasse\n{IDS[0]}\n",
            ["in.txt:1: uses other characters than the rows below it: use --column second"],
        ),
        (
            "partner_id;webhook\n5f3a9c2e1b7d4a0011223344;https://x.example\n",
            ["in.txt:1: secondary_client_id: is"],
        ),
    ],
    ids=["total", "total-id", "partner-id", "one-odd", "two-odd", "two-kinds", "header", "issue"],
)
def test_files_that_are_rejected(plaid, bulk, text, problems):
    """Each invalid row is reported, with and without --dry-run, and nothing is sent."""
    for args in ([], ["--dry-run"]):
        result = bulk(text, *args)
        assert (result.status, len(plaid.requests)) == (2, 0)
        assert result.err.count("in.txt:") == len(problems)
        for problem in problems:
            assert problem in result.err
        assert result.err.endswith("nothing was sent\n")


def test_odd_rows_that_are_accepted(plaid, bulk):
    """`--allow-odd-ids` accepts odd rows and odd identifiers."""
    text = "secondary_client_id\n" + "\n".join([*IDS, "Sparkasse", "=abc", "TOTAL"])
    assert bulk(text, "--allow-odd-ids").status == 0
    assert created_partners(plaid) == sorted([*IDS, "Sparkasse", "=abc", "TOTAL"])


def test_odd_rows_of_an_array(plaid, bulk):
    """Odd rows on one line are reported in order, with line and column."""
    result = bulk(str([*IDS, "Sparkasse", "b-1"]).replace("'", '"'))
    assert (result.status, len(plaid.requests)) == (2, 0)
    assert [line.split(": ")[-3].rpartition("in.txt:")[2] for line in result.err.splitlines()[:2]] == [
        "1:562",
        "1:575",
    ]


def test_many_odd_rows(plaid, bulk):
    """Only the first twenty odd rows are printed."""
    result = bulk("\n".join([*(f"{n:x}" for n in range(1000)), *("x" * n for n in range(1, 31))]))
    assert (result.status, result.err.count("in.txt:"), len(plaid.requests)) == (2, 20, 0)
    assert "in.txt:1001: " in result.err
    assert "in.txt:1020: " in result.err
    assert "and 10 more like these" in result.err


def test_dry_run(plaid, bulk, tmp_path):
    """--dry-run prints what would be sent and how the file was read; it creates no connection and no file."""
    text = EXCEL + f"Bank;{IDS[0]};\x1b[31m\r\n"
    args = ("--journal", tmp_path / "relay.db", "--run", "r", "--output", tmp_path / "out")
    result = bulk(text, "--dry-run", *args)
    assert result.status == 0
    facts = dict(line.split(":", 1) for line in result.out.splitlines())
    assert {name: fact.strip() for name, fact in facts.items()} == {
        "rows": "21",
        "invalid": "0",
        "partners": "20",
        "first": IDS[0],
        "last": IDS[0],
        "duplicates": "1 (line 22)",
        "odd rows": "0",
        "delimiter": ";",
        "columns": "secondary_client_id (Secondary Client ID)",
        "unknown columns": "Name, Land",
    }
    assert result.err == "nothing was sent\n"
    assert not plaid.requests
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_dry_run_of_a_list(bulk, plaid):
    """A list has no header; duplicates are counted, and the first ones are listed."""
    result = bulk("\n".join(IDS * 3), "--dry-run")
    assert "columns:         secondary_client_id (no header)\n" in result.out
    assert "duplicates:      40 (lines 21, 22, " in result.out
    assert ", 40, ...)" in result.out
    assert not plaid.requests


def test_dry_run_without_a_header(bulk, plaid):
    """The values of a table without a header are not printed, because one may be a token."""
    result = bulk("assets-sandbox-secret;p1\nassets-sandbox-secret;p2\n", "--dry-run")
    assert (result.status, len(plaid.requests)) == (2, 0)
    assert "secret" not in result.out + result.err


def test_dry_run_of_an_unknown_header(bulk, plaid):
    """A rejected header is named, and the summary doesn't claim that the input has no columns."""
    result = bulk("partner_id,Land\np1,DE\n", "--dry-run")
    assert (result.status, len(plaid.requests)) == (2, 0)
    assert "columns:         not recognized\n" in result.out
    assert "isn't in the header; the header has partner_id, Land; the columns are " in result.err


def test_dry_run_of_an_empty_input(bulk, plaid):
    """An empty input is valid."""
    assert bulk("", "--dry-run").out.startswith("rows:            0\n")
    assert not plaid.requests


def test_unknown_columns_are_reported_once(bulk, run, stdin, plaid):
    """Unknown columns are reported before anything is sent, or after the end of a pipe."""
    text = "Name,secondary_client_id\nA,p1\nB,p2\n"
    assert bulk(text).err.count("unknown columns are ignored: Name\n") == 1
    stdin(text.replace("p", "q"))
    result = run("bulk", "-", "--stream", "--report-token", REPORT)
    assert result.err.count("unknown columns are ignored: Name\n") == 1
    assert created_partners(plaid) == ["p1", "p2", "q1", "q2"]


# Pipes


def test_a_pipe_is_checked_before_it_is_sent(plaid, run, stdin):
    """One odd row in a pipe stops all rows; `--stream` sends them one by one without that check."""
    text = "\n".join([*IDS, "Sparkasse"])
    stdin(text)
    result = run("bulk", "-", "--report-token", REPORT)
    assert (result.status, len(plaid.requests)) == (2, 0)
    assert "<stdin>:21: secondary_client_id: nine in ten rows are hexadecimal" in result.err
    stdin(text)
    assert run("bulk", "-", "--stream", "--report-token", REPORT).status == 0
    assert len(plaid.ledger) == 21


def test_a_pipe_is_copied_into_a_private_file(tmp_path, monkeypatch, stdin):
    """The copy has mode 0600 and no name, and can be read twice."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stdin("p1\np2\n")
    with InputSource("-", stream=False) as source:
        assert stat.S_IMODE(os.fstat(source.fileno()).st_mode) == 0o600
        assert list(tmp_path.iterdir()) == []
        assert [row.secondary_client_id for row in source.rows(creation_form(REPORT))] == ["p1", "p2"]


def test_a_pipe_that_cannot_be_copied(tmp_path, monkeypatch, stdin):
    """The reason and the remedy are reported."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    stdin("p1\n")
    with pytest.raises(UsageError, match=r"can't be copied for the check: No such file.*TMPDIR.*--stream"):
        InputSource("-", stream=False)


# Options


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--delimiter", "x"], "--delimiter: must be one of , ; | tab"),
        (["--column", "partner=x"], "--column: must be COLUMN=NAME; COLUMN is one of report_token, "),
        (["--column", "webhook="], "--column: must be COLUMN=NAME"),
        (["--column", "webhook"], "--column: must be COLUMN=NAME"),
        (["--column", "webhook=a", "--column", "webhook=b"], "--column: webhook is mapped twice"),
        (["--column", "webhook=Hook", "--no-header"], "--column: can't be used with --no-header"),
        (["--stream", "--dry-run"], "--dry-run: can't be used with --stream"),
    ],
)
def test_invalid_options(bulk, plaid, args, problem):
    """An invalid option is named, and nothing is sent."""
    result = bulk("p1\n", *args)
    assert (result.status, problem in result.err, len(plaid.requests)) == (2, True, 0)


def test_two_mapped_columns(bulk, plaid):
    """`--column` may be repeated."""
    args = ("--column", "secondary_client_id=Partner", "--column", "webhook=Callback URL")
    assert bulk("Partner|Callback URL\np1|https://x.example\n", *args).status == 0
    assert created_partners(plaid) == ["p1"]


@pytest.mark.parametrize("partner", ["@file", "=x", "'x", "+x", "-x", "5.00E+23", "secondary_client_id"])
def test_create_with_an_odd_partner(plaid, run, partner):
    """A value that is probably not an identifier requires `--allow-odd-ids`."""
    args = ("create", "--report-token", REPORT, f"--partner={partner}")
    result = run(*args)
    assert (result.status, "--partner: " in result.err, len(plaid.requests)) == (2, True, 0)
    assert "--allow-odd-ids accepts it" in result.err


def test_create_with_an_odd_partner_that_is_accepted(plaid, run):
    """With `--allow-odd-ids` it is sent."""
    args = ("--report-token", REPORT, "--partner", "@acme", "--allow-odd-ids")
    assert run("create", *args).status == 0
    assert created_partners(plaid) == ["@acme"]


# Lists of identifiers


def read_partners(folder, identifiers):
    path = folder / "list.txt"
    path.write_text("".join(f"{identifier}\n" for identifier in identifiers))
    with InputSource(str(path)) as source:
        return [request.secondary_client_id for request in source.rows(creation_form(REPORT))]


@pytest.mark.parametrize("seed", range(3))
def test_random_hexadecimal_identifiers(tmp_path, seed):
    """Ten thousand of them are accepted, even if some have only digits."""
    choices = random.Random(seed)
    identifiers = [f"{choices.getrandbits(96):024x}" for _ in range(10_000)]
    identifiers += [f"{choices.randrange(10**24):024}" for _ in range(seed)]
    choices.shuffle(identifiers)
    assert read_partners(tmp_path, identifiers) == identifiers


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.from_regex(r"[0-9]{0,22}[a-f][0-9a-f]", fullmatch=True), min_size=1, unique=True), st.data()
)
def test_a_list_of_one_shape_is_accepted(tmp_path, identifiers, data):
    """So is a list with a few identifiers of a smaller alphabet after the first one."""
    digits = st.lists(st.from_regex("[0-9]{24}", fullmatch=True), max_size=8 * len(identifiers), unique=True)
    every = [identifiers[0], *data.draw(st.permutations([*identifiers[1:], *data.draw(digits)]))]
    count = sum(shape_of(each) is Shape.DIGITS for each in every)
    if 10 * count >= 9 * (len(every) - 1):
        every = identifiers  # otherwise nine in ten consist of digits, and the first one is odd
    assert read_partners(tmp_path, every) == every
