"""The page as a whole: what it keeps, whom it talks to, and whether everybody can use it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from PIL import Image

from plaid_relay_async.gateway import ALL_OPERATIONS, RELAY_OPERATIONS
from plaid_relay_async.simulator import Fault

CANARY = "canary"
PHONE = {"width": 320, "height": 640}
RULES = {
    "resultTypes": ["violations"],
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}


async def kept(page):
    """All that the browser keeps of the page."""
    everything = await page.context.storage_state(indexed_db=True)
    local = {item["name"]: item["value"] for each in everything["origins"] for item in each["localStorage"]}
    databases = [name for each in everything["origins"] for name in each.get("indexedDB", [])]
    session = await page.evaluate("Object.fromEntries(Object.entries(sessionStorage))")
    caches = await page.evaluate("caches.keys()")
    assert (everything["cookies"], databases, caches) == ([], [], [])
    return local, session


async def use_it_all(shown):
    """A session with canaries in every field that takes a secret, calls and a run included."""
    shown.plaid.add_report("assets-sandbox-canary-report")
    page = await shown.open(
        "owner", report_token="assets-sandbox-canary-report", relay_token="credit-relay-sandbox-canary-relay"
    )
    await shown.fill(secondary_client_id="partner", webhook="https://lender.example/relay")
    await shown.send()
    for path in ALL_OPERATIONS:
        await shown.choose(path)
        for field in await page.locator("#inputs input.masked, #inputs textarea.masked").all():
            await field.fill(f"access-sandbox-canary-{path[-3:]}")
        await shown.code("curl")
    await shown.choose("/credit/relay/get")
    await shown.fill(relay_token="credit-relay-sandbox-canary-relay")
    await shown.send()
    await shown.choose("many")
    await page.locator("#many-token").fill("assets-sandbox-canary-report")
    await page.locator("#partners").fill("one\ntwo\n")
    await page.locator("#many-run").click()
    await page.locator("#many-download:enabled").wait_for()
    return page


async def test_the_browser_keeps_plain_inputs_and_nothing_else(shown):
    """Of a session with secrets in every field, storage has the plain inputs alone, and a reload brings those back."""
    page = await use_it_all(shown)
    page.on("dialog", lambda dialog: dialog.accept())
    local, session = await kept(page)
    assert session == {}
    assert list(local) == ["plaid-relay-console"]
    plain = json.loads(local["plaid-relay-console"])
    assert plain["path"] == "many"
    assert plain["language"] == "curl"
    assert plain["inputs"]["/credit/relay/create"] == {
        "secondary_client_id": "partner",
        "webhook": "https://lender.example/relay",
    }
    for secret in (CANARY, "plaid-gateway", shown.plaid.ledger[0]["relay_token"]):
        assert secret not in local["plaid-relay-console"]
    assert page.url == f"{shown.gateway.url}/"
    await page.reload()
    await shown.choose("/credit/relay/create")
    assert await page.locator("#input-secondary_client_id").input_value() == "partner"
    for field in ("key", "input-report_tokens"):
        assert await page.locator(f"#{field}").input_value() == ""
    assert CANARY not in await page.content()


async def test_a_token_in_the_wrong_field_is_not_kept(shown):
    """What looks like a token or a key is kept from storage and code, whatever field it is in, and where in it."""
    page = await shown.open()
    for wrong in ("credit-relay-sandbox-canary", "plaid-gateway-canary", " access-production-canary"):
        await shown.fill(secondary_client_id=wrong)
        assert CANARY not in json.dumps(await kept(page))
    await shown.fill(webhook="https://lender.example/?token=assets-sandbox-canary")
    await shown.choose("/asset_report/filter")
    await shown.fill(account_ids_to_exclude="account-1\naccess-sandbox-canary")
    assert CANARY not in json.dumps(await kept(page))
    for path in ("/asset_report/filter", "/credit/relay/create"):
        await shown.choose(path)
        for language in ("python", "bulk", "curl", "typescript"):
            assert CANARY not in await shown.code(language)


async def test_the_key_is_remembered_only_if_asked_for(shown):
    """With its box ticked the key outlives a reload, in this tab alone; without it is forgotten."""
    page = await shown.open("owner")
    await page.locator("#remember").check()
    await page.reload()
    assert await page.locator("#key").input_value() == shown.keys["owner"]
    assert await page.locator("#remember").is_checked()
    local, session = await kept(page)
    assert shown.keys["owner"] not in json.dumps(local)
    assert list(session.values()) == [shown.keys["owner"]]
    await page.locator("#remember").uncheck()
    assert (await kept(page))[1] == {}
    await page.reload()
    assert await page.locator("#key").input_value() == ""


async def test_a_link_with_a_one_time_code_fills_the_form_in(shown):
    """No address that the browser sees has the key or a token, and a code works once, also in an open page."""
    addresses = []
    shown.page.on("framenavigated", lambda frame: addresses.append(frame.url))
    page = await shown.open("owner", report_token="assets-sandbox-canary-1")
    assert page.url == f"{shown.gateway.url}/"
    assert await page.locator("#key").input_value() == shown.keys["owner"]
    assert await page.locator("#input-report_tokens").input_value() == "assets-sandbox-canary-1"
    link = shown.gateway.console_link(relay_token="credit-relay-sandbox-canary-2")
    await page.evaluate("(hash) => (location.hash = hash)", link.partition("#")[2])
    await shown.choose("/credit/relay/get")
    await page.wait_for_function("document.getElementById('input-relay_token').value.endsWith('canary-2')")
    assert page.url == f"{shown.gateway.url}/"
    await page.evaluate("(hash) => (location.hash = hash)", link.partition("#")[2])
    await page.locator("#key-wrong").wait_for()
    assert "was used before or has expired" in await page.locator("#key-wrong").inner_text()
    assert await page.locator("#key").input_value() == shown.keys["owner"]
    for address in addresses:
        assert CANARY not in address
        assert shown.keys["owner"] not in address
    assert any("#code=" in address for address in addresses)


async def test_a_key_in_the_address_is_not_taken(shown):
    """An address with a key or a token in it is no longer a way to fill the form in."""
    page = await shown.open(None)
    await page.goto("about:blank")
    await page.goto(f"{shown.gateway.url}/#key={shown.keys['owner']}&report_token=assets-sandbox-canary-1")
    await page.locator("#start").wait_for(state="hidden")
    assert await page.locator("#key").input_value() == ""
    assert await page.locator("#input-report_tokens").input_value() == ""


@pytest.mark.parametrize("link", ["#code=", "#code=wrong", "#code=%22%5C"])
async def test_a_link_that_is_not_valid(shown, link):
    """The page works without it, and says what to do."""
    page = await shown.open(None)
    await page.goto("about:blank")
    await page.goto(f"{shown.gateway.url}/{link}")
    await page.locator("#start").wait_for(state="hidden")
    assert "was used before or has expired" in await page.locator("#key-wrong").inner_text()
    assert await page.locator("#title").inner_text() == "Share a report"


async def test_a_link_to_a_gateway_that_has_gone(shown):
    """An exchange that fails on the way is told as a code that isn't valid."""
    page = await shown.open(None)
    await page.route("**/console/handover.json", lambda route: route.abort())
    await page.evaluate("location.hash = 'code=x'")
    await page.locator("#key-wrong").wait_for()


