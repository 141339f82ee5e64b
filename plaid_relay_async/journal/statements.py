"""The journal's SQL: statements that read or write many rows each.

The rows are passed as one JSON parameter. With `executemany`, SQLite's driver would release the GIL for each
row, and wait for it again behind a busy event loop.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    JSON,
    Float,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    exists,
    false,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    true,
    union,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from plaid_relay_async.journal.decisions import IN_DOUBT, ISSUED, STARTABLE
from plaid_relay_async.journal.schema import CreationState, entries, entry_columns, now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnClause, FromClause

_NEW_ROW_COLUMNS = ("id", "run_id", "pair", "partner", "worker_id", "attempts")
NO_WORKER: Final = 0  # no worker has this ID: IDs start at 1
_CLOCK_SKEW: Final = 300.0  # seconds between the clocks of Plaid and of the database, at most
# States in which a row may hold its pair.
_HOLDING_STATES = (CreationState.CREATED, CreationState.REMOVING, *IN_DOUBT)
_OUTCOME_COLUMNS = (
    "attempts",
    "request_id",
    "error",
    "error_type",
    "error_code",
    "status",
    "token",
    "token_digest",
)


def rows_parameter(values: Sequence[Any]) -> dict[str, str]:
    """Return rows as the parameter of a statement."""
    return {"rows": json.dumps(values)}


def input_rows(kind: str, *columns: ColumnClause[Any]) -> FromClause:
    """Return the parameter of `rows_parameter` as a table with these columns.

    Args:
        kind: "sqlite" or "postgresql".
        columns: the columns.
    """
    parameter = bindparam("rows", type_=Text)
    if kind == "sqlite":
        elements = func.json_each(parameter).table_valued("value")
        fields = (
            func.json_extract(elements.c.value, f"$.{each.key}", type_=each.type).label(each.key)
            for each in columns
        )
        return select(*fields).subquery("input_rows")
    typed = [column(each.key, each.type) for each in columns]
    table = func.json_to_recordset(cast(parameter, JSON)).table_valued(*typed, name="input_rows")
    return table.render_derived(with_types=True)


class Statements:
    """The statements for one kind of database; `statements_for` caches one object for each kind.

    Args:
        kind: "sqlite" or "postgresql".

    Attributes:
        insert_creations: inserts rows without an attempt, unless the run has a current row for their pair.
        upsert_intents: inserts intents, or records them in startable rows, or again in rows that have an
            intent of the same worker. Its row count shows whether each intent was recorded.
        update_outcomes: records outcomes, in rows in doubt of the same worker and in startable rows.
        undo_intents: restores what was recorded before intents, in rows that still have an intent of the same
            worker.
        update_removal_intent: records the intent to remove one row's token, if the row is unchanged.
        update_removal_outcomes: records the outcomes of removals by the same worker.
        reassign_holding: two statements for the pairs of the given rows. The first one releases each pair
            whose holding row may have to change. The second one assigns each unheld pair to its best row,
            which may be the same one as before.
        select_superseded: selects the rows of a run that hold their pair although their token was forgotten
            and the pair has another token that can be returned.
        retire_row: takes the pair from one row if the row is unchanged; a row of the run isn't current
            afterwards.
        select_pairs: selects the rows that hold pairs, and the run's current rows for them.
        select_by_digest: selects the rows of tokens by the tokens' digests.
        record_retrieval: records that a partner has retrieved a report, in the row whose token explains it:
            the row that holds the pair, unless it is in doubt and the pair has a recorded token, or had one
            before that row's attempt; if no row holds the pair, in the latest one with an attempt. Returns
            the ID of the row. The earliest time is kept.
        select_former_pairs: selects, by the former names of pairs, the IDs of the rows that hold or have held
            these pairs and of the run's current rows for them, each with the current name of its pair.
        rename_pairs: renames the pairs of rows. Afterwards `reassign_holding` must run.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._insert: Any = sqlite.insert if kind == "sqlite" else postgresql.insert
        self.insert_creations: Final = self._insert_creations()
        self.upsert_intents: Final = self._upsert_intents()
        self.update_outcomes: Final = self._update_outcomes()
        self.undo_intents: Final = self._undo_intents()
        self.update_removal_intent: Final = self._update_removal_intent()
        self.update_removal_outcomes: Final = self._update_removal_outcomes()
        self.reassign_holding: Final = (self._release_holding(), self._assign_holding())
        self.select_superseded: Final = select(entries.c.id).where(
            entries.c.run_id == bindparam("run"), entries.c.holds_pair == true(), self._is_superseded()
        )
        # The decision to replace an attempt in doubt depends on whether its token was proven to exist.
        has_same_retrieval = entries.c.retrieved_at.is_not_distinct_from(
            bindparam("expected_retrieval", type_=Float)
        )
        self.retire_row: Final = (
            update(entries)
            .where(self._is_unchanged(), has_same_retrieval)
            .values(holds_pair=False, current=and_(entries.c.current, entries.c.run_id != bindparam("run")))
        )
        self.select_pairs: Final = self._select_pairs()
        digests = self._input_rows(entries.c.token_digest)
        # The first condition is that of the partial index.
        self.select_by_digest: Final = select(*entry_columns).where(
            entries.c.token_digest.is_not(None), entries.c.token_digest.in_(select(digests.c.token_digest))
        )
        self.record_retrieval: Final = self._record_retrieval()
        self.select_former_pairs: Final = self._select_former_pairs()
        self.rename_pairs: Final = self._rename_pairs()

    @staticmethod
    def _is_unchanged() -> Any:
        """Return the compare-and-set condition: the row still has the state and the worker that were read."""
        state: Any = bindparam("expected_state")
        worker: Any = bindparam("expected_worker")
        return and_(entries.c.id == bindparam("row"), entries.c.state == state, entries.c.worker_id == worker)

    @staticmethod
    def _has_unrecorded_token(row: Any) -> Any:
        """Return the condition that a row has a token that isn't recorded; see `Row`."""
        return and_(row.c.state.in_(IN_DOUBT), row.c.retrieved_at.is_not(None))

    def _input_rows(self, *columns: ColumnClause[Any]) -> FromClause:
        return input_rows(self._kind, *columns)

    def _insert_creations(self) -> Any:
        names = (*_NEW_ROW_COLUMNS, "state")
        source = self._input_rows(*(entries.c[name] for name in names))
        # The condition keeps SQLite's parser from reading ON CONFLICT as the ON of a join.
        new_rows = select(*(source.c[name] for name in names), true(), literal(value=False)).where(true())
        insert = self._insert(entries).from_select([*names, "current", "holds_pair"], new_rows)
        return insert.on_conflict_do_nothing()

    def _upsert_intents(self) -> Any:
        source = self._input_rows(*(entries.c[name] for name in _NEW_ROW_COLUMNS))
        new_rows = select(
            *(source.c[name] for name in _NEW_ROW_COLUMNS),
            literal(CreationState.INTENT.value),
            true(),
            true(),
            now(),
        )
        insert = self._insert(entries).from_select(
            [*_NEW_ROW_COLUMNS, "state", "current", "holds_pair", "begun_at"], new_rows.where(true())
        )
        replaced = {name: insert.excluded[name] for name in ("state", "holds_pair", "begun_at", "worker_id")}
        # A repeat keeps a retrieval that was recorded meanwhile. An earlier attempt of the row had no token.
        is_intent = entries.c.state == CreationState.INTENT
        replaced["retrieved_at"] = case((is_intent, entries.c.retrieved_at), else_=null())
        cleared = dict.fromkeys(("ended_at", *_OUTCOME_COLUMNS), null()) | {"attempts": literal(0)}
        # A transaction may be repeated after a commit whose confirmation was lost, so an intent of the same
        # worker is accepted as well.
        is_repeat = and_(
            entries.c.state == CreationState.INTENT, entries.c.worker_id == insert.excluded.worker_id
        )
        is_allowed = or_(is_repeat, *(entries.c.state == state for state in STARTABLE))
        upsert = insert.on_conflict_do_update(
            index_elements=["id"], set_=replaced | cleared, where=is_allowed
        )
        return upsert.execution_options(preserve_rowcount=True)

    def _update_outcomes(self) -> Any:
        names = ("state", *_OUTCOME_COLUMNS)
        source = self._input_rows(entries.c.id, entries.c.worker_id, *(entries.c[name] for name in names))
        # The check of the fencing token: an outcome that is written late, or a second time, must not change a
        # row that another worker has used meanwhile. A startable row has no token and no attempt in doubt
        # that a late outcome could overwrite.
        is_own = and_(entries.c.worker_id == source.c.worker_id, entries.c.state.in_(IN_DOUBT))
        is_startable = entries.c.state.in_(STARTABLE)
        values = {name: source.c[name] for name in names}
        # Reports count each row with `ended_at` as an outcome of its run. If another run holds the pair, the
        # outcome belongs to that run.
        is_outcome = source.c.state != CreationState.HELD_ELSEWHERE
        return (
            update(entries)
            .where(entries.c.id == source.c.id, or_(is_own, is_startable))
            .values(ended_at=case((is_outcome, now()), else_=null()), **values)
        )

    def _undo_intents(self) -> Any:
        names = ("state", "ended_at", *_OUTCOME_COLUMNS)
        source = self._input_rows(
            *(entries.c[name] for name in ("id", "worker_id", "begun_at")),
            *(entries.c[name] for name in names),
        )
        is_own = and_(entries.c.worker_id == source.c.worker_id, entries.c.state == CreationState.INTENT)
        # A declined attempt has begun, so `begun_at` stays if there is no earlier time to restore.
        begun_at = func.coalesce(source.c.begun_at, entries.c.begun_at)
        return (
            update(entries)
            .where(entries.c.id == source.c.id, is_own)
            .values(begun_at=begun_at, **{name: source.c[name] for name in names})
        )

    def _update_removal_intent(self) -> Any:
        worker: Any = bindparam("worker")
        is_repeat = and_(
            entries.c.id == bindparam("row"),
            entries.c.state == CreationState.REMOVING,
            entries.c.worker_id == worker,
        )
        return (
            update(entries)
            .where(or_(self._is_unchanged(), is_repeat))
            .values(state=CreationState.REMOVING.value, worker_id=worker)
        )

    def _update_removal_outcomes(self) -> Any:
        source = self._input_rows(entries.c.id, entries.c.state, entries.c.worker_id)
        # The token of a confirmed removal isn't needed any more. Its digest stays, so that the journal
        # recognizes it.
        token = case((source.c.state == CreationState.REMOVED, null()), else_=entries.c.token)
        return (
            update(entries)
            .where(entries.c.id == source.c.id, entries.c.worker_id == source.c.worker_id)
            .where(entries.c.state == CreationState.REMOVING)
            .values(state=source.c.state, worker_id=NO_WORKER, token=token)
        )

    def _pairs_to_reassign(self) -> Any:
        """Return a query of the pairs of the given rows whose holding row may have to change."""
        source = self._input_rows(entries.c.id)
        row = entries.alias("row")
        # A token that can be returned keeps its pair.
        keeps_pair = and_(
            row.c.state == CreationState.CREATED, row.c.holds_pair == true(), row.c.token.is_not(None)
        )
        return select(row.c.pair).where(row.c.id.in_(select(source.c.id)), not_(keeps_pair)).distinct()

    def _other_tokens(self) -> Any:
        """Return a query of a pair's other tokens, and the alias of the table in it.

        It is a correlated subquery: the enclosing statement provides the row that holds the pair.
        """
        # The last two conditions are those of the partial index "relay_entries_heirs".
        token = entries.alias("token")
        has_token = or_(token.c.state == CreationState.CREATED, self._has_unrecorded_token(token))
        others = select(token.c.id).where(token.c.pair == entries.c.pair, has_token)
        return others.where(token.c.holds_pair == false(), token.c.begun_at.is_not(None)), token

    def _is_superseded(self) -> Any:
        """Return the condition that a row's token was forgotten and its pair has another one to return."""
        others, token = self._other_tokens()
        forgotten = and_(entries.c.state == CreationState.CREATED, entries.c.token.is_(None))
        return and_(forgotten, exists(others.where(token.c.token.is_not(None))))

    def _release_holding(self) -> Any:
        # A row in another state than CREATED and INTENT always releases its pair. `_assign_holding` returns
        # the pair to an UNKNOWN or REMOVING row if no other row is better. An intent releases its pair if the
        # pair has a token. This also concerns an intent of a live worker, because a statement can't check
        # whether a worker is alive.
        others, _ = self._other_tokens()
        is_released = or_(
            entries.c.state.not_in((CreationState.CREATED, CreationState.INTENT)),
            and_(entries.c.state == CreationState.INTENT, exists(others)),
            self._is_superseded(),
        )
        return (
            update(entries)
            .where(entries.c.pair.in_(self._pairs_to_reassign()), entries.c.holds_pair == true(), is_released)
            .values(holds_pair=False)
        )

    def _assign_holding(self) -> Any:
        pairs = self._pairs_to_reassign().subquery("pairs")
        candidate, other = entries.alias("candidate"), entries.alias("other")
        is_unheld = not_(exists(select(1).where(other.c.pair == pairs.c.pair, other.c.holds_pair == true())))
        # The order: a token that can be returned, a token that was forgotten, a token that isn't recorded, an
        # attempt in doubt, and a token whose removal is in doubt.
        is_token = candidate.c.state == CreationState.CREATED
        rank = case(
            (and_(is_token, candidate.c.token.is_not(None)), 1),
            (is_token, 2),
            (self._has_unrecorded_token(candidate), 3),
            (candidate.c.state == CreationState.REMOVING, 5),
            else_=4,
        )
        best = (
            select(candidate.c.id)
            .where(
                candidate.c.pair == pairs.c.pair,
                candidate.c.holds_pair == false(),
                candidate.c.begun_at.is_not(None),
            )
            .where(candidate.c.state.in_(_HOLDING_STATES))
            .order_by(rank, candidate.c.begun_at.desc(), candidate.c.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        chosen = select(best).select_from(pairs).where(is_unheld)
        # The state is checked again, because it may have changed while the update waited for the row's lock.
        return (
            update(entries)
            .where(entries.c.id.in_(chosen), entries.c.state.in_(_HOLDING_STATES))
            .values(holds_pair=True)
        )

    def _select_pairs(self) -> Any:
        source = self._input_rows(entries.c.pair)
        is_requested = entries.c.pair.in_(select(source.c.pair))
        is_current = and_(entries.c.current, entries.c.run_id == bindparam("run"))
        return (
            select(*entry_columns)
            .where(is_requested, entries.c.holds_pair)
            .union_all(select(*entry_columns).where(is_requested, is_current))
        )

    @staticmethod
    def _record_retrieval() -> Any:
        row, at = entries.alias("row"), func.coalesce(bindparam("time", type_=Float), now())
        # An attempt in doubt gets a proof only if no recorded token explains the retrieval: a token that may
        # be valid, or one that was removed before the attempt began.
        holds_pair = row.c.holds_pair == true()
        had_begun = row.c.begun_at <= at + _CLOCK_SKEW
        rank = case(
            (and_(holds_pair, row.c.state.not_in(IN_DOUBT)), 1),
            (row.c.state.in_(ISSUED), 2),
            (and_(holds_pair, had_begun), 3),
            (and_(row.c.state == CreationState.REMOVED, had_begun), 4),
            (holds_pair, 5),
            else_=6,
        )
        of_pair = select(row.c.id, row.c.begun_at, rank.label("rank")).where(
            row.c.pair == bindparam("pair_id")
        )
        # There are two queries, so that each one uses its partial index.
        has_held = and_(row.c.holds_pair == false(), row.c.begun_at.is_not(None))
        rows = of_pair.where(holds_pair).union_all(of_pair.where(has_held)).subquery("rows")
        best = select(rows.c.id).order_by(rows.c.rank, rows.c.begun_at.desc(), rows.c.id.desc()).limit(1)
        earliest = case((entries.c.retrieved_at <= at, entries.c.retrieved_at), else_=at)
        return (
            update(entries)
            .where(entries.c.id == best.scalar_subquery())
            .values(retrieved_at=earliest)
            .returning(entries.c.id)
        )

    def _select_former_pairs(self) -> Any:
        source = self._input_rows(column("former", Text()), entries.c.pair)
        renamed = select(entries.c.id, source.c.pair).join(source, entries.c.pair == source.c.former)
        is_current = and_(entries.c.current == true(), entries.c.run_id == bindparam("run"))
        has_held = and_(entries.c.holds_pair == false(), entries.c.begun_at.is_not(None))
        # Each part uses an index. A single query for all conditions would use none.
        return union(
            *(renamed.where(part) for part in (entries.c.holds_pair == true(), has_held, is_current))
        )

    def _rename_pairs(self) -> Any:
        source = self._input_rows(entries.c.id, entries.c.pair)
        other = entries.alias("other")
        # The run may have a current row under the pair's current name. A run has one current row for each
        # pair.
        has_current = exists(
            select(1).where(
                other.c.run_id == entries.c.run_id, other.c.pair == source.c.pair, other.c.current == true()
            )
        )
        return (
            update(entries)
            .where(entries.c.id == source.c.id)
            .values(pair=source.c.pair, holds_pair=False, current=and_(entries.c.current, not_(has_current)))
        )


statements_for = functools.cache(Statements)
