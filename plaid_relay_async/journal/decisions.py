"""What a creation may do about its pair, by what the journal has on it: nothing here asks a database."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from attrs import evolve, field, frozen

from plaid_relay_async import errors
from plaid_relay_async.errors import (
    AssetReportError,
    InvalidRequestError,
    OutcomeUnknownError,
    PlaidRelayError,
    reason_of,
)
from plaid_relay_async.journal.schema import CreationState

STARTABLE: Final = (CreationState.ACCEPTED, CreationState.FAILED, CreationState.HELD_ELSEWHERE)
IN_DOUBT: Final = (CreationState.INTENT, CreationState.UNKNOWN)
ISSUED: Final = (CreationState.CREATED, CreationState.REMOVING)

_PERMANENT_ERRORS: Final = (InvalidRequestError, AssetReportError)

OnExisting: TypeAlias = Literal["reuse", "refuse", "create"]


@frozen
class Row:
    """What the journal has of one creation; the names are those of the table's columns."""

    id: int
    run_id: int
    pair: str
    partner: str
    state: CreationState = field(converter=CreationState)
    current: bool
    claim: bool
    holder_id: int
    begun_at: float | None
    ended_at: float | None
    attempts: int
    request_id: str | None
    error: str | None
    error_type: str | None
    error_code: str | None
    status: int | None
    token: str | None = field(repr=False)
    token_digest: str | None = field(repr=False)

    @property
    def startable(self) -> bool:
        """Whether no attempt of it can have made a token, so that it may be begun, or be told as another."""
        return self.state in STARTABLE

    @property
    def issued(self) -> bool:
        """Whether it has a token that may be valid: it counts until its removal is confirmed."""
        return self.state in ISSUED

    @property
    def in_doubt(self) -> bool:
        """Whether it may have made a token that nobody knows; or will, if its holder is alive."""
        return self.state in IN_DOUBT

    def recorded_error(self) -> PlaidRelayError:
        """Return the error that it ended with, as far as it was recorded."""
        cls: type[PlaidRelayError] = getattr(errors, self.error or "", PlaidRelayError)
        facts = self._error_fields(cls)
        if issubclass(cls, _PERMANENT_ERRORS):
            facts["advice"] = (
                "Once the reason is fixed, create again with retry_failed=True (--retry-failed)."
            )
        return cls(f"recorded as {self.state.value} in the journal", **facts)

    def doubt_error(self) -> OutcomeUnknownError:
        """Return the error of an attempt whose outcome is unknown."""
        reason = (
            "recorded as unknown in the journal"
            if self.error
            else "the process stopped before recording an outcome"
        )
        advice = (
            "There may be a token that no one holds. Create again with retry_unknown=True (--retry-unknown) "
            "and accept that there may be two, or ask Plaid's support."
        )
        return OutcomeUnknownError(reason, **self._error_fields(OutcomeUnknownError), advice=advice)

    def _error_fields(self, cls: type[PlaidRelayError]) -> dict[str, Any]:
        names = ("status", "error_type", "error_code", "request_id", "attempts")
        return {name: getattr(self, name) for name in names if hasattr(cls, name)}


def error_columns(error: PlaidRelayError) -> dict[str, Any]:
    """Give the columns of an error, from which `Row.problem` makes one like it."""
    names = ("error_type", "error_code", "status")
    return {"error": type(error).__name__, **{name: getattr(error, name, None) for name in names}}


def may_succeed_later(error: PlaidRelayError) -> bool:
    """Return whether the same creation may succeed another time."""
    return not isinstance(error, _PERMANENT_ERRORS)


# ------------------------------------------------------------------------------------------ the decisions


@frozen
class StartAttempt:
    """It may be begun.

    Attributes:
        row: the row that it goes on with; without, it gets a new one.
        retire: rows that make way for it.
    """

    row: Row | None = None
    retire: tuple[Row, ...] = ()


@frozen
class ServeRecorded:
    """The journal knows what became of it: what that row says."""

    row: Row


@frozen
class RejectDuplicate:
    """There is a token, and there is to be no second one.

    Attributes:
        why: what is known of that token.
        advice: what to do about it.
    """

    reason: str
    advice: str = 'A run that has made no token for this pair makes another with on_existing="create".'


