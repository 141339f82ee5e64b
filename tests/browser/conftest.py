"""A browser, and the console of a real gateway to a simulator.

Without a browser the tests are skipped; if CI is set, they fail instead.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from attrs import define, field
from playwright.async_api import Page, async_playwright

from plaid_relay_async import Credentials
from plaid_relay_async.gateway import ALL_OPERATIONS, Gateway
from plaid_relay_async.gateway.keys import new_key
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from playwright.async_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CREDENTIALS = {
    "default": Credentials("owner", "canary-secret-of-the-owner"),
    "partner": Credentials("partner", "canary-secret-of-the-partner"),
}
CALLERS: dict[str, dict[str, Any]] = {
    "owner": {"operations": ALL_OPERATIONS},
    "partner": {"credentials": "partner", "operations": ALL_OPERATIONS},
    "bound": {"partners": ["partner"]},
    "reader": {"operations": ["/credit/relay/get"]},
    "lost": {"credentials": "nowhere"},
    "hasty": {"rate": RateLimit(1, 3600)},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", help="a folder for the screenshots of the documentation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all of these tests in one event loop: a browser belongs to the loop that started it."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and isinstance(item, pytest.Function):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@define(eq=False)
class Console:
    """A page of a gateway's console, with its environment.

    Attributes:
        page: the browser's page.
        plaid: the simulator that the gateway forwards to.
        gateway: serves the page.
        keys: the gateway's caller keys, by name.
        problems: errors that the browser reported, and requests to other servers; must stay empty.
    """

    page: Page
    plaid: Simulator
    gateway: Gateway
    keys: dict[str, str]
    problems: list[str] = field(factory=list)

    async def open(self, caller: str | None = "owner", **secrets: str) -> Page:
        """Open the page, by a link with a one-time code for a key and tokens."""
        values = ({} if caller is None else {"key": self.keys[caller]}) | secrets
        await self.page.goto("about:blank")
        await self.page.goto(self.gateway.console_link(**values) if values else self.gateway.url)
        await self.page.locator("#loading").wait_for(state="hidden")
        return self.page

    async def choose_operation(self, path: str) -> None:
        """Select an operation, or `many`."""
        await self.page.locator(f'#operations button[data-path="{path}"]').click()

    async def fill(self, **inputs: str) -> None:
        for name, value in inputs.items():
            await self.page.locator(f"#input-{name}").fill(value)

    async def send_request(self) -> str:
        """Send the request, and return the title of the result."""
        await self.page.locator("#send").click()
        await self.page.locator("#sending").wait_for(state="hidden")
        return await self.page.locator("#response .title").inner_text()

    async def code_text(self, language: str) -> str:
        """Return the code in a language."""
        await self.page.locator(f"#tab-{language}").click()
        return await self.page.locator("#code").text_content() or ""

    def record_problems(self) -> None:
        """Record browser errors and requests to other servers."""

        def record_message(message: Any) -> None:
            # A browser logs each error response, which the tests cause deliberately.
            if not (message.type == "error" and message.text.startswith("Failed to load resource")):
                self.problems.append(f"{message.type}: {message.text}")

        def record_request(request: Any) -> None:
            if not request.url.startswith((self.gateway.url, "data:", "blob:", "about:")):
                self.problems.append(f"request to {request.url}")

        self.page.on("console", record_message)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", record_request)


def _browser_executable() -> str:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"needs a browser: one of {', '.join(BROWSERS)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        # Chromium's sandbox needs privileges that a container seldom has. Only the package's page is loaded.
        launched = await playwright.chromium.launch(
            executable_path=_browser_executable(), args=["--no-sandbox"]
        )
        yield launched
        await launched.close()


@contextlib.asynccontextmanager
async def running_console(
    browser: Browser, *, gateway: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Console]:
    """Run a console in a new browser context, with options for its gateway and the context."""
    created = {name: new_key(name, **bound) for name, bound in CALLERS.items()}
    async with (
        Simulator(clients={each.client_id: each.secret for each in CREDENTIALS.values()}) as plaid,
        Gateway(
            [key for key, _ in created.values()],
            **{"upstream": plaid.url, "credentials": CREDENTIALS, "operations": ALL_OPERATIONS, "drain": 1}
            | (gateway or {}),
        ) as running,
        await browser.new_context(**{"viewport": {"width": 1360, "height": 900}} | options) as context,
    ):
        await context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(10_000)
        console = Console(
            await context.new_page(), plaid, running, {name: key for name, (_, key) in created.items()}
        )
        console.record_problems()
        yield console
        assert console.problems == []


@pytest.fixture
def open_console(browser: Browser) -> Callable[..., contextlib.AbstractAsyncContextManager[Console]]:
    """A function that runs a console; see `running_console`."""
    return partial(running_console, browser)


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def module_page(browser: Browser) -> AsyncIterator[Page]:
    """A page in which JavaScript modules can be imported and tested without the UI; all tests share it."""
    async with running_console(browser) as opened:
        yield await opened.open()


@pytest_asyncio.fixture(loop_scope="session")
async def console(browser: Browser) -> AsyncIterator[Console]:
    """A console on a wide screen."""
    async with running_console(browser) as opened:
        yield opened
