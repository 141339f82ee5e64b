"""A list of partners: checked, run, watched, stopped, and its outcomes saved."""

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


async def ready(shown, text, caller="owner"):
    """The view of many, with a report and a list filled in."""
    page = await shown.open(caller, report_token=shown.plaid.add_report())
    await shown.choose("many")
    await page.evaluate("(text) => navigator.clipboard.writeText(text)", text)
    await page.locator("#partners").press("ControlOrMeta+V")
    await page.locator("#partners").blur()
    return page


async def run(shown):
    """Run to the end, and give what the page says of it."""
    await shown.page.locator("#many-run").click()
    await shown.page.locator("#many-download:enabled").wait_for(timeout=60_000)
    return await shown.page.locator("#progress").inner_text()


async def download(shown):
    """The rows of the outcomes that are saved."""
    async with shown.page.expect_download() as saving:
        await shown.page.locator("#many-download").click()
    saved = await saving.value
    assert saved.suggested_filename == "outcomes.csv"
    text = (await saved.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def partners(count):
    return "secondary_client_id\n" + "".join(f"partner-{number}\n" for number in range(count))


TESTS = Path(__file__).parents[1]
LISTS_OF_BOTH = json.loads((TESTS / "lists.json").read_text("utf-8"))
CELLS = json.loads((TESTS / "cells.json").read_text("utf-8"))


async def test_a_list_is_read_as_the_command_reads_it(modules):
    """Delimiters, headers, identifiers and odd rows follow the same rules: each case has the same verdict."""
    verdicts = await modules.evaluate(
        """async (texts) => {
          const { partnersOf } = await import('/console/csv.js');
          return texts.map((text) => [partnersOf(text), partnersOf(text, true)].map(
            ({ partners, problems }) =>
              [partners.map(({ partner }) => partner), [...new Set(problems.map(({ line }) => line))]]));
        }""",
        [case["text"] for case in LISTS_OF_BOTH],
    )
    for case, ((partners, lines), accepted) in zip(LISTS_OF_BOTH, verdicts, strict=True):
        assert lines == case.get("lines", []), case["about"]
        assert "partners" not in case or partners == case["partners"], case["about"]
        assert "accepted" not in case or accepted == [case["accepted"], []], case["about"]


async def test_a_cell_is_written_as_the_command_writes_it(modules):
    """What a spreadsheet would execute gets an apostrophe, which is removed where the cell is read."""
    pairs = await modules.evaluate(
        """async (cases) => {
          const { neutralized, restored } = await import('/console/csv.js');
          return cases.map(({ text, cell }) => ({ text: restored(cell), cell: neutralized(text) }));
        }""",
        CELLS,
    )
    assert pairs == CELLS


async def test_identifiers_are_judged_as_the_command_judges_them(modules):
    """Each rule of the page gives what the command's gives, for any identifier."""
    alphabet = "0aZé-._|=@'+,;E5 \u200b\u201c"
    choices = random.Random(19)
    texts = ["".join(choices.choices(alphabet, k=choices.randrange(1, 6))) for _ in range(3_000)]
    texts += [
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
    told = await modules.evaluate(
        """async (texts) => {
          const { word } = await import('/console/checks.js');
          const { commonShape, isHeading, oddityOf, shapeOf } = await import('/console/identifiers.js');
          return texts.map((text) => [word(text) === null, oddityOf(text), shapeOf(text), isHeading(text)]);
        }""",
        texts,
    )
    assert told == [
        [accepted(text), oddity_of(text), int(shape_of(text)), is_heading(text)] for text in texts
    ]


def accepted(text):
    try:
        return bool(RelayCreateRequest(["t"], text))
    except RequestValidationError:
        return False


async def test_odd_identifiers_are_accepted_explicitly(shown):
    """They are named by line and keep the run from starting; a checkbox accepts them, for this list alone."""
    page = await ready(shown, "secondary_client_id,city\n5f3a,Bonn\n60aa,Köln\nTOTAL,2\n")
    assert await page.locator("#partners-count").inner_text() == (
        "2 partners, 1 line to correct, ignored columns: city"
    )
    assert await page.locator(".problems li").all_inner_texts() == [
        "Line 4: secondary_client_id is a heading, a total, or a placeholder for a missing value"
    ]
    await page.locator("#many-run").click()
    assert "Correct the lines" in await page.locator("#many-wrong").inner_text()
    await page.locator("#allow-odd").check()
    await page.locator("#partners-count", has_text="3 partners, ignored columns: city").wait_for()
    assert await run(shown) == "3 of 3: 3 created, 0 failed, 0 unknown"
    await download(shown)
    file = {"name": "x.csv", "mimeType": "text/csv", "buffer": "\ufeff5f3a\r\n=1\r\n".encode("utf-16-le")}
    await page.locator("#file").set_input_files(file)
    await page.locator(".problems", has_text="Line 2: secondary_client_id begins with =").wait_for()
    assert not await page.locator("#allow-odd").is_checked()


LISTS = [
    ("a\nb\n", 2, []),
    ("\ufeffsecondary_client_id,webhook\r\n a ,https://x.example/y\r\n\r\nb,\r\n", 2, []),
    ('webhook,secondary_client_id\n"https://x.example/?a,b","quoted"\n', 1, []),
    ("secondary_client_id,report_token\na,t\n", 0, ["Line 1: report_token can’t be a column here"]),
    ('secondary_client_id,note\na,"two\nlines"\nb,x\nb,y\n', 2, ["Line 5: b is on line 4 already"]),
    (
        "secondary_client_id\na\nb c\n\u200bd\n",
        1,
        ["Line 3: secondary_client_id has a space", "Line 4: secondary_client_id has"],
    ),
    (
        "secondary_client_id,webhook\na,ftp://x\n,https://x.example\n",
        0,
        ["Line 2: webhook must be", "Line 3: secondary_client_id is empty"],
    ),
    ("secondary_client_id\na,b\n", 0, ["Line 2: has 2 cells, of 1"]),
    ("partner\na\n", 0, ["Line 1: secondary_client_id isn’t in the header"]),
    ("a,https://x.example\n", 0, ["Line 1: secondary_client_id isn’t in the header"]),
    (
        "secondary_client_id,secondary_client_id\na,b\n",
        0,
        ["Line 1: secondary_client_id occurs twice in the header"],
    ),
    ('a\n"b\nc\n', 1, ["Line 2: isn’t CSV"]),
    ('a\nb"c"\n', 1, ["Line 2: secondary_client_id has a quote"]),
]


async def test_a_list_is_checked_as_it_is_typed(shown):
    """Quotes, line ends, a byte order mark and other columns are read; each problem has its line."""
    page = await ready(shown, "")
    for text, count, problems in LISTS:
        await page.locator("#partners").fill(text)
        await page.locator("#partners").blur()
        told = await page.locator("#partners-count").inner_text()
        assert told.startswith(f"{count} partner"), text
        lines = await page.locator(".problems li").all_inner_texts()
        assert len(lines) == len(problems), text
        assert all(map(str.startswith, lines, problems)), lines


async def test_a_run_needs_a_list_without_problems_or_leave_to_pass_over_them(shown):
    """Lines that are wrong keep the run from starting, unless they are left out in so many words."""
    page = await ready(shown, "a\nb c\na\nd\n")
    await page.locator("#many-run").click()
    assert "Correct the lines" in await page.locator("#many-wrong").inner_text()
    assert not shown.plaid.requests
    await page.locator("#leave-out").check()
    assert await run(shown) == "2 of 2: 2 created, 0 failed, 0 unknown"
    assert [entry["secondary_client_id"] for entry in shown.plaid.ledger] == ["a", "d"]


async def test_a_run_needs_a_key_a_token_and_a_list(shown):
    """What is missing is named, and has the focus."""
    page = await shown.open(None)
    await shown.choose("many")
    for field, value in (("key", shown.keys["owner"]), ("many-token", "assets-sandbox-1"), ("partners", "")):
        await page.locator("#many-run").click()
        assert await page.evaluate("document.activeElement.id") == field
        await page.locator(f"#{field}").fill(value)
    await page.locator("#concurrency").fill("21")
    await page.locator("#many-run").click()
    assert "from 1 to 20" in await page.locator("#many-wrong").inner_text()


async def test_of_five_hundred_partners_ten_are_refused(shown):
    """Each partner has its outcome, in the table and in the file, as the ledger has it; the bar follows."""
    for number in range(7, 500, 50):
        shown.plaid.fail(Fault(secondary_client_id=f"partner-{number}", status=400))
    shown.plaid.fail(Fault(secondary_client_id="partner-3", status=500, when="after"))
    page = await ready(shown, partners(500))
    await page.evaluate("""() => {
      window.seen = new Set();
      new MutationObserver(() => seen.add(document.querySelector('#said').textContent)).observe(
        document.querySelector('#said'), { childList: true, characterData: true, subtree: true });
    }""")
    told = await run(shown)
    assert told == "500 of 500: 489 created, 10 failed, 1 unknown"
    assert "may exist that nobody holds" in await page.locator("#verdict").inner_text()
    rows = await download(shown)
    assert tuple(rows[0]) == OUTCOME_COLUMNS
    assert [row["secondary_client_id"] for row in rows] == [f"partner-{number}" for number in range(500)]
    ledger = {entry["secondary_client_id"]: entry for entry in shown.plaid.ledger}
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
        len(ledger) == shown.plaid.counts[CREATE] - 10 == 490
    )  # one of them nobody holds: it is the unknown
    announced = await page.evaluate("[...seen]")
    assert len(announced) <= 7, announced
    await page.locator("#filters").get_by_text("failed 10").click()
    assert await page.locator("#rows tr").count() == 10
    await page.locator("#filters").get_by_text("created 489").click()
    assert await page.locator("#rows tr").count() == 100
    await page.locator("#page-on").click()
    assert await page.locator("#page-told").inner_text() == "101 to 200 of 489"


async def test_a_row_has_its_own_webhook_or_that_of_all(shown):
    """A webhook of a row's own goes with it; the others get the one of the form."""
    page = await ready(shown, "secondary_client_id,webhook\na,https://own.example/\nb,\n")
    sent = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request.post_data_json))
    await page.locator("#many-webhook").fill("https://all.example/")
    await page.locator("#concurrency").fill("1")
    await run(shown)
    assert [each["webhook"] for each in sent] == ["https://own.example/", "https://all.example/"]


