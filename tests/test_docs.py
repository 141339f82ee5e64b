"""What the documents say in tables is held against the code; their examples are run by conftest.py."""

from __future__ import annotations

import inspect
import re
from ast import literal_eval
from pathlib import Path

import pytest
from attrs import fields_dict

import plaid_relay_async
from plaid_relay_async import PlaidRelayError, RelayClient, RetryPolicy, Timeouts
from plaid_relay_async.client import AssetReports, Items, Relay, Sandbox
from plaid_relay_async.errors import concerns_everyone
from plaid_relay_async.simulator import Fault

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def defaults(cls: type) -> dict[str, object]:
    return {name: attribute.default for name, attribute in fields_dict(cls).items()}


def argument(function: object, name: str) -> dict[str, object]:
    return {name: inspect.signature(function).parameters[name].default}


@pytest.mark.parametrize(
    ("heading", "told"),
    [
        ("Timeouts", defaults(Timeouts)),
        ("Retries", defaults(RetryPolicy)),
        (
            "How much at once",
            argument(RelayClient.__init__, "connections") | argument(Relay.create_many, "concurrency"),
        ),
    ],
)
def test_every_default_is_told_as_it_is(heading, told):
    """settings.md lists each default of the settings, with the code's own value."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\S+) \| .+ \|$", section(page("docs/settings.md"), heading), re.MULTILINE
    )
    assert {name: literal_eval(value) for name, value in rows} == told


def test_every_argument_of_the_client_is_in_the_settings():
    """settings.md names each argument of `RelayClient`."""
    text = page("docs/settings.md")
    for name in set(inspect.signature(RelayClient.__init__).parameters) - {"self"}:
        assert re.search(rf"\b{name}\b", text), name


def test_every_public_name_is_in_the_reference():
    """reference.md has an entry for each name of `__all__`, and the package has each that it gives."""
    entries = re.findall(r"^\s*\.\. (?:auto\w+|py:\w+):: ([\w.]+)", page("docs/reference.md"), re.MULTILINE)
    short = {name for name in entries if "." not in name} - {"plaid_relay_async", "result", "url", "ledger"}
    assert short == set(plaid_relay_async.__all__)


def test_every_error_is_in_the_errors():
    """errors.md tells what to do about each exception."""
    exceptions = {
        name
        for name, value in vars(plaid_relay_async).items()
        if isinstance(value, type) and issubclass(value, PlaidRelayError)
    }
    rows = re.findall(r"^\| `(\w+)`", page("docs/errors.md"), re.MULTILINE)
    assert {"PlaidRelayError", *rows} == exceptions


def test_the_errors_that_are_plaids_come_last():
    """errors.md says that the last eight are Plaid's answers, and they are."""
    rows = re.findall(r"^\| `(\w+)`", page("docs/errors.md"), re.MULTILINE)
    plaids = [issubclass(getattr(plaid_relay_async, name), plaid_relay_async.PlaidAPIError) for name in rows]
    assert "The last eight" in page("docs/errors.md")
    assert plaids == [False] * (len(rows) - 8) + [True] * 8


@pytest.mark.parametrize("code", ["INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "CREDITS_EXHAUSTED"])
def test_the_errors_that_all_share_are_those_of_the_page(code):
    """The codes that batch.md says stop a batch are those that do."""
    assert code.partition("ENVIRONMENT")[0] in section(page("docs/batch.md"), "Errors that all share")
    assert concerns_everyone(plaid_relay_async.PlaidAPIError("it", error_code=code))


def test_every_part_of_a_fault_is_told():
    """simulator.md has each field of `Fault` in its table."""
    table = "\n".join(
        re.findall(r"^\| (`.+?) \|", section(page("docs/simulator.md"), "Faults"), re.MULTILINE)
    )
    assert set(re.findall(r"`(\w+)`", table)) == set(fields_dict(Fault))


def test_every_operation_is_in_the_changelog():
    """The first version's entry names each method of the client's namespaces."""
    entry = page("CHANGELOG.md")
    for namespace in (Relay, AssetReports, Sandbox, Items):
        for name in vars(namespace):
            assert name.startswith("_") or name in entry, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_link_leads_nowhere(path):
    """A link to another page, or to a heading of one, leads to one that there is."""
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, heading = target.partition("#")
        there = (path.parent / name) if name else path
        assert there.is_file(), target
        if heading:
            slugs = {
                re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in headings(there)
            }
            assert heading in slugs, target


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_each_command_stands_once_in_the_readme(name):
    """A machine can take the two commands from the README: each is one line in a block of its own name."""
    blocks = re.findall(rf"^```sh {name}\n(.+)\n```$", page("README.md"), re.MULTILINE)
    assert len(blocks) == 1
    assert blocks[0].startswith("python3 -m venv .venv && ")