@frozen
class WaitForOther:
    """Somebody is at it, or may have been until a moment ago."""


Decision: TypeAlias = StartAttempt | ServeRecorded | RejectDuplicate | WaitForOther


@frozen
class PairPolicy:
    """What the caller wants of pairs that the journal knows."""

    run_id: int
    on_existing: OnExisting
    retry_unknown: bool
    retry_failed: bool = False

    def with_overrides(self, **settings: bool | None) -> PairPolicy:
        """Return the policy for a call with settings of its own; `None` leaves one as it is."""
        changes: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        return evolve(self, **changes)


def decide(
    own: Row | None, holding: Row | None, policy: PairPolicy, *, in_progress: bool, maybe_in_flight: bool
) -> Decision:
    """Decide on a pair.

    Args:
        own: the current row of this run.
        claim: the row, of whichever run, that has the claim.
        policy: the caller's.
        alive: whether somebody is at one of them, creating or removing.
        late: whether a request that its holder had begun may still be under way.
    """
    if own is not None and own.token is not None and own.state is CreationState.CREATED:
        return ServeRecorded(
            own
        )  # with or without the claim: it may have come late, when another run had gone on
    if in_progress:
        return WaitForOther()
    if holding is not None and holding.issued and not _may_issue_second_token(own, holding, policy):
        return _decide_on_token(own, holding, policy)
    doubt = next((row for row in (holding, own) if row is not None and row.in_doubt), None)
    if doubt is not None and (maybe_in_flight or not policy.retry_unknown):
        return WaitForOther() if policy.retry_unknown else ServeRecorded(doubt)
    if (
        own is not None
        and own.state is CreationState.FAILED
        and doubt is None
        and not _may_retry(own, policy)
    ):
        return ServeRecorded(own)
    return _start_attempt(own, holding)


def _may_issue_second_token(own: Row | None, token: Row, policy: PairPolicy) -> bool:
    """Return whether the run may create another token: that one is another run's, and it has none itself."""
    has_its_own = own is not None and own.issued
    return token.run_id != policy.run_id and policy.on_existing == "create" and not has_its_own


def _decide_on_token(own: Row | None, token: Row, policy: PairPolicy) -> ServeRecorded | RejectDuplicate:
    if token.run_id != policy.run_id:
        if policy.on_existing == "refuse":
            return RejectDuplicate("this pair has a relay token from another run")
        if policy.on_existing == "create" and own is not None:
            token = own  # which can't be served, but counts
    if token.state is CreationState.REMOVING:
        return RejectDuplicate(
            "a removal of this pair's relay token has an unknown outcome: the token may still be valid",
            advice="Remove it again, which is safe; after that, a new one can be created.",
        )
    if token.token is None:
        return RejectDuplicate("this pair has a relay token that was forgotten: the journal can't return it")
    return ServeRecorded(token)


def _may_retry(failed: Row, policy: PairPolicy) -> bool:
    return policy.retry_failed or may_succeed_later(failed.recorded_error())


def _start_attempt(own: Row | None, holding: Row | None) -> StartAttempt:
    """Return the decision to begin, with the run's own row if that is free; other rows are retired."""
    row = own if own is not None and own.startable else None
    retired = {each.id: each for each in (holding, own) if each is not None and each is not row}
    return StartAttempt(row, retire=tuple(retired.values()))


# -------------------------------------------------------------------------------------------- what is told


def outcome_name(state: CreationState, *, alive: bool) -> str:
    """Give the name of the outcome of a row."""
    match state:
        case CreationState.ACCEPTED | CreationState.HELD_ELSEWHERE:
            return "not_attempted"
        case CreationState.INTENT:
            return "in_flight" if alive else "unknown"
        case CreationState.REMOVING:
            return "created"  # nobody has said that it is gone
    return state.value


def error_code_of(row: Row, outcome: str) -> str | None:
    """Give the code of the error with which a row ended."""
    if outcome == "unknown":
        return reason_of(row.doubt_error())
    return reason_of(row.recorded_error()) if outcome == "failed" else None
