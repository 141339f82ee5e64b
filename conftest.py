"""Every Python example in README.md and docs/ is run, each page against a simulator of its own.

The blocks of a page share a namespace and an event loop, and may `await` at their top level as one may in
`python -m asyncio`. PLAID_CLIENT_ID, PLAID_SECRET and PLAID_BASE_URL lead to the page's simulator. What a
page needs and doesn't show stands in `<!-- invisible-code: python` blocks, which find that simulator as
`page.plaid`.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
from attrs import frozen
from processes import reset_signals
from sybil import Sybil
from sybil.evaluators.python import pad
from sybil.parsers.myst import CodeBlockParser

from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any

    from sybil import Example


@frozen
class Page:
    """What the examples of one page share beside their namespace."""

    plaid: Simulator
    runner: asyncio.Runner


@pytest.fixture(scope="session", autouse=True)
def _reset_signals() -> None:
    """Let tests, and the servers that they share, start with no signal ignored or blocked."""
    reset_signals()


@contextlib.contextmanager
def _simulator_in_thread() -> Iterator[Simulator]:
    """A running simulator with an event loop of its own: an example may hold the main thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="simulator")
    thread.start()

    def there(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(timeout=60)

    simulator = Simulator()
    try:
        there(simulator.start())
        try:
            yield simulator
        finally:
            there(simulator.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A simulator and an event loop for one page, and the environment that leads to the simulator."""
    with _simulator_in_thread() as plaid, asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLAID_CLIENT_ID", "owner")
        patch.setenv("PLAID_SECRET", "secret-of-the-owner")
        patch.setenv("PLAID_BASE_URL", plaid.url)
        patch.delenv("PLAID_ENV", raising=False)
        yield Page(plaid, runner)


def _evaluate(example: Example) -> None:
    source = pad(example.parsed, example.line + example.parsed.line_offset)
    code = compile(
        source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True, optimize=0
    )
    example.namespace.setdefault("__name__", "__main__")
    running = eval(code, example.namespace)  # noqa: S307  # our own pages; `exec` would drop the coroutine
    if running is not None:
        example.namespace["page"].runner.run(running)


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", _evaluate)],
    patterns=["README.md", "docs/*.md"],
    fixtures=["page"],
).pytest()
