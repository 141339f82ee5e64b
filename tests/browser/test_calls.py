"""Single calls: how inputs are checked, what is sent, and how the response is explained."""

from __future__ import annotations

import json
import re

from recorder import Recorder

from plaid_relay_async.simulator import Fault

CREATE, GET, PDF = "/credit/relay/create", "/credit/relay/get", "/credit/relay/pdf/get"
REFRESH, REMOVE = "/credit/relay/refresh", "/credit/relay/remove"


async def open_create_form(console, caller="owner", partner="partner", **secrets):
    """Open the console with a filled-in creation."""
    token = console.plaid.add_report()
    page = await console.open(caller, report_token=token, **secrets)
    await console.fill(secondary_client_id=partner)
    return page


async def result_text(console):
    return await console.page.locator("#answer .verdict").inner_text()


async def facts(console):
    names = await console.page.locator("#answer dt").all_inner_texts()
    return dict(zip(names, await console.page.locator("#answer dd").all_inner_texts(), strict=True))


async def test_a_call_shows_its_response(console):
    """A creation is sent as filled in, and its response is shown with status, time and request ID."""
    await open_create_form(console)
    await console.fill(webhook="https://lender.example/relay")
    assert await console.send() == "Created"
    [entry] = console.plaid.ledger
    assert entry["secondary_client_id"] == "partner"
    assert entry["client_id"] == "owner"
    told = await facts(console)
    assert (told["Status"], told["Request id"]) == ("200", entry["request_id"])
    assert re.fullmatch(r"\d+ ms", told["Time"])
    assert await console.page.locator("#said").inner_text() == (
        "Created. Status 200. Its token is among those in hand, below."
    )


async def test_a_received_token_goes_into_the_next_call(console):
    """A created token is read, refreshed and removed without being typed or shown."""
    page = await open_create_form(console)
    await console.send()
    relay_token = console.plaid.ledger[0]["relay_token"]
    hand = page.locator("#hand")
    assert relay_token not in await page.locator("body").inner_text()
    await page.locator("#key").fill(console.keys["partner"])
    await hand.get_by_role("button", name="Read a shared report").click()
    assert await page.locator("#input-relay_token").input_value() == relay_token
    assert await console.send() == "Read"
    assert '"report"' in await page.locator("#answer pre").inner_text()
    await hand.get_by_role("button", name="Refresh a shared report").click()
    assert await console.send() == "Created"
    await page.locator("#key").fill(console.keys["owner"])
    await hand.get_by_role("button", name="Stop sharing").click()
    assert await console.send() == "Removed"
    assert console.plaid.ledger[0]["removed"]
    assert not await hand.is_visible()


async def test_tokens_in_a_response_are_masked_until_shown(console):
    """A token in a response is masked and can be shown; the copied response contains it."""
    page = await open_create_form(console)
    await console.send()
    relay_token = console.plaid.ledger[0]["relay_token"]
    answer = page.locator("#answer pre")
    assert '"relay_token": "••••••••"' in await answer.inner_text()
    await page.get_by_role("button", name="Show tokens").click()
    assert relay_token in await answer.inner_text()
    await page.get_by_role("button", name="Show tokens").click()
    assert relay_token not in await answer.inner_text()
    await page.get_by_role("button", name="Copy answer").click()
    assert json.loads(await page.evaluate("navigator.clipboard.readText()"))["relay_token"] == relay_token


async def test_a_pdf_is_saved(console):
    """A PDF is offered as a file, unchanged, with its size."""
    page = await open_create_form(console)
    await console.send()
    await page.locator("#key").fill(console.keys["partner"])
    await page.locator("#hand").get_by_role("button", name="Shared report as PDF").click()
    assert await console.send() == "Read"
    link = page.locator("#answer a")
    assert re.fullmatch(r"Save the PDF \([\d.]+ (bytes|kB)\)", await link.inner_text())
    async with page.expect_download() as saving:
        await link.click()
    content = await (await saving.value).path()
    assert content.read_bytes().startswith(b"%PDF-")
    assert content.read_bytes().rstrip().endswith(b"%%EOF")
    assert len((await facts(console))["Request id"]) == 15


