"""The client's result for a fault is the same through the gateway, or less certain, and never wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen
from canaries import REPORT_TOKEN, SECRET, assert_error_is_clean, assert_no_canary
from fault_proxy import PASS, FaultProxy, WireFault
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matrix import (
    OPERATIONS,
    READ_TIMEOUT,
    SECTIONS,
    SHORT_READ_TIMEOUT,
    FaultRow,
    maintenance,
    rate_limited,
)
from support import OWNER, QUICK, sampled
from wire_faults import EXECUTED, build_response

from plaid_relay_async import (
    Credentials,
    OutcomeUnknownError,
    PlaidRelayError,
    PlaidServerError,
    RateLimitError,
    RelayClient,
    RelayCreateRequest,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.certainty import Certainty, certainty_of
from plaid_relay_async.gateway import Gateway
from plaid_relay_async.gateway.keys import new_key
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CREDENTIALS = {each: Credentials(each, SECRET) for each in ("owner", "partner")}
SAFE, NON_IDEMPOTENT = {"get", "get_pdf"}, {"create", "refresh"}
CALLS = {
    "create": ("owner", lambda client, _: client.relay.create([REPORT_TOKEN], "another")),
    "get": ("partner", lambda client, token: client.relay.get(token)),
    "get_pdf": ("partner", lambda client, token: client.relay.get_pdf(token)),
    "refresh": ("partner", lambda client, token: client.relay.refresh(token)),
    "remove": ("owner", lambda client, token: client.relay.remove(token)),
}
EXECUTION_COUNTS = {
    "create": lambda plaid: len(plaid.ledger) - 1,
    "refresh": lambda plaid: len(plaid.refreshes),
    "remove": lambda plaid: sum(entry["removed"] for entry in plaid.ledger),
}


@frozen
class GatewayChain:
    """Clients behind a gateway, which is behind a proxy with faults, and the simulator."""

    plaid: Simulator
    proxy: FaultProxy
    gateway: Gateway
    clients: dict[str, RelayClient]
    token: str


@contextlib.asynccontextmanager
async def gateway_chain(
    choose: Any, *, client: dict[str, Any], **gateway: Any
) -> AsyncIterator[GatewayChain]:
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        plaid = await enter(Simulator(clients=dict.fromkeys(CREDENTIALS, SECRET), reports=[REPORT_TOKEN]))
        async with RelayClient(CREDENTIALS["owner"], base_url=plaid.url) as owner:
            token = (await owner.relay.create([REPORT_TOKEN], "partner")).relay_token
        proxy = await enter(FaultProxy(int(plaid.url.rpartition(":")[2]), choose))
        created = {name: new_key(name, credentials=name) for name in CREDENTIALS}
        # The drain is short, because nothing waits for abandoned calls.
        upstream = {"upstream": f"http://127.0.0.1:{proxy.port}", "drain": 0.1} | gateway
        running_gateway = await enter(
            Gateway([key for key, _ in created.values()], credentials=CREDENTIALS, **upstream)
        )
        clients = {
            name: await enter(
                RelayClient(gateway_key=key, base_url=running_gateway.url, **{"retry": QUICK} | client)
            )
            for name, (_, key) in created.items()
        }
        yield GatewayChain(plaid, proxy, running_gateway, clients, token)


async def result_of(chain: GatewayChain, operation: str) -> Any:
    """Return the response or the error that the caller gets."""
    client_name, call = CALLS[operation]
    try:
        return await call(chain.clients[client_name], chain.token)
    except PlaidRelayError as error:
        return error


def assert_consistent(operation: str, result: Any, created: int, *, not_executed: bool) -> None:
    """Check the result against what was executed."""
    failed = isinstance(result, PlaidRelayError)
    assert created <= 1, "nothing is created twice"
    assert failed or operation in SAFE or created == 1, "a success was executed"
    if operation in NON_IDEMPOTENT:
        assert not (failed and created) or isinstance(result, OutcomeUnknownError), (
            "an executed creation without a response is unknown"
        )
        assert not (not_executed and isinstance(result, OutcomeUnknownError)), (
            "a call that was not executed is not unknown"
        )
    if failed and operation == "remove" and created:
        assert certainty_of(result) is not Certainty.DEFINITIVE or result.sent, (
            "an executed removal is not a definitive failure"
        )
    if failed:
        assert_error_is_clean(result)
    else:
        assert_no_canary(repr(result))


# By the client's direct result: the results that it may have through a gateway instead. A gateway with longer
# timeouts than the client's, or its 502 for a lost response, may change the class of an error, but never its
# certainty for a creation.
WEAKER_LABELS = {
    "unsent": {"server"},
    "lost": {"server", "timeout", "unreadable"},
    "timeout": {"server", "lost", "unreadable"},
    "unreadable": {"server", "lost", "timeout"},
    "unexpected": {"server"},
    "server": {"timeout", "lost"},
    "done": {"unknown", "inferred"},
    "inferred": {"done", "server", "lost"},
    "redirect": set(),
    "limited": set(),
    "rejected": set(),
    "unknown": set(),
}
LABELS = {
    "NotSentError": "unsent",
    "OutcomeUnknownError": "unknown",
    "ConnectionLostError": "lost",
    "ReadTimeoutError": "timeout",
    "ResponseDecodeError": "unreadable",
    "PlaidServerError": "server",
    "RateLimitError": "limited",
    "InvalidRequestError": "rejected",
}


def label_of(result: Any) -> str:
    if type(result).__name__ == "PlaidAPIError":
        return "redirect" if 300 <= result.status < 400 else "odd"
    if isinstance(result, PlaidRelayError):
        return LABELS[type(result).__name__]
    return "inferred" if getattr(result, "inferred", False) else "done"


def is_applicable(row: FaultRow) -> bool:
    """Return whether a row uses an upstream over plain HTTP and doesn't take minutes."""
    return (
        row.server in {"http", "no server", "no name"} and not row.server_closes and not row.reuses_connection
    )


