"""The decision on a creation, from the recorded state of its pair: pure functions without a database.

A creation may start an attempt, be served the recorded outcome, be rejected as a duplicate, or wait. An
attempt that is in doubt is never repeated without `retry_unknown`, because it may have created a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from attrs import evolve, field, frozen

from plaid_relay_async import errors
from plaid_relay_async.error_codes import PERMANENT_ERRORS
from plaid_relay_async.errors import OutcomeUnknownError, PlaidRelayError, reason_of
from plaid_relay_async.journal.schema import CreationState

if TYPE_CHECKING:
    from collections.abc import Iterable

# States in which no attempt of the row can have created a token.
STARTABLE: Final = (CreationState.NOT_ATTEMPTED, CreationState.FAILED, CreationState.HELD_ELSEWHERE)
# States in which an attempt of the row may have created a token that isn't recorded.
IN_DOUBT: Final = (CreationState.INTENT, CreationState.UNKNOWN)
# States in which a recorded token may be valid.
ISSUED: Final = (CreationState.CREATED, CreationState.REMOVING)

_RETRIEVED: Final = "the partner has retrieved the report"
_CREATE_AGAIN_ADVICE: Final = (
    'Another run can create a second token for this pair, with on_existing="create" (--on-existing create).'
)

OnExisting: TypeAlias = Literal["reuse", "refuse", "create"]


@frozen
class Row:
    """A row of the table of creations; the attributes are its columns, by their names in the code.

    Attributes:
        id: the row, unique in the journal.
        run_id: the run that it belongs to.
        pair: the digest of namespace, report and partner.
        partner: the partner's ID at Plaid, the secondary client ID.
        state: the state of the creation.
        current: whether it is the run's latest row for its pair; a run has at most one for each pair.
        holds_pair: whether it holds its pair; at most one row does, over all runs.
        worker_id: the worker that inserted the row, or recorded the latest intent to create or remove a
            token; 0 once a removal has ended.
        begun_at: when its latest intent to create was recorded, in seconds since 1970, by the database's
            clock; an intent that was undone counts only if there was no earlier intent.
        ended_at: when its outcome was recorded, by the same clock.
        attempts: the number of attempts of the latest call whose outcome was recorded, including attempts
            that weren't sent; 0 if there is none.
        request_id: Plaid's request ID, if a response had one.
        error: the name of the error's class.
        error_type: Plaid's error_type.
        error_code: Plaid's error_code.
        status: the HTTP status of the error.
        token: the relay token as it is stored, encrypted if there is a key.
        token_digest: the digest of the relay token.
        retrieved_at: when the pair's partner first retrieved the report, as far as that is known, in seconds
            since 1970. It proves that the pair has a token.
    """

    id: int
    run_id: int
    pair: str
    partner: str
    state: CreationState = field(converter=CreationState)
    current: bool
    holds_pair: bool
    worker_id: int
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
    retrieved_at: float | None

    @property
    def startable(self) -> bool:
        """Whether an attempt may start in this row, because no earlier attempt can have created a token."""
        return self.state in STARTABLE

    @property
    def issued(self) -> bool:
        """Whether it has a token that may be valid; a token counts until its removal is confirmed."""
        return self.state in ISSUED

    @property
    def has_returnable_token(self) -> bool:
        """Whether it has a token that the journal can return: not one that is removed or forgotten."""
        return self.state is CreationState.CREATED and self.token is not None

    @property
    def in_doubt(self) -> bool:
        """Whether an attempt may have created an unrecorded token, or may still create one."""
        return self.state in IN_DOUBT and self.retrieved_at is None

    @property
    def has_unrecorded_token(self) -> bool:
        """Whether the pair has an unrecorded token: its partner has retrieved the report with it."""
        return self.state in IN_DOUBT and self.retrieved_at is not None

    def recorded_columns(self) -> dict[str, Any]:
        """Return the columns to restore when an intent is undone; the row has no token to restore."""
        names = ("state", "begun_at", "ended_at", "attempts", "request_id")
        return {name: getattr(self, name) for name in (*names, "error", "error_type", "error_code", "status")}

    def recorded_error(self) -> PlaidRelayError:
        """Return the error that the creation ended with, as far as it was recorded."""
        cls: type[PlaidRelayError] = getattr(errors, self.error or "", PlaidRelayError)
        fields = self._error_fields(cls)
        if issubclass(cls, PERMANENT_ERRORS):
            fields["advice"] = (
                "Once the cause is fixed, create the token again with retry_failed=True (--retry-failed)."
            )
        return cls(f"recorded as {self.state.value} in the journal", **fields)

    def in_doubt_error(self) -> OutcomeUnknownError:
        """Return the error of an attempt whose outcome is unknown."""
        reason = (
            "recorded as unknown in the journal"
            if self.error
            else "the process stopped before recording an outcome"
        )
        advice = (
            "There may be a token that no one holds. Create another with retry_unknown=True "
            "(--retry-unknown) and accept that there may be two, or ask Plaid's support."
        )
        if self.has_unrecorded_token:
            reason, advice = f"{reason}; a token exists: {_RETRIEVED}", _CREATE_AGAIN_ADVICE
        return OutcomeUnknownError(reason, **self._error_fields(OutcomeUnknownError), advice=advice)

    def _error_fields(self, cls: type[PlaidRelayError]) -> dict[str, Any]:
        names = ("status", "error_type", "error_code", "request_id", "attempts")
        return {name: getattr(self, name) for name in names if hasattr(cls, name)}


def first_in_doubt(rows: Iterable[Row | None]) -> Row | None:
    """Return the first row with an attempt in doubt, if there is one.

    As in `certainty.error_of_call`, such an attempt outweighs what the other rows of the pair record.
    """
    return next((row for row in rows if row is not None and row.in_doubt), None)


def error_columns(error: PlaidRelayError) -> dict[str, Any]:
    """Return the columns that store an error, from which `Row.recorded_error` restores it."""
    names = ("error_type", "error_code", "status")
    return {"error": type(error).__name__, **{name: getattr(error, name, None) for name in names}}


def may_succeed_later(error: PlaidRelayError) -> bool:
    """Return whether the same request may succeed later, so that it is repeated without `retry_failed`."""
    return not isinstance(error, PERMANENT_ERRORS)


# ------------------------------------------------------------------------------------------ the decisions


@frozen
class StartAttempt:
    """An attempt may start.

    Attributes:
        row: the run's own row, if the attempt may use it; otherwise a new row is created.
        retire: the rows that the new attempt replaces. They lose the pair to it, and the run's own row isn't
            current any more.
    """

    row: Row | None = None
    retire: tuple[Row, ...] = ()

    def values_to_restore(self, run_id: int) -> dict[str, Any]:
        """Return the columns with which the intent of the attempt is undone: what was recorded before it.

        Args:
            run_id: the caller's run.
        """
        if self.row is not None:
            return self.row.recorded_columns()
        own = first_in_doubt(each for each in self.retire if each.run_id == run_id)
        if own is not None:  # the new row replaces it, and is in doubt in its place
            return own.recorded_columns() | {"state": CreationState.UNKNOWN}
        # The row in doubt of another run holds the pair again.
        held_elsewhere = first_in_doubt(self.retire) is not None
        return {
            "attempts": 0,
            "state": CreationState.HELD_ELSEWHERE if held_elsewhere else CreationState.NOT_ATTEMPTED,
        }


@frozen
class ServeRecorded:
    """The recorded outcome is returned, and nothing is sent.

    Attributes:
        row: the row that has the outcome.
    """

    row: Row


@frozen
class RejectDuplicate:
    """The pair has a token that isn't returned, and must not get a second one.

    Attributes:
        reason: why that token isn't returned.
        advice: what the caller can do.
    """

    reason: str
    advice: str = _CREATE_AGAIN_ADVICE


@frozen
class WaitForOther:
    """Another call is in progress for the pair, or a request for the pair may still be in flight."""


Decision: TypeAlias = StartAttempt | ServeRecorded | RejectDuplicate | WaitForOther


@frozen
class PairPolicy:
    """The caller's settings for pairs that the journal already has.

    Attributes:
        run_id: the caller's run.
        on_existing: what to do about a token from another run.
        retry_unknown: whether to replace an attempt that is in doubt.
        retry_failed: whether to repeat a creation that failed with a permanent error.
    """

    run_id: int
    on_existing: OnExisting
    retry_unknown: bool
    retry_failed: bool = False

    def with_overrides(self, **settings: bool | None) -> PairPolicy:
        """Return the policy with some settings replaced; `None` keeps a setting."""
        changes: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        return evolve(self, **changes)


def decide(
    own: Row | None, holding: Row | None, policy: PairPolicy, *, in_progress: bool, maybe_in_flight: bool
) -> Decision:
    """Decide on a creation.

    Args:
        own: the current row of this run for the pair.
        holding: the row, of any run, that holds the pair.
        policy: the caller's settings.
        in_progress: whether a live worker is creating or removing a token in one of these rows.
        maybe_in_flight: whether a request of a worker with an expired lease may still be in flight for one
            of these rows.
    """
    # This row needn't hold the pair: its token may have arrived late, after another run had taken the pair.
    if own is not None and own.has_returnable_token:
        return ServeRecorded(own)
    if in_progress:
        return WaitForOther()
    if (decision := _decide_on_tokens(own, holding, policy)) is not None:
        return decision
    # Without `retry_unknown`, the outcome is unknown. With it, a new attempt waits until the request in doubt
    # can't be in flight any more.
    row_in_doubt = first_in_doubt((holding, own))
    if row_in_doubt is not None and (maybe_in_flight or not policy.retry_unknown):
        return WaitForOther() if policy.retry_unknown else ServeRecorded(row_in_doubt)
    if (
        own is not None
        and own.state is CreationState.FAILED
        and row_in_doubt is None
        and not _may_retry(own, policy)
    ):
        return ServeRecorded(own)
    return _start_attempt(own, holding)


def _may_issue_second_token(own: Row | None, holding: Row | None, policy: PairPolicy) -> bool:
    """Return whether a run without a token may create one in addition to another run's token."""
    has_token = own is not None and own.issued
    of_other_run = holding is not None and holding.run_id != policy.run_id
    return of_other_run and policy.on_existing == "create" and not has_token


