"""The documents' tables, links and commands agree with the code; conftest.py runs their Python examples."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import sys
from ast import literal_eval
from pathlib import Path

import pytest
from attrs import fields_dict
from processes import running_process_async

import plaid_relay_async
from plaid_relay_async import Credentials, PlaidRelayError, RelayClient, RetryPolicy, Timeouts
from plaid_relay_async.batch import BatchSettings
from plaid_relay_async.client import (
    AssetReports,
    Items,
    Relay,
    Sandbox,
    WebhookEvents,
    WebhookVerificationKeys,
)
from plaid_relay_async.error_codes import affects_all_requests, affects_report, error_class_for
from plaid_relay_async.limits import PLAID_PRODUCTION, PLAID_SANDBOX, RateLimit
from plaid_relay_async.simulator import Fault, Limit, WebhookFault
from plaid_relay_async.webhooks import NotStoredReason, RefusalReason, WebhookError

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section_of(text: str, heading: str) -> str:
    """Return the text between a second-level heading and the next one."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def defaults(cls: type) -> dict[str, object]:
    return {name: attribute.default for name, attribute in fields_dict(cls).items()}


def default_of_argument(function: object, name: str) -> dict[str, object]:
    return {name: inspect.signature(function).parameters[name].default}


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Timeouts", defaults(Timeouts)),
        ("Retries", defaults(RetryPolicy)),
        (
            "Concurrency and sizes",
            default_of_argument(RelayClient.__init__, "connections")
            | default_of_argument(RelayClient.__init__, "max_response_bytes")
            | {"concurrency": defaults(BatchSettings)["concurrency"]},
        ),
    ],
)
def test_settings_md_lists_every_default(heading, expected):
    """settings.md lists each default of the settings with the value that the code has."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\S+) \| .+ \|$", section_of(page("docs/settings.md"), heading), re.MULTILINE
    )
    assert {name: literal_eval(value) for name, value in rows} == expected


def test_settings_md_names_every_argument_of_the_client():
    """settings.md names each argument of `RelayClient`."""
    text = page("docs/settings.md")
    for name in set(inspect.signature(RelayClient.__init__).parameters) - {"self"}:
        assert re.search(rf"\b{name}\b", text), name


def test_reference_md_lists_every_public_name():
    """reference.md has an entry for each name of `__all__`, and no entry for any other."""
    # Members have entries as well, which are indented, and so have names of submodules, which have a dot.
    entries = re.findall(
        r"^\.\. (?:auto(?!module)\w+|py:\w+):: ([\w.]+)", page("docs/reference.md"), re.MULTILINE
    )
    names = {name for name in entries if "." not in name}
    assert names == set(plaid_relay_async.__all__)


def test_errors_md_lists_every_exception():
    """errors.md has a row for each exception of the package."""
    exceptions = {
        name
        for name, value in vars(plaid_relay_async).items()
        if isinstance(value, type) and issubclass(value, PlaidRelayError)
    }
    rows = re.findall(r"^\| `(\w+)`", page("docs/errors.md"), re.MULTILINE)
    assert {"PlaidRelayError", *rows} == exceptions


def test_plaids_own_errors_come_last():
    """The last nine exceptions of errors.md are those for Plaid's error responses, as the page says."""
    rows = re.findall(r"^\| `(\w+)`", page("docs/errors.md"), re.MULTILINE)
    from_plaid = [
        issubclass(getattr(plaid_relay_async, name), plaid_relay_async.PlaidAPIError) for name in rows
    ]
    assert "The last nine" in page("docs/errors.md")
    assert from_plaid == [False] * (len(rows) - 9) + [True] * 9


@pytest.mark.parametrize("code", ["INVALID_API_KEYS", "UNAUTHORIZED_ENVIRONMENT", "CREDITS_EXHAUSTED"])
def test_batch_md_lists_the_codes_that_stop_a_batch(code):
    """batch.md lists the error codes that stop a batch."""
    assert code.partition("ENVIRONMENT")[0] in section_of(page("docs/batch.md"), "Shared errors")
    assert affects_all_requests(plaid_relay_async.PlaidAPIError("it", error_code=code))


