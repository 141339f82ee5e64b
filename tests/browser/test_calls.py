"""Calls by hand: what is checked, what is sent, and what the page says of the answer."""

from __future__ import annotations

import json
import re

from recorder import Recorder

from plaid_relay_async.simulator import Fault

CREATE, GET, PDF = "/credit/relay/create", "/credit/relay/get", "/credit/relay/pdf/get"
REFRESH, REMOVE = "/credit/relay/refresh", "/credit/relay/remove"


async def ready(shown, caller="owner", partner="partner", **secrets):
    """A page on which a creation is filled in."""
    token = shown.plaid.add_report()
    page = await shown.open(caller, report_token=token, **secrets)
    await shown.fill(secondary_client_id=partner)
    return page


async def verdict(shown):
    return await shown.page.locator("#answer .verdict").inner_text()


async def facts(shown):
    names = await shown.page.locator("#answer dt").all_inner_texts()
    return dict(zip(names, await shown.page.locator("#answer dd").all_inner_texts(), strict=True))


async def test_a_call_is_answered(shown):
    """A creation is sent as filled in; the answer is shown with its status, time and request id."""
    await ready(shown)
    await shown.fill(webhook="https://lender.example/relay")
    assert await shown.send() == "Created"
    [entry] = shown.plaid.ledger
    assert entry["secondary_client_id"] == "partner"
    assert entry["client_id"] == "owner"
    told = await facts(shown)
    assert (told["Status"], told["Request id"]) == ("200", entry["request_id"])
    assert re.fullmatch(r"\d+ ms", told["Time"])
    assert await shown.page.locator("#said").inner_text() == (
        "Created. Status 200. Its token is among those in hand, below."
    )


async def test_a_token_of_an_answer_goes_into_the_next_call(shown):
    """The token of a creation is read, refreshed, and taken back, without being typed or shown."""
    page = await ready(shown)
    await shown.send()
    relay_token = shown.plaid.ledger[0]["relay_token"]
    hand = page.locator("#hand")
    assert relay_token not in await page.locator("body").inner_text()
    await page.locator("#key").fill(shown.keys["partner"])
    await hand.get_by_role("button", name="Read a shared report").click()
    assert await page.locator("#input-relay_token").input_value() == relay_token
    assert await shown.send() == "Read"
    assert '"report"' in await page.locator("#answer pre").inner_text()
    await hand.get_by_role("button", name="Refresh a shared report").click()
    assert await shown.send() == "Created"
    await page.locator("#key").fill(shown.keys["owner"])
    await hand.get_by_role("button", name="Stop sharing").click()
    assert await shown.send() == "Removed"
    assert shown.plaid.ledger[0]["removed"]
    assert not await hand.is_visible()


async def test_tokens_of_an_answer_are_hidden_until_asked_for(shown):
    """A token in an answer is dots at first, and can be shown; what is copied has it."""
    page = await ready(shown)
    await shown.send()
    relay_token = shown.plaid.ledger[0]["relay_token"]
    answer = page.locator("#answer pre")
    assert '"relay_token": "••••••••"' in await answer.inner_text()
    await page.get_by_role("button", name="Show tokens").click()
    assert relay_token in await answer.inner_text()
    await page.get_by_role("button", name="Show tokens").click()
    assert relay_token not in await answer.inner_text()
    await page.get_by_role("button", name="Copy answer").click()
    assert json.loads(await page.evaluate("navigator.clipboard.readText()"))["relay_token"] == relay_token


async def test_a_pdf_is_saved(shown):
    """A PDF is offered as a file, byte for byte, with its size."""
    page = await ready(shown)
    await shown.send()
    await page.locator("#key").fill(shown.keys["partner"])
    await page.locator("#hand").get_by_role("button", name="Shared report as PDF").click()
    assert await shown.send() == "Read"
    link = page.locator("#answer a")
    assert re.fullmatch(r"Save the PDF \([\d.]+ (bytes|kB)\)", await link.inner_text())
    async with page.expect_download() as saving:
        await link.click()
    content = await (await saving.value).path()
    assert content.read_bytes().startswith(b"%PDF-")
    assert content.read_bytes().rstrip().endswith(b"%%EOF")
    assert len((await facts(shown))["Request id"]) == 15


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


async def test_each_error_is_explained(shown):
    """Of each error the page says whether anything was done, and the way out; it is sent once and no more."""
    page = await ready(shown)
    for number, (fault, status, headline, way) in enumerate(ERRORS, 1):
        await shown.fill(secondary_client_id=f"partner-{number}")
        shown.plaid.fail(Fault(**fault, times=1))
        assert headline in await shown.send(), fault
        assert way in await verdict(shown), fault
        assert (await facts(shown))["Status"] == status, fault
        assert shown.plaid.counts[CREATE] == number, fault
        assert page.url == f"{shown.gateway.url}/"