ROWS = {
    f"{section}: {row.name}, {n}": row
    for section, rows in SECTIONS.items()
    for n, row in enumerate(rows)
    if is_applicable(row)
}
UPSTREAMS = {"no server": "http://127.0.0.1:1", "no name": "https://plaid.invalid"}


# Where a timeout passes, the client's or the gateway's may pass first. A few cases run concurrently, because they
# mostly wait.
CASES = [
    (name, row, short_timeout)
    for name, row in ROWS.items()
    for short_timeout in (
        ["client", "gateway"] if row.settings in (SHORT_READ_TIMEOUT, READ_TIMEOUT) else ["client"]
    )
]
CONCURRENCY = 4
# The number of bytes between two truncations.
EVERY_BYTE = [10, pytest.param(1, marks=pytest.mark.slow)]


async def run_with_fault(row: FaultRow, short_timeout: str, operation: str) -> tuple[Any, int]:
    """Return the caller's result with a fault, and how often the operation was executed."""
    series = itertools.chain(row.faults, itertools.repeat(row.faults[-1]))
    client = {} if short_timeout == "gateway" else dict(row.settings)
    timeouts = (
        row.settings["timeouts"] if short_timeout == "gateway" else Timeouts(connect=0.5, read=8, slow_read=8)
    )
    gateway = {"timeouts": timeouts}
    if row.server in UPSTREAMS:
        gateway["upstream"] = UPSTREAMS[row.server]
    async with gateway_chain(lambda: next(series), client=client, **gateway) as chain:
        result = await result_of(chain, operation)
        return result, EXECUTION_COUNTS.get(operation, lambda _: 0)(chain.plaid)


@pytest.mark.parametrize("first", sampled(range(0, len(CASES), CONCURRENCY), step=10))
async def test_a_fault_has_the_direct_result_or_a_weaker_one(clean_logs, first):
    """This holds for each fault, and whether the client or the gateway times out first."""
    async with asyncio.TaskGroup() as group:
        for name, row, short_timeout in CASES[first : first + CONCURRENCY]:
            group.create_task(assert_not_stronger(row, short_timeout), name=f"{name}, {short_timeout}")


async def assert_not_stronger(row: FaultRow, short_timeout: str) -> None:
    only_declined = all(fault.declines or fault is PASS for fault in row.faults)
    received = await asyncio.gather(
        *(run_with_fault(row, short_timeout, operation) for operation in OPERATIONS)
    )
    for operation, (result, created) in zip(OPERATIONS, received, strict=True):
        assert_consistent(operation, result, created, not_executed=only_declined)
        direct, label = getattr(row, operation).split()[0], label_of(result)
        assert label == direct or label in WEAKER_LABELS[direct], (
            row.name,
            short_timeout,
            operation,
            direct,
            label,
            result,
        )
        if (
            row.retry_after is not None
            and isinstance(result, PlaidRelayError)
            and hasattr(result, "retry_after")
        ):
            assert result.retry_after == pytest.approx(row.retry_after, abs=1)