@pytest.mark.parametrize(
    "facts",
    [
        {"error_code": "INVALID_ASSET_REPORT_TOKEN", "error_type": "INVALID_INPUT"},
        {"error_code": "PRODUCT_NOT_READY", "error_type": "ASSET_REPORT_ERROR"},
        {"error_code": "OF_TOMORROW", "error_type": "ASSET_REPORT_ERROR"},
        {"error_code": "OF_TOMORROW", "error_type": "ASSETS_ERROR"},
    ],
)
def test_batch_md_lists_the_errors_that_stop_a_report(facts):
    """batch.md lists the error codes and types that stop all requests of a report."""
    section = section_of(page("docs/batch.md"), "Shared errors")
    assert facts["error_type" if facts["error_code"] == "OF_TOMORROW" else "error_code"] in section
    assert affects_report(error_class_for(**facts, status=400)("it", **facts))


@pytest.mark.parametrize(
    ("heading", "cls"), [("Faults", Fault), ("Faults of webhooks", WebhookFault), ("Limits", Limit)]
)
def test_simulator_md_lists_every_field(heading, cls):
    """simulator.md has each field of `Fault`, `WebhookFault` and `Limit` in a table."""
    table = "\n".join(
        re.findall(r"^\| (`.+?) \|", section_of(page("docs/simulator.md"), heading), re.MULTILINE)
    )
    assert set(re.findall(r"`(\w+)`", table)) == set(fields_dict(cls))


def test_limits_md_lists_the_presets():
    """limits.md lists the rate limits of the presets, and no other."""
    rows = re.findall(r"^\| `(/\S+)` \| (.+) \| (.+) \|$", page("docs/limits.md"), re.MULTILINE)
    for column, preset in ((1, PLAID_PRODUCTION), (2, PLAID_SANDBOX)):
        documented = {row[0]: RateLimit(int(row[column])) for row in rows if row[column] != "not listed"}
        assert documented == preset


def test_webhooks_md_lists_every_reason():
    """webhooks.md has a row for each reason for which a webhook is refused, in their order."""
    rows = re.findall(r"^\| `(\w+)` \|", section_of(page("docs/webhooks.md"), "Reasons"), re.MULTILINE)
    assert rows == list(RefusalReason)


def test_webhooks_md_lists_the_status_of_every_error():
    """webhooks.md has a row for each error of webhooks, with its status."""
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (\d+|by the reason) \|$", page("docs/webhooks.md"), re.MULTILINE)
    expected = {cls.__name__: str(cls.response_status) for cls in WebhookError.__subclasses__()}
    assert dict(rows) == {**expected, "WebhookNotStoredError": "by the reason"}


