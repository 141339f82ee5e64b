"""The outcomes of calls, one for each request of a batch, and the result of a batch.

The outcome of a creation is `Created`, `Failed` or `Unknown`. Other operations have another class in place of
`Created`. `Unknown` means that the call ended in doubt: Plaid may have executed it.
"""

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
    """The attributes that all outcomes have.

    Attributes:
        request: the request.
        attempts: the number of attempts, including those that weren't sent; 0 if the journal had the outcome.
        elapsed: seconds from reading the request to its outcome, including the time in queues.
        request_id: Plaid's identifier of the request, if a response contained one.
        journalled: whether the outcome is recorded in the journal.
    """

    request: Q
    attempts: int
    elapsed: float
    request_id: str | None
    journalled: bool = False


@frozen(kw_only=True)
class Created(BaseOutcome[RelayCreateRequest]):
    """Plaid issued a relay token: `relay_token`, a bearer secret for the request's partner."""

    relay_token: str = field(repr=False)


@frozen(kw_only=True)
class Fetched(BaseOutcome[RelayGetRequest | RelayPdfGetRequest], Generic[R]):
    """A report was read: `response` is what `get` or `get_pdf` would have returned."""

    response: R


@frozen(kw_only=True)
class Refreshed(BaseOutcome[RelayRefreshRequest]):
    """Plaid is generating a new version of a report: `response` identifies it."""

    response: RelayRefreshResponse


@frozen(kw_only=True)
class Removed(BaseOutcome[RelayRemoveRequest]):
    """The relay token is removed: `response` says whether Plaid confirmed that or it is inferred."""

    response: RelayRemoveResponse


@frozen(kw_only=True)
class Completed(BaseOutcome[Any]):
    """A call of an operation that has no batch, such as `client.asset_report.create`, succeeded.

    Only `RelayClient(on_late_outcome=...)` receives it. `response` is what the call would have returned.
    """

    response: Any = field(repr=False)


@frozen(kw_only=True)
class Failed(BaseOutcome[Any]):
    """The call failed and changed nothing: it wasn't sent, it was rejected, or it was a read. See `error`."""

    error: PlaidRelayError


@frozen(kw_only=True)
class Unknown(BaseOutcome[Any]):
    """An attempt may have been executed, and no response says whether it was. See `error`."""

    error: OutcomeUnknownError


Outcome: TypeAlias = Created | Failed | Unknown
LateOutcome: TypeAlias = Created | Refreshed | Removed | Completed | Failed | Unknown


@frozen(kw_only=True)
class Progress:
    """The progress of a batch.

    Attributes:
        requests_read: the number of requests that were read from the input.
        succeeded: the number of calls that succeeded.
        failed: the number of calls that failed.
        unknown: the number of calls whose outcome is unknown.
        pending: the number of requests that were read and have no outcome yet.
        elapsed: seconds since the start of the batch.
    """

    requests_read: int
    succeeded: int
    failed: int
    unknown: int
    pending: int
    elapsed: float

    @property
    def done(self) -> int:
        """The number of requests that have an outcome."""
        return self.succeeded + self.failed + self.unknown


@define(repr=False)
class BatchResult(Generic[S]):
    """The result of a batch.

    The counts include all outcomes. If the batch was awaited, the lists hold all of them, too. If it was
    streamed, the lists hold only those that the caller's loop hasn't received.

    Attributes:
        succeeded: the outcomes of calls that succeeded, such as `Created`.
        failed: the outcomes of calls that failed.
        unknown: the outcomes of calls that ended in doubt.
        not_attempted: requests that were read from the input, and not sent because the batch ended first.
        stopped_by: the error that stopped the batch before the end of its input, or `None`.
        counts: the number of outcomes of each kind, by name: `"created"`, `"failed"`, `"unknown"`;
            `"fetched"`, `"refreshed"` or `"removed"` in place of the first.
        error_codes: the number of failed and unknown outcomes by `error_code`, or by the name of the error's
            class if there is no code.
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
        """The list `succeeded`, by a name that suits `create_many`."""
        return self.succeeded

    def __repr__(self) -> str:
        failed, unknown = self.counts["failed"], self.counts["unknown"]
        succeeded = self.counts.total() - failed - unknown
        not_attempted = len(self.not_attempted)
        return f"<BatchResult {succeeded=}, {failed=}, {unknown=}, {not_attempted=}>"

    def raise_for_failures(self) -> None:
        """Raise an `ExceptionGroup` if any outcome of the batch is failed or unknown.

        The group has one error for each outcome in the lists. One more error counts the outcomes that the
        caller's loop received, which are no longer in the lists. Requests in `not_attempted` aren't failures.

        Raises:
            ExceptionGroup: an outcome is failed or unknown.
        """
        # The lists of a streamed batch lack the outcomes that the loop received; the counts include them.
        total = self.counts["failed"] + self.counts["unknown"]
        errors: list[PlaidRelayError] = [*(o.error for o in self.failed), *(o.error for o in self.unknown)]
        if total > len(errors):
            codes = ", ".join(f"{code} {count}" for code, count in self.error_codes.most_common())
            received = total - len(errors)
            errors.append(
                PlaidRelayError(
                    f"the loop received {received} of the failed and unknown outcomes; "
                    f"all errors of the batch: {codes}",
                    sent=None,
                    advice="See the error of each outcome that the loop received.",
                )
            )
        if errors:
            unknown = self.counts["unknown"]
            raise ExceptionGroup(f"{total - unknown} failed, {unknown} unknown: {self!r}", errors)

    def count_outcome(self, outcome: S | Failed | Unknown) -> None:
        """Add an outcome to the counts."""
        self.counts[type(outcome).__name__.lower()] += 1
        if isinstance(outcome, Failed | Unknown):
            self.error_codes[reason_of(outcome.error)] += 1

    def add_outcome(self, outcome: S | Failed | Unknown) -> None:
        """Append a counted outcome to its list."""
        if isinstance(outcome, Failed):
            self.failed.append(outcome)
        elif isinstance(outcome, Unknown):
            self.unknown.append(outcome)
        else:
            self.succeeded.append(outcome)
