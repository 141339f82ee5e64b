"""The page: what it stores, which servers it contacts, and accessibility."""

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


async def stored(page):
    """Return all that the browser stores for the page."""
    state = await page.context.storage_state(indexed_db=True)
    local = {item["name"]: item["value"] for each in state["origins"] for item in each["localStorage"]}
    databases = [name for each in state["origins"] for name in each.get("indexedDB", [])]
    session = await page.evaluate("Object.fromEntries(Object.entries(sessionStorage))")
    caches = await page.evaluate("caches.keys()")
    assert (state["cookies"], databases, caches) == ([], [], [])
    return local, session


async def use_all_features(console):
    """Enter planted secrets into every field for a secret, make calls, and run a batch."""
    console.plaid.add_report("assets-sandbox-canary-report")
    page = await console.open(
        "owner", report_token="assets-sandbox-canary-report", relay_token="credit-relay-sandbox-canary-relay"
    )
    await console.fill(secondary_client_id="partner", webhook="https://lender.example/relay")
    await console.send_request()
    for path in ALL_OPERATIONS:
        await console.choose_operation(path)
        for field in await page.locator("#inputs input.masked, #inputs textarea.masked").all():
            await field.fill(f"access-sandbox-canary-{path[-3:]}")
        await console.code_text("curl")
    await console.choose_operation("/credit/relay/get")
    await console.fill(relay_token="credit-relay-sandbox-canary-relay")
    await console.send_request()
    await console.choose_operation("many")
    await page.locator("#many-token").fill("assets-sandbox-canary-report")
    await page.locator("#partners").fill("one\ntwo\n")
    await page.locator("#many-run").click()
    await page.locator("#many-download:enabled").wait_for()
    return page


async def test_the_browser_stores_only_inputs_without_secrets(console):
    """After a session with secrets in every field, storage contains only other inputs, which a reload restores."""
    page = await use_all_features(console)
    page.on("dialog", lambda dialog: dialog.accept())
    local, session = await stored(page)
    assert session == {}
    assert list(local) == ["plaid-relay-console"]
    plain = json.loads(local["plaid-relay-console"])
    assert plain["path"] == "many"
    assert plain["language"] == "curl"
    assert plain["inputs"]["/credit/relay/create"] == {
        "secondary_client_id": "partner",
        "webhook": "https://lender.example/relay",
    }
    for secret in (CANARY, "plaid-gateway", console.plaid.ledger[0]["relay_token"]):
        assert secret not in local["plaid-relay-console"]
    assert page.url == f"{console.gateway.url}/"
    await page.reload()
    await console.choose_operation("/credit/relay/create")
    assert await page.locator("#input-secondary_client_id").input_value() == "partner"
    for field in ("key", "input-report_tokens"):
        assert await page.locator(f"#{field}").input_value() == ""
    assert CANARY not in await page.content()


async def test_a_token_in_another_field_is_not_stored(console):
    """What looks like a token or a key isn't stored or put into the code, whatever field contains it."""
    page = await console.open()
    for text in ("credit-relay-sandbox-canary", "plaid-gateway-canary", " access-production-canary"):
        await console.fill(secondary_client_id=text)
        assert CANARY not in json.dumps(await stored(page))
    await console.fill(webhook="https://lender.example/?token=assets-sandbox-canary")
    await console.choose_operation("/asset_report/filter")
    await console.fill(account_ids_to_exclude="account-1\naccess-sandbox-canary")
    assert CANARY not in json.dumps(await stored(page))
    for path in ("/asset_report/filter", "/credit/relay/create"):
        await console.choose_operation(path)
        for language in ("python", "bulk", "curl", "typescript"):
            assert CANARY not in await console.code_text(language)


async def test_the_key_is_stored_only_on_request(console):
    """With the box ticked, the key outlives a reload in this tab only; otherwise it is forgotten."""
    page = await console.open("owner")
    await page.locator("#remember").check()
    await page.reload()
    assert await page.locator("#key").input_value() == console.keys["owner"]
    assert await page.locator("#remember").is_checked()
    local, session = await stored(page)
    assert console.keys["owner"] not in json.dumps(local)
    assert list(session.values()) == [console.keys["owner"]]
    await page.locator("#remember").uncheck()
    assert (await stored(page))[1] == {}
    await page.reload()
    assert await page.locator("#key").input_value() == ""