ERRORS = [
    # what goes wrong, status, headline, what the page says of the way out
    ({"status": 400}, "400", "Not carried out", "Correct the one that Plaid names"),
    (
        {"status": 400, "body": {"error_code": "INVALID_API_KEYS"}},
        "400",
        "Not carried out",
        "client id or secret",
    ),
    ({"status": 400, "body": {"error_code": "MISSING_FIELDS"}}, "400", "Not carried out", "Fill in those"),
    (
        {"status": 400, "body": {"error_code": "PRODUCT_NOT_READY"}},
        "400",
        "Not carried out",
        "send again in a moment",
    ),
    ({"status": 429, "headers": {"Retry-After": "7"}}, "429", "it may work later", "Wait 7 s"),
    (
        {"status": 429, "body": {"error_code": "CREDITS_EXHAUSTED"}},
        "429",
        "Not carried out",
        "Waiting won’t help",
    ),
    ({"status": 503}, "503", "it may work later", "status.plaid.com"),
    ({"status": 500, "when": "after"}, "500", "Unknown", "A relay token may exist that nobody holds"),
    ({"status": 502, "body": "<h1>bad gateway</h1>"}, "502", "Unknown", "may exist that nobody holds"),
    ({"truncate": 10}, "200", "Unknown", "The answer broke off."),
    ({"close": True, "when": "after"}, "502", "Unknown", "connection to Plaid was lost"),
    ({"status": 200, "body": {"relay_token": 5}}, "200", "Unknown", "isn’t what it should be"),
    ({"status": 200, "body": []}, "200", "Unknown", "isn’t what it should be"),
    (
        {"status": 302, "headers": {"Location": "https://evil.example/"}},
        "none",
        "Not carried out",
        "redirect",
    ),
]


async def test_each_error_is_explained(console):
    """For each error the page says whether the call was executed and what to do; the call is sent once."""
    page = await open_create_form(console)
    for number, (fault, status, headline, way) in enumerate(ERRORS, 1):
        await console.fill(secondary_client_id=f"partner-{number}")
        console.plaid.fail(Fault(**fault, times=1))
        assert headline in await console.send(), fault
        assert way in await result_text(console), fault
        assert (await facts(console))["Status"] == status, fault
        assert console.plaid.counts[CREATE] == number, fault
        assert page.url == f"{console.gateway.url}/"


async def test_unusual_values_in_a_response_are_shown(console):
    """Names that every JavaScript object inherits, and values of other types, break nothing."""
    await open_create_form(console)
    for number, odd in enumerate(("constructor", "__proto__", "toString", 5, ["a,b"], {"a": '"'}, None)):
        await console.fill(secondary_client_id=f"partner-{number}")
        body = dict.fromkeys(
            ("error_type", "error_code", "error_message", "suggested_action", "request_id"), odd
        )
        console.plaid.fail(Fault(status=400, body=body, times=1))
        assert await console.send() == "Not carried out", odd
        assert (await facts(console))["Status"] == "400", odd


REFUSED = [
    # caller, its partner, status, what the page says
    ("wrong", "partner", "401", "doesn’t know this key"),
    ("bound", "somebody-else", "403", "may not share with that partner"),
    ("reader", "partner", "403", "isn’t for this operation"),
    ("lost", "partner", "403", "lacks the Plaid credentials"),
]


async def test_errors_of_the_gateway_are_explained(console):
    """The page says what to do, and nothing reached Plaid."""
    page = await open_create_form(console)
    console.keys["wrong"] = "plaid-gateway-unknown"
    for caller, partner, status, said in REFUSED:
        await page.locator("#key").fill(console.keys[caller])
        await console.fill(secondary_client_id=partner)
        assert await console.send() == "Not carried out"
        assert said in await result_text(console)
        assert (await facts(console))["Status"] == status
    assert console.plaid.counts[CREATE] == 0


