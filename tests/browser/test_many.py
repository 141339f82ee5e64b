"""Many partners: how a list is checked, run, stopped, and its outcomes saved."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
import re
import time
from pathlib import Path

import pytest

from plaid_relay_async import RelayCreateRequest, RequestValidationError
from plaid_relay_async.cli.identifiers import is_heading, oddity_of, shape_of
from plaid_relay_async.cli.output import OUTCOME_COLUMNS
from plaid_relay_async.codec.responses import parse_retry_after
from plaid_relay_async.simulator import Fault

CREATE = "/credit/relay/create"


async def open_many(console, text, caller="owner"):
    """Open the view for many partners with a report token and a list."""
    page = await console.open(caller, report_token=console.plaid.add_report())
    await console.choose_operation("many")
    await page.evaluate("(text) => navigator.clipboard.writeText(text)", text)
    await page.locator("#partners").press("ControlOrMeta+V")
    await page.locator("#partners").blur()
    return page


async def run_batch(console):
    """Run the batch to its end, and return the progress text."""
    await console.page.locator("#many-run").click()
    await console.page.locator("#many-download:enabled").wait_for(timeout=60_000)
    return await console.page.locator("#progress").inner_text()


async def download_outcomes(console):
    """Return the rows of the saved outcomes."""
    async with console.page.expect_download() as saving:
        await console.page.locator("#many-download").click()
    saved = await saving.value
    assert saved.suggested_filename == "outcomes.csv"
    text = (await saved.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def partner_list(count):
    return "secondary_client_id\n" + "".join(f"partner-{number}\n" for number in range(count))


TESTS = Path(__file__).parents[1]
LISTS_OF_BOTH = json.loads((TESTS / "lists.json").read_text("utf-8"))
CELLS = json.loads((TESTS / "cells.json").read_text("utf-8"))


async def test_a_list_is_parsed_as_by_the_command(module_page):
    """Delimiters, headers, identifiers and odd rows follow the same rules."""
    results = await module_page.evaluate(
        """async (texts) => {
          const { parsePartners } = await import('/console/csv.js');
          return texts.map((text) => [parsePartners(text), parsePartners(text, true)].map(
            ({ partners, problems }) =>
              [partners.map(({ partner }) => partner), [...new Set(problems.map(({ line }) => line))]]));
        }""",
        [case["text"] for case in LISTS_OF_BOTH],
    )
    for case, ((partners, lines), accepted) in zip(LISTS_OF_BOTH, results, strict=True):
        assert lines == case.get("lines", []), case["about"]
        assert "partners" not in case or partners == case["partners"], case["about"]
        assert "accepted" not in case or accepted == [case["accepted"], []], case["about"]


async def test_a_cell_is_escaped_as_by_the_command(module_page):
    """A formula gets an apostrophe, which is removed when the cell is read."""
    pairs = await module_page.evaluate(
        """async (cases) => {
          const { escapeFormula, unescapeFormula } = await import('/console/csv.js');
          return cases.map(({ text, cell }) => ({ text: unescapeFormula(cell), cell: escapeFormula(text) }));
        }""",
        CELLS,
    )
    assert pairs == CELLS


async def test_identifiers_are_checked_as_by_the_command(module_page):
    """Each rule of the page has the same result as the command's for any identifier."""
    alphabet = "0aZé-._|=@'+,;E5 \u200b\u201c"
    choices = random.Random(19)
    identifiers = ["".join(choices.choices(alphabet, k=choices.randrange(1, 6))) for _ in range(3_000)]
    identifiers += [
        "Summe",
        "N/A",
        "#REF!",
        "partnerIds",
        "1.234,5",
        "5e23",
        "5E+23",
        "\ue000",
        "\u3000",
        "\xad",
        "assets-sandbox-1",
        "#5f3a",
        "//5f3a",
        "<td>5f3a</td>",
        "*5f3a",
        "https://lender.example",
        "ſub",
    ]
    results = await module_page.evaluate(
        """async (texts) => {
          const { problemWithIdentifier } = await import('/console/checks.js');
          const { commonShape, isHeading, oddityOf, shapeOf } = await import('/console/identifiers.js');
          return texts.map((text) => [problemWithIdentifier(text) === null, oddityOf(text), shapeOf(text), isHeading(text)]);
        }""",
        identifiers,
    )
    assert results == [
        [is_accepted(text), oddity_of(text), int(shape_of(text)), is_heading(text)] for text in identifiers
    ]


