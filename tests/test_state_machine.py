"""Client, batch and simulator under anything that may be done to them, in any order, against the ledger."""

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
from support import OWNER, RecordingJournal

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

CREATE, REFRESH, REMOVE = "/credit/relay/create", "/credit/relay/refresh", "/credit/relay/remove"
CONNECTIONS = 3  # fewer than what a batch wants, so that calls queue
RETRY = RetryPolicy(attempts=3, backoff=0.001, max_backoff=0.002, max_pause=0.05)
SHARED = 30  # relay tokens to refresh and remove

# What refuses strikes before the request is acted upon, as with Plaid; what loses an answer, at either time.
REFUSALS = [
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
    st.sampled_from([*REFUSALS, *CUTS]),
    st.builds(
        lambda loss, when: loss | {"when": when},
        st.sampled_from(LOSSES),
        st.sampled_from(["before", "after"]),
    ),
)


class DeliberateError(Exception):
    """Raised by a loop body, or by an input."""


@define(eq=False)
class Notes(RecordingJournal):
    """A journal in memory, which takes its time."""

    begun: list[Any] = field(factory=list)
    ended: list[Any] = field(factory=list)

    async def record_intent(self, request: Any) -> None:
        await asyncio.sleep(0)
        self.begun.append(request)

    async def record_outcome(self, outcome: Any) -> None:
        await asyncio.sleep(0)
        self.ended.append(outcome.request)


@define(eq=False)
class Job:
    """Something that was started: a single call, or a batch in one of its two forms."""

    path: str
    key: str = ""
    task: asyncio.Task[Any] = field(init=False)
    batch: Batch[Any] | None = None
    journal: Notes | None = None
    recorded: bool = False
    taken: list[Any] = field(factory=list)
    seen: list[Any] = field(factory=list)
    told: list[Any] = field(factory=list)

    @property
    def outcomes(self) -> list[Any]:
        result = self.batch.result
        return [*self.seen, *result.succeeded, *result.failed, *result.unknown]


def key_of(request: Any) -> str:
    """What tells one request from all others: its partner, or its token."""
    return getattr(request, "secondary_client_id", None) or getattr(request, "relay_token", request)


def agrees(answer: Any, done: list[Any]) -> bool:
    """Whether what was done is what an outcome or a response tells of."""
    answer = answer.response if isinstance(answer, Refreshed | Removed) else answer
    if hasattr(answer, "asset_report_id"):
        # An answer that is cut off behind its token has the token alone, which is no other than before.
        return len(done) == 1 and answer.asset_report_id in {done[0], None}
    return done == [getattr(answer, "relay_token", True)]