async def test_a_run_waits_as_long_as_it_is_told(shown):
    """After a 429 all wait for Retry-After, say so, and repeat what was refused: all get their token."""
    shown.plaid.fail(Fault(status=429, headers={"Retry-After": "1"}, times=3))
    page = await ready(shown, partners(20))
    begun = time.monotonic()
    await page.locator("#many-run").click()
    await page.locator("#pause", has_text="goes on in 1 s").wait_for()
    await page.locator("#many-download:enabled").wait_for()
    assert time.monotonic() - begun >= 1
    assert await page.locator("#progress").inner_text() == "20 of 20: 20 created, 0 failed, 0 unknown"
    rows = await download(shown)
    assert sorted(row["attempts"] for row in rows) == ["1"] * 17 + ["2"] * 3
    assert len(shown.plaid.ledger) == 20


async def test_what_was_surely_not_carried_out_is_sent_again(shown):
    """Maintenance is waited for, and an error of which nobody can tell is not."""
    shown.plaid.fail(Fault(status=503, times=2), Fault(status=502, body="<p>", times=1))
    await ready(shown, partners(4))
    assert await run(shown) == "4 of 4: 3 created, 0 failed, 1 unknown"
    assert shown.plaid.counts[CREATE] == 6


async def test_a_pause_that_is_too_long_ends_the_run(shown):
    """An hour isn't waited for: what was refused has failed, the rest is not attempted, and the page says why."""
    shown.plaid.fail(Fault(status=429, headers={"Retry-After": "3600"}))
    page = await ready(shown, partners(30))
    told = await run(shown)
    assert re.fullmatch(r"30 of 30: 0 created, \d+ failed, 0 unknown, \d+ not attempted", told)
    assert "pauses that are asked for are too long" in await page.locator("#verdict").inner_text()