def test_webhooks_md_lists_every_reason_of_a_receiver():
    """webhooks.md has a row for each reason for which a receiver stores no webhook, with its status."""
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)` \|", section_of(page("docs/webhooks.md"), "Respond"), re.MULTILINE
    )
    assert sorted(rows) == sorted((str(each.response_status), each.value) for each in NotStoredReason)


def test_the_changelog_names_every_operation():
    """The changelog names each method of the client's groups of operations."""
    text = page("CHANGELOG.md")
    for group in (Relay, AssetReports, Sandbox, Items, WebhookVerificationKeys, WebhookEvents):
        for name in vars(group):
            assert name.startswith("_") or name in text, name


def test_speed_md_shows_the_stored_instruction_counts():
    """speed.md shows the counts that `bench/instructions.json` stores as the baseline."""
    baseline = json.loads(page("bench/instructions.json"))["instructions"]
    rows = [
        f"| {client} | {int(partners):,} | {count:,} |"
        for client, counts in baseline.items()
        for partners, count in counts.items()
    ]
    assert len(rows) == 6
    assert all(row in page("docs/speed.md") for row in rows)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_link_is_broken(path):
    """A relative link leads to a file that exists, and its fragment to a heading of that file."""
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, heading = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.is_file(), target
        if heading:
            slugs = {
                re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in headings(file)
            }
            assert heading in slugs, target


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_the_readme_has_each_command_once(name):
    """A script can extract the two commands from the README: each is one line in a code block with its name."""
    blocks = re.findall(rf"^```sh {name}\n(.+)\n```$", page("README.md"), re.MULTILINE)
    assert len(blocks) == 1
    assert blocks[0].startswith("python3 -m venv .venv && ")


@pytest.fixture
async def shell(plaid, tmp_path):
    """A function that runs a shell command in a folder with `plaid-relay` and the files of the documents."""
    both = Credentials("both", "secret-of-both")  # a lender that the simulator also accepts as a partner
    report_token = plaid.add_report()
    async with RelayClient(both, base_url=plaid.url) as client:
        created = await client.relay.create([report_token], "both")
    files = {
        "report-token.txt": report_token,
        "relay-token.txt": created.relay_token,
        "relay-tokens.txt": created.relay_token,
        "partners.csv": re.findall(
            r"^```text\n(secondary_client_id.*?)^```", page("docs/command.md"), re.MULTILINE | re.DOTALL
        )[0],
        "later.txt": "partner-1\npartner-2\n",
        "plaid-relay": f'#!/bin/sh\nexec "{sys.executable}" -m plaid_relay_async.cli "$@"\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "plaid-relay").chmod(0o700)
    variables = {
        "PLAID_BASE_URL": plaid.url,
        "PLAID_CLIENT_ID": both.client_id,
        "PLAID_SECRET": both.secret,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }

    async def run(line: str) -> tuple[int | None, str]:
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
        environment = os.environ | variables
        async with running_process_async("sh", "-c", line, cwd=tmp_path, env=environment, **pipes) as process:
            text, _ = await process.communicate()
        return process.returncode, text.decode()

    return run


@pytest.mark.skipif(os.name != "posix", reason="the examples are for a POSIX shell")
@pytest.mark.parametrize("name", ["README.md", pytest.param("docs/command.md", marks=pytest.mark.slow)])
async def test_every_command_of_a_document_works(name, shell):
    """Each `plaid-relay` command of a document exits with status 0, in the document's order."""
    blocks = re.findall(r"^```console\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.findall(r"^\$ (plaid-relay .*)", block, re.MULTILINE)]
    assert lines
    # The commands that read a report need its tokens, so the removals come last.
    for line in sorted(lines, key=lambda line: line.startswith(("plaid-relay remove", "plaid-relay revoke"))):
        status, output = await shell(line)
        assert status == 0, output


@pytest.mark.skipif(
    sys.version_info >= (3, 13),
    reason="from 3.13 on, the prompt accepts multi-line input only from a terminal",
)
@pytest.mark.parametrize(
    "name",
    [
        "docs/tutorial.md",
        "docs/outcomes.md",
        "docs/batch.md",
        "docs/reports.md",
        "docs/simulator.md",
        "docs/journal.md",
    ],
)
async def test_a_page_can_be_pasted_at_the_prompt(name, tmp_path):
    """The examples of a page can be pasted, one after the other, into `python -m asyncio`."""
    blocks = re.findall(r"^```python\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)
    async with running_process_async(
        *(sys.executable, "-m", "asyncio"),
        cwd=tmp_path,
        env=os.environ | {"PLAID_CLIENT_ID": "owner", "PLAID_SECRET": "secret", "PYTHON_BASIC_REPL": "1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    ) as process:
        text, _ = await process.communicate("\n".join(blocks).encode())
    assert blocks
    assert not re.search(r"^(Traceback|  File|\w+Error)", text.decode(), re.MULTILINE), text.decode()