async def test_a_link_with_a_one_time_code_fills_in_the_form(console):
    """No address contains the key or a token, and a code works once, also in an open page."""
    addresses = []
    console.page.on("framenavigated", lambda frame: addresses.append(frame.url))
    page = await console.open("owner", report_token="assets-sandbox-canary-1")
    assert page.url == f"{console.gateway.url}/"
    assert await page.locator("#key").input_value() == console.keys["owner"]
    assert await page.locator("#input-report_tokens").input_value() == "assets-sandbox-canary-1"
    link = console.gateway.console_link(relay_token="credit-relay-sandbox-canary-2")
    await page.evaluate("(hash) => (location.hash = hash)", link.partition("#")[2])
    await console.choose_operation("/credit/relay/get")
    await page.wait_for_function("document.getElementById('input-relay_token').value.endsWith('canary-2')")
    assert page.url == f"{console.gateway.url}/"
    await page.evaluate("(hash) => (location.hash = hash)", link.partition("#")[2])
    await page.locator("#key-error").wait_for()
    assert "was used before or has expired" in await page.locator("#key-error").inner_text()
    assert await page.locator("#key").input_value() == console.keys["owner"]
    for address in addresses:
        assert CANARY not in address
        assert console.keys["owner"] not in address
    assert any("#code=" in address for address in addresses)


async def test_a_key_in_the_address_is_ignored(console):
    """An address can't fill in a key or a token directly."""
    page = await console.open(None)
    await page.goto("about:blank")
    await page.goto(
        f"{console.gateway.url}/#key={console.keys['owner']}&report_token=assets-sandbox-canary-1"
    )
    await page.locator("#loading").wait_for(state="hidden")
    assert await page.locator("#key").input_value() == ""
    assert await page.locator("#input-report_tokens").input_value() == ""


@pytest.mark.parametrize("link", ["#code=", "#code=wrong", "#code=%22%5C"])
async def test_an_invalid_link(console, link):
    """The page works without it, and says what to do."""
    page = await console.open(None)
    await page.goto("about:blank")
    await page.goto(f"{console.gateway.url}/{link}")
    await page.locator("#loading").wait_for(state="hidden")
    assert "was used before or has expired" in await page.locator("#key-error").inner_text()
    assert await page.locator("#title").inner_text() == "Share a report"


async def test_a_failed_exchange(console):
    """An exchange that fails is reported as an invalid code."""
    page = await console.open(None)
    await page.route("**/console/handover.json", lambda route: route.abort())
    await page.evaluate("location.hash = 'code=x'")
    await page.locator("#key-error").wait_for()


async def test_the_page_shows_what_its_gateway_serves(open_console):
    """The page has the operations that its gateway serves, and says where calls go."""
    async with open_console(
        gateway={"upstream": None, "operations": ["/credit/relay/get", "/item/remove"]}
    ) as console:
        page = await console.open()
        names = await page.locator("#operations button").all_inner_texts()
        assert names == ["Read a shared report", "Remove an Item"]
        assert await page.locator("#environment").inner_text() == "Sandbox"
    async with open_console() as console:
        page = await console.open()
        assert await page.locator("#environment").inner_text() == "Not Plaid"
    async with open_console(
        gateway={"upstream": "https://production.plaid.com", "operations": RELAY_OPERATIONS}
    ) as console:
        page = await console.open()
        assert await page.locator("#operations button").count() == 6
        assert await page.locator("#environment").inner_text() == "Production"
        assert await page.locator("#send").inner_text() == "Send to production"


