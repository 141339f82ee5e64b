"""Random histories of pairs of report and partner, compared with a model and with the ledger."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from attrs import define, evolve, field
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from journal_support import KEY, ResponseGate, execute, gated_responses
from sqlalchemy import select
from support import CREATE, OWNER, QUICK, REMOVE
from worker_processes import worker_processes

from plaid_relay_async import (
    Created,
    DuplicateRequestError,
    Failed,
    RelayClient,
    RelayCreateRequest,
    Unknown,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.journal.schema import entries
from plaid_relay_async.simulator import Fault, Simulator

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(4 * 3600), pytest.mark.slow]
SHORT = evolve(QUICK, max_pause=0.001)
ONCE = evolve(SHORT, attempts=1)
HISTORIES = 200  # in one world: the data of the simulator and the journal slow down later ones
WITHIN = 60  # seconds for one step, which normally takes milliseconds
FAULTS = {
    "success": None,
    "refused": {"status": 400},
    "busy": {"status": 503, "body": {"error_code": "PLANNED_MAINTENANCE"}},
    "lost before": {"status": 500, "when": "before"},
    "lost after": {"status": 500, "when": "after"},
}
RUNS, PARTNERS = ["a", "b", "c"], ["p", "q"]

# Success is more frequent, because most faults are only of interest before or after a success.
runs, partners, faults = (
    st.sampled_from(names) for names in (RUNS, PARTNERS, ["success", "success", *FAULTS])
)
flags = st.booleans()
policies = st.builds(
    lambda on_existing, unknown, failed: {
        "on_existing": on_existing,
        "retry_unknown": unknown,
        "retry_failed": failed,
    },
    st.sampled_from(["reuse", "reuse", "refuse", "create"]),
    flags,
    flags,
)
PLAIN = {"on_existing": "reuse", "retry_unknown": False, "retry_failed": False}
RETRY = PLAIN | {"retry_unknown": True}
ANOTHER = PLAIN | {"on_existing": "create"}
which = st.integers(0, 3)
creations = st.tuples(st.just("create"), runs, policies, faults)
short_steps = st.one_of(
    creations,
    creations,
    st.tuples(st.just("remove"), which, faults),
    st.tuples(st.just("kill creation"), runs, partners, policies, st.sampled_from(["before", "after"])),
    st.tuples(st.just("kill removal"), which, st.sampled_from(["before", "after"])),
    st.tuples(st.just("forget"), runs),
    st.tuples(st.just("retrieve"), partners),
)
between = st.lists(short_steps, max_size=2)
ends = st.sampled_from(["lapsed", "ended"])
# A declined attempt would be repeated when its response is delivered. By then its fault is over.
late_faults = st.sampled_from([name for name in FAULTS if name != "busy"])
steps = st.one_of(
    short_steps,
    st.tuples(st.just("late creation"), runs, partners, policies, late_faults, ends, between),
    st.tuples(st.just("late removal"), which, late_faults, ends, between),
)


# --------------------------------------------------------------------------------------------- the model


@define(eq=False)
class Attempt:
    """A creation whose request was sent.

    Attributes:
        run: the run that sent it.
        state: `created`, `removing`, `removed`, `failed` or `unknown`.
        token: the token that its run received.
        forgotten: whether the journal no longer has the token.
        final: whether it is a failure that is only repeated with `retry_failed`; `None` if either is allowed.
        retrieved: whether a retrieval of the pair was recorded for it.
    """

    run: str
    state: str
    token: str | None = None
    forgotten: bool = False
    final: bool | None = False
    retrieved: bool = False


def expected(attempts, run, policy):
    """Return the allowed results of a creation: `sent`, `created`, `unknown`, `refused` or `failed`."""
    own = next((each for each in reversed(attempts) if each.run == run), None)
    of = {
        state: [each for each in attempts if each.state == state]
        for state in Counter(e.state for e in attempts)
    }
    tokens, removing, doubts = (of.get(state, []) for state in ("created", "removing", "unknown"))
    issued = own is not None and own.state in {"created", "removing"}
    if own in tokens and not own.forgotten:
        return {"created"}
    if tokens:
        return expected_beside(tokens, own, run, policy, issued=issued)
    if retrieved := [each for each in doubts if each.retrieved]:
        return {
            way for each in retrieved for way in expected_beside_doubt(each, own, run, policy, issued=issued)
        }
    if doubts:
        return {"sent"} if policy["retry_unknown"] else {"unknown"}
    if removing:
        begins = beginning(own, policy) if policy["on_existing"] == "create" and not issued else set()
        return begins if begins and all(each.run != run for each in removing) else {"refused", *begins}
    return beginning(own, policy)


def beginning(own, policy):
    """Return the allowed results if only a failure of the run itself may be returned instead of sending."""
    if own is None or own.state != "failed" or policy["retry_failed"]:
        return {"sent"}
    return {True: {"failed"}, False: {"sent"}, None: {"failed", "sent"}}[own.final]


def expected_beside(tokens, own, run, policy, *, issued):
    """Return the allowed results if the pair has a token that this run can't return as its own."""
    other_run = any(each.run != run for each in tokens)
    this_run = any(each.run == run for each in tokens)
    ways = set()
    if policy["on_existing"] == "reuse":
        return {"created"} if any(not each.forgotten for each in tokens) else {"refused"}
    if policy["on_existing"] != "refuse" or this_run:
        ways |= {"created"} if this_run else set()
        ways |= {"refused"} if any(each.forgotten for each in tokens) else set()
    if other_run and policy["on_existing"] == "refuse":
        ways.add("refused")
    if other_run and policy["on_existing"] == "create":
        if issued:
            ways.add("refused")
        elif own is not None and own.state == "unknown" and own.retrieved:
            ways.add("refused" if policy["retry_unknown"] else "unknown")
        elif own is not None and own.state == "unknown" and not policy["retry_unknown"]:
            ways.add("unknown")
        else:
            ways |= beginning(own, policy)
    return ways


