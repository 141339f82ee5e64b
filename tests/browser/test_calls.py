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
    return await console.page.locator("#response .result").inner_text()


async def facts(console):
    names = await console.page.locator("#response dt").all_inner_texts()
    return dict(zip(names, await console.page.locator("#response dd").all_inner_texts(), strict=True))


async def test_a_call_shows_its_response(console):
    """A creation is sent as filled in, and its response is shown with status, time and request ID."""
    await open_create_form(console)
    await console.fill(webhook="https://lender.example/relay")
    assert await console.send_request() == "Created"
    [entry] = console.plaid.ledger
    assert entry["secondary_client_id"] == "partner"
    assert entry["client_id"] == "owner"
    shown_facts = await facts(console)
    assert (shown_facts["Status"], shown_facts["Request ID"]) == ("200", entry["request_id"])
    assert re.fullmatch(r"\d+ ms", shown_facts["Time"])
    assert await console.page.locator("#announcement").inner_text() == (
        "Created. Status 200. Its token is under Received tokens, below."
    )


async def test_a_received_token_goes_into_the_next_call(console):
    """A created token is read, refreshed and removed without being typed or shown."""
    page = await open_create_form(console)
    await console.send_request()
    relay_token = console.plaid.ledger[0]["relay_token"]
    tokens = page.locator("#tokens")
    assert relay_token not in await page.locator("body").inner_text()
    await page.locator("#key").fill(console.keys["partner"])
    await tokens.get_by_role("button", name="Read a shared report").click()
    assert await page.locator("#input-relay_token").input_value() == relay_token
    assert await console.send_request() == "Read"
    assert '"report"' in await page.locator("#response pre").inner_text()
    await tokens.get_by_role("button", name="Refresh a shared report").click()
    assert await console.send_request() == "Created"
    await page.locator("#key").fill(console.keys["owner"])
    await tokens.get_by_role("button", name="Stop sharing").click()
    assert await console.send_request() == "Removed"
    assert console.plaid.ledger[0]["removed"]
    assert not await tokens.is_visible()


async def test_tokens_in_a_response_are_masked_until_shown(console):
    """A token in a response is masked and can be shown; the copied response contains it."""
    page = await open_create_form(console)
    await console.send_request()
    relay_token = console.plaid.ledger[0]["relay_token"]
    response = page.locator("#response pre")
    assert '"relay_token": "••••••••"' in await response.inner_text()
    await page.get_by_role("button", name="Show tokens").click()
    assert relay_token in await response.inner_text()
    await page.get_by_role("button", name="Show tokens").click()
    assert relay_token not in await response.inner_text()
    await page.get_by_role("button", name="Copy response").click()
    assert json.loads(await page.evaluate("navigator.clipboard.readText()"))["relay_token"] == relay_token


async def test_a_pdf_is_saved(console):
    """A PDF is offered as a file, unchanged, with its size."""
    page = await open_create_form(console)
    await console.send_request()
    await page.locator("#key").fill(console.keys["partner"])
    await page.locator("#tokens").get_by_role("button", name="Shared report as PDF").click()
    assert await console.send_request() == "Read"
    link = page.locator("#response a")
    assert re.fullmatch(r"Save the PDF \([\d.]+ (bytes|kB)\)", await link.inner_text())
    async with page.expect_download() as saving:
        await link.click()
    content = await (await saving.value).path()
    assert content.read_bytes().startswith(b"%PDF-")
    assert content.read_bytes().rstrip().endswith(b"%%EOF")
    assert len((await facts(console))["Request ID"]) == 15


ERRORS = [
    # fault, status, title, part of the explanation
    ({"status": 400}, "400", "Not executed", "Correct the field that Plaid names"),
    (
        {"status": 400, "body": {"error_code": "INVALID_API_KEYS"}},
        "400",
        "Not executed",
        "client ID or secret",
    ),
    ({"status": 400, "body": {"error_code": "MISSING_FIELDS"}}, "400", "Not executed", "Fill in the fields"),
    (
        {"status": 400, "body": {"error_code": "PRODUCT_NOT_READY"}},
        "400",
        "Not executed",
        "in a moment",
    ),
    ({"status": 429, "headers": {"Retry-After": "7"}}, "429", "it may succeed later", "Wait 7 s"),
    (
        {"status": 429, "body": {"error_code": "CREDITS_EXHAUSTED"}},
        "429",
        "Not executed",
        "Waiting does not help",
    ),
    ({"status": 503}, "503", "it may succeed later", "status.plaid.com"),
    ({"status": 500, "when": "after"}, "500", "Unknown", "A relay token may exist that was not received"),
    ({"status": 502, "body": "<h1>bad gateway</h1>"}, "502", "Unknown", "may exist that was not received"),
    ({"truncate": 10}, "200", "Unknown", "The response was truncated."),
    ({"close": True, "when": "after"}, "502", "Unknown", "and lost the response"),
    ({"status": 200, "body": {"relay_token": 5}}, "200", "Unknown", "does not have the expected form"),
    ({"status": 200, "body": []}, "200", "Unknown", "does not have the expected form"),
    (
        {"status": 302, "headers": {"Location": "https://evil.example/"}},
        "none",
        "Not executed",
        "redirect",
    ),
]