def is_accepted(text):
    try:
        return bool(RelayCreateRequest(["t"], text))
    except RequestValidationError:
        return False


async def test_odd_identifiers_need_a_checkbox(console):
    """They are listed by line and prevent the run; a checkbox accepts them for this list only."""
    page = await open_many(console, "secondary_client_id,city\n5f3a,Bonn\n60aa,Köln\nTOTAL,2\n")
    assert await page.locator("#partners-count").inner_text() == (
        "2 partners, 1 line to correct, ignored columns: city"
    )
    assert await page.locator(".problems li").all_inner_texts() == [
        "Line 4: secondary_client_id is a heading, a total, or a placeholder for a missing value"
    ]
    await page.locator("#many-run").click()
    assert "Correct the listed lines" in await page.locator("#many-error").inner_text()
    await page.locator("#allow-odd").check()
    await page.locator("#partners-count", has_text="3 partners, ignored columns: city").wait_for()
    assert await run_batch(console) == "3 of 3: 3 created, 0 failed, 0 unknown"
    await download_outcomes(console)
    file = {"name": "x.csv", "mimeType": "text/csv", "buffer": "\ufeff5f3a\r\n=1\r\n".encode("utf-16-le")}
    await page.locator("#file").set_input_files(file)
    await page.locator(".problems", has_text="Line 2: secondary_client_id begins with =").wait_for()
    assert not await page.locator("#allow-odd").is_checked()


LISTS = [
    ("a\nb\n", 2, []),
    ("\ufeffsecondary_client_id,webhook\r\n a ,https://x.example/y\r\n\r\nb,\r\n", 2, []),
    ('webhook,secondary_client_id\n"https://x.example/?a,b","quoted"\n', 1, []),
    ("secondary_client_id,report_token\na,t\n", 0, ["Line 1: report_token can’t be a column here"]),
    ('secondary_client_id,note\na,"two\nlines"\nb,x\nb,y\n', 2, ["Line 5: b is already on line 4"]),
    (
        "secondary_client_id\na\nb c\n\u200bd\n",
        1,
        ["Line 3: secondary_client_id contains whitespace", "Line 4: secondary_client_id contains"],
    ),
    (
        "secondary_client_id,webhook\na,ftp://x\n,https://x.example\n",
        0,
        ["Line 2: webhook must be", "Line 3: secondary_client_id is empty"],
    ),
    ("secondary_client_id\na,b\n", 0, ["Line 2: has 2 cells; expected at most 1"]),
    ("partner\na\n", 0, ["Line 1: secondary_client_id isn’t in the header"]),
    ("a,https://x.example\n", 0, ["Line 1: secondary_client_id isn’t in the header"]),
    (
        "secondary_client_id,secondary_client_id\na,b\n",
        0,
        ["Line 1: secondary_client_id occurs twice in the header"],
    ),
    ('a\n"b\nc\n', 1, ["Line 2: isn’t valid CSV"]),
    ('a\nb"c"\n', 1, ["Line 2: secondary_client_id contains a quote"]),
]


async def test_a_list_is_checked_while_typing(console):
    """Quotes, line ends, a byte order mark and other columns are parsed; each problem has its line."""
    page = await open_many(console, "")
    for text, count, problems in LISTS:
        await page.locator("#partners").fill(text)
        await page.locator("#partners").blur()
        count_text = await page.locator("#partners-count").inner_text()
        assert count_text.startswith(f"{count} partner"), text
        lines = await page.locator(".problems li").all_inner_texts()
        assert len(lines) == len(problems), text
        assert all(map(str.startswith, lines, problems)), lines


