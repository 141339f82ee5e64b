"""What our client makes of a fault is the same through the gateway, or less certain; never wrong."""

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
    HALF_A_SECOND,
    OPERATIONS,
    READ_TIMEOUT,
    SECTIONS,
    SHORT_READ_TIMEOUT,
    FaultRow,
    maintenance,
    rate_limited,
)
from support import OWNER, QUICK, sampled
from wire_faults import AFTER, build_response

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
from plaid_relay_async.errors import Certainty, certainty_of
from plaid_relay_async.gateway import Gateway
from plaid_relay_async.gateway.keys import new_key
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CREDENTIALS = {each: Credentials(each, SECRET) for each in ("owner", "partner")}
READS, CREATING = {"get", "get_pdf"}, {"create", "refresh"}
CALLS = {
    "create": ("owner", lambda client, _: client.relay.create([REPORT_TOKEN], "another")),
    "get": ("partner", lambda client, token: client.relay.get(token)),
    "get_pdf": ("partner", lambda client, token: client.relay.get_pdf(token)),
    "refresh": ("partner", lambda client, token: client.relay.refresh(token)),
    "remove": ("owner", lambda client, token: client.relay.remove(token)),
}
MADE = {
    "create": lambda plaid: len(plaid.ledger) - 1,
    "refresh": lambda plaid: len(plaid.refreshes),
    "remove": lambda plaid: sum(entry["removed"] for entry in plaid.ledger),
}


@frozen
class Through:
    """A client behind a gateway behind a proxy that fails, and the simulator's books."""

    plaid: Simulator
    proxy: FaultProxy
    gateway: Gateway
    clients: dict[str, RelayClient]
    token: str


@contextlib.asynccontextmanager
async def through(choose: Any, *, client: dict[str, Any], **gateway: Any) -> AsyncIterator[Through]:
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        plaid = await enter(Simulator(clients=dict.fromkeys(CREDENTIALS, SECRET), reports=[REPORT_TOKEN]))
        async with RelayClient(CREDENTIALS["owner"], base_url=plaid.url) as owner:
            token = (await owner.relay.create([REPORT_TOKEN], "partner")).relay_token
        proxy = await enter(FaultProxy(int(plaid.url.rpartition(":")[2]), choose))
        made = {name: new_key(name, credentials=name) for name in CREDENTIALS}
        # What its caller has given up need not be waited for.
        upstream = {"upstream": f"http://127.0.0.1:{proxy.port}", "drain": 0.1} | gateway
        running = await enter(Gateway([key for key, _ in made.values()], credentials=CREDENTIALS, **upstream))
        clients = {
            name: await enter(RelayClient(gateway_key=key, base_url=running.url, **{"retry": QUICK} | client))
            for name, (_, key) in made.items()
        }
        yield Through(plaid, proxy, running, clients, token)


async def ended(built: Through, operation: str) -> Any:
    """What the caller gets: an answer, or an error."""
    who, call = CALLS[operation]
    try:
        return await call(built.clients[who], built.token)
    except PlaidRelayError as error:
        return error


def assert_honest(operation: str, end: Any, made: int, *, surely_not: bool) -> None:
    """What must hold, whatever happened on the way."""
    failed = isinstance(end, PlaidRelayError)
    assert made <= 1, "nothing is made twice"
    assert failed or operation in READS or made == 1, "what is said to be done was done"
    if operation in CREATING:
        assert not (failed and made) or isinstance(end, OutcomeUnknownError), (
            "what was made unheard is unknown"
        )
        assert not (surely_not and isinstance(end, OutcomeUnknownError)), "what wasn't is not unknown"
    if failed and operation == "remove" and made:
        assert certainty_of(end) is not Certainty.DEFINITIVE or end.sent, (
            "a removal that was carried out is no refusal"
        )
    if failed:
        assert_error_is_clean(end)
    else:
        assert_no_canary(repr(end))