async def test_the_page_shows_what_its_gateway_serves(consoles):
    """The page has the operations that its gateway serves, and says where calls go."""
    async with consoles(
        gateway={"upstream": None, "operations": ["/credit/relay/get", "/item/remove"]}
    ) as shown:
        page = await shown.open()
        names = await page.locator("#operations button").all_inner_texts()
        assert names == ["Read a shared report", "Remove an Item"]
        assert await page.locator("#environment").inner_text() == "Sandbox"
    async with consoles() as shown:
        page = await shown.open()
        assert await page.locator("#environment").inner_text() == "Not Plaid itself"
    async with consoles(
        gateway={"upstream": "https://production.plaid.com", "operations": RELAY_OPERATIONS}
    ) as shown:
        page = await shown.open()
        assert await page.locator("#operations button").count() == 6
        assert await page.locator("#environment").inner_text() == "Production"
        assert await page.locator("#send").inner_text() == "Send to production"


async def test_storage_that_holds_rubbish_is_passed_over(shown):
    """What another page or an older one left in storage doesn't keep the page from working."""
    page = await shown.open()
    for rubbish in (
        "{",
        "null",
        "[]",
        "5",
        '"text"',
        '{"path": 5, "inputs": {"/credit/relay/create": 7}, "language": "x", "address": {}}',
        '{"path": {}, "inputs": null, "language": ["python"], "address": 5}',
        '{"inputs": {"/credit/relay/create": {"secondary_client_id": true, "webhook": {}, "unknown": "x"}}}',
        '{"inputs": {"/credit/relay/create": {"secondary_client_id": 5, "webhook": ["x"]}}, "address": "%"}',
        '{"inputs": {"__proto__": {"webhook": true}}, "path": "constructor", "language": "toString"}',
    ):
        await page.evaluate("(text) => localStorage.setItem('plaid-relay-console', text)", rubbish)
        await page.reload()
        await page.locator("#start").wait_for(state="hidden")
        assert await page.locator("#title").inner_text() == "Share a report"
        assert "RelayClient" in await page.locator("#code").inner_text()


