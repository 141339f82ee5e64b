"""Run every Python example in README.md and docs/, each page against its own simulator.

The blocks of a page share a namespace and an event loop, and may use `await` at the top level, as in
`python -m asyncio`. PLAID_CLIENT_ID, PLAID_SECRET and PLAID_BASE_URL point to the page's simulator. Code that
a page needs and doesn't show is in `<!-- invisible-code: python` blocks, where `page.plaid` is its simulator.
"""

from __future__ import annotations

import ast
import asyncio
from typing import TYPE_CHECKING

import pytest
from attrs import frozen
from processes import reset_signals
from sybil import Sybil
from sybil.evaluators.python import pad
from sybil.parsers.myst import CodeBlockParser

from plaid_relay_async.testing import SimulatorThread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sybil import Example


@frozen
class Page:
    """The simulator and the event loop that the examples of one page share."""

    plaid: SimulatorThread
    runner: asyncio.Runner


@pytest.fixture(scope="session", autouse=True)
def _reset_signals() -> None:
    """Start tests, and the servers that they share, with no signal ignored or blocked."""
    reset_signals()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A simulator and an event loop for one page, with environment variables that point to the simulator."""
    with SimulatorThread() as plaid, asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
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
    coroutine = eval(code, example.namespace)  # noqa: S307  # our own pages; `exec` would drop the coroutine
    if coroutine is not None:
        example.namespace["page"].runner.run(coroutine)


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("python", _evaluate)],
    patterns=["README.md", "docs/*.md"],
    fixtures=["page"],
).pytest()
