"""Every fault of matrix.py strikes every operation, and each cell is as it is written there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from attrs import frozen
from canaries import REPORT_TOKEN, SECRET, assert_error_is_clean, assert_no_canary
from fault_proxy import PASS, FaultProxy
from matrix import PAGE, SECTIONS, FaultRow, page_with_tables
from support import QUICK

from plaid_relay_async import (
    ConnectionLostError,
    Credentials,
    InvalidRequestError,
    NotSentError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
    PlaidServerError,
    RateLimitError,
    ReadTimeoutError,
    RelayClient,
    ResponseDecodeError,
)
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

OWNER, PARTNER = Credentials("owner", SECRET), Credentials("partner", SECRET)
ROWS = {
    f"{section}: {row.name}, {n}": row for section, rows in SECTIONS.items() for n, row in enumerate(rows)
}


@frozen
class Operation:
    """One column.

    Attributes:
        who: calls it.
        call: makes the call with a relay token.
        made: how many times it was carried out, by the simulator's books.
        right: whether an answer is the one that the simulator gave.
    """

    who: Credentials
    call: Callable[[RelayClient, str], Awaitable[Any]]
    made: Callable[[Simulator], int]
    right: Callable[[Any, Simulator], bool]


OPERATIONS = {
    "create": Operation(
        OWNER,
        lambda client, _: client.relay.create([REPORT_TOKEN], "another"),
        lambda plaid: len(plaid.ledger) - 1,
        lambda answer, plaid: answer.relay_token == plaid.ledger[1]["relay_token"],
    ),
    "get": Operation(
        PARTNER,
        lambda client, token: client.relay.get(token),
        lambda _: 0,
        lambda answer, _: bool(answer.report.items),
    ),
    "get_pdf": Operation(
        PARTNER,
        lambda client, token: client.relay.get_pdf(token),
        lambda _: 0,
        lambda answer, _: answer.content.startswith(b"%PDF-"),
    ),
    "refresh": Operation(
        PARTNER,
        lambda client, token: client.relay.refresh(token),
        lambda plaid: len(plaid.refreshes),
        lambda answer, plaid: answer.relay_token == plaid.ledger[0]["relay_token"],
    ),
    "remove": Operation(
        OWNER,
        lambda client, token: client.relay.remove(token),
        lambda plaid: sum(entry["removed"] for entry in plaid.ledger),
        lambda answer, _: answer.removed,
    ),
}
CREATING, READS = {"create", "refresh"}, {"get", "get_pdf"}

WORDS = {
    NotSentError: "unsent",
    OutcomeUnknownError: "unknown",
    ConnectionLostError: "lost",
    ReadTimeoutError: "timeout",
    ResponseDecodeError: "unreadable",
    PlaidServerError: "server",
    RateLimitError: "limited",
    InvalidRequestError: "rejected",
}


def word_for(end: Any) -> str:
    """Say what the caller got, in the matrix' words."""
    if type(end) is PlaidAPIError:
        return "redirect" if 300 <= end.status < 400 else "unexpected"
    if isinstance(end, PlaidRelayError):
        return WORDS[type(end)]
    return "inferred" if getattr(end, "inferred", False) else "done"


# ------------------------------------------------------------------------------------------ one cell


@frozen
class Seen:
    """What came of one cell: at the client, at the proxy, and in the simulator's books."""

    end: Any
    heard: int
    made: int
    right: bool
    seconds: float


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port on which nobody listens, kept so that nobody can."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def contexts(server: str) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """What the server speaks TLS with, and what the client trusts."""
    if server not in {"TLS", "another's TLS", "distrusted TLS"}:
        return None, None
    authority, theirs = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours = ssl.create_default_context()
    name = "elsewhere.example" if server == "another's TLS" else "127.0.0.1"
    authority.issue_cert(name).configure_cert(theirs)
    if server != "distrusted TLS":
        authority.configure_trust(ours)
    return theirs, ours


@contextlib.asynccontextmanager
async def between(
    row: FaultRow, plaid: Simulator, who: Credentials, **more: Any
) -> AsyncIterator[tuple[FaultProxy, RelayClient]]:
    """A proxy that deals out a row's faults, and a client of it."""
    theirs, ours = contexts(row.server)
    series = itertools.chain([PASS] * row.reuses_connection, row.faults, itertools.repeat(row.faults[-1]))
    port = int(plaid.url.rpartition(":")[2])
    async with FaultProxy(port, lambda: next(series), theirs) as proxy:
        with nobody() as closed:
            urls = {
                "http": f"http://127.0.0.1:{proxy.port}",
                "nobody": f"http://127.0.0.1:{closed}",
                "no name": "https://plaid.invalid",
            }
            url = urls.get(row.server, f"https://127.0.0.1:{proxy.port}")
            settings = {"retry": QUICK, "ssl": ours, **row.settings, **more}
            async with RelayClient(who, base_url=url, **settings) as client:
                yield proxy, client