async def test_the_page_allows_nothing_from_elsewhere(shown):
    """The policy lets neither a script in the page run, nor anything be sent to another origin."""
    page = await shown.open()
    response = await page.request.get(f"{shown.gateway.url}/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    tried = await page.evaluate(
        """async () => {
          const script = document.createElement('script');
          script.textContent = 'window.ran = true';
          document.body.append(script);
          const sent = await fetch('http://127.0.0.1:9/', { mode: 'no-cors' }).then(() => true, () => false);
          return [window.ran, sent];
        }"""
    )
    assert tried == [None, False]
    assert len(shown.trouble) >= 2  # the browser says so
    shown.trouble.clear()


async def test_data_is_never_read_as_html(shown):
    """Markup in an input, in a list and in an answer is shown as text."""
    markup = "<img/src=x/onerror=alert(1)>"
    page = await shown.open("owner", report_token=shown.plaid.add_report())
    await shown.fill(secondary_client_id=markup)
    shown.plaid.fail(Fault(status=400, body={"error_code": markup, "error_message": markup}, times=1))
    await shown.send()
    await shown.choose("many")
    await page.locator("#partners").fill(f"p{markup}\np{markup}\np{markup} x\n")
    await page.locator("#leave-out").check()
    await page.locator("#many-run").click()
    await page.locator("#many-download:enabled").wait_for()
    assert markup in await page.locator("#rows").inner_text()
    assert await page.locator("img").count() == 0
    shown.plaid.add_report()
    async with page.expect_download():
        await page.locator("#many-download").click()


# ---------------------------------------------------------------------------------------- for everybody


async def states(shown):
    """Lead the page through its states, and stop at each."""
    page = await shown.open(None)
    yield "empty"
    await page.locator("#send").click()
    yield "nothing filled in"
    token = shown.plaid.add_report()
    await shown.open("owner", report_token=token)
    await shown.fill(secondary_client_id="partner", webhook="https://lender.example/relay")
    for language in ("bulk", "curl", "typescript"):
        await page.locator(f"#tab-{language}").click()
        yield language
    await page.locator("#tab-python").click()
    await shown.send()
    yield "made"
    shown.plaid.fail(Fault(status=500, times=1), Fault(status=429, headers={"Retry-After": "3"}, times=1))
    await shown.fill(secondary_client_id="another")
    await shown.send()
    yield "unknown"
    await page.locator("#send").click()
    yield "asked"
    await page.keyboard.press("Escape")
    await shown.fill(secondary_client_id="a third")
    yield "wrong"
    await shown.fill(secondary_client_id="third")
    await shown.send()
    yield "later"
    for path in ("/asset_report/create", "/asset_report/get", "/item/remove"):
        await shown.choose(path)
        yield path
    await shown.choose("many")
    yield "many"
    shown.plaid.fail(
        Fault(secondary_client_id="partner-3", status=400), Fault(secondary_client_id="partner-5", status=500)
    )
    await page.locator("#partners").fill("".join(f"partner-{number}\n" for number in range(120)) + "a b\n")
    await page.locator("#partners").blur()
    await page.locator("#partners-count", has_text="120").wait_for()
    yield "lines to mend"
    await page.locator("#leave-out").check()
    await page.locator("#many-run").click()
    yield "running"
    await page.locator("#many-download:enabled").wait_for()
    yield "run"