def _decide_on_tokens(
    own: Row | None, holding: Row | None, policy: PairPolicy
) -> ServeRecorded | RejectDuplicate | None:
    """Return the decision on a pair that has a token, or `None` if it has none or may get another one."""
    token_row = None if _may_issue_second_token(own, holding, policy) else holding
    if token_row is not None and token_row.issued:
        return _decide_on_token(own, token_row, policy)
    for row in (own, token_row):
        if row is not None and row.has_unrecorded_token:
            return _decide_on_unrecorded_token(row, policy)
    return None


def _decide_on_token(own: Row | None, holding: Row, policy: PairPolicy) -> ServeRecorded | RejectDuplicate:
    token_row = holding
    if holding.run_id != policy.run_id:
        if policy.on_existing == "refuse":
            return RejectDuplicate("this pair has a relay token from another run")
        if policy.on_existing == "create" and own is not None:
            # The run has its own token, which was forgotten or is being removed: the rejection describes it.
            token_row = own
    if token_row.state is CreationState.REMOVING:
        return RejectDuplicate(
            "a removal of this pair's relay token has an unknown outcome: the token may still be valid",
            advice="Remove it again, which is safe; after that, a new one can be created.",
        )
    if token_row.token is None:
        return RejectDuplicate("this pair has a relay token that was forgotten: the journal can't return it")
    return ServeRecorded(token_row)