@pytest.mark.parametrize(
    ("caller", "code", "way"),
    [
        ("wrong", "UNAUTHORIZED_KEY", "Check the key at the top"),
        ("owner", "INVALID_API_KEYS", "Whoever runs the gateway"),
        ("owner", "PRODUCT_NOT_READY", "send again in a moment"),
        ("owner", "DATA_UNAVAILABLE", "repair that Item"),
    ],
)
async def test_an_error_that_all_would_meet_stops_the_run(shown, caller, code, way):
    """A key that isn't known, or credentials or a report that Plaid refuses, don't make five hundred errors."""
    shown.keys["wrong"] = "plaid-gateway-unknown"
    body = {"error_code": code} | ({"error_type": "ASSET_REPORT_ERROR"} if code == "DATA_UNAVAILABLE" else {})
    shown.plaid.fail(Fault(status=400, body=body))
    page = await ready(shown, partners(500), caller)
    await run(shown)
    rows = await download(shown)
    failed = [row for row in rows if row["outcome"] == "failed"]
    assert 1 <= len(failed) <= 12
    assert {row["error_code"] for row in failed} == {code}
    assert {row["outcome"] for row in rows} == {"failed", "not_attempted"}
    assert code in await page.locator("#verdict").inner_text()
    assert way in await page.locator("#verdict").inner_text()