async def test_a_run_needs_a_valid_list_or_confirmation(console):
    """Invalid lines prevent the run unless a checkbox leaves them out."""
    page = await open_many(console, "a\nb c\na\nd\n")
    await page.locator("#many-run").click()
    assert "Correct the listed lines" in await page.locator("#many-error").inner_text()
    assert not console.plaid.requests
    await page.locator("#leave-out").check()
    assert await run_batch(console) == "2 of 2: 2 created, 0 failed, 0 unknown"
    assert [entry["secondary_client_id"] for entry in console.plaid.ledger] == ["a", "d"]


async def test_a_run_needs_a_key_a_token_and_a_list(console):
    """A missing input is named and focused."""
    page = await console.open(None)
    await console.choose_operation("many")
    for field, value in (
        ("key", console.keys["owner"]),
        ("many-token", "assets-sandbox-1"),
        ("partners", ""),
    ):
        await page.locator("#many-run").click()
        assert await page.evaluate("document.activeElement.id") == field
        await page.locator(f"#{field}").fill(value)
    await page.locator("#concurrency").fill("21")
    await page.locator("#many-run").click()
    assert "from 1 to 20" in await page.locator("#many-error").inner_text()


async def test_ten_of_five_hundred_partners_fail(console):
    """Each partner has its outcome in the table and in the file, as in the ledger, and the progress bar follows."""
    for number in range(7, 500, 50):
        console.plaid.fail(Fault(secondary_client_id=f"partner-{number}", status=400))
    console.plaid.fail(Fault(secondary_client_id="partner-3", status=500, when="after"))
    page = await open_many(console, partner_list(500))
    await page.evaluate("""() => {
      window.seen = new Set();
      new MutationObserver(() => seen.add(document.querySelector('#announcement').textContent)).observe(
        document.querySelector('#announcement'), { childList: true, characterData: true, subtree: true });
    }""")
    progress = await run_batch(console)
    assert progress == "500 of 500: 489 created, 10 failed, 1 unknown"
    assert "may exist that was not received" in await page.locator("#run-notice").inner_text()
    rows = await download_outcomes(console)
    assert tuple(rows[0]) == OUTCOME_COLUMNS
    assert [row["secondary_client_id"] for row in rows] == [f"partner-{number}" for number in range(500)]
    ledger = {entry["secondary_client_id"]: entry for entry in console.plaid.ledger}
    for row in rows:
        entry = ledger.get(row["secondary_client_id"])
        if row["outcome"] == "created":
            assert (row["relay_token"], row["request_id"]) == (entry["relay_token"], entry["request_id"])
            assert (row["error_code"], row["attempts"]) == ("", "1")
        else:
            assert row["relay_token"] == ""
            assert row["request_id"]
    assert [row["error_code"] for row in rows if row["outcome"] == "failed"] == ["INVALID_FIELD"] * 10
    assert [row["error_code"] for row in rows if row["outcome"] == "unknown"] == ["INTERNAL_SERVER_ERROR"]
    assert (
        len(ledger) == console.plaid.counts[CREATE] - 10 == 490
    )  # one of these tokens was not received: its outcome is unknown
    announcements = await page.evaluate("[...seen]")
    assert len(announcements) <= 7, announcements
    await page.locator("#filters").get_by_text("failed 10").click()
    assert await page.locator("#rows tr").count() == 10
    await page.locator("#filters").get_by_text("created 489").click()
    assert await page.locator("#rows tr").count() == 100
    await page.locator("#page-next").click()
    assert await page.locator("#page-range").inner_text() == "101 to 200 of 489"


async def test_a_row_has_its_webhook_or_the_default(console):
    """A row's webhook is sent with it; other rows use the form's."""
    page = await open_many(console, "secondary_client_id,webhook\na,https://own.example/\nb,\n")
    sent = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request.post_data_json))
    await page.locator("#many-webhook").fill("https://all.example/")
    await page.locator("#concurrency").fill("1")
    await run_batch(console)
    assert [each["webhook"] for each in sent] == ["https://own.example/", "https://all.example/"]