async def test_an_answer_of_anything_is_shown(shown):
    """Names that every object has, and values of another type, are an answer like others: nothing breaks."""
    await ready(shown)
    for number, odd in enumerate(("constructor", "__proto__", "toString", 5, ["a,b"], {"a": '"'}, None)):
        await shown.fill(secondary_client_id=f"partner-{number}")
        body = dict.fromkeys(
            ("error_type", "error_code", "error_message", "suggested_action", "request_id"), odd
        )
        shown.plaid.fail(Fault(status=400, body=body, times=1))
        assert await shown.send() == "Not carried out", odd
        assert (await facts(shown))["Status"] == "400", odd


REFUSED = [
    # caller, its partner, status, what the page says
    ("wrong", "partner", "401", "doesn’t know this key"),
    ("bound", "somebody-else", "403", "may not share with that partner"),
    ("reader", "partner", "403", "isn’t for this operation"),
    ("lost", "partner", "403", "lacks the Plaid credentials"),
]


async def test_each_refusal_of_the_gateway_is_explained(shown):
    """What the gateway refuses by itself is told with the way out, and nothing reached Plaid."""
    page = await ready(shown)
    shown.keys["wrong"] = "plaid-gateway-unknown"
    for caller, partner, status, said in REFUSED:
        await page.locator("#key").fill(shown.keys[caller])
        await shown.fill(secondary_client_id=partner)
        assert await shown.send() == "Not carried out"
        assert said in await verdict(shown)
        assert (await facts(shown))["Status"] == status
    assert shown.plaid.counts[CREATE] == 0


async def test_the_gateways_own_rate_says_how_long_to_wait(shown):
    """A key whose rate is used up is told the seconds."""
    await ready(shown, "hasty")
    assert await shown.send() == "Created"
    await shown.fill(secondary_client_id="another")
    assert "later" in await shown.send()
    assert re.search(r"Wait \d+ s before the next call", await verdict(shown))


async def test_a_report_that_is_not_ready_is_to_be_asked_for_again(shown):
    """A read of a report that is still generated is told to be sent again in a moment."""
    await shown.open("partner", relay_token="credit-relay-sandbox-canary")
    shown.plaid.fail(Fault(status=400, body={"error_code": "PRODUCT_NOT_READY"}))
    await shown.choose(GET)
    assert await shown.send() == "Not carried out"
    assert "send again in a moment" in await verdict(shown)


LOST = [
    (GET, "Lost", "safe to send it again"),
    (REMOVE, "Nobody can tell", "safe to send it again"),
    (REFRESH, "Unknown", "A report may exist"),
]


async def test_what_a_lost_answer_means_depends_on_the_operation(shown):
    """A lost read or removal may be sent again; of a lost refresh nobody can tell."""
    await shown.open("owner", relay_token="credit-relay-sandbox-canary")
    shown.plaid.fail(Fault(status=500))
    for path, headline, said in LOST:
        await shown.choose(path)
        assert headline in await shown.send()
        assert said in await verdict(shown)


async def test_a_token_in_an_answer_that_broke_off_is_kept(consoles):
    """An answer that breaks off behind its token has made one, which is in hand; the page says that it was cut."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    async with Recorder() as upstream, consoles(gateway={"upstream": upstream.url}) as shown:
        upstream.says = lambda _: [head + b'{"relay_token": "credit-relay-sandbox-canary",', b' "request_']
        upstream.then, upstream.pause = "close", 0.3
        page = await ready(shown)
        assert await shown.send() == "Created"
        assert "broke off, but the token had arrived" in await verdict(shown)
        assert await facts(shown) | {"Time": ""} == {"Status": "200", "Time": "", "Request id": "none"}
        hand = page.locator("#hand")
        await hand.get_by_role("button", name="Copy").click()
        await hand.get_by_text("Copied").wait_for()
        assert await page.evaluate("navigator.clipboard.readText()") == "credit-relay-sandbox-canary"
        assert len(upstream.requests) == 1


async def test_no_answer_at_all_is_unknown(shown):
    """Where the gateway has gone, the browser can't tell what left; a creation is unknown, and isn't repeated."""
    await ready(shown)
    await shown.gateway.close()
    assert "Unknown" in await shown.send()
    assert "No answer came" in await verdict(shown)
    assert await facts(shown) | {"Time": ""} == {"Status": "none", "Time": "", "Request id": "none"}


async def test_an_unknown_creation_is_not_sent_again_unasked(shown):
    """After an unknown outcome the same creation is sent once more only if somebody says so; another isn't asked about."""
    page = await ready(shown)
    shown.plaid.fail(Fault(status=500, when="after", times=1))
    assert "Unknown" in await shown.send()
    await page.locator("#send").click()
    dialog = page.get_by_role("dialog")
    assert "may make a second one" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Don’t").click()
    assert shown.plaid.counts[CREATE] == 1
    await page.locator("#send").click()
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="hidden")
    assert shown.plaid.counts[CREATE] == 1
    await page.locator("#send").click()
    await dialog.get_by_role("button", name="Send again").click()
    await page.locator("#answer .title", has_text="Created").wait_for()
    assert shown.plaid.counts[CREATE] == 2
    await page.locator("#send").click()
    assert "has made a relay token on this page already" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Don’t").click()
    await shown.fill(secondary_client_id="another")
    assert await shown.send() == "Created"


