"""The operations that have a batch, and how their calls' responses and errors become outcomes.

The table `OPERATIONS` adds to the endpoint table what a batch depends on, and repeats none of its columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic, Never, TypeAlias

from attrs import frozen

from plaid_relay_async import codec
from plaid_relay_async.batch.results import BatchResult, CreationResult, OutcomeT, ResultT
from plaid_relay_async.certainty import outcome_of, reclassify
from plaid_relay_async.errors import (
    ConnectionLostError,
    OutcomeUnknownError,
    PlaidAPIError,
    PlaidRelayError,
)
from plaid_relay_async.outcomes import Created, Failed, Fetched, Outcome, R, Refreshed, Removed, Unknown

if TYPE_CHECKING:
    from plaid_relay_async.models import AssetReportGetResponse, PdfResponse

# The outcome of a read is never unknown.
ReadOutcome: TypeAlias = Fetched[R] | Failed
ReadResult: TypeAlias = BatchResult[Fetched[R], Never]


@frozen
class RequestIdentity:
    """The fields that identify a request, or its report.

    Attributes:
        names: the names of the fields.
    """

    names: tuple[str, ...] = ()

    def digest(self, request: object) -> bytes:
        """Return a digest of the fields of a request: it takes little memory, and shows no token."""
        parts: list[str] = []
        for name in self.names:
            value = getattr(request, name)
            # The order of report tokens makes no difference to Plaid.
            parts += [value] if isinstance(value, str) else sorted(value)
        # With 16 bytes, each digest would need the next larger size class of CPython's allocator.
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=15).digest()


def _needs_no_journal(_request: object) -> bool:
    return False


@frozen
class BatchOperation(Generic[OutcomeT, ResultT]):
    """The properties of an operation that a batch depends on.

    Attributes:
        endpoint: its row of the endpoint table.
        build_success: returns the outcome of a call that got a response, from `response=` and the attributes
            that all outcomes have. It is a success, or `Failed` if the response says that a token wasn't
            removed.
        result_type: the class of the result of its batch.
        identity: the fields that identify a request: if they are equal, two requests are duplicates.
        duplicate_message: the message of the error of a duplicate.
        report_identity: the fields that identify a request's report; none if requests don't share reports.
        advice: what to do about an unknown outcome.
        needs_journal: returns whether a request can't be sent without a journal.
    """

    endpoint: codec.Endpoint[Any, Any]
    build_success: Callable[..., OutcomeT]
    result_type: Callable[[], ResultT]
    identity: RequestIdentity = RequestIdentity(("relay_token",))
    duplicate_message: str = "this relay token is already in the batch"
    report_identity: RequestIdentity = RequestIdentity()
    advice: str = OutcomeUnknownError.advice
    needs_journal: Callable[[Any], bool] = _needs_no_journal

    @property
    def is_safe(self) -> bool:
        """Whether the operation changes nothing, so that no outcome is ever unknown.

        Safe operations return reports, which may be large.
        """
        return self.endpoint.idempotency is codec.Idempotency.SAFE

    def build_outcome(self, request: object, result: Any, *, attempts: int, elapsed: float) -> OutcomeT:
        """Return the outcome of a call.

        Args:
            request: the request of the call.
            result: its response, or its `PlaidRelayError`.
            attempts: the number of attempts, including those that weren't sent.
            elapsed: seconds from reading the request to the end of the call.
        """
        error = self.outcome_error(result) if isinstance(result, PlaidRelayError) else None
        attributes: dict[str, Any] = {
            "request": request,
            "attempts": attempts,
            "elapsed": elapsed,
            "request_id": getattr(result if error is None else error, "request_id", None),
        }
        if error is None:
            return self.build_success(response=result, **attributes)
        outcome: Any = Failed(error=error, **attributes)
        if isinstance(error, OutcomeUnknownError):
            outcome = Unknown(error=error, **attributes)
        return outcome  # type: ignore[no-any-return]

    def interrupted_error(self) -> PlaidRelayError:
        """Return the error of a call that was cancelled during an attempt whose result is not known.

        The transport reports the result (`AttemptGate.attempt_interrupted`), except that of a large report
        that a thread is decoding.
        """
        return self._lost_response_error("the call was cancelled before its response was processed")

    def unexpected_error(self, error: BaseException) -> PlaidRelayError:
        """Return the error of a call that raised something other than a `PlaidRelayError`.

        Whether a request was sent is unknown then: no code expects such an error, so what the call has noted,
        such as its phase, proves nothing.
        """
        unexpected = self._lost_response_error(
            f"{type(error).__name__} was raised during the call", sent=None
        )
        unexpected.__cause__ = error
        return unexpected

    def outcome_error(self, error: PlaidRelayError) -> PlaidRelayError:
        """Return the error for the outcome: an `OutcomeUnknownError` if its result is unknown.

        The error of a safe operation stays as it is.
        """
        if outcome_of(error, is_safe=self.is_safe) == "failed" or isinstance(error, OutcomeUnknownError):
            return error
        unknown = reclassify(error, OutcomeUnknownError, advice=self.advice)
        unknown.__cause__ = error
        return unknown

    def _lost_response_error(self, message: str, **attributes: Any) -> PlaidRelayError:
        if self.is_safe:
            return ConnectionLostError(message, **attributes)
        return OutcomeUnknownError(message, **attributes | {"advice": self.advice})


def _build_removed(*, response: Any, **attributes: Any) -> Removed | Failed:
    if response.removed:
        return Removed(response=response, **attributes)
    error = PlaidAPIError(
        "Plaid's response says that the relay token wasn't removed",
        status=200,
        request_id=response.request_id,
        attempts=attributes["attempts"],
        advice="The partner can still read the report: remove the token again, or ask Plaid's support.",
    )
    return Failed(error=error, **attributes)


CREATE: Final[BatchOperation[Outcome, CreationResult]] = BatchOperation(
    codec.RELAY_CREATE,
    Created,
    CreationResult,
    identity=RequestIdentity(("report_tokens", "secondary_client_id")),
    duplicate_message="this pair of report and partner is already in the batch",
    report_identity=RequestIdentity(("report_tokens",)),
    needs_journal=attrgetter("needs_pair_id"),
)
GET: Final[BatchOperation[ReadOutcome[AssetReportGetResponse], ReadResult[AssetReportGetResponse]]] = (
    BatchOperation(codec.RELAY_GET, Fetched, BatchResult)
)
GET_PDF: Final[BatchOperation[ReadOutcome[PdfResponse], ReadResult[PdfResponse]]] = BatchOperation(
    codec.RELAY_PDF_GET, Fetched, BatchResult
)
REFRESH: Final[BatchOperation[Refreshed | Failed | Unknown, BatchResult[Refreshed, Unknown]]] = (
    BatchOperation(codec.RELAY_REFRESH, Refreshed, BatchResult)
)
REMOVE: Final[BatchOperation[Removed | Failed | Unknown, BatchResult[Removed, Unknown]]] = BatchOperation(
    codec.RELAY_REMOVE,
    _build_removed,
    BatchResult,
    advice="The relay token may have been removed. Remove it again, which is safe: if Plaid doesn't find it, "
    "it was removed.",
)
OPERATIONS: Final[Mapping[str, BatchOperation[Any, Any]]] = {
    operation.endpoint.path: operation for operation in (CREATE, GET, GET_PDF, REFRESH, REMOVE)
}
