"""The outcomes of calls, one for each request of a batch.

The outcome of a creation is `Created`, `Failed` or `Unknown`. Other operations have another class in place of
`Created`. `Unknown` means that Plaid may have executed the call, and no response shows the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from attrs import field, frozen

from plaid_relay_async.errors import OutcomeUnknownError, PlaidRelayError
from plaid_relay_async.models import (
    RelayCreateRequest,
    RelayCreateResponse,
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
    """Plaid issued a relay token: `response` is what `create` would have returned."""

    response: RelayCreateResponse

    @property
    def relay_token(self) -> str:
        """The relay token of the response, a bearer secret for the request's partner."""
        return self.response.relay_token


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
    """The request was sent, Plaid may have executed it, and no response shows its result. See `error`."""

    error: OutcomeUnknownError


_WORDS: Final[dict[type, str]] = {Failed: "failed", Unknown: "unknown", type(None): "not_attempted"}


def outcome_word(outcome: object) -> str:
    """Return the name of an outcome, as in `Statistics.outcomes`; `None` is `not_attempted`."""
    return _WORDS.get(type(outcome), "succeeded")


Outcome: TypeAlias = Created | Failed | Unknown
LateOutcome: TypeAlias = Created | Refreshed | Removed | Completed | Failed | Unknown