async def test_a_gateway_that_has_gone_stops_the_run(shown):
    """Those in flight are unknown, and the others aren't made so, too."""
    shown.plaid.fail(Fault(stall=30))
    page = await ready(shown, partners(200))
    await page.locator("#many-run").click()
    await page.locator("#rows .is-in-flight").nth(5).wait_for()
    await shown.gateway.close()
    await page.locator("#many-download:enabled").wait_for()
    rows = await download(shown)
    assert 1 <= sum(row["outcome"] == "unknown" for row in rows) <= 12
    assert sum(row["outcome"] == "not_attempted" for row in rows) >= 188
    assert "doesn’t answer any more" in await page.locator("#verdict").inner_text()


async def test_stop_waits_for_what_is_in_flight(shown):
    """After Stop nothing more is sent, what is in flight gets its outcome, and the rest was not attempted."""
    shown.plaid.fail(Fault(latency=0.5))
    page = await ready(shown, partners(300))
    await page.locator("#many-run").click()
    while await page.evaluate("document.querySelector('#bar').value") < 6:
        await asyncio.sleep(0.02)
    await page.locator("#many-stop").click()
    await page.locator("#pause", has_text="nothing more is sent").wait_for()
    await page.locator("#many-download:enabled").wait_for()
    rows = await download(shown)
    created = [row for row in rows if row["outcome"] == "created"]
    assert {row["outcome"] for row in rows} == {"created", "not_attempted"}
    assert len(created) == len(shown.plaid.ledger) == shown.plaid.counts[CREATE] < 60
    assert {row["relay_token"] for row in created} == {entry["relay_token"] for entry in shown.plaid.ledger}


async def test_stop_a_second_time_gives_up(shown):
    """What is given up on in flight is unknown: a token may exist."""
    shown.plaid.fail(Fault(stall=30))
    page = await ready(shown, partners(50))
    await page.locator("#many-run").click()
    await page.locator("#rows .is-in-flight").nth(5).wait_for()
    await page.locator("#many-stop").click()
    await page.get_by_role("button", name="Give up on those").click()
    await page.locator("#many-download:enabled").wait_for()
    assert "6 unknown, 44 not attempted" in await page.locator("#progress").inner_text()


async def test_tokens_that_were_not_saved_are_asked_about(shown):
    """Neither leaving nor another run throws tokens away that are nowhere else; a pair isn't made twice unasked."""
    page = await ready(shown, "a\nb\n")
    await run(shown)
    await page.locator("#many-run").click()
    assert "Download the outcomes first" in await page.locator("#many-wrong").inner_text()
    kinds = []

    async def stay(dialog):
        kinds.append(dialog.type)
        await dialog.dismiss()

    page.on("dialog", stay)
    async with page.expect_event("dialog"):
        await page.evaluate("setTimeout(() => location.reload())")
    await download(shown)
    await page.locator("#many-run").click()
    dialog = page.get_by_role("dialog")
    assert "2 got a relay token for this report on this page already" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Don’t").click()
    assert len(shown.plaid.ledger) == 2
    await page.reload()
    assert kinds == ["beforeunload"]


