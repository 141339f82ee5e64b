"""What becomes of the calls of a batch: one outcome for each, and the result of them all."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from attrs import define, field, frozen

from plaid_relay_async.errors import OutcomeUnknownError, PlaidRelayError, reason_of
from plaid_relay_async.models import (
    RelayCreateRequest,
    RelayGetRequest,
    RelayPdfGetRequest,
    RelayRefreshRequest,
    RelayRefreshResponse,
    RelayRemoveRequest,
    RelayRemoveResponse,
)

if TYPE_CHECKING:
    from plaid_relay_async.models import AssetReportGetResponse, PdfResponse

Q = TypeVar("Q")
R = TypeVar("R", bound="AssetReportGetResponse | PdfResponse")
S = TypeVar("S", bound="BaseOutcome[Any]")


@frozen(kw_only=True)
class BaseOutcome(Generic[Q]):
    """What all outcomes have.

    Attributes:
        request: what was asked for.
        attempts: how many HTTP requests were made.
        elapsed: seconds from taking up the request to its outcome, queueing included.
        request_id: Plaid's, where an answer had one.
        journalled: whether the journal holds this outcome.
    """

    request: Q
    attempts: int
    elapsed: float
    request_id: str | None
    journalled: bool = False


@frozen(kw_only=True)
class Created(BaseOutcome[RelayCreateRequest]):
    """Plaid made the relay token: `relay_token`, a bearer secret for the request's partner."""

    relay_token: str = field(repr=False)


@frozen(kw_only=True)
class Fetched(BaseOutcome[RelayGetRequest | RelayPdfGetRequest], Generic[R]):
    """A report was read: `response` is what `get` or `get_pdf` would have given."""

    response: R


@frozen(kw_only=True)
class Refreshed(BaseOutcome[RelayRefreshRequest]):
    """A report is being made anew: `response` names it."""

    response: RelayRefreshResponse


@frozen(kw_only=True)
class Removed(BaseOutcome[RelayRemoveRequest]):
    """Plaid took the relay token back: `response` has its word, or says that it is inferred."""

    response: RelayRemoveResponse


@frozen(kw_only=True)
class Completed(BaseOutcome[Any]):
    """A call of an operation that has no batch, such as `client.asset_report.create`, was carried out.

    Only `RelayClient(on_late_outcome=...)` receives it. `response` is what the call would have returned.
    """

    response: Any = field(repr=False)


@frozen(kw_only=True)
class Failed(BaseOutcome[Any]):
    """Nothing came of it, for nothing was sent, Plaid refused, or a read got lost: `error` says why."""

    error: PlaidRelayError


@frozen(kw_only=True)
class Unknown(BaseOutcome[Any]):
    """An attempt may have been carried out, and no answer tells: `error` has all that is known."""

    error: OutcomeUnknownError


Outcome: TypeAlias = Created | Failed | Unknown
LateOutcome: TypeAlias = Created | Refreshed | Removed | Completed | Failed | Unknown


@frozen(kw_only=True)
class Progress:
    """Where a batch stands: how many requests were taken up, and what became of them."""

    taken: int
    succeeded: int
    failed: int
    unknown: int
    in_flight: int
    elapsed: float

    @property
    def done(self) -> int:
        """How many have an outcome."""
        return self.succeeded + self.failed + self.unknown


@define(repr=False)
class BatchResult(Generic[S]):
    """What became of a batch.

    The counts are of all outcomes. The lists hold them all when the batch was awaited; when it was streamed,
    they hold those that the loop was not handed.

    Attributes:
        succeeded: the outcomes of calls that did what they were for, such as `Created`.
        failed: those of which nothing came.
        unknown: those of which nobody can tell.
        not_attempted: requests that were taken from the input, and of which nothing was sent.
        stopped_by: the error that stopped the batch before its end, if one did.
        counts: how many outcomes of each kind there were, by its name: `"created"`, `"failed"`, `"unknown"`;
            `"fetched"`, `"refreshed"` or `"removed"` in place of the first.
        error_codes: how many outcomes had which `error_code`, or which class of error where there is none.
        elapsed: seconds from start to end.
    """

    succeeded: list[S] = field(factory=list)
    failed: list[Failed] = field(factory=list)
    unknown: list[Unknown] = field(factory=list)
    not_attempted: list[Any] = field(factory=list)
    stopped_by: BaseException | None = None
    counts: Counter[str] = field(factory=Counter)
    error_codes: Counter[str] = field(factory=Counter)
    elapsed: float = 0.0

    @property
    def created(self) -> list[S]:
        """The same as `succeeded`, by the name that suits `create_many`."""
        return self.succeeded

    def __repr__(self) -> str:
        failed, unknown = self.counts["failed"], self.counts["unknown"]
        succeeded = self.counts.total() - failed - unknown
        left = len(self.not_attempted)
        return f"<BatchResult {succeeded=}, {failed=}, {unknown=}, not_attempted={left}>"

    def raise_for_failures(self) -> None:
        """Raise an `ExceptionGroup` if any outcome of the batch is failed or unknown.

        Outcomes that a loop was handed are no longer held here; one error speaks for them. What wasn't
        attempted, for the batch was left, is no failure: see `not_attempted`.

        Raises:
            ExceptionGroup: with the error of each outcome in the lists.
        """
        bad = self.counts["failed"] + self.counts["unknown"]
        errors: list[PlaidRelayError] = [*(o.error for o in self.failed), *(o.error for o in self.unknown)]
        if bad > len(errors):
            codes = ", ".join(f"{code} {count}" for code, count in self.error_codes.most_common())
            handed = bad - len(errors)
            errors.append(PlaidRelayError(f"{handed} were handed to the loop; all: {codes}", sent=None))
        if errors:
            unknown = self.counts["unknown"]
            raise ExceptionGroup(f"{bad - unknown} failed, {unknown} unknown: {self!r}", errors)

    def count_outcome(self, outcome: S | Failed | Unknown) -> None:
        """Count an outcome."""
        self.counts[type(outcome).__name__.lower()] += 1
        if isinstance(outcome, Failed | Unknown):
            self.error_codes[reason_of(outcome.error)] += 1

    def add_outcome(self, outcome: S | Failed | Unknown) -> None:
        """Put a counted outcome into its list."""
        if isinstance(outcome, Failed):
            self.failed.append(outcome)
        elif isinstance(outcome, Unknown):
            self.unknown.append(outcome)
        else:
            self.succeeded.append(outcome)
