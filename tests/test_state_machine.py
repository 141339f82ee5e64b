"""A model-based test of client, batch and journal: operations in any order, compared with the simulator's ledger."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter, defaultdict
from typing import Any

import pytest
from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from journal_support import KEY
from support import CREATE, OWNER, REFRESH, REMOVE, RecordingJournal, session_of

from plaid_relay_async import (
    BatchStoppedError,
    Created,
    Failed,
    OutcomeUnknownError,
    PlaidRelayError,
    Refreshed,
    RelayClient,
    RelayCreateRequest,
    Removed,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.batch import Batch
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault, Simulator

CONNECTIONS = 3  # fewer than the concurrency of a batch, so that calls queue
RETRY = RetryPolicy(attempts=3, backoff=0.001, max_backoff=0.002, max_pause=0.05)
SHARED = 30  # relay tokens to refresh and remove

# As at Plaid, a request is rejected before it is executed. A response is lost before or after that.
REJECTIONS = [
    {"status": 400},
    {"status": 429},
    {"status": 429, "headers": {"Retry-After": "0.01"}},
    {"status": 429, "headers": {"Retry-After": "60"}},
    {"status": 503, "body": {"error_type": "API_ERROR", "error_code": "PLANNED_MAINTENANCE"}},
]
LOSSES = [
    {"close": True},
    {"stall": 0.004},
    {"stall": 30},
    {"status": 500},
    {"status": 502, "body": "<html>"},
    {"latency": 0.004},
    {"latency": 0.03},
]
CUTS = [{"truncate": 0}, {"truncate": 30}, {"truncate": 90}]
EFFECTS = st.one_of(
    st.sampled_from([*REJECTIONS, *CUTS]),
    st.builds(
        lambda loss, when: loss | {"when": when},
        st.sampled_from(LOSSES),
        st.sampled_from(["before", "after"]),
    ),
)


class DeliberateError(Exception):
    """Raised by a loop body, or by an input."""


@define(eq=False)
class SlowJournal(RecordingJournal):
    """A journal in memory, which waits before it records."""

    intents: list[Any] = field(factory=list)
    outcomes: list[Any] = field(factory=list)

    async def record_intent(self, request: Any) -> None:
        await asyncio.sleep(0)
        self.intents.append(request)

    async def record_outcome(self, outcome: Any) -> None:
        await asyncio.sleep(0)
        self.outcomes.append(outcome.request)


@define(eq=False)
class Job:
    """A single call, or a batch that is awaited or streamed."""

    path: str
    key: str = ""
    task: asyncio.Task[Any] = field(init=False)
    batch: Batch[Any, Any] | None = None
    journal: SlowJournal | None = None
    recorded: bool = False
    read: list[Any] = field(factory=list)
    streamed: list[Any] = field(factory=list)
    reported: list[Any] = field(factory=list)

    @property
    def outcomes(self) -> list[Any]:
        result = self.batch.result
        return [*self.streamed, *result.succeeded, *result.failed, *result.unknown]


def key_of(request: Any) -> str:
    """Return the identity of a request: its partner, or its token."""
    return getattr(request, "secondary_client_id", None) or getattr(request, "relay_token", request)


def agrees(result: Any, done: list[Any]) -> bool:
    """Return whether an outcome or a response agrees with what Plaid did."""
    response = result.response if isinstance(result, Refreshed | Removed) else result
    if hasattr(response, "asset_report_id"):
        # A response that was cut after its token lacks the id of the report.
        return len(done) == 1 and response.asset_report_id in {done[0], None}
    return done == [getattr(response, "relay_token", True)]


class Machine(RuleBasedStateMachine):
    """Starts, cancels and closes calls and batches, and compares their outcomes with the ledger."""

    jobs = Bundle("jobs")
    server: str | None = None  # the URL of the journal; None for a SQLite file

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.partners = (f"partner-{n}" for n in itertools.count())
        self.clients: list[RelayClient] = []
        self.started: list[Job] = []
        self.late: list[Any] = []
        self.failure: AssertionError | None = None

    @initialize(retry=st.booleans())
    def set_up(self, *, retry: bool) -> None:
        self.retry = retry
        self.folder = tempfile.TemporaryDirectory()
        self.recording = {"url": self.server or f"{self.folder.name}/relay.db", "run": "r", "key": KEY}
        self.real = Journal(**self.recording)
        self.run(self.real.open())
        self.plaid = Simulator()
        self.run(self.plaid.start())
        self.report = self.plaid.add_report()
        self.run(self._share())
        self.open()

    async def _share(self) -> None:
        # The lender is its own partner here, so that one client can refresh and remove the tokens. This client has
        # timeouts that are long enough.
        requests = [RelayCreateRequest([self.plaid.add_report()], OWNER.client_id) for _ in range(SHARED)]
        async with RelayClient(OWNER, base_url=self.plaid.url) as client:
            result = await client.relay.create_many(requests)
        self.shared = [created.relay_token for created in result.created]
        assert len(self.shared) == SHARED

    @property
    def client(self) -> RelayClient:
        return self.clients[-1]

    # ------------------------------------------------------------------------------------- the environment

    @rule(
        path=st.sampled_from([CREATE, CREATE, REFRESH, REMOVE]),
        effect=EFFECTS,
        times=st.integers(1, 4),
    )
    def add_fault(self, path: str, effect: dict[str, Any], times: int) -> None:
        self.plaid.fail(Fault(path=path, times=times, **effect))

    @rule(effect=EFFECTS, rate=st.sampled_from([0.2, 0.7]))
    def add_random_fault(self, effect: dict[str, Any], rate: float) -> None:
        self.plaid.fail(Fault(rate=rate, **effect))

    @rule()
    def heal(self) -> None:
        self.plaid.clear_faults()

    @rule(drain=st.sampled_from([0.002, 0.1]))
    def open(self, drain: float = 0.1) -> None:
        timeouts = Timeouts(read=0.03, slow_read=0.03, total=0.5, drain=drain)
        client = RelayClient(
            OWNER,
            base_url=self.plaid.url,
            timeouts=timeouts,
            retry=RETRY,
            connections=CONNECTIONS,
            on_late_outcome=self.late.append,
        )
        self.run(client.open())
        self.clients.append(client)
        self.caller = client

    @rule(options=st.sampled_from([{"credentials": OWNER}, {"retry": RETRY}, {}]))
    def share_pool(self, options: dict[str, Any]) -> None:
        """Make the next calls with another client on the pool of the newest one, which may be closed."""
        self.caller = self.client.with_options(**options)

    @rule(cancelled_after=st.none() | st.integers(0, 3))
    def close(self, cancelled_after: int | None) -> None:
        """Close the newest client, whatever is in flight; later rules use the closed client."""

        async def closing() -> None:
            task = asyncio.create_task(self.client.close())
            if cancelled_after is not None:
                await steps(cancelled_after)
                task.cancel()
            await asyncio.wait([task])

        self.run(closing())

    @rule(count=st.integers(1, 30))
    def step(self, count: int) -> None:
        self.run(steps(count))

    @rule(seconds=st.sampled_from([0.002, 0.01]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # ------------------------------------------------------------------------------------ calls and batches

    @rule(
        target=jobs,
        path=st.sampled_from([CREATE, CREATE, REFRESH, REMOVE]),
        within=st.sampled_from([None, None, 0.003]),
    )
    def call(self, path: str, within: float | None) -> Any:
        """Start a create, refresh or remove."""
        keys = self._take_keys(path, 1)
        if not keys:
            return multiple()
        job, relay = Job(path, keys[0]), self.caller.relay
        make = {
            CREATE: lambda: relay.create([self.report], job.key),
            REFRESH: lambda: relay.refresh(job.key),
            REMOVE: lambda: relay.remove(job.key),
        }[path]

        async def calling() -> Any:
            async with asyncio.timeout(within):
                return await make()

        return self._start(job, calling())

    @rule(
        target=jobs,
        path=st.sampled_from([CREATE, CREATE, REFRESH, REMOVE]),
        count=st.integers(1, 8),
        source=st.sampled_from(["iterable", "async", "breaks"]),
        journal=st.builds(SlowJournal) | st.sampled_from([None, "real"]),
    )
    def await_batch(self, **arguments: Any) -> Any:
        job = self._create_batch(**arguments)

        async def collecting() -> Any:
            return await job.batch

        return self._start(job, collecting())

    @rule(
        target=jobs,
        path=st.sampled_from([CREATE, CREATE, REFRESH, REMOVE]),
        count=st.integers(1, 8),
        source=st.sampled_from(["iterable", "async", "breaks"]),
        journal=st.builds(SlowJournal) | st.sampled_from([None, "real"]),
        after=st.integers(1, 6),
        ending=st.sampled_from(["exhaust", "break", "raise"]),
        pause=st.sampled_from([0, 0.002]),
    )
    def stream_batch(self, after: int, ending: str, pause: float, **arguments: Any) -> Any:
        """Read a stream to its end, or leave its loop by `break` or an exception after a few outcomes."""
        job = self._create_batch(**arguments)

        async def streaming() -> None:
            async with job.batch as outcomes:
                async for outcome in outcomes:
                    job.streamed.append(outcome)
                    if len(job.streamed) >= after and ending == "break":
                        break
                    if len(job.streamed) >= after and ending == "raise":
                        raise DeliberateError
                    await asyncio.sleep(pause)

        return self._start(job, streaming())

    @rule(job=jobs, times=st.integers(1, 3), between=st.integers(0, 3))
    def cancel(self, job: Job, times: int, between: int) -> None:
        """Cancel a task, possibly several times while it drains."""

        async def cancelling() -> None:
            for _ in range(times):
                job.task.cancel()
                await steps(between)

        self.run(cancelling())

    def _take_keys(self, path: str, count: int) -> list[str]:
        if path == CREATE:
            return list(itertools.islice(self.partners, count))
        return [self.shared.pop() for _ in range(min(count, len(self.shared)))]

    def _create_batch(self, path: str, count: int, source: str, journal: SlowJournal | str | None) -> Job:
        job, relay, keys = Job(path), self.caller.relay, self._take_keys(path, count)
        rows = list(RelayCreateRequest.fan_out([self.report], keys)) if path == CREATE else keys
        options = {"concurrency": 4, "on_outcome": job.reported.append}
        job.recorded = path == CREATE and journal == "real"
        if job.recorded:
            options["journal"] = self.real
        elif path == CREATE and isinstance(journal, SlowJournal):
            options["journal"] = job.journal = journal
        make = {CREATE: relay.create_many, REFRESH: relay.refresh_many, REMOVE: relay.remove_many}[path]
        source_rows = record_reads(rows, job.read, breaks=source == "breaks")
        job.batch = make(read_later(source_rows) if source == "async" else source_rows, **options)
        return job

    def _start(self, job: Job, work: Any) -> Job:
        async def starting() -> None:
            job.task = asyncio.create_task(work)
            await asyncio.sleep(0)

        self.run(starting())
        self.started.append(job)
        return job

    # ------------------------------------------------------------------------------------------ invariants

    @invariant()
    def everything_agrees_with_the_ledger(self) -> None:
        # A failure is raised at the end, because hypothesis requires deterministic draws and a network isn't deterministic.
        try:
            self._check()
        except AssertionError as error:
            self.failure = self.failure or error

    def _check(self) -> None:
        done = self._carried_out()
        for job in self.started:
            if job.batch is None:
                self._check_call(job, done[job.key])
            else:
                self._check_batch(job, done)

    def _carried_out(self) -> defaultdict[str, list[Any]]:
        """Return what Plaid did, by partner or token: tokens issued, reports refreshed, tokens removed."""
        done: defaultdict[str, list[Any]] = defaultdict(list)
        for entry in self.plaid.ledger:
            if entry["secondary_client_id"] != OWNER.client_id:
                done[entry["secondary_client_id"]].append(entry["relay_token"])
            elif entry["removed"]:
                done[entry["relay_token"]].append(True)
        for token, report_id in self.plaid.refreshes:
            done[token].append(report_id)
        assert all(len(each) == 1 for each in done.values()), "something was done twice"
        return done

    def _check_call(self, job: Job, done: list[Any]) -> None:
        if not job.task.done():
            return
        late = [outcome for outcome in self.late if key_of(outcome.request) == job.key]
        for outcome in late:
            check_outcome(outcome, done)
        if job.task.cancelled():
            assert late or not done, "what a cancelled call did isn't reported"
            return
        error = job.task.exception()
        if error is None:
            assert agrees(job.task.result(), done)
        elif isinstance(error, PlaidRelayError):
            # A removal is repeated, and may end with the error of its last attempt.
            assert not done or isinstance(error, OutcomeUnknownError) or job.path == REMOVE
        else:
            assert type(error) is TimeoutError
            assert late or not done, "what a call in a timeout did isn't reported"

    def _check_batch(self, job: Job, done: defaultdict[str, list[Any]]) -> None:
        outcomes, unsent = job.outcomes, [key_of(request) for request in job.batch.result.not_attempted]
        with_outcome = [key_of(outcome.request) for outcome in outcomes]
        assert max(Counter(with_outcome + unsent).values(), default=1) == 1, "a request is counted twice"
        assert not any(done[key] for key in unsent)
        for outcome in outcomes:
            check_outcome(outcome, done[key_of(outcome.request)])
        self._check_journal(job, outcomes, done)
        if job.task.done():
            assert sorted(with_outcome + unsent) == sorted(map(key_of, job.read)), "a request has no outcome"
            assert {*map(id, job.reported)} == {*map(id, outcomes)}
            assert job.batch.result.counts.total() == len(outcomes)
            error = None if job.task.cancelled() else job.task.exception()
            assert error is None or type(error) in {DeliberateError, BatchStoppedError}

    def _check_journal(self, job: Job, outcomes: list[Any], done: defaultdict[str, list[Any]]) -> None:
        if job.journal is None:
            return
        assert all(r in job.journal.intents for r in job.read if done[key_of(r)]), "sent without a record"
        assert all(o.request in job.journal.outcomes for o in outcomes if o.journalled), (
            "reported before it was recorded"
        )

    # -------------------------------------------------------------------------------------------- teardown

    def teardown(self) -> None:
        with self.runner:
            self.run(self._finish())

    async def _finish(self) -> None:
        self.plaid.clear_faults()
        tasks = [job.task for job in self.started]
        unfinished = (await asyncio.wait(tasks, timeout=0.05))[1] if tasks else []
        for task in unfinished:
            task.cancel()
        assert not unfinished or not (await asyncio.wait(unfinished, timeout=60))[1], "something hangs"
        for client in self.clients:
            await client.close()
        await self.real.close()
        self.everything_agrees_with_the_ledger()
        if self.failure is not None:
            raise self.failure
        async with asyncio.timeout(60):
            await self._resume()
        await self.plaid.close()
        self.folder.cleanup()
        assert {session_of(client).slots._value for client in self.clients} == {CONNECTIONS}
        await steps(3)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def _resume(self) -> None:
        """Create for all recorded pairs again; check that only those are sent that may be."""
        partners = [key_of(request) for job in self.started if job.recorded for request in job.read]
        sent = len(self.plaid.requests)
        async with (
            RelayClient(OWNER, base_url=self.plaid.url, retry=RETRY) as client,
            Journal(**self.recording, retry_unknown=self.retry) as journal,
        ):
            recorded = [record async for record in journal.records("r")] if await journal.runs() else []
            requests = RelayCreateRequest.fan_out([self.report], partners)
            result = await client.relay.create_many(requests, journal=journal)
        tokens = {outcome.request.secondary_client_id: outcome.relay_token for outcome in result.created}
        sent_again = Counter(each.secondary_client_id for each in self.plaid.requests[sent:])
        for record in recorded:
            if record.outcome == "created":
                assert tokens[record.secondary_client_id] == record.relay_token
            if record.outcome == "created" or (record.outcome == "unknown" and not self.retry):
                assert not sent_again[record.secondary_client_id]
        assert not (self.retry and result.unknown)


def check_outcome(outcome: Any, done: list[Any]) -> None:
    if isinstance(outcome, Created | Refreshed | Removed):
        assert agrees(outcome, done)
    elif isinstance(outcome, Failed):
        assert done == []


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def record_reads(rows: list[Any], read: list[Any], *, breaks: bool) -> Any:
    for row in rows:
        read.append(row)
        yield row
    if breaks:
        raise DeliberateError


async def read_later(rows: Any) -> Any:
    # A cancellation between reading a row and yielding it would lose the row here.
    await asyncio.sleep(0)
    for row in rows:
        yield row
        await asyncio.sleep(0)


@pytest.mark.may_block
def test_no_token_is_lost_or_duplicated_in_any_order_of_events(rounds):
    """Calls and batches may be cancelled, left and closed at any moment: their outcomes agree with the ledger."""
    run(Machine, 20 + rounds)


@pytest.mark.may_block
def test_no_token_is_lost_or_duplicated_with_a_journal_on_a_server(rounds, postgres):
    """The same holds with a journal in PostgreSQL."""

    class OnServer(Machine):
        server = postgres.url

        def __init__(self) -> None:
            asyncio.run(postgres.reset())
            super().__init__()

    run(OnServer, 2 + rounds)


def run(machine, examples):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