def expected_beside_doubt(retrieved, own, run, policy, *, issued):
    """Return the allowed results if an unknown attempt is known to have a token."""
    may_add = policy["on_existing"] == "create" and retrieved.run != run and not issued
    own_doubt = own is not None and own.state == "unknown"
    if not may_add or (own_doubt and own.retrieved):
        return {"refused"} if policy["retry_unknown"] else {"unknown"}
    if own_doubt:
        return {"sent"} if policy["retry_unknown"] else {"unknown"}
    return beginning(own, policy)


def kind_of(outcome):
    if isinstance(outcome, Failed):
        return "refused" if isinstance(outcome.error, DuplicateRequestError) else "failed"
    return type(outcome).__name__.lower()


# ----------------------------------------------------------------------------------------------- the world


@define(eq=False)
class World:
    """A journal, a simulator, and the model's state of each pair.

    Attributes:
        clients: the client of each run; one spells the host in another way.
        responses: holds back the responses to the late client.
        dead: makes all workers of the journal look dead to others, although one may be alive.
        workers: starts worker processes, which are killed.
        reader: the journal, opened without creating.
        number: the number of the history.
        opened: the runs of this history.
        pairs: the attempts for each partner.
    """

    url: str
    reader: Journal
    plaid: Simulator
    clients: dict
    late_client: RelayClient
    responses: ResponseGate
    dead: object
    workers: object
    report: str
    number: int = 0
    opened: set = field(init=False)
    pairs: dict = field(init=False)
    running: asyncio.Future = field(init=False)

    async def run_history(self, steps):
        """Run a history, and check the ledger."""
        self.number += 1
        self.opened, self.pairs = set(), {partner: [] for partner in PARTNERS}
        for step in steps:
            await self.run_step(step)
        self.check_ledger()

    async def run_step(self, step):
        name, *arguments = step
        async with asyncio.timeout(WITHIN):
            await getattr(self, name.replace(" ", "_"))(*arguments)
            await self.check_records()

    def fail(self, path, fault):
        if FAULTS[fault]:
            self.plaid.fail(Fault(path=path, **FAULTS[fault]))

    def named(self, name):
        """Return the name of a run or partner in this history; all histories share one journal."""
        return f"{name}-{self.number}"

    def journal(self, run, policy):
        self.opened.add(run)
        return {"url": self.url, "run": self.named(run), "key": KEY, **policy}

    # -------------------------------------------------------------------------------------- in good order

    async def create(self, run, policy, fault):
        """Create for both partners concurrently."""
        self.fail(CREATE, fault)
        sent = len(self.plaid.requests)
        async with Journal(**self.journal(run, policy)) as journal:
            fanned = RelayCreateRequest.fan_out([self.report], map(self.named, PARTNERS))
            result = await self.clients[run].relay.create_many(
                fanned, journal=journal, retry=SHORT, concurrency=2
            )
        self.plaid.clear_faults()
        left = {request.secondary_client_id for request in self.plaid.requests[sent:]}
        outcomes = [*result.created, *result.failed, *result.unknown]
        assert len(outcomes) == len(PARTNERS)
        for outcome in outcomes:
            named = outcome.request.secondary_client_id
            partner = next(each for each in PARTNERS if self.named(each) == named)
            self.compare(partner, run, policy, fault, outcome, sent=named in left)

    def compare(self, partner, run, policy, fault, outcome, *, sent):
        """Compare an outcome with the model."""
        attempts = self.pairs[partner]
        ways = expected(attempts, run, policy)
        if fault == "busy" and not sent and "sent" in ways and kind_of(outcome) in {"failed", "unknown"}:
            sent = True  # or would have been sent without the pause that another attempt caused
        assert ("sent" if sent else kind_of(outcome)) in ways
        if sent:
            attempts.append(self.attempt(attempts, run, fault, outcome))
            return
        if isinstance(outcome, Created):
            assert outcome.relay_token in {each.token for each in attempts if each.state == "created"}
        self.allow_retry(attempts, run)

    def allow_retry(self, attempts, run):
        """Allow a retry of the run's failure, because a recorded or rejected outcome may have replaced it."""
        own = next((each for each in reversed(attempts) if each.run == run), None)
        if own is not None and own.state == "failed" and own.final:
            own.final = None

    def attempt(self, attempts, run, fault, outcome):
        is_created = fault == "success"
        assert isinstance(outcome, Created) == is_created
        if fault.startswith("lost"):
            assert isinstance(outcome, Unknown)
        if isinstance(outcome, Unknown):
            in_doubt = any(each.state == "unknown" for each in attempts)
            assert in_doubt or fault.startswith("lost")
        token = outcome.relay_token if is_created else None
        state = type(outcome).__name__.lower()
        return Attempt(run, state, token, final=fault == "refused")

    def pick_token(self, number):
        """Return one of the tokens whose removal isn't confirmed, or `None`."""
        tokens = [
            each
            for attempts in self.pairs.values()
            for each in attempts
            if each.state in {"created", "removing"}
        ]
        return tokens[number % len(tokens)] if tokens else None

    async def remove(self, number, fault):
        attempt = self.pick_token(number)
        if attempt is None:
            return
        self.fail(REMOVE, fault)
        async with Journal(self.url, key=KEY) as journal:
            await self.clients["a"].relay.remove_many(
                [attempt.token], journal=journal, retry=SHORT, concurrency=1
            )
        self.plaid.clear_faults()
        self.record_removal(attempt, fault)

    def record_removal(self, attempt, fault):
        if fault == "success":
            attempt.state = "removed"
        elif fault.startswith("lost"):
            attempt.state = "removing"

    async def forget(self, run):
        if run not in self.opened:
            return
        await self.reader.forget(self.named(run))
        for attempt in itertools.chain(*self.pairs.values()):
            attempt.forgotten |= attempt.run == run and attempt.state in {"created", "removing"}

    async def retrieve(self, partner):
        """Record a retrieval, perhaps late, with any token that was issued for the pair."""
        named = self.named(partner)
        if named not in {line["secondary_client_id"] for line in self.plaid.ledger}:
            return
        query = select(entries.c.pair).where(entries.c.partner == named, entries.c.begun_at.is_not(None))
        pairs = {pair for (pair,) in await execute(self.url, query)}
        (record,) = filter(None, [await self.reader.record_retrieval(pair) for pair in pairs])
        states = {"created": {"created", "removing"}}.get(record.outcome, {record.outcome})
        attempt = next(
            each
            for each in reversed(self.pairs[partner])
            if self.named(each.run) == record.run and each.state in states
        )
        attempt.retrieved = True

    # ----------------------------------------------------------------------------- workers that are killed

    async def kill_creation(self, run, partner, policy, when):
        attempts = self.pairs[partner]
        ways = expected(attempts, run, policy)
        arguments = [[self.report], self.named(partner)]
        sent = await self._send_and_kill(CREATE, when, self.journal(run, policy), "create", arguments)
        assert "sent" in ways if sent else ways - {"sent"}
        if sent:
            attempts.append(Attempt(run, "unknown"))
        else:
            self.allow_retry(attempts, run)

    async def kill_removal(self, number, when):
        attempt = self.pick_token(number)
        if attempt is None:
            return
        assert await self._send_and_kill(
            REMOVE, when, {"url": self.url, "key": KEY}, "remove", [attempt.token]
        )
        attempt.state = "removing"

    async def _send_and_kill(self, path, when, journal, operation, arguments):
        self.plaid.fail(Fault(path=path, latency=1000.0, when=when))
        sent = await self.workers.kill_in_flight(
            self.plaid,
            base_url=base_url_for(self.plaid, "localhost"),
            journal=journal,
            operation=operation,
            arguments=arguments,
        )
        self.plaid.clear_faults()
        await self.dead("lapsed")
        return sent

    # --------------------------------------------------- workers that look dead, and then have an outcome

    async def late_creation(self, run, partner, policy, fault, end, steps):
        attempts = self.pairs[partner]
        ways = expected(attempts, run, policy)
        async with Journal(**self.journal(run, policy)) as journal:
            requests = [RelayCreateRequest([self.report], self.named(partner))]
            batch = self.late_client.relay.create_many(requests, journal=journal, retry=ONCE, concurrency=1)
            if await self._start_late(CREATE, fault, batch):
                assert "sent" in ways
                doubts = any(each.state == "unknown" for each in attempts)
                attempt = Attempt(run, "unknown")
                attempts.append(attempt)
                result = await self._finish_late(end, steps)
                (outcome,) = [*result.created, *result.failed, *result.unknown]
                others = [Attempt(run, "unknown")] if doubts else []
                late = self.attempt(others, run, fault, outcome)
                attempt.state, attempt.token, attempt.final = late.state, late.token, late.final
            else:
                result = await self.running
                (outcome,) = [*result.created, *result.failed, *result.unknown]
                self.compare(partner, run, policy, fault, outcome, sent=False)

    async def late_removal(self, number, fault, end, steps):
        attempt = self.pick_token(number)
        if attempt is None:
            return
        state = attempt.state
        async with Journal(self.url, key=KEY) as journal:
            batch = self.late_client.relay.remove_many(
                [attempt.token], journal=journal, retry=ONCE, concurrency=1
            )
            assert await self._start_late(REMOVE, fault, batch)
            attempt.state = "removing"
            # Nothing else removes the same token meanwhile, because the model has no rule for two removals.
            await self._finish_late(end, [each for each in steps if "remov" not in each[0]])
            attempt.state = state
            self.record_removal(attempt, fault)

    async def _start_late(self, path, fault, batch):
        """Start a batch of one request, and return whether it was sent; then its response is held back."""
        self.fail(path, fault)
        self.responses.gate.clear()
        self.responses.held.clear()
        self.running = asyncio.ensure_future(collected(batch))
        waiting = asyncio.create_task(self.responses.held.wait())
        await asyncio.wait([self.running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        self.plaid.clear_faults()
        return self.responses.held.is_set()

    async def _finish_late(self, end, steps):
        await self.dead(end)
        for step in steps:
            await self.run_step(step)
        self.responses.gate.set()
        return await self.running

    # ---------------------------------------------------------------------------------------------- checks

    async def check_records(self):
        """Check that each token that isn't forgotten, and each doubt without a token, is recorded."""
        records = [record for run in self.opened async for record in self.reader.records(self.named(run))]
        for partner, attempts in self.pairs.items():
            partner_records = [
                record for record in records if record.secondary_client_id == self.named(partner)
            ]
            tokens = {each.token for each in attempts if each.state == "created" and not each.forgotten}
            assert {record.relay_token for record in partner_records} >= tokens
            states = {each.state for each in attempts}
            if "unknown" in states and "created" not in states:
                assert "unknown" in {record.outcome for record in partner_records}
            if any(each.state == "unknown" and each.retrieved for each in attempts):
                assert any(record.outcome == "unknown" and record.retrieved_at for record in partner_records)

    def check_ledger(self):
        """Check that each token was received by a run, apart from one for each attempt in doubt."""
        attempts = [each for attempts in self.pairs.values() for each in attempts]
        received = {each.token for each in attempts if each.token is not None}
        names = {*map(self.named, PARTNERS)}
        issued = {line["relay_token"] for line in self.plaid.ledger if line["secondary_client_id"] in names}
        assert received <= issued
        assert len(issued) <= len(received) + sum(each.state == "unknown" for each in attempts)


async def collected(batch):
    return await batch


@asynccontextmanager
async def world(url, dead, workers):
    async with (
        Simulator() as plaid,
        RelayClient(OWNER, base_url=base_url_for(plaid, "localhost"), retry=SHORT) as client,
        RelayClient(OWNER, base_url=base_url_for(plaid, "LOCALHOST"), retry=SHORT) as other,
        gated_responses() as responses,
        RelayClient(
            OWNER, base_url=base_url_for(plaid, "localhost"), retry=ONCE, session=responses.session
        ) as late_client,
        Journal(url, key=KEY) as reader,
    ):
        report, clients = plaid.add_report(), {"a": client, "b": client, "c": other}
        yield World(url, reader, plaid, clients, late_client, responses, dead, workers, report)


def base_url_for(plaid, host):
    return plaid.url.replace("127.0.0.1", host)


@define(eq=False)
class Worlds:
    """Provides worlds: many histories share one, until one of them fails.

    Attributes:
        make: creates a world.
        runner: runs the histories in one event loop.
    """

    make: object
    runner: asyncio.Runner
    _stack: AsyncExitStack | None = None
    _world: World | None = None

    def run_history(self, steps):
        self.runner.run(self._run_history(steps))

    async def _run_history(self, steps):
        if self._stack is None:
            self._stack = AsyncExitStack()
            self._world = await self._stack.enter_async_context(self.make())
        try:
            await self._world.run_history(steps)
        except BaseException:
            await self._close()
            raise
        if self._world.number == HISTORIES:
            await self._close()

    async def _close(self):
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    def close(self):
        self.runner.run(self._close())


@contextmanager
def worlds(make):
    with asyncio.Runner() as runner:
        opened = Worlds(make, runner)
        try:
            yield opened
        finally:
            opened.close()


# ----------------------------------------------------------------------------------------------- histories

REFUSED_REMOVAL = [
    ("kill creation", "a", "p", PLAIN, "before"),
    ("create", "a", RETRY, "success"),
    ("remove", 0, "refused"),
    ("create", "b", PLAIN, "success"),
    ("create", "b", RETRY, "success"),
]
LATE_TOKEN = [
    (
        *("late creation", "a", "p", PLAIN, "success", "lapsed"),
        [("kill creation", "a", "p", RETRY, "before")],
    ),
    ("create", "a", PLAIN, "success"),
    ("create", "b", RETRY, "success"),
]
UNKNOWN_REMOVAL = [
    ("create", "a", PLAIN, "success"),
    ("remove", 0, "lost before"),
    ("create", "a", RETRY, "success"),
    ("create", "b", PLAIN, "success"),
    ("create", "b", ANOTHER, "success"),
]
FORGOTTEN = [
    ("create", "a", PLAIN, "success"),
    ("forget", "a"),
    ("create", "a", ANOTHER, "success"),
    ("create", "b", ANOTHER, "success"),
    ("create", "a", ANOTHER, "success"),
]
ANOTHER_SPELLING = [
    ("create", "a", PLAIN, "success"),
    ("create", "c", PLAIN, "success"),
]
FAILED_BESIDE_A_REMOVAL = [
    ("create", "a", PLAIN, "success"),
    ("create", "b", ANOTHER, "refused"),
    ("remove", 0, "lost before"),
    ("create", "b", ANOTHER, "success"),
]
KILLED_BESIDE_A_TOKEN = [
    ("create", "a", PLAIN, "success"),
    ("kill creation", "b", "p", ANOTHER, "before"),
    ("create", "c", RETRY, "success"),
    ("create", "b", PLAIN, "success"),
]
RETRIEVED = [
    ("create", "a", PLAIN, "lost after"),
    ("retrieve", "p"),
    ("create", "b", RETRY, "success"),
    ("create", "a", ANOTHER, "success"),
    ("create", "c", ANOTHER, "lost before"),
    ("create", "b", RETRY, "success"),
    ("create", "b", ANOTHER, "refused"),
    ("create", "b", PLAIN, "success"),
]
RETRIEVED_WHILE_IN_FLIGHT = [
    (
        *("late creation", "a", "p", PLAIN, "success", "lapsed"),
        [("retrieve", "p"), ("create", "b", RETRY, "success")],
    ),
    ("create", "a", PLAIN, "success"),
]
KILLED_BESIDE_A_RETRIEVED_TOKEN = [
    ("create", "a", PLAIN, "lost after"),
    ("retrieve", "p"),
    ("kill creation", "b", "p", ANOTHER, "before"),
    ("create", "c", RETRY, "success"),
]
REFUSED_RETRY = [
    ("create", "a", RETRY, "lost after"),
    ("create", "b", RETRY, "refused"),
    ("create", "c", PLAIN, "success"),
]


REGRESSIONS = (
    REFUSED_REMOVAL,
    LATE_TOKEN,
    UNKNOWN_REMOVAL,
    FORGOTTEN,
    ANOTHER_SPELLING,
    FAILED_BESIDE_A_REMOVAL,
    KILLED_BESIDE_A_TOKEN,
    RETRIEVED,
    RETRIEVED_WHILE_IN_FLIGHT,
    KILLED_BESIDE_A_RETRIEVED_TOKEN,
    REFUSED_RETRY,
)


def run_histories(make, examples):
    """Run a number of random histories, and those that have revealed a defect before."""
    with worlds(make) as opened:
        configured(opened.run_history, examples)


def configured(live, examples):
    def check(steps):
        live(steps)

    for each in REGRESSIONS:
        check = example(each)(check)
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    configuration = settings(max_examples=examples, deadline=None, suppress_health_check=health)
    configuration(given(st.lists(steps, min_size=3, max_size=8))(check))()


@pytest.fixture(scope="module")
def worker_starter():
    with worker_processes() as opened:
        yield opened


def test_histories_of_pairs(size, worker_starter):
    """On SQLite, no history hides a valid token or a doubt, or creates a token that wasn't requested."""

    @asynccontextmanager
    async def make():
        with tempfile.TemporaryDirectory() as folder:

            async def dead(_):
                for lock in Path(folder).glob("*.lock"):  # noqa: ASYNC240
                    lock.unlink()

            async with world(f"{folder}/relay.db", dead, worker_starter) as opened:
                yield opened

    run_histories(make, size(20, 10_000))


def test_histories_of_pairs_on_a_server(size, worker_starter, postgres):
    """On PostgreSQL, no history hides a valid token or a doubt, or creates a token that wasn't requested."""
    updates = {"lapsed": "expires_at = 0, request_seconds = 0", "ended": "ended = true"}

    async def dead(end):
        await postgres.execute(f"UPDATE relay_holders SET {updates[end]}")

    @asynccontextmanager
    async def make():
        await postgres.reset()
        async with world(postgres.url, dead, worker_starter) as opened:
            yield opened

    run_histories(make, size(2, 1_000))