@pytest.mark.parametrize("step", EVERY_BYTE)
async def test_a_creation_truncated_at_each_byte_is_created_or_unknown(clean_logs, step):
    """A token that arrived completely is the ledger's; any other outcome is unknown."""
    cut = 0

    def choose() -> WireFault:
        return WireFault(EXECUTED, lambda _, response: [response[:cut]], "close")

    counts = {"created": 0, "unknown": 0}
    async with gateway_chain(choose, client={}) as chain:
        client = chain.clients["owner"]
        for cut in range(0, 420, step):
            try:
                created = await client.relay.create([REPORT_TOKEN], f"p{cut}")
            except OutcomeUnknownError as error:
                assert_error_is_clean(error)
                counts["unknown"] += 1
            else:
                assert created.relay_token == chain.plaid.ledger[-1]["relay_token"]
                counts["created"] += 1
            assert len(chain.plaid.ledger) == cut // step + 2
    assert min(counts.values()) > 50 // step


@pytest.mark.parametrize("step", EVERY_BYTE)
async def test_a_chunked_refresh_truncated_at_each_byte_is_refreshed_or_unknown(clean_logs, step):
    """The same holds for a chunked response."""
    cut = 0

    def pieces(_: bytes, response: bytes) -> list[bytes]:
        start, _, body = response.partition(b"\r\n\r\n")
        other_headers = [
            line for line in start.split(b"\r\n") if not line.lower().startswith(b"content-length")
        ]
        message = b"\r\n".join([*other_headers, b"Transfer-Encoding: chunked", b"", b""])
        message += b"".join(b"7\r\n%s\r\n" % body[n : n + 7] for n in range(0, len(body) - 7, 7))
        return [message[:cut]]

    async with gateway_chain(lambda: WireFault(EXECUTED, pieces, "close"), client={}) as chain:
        for cut in range(0, 520, 3 * step):
            try:
                refreshed = await chain.clients["partner"].relay.refresh(chain.token)
            except OutcomeUnknownError as error:
                assert_error_is_clean(error)
            else:
                assert refreshed.relay_token == chain.token
            assert len(chain.plaid.refreshes) == cut // (3 * step) + 1


@pytest.mark.parametrize(
    "lines",
    [
        ["Retry-After: 60"],
        ["Date: Tue, 24 Nov 2026 12:00:00 GMT", "Retry-After: Tue, 24 Nov 2026 12:01:00 GMT"],
    ],
)
async def test_retry_after_is_forwarded(lines):
    """It arrives unchanged, with the Date that it refers to."""
    client = {"timeouts": Timeouts(total=5)}
    for fault, error in ((rate_limited(*lines), RateLimitError), (maintenance(*lines), PlaidServerError)):
        async with gateway_chain(lambda fault=fault: fault, client=client) as chain:
            result = await result_of(chain, "create")
            assert (type(result), result.retry_after, result.sent) == (error, pytest.approx(60), True)
            assert len(chain.plaid.ledger) == 1


async def test_a_call_that_was_not_sent_to_plaid_is_repeated():
    """A creation is repeated while the gateway can't reach its upstream, because nothing was executed."""
    async with gateway_chain(lambda: PASS, client={"retry": RetryPolicy(attempts=3, backoff=0.001)}) as chain:
        await chain.proxy.stop()
        result = await result_of(chain, "create")
        assert not isinstance(result, OutcomeUnknownError)
        assert (result.error_code, result.status, result.attempts) == ("UPSTREAM_UNREACHABLE", 503, 3)
        assert certainty_of(result) is Certainty.DECLINED
        await chain.proxy.start()
        assert (await result_of(chain, "create")).relay_token == chain.plaid.ledger[-1]["relay_token"]


@pytest.mark.parametrize("source", ["raises", "is slow", "returns nothing"])
async def test_nothing_is_sent_without_credentials(source):
    """If the source of the credentials fails, nothing is sent, and the error is retryable."""

    async def fails() -> Any:
        if source == "raises":
            raise ZeroDivisionError(SECRET)
        if source == "is slow":
            await asyncio.sleep(30)

    key, secret = new_key("one")
    async with Simulator(reports=[REPORT_TOKEN]) as plaid:
        options = {"upstream": plaid.url, "timeouts": Timeouts(total=0.3)}
        async with (
            Gateway([key], credentials={"default": fails}, **options) as gateway,
            RelayClient(gateway_key=secret, base_url=gateway.url, retry=RetryPolicy(attempts=1)) as client,
        ):
            with pytest.raises(PlaidRelayError) as caught:
                await client.relay.create([REPORT_TOKEN], "p")
        assert not isinstance(caught.value, OutcomeUnknownError)
        assert not plaid.requests
        assert_error_is_clean(caught.value)


