"""What the journal tells afterwards: of runs, and of each pair."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from sqlalchemy import and_, case, func, or_, select

from plaid_relay_async.errors import OutcomeUnknownError
from plaid_relay_async.journal.decisions import Row, error_code_of, outcome_name
from plaid_relay_async.journal.schema import CreationState, entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from plaid_relay_async.journal.encryption import Keyring
    from plaid_relay_async.journal.workers import WorkerRegistry

PAGE = 1000


@frozen
class Record:
    """What the journal has of one pair; a pair of which a run holds several tokens has a record for each.

    Attributes:
        outcome: `created`, `failed`, `unknown` or `removed`; `not_attempted` for what was taken up and never
            begun, `in_flight` for what is being created right now.
        secondary_client_id: the partner.
        relay_token: the token, a bearer secret; `None` where there is none, or it was removed or forgotten.
        request_id: Plaid's, where an answer had one.
        error_code: Plaid's, or the class of the error.
        attempts: how many HTTP requests were made.
        own: whether this run made it; otherwise it is served from another run.
    """

    outcome: str
    secondary_client_id: str
    relay_token: str | None = field(repr=False)
    request_id: str | None
    error_code: str | None
    attempts: int
    own: bool


@frozen
class RunStatus:
    """Where a run stands.

    Attributes:
        name: the run's.
        started_at: when it was first opened.
        last_at: when the last outcome was written down.
        counts: how many records there are of each outcome; see `Record`.
        error_codes: how many failed or unknown ones have which code.
        rate: outcomes a second, from the first beginning to the last outcome, pauses between lives included.
    """

    name: str
    started_at: dt.datetime
    last_at: dt.datetime | None
    counts: Counter[str]
    error_codes: Counter[str]
    rate: float


# A creation whose claim another run has is what that one is.
_holding = entries.alias("claim")
_entries_with_holding = entries.outerjoin(
    _holding,
    and_(
        entries.c.state == CreationState.HELD_ELSEWHERE, _holding.c.pair == entries.c.pair, _holding.c.claim
    ),
)
# Beside the current rows, those that hold a token, or have held one, and an unknown that has the claim again.
_visible = or_(
    entries.c.current,
    entries.c.claim,
    entries.c.state.in_((CreationState.CREATED, CreationState.REMOVING, CreationState.REMOVED)),
)


def read_page(
    connection: Connection, registry: WorkerRegistry, run_id: int, after: int, partner: str | None
) -> list[tuple[Row, Row, bool]]:
    """Give the next rows of a run, each with the row that it is told as, and whether its holder is alive."""
    asked = (
        select(entries, *(column.label(f"claim_{column.name}") for column in _holding.c))
        .select_from(_entries_with_holding)
        .where(entries.c.run_id == run_id, entries.c.id > after, _visible)
        .order_by(entries.c.id)
        .limit(PAGE)
    )
    if partner is not None:
        asked = asked.where(entries.c.partner == partner)

    def look() -> list[tuple[Row, Row]]:
        return [_with_holding_row(each) for each in connection.execute(asked).mappings()]

    def holders_in(pairs: list[tuple[Row, Row]]) -> set[int]:
        return {told.holder_id for _, told in pairs if told.state is CreationState.INTENT}

    rows, alive = registry.read_with_liveness(connection, look, holders_in)
    return [(row, told, told.holder_id in alive.live_ids) for row, told in rows]


def _with_holding_row(found: Any) -> tuple[Row, Row]:
    row = _to_row(found, "")
    return row, row if found["claim_id"] is None else _to_row(found, "claim_")


def _to_row(found: Any, prefix: str) -> Row:
    return Row(**{column.name: found[prefix + column.name] for column in entries.c})


def to_record(row: Row, keyring: Keyring, *, own: bool, alive: bool) -> Record:
    """Turn a row into what it tells."""
    outcome = outcome_name(row.state, alive=alive)
    return Record(
        outcome=outcome,
        secondary_client_id=row.partner,
        relay_token=None if row.token is None else keyring.decrypt(row.token),
        request_id=row.request_id,
        error_code=error_code_of(row, outcome),
        attempts=row.attempts,
        own=own,
    )


def read_status(connection: Connection, registry: WorkerRegistry, run: Any) -> RunStatus:
    """Count what there is of a run, which is a row of the table of runs."""
    state, holder, error, code = (
        func.coalesce(_holding.c[name], entries.c[name])
        for name in ("state", "holder_id", "error", "error_code")
    )
    whose = case((state == CreationState.INTENT, holder), else_=0)  # of what is done it doesn't matter
    asked = (
        select(
            state.label("state"),
            whose.label("holder_id"),
            func.coalesce(code, error).label("code"),
            func.count().label("many"),
            func.count(entries.c.ended_at).label("ended"),
            func.min(entries.c.begun_at).label("first"),
            func.max(entries.c.ended_at).label("last"),
        )
        .select_from(_entries_with_holding)
        .where(entries.c.run_id == run.id, _visible)
        .group_by(state, whose, func.coalesce(code, error))
    )

    def look() -> Sequence[Any]:
        return connection.execute(asked).all()

    def holders_in(found: Sequence[Any]) -> set[int]:
        return {row.holder_id for row in found if row.state == CreationState.INTENT}

    found, alive = registry.read_with_liveness(connection, look, holders_in)
    counts: Counter[str] = Counter()
    error_codes: Counter[str] = Counter()
    for row in found:
        outcome = outcome_name(CreationState(row.state), alive=row.holder_id in alive.live_ids)
        counts[outcome] += row.many
        if outcome in {"failed", "unknown"}:
            error_codes[row.code or OutcomeUnknownError.__name__] += row.many
    return RunStatus(
        name=run.name,
        started_at=_to_datetime(run.started_at),
        last_at=max((_to_datetime(row.last) for row in found if row.last is not None), default=None),
        counts=counts,
        error_codes=error_codes,
        rate=_outcome_rate(found),
    )


def _outcome_rate(found: Sequence[Any]) -> float:
    begun = [row.first for row in found if row.first is not None]
    ended = [row.last for row in found if row.last is not None]
    if not begun or not ended or max(ended) <= min(begun):
        return 0.0
    return float(sum(row.ended for row in found) / (max(ended) - min(begun)))


def _to_datetime(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