async def struck(row: FaultRow, operation: Operation, **more: Any) -> Seen:
    """Let a row's faults strike one call."""
    async with Simulator(clients={"owner": SECRET, "partner": SECRET}, reports=[REPORT_TOKEN]) as plaid:
        async with RelayClient(OWNER, base_url=plaid.url) as owner:
            token = (await owner.relay.create([REPORT_TOKEN], "partner")).relay_token
        async with between(row, plaid, operation.who, **more) as (proxy, client):
            if row.reuses_connection:
                with pytest.raises(InvalidRequestError):
                    await client.webhook_verification_key.get("of-nobody")
                proxy.attempts = 0
            if row.server_closes:
                proxy.hang_up()
            began = time.monotonic()
            try:
                end = await operation.call(client, token)
            except PlaidRelayError as error:
                end = error
            seconds = time.monotonic() - began
        right = isinstance(end, PlaidRelayError) or operation.right(end, plaid)
        return Seen(end, proxy.attempts, operation.made(plaid), right, seconds)


def cell(seen: Seen, operation: str) -> str:
    """Write what was seen as matrix.py writes what is expected."""
    made = "" if operation in READS else f" {seen.made}"
    return f"{word_for(seen.end)} {seen.heard}{made}"


def assert_promises_kept(row: FaultRow, operation: str, seen: Seen) -> None:
    """What must hold whatever is written in the cell."""
    failed = isinstance(seen.end, PlaidRelayError)
    refusals_only = all(fault.declines or fault is PASS for fault in row.faults)
    surely_not = row.server not in {"http", "TLS"} or (refusals_only and not row.server_closes)
    assert seen.made <= 1, "nothing is made twice"
    assert seen.right, "what the caller gets is what Plaid made"
    assert failed or operation in READS or seen.made == 1, "what is said to be done was done"
    if operation in CREATING:
        unheard = failed and seen.made == 1
        assert not unheard or isinstance(seen.end, OutcomeUnknownError), "what was made unheard is unknown"
        assert not (surely_not and isinstance(seen.end, OutcomeUnknownError)), "what wasn't is not unknown"
    if failed:
        assert seen.end.attempts >= seen.heard
        assert seen.end.sent is not isinstance(seen.end, NotSentError)


# Interim responses without an end take a second of computing for each operation.
LONG = {name for name, row in ROWS.items() if row.name == "100 without an end"}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=[pytest.mark.full_size] if name in LONG else [])
        for name, row in ROWS.items()
    ],
)
async def test_each_cell_is_as_it_is_written(clean_logs, row):
    """What the caller gets, what reached the server, what was made: as by hand, and no secret shows."""
    came = await asyncio.gather(*(struck(row, OPERATIONS[operation]) for operation in OPERATIONS))
    cells = {operation: cell(seen, operation) for operation, seen in zip(OPERATIONS, came, strict=True)}
    assert cells == {operation: getattr(row, operation) for operation in OPERATIONS}
    for operation, seen in zip(OPERATIONS, came, strict=True):
        assert_promises_kept(row, operation, seen)
        assert_told(row, seen)


QUICK_ROWS = {
    name: row
    for name, row in ROWS.items()
    if not row.settings and not row.min_seconds and row.server == "http"
}


@pytest.mark.parametrize("row", QUICK_ROWS.values(), ids=QUICK_ROWS)
async def test_by_a_session_of_aiohttps_own_each_cell_is_the_same(row):
    """What is known of a fault doesn't depend on how the request was sent, and no secret shows."""
    seen = {
        operation: await struck(row, OPERATIONS[operation], direct=False) for operation in ("create", "get")
    }
    assert {operation: cell(seen[operation], operation) for operation in seen} == {
        operation: getattr(row, operation) for operation in seen
    }
    for each in seen.values():
        assert_told(row, each)


def assert_told(row: FaultRow, seen: Seen) -> None:
    """The server's delay is waited in full or handed on, and nothing that is secret shows."""
    assert seen.seconds >= row.min_seconds
    if isinstance(seen.end, PlaidRelayError):
        assert_error_is_clean(seen.end)
        assert row.retry_after is None or seen.end.retry_after == pytest.approx(row.retry_after, abs=0.5)
    else:
        assert_no_canary(repr(seen.end))


def test_the_page_shows_the_matrix():
    """docs/faults.md has the tables that are checked here; `python tests/matrix.py` writes them into it."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_tables(page)


def test_the_page_explains_each_word():
    """The legend of docs/faults.md has the words of the cells, and no other."""
    used = {getattr(row, column).split()[0] for row in ROWS.values() for column in OPERATIONS}
    legend = re.findall(r"^\| \*\*(\w+)\*\* \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(legend) == sorted(used)