PLAID_STATUSES = st.sampled_from(
    [200, 201, 204, 301, 302, 304, 307, 400, 401, 403, 404, 408, 409, 410, 413, 421, 422, 429]
)
CODES = st.sampled_from(
    ["INVALID_FIELD", "RATE_LIMIT", "PLANNED_MAINTENANCE", "INTERNAL_SERVER_ERROR", "CREDITS_EXHAUSTED", "X"]
)
STATUSES = PLAID_STATUSES | st.sampled_from([500, 501, 502, 503, 504, 507, 520, 529, 599])


async def test_any_response_has_the_direct_certainty_or_is_in_doubt(clean_logs):
    """This holds for any status, code, truncation and framing."""

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(STATUSES, CODES, st.booleans(), st.booleans(), st.none() | st.integers(0, 400))
    def draw(status, code, executed, html, cut):
        examples.append((status, code, executed, html, cut))

    examples: list[Any] = []
    draw()
    current = PASS
    async with (
        gateway_chain(lambda: current, client={"retry": RetryPolicy(attempts=1)}) as chain,
        RelayClient(
            CREDENTIALS["owner"],
            base_url=f"http://127.0.0.1:{chain.proxy.port}",
            retry=RetryPolicy(attempts=1),
        ) as direct,
    ):
        for status, code, executed, as_html, cut in examples:
            body: Any = "<html>no</html>" if as_html else {"error_type": "API_ERROR", "error_code": code}
            content = build_response(200, body).replace(b"200 OK", f"{status} Whatever".encode())
            current = WireFault(executed, lambda *_, content=content, cut=cut: [content[:cut]], "close")
            certainties = []
            for client in (direct, chain.clients["owner"]):
                try:
                    await client.relay.create([REPORT_TOKEN], "p")
                except PlaidRelayError as error:
                    certainties.append(certainty_of(error))
                else:
                    certainties.append(None)
            assert certainties[1] in {certainties[0], Certainty.IN_DOUBT}, (
                status,
                code,
                executed,
                as_html,
                cut,
                certainties,
            )


async def test_errors_of_the_gateway_are_not_unknown():
    """They prove that nothing was executed, and suggest an action."""
    key, secret = new_key("one", partners=["p"], operations=["/credit/relay/create"])
    async with Simulator(reports=[REPORT_TOKEN]) as plaid:
        async with Gateway([key], upstream=plaid.url, credentials={"default": OWNER}) as gateway:
            for gateway_key, partner in (("plaid-gateway-unknown", "p"), (secret, "q")):
                async with RelayClient(gateway_key=gateway_key, base_url=gateway.url) as client:
                    with pytest.raises(PlaidRelayError) as caught:
                        await client.relay.create([REPORT_TOKEN], partner)
                    error = caught.value
                    assert certainty_of(error) is Certainty.DEFINITIVE
                    assert error.error_type == "GATEWAY_ERROR"
                    assert error.suggested_action
        assert not plaid.requests


RANDOM_FAULTS = [
    row.faults[0]
    for section, rows in SECTIONS.items()
    for row in rows
    if section not in {"Rate limits", "Stalls and slow responses"}
    and row.server == "http"
    and row.faults[0] is not PASS
    and not row.settings
    and "MAINTENANCE" not in row.name
    and not row.name.startswith("a body of 100 MB")
]


async def test_a_batch_with_random_faults_matches_the_ledger(rounds):
    """One attempt in five fails: a created outcome has the ledger's token, a failed one has none, and no partner has two."""
    timeouts = {"timeouts": Timeouts(read=0.5, slow_read=0.5)}
    for seed in range(rounds):
        draw = random.Random(seed)

        def choose(draw=draw) -> WireFault:
            return draw.choice(RANDOM_FAULTS) if draw.random() < 0.2 else PASS

        async with gateway_chain(choose, client={}, **timeouts) as chain:
            requests = RelayCreateRequest.fan_out([REPORT_TOKEN], [f"p{n}" for n in range(300)])
            result = await chain.clients["owner"].relay.create_many(requests)
        entries = chain.plaid.ledger[1:]
        tokens = {entry["secondary_client_id"]: entry["relay_token"] for entry in entries}
        assert len(tokens) == len(entries)
        for created in result.created:
            assert tokens.pop(created.request.secondary_client_id) == created.relay_token
        assert not tokens.keys() & {failed.request.secondary_client_id for failed in result.failed}
        assert tokens.keys() <= {unknown.request.secondary_client_id for unknown in result.unknown}
        assert result.counts.total() == 300
        assert len(result.created) > 200