# What the client is told directly, and what it may be told through a gateway beside that. A gateway that reads a
# creation's answer with more patience than the client has, or tells of a lost one by a 502, changes the class
# of an error, and never what it says about the creation.
WEAKER = {
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
WORDS = {
    "NotSentError": "unsent",
    "OutcomeUnknownError": "unknown",
    "ConnectionLostError": "lost",
    "ReadTimeoutError": "timeout",
    "ResponseDecodeError": "unreadable",
    "PlaidServerError": "server",
    "RateLimitError": "limited",
    "InvalidRequestError": "rejected",
}


def word_for(end: Any) -> str:
    if type(end).__name__ == "PlaidAPIError":
        return "redirect" if 300 <= end.status < 400 else "unexpected"
    if isinstance(end, PlaidRelayError):
        return WORDS[type(end).__name__]
    return "inferred" if getattr(end, "inferred", False) else "done"


def fits(row: FaultRow) -> bool:
    """Whether a row is about an upstream over plain http, and takes no minutes."""
    return row.server in {"http", "nobody", "no name"} and not row.server_closes and not row.reuses_connection


ROWS = {
    f"{section}: {row.name}, {n}": row
    for section, rows in SECTIONS.items()
    for n, row in enumerate(rows)
    if fits(row)
}
UPSTREAMS = {"nobody": "http://127.0.0.1:1", "no name": "https://plaid.invalid"}


# Each of the two may lose patience first, where somebody does. A few at a time: most of it is waiting.
CASES = [
    (name, row, hasty)
    for name, row in ROWS.items()
    for hasty in (["client", "gateway"] if row.settings in (SHORT_READ_TIMEOUT, READ_TIMEOUT) else ["client"])
]
AT_ONCE = 4
# How many bytes lie between two cuts.
EVERY_BYTE = [10, pytest.param(1, marks=pytest.mark.full_size)]


async def struck(row: FaultRow, hasty: str, operation: str) -> tuple[Any, int]:
    """What the caller gets of a fault, and how often the operation was carried out."""
    series = itertools.chain(row.faults, itertools.repeat(row.faults[-1]))
    client = {} if hasty == "gateway" else dict(row.settings)
    if client == HALF_A_SECOND:  # twenty servers share this loop, so that it may pass before a call leaves
        client = {"timeouts": Timeouts(total=3)}
    timeouts = row.settings["timeouts"] if hasty == "gateway" else Timeouts(connect=0.5, read=8, slow_read=8)
    gateway = {"timeouts": timeouts}
    if row.server in UPSTREAMS:
        gateway["upstream"] = UPSTREAMS[row.server]
    async with through(lambda: next(series), client=client, **gateway) as built:
        end = await ended(built, operation)
        return end, MADE.get(operation, lambda _: 0)(built.plaid)


@pytest.mark.parametrize("first", sampled(range(0, len(CASES), AT_ONCE), step=5))
async def test_a_fault_reads_as_it_does_directly_or_weaker(clean_logs, first):
    """For each fault, and whoever loses patience first: the verdict is the direct one, or says less."""
    async with asyncio.TaskGroup() as group:
        for name, row, hasty in CASES[first : first + AT_ONCE]:
            group.create_task(assert_no_bolder(row, hasty), name=f"{name}, {hasty}")


async def assert_no_bolder(row: FaultRow, hasty: str) -> None:
    refusals_only = all(fault.declines or fault is PASS for fault in row.faults)
    came = await asyncio.gather(*(struck(row, hasty, operation) for operation in OPERATIONS))
    for operation, (end, made) in zip(OPERATIONS, came, strict=True):
        assert_honest(operation, end, made, surely_not=refusals_only)
        direct, seen = getattr(row, operation).split()[0], word_for(end)
        assert seen == direct or seen in WEAKER[direct], (row.name, hasty, operation, direct, seen, end)
        if row.retry_after is not None and isinstance(end, PlaidRelayError) and hasattr(end, "retry_after"):
            assert end.retry_after == pytest.approx(row.retry_after, abs=1)


@pytest.mark.parametrize("step", EVERY_BYTE)
async def test_a_creation_cut_at_every_byte_is_made_or_unknown(clean_logs, step):
    """Wherever the answer ends: a token that came whole is the ledger's, and all else is unknown."""
    cut = 0

    def choose() -> WireFault:
        return WireFault(AFTER, lambda _, answer: [answer[:cut]], "close")

    unread = {"created": 0, "unknown": 0}
    async with through(choose, client={}) as built:
        client = built.clients["owner"]
        for cut in range(0, 420, step):
            try:
                made = await client.relay.create([REPORT_TOKEN], f"p{cut}")
            except OutcomeUnknownError as error:
                assert_error_is_clean(error)
                unread["unknown"] += 1
            else:
                assert made.relay_token == built.plaid.ledger[-1]["relay_token"]
                unread["created"] += 1
            assert len(built.plaid.ledger) == cut // step + 2
    assert min(unread.values()) > 50 // step


@pytest.mark.parametrize("step", EVERY_BYTE)
async def test_a_refresh_cut_at_every_byte_in_chunks_is_made_or_unknown(clean_logs, step):
    """The same for an answer in chunks, and with a reset at its end."""
    cut = 0

    def pieces(_: bytes, answer: bytes) -> list[bytes]:
        start, _, body = answer.partition(b"\r\n\r\n")
        kept = [line for line in start.split(b"\r\n") if not line.lower().startswith(b"content-length")]
        whole = b"\r\n".join([*kept, b"Transfer-Encoding: chunked", b"", b""])
        whole += b"".join(b"7\r\n%s\r\n" % body[n : n + 7] for n in range(0, len(body) - 7, 7))
        return [whole[:cut]]

    async with through(lambda: WireFault(AFTER, pieces, "close"), client={}) as built:
        for cut in range(0, 520, 3 * step):
            try:
                fresh = await built.clients["partner"].relay.refresh(built.token)
            except OutcomeUnknownError as error:
                assert_error_is_clean(error)
            else:
                assert fresh.relay_token == built.token
            assert len(built.plaid.refreshes) == cut // (3 * step) + 1


@pytest.mark.parametrize(
    "lines",
    [
        ["Retry-After: 60"],
        ["Date: Tue, 24 Nov 2026 12:00:00 GMT", "Retry-After: Tue, 24 Nov 2026 12:01:00 GMT"],
    ],
)
async def test_the_servers_delay_comes_through(lines):
    """Retry-After arrives as it was sent, with the Date that it is held against."""
    client = {"timeouts": Timeouts(total=5)}
    for fault, error in ((rate_limited(*lines), RateLimitError), (maintenance(*lines), PlaidServerError)):
        async with through(lambda fault=fault: fault, client=client) as built:
            end = await ended(built, "create")
            assert (type(end), end.retry_after, end.sent) == (error, pytest.approx(60), True)
            assert len(built.plaid.ledger) == 1


async def test_a_call_that_could_not_leave_the_gateway_is_repeated():
    """A creation is repeated while the gateway can't reach its upstream, for nothing was carried out."""
    async with through(lambda: PASS, client={"retry": RetryPolicy(attempts=3, backoff=0.001)}) as built:
        port = built.proxy.port
        await built.proxy.__aexit__()
        end = await ended(built, "create")
        assert not isinstance(end, OutcomeUnknownError)
        assert (end.error_code, end.status, end.attempts) == ("UPSTREAM_UNREACHABLE", 503, 3)
        assert certainty_of(end) is Certainty.DECLINED
        built.proxy._server = await asyncio.start_server(built.proxy._accept, "127.0.0.1", port)
        assert (await ended(built, "create")).relay_token == built.plaid.ledger[-1]["relay_token"]


@pytest.mark.parametrize("source", ["raises", "is slow", "gives nothing"])
async def test_credentials_that_cannot_be_had_send_nothing(source):
    """Where the source of the credentials fails the upstream hears nothing, and the caller that it may try again."""

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


ANSWERS = st.sampled_from(
    [200, 201, 204, 301, 302, 304, 307, 400, 401, 403, 404, 408, 409, 410, 413, 421, 422, 429]
)
CODES = st.sampled_from(
    ["INVALID_FIELD", "RATE_LIMIT", "PLANNED_MAINTENANCE", "INTERNAL_SERVER_ERROR", "CREDITS_EXHAUSTED", "X"]
)
STATUSES = ANSWERS | st.sampled_from([500, 501, 502, 503, 504, 507, 520, 529, 599])


async def test_any_answer_reads_through_the_gateway_as_it_does_directly(clean_logs):
    """Whatever status, code, cut and framing: the ending of the call is the direct one, or unknown."""

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(STATUSES, CODES, st.booleans(), st.booleans(), st.none() | st.integers(0, 400))
    def draw(status, code, acts, html, cut):
        drawn.append((status, code, acts, html, cut))

    drawn: list[Any] = []
    draw()
    current = PASS
    async with (
        through(lambda: current, client={"retry": RetryPolicy(attempts=1)}) as built,
        RelayClient(
            CREDENTIALS["owner"],
            base_url=f"http://127.0.0.1:{built.proxy.port}",
            retry=RetryPolicy(attempts=1),
        ) as direct,
    ):
        for status, code, acts, as_html, cut in drawn:
            body: Any = "<html>no</html>" if as_html else {"error_type": "API_ERROR", "error_code": code}
            said = build_response(200, body).replace(b"200 OK", f"{status} Whatever".encode())
            current = WireFault(acts, lambda *_, said=said, cut=cut: [said[:cut]], "close")
            endings = []
            for client in (direct, built.clients["owner"]):
                try:
                    await client.relay.create([REPORT_TOKEN], "p")
                except PlaidRelayError as error:
                    endings.append(certainty_of(error))
                else:
                    endings.append(None)
            assert endings[1] in {endings[0], Certainty.IN_DOUBT}, (status, code, acts, as_html, cut, endings)


async def test_nothing_is_unknown_that_the_gateway_refused():
    """The gateway's own refusals of a creation say that nothing was carried out, and name the way out."""
    key, secret = new_key("one", partners=["p"], operations=["/credit/relay/create"])
    async with Simulator(reports=[REPORT_TOKEN]) as plaid:
        async with Gateway([key], upstream=plaid.url, credentials={"default": OWNER}) as gateway:
            for gateway_key, partner in (("plaid-gateway-of-nobody", "p"), (secret, "q")):
                async with RelayClient(gateway_key=gateway_key, base_url=gateway.url) as client:
                    with pytest.raises(PlaidRelayError) as caught:
                        await client.relay.create([REPORT_TOKEN], partner)
                    error = caught.value
                    assert certainty_of(error) is Certainty.DEFINITIVE
                    assert error.error_type == "GATEWAY_ERROR"
                    assert error.suggested_action
        assert not plaid.requests


AT_RANDOM = [
    row.faults[0]
    for section, rows in SECTIONS.items()
    for row in rows
    if section not in {"Limits", "Stalls and slowness"}
    and row.server == "http"
    and row.faults[0] is not PASS
    and not row.settings
    and "MAINTENANCE" not in row.name
    and not row.name.startswith("100 MB")
]


async def test_a_batch_through_faults_at_random_agrees_with_the_ledger(rounds):
    """One attempt in five is struck: who is created has the ledger's token, who is failed has none, nobody two."""
    timeouts = {"timeouts": Timeouts(read=0.5, slow_read=0.5)}
    for seed in range(rounds):
        draw = random.Random(seed)

        def choose(draw=draw) -> WireFault:
            return draw.choice(AT_RANDOM) if draw.random() < 0.2 else PASS

        async with through(choose, client={}, **timeouts) as built:
            requests = RelayCreateRequest.fan_out([REPORT_TOKEN], [f"p{n}" for n in range(300)])
            result = await built.clients["owner"].relay.create_many(requests)
        entries = built.plaid.ledger[1:]
        tokens = {entry["secondary_client_id"]: entry["relay_token"] for entry in entries}
        assert len(tokens) == len(entries)
        for made in result.created:
            assert tokens.pop(made.request.secondary_client_id) == made.relay_token
        assert not tokens.keys() & {failed.request.secondary_client_id for failed in result.failed}
        assert tokens.keys() <= {unknown.request.secondary_client_id for unknown in result.unknown}
        assert result.counts.total() == 300
        assert len(result.created) > 200
