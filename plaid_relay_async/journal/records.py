"""What the journal tells afterwards: of runs, and of each pair."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from sqlalchemy import and_, case, func, or_, select

from plaid_relay_async.errors import OutcomeUnknownError
from plaid_relay_async.journal.decisions import Row, code_of, outcome_of
from plaid_relay_async.journal.schema import State, entries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from plaid_relay_async.journal.holders import Holders
    from plaid_relay_async.journal.keys import Keyring

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
_claim = entries.alias("claim")
_joined = entries.outerjoin(
    _claim, and_(entries.c.state == State.ELSEWHERE, _claim.c.pair == entries.c.pair, _claim.c.claim)
)
# Beside the current rows, those that hold a token, or have held one, and an unknown that has the claim again.
_shown = or_(
    entries.c.current,
    entries.c.claim,
    entries.c.state.in_((State.CREATED, State.REMOVING, State.REMOVED)),
)


def page_of(
    connection: Connection, holders: Holders, run_id: int, after: int, partner: str | None
) -> list[tuple[Row, Row, bool]]:
    """Give the next rows of a run, each with the row that it is told as, and whether its holder is alive."""
    asked = (
        select(entries, *(column.label(f"claim_{column.name}") for column in _claim.c))
        .select_from(_joined)
        .where(entries.c.run_id == run_id, entries.c.id > after, _shown)
        .order_by(entries.c.id)
        .limit(PAGE)
    )
    if partner is not None:
        asked = asked.where(entries.c.partner == partner)

    def look() -> list[tuple[Row, Row]]:
        return [_told_as(each) for each in connection.execute(asked).mappings()]

    def holders_in(pairs: list[tuple[Row, Row]]) -> set[int]:
        return {told.holder_id for _, told in pairs if told.state is State.BEGUN}

    rows, alive = holders.seen(connection, look, holders_in)
    return [(row, told, told.holder_id in alive.living) for row, told in rows]


def _told_as(found: Any) -> tuple[Row, Row]:
    row = _row(found, "")
    return row, row if found["claim_id"] is None else _row(found, "claim_")


def _row(found: Any, prefix: str) -> Row:
    return Row(**{column.name: found[prefix + column.name] for column in entries.c})


def record(row: Row, keyring: Keyring, *, own: bool, alive: bool) -> Record:
    """Turn a row into what it tells."""
    outcome = outcome_of(row.state, alive=alive)
    return Record(
        outcome=outcome,
        secondary_client_id=row.partner,
        relay_token=None if row.token is None else keyring.open(row.token),
        request_id=row.request_id,
        error_code=code_of(row, outcome),
        attempts=row.attempts,
        own=own,
    )


def status_of(connection: Connection, holders: Holders, run: Any) -> RunStatus:
    """Count what there is of a run, which is a row of the table of runs."""
    state, holder, error, code = (
        func.coalesce(_claim.c[name], entries.c[name])
        for name in ("state", "holder_id", "error", "error_code")
    )
    whose = case((state == State.BEGUN, holder), else_=0)  # of what is done it doesn't matter
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
        .select_from(_joined)
        .where(entries.c.run_id == run.id, _shown)
        .group_by(state, whose, func.coalesce(code, error))
    )

    def look() -> Sequence[Any]:
        return connection.execute(asked).all()

    def holders_in(found: Sequence[Any]) -> set[int]:
        return {row.holder_id for row in found if row.state == State.BEGUN}

    found, alive = holders.seen(connection, look, holders_in)
    counts: Counter[str] = Counter()
    error_codes: Counter[str] = Counter()
    for row in found:
        outcome = outcome_of(State(row.state), alive=row.holder_id in alive.living)
        counts[outcome] += row.many
        if outcome in {"failed", "unknown"}:
            error_codes[row.code or OutcomeUnknownError.__name__] += row.many
    return RunStatus(
        name=run.name,
        started_at=_time(run.started_at),
        last_at=max((_time(row.last) for row in found if row.last is not None), default=None),
        counts=counts,
        error_codes=error_codes,
        rate=_rate(found),
    )


def _rate(found: Sequence[Any]) -> float:
    begun = [row.first for row in found if row.first is not None]
    ended = [row.last for row in found if row.last is not None]
    if not begun or not ended or max(ended) <= min(begun):
        return 0.0
    return float(sum(row.ended for row in found) / (max(ended) - min(begun)))


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
