"""Reports from the journal: the records and the status of runs."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from sqlalchemy import and_, case, func, or_, select

from plaid_relay_async.errors import OutcomeUnknownError
from plaid_relay_async.journal.decisions import Row, error_code_of, outcome_name
from plaid_relay_async.journal.schema import CreationState, entries, entry_columns, runs
from plaid_relay_async.journal.statements import NO_WORKER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from plaid_relay_async.journal.encryption import Keyring
    from plaid_relay_async.journal.workers import WorkerRegistry

ROWS_PER_PAGE = 1000  # read in one transaction


@frozen
class Record:
    """The recorded state of one pair in a run; a pair with several tokens of the run has a record for each.

    Attributes:
        outcome: `created`, `failed`, `unknown` or `removed`; `in_flight` while an attempt of a live process
            may be in flight; `not_attempted` if the creation has no outcome, and no attempt can have been
            executed.
        secondary_client_id: the partner.
        relay_token: the token, a bearer secret; `None` if there is none, or it was removed or forgotten.
        request_id: Plaid's request ID, if a response had one.
        error_code: Plaid's error_code, or the name of the error's class.
        attempts: the number of attempts of the latest call whose outcome was recorded, including attempts
            that weren't sent; 0 if there is none.
        own: whether the outcome is this run's; false if it is that of another run, which holds the pair.
        retrieved_at: when the partner first retrieved the report, if a webhook has shown that; see
            `Journal.record_retrieval`. A pair with that time has a token, even if its outcome is `unknown`.
    """

    outcome: str
    secondary_client_id: str
    relay_token: str | None = field(repr=False)
    request_id: str | None
    error_code: str | None
    attempts: int
    own: bool
    retrieved_at: dt.datetime | None


@frozen
class PairRecord:
    """A pair whose report was retrieved; see `Journal.record_retrieval`.

    Attributes:
        pair_id: the ID of the pair, which replaces `{pair}` in the URLs of webhooks.
        run: the name of the run that holds the pair, or held it last.
        secondary_client_id: the partner.
        outcome: the recorded outcome; see `Record`.
        retrieved_at: when the partner first retrieved the report.
    """

    pair_id: str = field(repr=False)  # as secret as the URL of which it is a part
    run: str
    secondary_client_id: str
    outcome: str
    retrieved_at: dt.datetime


@frozen
class RunStatus:
    """The status of a run.

    Attributes:
        name: the run name.
        started_at: when the run was created.
        last_at: when the last outcome of this run was recorded; `None` if none was.
        counts: the number of records by outcome; see `Record`.
        error_codes: the number of failed and unknown records by error code.
        unknown_with_token: the number of unknown records whose pair has a token, because its partner has
            retrieved the report.
        rate: outcomes per second, from the first attempt to the last outcome, including pauses between two
            processes; 0 if that isn't known.
    """

    name: str
    started_at: dt.datetime
    last_at: dt.datetime | None
    counts: Counter[str]
    error_codes: Counter[str]
    rate: float
    unknown_with_token: int


# A row whose pair another run holds shows the outcome of the row that holds the pair.
_holding = entries.alias("holding")
_entries_with_holding = entries.outerjoin(
    _holding,
    and_(
        entries.c.state == CreationState.HELD_ELSEWHERE,
        _holding.c.pair == entries.c.pair,
        _holding.c.holds_pair,
    ),
)
# A record is shown for each current row, and for each other row with a token, a removed token, or a pair that
# it holds again.
_visible = or_(
    entries.c.current,
    entries.c.holds_pair,
    entries.c.state.in_((CreationState.CREATED, CreationState.REMOVING, CreationState.REMOVED)),
)


def read_page(
    connection: Connection, registry: WorkerRegistry, run_id: int, after: int, partner: str | None
) -> list[tuple[Row, Row, bool]]:
    """Read the next rows of a run.

    Args:
        connection: a connection in a transaction.
        registry: the workers of the journal.
        run_id: the run.
        after: the ID of the last row that was read, or -1.
        partner: read only rows of this partner, or of all if it is `None`.

    Returns:
        Up to `ROWS_PER_PAGE` items: a row of the run, the row that has its outcome (the same row, or that of
        the run that holds the pair), and whether the worker of the second row is alive, which is checked only
        for an intent.
    """
    query = (
        select(*entry_columns, *(column.label(f"holding_{column.key}") for column in _holding.c))
        .select_from(_entries_with_holding)
        .where(entries.c.run_id == run_id, entries.c.id > after, _visible)
        .order_by(entries.c.id)
        .limit(ROWS_PER_PAGE)
    )
    if partner is not None:
        query = query.where(entries.c.partner == partner)

    def read() -> list[tuple[Row, Row]]:
        return [_with_holding_row(each) for each in connection.execute(query).mappings()]

    def worker_ids_in(rows: list[tuple[Row, Row]]) -> set[int]:
        return {source.worker_id for _, source in rows if source.state is CreationState.INTENT}

    rows, liveness = registry.read_with_liveness(connection, read, worker_ids_in)
    return [(row, source, source.worker_id in liveness.live_ids) for row, source in rows]


def _with_holding_row(columns: Any) -> tuple[Row, Row]:
    row = _to_row(columns, "")
    source = row if columns["holding_id"] is None else _to_row(columns, "holding_")
    return row, source


def _to_row(columns: Any, prefix: str) -> Row:
    return Row(**{column.key: columns[prefix + column.key] for column in entries.c})


def to_record(row: Row, keyring: Keyring, *, own: bool, alive: bool) -> Record:
    """Return the record of a row, with its token decrypted.

    Args:
        row: the row with the outcome.
        keyring: decrypts the token.
        own: whether the row belongs to the run that is reported.
        alive: whether the row's worker is alive.
    """
    outcome = outcome_name(row.state, alive=alive)
    return Record(
        outcome=outcome,
        secondary_client_id=row.partner,
        relay_token=None if row.token is None else keyring.decrypt(row.token),
        request_id=row.request_id,
        error_code=error_code_of(row, outcome),
        attempts=row.attempts,
        own=own,
        retrieved_at=None if row.retrieved_at is None else _to_datetime(row.retrieved_at),
    )


def read_retrieved_pair(connection: Connection, registry: WorkerRegistry, row_id: int) -> PairRecord:
    """Read the pair of a row with a retrieval.

    Args:
        connection: a connection in a transaction.
        registry: the workers of the journal.
        row_id: the ID of the row.
    """
    query = select(entries, runs.c.name).join(runs, runs.c.id == entries.c.run_id)

    def read() -> Any:
        return connection.execute(query.where(entries.c.id == row_id)).one()

    def worker_ids_in(row: Any) -> set[int]:
        return {row.holder_id} if row.state == CreationState.INTENT else set()

    row, liveness = registry.read_with_liveness(connection, read, worker_ids_in)
    return PairRecord(
        pair_id=row.pair,
        run=row.name,
        secondary_client_id=row.partner,
        outcome=outcome_name(CreationState(row.state), alive=row.holder_id in liveness.live_ids),
        retrieved_at=_to_datetime(row.retrieved_at),
    )


def read_status(connection: Connection, registry: WorkerRegistry, run: Any) -> RunStatus:
    """Count the records of a run.

    Args:
        connection: a connection in a transaction.
        registry: the workers of the journal.
        run: the row of the run.
    """
    state, worker_id, error, code = (
        func.coalesce(_holding.c[name], entries.c[name])
        for name in ("state", "worker_id", "error", "error_code")
    )
    holds_elsewhere = _holding.c.id.is_not(None)
    is_retrieved = case(
        (holds_elsewhere, _holding.c.retrieved_at.is_not(None)), else_=entries.c.retrieved_at.is_not(None)
    )
    # Only the outcome of an intent depends on its worker. All other rows are counted together.
    intent_worker = case((state == CreationState.INTENT, worker_id), else_=NO_WORKER)
    query = (
        select(
            state.label("state"),
            intent_worker.label("worker_id"),
            func.coalesce(code, error).label("code"),
            is_retrieved.label("is_retrieved"),
            func.count().label("row_count"),
            func.count(entries.c.ended_at).label("ended_count"),
            func.min(entries.c.begun_at).label("first_begun_at"),
            func.max(entries.c.ended_at).label("last_ended_at"),
        )
        .select_from(_entries_with_holding)
        .where(entries.c.run_id == run.id, _visible)
        .group_by(state, intent_worker, func.coalesce(code, error), is_retrieved)
    )

    def read() -> Sequence[Any]:
        return connection.execute(query).all()

    def worker_ids_in(rows: Sequence[Any]) -> set[int]:
        return {row.worker_id for row in rows if row.state == CreationState.INTENT}

    rows, liveness = registry.read_with_liveness(connection, read, worker_ids_in)
    counts: Counter[str] = Counter()
    error_codes: Counter[str] = Counter()
    unknown_with_token = 0
    for row in rows:
        outcome = outcome_name(CreationState(row.state), alive=row.worker_id in liveness.live_ids)
        counts[outcome] += row.row_count
        if outcome in {"failed", "unknown"}:
            error_codes[row.code or OutcomeUnknownError.__name__] += row.row_count
        if outcome == "unknown" and row.is_retrieved:
            unknown_with_token += row.row_count
    return RunStatus(
        name=run.name,
        started_at=_to_datetime(run.started_at),
        last_at=max(
            (_to_datetime(row.last_ended_at) for row in rows if row.last_ended_at is not None), default=None
        ),
        counts=counts,
        error_codes=error_codes,
        rate=_outcome_rate(rows),
        unknown_with_token=unknown_with_token,
    )


def _outcome_rate(rows: Sequence[Any]) -> float:
    starts = [row.first_begun_at for row in rows if row.first_begun_at is not None]
    ends = [row.last_ended_at for row in rows if row.last_ended_at is not None]
    if not starts or not ends or max(ends) <= min(starts):
        return 0.0
    return float(sum(row.ended_count for row in rows) / (max(ends) - min(starts)))


def _to_datetime(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
