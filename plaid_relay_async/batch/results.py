"""The progress of a batch, and its result."""

from __future__ import annotations

from collections import Counter
from typing import Any, Generic, TypeVar

from attrs import define, field, frozen

from plaid_relay_async.errors import PlaidRelayError, reason_of
from plaid_relay_async.outcomes import Created, Failed, S, Unknown

U = TypeVar("U", bound=Unknown)
OutcomeT = TypeVar("OutcomeT")
ResultT = TypeVar("ResultT", bound="BatchResult[Any, Any]")


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
class BatchResult(Generic[S, U]):
    """The result of a batch.

    The counts include all outcomes. If the batch was awaited, the lists hold all of them, too. If it was
    streamed, the lists hold only those that the caller's loop hasn't received.

    Attributes:
        succeeded: the outcomes of calls that succeeded, such as `Removed`.
        failed: the outcomes of calls that failed.
        unknown: the outcomes of calls whose result is unknown; always empty for reads.
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
    unknown: list[U] = field(factory=list)
    not_attempted: list[Any] = field(factory=list)
    stopped_by: BaseException | None = None
    counts: Counter[str] = field(factory=Counter)
    error_codes: Counter[str] = field(factory=Counter)
    elapsed: float = 0.0

    def __repr__(self) -> str:
        failed, unknown = self.counts["failed"], self.counts["unknown"]
        succeeded = self.counts.total() - failed - unknown
        not_attempted = len(self.not_attempted)
        return f"<BatchResult {succeeded=}, {failed=}, {unknown=}, {not_attempted=}>"

    def raise_for_failures(self) -> None:
        """Raise an `ExceptionGroup` if any outcome of the batch is failed or unknown.

        The group has one error for each outcome in the lists. One more error counts the failed and unknown
        outcomes that the caller's loop received, because the lists don't hold them. Requests in
        `not_attempted` aren't failures.

        Raises:
            ExceptionGroup: an outcome is failed or unknown.
        """
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

    def count_outcome(self, outcome: S | Failed | U) -> None:
        """Add an outcome to the counts."""
        self.counts[type(outcome).__name__.lower()] += 1
        if isinstance(outcome, Failed | Unknown):
            self.error_codes[reason_of(outcome.error)] += 1

    def add_outcome(self, outcome: S | Failed | U) -> None:
        """Append a counted outcome to its list."""
        outcomes: list[Any] = self.succeeded
        if isinstance(outcome, Failed | Unknown):
            outcomes = self.failed if isinstance(outcome, Failed) else self.unknown
        outcomes.append(outcome)


@define(repr=False)
class CreationResult(BatchResult[Created, Unknown]):
    """The result of `create_many`."""

    @property
    def created(self) -> list[Created]:
        """The list `succeeded`, by the name of the outcome."""
        return self.succeeded