def _decide_on_unrecorded_token(row: Row, policy: PairPolicy) -> ServeRecorded | RejectDuplicate:
    """Return the decision on an unknown pair that has a token: another attempt would create a second one."""
    if not policy.retry_unknown:
        return ServeRecorded(row)
    return RejectDuplicate(
        f"this pair's outcome is unknown, but it has a relay token that isn't recorded: {_RETRIEVED}"
    )


def _may_retry(failed: Row, policy: PairPolicy) -> bool:
    return policy.retry_failed or may_succeed_later(failed.recorded_error())


def _start_attempt(own: Row | None, holding: Row | None) -> StartAttempt:
    """Return the decision to start an attempt, in the run's own row if possible; other rows are retired."""
    row = own if own is not None and own.startable else None
    # The same row may be the run's own and hold the pair.
    retired = {each.id: each for each in (holding, own) if each is not None and each is not row}
    return StartAttempt(row, retire=tuple(retired.values()))


# -------------------------------------------------------------------------------------------- reports


RECORD_OUTCOMES: Final = ("created", "failed", "unknown", "removed", "not_attempted", "in_flight")


def outcome_name(state: CreationState, *, alive: bool) -> str:
    """Return the outcome that a `Record` shows for a state, one of `RECORD_OUTCOMES`.

    Args:
        state: the state of a row.
        alive: whether the row's worker is alive.
    """
    match state:
        case CreationState.NOT_ATTEMPTED | CreationState.HELD_ELSEWHERE:
            return "not_attempted"
        case CreationState.INTENT:
            return "in_flight" if alive else "unknown"
        case CreationState.REMOVING:
            return "created"  # until Plaid has confirmed the removal
    return state.value


def error_code_of(row: Row, outcome: str) -> str | None:
    """Return the error code that a `Record` shows: Plaid's, or the name of the error's class."""
    if outcome == "unknown":
        return reason_of(row.in_doubt_error())
    return reason_of(row.recorded_error()) if outcome == "failed" else None