async def test_each_error_is_explained(console):
    """For each error the page says whether the call was executed and what to do; the call is sent once."""
    page = await open_create_form(console)
    for number, (fault, status, headline, text) in enumerate(ERRORS, 1):
        await console.fill(secondary_client_id=f"partner-{number}")
        console.plaid.fail(Fault(**fault, times=1))
        assert headline in await console.send_request(), fault
        assert text in await result_text(console), fault
        assert (await facts(console))["Status"] == status, fault
        assert console.plaid.counts[CREATE] == number, fault
        assert page.url == f"{console.gateway.url}/"


async def test_unusual_values_in_a_response_are_shown(console):
    """Names that every JavaScript object inherits, and values of other types, break nothing."""
    await open_create_form(console)
    for number, value in enumerate(("constructor", "__proto__", "toString", 5, ["a,b"], {"a": '"'}, None)):
        await console.fill(secondary_client_id=f"partner-{number}")
        body = dict.fromkeys(
            ("error_type", "error_code", "error_message", "suggested_action", "request_id"), value
        )
        console.plaid.fail(Fault(status=400, body=body, times=1))
        assert await console.send_request() == "Not executed", value
        assert (await facts(console))["Status"] == "400", value


GATEWAY_ERRORS = [
    # caller, partner, status, part of the explanation
    ("invalid", "partner", "401", "no valid key of this gateway”. Check the key"),
    ("bound", "somebody-else", "403", "does not allow this secondary_client_id”. Check secondary_client_id"),
    ("reader", "partner", "403", "does not allow this operation"),
    ("lost", "partner", "403", "does not have the Plaid credentials"),
]


async def test_errors_of_the_gateway_are_explained(console):
    """The page says what to do, and nothing reached Plaid."""
    page = await open_create_form(console)
    console.keys["invalid"] = "plaid-gateway-unknown"
    for caller, partner, status, text in GATEWAY_ERRORS:
        await page.locator("#key").fill(console.keys[caller])
        await console.fill(secondary_client_id=partner)
        assert await console.send_request() == "Not executed"
        assert text in " ".join((await result_text(console)).split())
        assert (await facts(console))["Status"] == status
    assert console.plaid.counts[CREATE] == 0


async def test_a_rate_limit_shows_the_seconds_to_wait(console):
    """A key whose rate limit is exceeded gets the seconds of Retry-After."""
    await open_create_form(console, "hasty")
    assert await console.send_request() == "Created"
    await console.fill(secondary_client_id="another")
    assert "it may succeed later" in await console.send_request()
    assert re.search(r"Wait \d+ s before the next call", await result_text(console))


async def test_a_report_that_is_not_ready_can_be_read_later(console):
    """The page says to send the request again in a moment."""
    await console.open("partner", relay_token="credit-relay-sandbox-canary")
    console.plaid.fail(Fault(status=400, body={"error_code": "PRODUCT_NOT_READY"}))
    await console.choose_operation(GET)
    assert await console.send_request() == "Not executed"
    assert "in a moment" in await result_text(console)


LOST_RESPONSES = [
    (GET, "No result", "safe to send it again"),
    (REMOVE, "Unknown; safe to repeat", "safe to send it again"),
    (REFRESH, "Unknown", "A report may exist"),
]


async def test_the_meaning_of_a_lost_response_depends_on_the_operation(console):
    """A read or removal may be sent again; a refresh is unknown."""
    await console.open("owner", relay_token="credit-relay-sandbox-canary")
    console.plaid.fail(Fault(status=500))
    for path, headline, text in LOST_RESPONSES:
        await console.choose_operation(path)
        assert headline in await console.send_request()
        assert text in await result_text(console)


async def test_a_token_in_a_truncated_response_is_recovered(open_console):
    """A response that is truncated after its token is a success, and the page says that it was truncated."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    async with Recorder() as upstream, open_console(gateway={"upstream": upstream.url}) as console:
        upstream.respond = lambda _: [head + b'{"relay_token": "credit-relay-sandbox-canary",', b' "request_']
        upstream.ending, upstream.pause = "close", 0.3
        page = await open_create_form(console)
        assert await console.send_request() == "Created"
        assert "truncated after the token" in await result_text(console)
        assert await facts(console) | {"Time": ""} == {"Status": "200", "Time": "", "Request ID": "none"}
        tokens = page.locator("#tokens")
        await tokens.get_by_role("button", name="Copy").click()
        await tokens.get_by_text("Copied").wait_for()
        assert await page.evaluate("navigator.clipboard.readText()") == "credit-relay-sandbox-canary"
        assert len(upstream.requests) == 1


async def test_no_response_is_unknown(console):
    """If the gateway is down, the browser can't say whether a creation was sent, so it is unknown and not repeated."""
    await open_create_form(console)
    await console.gateway.close()
    assert "Unknown" in await console.send_request()
    assert "No response arrived" in await result_text(console)
    assert await facts(console) | {"Time": ""} == {"Status": "none", "Time": "", "Request ID": "none"}