async def test_invalid_storage_is_ignored(console):
    """Values that another page or an older version stored don't break the page."""
    page = await console.open()
    for value in (
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
        await page.evaluate("(text) => localStorage.setItem('plaid-relay-console', text)", value)
        await page.reload()
        await page.locator("#loading").wait_for(state="hidden")
        assert await page.locator("#title").inner_text() == "Share a report"
        assert "RelayClient" in await page.locator("#code").inner_text()


async def test_the_policy_blocks_other_content(console):
    """Neither an inline script nor a request to another origin is allowed."""
    page = await console.open()
    response = await page.request.get(f"{console.gateway.url}/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    results = await page.evaluate(
        """async () => {
          const script = document.createElement('script');
          script.textContent = 'window.ran = true';
          document.body.append(script);
          const sent = await fetch('http://127.0.0.1:9/', { mode: 'no-cors' }).then(() => true, () => false);
          return [window.ran, sent];
        }"""
    )
    assert results == [None, False]
    assert len(console.problems) >= 2  # the browser reports both
    console.problems.clear()


async def test_data_is_never_parsed_as_html(console):
    """Markup in an input, a list or a response is shown as text."""
    markup = "<img/src=x/onerror=alert(1)>"
    page = await console.open("owner", report_token=console.plaid.add_report())
    await console.fill(secondary_client_id=markup)
    console.plaid.fail(Fault(status=400, body={"error_code": markup, "error_message": markup}, times=1))
    await console.send_request()
    await console.choose_operation("many")
    await page.locator("#partners").fill(f"p{markup}\np{markup}\np{markup} x\n")
    await page.locator("#leave-out").check()
    await page.locator("#many-run").click()
    await page.locator("#many-download:enabled").wait_for()
    assert markup in await page.locator("#rows").inner_text()
    assert await page.locator("img").count() == 0
    console.plaid.add_report()
    async with page.expect_download():
        await page.locator("#many-download").click()


# ---------------------------------------------------------------------------------------- accessibility


async def page_states(console):
    """Lead the page through its states, and yield the name of each."""
    page = await console.open(None)
    yield "empty"
    await page.locator("#send").click()
    yield "nothing filled in"
    token = console.plaid.add_report()
    await console.open("owner", report_token=token)
    await console.fill(secondary_client_id="partner", webhook="https://lender.example/relay")
    for language in ("bulk", "curl", "typescript"):
        await page.locator(f"#tab-{language}").click()
        yield language
    await page.locator("#tab-python").click()
    await console.send_request()
    yield "created"
    console.plaid.fail(Fault(status=500, times=1), Fault(status=429, headers={"Retry-After": "3"}, times=1))
    await console.fill(secondary_client_id="another")
    await console.send_request()
    yield "unknown"
    await page.locator("#send").click()
    yield "confirmation"
    await page.keyboard.press("Escape")
    await console.fill(secondary_client_id="a third")
    yield "invalid input"
    await console.fill(secondary_client_id="third")
    await console.send_request()
    yield "declined"
    for path in ("/asset_report/create", "/asset_report/get", "/item/remove"):
        await console.choose_operation(path)
        yield path
    await console.choose_operation("many")
    yield "many"
    console.plaid.fail(
        Fault(secondary_client_id="partner-3", status=400), Fault(secondary_client_id="partner-5", status=500)
    )
    await page.locator("#partners").fill("".join(f"partner-{number}\n" for number in range(120)) + "a b\n")
    await page.locator("#partners").blur()
    await page.locator("#partners-count", has_text="120").wait_for()
    yield "lines to correct"
    await page.locator("#leave-out").check()
    await page.locator("#many-run").click()
    yield "running"
    await page.locator("#many-download:enabled").wait_for()
    yield "run"


async def find_violations(page):
    """Return what axe reports."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(Axe().axe_script)
    return await page.evaluate("(rules) => axe.run(rules).then((results) => results.violations)", RULES)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "options",
    [{}, {"viewport": PHONE, "color_scheme": "dark"}],
    ids=["light", "dark on a phone"],
)
async def test_accessibility(open_console, options):
    """In every state, in light and on a dark phone, axe reports nothing, and nothing is wider than the screen."""
    async with open_console(**options) as console:
        async for state in page_states(console):
            assert await find_violations(console.page) == [], state
            overflow = await console.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, state


async def test_a_call_works_with_the_keyboard_only(console):
    """Tab follows the order of the page from the skip link, Enter sends, and arrows select tabs."""
    token = console.plaid.add_report()
    page = await console.open("owner", report_token=token)
    focused = "document.activeElement.id || document.activeElement.textContent"
    await page.keyboard.press("Tab")
    assert await page.evaluate(focused) == "Skip to the operation"
    await page.keyboard.press("Enter")
    focus_order = []
    for _ in range(9):
        await page.keyboard.press("Tab")
        focus_order.append(await page.evaluate(focused))
        if focus_order[-1] == "input-secondary_client_id":
            await page.keyboard.type("partner")
    assert focus_order == [
        *(
            "Plaid’s documentation",
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
    await page.locator("#response .title", has_text="Created").wait_for()
    outline = await page.evaluate(
        "(document.querySelector('#copy').focus({ focusVisible: true }), getComputedStyle(document.querySelector('#copy')).outlineWidth)"
    )
    assert outline == "3px"


async def test_the_package_contains_the_page(console):
    """All files that the page requests are in the package, and have the right type."""
    page = await console.open()
    paths = await page.evaluate(
        "performance.getEntriesByType('resource').map((each) => new URL(each.name).pathname)"
    )
    assert {"/console/console.css", "/console/app.js", "/console/operations.json"} <= set(paths)
    types = {"js": "text/javascript", "css": "text/css", "json": "application/json"}
    for path in paths:
        response = await page.request.get(console.gateway.url + path)
        assert response.headers["content-type"].startswith(types[path.rpartition(".")[2]])


# ------------------------------------------------------------------------------------------ screenshots


@pytest.mark.timeout(120)
async def test_take_screenshots(open_console, request):
    """With --screenshots FOLDER, save the screenshots of the documentation."""
    folder = request.config.getoption("--screenshots", None)
    if folder is None:
        pytest.skip("needs --screenshots FOLDER, the folder for the images")
    relay = {"operations": RELAY_OPERATIONS}
    async with open_console(gateway=relay, viewport={"width": 1240, "height": 850}) as console:
        page = await console.open("owner", report_token=console.plaid.add_report())
        await page.locator("#address").fill("https://relay.lender.example")
        await console.fill(secondary_client_id="ce5bd328dcd34123456", webhook="https://lender.example/relay")
        await page.locator("#send").focus()
        await save_screenshot(console, folder, "console-call")
        console.plaid.fail(Fault(status=500, when="after", times=1))
        await console.send_request()
        await page.set_viewport_size({"width": 1240, "height": 1400})
        await save_screenshot(console, folder, "console-unknown", "#response")
    async with open_console(
        gateway=relay, viewport={"width": 1240, "height": 1330}, color_scheme="dark"
    ) as console:
        for number in (2, 9, 33):
            console.plaid.fail(Fault(secondary_client_id=f"partner-{number:03}", status=400))
        unknown = Fault(secondary_client_id="partner-004", status=500, when="after")
        console.plaid.fail(unknown, Fault(latency=0.05))
        page = await console.open("owner", report_token=console.plaid.add_report())
        await console.choose_operation("many")
        await page.locator("#partners").fill("".join(f"partner-{number:03}\n" for number in range(120)))
        await page.locator("#many-run").click()
        while await page.evaluate("document.querySelector('#bar').value") < 80:
            await page.wait_for_timeout(20)
        await save_screenshot(console, folder, "console-many")
        await page.locator("#many-download:enabled").wait_for()


async def save_screenshot(console, folder, name, part="body"):
    """Save a small screenshot that is reproducible except for the simulator's random values."""
    await console.page.evaluate(
        """() => {
          document.querySelector('#own-address').textContent = 'http://127.0.0.1:8080';
          const field = document.querySelector('#address');
          if (field.value === location.origin) field.value = 'http://127.0.0.1:8080';
        }"""
    )
    image_bytes = await (
        console.page.screenshot() if part == "body" else console.page.locator(part).screenshot()
    )
    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(image_bytes)) as image:
        image.convert("RGB").quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)