async def test_a_rate_limit_shows_the_seconds_to_wait(console):
    """A key whose rate limit is exceeded gets the seconds of Retry-After."""
    await open_create_form(console, "hasty")
    assert await console.send() == "Created"
    await console.fill(secondary_client_id="another")
    assert "later" in await console.send()
    assert re.search(r"Wait \d+ s before the next call", await result_text(console))


async def test_a_report_that_is_not_ready_can_be_read_later(console):
    """The page says to send the request again in a moment."""
    await console.open("partner", relay_token="credit-relay-sandbox-canary")
    console.plaid.fail(Fault(status=400, body={"error_code": "PRODUCT_NOT_READY"}))
    await console.choose(GET)
    assert await console.send() == "Not carried out"
    assert "send again in a moment" in await result_text(console)


LOST = [
    (GET, "Lost", "safe to send it again"),
    (REMOVE, "Nobody can tell", "safe to send it again"),
    (REFRESH, "Unknown", "A report may exist"),
]


async def test_the_meaning_of_a_lost_response_depends_on_the_operation(console):
    """A read or removal may be sent again; a refresh is unknown."""
    await console.open("owner", relay_token="credit-relay-sandbox-canary")
    console.plaid.fail(Fault(status=500))
    for path, headline, said in LOST:
        await console.choose(path)
        assert headline in await console.send()
        assert said in await result_text(console)


async def test_a_token_in_a_truncated_response_is_recovered(open_console):
    """A response that is truncated after its token is a success, and the page says that it was truncated."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    async with Recorder() as upstream, open_console(gateway={"upstream": upstream.url}) as console:
        upstream.says = lambda _: [head + b'{"relay_token": "credit-relay-sandbox-canary",', b' "request_']
        upstream.then, upstream.pause = "close", 0.3
        page = await open_create_form(console)
        assert await console.send() == "Created"
        assert "broke off, but the token had arrived" in await result_text(console)
        assert await facts(console) | {"Time": ""} == {"Status": "200", "Time": "", "Request id": "none"}
        hand = page.locator("#hand")
        await hand.get_by_role("button", name="Copy").click()
        await hand.get_by_text("Copied").wait_for()
        assert await page.evaluate("navigator.clipboard.readText()") == "credit-relay-sandbox-canary"
        assert len(upstream.requests) == 1


async def test_no_response_is_unknown(console):
    """If the gateway is down, the browser can't say whether a creation was sent, so it is unknown and not repeated."""
    await open_create_form(console)
    await console.gateway.close()
    assert "Unknown" in await console.send()
    assert "No answer came" in await result_text(console)
    assert await facts(console) | {"Time": ""} == {"Status": "none", "Time": "", "Request id": "none"}


async def test_repeating_an_unknown_creation_needs_confirmation(console):
    """The same creation is sent again only after confirmation; another one needs none."""
    page = await open_create_form(console)
    console.plaid.fail(Fault(status=500, when="after", times=1))
    assert "Unknown" in await console.send()
    await page.locator("#send").click()
    dialog = page.get_by_role("dialog")
    assert "may make a second one" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Don’t").click()
    assert console.plaid.counts[CREATE] == 1
    await page.locator("#send").click()
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="hidden")
    assert console.plaid.counts[CREATE] == 1
    await page.locator("#send").click()
    await dialog.get_by_role("button", name="Send again").click()
    await page.locator("#answer .title", has_text="Created").wait_for()
    assert console.plaid.counts[CREATE] == 2
    await page.locator("#send").click()
    assert "has made a relay token on this page already" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Don’t").click()
    await console.fill(secondary_client_id="another")
    assert await console.send() == "Created"


