"""Small inputs with faults, and what must be equal after a local run and a run on Temporal of the same input."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from hypothesis import strategies as st
from journal_support import read_records
from support import CREATE

from plaid_relay_async import PlaidRelayError, RelayCreateRequest
from plaid_relay_async.simulator import Fault

if TYPE_CHECKING:
    from plaid_relay_async.simulator import Simulator

# The faults of one pair, by name. Each pair has a partner of its own, so the order of the calls doesn't matter.
FAULTS: dict[str, dict[str, Any]] = {
    "item error": {"status": 400, "body": {"error_type": "ITEM_ERROR", "error_code": "ITEM_LOCKED"}},
    "invalid": {"status": 400, "body": {"error_type": "INVALID_INPUT", "error_code": "INVALID_FIELD"}},
    "declined once": {"status": 429, "times": 1, "headers": {"retry-after": "0"}},
    "server error": {"status": 500},
    "server error after": {"status": 500, "when": "after"},
    "lost before": {"close": True},
    "lost after": {"close": True, "when": "after"},
    "truncated": {"truncate": 20},
    "another success": {"status": 200, "body": {"token": "relay-sandbox-of-a-later-release"}},
    "causes": {
        "status": 400,
        "body": {
            "error_type": "ASSET_REPORT_ERROR",
            "error_code": "DATA_UNAVAILABLE",
            "causes": [{"item_id": "i"}],
            "display_message": "d",
            "suggested_action": "s",
        },
    },
    "slow": {"latency": 0.05},
}
# With these, the outcome of a pair depends on the errors before it, so they need calls one after another.
SHARED_FAULTS: dict[str, dict[str, Any]] = {
    "report error": {"status": 400, "body": {"error_type": "ASSET_REPORT_ERROR"}},
    "wrong secret": {"status": 400, "body": {"error_code": "INVALID_API_KEYS"}},
}


@frozen
class SmallInput:
    """The pairs of a run, and the faults of each run of it.

    Attributes:
        pairs: the numbers of the pairs, in order, with duplicates. An even number is of the first report.
        faults: the name of the fault of each pair that has one.
        concurrency: the concurrency of the batch.
    """

    pairs: list[int]
    faults: dict[int, str] = field(factory=dict)
    concurrency: int = 4

    def requests(self, plaid: Simulator) -> list[RelayCreateRequest]:
        """Return requests for new reports, so that no other run has their pairs."""
        reports = [plaid.add_report(), plaid.add_report()]
        return [RelayCreateRequest([reports[pair % 2]], f"partner-{pair}") for pair in self.pairs]

    def script(self, plaid: Simulator) -> None:
        """Replace the faults of a simulator."""
        plaid.clear_faults()
        for pair, name in self.faults.items():
            fault = (FAULTS | SHARED_FAULTS)[name]
            plaid.fail(Fault(path=CREATE, secondary_client_id=f"partner-{pair}", **fault))


def small_inputs() -> st.SearchStrategy[SmallInput]:
    """Return a strategy for inputs of up to seven requests."""
    pairs = st.lists(st.integers(0, 6), min_size=1, max_size=7)

    def build(names: dict[str, Any], concurrency: int) -> st.SearchStrategy[SmallInput]:
        faults = st.dictionaries(st.integers(0, 6), st.sampled_from(sorted(names)), max_size=5)
        return st.builds(SmallInput, pairs, faults, st.just(concurrency))

    return st.one_of(build(FAULTS, 4), build(FAULTS | SHARED_FAULTS, 1))


JOURNAL_SETTINGS = st.fixed_dictionaries(
    {
        "on_existing": st.sampled_from(["reuse", "refuse", "create"]),
        "retry_unknown": st.booleans(),
        "retry_failed": st.booleans(),
    }
)


def comparable_outcome(outcome: Any) -> tuple[Any, ...]:
    """Return what two outcomes of the same request must have in common: not tokens, request IDs or times."""
    return (
        outcome.request.secondary_client_id,
        type(outcome).__name__,
        outcome.attempts,
        outcome.journalled,
        outcome.request_id is None,
        str(comparable_error(getattr(outcome, "error", None))),
    )


def comparable_result(result: Any) -> dict[str, Any]:
    """Return what the results of two runs of the same input must have in common."""
    return {
        "outcomes": sorted(
            comparable_outcome(each) for each in [*result.succeeded, *result.failed, *result.unknown]
        ),
        "not attempted": sorted(each.secondary_client_id for each in result.not_attempted),
        "stopped by": str(comparable_error(result.stopped_by)),
        "counts": dict(result.counts),
        "error codes": dict(result.error_codes),
    }


def comparable_error(error: BaseException | None) -> tuple[Any, ...] | None:
    """Return what two errors must have in common: all but request IDs, and tokens in bodies.

    The same holds for the errors of this package that caused them.
    """
    if error is None:
        return None
    classes = [each for each in type(error).__mro__ if issubclass(each, PlaidRelayError)]
    names = sorted({name for each in classes for name in vars(each) if not name.startswith("_")})
    attributes = {name: getattr(error, name) for name in names if name != "request_id"}
    if (body := attributes.get("body")) is not None:
        attributes["body"] = re.sub(rb"sandbox-[^\"]*|request_id.*", b"", body.reveal())
    cause = error.__cause__ if isinstance(error.__cause__, PlaidRelayError) else None
    return (type(error).__name__, error.args[0], attributes, comparable_error(cause))


async def comparable_run(journal: Any, run: str) -> dict[str, Any]:
    """Return what the records of two runs of the same input must have in common."""
    records, status = await read_records(journal, run), await journal.status(run)
    rows = [
        (
            *(each.secondary_client_id, each.outcome, each.error_code, each.attempts, each.own),
            each.relay_token is not None,
            each.request_id is not None,
        )
        for each in records
    ]
    return {
        "records": sorted(map(str, rows)),
        "counts": dict(status.counts),
        "error codes": dict(status.error_codes),
    }