async def violations(page):
    """What axe finds; it is brought into a page once."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(Axe().axe_script)
    return await page.evaluate("(rules) => axe.run(rules).then((found) => found.violations)", RULES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "options",
    [{}, {"viewport": PHONE, "color_scheme": "dark"}],
    ids=["light", "dark on a phone"],
)
async def test_nobody_is_shut_out(consoles, options):
    """In every state, in light and in dark on a phone, axe finds nothing, and nothing is too wide."""
    async with consoles(**options) as shown:
        async for state in states(shown):
            assert await violations(shown.page) == [], state
            wide = await shown.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, state


async def test_a_call_can_be_made_by_keyboard_alone(shown):
    """From the top of the page: the skip link, the fields in their order, Enter to send, the tabs by arrows."""
    token = shown.plaid.add_report()
    page = await shown.open("owner", report_token=token)
    focused = "document.activeElement.id || document.activeElement.textContent"
    await page.keyboard.press("Tab")
    assert await page.evaluate(focused) == "Skip to the call"
    await page.keyboard.press("Enter")
    order = []
    for _ in range(9):
        await page.keyboard.press("Tab")
        order.append(await page.evaluate(focused))
        if order[-1] == "input-secondary_client_id":
            await page.keyboard.type("partner")
    assert order == [
        *(
            "Plaid’s page",
            "input-report_tokens",
            "Show",
            "input-secondary_client_id",
            "input-webhook",
            "send",
        ),
        *("copy", "tab-python", "code-panel"),
    ]
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("ArrowLeft")
    assert await page.evaluate(focused) == "tab-typescript"
    assert await page.locator("#tab-typescript").get_attribute("aria-selected") == "true"
    await page.keyboard.press("ArrowRight")
    assert await page.evaluate(focused) == "tab-python"
    await page.locator("#input-secondary_client_id").press("Enter")
    await page.locator("#answer .title", has_text="Created").wait_for()
    outline = await page.evaluate(
        "(document.querySelector('#copy').focus({ focusVisible: true }), getComputedStyle(document.querySelector('#copy')).outlineWidth)"
    )
    assert outline == "3px"


async def test_the_wheel_has_the_page(shown):
    """All files that the page asks for come from the package, with their types."""
    page = await shown.open()
    asked = await page.evaluate(
        "performance.getEntriesByType('resource').map((each) => new URL(each.name).pathname)"
    )
    assert {"/console/console.css", "/console/app.js", "/console/operations.js"} <= set(asked)
    types = {"js": "text/javascript", "css": "text/css", "json": "application/json"}
    for path in asked:
        response = await page.request.get(shown.gateway.url + path)
        assert response.headers["content-type"].startswith(types[path.rpartition(".")[2]])


# ------------------------------------------------------------------------------------------ screenshots


@pytest.mark.timeout(120)
async def test_the_screenshots_of_the_documents(consoles, request):
    """With --screenshots FOLDER, the pictures of the documents are taken anew."""
    folder = request.config.getoption("--screenshots", None)
    if folder is None:
        pytest.skip("needs --screenshots FOLDER, where the documents' pictures go")
    relay = {"operations": RELAY_OPERATIONS}
    async with consoles(gateway=relay, viewport={"width": 1240, "height": 850}) as shown:
        page = await shown.open("owner", report_token=shown.plaid.add_report())
        await page.locator("#address").fill("https://relay.lender.example")
        await shown.fill(secondary_client_id="ce5bd328dcd34123456", webhook="https://lender.example/relay")
        await page.locator("#send").focus()
        await picture(shown, folder, "console-call")
        shown.plaid.fail(Fault(status=500, when="after", times=1))
        await shown.send()
        await page.set_viewport_size({"width": 1240, "height": 1400})
        await picture(shown, folder, "console-unknown", "#answer")
    async with consoles(
        gateway=relay, viewport={"width": 1240, "height": 1330}, color_scheme="dark"
    ) as shown:
        for number in (2, 9, 33):
            shown.plaid.fail(Fault(secondary_client_id=f"partner-{number:03}", status=400))
        lost = Fault(secondary_client_id="partner-004", status=500, when="after")
        shown.plaid.fail(lost, Fault(latency=0.05))
        page = await shown.open("owner", report_token=shown.plaid.add_report())
        await shown.choose("many")
        await page.locator("#partners").fill("".join(f"partner-{number:03}\n" for number in range(120)))
        await page.locator("#many-run").click()
        while await page.evaluate("document.querySelector('#bar').value") < 80:
            await page.wait_for_timeout(20)
        await picture(shown, folder, "console-many")
        await page.locator("#many-download:enabled").wait_for()


async def picture(shown, folder, name, part="body"):
    """Save a picture, small, and the same each time but for what the simulator draws by lot."""
    await shown.page.evaluate(
        """() => {
          document.querySelector('#own').textContent = 'http://127.0.0.1:8080';
          const field = document.querySelector('#address');
          if (field.value === location.origin) field.value = 'http://127.0.0.1:8080';
        }"""
    )
    taken = await (shown.page.screenshot() if part == "body" else shown.page.locator(part).screenshot())
    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(taken)) as image:
        image.convert("RGB").quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)