async def test_a_run_waits_for_retry_after(console):
    """After a 429 all rows wait, the page says so, and declined requests are repeated: all get a token."""
    console.plaid.fail(Fault(status=429, headers={"Retry-After": "1"}, times=3))
    page = await open_many(console, partner_list(20))
    started_at = time.monotonic()
    await page.locator("#many-run").click()
    await page.locator("#pause", has_text="continues in 1 s").wait_for()
    await page.locator("#many-download:enabled").wait_for()
    assert time.monotonic() - started_at >= 1
    assert await page.locator("#progress").inner_text() == "20 of 20: 20 created, 0 failed, 0 unknown"
    rows = await download_outcomes(console)
    assert sorted(row["attempts"] for row in rows) == ["1"] * 17 + ["2"] * 3
    assert len(console.plaid.ledger) == 20


async def test_only_declined_requests_are_sent_again(console):
    """Maintenance is waited for; a request in doubt is not repeated."""
    console.plaid.fail(Fault(status=503, times=2), Fault(status=502, body="<p>", times=1))
    await open_many(console, partner_list(4))
    assert await run_batch(console) == "4 of 4: 3 created, 0 failed, 1 unknown"
    assert console.plaid.counts[CREATE] == 6


async def test_a_long_pause_ends_the_run(console):
    """An hour isn't waited for: declined requests failed, the other rows weren't attempted, and the page says why."""
    console.plaid.fail(Fault(status=429, headers={"Retry-After": "3600"}))
    page = await open_many(console, partner_list(30))
    progress = await run_batch(console)
    assert re.fullmatch(r"30 of 30: 0 created, \d+ failed, 0 unknown, \d+ not attempted", progress)
    assert "requested pauses are too long" in await page.locator("#run-notice").inner_text()


@pytest.mark.parametrize(
    ("caller", "code", "action"),
    [
        ("invalid", "UNAUTHORIZED_KEY", "Check the key, or ask the operator"),
        ("owner", "INVALID_API_KEYS", "The operator of the gateway"),
        ("owner", "PRODUCT_NOT_READY", "in a moment"),
        ("owner", "DATA_UNAVAILABLE", "repair that Item"),
    ],
)
async def test_an_error_that_affects_all_rows_stops_the_run(console, caller, code, action):
    """An unknown key, rejected credentials or an error of the report doesn't cause 500 errors."""
    console.keys["invalid"] = "plaid-gateway-unknown"
    body = {"error_code": code} | ({"error_type": "ASSET_REPORT_ERROR"} if code == "DATA_UNAVAILABLE" else {})
    console.plaid.fail(Fault(status=400, body=body))
    page = await open_many(console, partner_list(500), caller)
    await run_batch(console)
    rows = await download_outcomes(console)
    failed = [row for row in rows if row["outcome"] == "failed"]
    assert 1 <= len(failed) <= 12
    assert {row["error_code"] for row in failed} == {code}
    assert {row["outcome"] for row in rows} == {"failed", "not_attempted"}
    assert code in await page.locator("#run-notice").inner_text()
    assert action in await page.locator("#run-notice").inner_text()


async def test_a_gateway_that_is_down_stops_the_run(console):
    """Requests in flight are unknown, and the other rows aren't attempted."""
    console.plaid.fail(Fault(stall=30))
    page = await open_many(console, partner_list(200))
    await page.locator("#many-run").click()
    await page.locator("#rows .is-in-flight").nth(5).wait_for()
    await console.gateway.close()
    await page.locator("#many-download:enabled").wait_for()
    rows = await download_outcomes(console)
    assert 1 <= sum(row["outcome"] == "unknown" for row in rows) <= 12
    assert sum(row["outcome"] == "not_attempted" for row in rows) >= 188
    assert "no longer responds" in await page.locator("#run-notice").inner_text()