async def test_repeating_an_unknown_creation_needs_confirmation(console):
    """The same creation is sent again only after confirmation; another one needs none."""
    page = await open_create_form(console)
    console.plaid.fail(Fault(status=500, when="after", times=1))
    assert "Unknown" in await console.send_request()
    await page.locator("#send").click()
    dialog = page.get_by_role("dialog")
    assert "may create a second one" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Cancel").click()
    assert console.plaid.counts[CREATE] == 1
    await page.locator("#send").click()
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="hidden")
    assert console.plaid.counts[CREATE] == 1
    await page.locator("#send").click()
    await dialog.get_by_role("button", name="Send again").click()
    await page.locator("#response .title", has_text="Created").wait_for()
    assert console.plaid.counts[CREATE] == 2
    await page.locator("#send").click()
    assert "has already created a relay token on this page" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Cancel").click()
    await console.fill(secondary_client_id="another")
    assert await console.send_request() == "Created"


async def test_nothing_is_sent_while_an_input_is_invalid(console):
    """Send names the invalid fields, focuses the first one, and sends nothing; before that, no error is shown."""
    page = await console.open(None)
    assert await page.locator(".error:visible").count() == 0
    await page.locator("#send").click()
    assert await page.evaluate("document.activeElement.id") == "key"
    await page.locator("#key").fill("a key")
    assert "contains a space" in await page.locator("#key-error").inner_text()
    await page.locator("#key").fill(console.keys["owner"])
    await console.fill(webhook="ftp://x")
    assert "must be an http(s) URL" in await page.locator("#input-webhook-error").inner_text()
    await page.locator("#send").click()
    assert await page.evaluate("document.activeElement.id") == "input-report_tokens"
    shown_facts = await page.locator("#announcement").inner_text()
    assert shown_facts == "Not sent: correct report_tokens, secondary_client_id, webhook"
    assert await page.locator("#input-webhook").get_attribute("aria-invalid") == "true"
    assert not console.plaid.requests


async def test_numbers_in_a_response_are_unchanged(module_page):
    """Indenting a response changes no number or string in it, because amounts of money are decimals."""
    raw = r'{"a":[1.10,-0.0,1e400,123456789012345678901,"x{,}:\" ",{},[]],"b":{"c":null,"d":true}}'
    laid = await module_page.evaluate(
        "(raw) => import('/console/render.js').then((m) => m.indentJson(raw))", raw
    )
    assert laid.splitlines()[:3] == ["{", '  "a": [', "    1.10,"]
    assert json.loads(laid, parse_float=str, parse_int=str) == json.loads(raw, parse_float=str, parse_int=str)


async def test_the_beginning_of_a_large_report_is_shown(console):
    """A report of megabytes doesn't block the page: its beginning is shown, and all of it can be saved."""
    token = console.plaid.add_report(transactions=5_000, days=365)
    page = await console.open("owner", report_token=token)
    await console.choose_operation("/asset_report/get")
    assert await console.send_request() == "Read"
    assert len(await page.locator("#response pre").inner_text()) < 110_000
    async with page.expect_download() as saving:
        await page.get_by_role("button", name=re.compile(r"Save response \([\d.]+ MB\)")).click()
    report = json.loads((await (await saving.value).path()).read_text(encoding="utf-8"))
    assert sum(len(account["transactions"]) for account in report["report"]["items"][0]["accounts"]) == 5_000


async def test_a_complete_sandbox_run(console):
    """From a test Item to a shared report, each token goes into the next call by a button."""
    page = await console.open("owner")
    tokens = page.locator("#tokens")
    await console.choose_operation("/sandbox/public_token/create")
    assert await console.send_request() == "Created"
    await tokens.get_by_role("button", name="Exchange a public token").click()
    assert await console.send_request() == "Created"
    await tokens.get_by_role("button", name="Create a report").click()
    await console.fill(days_requested="60")
    assert await console.send_request() == "Created"
    await tokens.get_by_role("button", name="Share a report", exact=True).click()
    await console.fill(secondary_client_id="partner")
    assert await console.send_request() == "Created"
    assert console.plaid.ledger[0]["secondary_client_id"] == "partner"


async def test_leaving_with_an_uncopied_token_needs_confirmation(console):
    """Once the token was copied, the page can be left without a question."""
    page = await open_create_form(console)
    dialogs = []

    async def stay(dialog):
        dialogs.append(dialog.type)
        await dialog.dismiss()

    page.on("dialog", stay)
    await console.send_request()
    async with page.expect_event("dialog"):
        await page.evaluate("setTimeout(() => location.reload())")
    assert await page.locator("#tokens").is_visible()
    await page.locator("#tokens").get_by_role("button", name="Copy").click()
    await page.locator("#tokens", has_text="Copied").wait_for()
    await page.reload()
    assert dialogs == ["beforeunload"]
    assert not await page.locator("#tokens").is_visible()
