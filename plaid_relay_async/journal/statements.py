"""What is asked and written for many rows at once, in one statement each.

The rows come as one parameter, in JSON: for each row of a statement that is made many times, SQLite's driver
would let go of the interpreter's lock and wait to have it back, behind a busy event loop.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    JSON,
    Column,
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

from plaid_relay_async.journal.decisions import IN_DOUBT, STARTABLE
from plaid_relay_async.journal.schema import CreationState, entries, now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnClause, FromClause

_NEW_ROW_COLUMNS = ("id", "run_id", "pair", "partner", "holder_id", "attempts")
NO_WORKER: Final = 0
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
    """Give rows as the statements' parameter."""
    return {"rows": json.dumps(values)}


class Statements:
    """The statements for one kind of database; `statements` returns the same object for each journal.

    Attributes:
        accept: puts rows in, but for those of which the run has one already.
        begin: puts rows in, or takes up those that are free or the holder's own; it counts them.
        end: writes down what became of the holder's own rows, or of free ones.
        removing: has the holder remove the token of one row, if that is as it was seen.
        remove: writes down what became of the removals of the holder's.
        settle: two statements; after them the claim on the pairs of rows is where it belongs.
        superseded: returns the rows of a run whose token was forgotten, while their pair has another one.
        retire: takes claim and currency from one row, if it is as it was seen.
        look_up: gives the rows with the claim on pairs, and those current in the run.
        find: gives the rows of tokens, by their digests.
        replace: stores new forms of tokens, unless they have changed since they were read.
        named: returns the rows that have, had or may have a claim on pairs by their former names, and those
            current in the run, with the present names of the pairs.
        rename: renames the pairs of rows; afterwards their claims have to be settled.
    """

    def __init__(self, kind: str) -> None:
        self._in_sqlite = kind == "sqlite"
        self._insert: Any = sqlite.insert if self._in_sqlite else postgresql.insert
        self.insert_accepted: Final = self._insert_accepted()
        self.upsert_intents: Final = self._upsert_intents()
        self.update_outcomes: Final = self._update_outcomes()
        self.update_removal_intent: Final = self._update_removal_intent()
        self.update_removal_outcomes: Final = self._update_removal_outcomes()
        self.reassign_holding: Final = (self._release_holding(), self._assign_holding())
        self.select_superseded: Final = select(entries.c.id).where(
            entries.c.run_id == bindparam("run"), entries.c.claim == true(), self._is_superseded()
        )
        self.retire_row: Final = (
            update(entries)
            .where(self._is_unchanged())
            .values(claim=False, current=and_(entries.c.current, entries.c.run_id != bindparam("run")))
        )
        self.select_pairs: Final = self._select_pairs()
        given = self._input_rows(entries.c.token_digest)
        self.select_by_digest: Final = select(entries).where(
            entries.c.token_digest.is_not(None), entries.c.token_digest.in_(select(given.c.token_digest))
        )
        self.replace_tokens: Final = self._replace_tokens()
        self.select_former_pairs: Final = self._select_former_pairs()
        self.rename_pairs: Final = self._rename_pairs()

    @staticmethod
    def _is_unchanged() -> Any:
        state: Any = bindparam("seen")
        holder: Any = bindparam("seen_holder")
        return and_(entries.c.id == bindparam("row"), entries.c.state == state, entries.c.holder_id == holder)

    def _input_rows(self, *columns: ColumnClause[Any]) -> FromClause:
        parameter = bindparam("rows", type_=Text)
        if self._in_sqlite:
            each = func.json_each(parameter).table_valued("value")
            fields = (
                func.json_extract(each.c.value, f"$.{one.name}", type_=one.type).label(one.name)
                for one in columns
            )
            return select(*fields).subquery("given")
        typed = [column(one.name, one.type) for one in columns]
        given = func.json_to_recordset(cast(parameter, JSON)).table_valued(*typed, name="given")
        return given.render_derived(with_types=True)

    def _insert_accepted(self) -> Any:
        names = (*_NEW_ROW_COLUMNS, "state")
        given = self._input_rows(*(entries.c[name] for name in names))
        new = select(*(given.c[name] for name in names), true(), literal(value=False)).where(true())
        return self._insert(entries).from_select([*names, "current", "claim"], new).on_conflict_do_nothing()

    def _upsert_intents(self) -> Any:
        given = self._input_rows(*(entries.c[name] for name in _NEW_ROW_COLUMNS))
        new = select(
            *(given.c[name] for name in _NEW_ROW_COLUMNS),
            literal(CreationState.INTENT.value),
            true(),
            true(),
            now(),
        )
        made = self._insert(entries).from_select(
            [*_NEW_ROW_COLUMNS, "state", "current", "claim", "begun_at"], new.where(true())
        )
        taken = {name: made.excluded[name] for name in ("state", "claim", "begun_at", "holder_id")}
        cleared = dict.fromkeys(
            ("ended_at", *(name for name in _OUTCOME_COLUMNS if name != "attempts")), null()
        )
        again = and_(entries.c.state == CreationState.INTENT, entries.c.holder_id == made.excluded.holder_id)
        may = or_(again, *(entries.c.state == state for state in STARTABLE))
        upsert = made.on_conflict_do_update(index_elements=["id"], set_=taken | cleared, where=may)
        return upsert.execution_options(preserve_rowcount=True)

    def _update_outcomes(self) -> Any:
        names = ("state", *_OUTCOME_COLUMNS)
        given = self._input_rows(entries.c.id, entries.c.holder_id, *(entries.c[name] for name in names))
        # What is written a second time may find that others have gone on meanwhile.
        own = and_(entries.c.holder_id == given.c.holder_id, entries.c.state.in_(IN_DOUBT))
        free = and_(entries.c.state.in_(STARTABLE), given.c.state != CreationState.ACCEPTED)
        told = {name: given.c[name] for name in names}
        return (
            update(entries).where(entries.c.id == given.c.id, or_(own, free)).values(ended_at=now(), **told)
        )

    def _update_removal_intent(self) -> Any:
        holder: Any = bindparam("holder")
        again = and_(
            entries.c.id == bindparam("row"),
            entries.c.state == CreationState.REMOVING,
            entries.c.holder_id == holder,
        )
        return (
            update(entries)
            .where(or_(self._is_unchanged(), again))
            .values(state=CreationState.REMOVING.value, holder_id=holder)
        )

    def _update_removal_outcomes(self) -> Any:
        given = self._input_rows(entries.c.id, entries.c.state, entries.c.holder_id)
        # Of what is gone, nobody needs to know the token any more.
        token = case((given.c.state == CreationState.REMOVED, null()), else_=entries.c.token)
        return (
            update(entries)
            .where(entries.c.id == given.c.id, entries.c.holder_id == given.c.holder_id)
            .where(entries.c.state == CreationState.REMOVING)
            .values(state=given.c.state, holder_id=NO_WORKER, token=token)
        )

    def _unsettled_pairs(self) -> Any:
        given = self._input_rows(entries.c.id)
        concerned = entries.alias("concerned")
        settled = and_(
            concerned.c.state == CreationState.CREATED,
            concerned.c.claim == true(),
            concerned.c.token.is_not(None),
        )
        return (
            select(concerned.c.pair).where(concerned.c.id.in_(select(given.c.id)), not_(settled)).distinct()
        )

    @staticmethod
    def _other_tokens() -> Any:
        """Return a query of the other tokens of a pair, for the row that has the claim, and its table."""
        token = entries.alias("token")
        others = select(token.c.id).where(
            token.c.pair == entries.c.pair, token.c.state == CreationState.CREATED
        )
        return others.where(token.c.claim == false(), token.c.begun_at.is_not(None)), token

    def _is_superseded(self) -> Any:
        """Return the condition that a row's token was forgotten, and its pair has one that can be served."""
        others, token = self._other_tokens()
        forgotten = and_(entries.c.state == CreationState.CREATED, entries.c.token.is_(None))
        return and_(forgotten, exists(others.where(token.c.token.is_not(None))))

    def _release_holding(self) -> Any:
        # An intent has the claim as long as there is no token: whether its worker is alive isn't known here.
        others, _ = self._other_tokens()
        gives_up = or_(
            entries.c.state.not_in((CreationState.CREATED, CreationState.INTENT)),
            and_(entries.c.state == CreationState.INTENT, exists(others)),
            self._is_superseded(),
        )
        return (
            update(entries)
            .where(entries.c.pair.in_(self._unsettled_pairs()), entries.c.claim == true(), gives_up)
            .values(claim=False)
        )

    def _assign_holding(self) -> Any:
        pairs = self._unsettled_pairs().subquery("pairs")
        heir, other = entries.alias("heir"), entries.alias("other")
        unclaimed = not_(exists(select(1).where(other.c.pair == pairs.c.pair, other.c.claim == true())))
        # A token that can be served comes first, then one that was forgotten, a doubt, one that may be gone.
        is_token = heir.c.state == CreationState.CREATED
        rank = case(
            (and_(is_token, heir.c.token.is_not(None)), 1),
            (is_token, 2),
            (heir.c.state == CreationState.REMOVING, 4),
            else_=3,
        )
        best = (
            select(heir.c.id)
            .where(heir.c.pair == pairs.c.pair, heir.c.claim == false(), heir.c.begun_at.is_not(None))
            .where(heir.c.state.in_(_HOLDING_STATES))
            .order_by(rank, heir.c.begun_at.desc(), heir.c.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        heirs = select(best).select_from(pairs).where(unclaimed)
        # Its state again: that may have changed while the row was locked.
        return (
            update(entries)
            .where(entries.c.id.in_(heirs), entries.c.state.in_(_HOLDING_STATES))
            .values(claim=True)
        )

    def _select_pairs(self) -> Any:
        given = self._input_rows(entries.c.pair)
        of_them = entries.c.pair.in_(select(given.c.pair))
        current = and_(entries.c.current, entries.c.run_id == bindparam("run"))
        return (
            select(entries).where(of_them, entries.c.claim).union_all(select(entries).where(of_them, current))
        )

    def _replace_tokens(self) -> Any:
        given = self._input_rows(entries.c.id, Column("old", Text), Column("new", Text))
        same = and_(entries.c.id == given.c.id, entries.c.token == given.c.old)
        return update(entries).where(same).values(token=given.c.new)

    def _select_former_pairs(self) -> Any:
        given = self._input_rows(column("former", Text()), entries.c.pair)
        of_them = select(entries.c.id, given.c.pair).join(given, entries.c.pair == given.c.former)
        current = and_(entries.c.current == true(), entries.c.run_id == bindparam("run"))
        had_it = and_(entries.c.claim == false(), entries.c.begun_at.is_not(None))
        # Each part uses an index; a single query for all of them would use none.
        return union(*(of_them.where(part) for part in (entries.c.claim == true(), had_it, current)))

    def _rename_pairs(self) -> Any:
        given = self._input_rows(entries.c.id, entries.c.pair)
        other = entries.alias("other")
        has_another = exists(
            select(1).where(
                other.c.run_id == entries.c.run_id, other.c.pair == given.c.pair, other.c.current == true()
            )
        )
        return (
            update(entries)
            .where(entries.c.id == given.c.id)
            .values(pair=given.c.pair, claim=False, current=and_(entries.c.current, not_(has_another)))
        )


statements_for = functools.cache(Statements)
