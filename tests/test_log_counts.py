"""Random faults, cancellations and lost writes: the number of log records agrees with what happened."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from attrs import define, evolve, field, frozen
from batch_support import BreakingJournal, all_outcomes
from hypothesis import given, settings
from hypothesis import strategies as st
from log_support import assert_documented, captured_log, records_of
from support import CREATE, OWNER, QUICK
from test_state_machine import CUTS, LOSSES, REJECTIONS

from plaid_relay_async import (
    BatchStoppedError,
    OutcomeUnknownError,
    PlaidRelayError,
    RelayClient,
    RelayCreateRequest,
    Timeouts,
    Unknown,
)
from plaid_relay_async.batch import Batch
from plaid_relay_async.simulator import Fault, Simulator

# Faults that end an attempt immediately, and those that end it by a timeout, or delay it.
IMMEDIATE = [*REJECTIONS, *CUTS, *(each for each in LOSSES if not {"stall", "latency"} & each.keys())]
SLOW = [each for each in LOSSES if {"stall", "latency"} & each.keys()]
# Pauses of a batch don't count as attempts. This limit ends it.
POLICY = evolve(QUICK, max_pause=0.02)


def faults_of(effects: list[dict[str, Any]]) -> st.SearchStrategy[list[Fault]]:
    """Return lists of faults for some or all creations."""

    def fault(effect: dict[str, Any], when: str, rate: float, times: int) -> Fault:
        timing = {"when": when} if effect in LOSSES else {}
        return Fault(path=CREATE, rate=rate, times=times, **effect, **timing)

    one = st.builds(
        fault,
        st.sampled_from(effects),
        st.sampled_from(["before", "after"]),
        st.sampled_from([0.3, 1.0]),
        st.integers(1, 5),
    )
    return st.lists(one, max_size=4)


@frozen
class Work:
    """A single call or a batch, and how it is interrupted.

    Attributes:
        size: the number of requests of the batch; 0 for a single call.
        journal_lasts: the number of records after which the journal fails; `None` for no journal.
        interruption: what happens to it: nothing, `cancel`, twice `cancel`, `abandon` or `leave`.
        after: the number of iterations of the event loop after which it is interrupted.
    """

    size: int
    journal_lasts: int | None
    interruption: str
    after: int


WORKS = st.lists(
    st.builds(
        Work,
        size=st.sampled_from([0, 0, 1, 5, 9]),
        journal_lasts=st.sampled_from([None, None, 0, 1, 2, 5, 1_000]),
        interruption=st.sampled_from(["", "", "cancel", "cancel twice", "abandon", "leave"]),
        after=st.sampled_from([1, 3, 10, 30, 100]),
    ),
    min_size=1,
    max_size=4,
)


@define
class Run:
    """What happened, as the callers know it."""

    client: RelayClient
    report: str
    late: list[Any] = field(factory=list)
    results: list[Any] = field(factory=list)
    batches: list[Batch[Any, Any]] = field(factory=list)
    recorded: list[Batch[Any, Any]] = field(factory=list)  # the batches with a journal

    def on_late_outcome(self, outcome: Any) -> None:
        """Note a late outcome, and lose every second one."""
        self.late.append(outcome)
        if len(self.late) % 2:
            raise ValueError("lost")

    async def do(self, number: int, work: Work) -> None:
        """Make the calls of one work; errors are results."""
        journal = (
            None if work.journal_lasts is None else BreakingJournal(breaks_at_outcome=work.journal_lasts)
        )
        batch: Batch[Any, Any] | None = None
        if work.size:
            requests = RelayCreateRequest.fan_out(
                [self.report], [f"w{number}-p{partner}" for partner in range(work.size)]
            )
            batch = self.client.relay.create_many(requests, journal=journal, concurrency=3)
            self.batches.append(batch)
            self.recorded += [batch] if journal else []
        task = asyncio.create_task(self._work(number, work, journal, batch))
        if work.interruption:
            for _ in range(work.after):
                await asyncio.sleep(0)
            if work.interruption == "abandon" and batch is not None:
                batch.abandon()
            elif work.interruption != "leave":
                task.cancel()
                await asyncio.sleep(0)
                if work.interruption == "cancel twice":
                    task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and not isinstance(task.exception(), BatchStoppedError):
            task.result()

    async def _work(
        self, number: int, work: Work, journal: BreakingJournal | None, batch: Batch[Any, Any] | None
    ) -> None:
        if batch is None:
            try:
                await self.client.relay.create([self.report], f"w{number}", journal=journal)
                self.results.append(None)
            except PlaidRelayError as error:
                self.results.append(error)
        elif work.interruption == "leave":
            async with batch as outcomes:
                async for outcome in outcomes:
                    batch.result.add_outcome(outcome)  # it has those that the loop didn't receive
                    break
        else:
            await batch

    @property
    def outcomes(self) -> list[Any]:
        """The outcomes of all batches."""
        return [outcome for batch in self.batches for outcome in all_outcomes(batch.result)]


async def run_works(faults: list[Fault], works: list[Work], *, timeouts: Timeouts) -> tuple[Run, Simulator]:
    async with Simulator() as plaid:
        report = plaid.add_report()
        plaid.fail(*faults)
        run = Run(None, report)
        async with RelayClient(
            OWNER,
            base_url=plaid.url,
            retry=POLICY,
            timeouts=timeouts,
            connections=4,
            on_late_outcome=run.on_late_outcome,
        ) as run.client:
            await asyncio.gather(*(run.do(number, work) for number, work in enumerate(works)))
            await plaid.close()  # the attempts of one more call aren't sent
            await run.do(len(works), Work(0, None, "", 0))
    return run, plaid


def check_counts(records: list[Any], run: Run) -> None:
    """Check the number of records of each kind."""
    assert_documented(records)
    statistics = run.client.statistics()
    everything = records_of(records)
    attempts = [each for each in everything if each["event"] == "attempt"]
    ends = [each for each in everything if each["event"] == "call_end"]
    assert Counter(each["certainty"] for each in attempts) == statistics.attempts
    assert len(records_of(records, event="retry")) == sum(statistics.retries.values())
    assert max(Counter((each["call"], each["attempt"]) for each in attempts).values(), default=1) == 1
    for event in ("call_end", "late_outcome", "write_lost"):
        assert (
            max(Counter(each["call"] for each in records_of(records, event=event)).values(), default=1) == 1
        )
    assert {each["call"] for each in attempts} <= {each["call"] for each in ends}
    # One warning for each unknown outcome: of batches, of single calls, and of cancelled ones.
    unknown = [
        *(each for each in run.outcomes if isinstance(each, Unknown)),
        *(each for each in run.results if isinstance(each, OutcomeUnknownError)),
        *(each for each in run.late if isinstance(each, Unknown)),
    ]
    warnings = [each for each in ends if each["outcome"] == "unknown"]
    assert len(warnings) == len(unknown)
    assert len(records_of(records, event="late_outcome")) == (len(run.late) + 1) // 2
    # One for each outcome of a batch that its journal hasn't confirmed; a single call has no hyphen.
    lost = [each for each in records_of(records, event="write_lost") if "-" in each["call"]]
    outcomes = [outcome for batch in run.recorded for outcome in all_outcomes(batch.result)]
    assert len(lost) == sum(not outcome.journalled for outcome in outcomes)
    for event in ("batch_start", "batch_end"):
        batches = Counter(each["batch"] for each in records_of(records, event=event))
        assert max(batches.values(), default=1) == 1
        assert len(batches) == sum(batch.result.elapsed > 0 for batch in run.batches)


@settings(max_examples=30)
@given(faults_of(IMMEDIATE + SLOW), WORKS)
def test_each_event_has_one_record(faults, works):
    """Each attempt, retry, end of a call, unknown outcome and batch has one record, however calls are interrupted."""
    timeouts = Timeouts(read=0.03, slow_read=0.03, total=0.5, drain=0.05)
    with captured_log() as records:
        run, _ = asyncio.run(run_works(faults, works, timeouts=timeouts))
    check_counts(records, run)


@settings(max_examples=30)
@given(
    faults_of(IMMEDIATE),
    st.lists(st.builds(Work, st.integers(0, 9), st.none(), st.just(""), st.just(0)), min_size=1),
)
def test_each_request_of_the_simulator_has_one_record(faults, works):
    """The log has as many attempts as the simulator has seen requests, and those that weren't sent."""
    with captured_log() as records:
        run, plaid = asyncio.run(run_works(faults, works, timeouts=Timeouts()))
    check_counts(records, run)
    attempts = Counter(each["certainty"] for each in records_of(records, event="attempt"))
    assert plaid.counts[CREATE] == attempts.total() - attempts["not_sent"]