async def test_nothing_is_sent_while_something_is_wrong(shown):
    """Send names what is wrong, leads there, and sends nothing; nobody is scolded before."""
    page = await shown.open(None)
    assert await page.locator(".wrong:visible").count() == 0
    await page.locator("#send").click()
    assert await page.evaluate("document.activeElement.id") == "key"
    await page.locator("#key").fill("a key")
    assert "has a space" in await page.locator("#key-wrong").inner_text()
    await page.locator("#key").fill(shown.keys["owner"])
    await shown.fill(webhook="ftp://x")
    assert "must be an http(s) URL" in await page.locator("#input-webhook-wrong").inner_text()
    await page.locator("#send").click()
    assert await page.evaluate("document.activeElement.id") == "input-report_tokens"
    told = await page.locator("#said").inner_text()
    assert told == "Not sent: correct report_tokens, secondary_client_id, webhook"
    assert await page.locator("#input-webhook").get_attribute("aria-invalid") == "true"
    assert not shown.plaid.requests


async def test_numbers_of_an_answer_stay_as_they_came(modules):
    """An answer is laid out without a change to any number or string in it: money is decimal."""
    raw = r'{"a":[1.10,-0.0,1e400,123456789012345678901,"x{,}:\" ",{},[]],"b":{"c":null,"d":true}}'
    laid = await modules.evaluate("(raw) => import('/console/render.js').then((m) => m.laidOut(raw))", raw)
    assert laid.splitlines()[:3] == ["{", '  "a": [', "    1.10,"]
    assert json.loads(laid, parse_float=str, parse_int=str) == json.loads(raw, parse_float=str, parse_int=str)


async def test_of_a_big_report_the_beginning_is_shown(shown):
    """A report of megabytes doesn't hold the page up: its beginning is shown, and all of it can be saved."""
    token = shown.plaid.add_report(transactions=5_000, days=365)
    page = await shown.open("owner", report_token=token)
    await shown.choose("/asset_report/get")
    assert await shown.send() == "Read"
    assert len(await page.locator("#answer pre").inner_text()) < 110_000
    async with page.expect_download() as saving:
        await page.get_by_role("button", name=re.compile(r"Save answer \([\d.]+ MB\)")).click()
    whole = json.loads((await (await saving.value).path()).read_text(encoding="utf-8"))
    assert sum(len(account["transactions"]) for account in whole["report"]["items"][0]["accounts"]) == 5_000


async def test_a_whole_sandbox_run_works_by_hand(shown):
    """From a test Item to a report that is shared: each token goes into the next call by a button."""
    page = await shown.open("owner")
    hand = page.locator("#hand")
    await shown.choose("/sandbox/public_token/create")
    assert await shown.send() == "Created"
    await hand.get_by_role("button", name="Exchange a public token").click()
    assert await shown.send() == "Created"
    await hand.get_by_role("button", name="Create a report").click()
    await shown.fill(days_requested="60")
    assert await shown.send() == "Created"
    await hand.get_by_role("button", name="Share a report", exact=True).click()
    await shown.fill(secondary_client_id="partner")
    assert await shown.send() == "Created"
    assert shown.plaid.ledger[0]["secondary_client_id"] == "partner"


async def test_leaving_with_a_token_in_hand_is_asked_about(shown):
    """A token that nobody has copied isn't lost by leaving without a question; one that was copied may be."""
    page = await ready(shown)
    asked = []

    async def stay(dialog):
        asked.append(dialog.type)
        await dialog.dismiss()

    page.on("dialog", stay)
    await shown.send()
    async with page.expect_event("dialog"):
        await page.evaluate("setTimeout(() => location.reload())")
    assert await page.locator("#hand").is_visible()
    await page.locator("#hand").get_by_role("button", name="Copy").click()
    await page.locator("#hand", has_text="Copied").wait_for()
    await page.reload()
    assert asked == ["beforeunload"]
    assert not await page.locator("#hand").is_visible()