async def test_nothing_is_sent_while_an_input_is_invalid(console):
    """Send names the invalid fields, focuses the first one, and sends nothing; before that, no error is shown."""
    page = await console.open(None)
    assert await page.locator(".wrong:visible").count() == 0
    await page.locator("#send").click()
    assert await page.evaluate("document.activeElement.id") == "key"
    await page.locator("#key").fill("a key")
    assert "has a space" in await page.locator("#key-wrong").inner_text()
    await page.locator("#key").fill(console.keys["owner"])
    await console.fill(webhook="ftp://x")
    assert "must be an http(s) URL" in await page.locator("#input-webhook-wrong").inner_text()
    await page.locator("#send").click()
    assert await page.evaluate("document.activeElement.id") == "input-report_tokens"
    told = await page.locator("#said").inner_text()
    assert told == "Not sent: correct report_tokens, secondary_client_id, webhook"
    assert await page.locator("#input-webhook").get_attribute("aria-invalid") == "true"
    assert not console.plaid.requests


async def test_numbers_in_a_response_are_unchanged(module_page):
    """Indenting a response changes no number or string in it, because amounts of money are decimals."""
    raw = r'{"a":[1.10,-0.0,1e400,123456789012345678901,"x{,}:\" ",{},[]],"b":{"c":null,"d":true}}'
    laid = await module_page.evaluate(
        "(raw) => import('/console/render.js').then((m) => m.laidOut(raw))", raw
    )
    assert laid.splitlines()[:3] == ["{", '  "a": [', "    1.10,"]
    assert json.loads(laid, parse_float=str, parse_int=str) == json.loads(raw, parse_float=str, parse_int=str)


async def test_the_beginning_of_a_large_report_is_shown(console):
    """A report of megabytes doesn't block the page: its beginning is shown, and all of it can be saved."""
    token = console.plaid.add_report(transactions=5_000, days=365)
    page = await console.open("owner", report_token=token)
    await console.choose("/asset_report/get")
    assert await console.send() == "Read"
    assert len(await page.locator("#answer pre").inner_text()) < 110_000
    async with page.expect_download() as saving:
        await page.get_by_role("button", name=re.compile(r"Save answer \([\d.]+ MB\)")).click()
    whole = json.loads((await (await saving.value).path()).read_text(encoding="utf-8"))
    assert sum(len(account["transactions"]) for account in whole["report"]["items"][0]["accounts"]) == 5_000


async def test_a_complete_sandbox_run(console):
    """From a test Item to a shared report, each token goes into the next call by a button."""
    page = await console.open("owner")
    hand = page.locator("#hand")
    await console.choose("/sandbox/public_token/create")
    assert await console.send() == "Created"
    await hand.get_by_role("button", name="Exchange a public token").click()
    assert await console.send() == "Created"
    await hand.get_by_role("button", name="Create a report").click()
    await console.fill(days_requested="60")
    assert await console.send() == "Created"
    await hand.get_by_role("button", name="Share a report", exact=True).click()
    await console.fill(secondary_client_id="partner")
    assert await console.send() == "Created"
    assert console.plaid.ledger[0]["secondary_client_id"] == "partner"


async def test_leaving_with_an_uncopied_token_needs_confirmation(console):
    """Once the token was copied, the page can be left without a question."""
    page = await open_create_form(console)
    asked = []

    async def stay(dialog):
        asked.append(dialog.type)
        await dialog.dismiss()

    page.on("dialog", stay)
    await console.send()
    async with page.expect_event("dialog"):
        await page.evaluate("setTimeout(() => location.reload())")
    assert await page.locator("#hand").is_visible()
    await page.locator("#hand").get_by_role("button", name="Copy").click()
    await page.locator("#hand", has_text="Copied").wait_for()
    await page.reload()
    assert asked == ["beforeunload"]
    assert not await page.locator("#hand").is_visible()
