"""Apply every fault of matrix.py to every operation, and compare the results with its cells."""

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
from log_support import assert_documented, records_of
from matrix import PAGE, SECTIONS, FaultRow, page_with_tables
from otel_support import Recording, instrumented_aiohttp
from support import CREATE, GET, PDF, QUICK, REFRESH, REMOVE, sampled

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
    import logging
    from collections.abc import AsyncIterator, Iterator

OWNER, PARTNER = Credentials("owner", SECRET), Credentials("partner", SECRET)
ROWS = {
    f"{section}: {row.name}, {n}": row for section, rows in SECTIONS.items() for n, row in enumerate(rows)
}


@frozen
class Operation:
    """A column of the matrix.

    Attributes:
        credentials: the credentials of the caller.
        call: makes the call with a relay token.
        executions: returns the number of executions, by the simulator's ledger.
        is_correct: returns whether a response is the one that the simulator sent.
    """

    credentials: Credentials
    call: Callable[[RelayClient, str], Awaitable[Any]]
    executions: Callable[[Simulator], int]
    is_correct: Callable[[Any, Simulator], bool]


OPERATIONS = {
    "create": Operation(
        OWNER,
        lambda client, _: client.relay.create([REPORT_TOKEN], "another"),
        lambda plaid: len(plaid.ledger) - 1,
        lambda response, plaid: response.relay_token == plaid.ledger[1]["relay_token"],
    ),
    "get": Operation(
        PARTNER,
        lambda client, token: client.relay.get(token),
        lambda _: 0,
        lambda response, _: bool(response.report.items),
    ),
    "get_pdf": Operation(
        PARTNER,
        lambda client, token: client.relay.get_pdf(token),
        lambda _: 0,
        lambda response, _: response.content.startswith(b"%PDF-"),
    ),
    "refresh": Operation(
        PARTNER,
        lambda client, token: client.relay.refresh(token),
        lambda plaid: len(plaid.refreshes),
        lambda response, plaid: response.relay_token == plaid.ledger[0]["relay_token"],
    ),
    "remove": Operation(
        OWNER,
        lambda client, token: client.relay.remove(token),
        lambda plaid: sum(entry["removed"] for entry in plaid.ledger),
        lambda response, _: response.removed,
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


def word_for(result: Any) -> str:
    """Return the matrix's word for what the caller received."""
    if type(result) is PlaidAPIError:
        return "redirect" if 300 <= result.status < 400 else "unexpected"
    if isinstance(result, PlaidRelayError):
        return WORDS[type(result)]
    return "inferred" if getattr(result, "inferred", False) else "done"


# ------------------------------------------------------------------------------------------ one cell


@frozen
class Observation:
    """The observations of one cell: at the client, at the proxy, and in the simulator's ledger."""

    result: Any
    requests: int
    executions: int
    is_correct: bool
    seconds: float


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """Yield a port on which nothing listens, reserved so that no other process can use it."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def contexts(server: str) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """Return the server's TLS context, and the client's."""
    if server not in {"TLS", "another's TLS", "distrusted TLS"}:
        return None, None
    authority, server_context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client_context = ssl.create_default_context()
    name = "elsewhere.example" if server == "another's TLS" else "127.0.0.1"
    authority.issue_cert(name).configure_cert(server_context)
    if server != "distrusted TLS":
        authority.configure_trust(client_context)
    return server_context, client_context


@contextlib.asynccontextmanager
async def faulty_client(
    row: FaultRow, plaid: Simulator, credentials: Credentials, **settings_override: Any
) -> AsyncIterator[tuple[FaultProxy, RelayClient]]:
    """Yield a proxy that applies a row's faults, and a client that uses it."""
    server_context, client_context = contexts(row.server)
    series = itertools.chain([PASS] * row.reuses_connection, row.faults, itertools.repeat(row.faults[-1]))
    port = int(plaid.url.rpartition(":")[2])
    async with FaultProxy(port, lambda: next(series), server_context) as proxy:
        with refused_port() as closed:
            urls = {
                "http": f"http://127.0.0.1:{proxy.port}",
                "no server": f"http://127.0.0.1:{closed}",
                "no name": "https://plaid.invalid",
            }
            url = urls.get(row.server, f"https://127.0.0.1:{proxy.port}")
            settings = {"retry": QUICK, "ssl": client_context, **row.settings, **settings_override}
            async with RelayClient(credentials, base_url=url, **settings) as client:
                yield proxy, client


async def call_with_faults(row: FaultRow, operation: Operation, **settings_override: Any) -> Observation:
    """Apply a row's faults to one call."""
    async with Simulator(clients={"owner": SECRET, "partner": SECRET}, reports=[REPORT_TOKEN]) as plaid:
        async with RelayClient(OWNER, base_url=plaid.url) as owner:
            token = (await owner.relay.create([REPORT_TOKEN], "partner")).relay_token
        async with faulty_client(row, plaid, operation.credentials, **settings_override) as (proxy, client):
            if row.reuses_connection:
                with pytest.raises(InvalidRequestError):
                    await client.webhook_verification_key.get("unknown")
                proxy.attempts = 0
            if row.server_closes:
                proxy.hang_up()
            started = time.monotonic()
            try:
                result = await operation.call(client, token)
            except PlaidRelayError as error:
                result = error
            seconds = time.monotonic() - started
        correct = isinstance(result, PlaidRelayError) or operation.is_correct(result, plaid)
        return Observation(result, proxy.attempts, operation.executions(plaid), correct, seconds)


def observed_cell(observed: Observation, operation: str) -> str:
    """Return what was observed in the format of matrix.py's cells."""
    executions = "" if operation in READS else f" {observed.executions}"
    return f"{word_for(observed.result)} {observed.requests}{executions}"


def assert_invariants(row: FaultRow, operation: str, observed: Observation) -> None:
    """Check what must hold for every cell."""
    failed = isinstance(observed.result, PlaidRelayError)
    refusals_only = all(fault.declines or fault is PASS for fault in row.faults)
    surely_not = row.server not in {"http", "TLS"} or (refusals_only and not row.server_closes)
    assert observed.executions <= 1, "nothing is executed twice"
    assert observed.is_correct, "the caller receives what Plaid created"
    assert failed or operation in READS or observed.executions == 1, "a reported success was executed"
    if operation in CREATING:
        is_lost = failed and observed.executions == 1
        assert not is_lost or isinstance(observed.result, OutcomeUnknownError), (
            "a creation whose response was lost is unknown"
        )
        assert not (surely_not and isinstance(observed.result, OutcomeUnknownError)), (
            "a creation that was not executed is not unknown"
        )
    if failed:
        assert observed.result.attempts >= observed.requests
        assert observed.result.sent is not isinstance(observed.result, NotSentError)


@pytest.mark.parametrize("name", sampled(ROWS, step=5))
async def test_each_cell_is_as_written(clean_logs, name):
    """The outcome, the requests and the executions are as written, and no secret shows."""
    row, recording = ROWS[name], Recording()
    observations = await asyncio.gather(
        *(
            call_with_faults(row, OPERATIONS[operation], telemetry=recording.telemetry())
            for operation in OPERATIONS
        )
    )
    cells = {
        operation: observed_cell(observed, operation)
        for operation, observed in zip(OPERATIONS, observations, strict=True)
    }
    assert cells == {operation: getattr(row, operation) for operation in OPERATIONS}
    for operation, observed in zip(OPERATIONS, observations, strict=True):
        assert_invariants(row, operation, observed)
        assert_delay_and_redaction(row, observed)
        assert_log_agrees(row, clean_logs.records, operation, observed)
        assert_trace_agrees(recording, clean_logs.records, operation)
    assert_documented(clean_logs.records)
    recording.assert_clean()
    recording.close()


QUICK_ROWS = {
    name: row
    for name, row in ROWS.items()
    if not row.settings and not row.min_seconds and row.server == "http"
}


@pytest.mark.parametrize("row", QUICK_ROWS.values(), ids=QUICK_ROWS)
async def test_each_cell_is_the_same_with_an_aiohttp_session(row):
    """The result of a fault doesn't depend on how the request is sent, and no secret shows.

    aiohttp's instrumentation, with all headers as attributes, adds no span and no metric.
    """
    recording = Recording()
    settings = {"direct": False, "telemetry": recording.telemetry()}
    with instrumented_aiohttp(recording):
        observed = {
            operation: await call_with_faults(row, OPERATIONS[operation], **settings)
            for operation in ("create", "get")
        }
    assert {operation: observed_cell(observed[operation], operation) for operation in observed} == {
        operation: getattr(row, operation) for operation in observed
    }
    for each in observed.values():
        assert_delay_and_redaction(row, each)
    assert {span.instrumentation_scope.name for span in recording.spans} == {"plaid_relay_async"}
    recording.assert_clean()
    recording.close()


PATHS = {"create": CREATE, "get": GET, "get_pdf": PDF, "refresh": REFRESH, "remove": REMOVE}


def assert_log_agrees(
    row: FaultRow, records: list[logging.LogRecord], operation: str, observed: Observation
) -> None:
    """The log has each attempt of the call, and how the call ended."""
    # The token that all operations need is created for another partner.
    partner = {"partner": "another"} if operation == "create" else {}
    *others, end = records_of(records, operation=PATHS[operation], **partner)
    attempts = [each["attempt"] for each in others if each["event"] == "attempt_end"]
    assert attempts == [*range(1, end["attempts"] + 1)]
    assert {each["event"] for each in others} <= {"attempt_end", "retry"}
    assert len({each["call_id"] for each in (*others, end)}) == 1
    word = word_for(observed.result)
    in_doubt = {"lost", "timeout", "server", "unreadable", "unexpected"}
    is_unknown = word == "unknown" or (
        operation == "remove" and word in in_doubt and not all(fault.declines for fault in row.faults)
    )
    done = "succeeded" if word in {"done", "inferred"} else "failed"
    assert end["outcome"] == ("unknown" if is_unknown else done)


def assert_trace_agrees(recording: Recording, records: list[logging.LogRecord], operation: str) -> None:
    """The spans have each attempt of the call, and say the same as the log about how it ended."""
    partner = "another" if operation == "create" else None
    *_, end = records_of(records, operation=PATHS[operation], **({"partner": partner} if partner else {}))
    outcome, attempts = end["outcome"], end["attempts"]
    recording.assert_traced(PATHS[operation], outcome=outcome, attempts=attempts, partner=partner)


def assert_delay_and_redaction(row: FaultRow, observed: Observation) -> None:
    """The server's delay is waited in full or returned, and no secret shows."""
    assert observed.seconds >= row.min_seconds
    if isinstance(observed.result, PlaidRelayError):
        assert_error_is_clean(observed.result)
        assert row.retry_after is None or observed.result.retry_after == pytest.approx(
            row.retry_after, abs=0.5
        )
    else:
        assert_no_canary(repr(observed.result))


def test_the_page_shows_the_matrix():
    """docs/faults.md has the tables that are checked here; `python tests/matrix.py` writes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_tables(page)


def test_the_page_explains_each_word():
    """The legend of docs/faults.md explains exactly the words of the cells."""
    used = {getattr(row, column).split()[0] for row in ROWS.values() for column in OPERATIONS}
    legend = re.findall(r"^\| \*\*(\w+)\*\* \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(legend) == sorted(used)