async def test_stop_waits_for_requests_in_flight(console):
    """After Stop nothing more is sent, requests in flight get their outcome, and the other rows aren't attempted."""
    console.plaid.fail(Fault(latency=0.5))
    page = await open_many(console, partner_list(300))
    await page.locator("#many-run").click()
    while await page.evaluate("document.querySelector('#bar').value") < 6:
        await asyncio.sleep(0.02)
    await page.locator("#many-stop").click()
    await page.locator("#pause", has_text="no more requests are sent").wait_for()
    await page.locator("#many-download:enabled").wait_for()
    rows = await download_outcomes(console)
    created = [row for row in rows if row["outcome"] == "created"]
    assert {row["outcome"] for row in rows} == {"created", "not_attempted"}
    assert len(created) == len(console.plaid.ledger) == console.plaid.counts[CREATE] < 60
    assert {row["relay_token"] for row in created} == {entry["relay_token"] for entry in console.plaid.ledger}


async def test_a_second_stop_abandons_requests_in_flight(console):
    """Their outcome is unknown: a token may exist."""
    console.plaid.fail(Fault(stall=30))
    page = await open_many(console, partner_list(50))
    await page.locator("#many-run").click()
    await page.locator("#rows .is-in-flight").nth(5).wait_for()
    await page.locator("#many-stop").click()
    await page.get_by_role("button", name="Abandon calls in flight").click()
    await page.locator("#many-download:enabled").wait_for()
    assert "6 unknown, 44 not attempted" in await page.locator("#progress").inner_text()


async def test_the_button_follows_a_run_that_stops_itself(console):
    """If an error stops the run while requests are in flight, the button says that it abandons them, before it does."""
    rejected = Fault(secondary_client_id="partner-0", status=400, body={"error_code": "INVALID_API_KEYS"})
    console.plaid.fail(rejected, Fault(stall=30))
    page = await open_many(console, partner_list(50))
    await page.locator("#many-run").click()
    await page.locator("#pause", has_text="Stopping: waiting for 5 in flight").wait_for()
    assert await page.locator("#many-stop").inner_text() == "Abandon calls in flight"
    assert "Stopping: no more requests are sent" in await page.locator("#announcement").inner_text()
    await page.locator("#many-stop").click()
    await page.locator("#many-download:enabled").wait_for()
    assert "1 failed, 5 unknown, 44 not attempted" in await page.locator("#progress").inner_text()


async def test_unsaved_tokens_need_confirmation(console):
    """Neither leaving the page nor another run discards unsaved tokens, and a pair isn't repeated without confirmation."""
    page = await open_many(console, "a\nb\n")
    await run_batch(console)
    await page.locator("#many-run").click()
    assert "Download the outcomes first" in await page.locator("#many-error").inner_text()
    kinds = []

    async def stay(dialog):
        kinds.append(dialog.type)
        await dialog.dismiss()

    page.on("dialog", stay)
    async with page.expect_event("dialog"):
        await page.evaluate("setTimeout(() => location.reload())")
    await download_outcomes(console)
    await page.locator("#many-run").click()
    dialog = page.get_by_role("dialog")
    assert "2 already got a relay token for this report on this page" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Cancel").click()
    assert len(console.plaid.ledger) == 2
    await page.reload()
    assert kinds == ["beforeunload"]


async def test_a_file_can_be_chosen_or_dropped(console, tmp_path):
    """A file is read as UTF-8; another encoding is rejected."""
    page = await open_many(console, "")
    file = tmp_path / "partners.csv"
    file.write_text("\ufeffsecondary_client_id\r\na\r\né\r\n", encoding="utf-8", newline="")
    await page.locator("#file").set_input_files(file)
    await page.locator("#partners-count", has_text="2 partners").wait_for()
    file.write_bytes("é\n".encode("latin-1"))
    await page.locator("#file").set_input_files(file)
    await page.locator(".problems", has_text="isn’t UTF-8").wait_for()
    await page.evaluate("""() => {
      const data = new DataTransfer();
      data.items.add(new File(['a\\nb\\nc'], 'dropped.csv'));
      document.querySelector('#drop').dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true }));
    }""")
    await page.locator("#partners-count", has_text="3 partners").wait_for()