class Machine(RuleBasedStateMachine):
    """Starts calls and batches, cancels, breaks and closes them, and compares what they say with the ledger."""

    jobs = Bundle("jobs")
    server: str | None = None  # the URL of the journal, in place of a file of SQLite

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.partners = (f"partner-{n}" for n in itertools.count())
        self.clients: list[RelayClient] = []
        self.started: list[Job] = []
        self.late: list[Any] = []
        self.trouble: AssertionError | None = None

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
        # With oneself, so that one client may refresh and remove them alike; and by one with time enough.
        wanted = [RelayCreateRequest([self.plaid.add_report()], OWNER.client_id) for _ in range(SHARED)]
        async with RelayClient(OWNER, base_url=self.plaid.url) as client:
            result = await client.relay.create_many(wanted)
        self.shared = [made.relay_token for made in result.created]
        assert len(self.shared) == SHARED

    @property
    def client(self) -> RelayClient:
        return self.clients[-1]

    # ------------------------------------------------------------------------------------ the surroundings

    @rule(
        path=st.sampled_from([CREATE, CREATE, REFRESH, REMOVE]),
        effect=EFFECTS,
        times=st.integers(1, 4),
    )
    def strike(self, path: str, effect: dict[str, Any], times: int) -> None:
        self.plaid.fail(Fault(path=path, times=times, **effect))

    @rule(effect=EFFECTS, rate=st.sampled_from([0.2, 0.7]))
    def strike_often(self, effect: dict[str, Any], rate: float) -> None:
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

    @rule(cancelled_after=st.none() | st.integers(0, 3))
    def close(self, cancelled_after: int | None) -> None:
        """Close the newest client, whatever is in flight; what is started afterwards has a closed one."""

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

    # ------------------------------------------------------------------------------------- what is started

    @rule(
        target=jobs,
        path=st.sampled_from([CREATE, CREATE, REFRESH, REMOVE]),
        within=st.sampled_from([None, None, 0.003]),
    )
    def call(self, path: str, within: float | None) -> Any:
        """One create, refresh or remove."""
        keys = self._take(path, 1)
        if not keys:
            return multiple()
        job, relay = Job(path, keys[0]), self.client.relay
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
        journal=st.builds(Notes) | st.sampled_from([None, "real"]),
    )
    def await_batch(self, **how: Any) -> Any:
        job = self._batch(**how)

        async def collecting() -> Any:
            return await job.batch

        return self._start(job, collecting())

    @rule(
        target=jobs,
        path=st.sampled_from([CREATE, CREATE, REFRESH, REMOVE]),
        count=st.integers(1, 8),
        source=st.sampled_from(["iterable", "async", "breaks"]),
        journal=st.builds(Notes) | st.sampled_from([None, "real"]),
        after=st.integers(1, 6),
        ending=st.sampled_from(["exhaust", "break", "raise"]),
        pace=st.sampled_from([0, 0.002]),
    )
    def stream_batch(self, after: int, ending: str, pace: float, **how: Any) -> Any:
        """Read a stream to its end, or leave its loop in one way or the other after a few outcomes."""
        job = self._batch(**how)

        async def streaming() -> None:
            async with job.batch as outcomes:
                async for outcome in outcomes:
                    job.seen.append(outcome)
                    if len(job.seen) >= after and ending == "break":
                        break
                    if len(job.seen) >= after and ending == "raise":
                        raise DeliberateError
                    await asyncio.sleep(pace)

        return self._start(job, streaming())

    @rule(job=jobs, times=st.integers(1, 3), between=st.integers(0, 3))
    def cancel(self, job: Job, times: int, between: int) -> None:
        """Cancel a task, and perhaps again while it drains."""

        async def cancelling() -> None:
            for _ in range(times):
                job.task.cancel()
                await steps(between)

        self.run(cancelling())

    def _take(self, path: str, count: int) -> list[str]:
        if path == CREATE:
            return list(itertools.islice(self.partners, count))
        return [self.shared.pop() for _ in range(min(count, len(self.shared)))]

    def _batch(self, path: str, count: int, source: str, journal: Notes | str | None) -> Job:
        job, relay, keys = Job(path), self.client.relay, self._take(path, count)
        rows = list(RelayCreateRequest.fan_out([self.report], keys)) if path == CREATE else keys
        how = {"concurrency": 4, "on_outcome": job.told.append}
        job.recorded = path == CREATE and journal == "real"
        if job.recorded:
            how["journal"] = self.real
        elif path == CREATE and isinstance(journal, Notes):
            how["journal"] = job.journal = journal
        make = {CREATE: relay.create_many, REFRESH: relay.refresh_many, REMOVE: relay.remove_many}[path]
        given = taking(rows, job.taken, breaks=source == "breaks")
        job.batch = make(later(given) if source == "async" else given, **how)
        return job

    def _start(self, job: Job, work: Any) -> Job:
        async def starting() -> None:
            job.task = asyncio.create_task(work)
            await asyncio.sleep(0)

        self.run(starting())
        self.started.append(job)
        return job

    # -------------------------------------------------------------------------------------- what must hold

    @invariant()
    def everything_agrees_with_the_ledger(self) -> None:
        # It is raised at the end: hypothesis wants what it draws to be the same each time, and a network isn't.
        try:
            self._check()
        except AssertionError as error:
            self.trouble = self.trouble or error

    def _check(self) -> None:
        done = self._carried_out()
        for job in self.started:
            if job.batch is None:
                self._check_call(job, done[job.key])
            else:
                self._check_batch(job, done)

    def _carried_out(self) -> defaultdict[str, list[Any]]:
        """What Plaid did, by partner or token: the tokens it made, the reports it made anew, the removals."""
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
            # A removal is repeated, and may say what its last attempt was told.
            assert not done or isinstance(error, OutcomeUnknownError) or job.path == REMOVE
        else:
            assert type(error) is TimeoutError
            assert late or not done, "what a call in a timeout did isn't reported"

    def _check_batch(self, job: Job, done: defaultdict[str, list[Any]]) -> None:
        outcomes, left = job.outcomes, [key_of(request) for request in job.batch.result.not_attempted]
        told_of = [key_of(outcome.request) for outcome in outcomes]
        assert max(Counter(told_of + left).values(), default=1) == 1, "a request is counted twice"
        assert not any(done[key] for key in left)
        for outcome in outcomes:
            check_outcome(outcome, done[key_of(outcome.request)])
        self._check_journal(job, outcomes, done)
        if job.task.done():
            assert sorted(told_of + left) == sorted(map(key_of, job.taken)), "a request has no outcome"
            assert {*map(id, job.told)} == {*map(id, outcomes)}
            assert job.batch.result.counts.total() == len(outcomes)
            error = None if job.task.cancelled() else job.task.exception()
            assert error is None or type(error) in {DeliberateError, BatchStoppedError}

    def _check_journal(self, job: Job, outcomes: list[Any], done: defaultdict[str, list[Any]]) -> None:
        if job.journal is None:
            return
        assert all(r in job.journal.begun for r in job.taken if done[key_of(r)]), "sent without a record"
        assert all(o.request in job.journal.ended for o in outcomes if o.journalled), (
            "told before the journal"
        )

    # ---------------------------------------------------------------------------------------- and its end

    def teardown(self) -> None:
        with self.runner:
            self.run(self._finish())

    async def _finish(self) -> None:
        self.plaid.clear_faults()
        tasks = [job.task for job in self.started]
        late = (await asyncio.wait(tasks, timeout=0.05))[1] if tasks else []
        for task in late:
            task.cancel()
        assert not late or not (await asyncio.wait(late, timeout=60))[1], "something hangs"
        for client in self.clients:
            await client.close()
        await self.real.close()
        self.everything_agrees_with_the_ledger()
        if self.trouble is not None:
            raise self.trouble
        async with asyncio.timeout(60):
            await self._resume()
        await self.plaid.close()
        self.folder.cleanup()
        assert {client._session.slots._value for client in self.clients} == {CONNECTIONS}
        await steps(3)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def _resume(self) -> None:
        """Create again for all pairs on record; check that only what may be sent was sent."""
        partners = [key_of(request) for job in self.started if job.recorded for request in job.taken]
        sent = len(self.plaid.requests)
        async with (
            RelayClient(OWNER, base_url=self.plaid.url, retry=RETRY) as client,
            Journal(**self.recording, retry_unknown=self.retry) as journal,
        ):
            known = [record async for record in journal.records("r")] if await journal.runs() else []
            wanted = RelayCreateRequest.fan_out([self.report], partners)
            result = await client.relay.create_many(wanted, journal=journal)
        tokens = {outcome.request.secondary_client_id: outcome.relay_token for outcome in result.created}
        left = Counter(each.secondary_client_id for each in self.plaid.requests[sent:])
        for record in known:
            if record.outcome == "created":
                assert tokens[record.secondary_client_id] == record.relay_token
            if record.outcome == "created" or (record.outcome == "unknown" and not self.retry):
                assert not left[record.secondary_client_id]
        assert not (self.retry and result.unknown)


def check_outcome(outcome: Any, done: list[Any]) -> None:
    if isinstance(outcome, Created | Refreshed | Removed):
        assert agrees(outcome, done)
    elif isinstance(outcome, Failed):
        assert done == []


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def taking(rows: list[Any], taken: list[Any], *, breaks: bool) -> Any:
    for row in rows:
        taken.append(row)
        yield row
    if breaks:
        raise DeliberateError


async def later(rows: Any) -> Any:
    # A cancellation must not come between taking a row and giving it on: it would be lost in here.
    await asyncio.sleep(0)
    for row in rows:
        yield row
        await asyncio.sleep(0)


@pytest.mark.may_block
def test_nothing_is_lost_or_doubled_whatever_is_done_in_whatever_order(rounds):
    """Calls and batches may be cancelled, left and closed at any moment: what they say agrees with the ledger."""
    run(Machine, 20 + rounds)


@pytest.mark.may_block
def test_nothing_is_lost_or_doubled_with_a_journal_on_a_server(rounds, postgres):
    """Nothing is lost or doubled with a journal in PostgreSQL."""

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