async def test_a_file_can_be_chosen_or_dropped(shown, tmp_path):
    """A file is read as UTF-8, chosen or dropped; another encoding is refused."""
    page = await ready(shown, "")
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


async def test_a_file_that_cannot_be_read_is_in_the_way(shown, tmp_path):
    """Of the list before it nothing is run, typed just before or looked at again, until something takes its place."""
    page = await ready(shown, partners(2))
    file = tmp_path / "partners.csv"
    file.write_bytes("é\n".encode("latin-1"))
    refused = page.locator(".problems", has_text="isn’t UTF-8")
    await page.locator("#partners").press("End")
    await page.keyboard.type("x")
    await page.locator("#file").set_input_files(file)
    await refused.wait_for()
    await asyncio.sleep(0.3)
    await page.locator("#partners").focus()
    await page.locator("#partners").blur()
    await page.locator("#many-run").click()
    assert "no partner to share with" in await page.locator("#many-wrong").inner_text()
    assert await refused.is_visible()
    await page.locator("#partners").fill("a")
    await page.locator("#partners-count", has_text="1 partner").wait_for()
    await run(shown)
    assert [entry["secondary_client_id"] for entry in shown.plaid.ledger] == ["a"]


async def test_no_cell_of_the_file_is_a_formula(shown):
    """What a spreadsheet would run is written as text."""
    ids = ["=1+1", "+a", "-a", "@a"]
    page = await ready(shown, "\n".join(["secondary_client_id", *ids]))
    await page.locator("#allow-odd").check()
    await run(shown)
    assert sorted(entry["secondary_client_id"] for entry in shown.plaid.ledger) == sorted(ids)
    written = [row["secondary_client_id"] for row in await download(shown)]
    assert written == ["'=1+1", "'+a", "'-a", "'@a"]


async def test_ten_thousand_rows_are_not_all_drawn(shown):
    """A list of ten thousand is checked and run; the page draws a hundred of its rows at a time."""
    page = await ready(shown, partners(10_000) + "a b\n" * 1_000)
    await page.locator("#partners-count", has_text="10,000 partners, 1,000 lines to correct").wait_for()
    assert await page.locator(".problems li").count() == 51
    await page.locator("#leave-out").check()
    shown.plaid.fail(Fault(status=400, body={"error_code": "INVALID_API_KEYS"}))
    assert (await run(shown)).startswith("10,000 of 10,000")
    assert await page.locator("#rows tr").count() == 100
    assert await page.evaluate("document.querySelectorAll('*').length") < 2_000
    assert len(await download(shown)) == 10_000


async def test_a_delay_is_read_as_the_client_reads_it(modules):
    """Retry-After may be seconds or a date, which counts from the answer's own; rounded up, it is the client's."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    said = [
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
    answers = [{"Retry-After": each, "Date": date} for each in said]
    answers += [{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}]
    read = await modules.evaluate(
        """async (all) => {
          const { retryAfter } = await import('/console/call.js');
          return all.map((headers) => retryAfter(new Headers(headers)));
        }""",
        answers,
    )
    assert read == [parse_retry_after(each) for each in answers]


async def test_an_answer_of_anything_has_its_outcome(shown):
    """An answer with values of another type is refused like others, and can be listed and run again; the file is whole."""
    odd = {"error_code": ["constructor"], "error_type": 5, "request_id": {"a": ","}}
    shown.plaid.fail(Fault(secondary_client_id="a", status=400, body=odd, times=1))
    page = await ready(shown, "secondary_client_id,webhook\na,https://lender.example/\nb,\n")
    assert await run(shown) == "2 of 2: 1 created, 1 failed, 0 unknown"
    failed, created = await download(shown)
    assert failed["error_code"] == "status 400"
    assert created["relay_token"] == shown.plaid.ledger[0]["relay_token"]
    await page.get_by_role("button", name="List those without a token again (1)").click()
    left = await page.locator("#partners").input_value()
    assert left == "secondary_client_id,webhook\na,https://lender.example/\n"
    assert await run(shown) == "1 of 1: 1 created, 0 failed, 0 unknown"
    assert [entry["secondary_client_id"] for entry in shown.plaid.ledger] == ["b", "a"]