async def test_an_unreadable_file_prevents_the_run(console, tmp_path):
    """The previous list isn't run, even if it was just edited, until another list replaces it."""
    page = await open_many(console, partner_list(2))
    file = tmp_path / "partners.csv"
    file.write_bytes("é\n".encode("latin-1"))
    problem = page.locator(".problems", has_text="isn’t UTF-8")
    await page.locator("#partners").press("End")
    await page.keyboard.type("x")
    await page.locator("#file").set_input_files(file)
    await problem.wait_for()
    await asyncio.sleep(0.3)
    await page.locator("#partners").focus()
    await page.locator("#partners").blur()
    await page.locator("#many-run").click()
    assert "no partner to share with" in await page.locator("#many-error").inner_text()
    assert await problem.is_visible()
    await page.locator("#partners").fill("a")
    await page.locator("#partners-count", has_text="1 partner").wait_for()
    await run_batch(console)
    assert [entry["secondary_client_id"] for entry in console.plaid.ledger] == ["a"]


async def test_no_cell_of_the_saved_file_is_a_formula(console):
    """What a spreadsheet would execute is saved as text."""
    ids = ["=1+1", "+a", "-a", "@a"]
    page = await open_many(console, "\n".join(["secondary_client_id", *ids]))
    await page.locator("#allow-odd").check()
    await run_batch(console)
    assert sorted(entry["secondary_client_id"] for entry in console.plaid.ledger) == sorted(ids)
    written = [row["secondary_client_id"] for row in await download_outcomes(console)]
    assert written == ["'=1+1", "'+a", "'-a", "'@a"]


async def test_ten_thousand_rows_are_not_all_drawn(console):
    """A list of ten thousand is checked and run; the page draws a hundred rows at a time."""
    page = await open_many(console, partner_list(10_000) + "a b\n" * 1_000)
    await page.locator("#partners-count", has_text="10,000 partners, 1,000 lines to correct").wait_for()
    assert await page.locator(".problems li").count() == 51
    await page.locator("#leave-out").check()
    console.plaid.fail(Fault(status=400, body={"error_code": "INVALID_API_KEYS"}))
    assert (await run_batch(console)).startswith("10,000 of 10,000")
    assert await page.locator("#rows tr").count() == 100
    assert await page.evaluate("document.querySelectorAll('*').length") < 2_000
    assert len(await download_outcomes(console)) == 10_000


async def test_retry_after_is_parsed_as_by_the_client(module_page):
    """It may be seconds or a date, which is relative to the response's Date and rounded up."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    values = [
        "7",
        "7.2",
        "0",
        "-5",
        "7 s",
        "soon",
        "5 May",
        "2126-10-21",
        "",
        "Wed, 21 Oct 2026 07:28:30 GMT",
        "Wednesday, 21-Oct-26 07:28:30 GMT",
        "Wed Oct 21 07:28:30 2026",
    ]
    header_sets = [{"Retry-After": each, "Date": date} for each in values]
    header_sets += [{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}]
    delays = await module_page.evaluate(
        """async (all) => {
          const { parseRetryAfter } = await import('/console/http.js');
          return all.map((headers) => parseRetryAfter(new Headers(headers)));
        }""",
        header_sets,
    )
    assert delays == [parse_retry_after(each) for each in header_sets]


async def test_unusual_values_in_a_response_have_an_outcome(console):
    """A response with values of other types fails like others and can be run again, and the file is valid."""
    body = {"error_code": ["constructor"], "error_type": 5, "request_id": {"a": ","}}
    console.plaid.fail(Fault(secondary_client_id="a", status=400, body=body, times=1))
    page = await open_many(console, "secondary_client_id,webhook\na,https://lender.example/\nb,\n")
    assert await run_batch(console) == "2 of 2: 1 created, 1 failed, 0 unknown"
    failed, created = await download_outcomes(console)
    assert failed["error_code"] == "status 400"
    assert created["relay_token"] == console.plaid.ledger[0]["relay_token"]
    await page.get_by_role("button", name="Return partners without a token to the list (1)").click()
    relisted = await page.locator("#partners").input_value()
    assert relisted == "secondary_client_id,webhook\na,https://lender.example/\n"
    assert await run_batch(console) == "1 of 1: 1 created, 0 failed, 0 unknown"
    assert [entry["secondary_client_id"] for entry in console.plaid.ledger] == ["b", "a"]