def test_an_event_loop_that_is_interrupted():
    """A KeyboardInterrupt cancels all tasks: each call in flight drains, and has one warning."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        async with (
            Simulator(reports=["report"], faults=[Fault(path=CREATE, stall=60, when="after")]) as plaid,
            RelayClient(OWNER, base_url=plaid.url, timeouts=Timeouts(drain=0.1)) as client,
        ):
            requests = RelayCreateRequest.fan_out(["report"], ["p1", "p2", "p3"])
            batch = client.relay.create_many(requests, journal=BreakingJournal())
            async with batch, asyncio.TaskGroup() as group:
                group.create_task(client.relay.create(["report"], "single"))
                group.create_task(client.relay.create(["report"], "recorded", journal=BreakingJournal()))
                while plaid.counts[CREATE] < 5:
                    await asyncio.sleep(0.01)
                asyncio.get_running_loop().call_soon(interrupt)

    with captured_log() as records, pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert_documented(records)
    ends = records_of(records, event="call_end")
    assert sorted(end["partner"] for end in ends) == ["p1", "p2", "p3", "recorded", "single"]
    assert {end["outcome"] for end in ends} == {"unknown"}
    assert {record.levelname for record in records if record.plaid_event == "call_end"} == {"WARNING"}
    assert len(records_of(records, event="batch_end")) == 1
