"""What may be done about a pair: one table, with neither database nor server."""

from __future__ import annotations

import pytest
from attrs import evolve

from plaid_relay_async.journal.decisions import Begin, Policy, Refuse, Row, Serve, Wait, decide
from plaid_relay_async.journal.schema import State


def row(state, *, run=1, number=1, token="t", claim=True, error=None):
    return Row(
        id=number,
        run_id=run,
        pair="p",
        partner="p",
        state=state,
        current=True,
        claim=claim,
        holder_id=1,
        begun_at=None,
        ended_at=None,
        attempts=1,
        request_id=None,
        error=error,
        error_type=None,
        error_code=None,
        status=None,
        token=token if state is State.CREATED else None,
        token_digest=None,
    )


FREE = row(State.FAILED, claim=False, error="NotSentError")
OTHERS = row(State.UNKNOWN, run=2, number=2)
OWN = row(State.UNKNOWN)


@pytest.mark.parametrize(
    ("own", "claim", "retry", "alive", "late", "decision"),
    [
        (None, None, False, False, False, Begin()),
        (FREE, None, False, False, False, Begin(FREE)),
        (evolve(FREE, error="InvalidRequestError"), None, True, False, False, "serve own"),
        (evolve(OWN, claim=False), None, False, False, False, "serve own"),
        (evolve(OWN, claim=False), None, True, False, False, "retire own"),
        (row(State.ELSEWHERE, claim=False), None, False, False, False, "go on with own"),
        (row(State.CREATED, claim=False), None, False, False, False, "serve own"),
        (None, row(State.BEGUN, run=2), True, True, False, Wait()),
        (None, row(State.BEGUN, run=2), True, False, True, Wait()),
        (None, row(State.BEGUN, run=2), False, False, True, "serve claim"),
        (None, OTHERS, True, False, False, "retire claim"),
        (OWN, OWN, True, False, False, "retire claim"),
        (FREE, OTHERS, True, False, False, Begin(FREE, (OTHERS,))),
        (
            evolve(OWN, claim=False),
            OTHERS,
            True,
            False,
            False,
            Begin(retire=(OTHERS, evolve(OWN, claim=False))),
        ),
        (None, row(State.REMOVING, run=2), False, False, False, "retire claim"),
        (None, row(State.REMOVING, run=2), False, True, False, Wait()),
        (row(State.REMOVING, claim=False), row(State.CREATED, run=2), False, True, False, Wait()),
        (row(State.BEGUN, claim=False), None, False, False, False, "serve own"),
        (row(State.BEGUN, claim=False), None, True, False, False, "retire own"),
        (row(State.BEGUN, claim=False), row(State.REMOVING, run=2), False, False, False, "serve own"),
        (row(State.REMOVED, claim=False), None, False, False, False, "retire own"),
    ],
)
def test_what_may_be_done_about_a_pair(own, claim, retry, alive, late, decision):
    """One table says it all, for the row of the run and the one with the claim."""
    known = {
        "serve own": Serve(own),
        "serve claim": Serve(claim),
        "retire own": Begin(retire=(own,)),
        "retire claim": Begin(retire=(claim,)),
        "go on with own": Begin(own),
    }
    wanted = known.get(decision, decision) if isinstance(decision, str) else decision
    assert decide(own, claim, Policy(1, "reuse", retry), alive=alive, late=late) == wanted


@pytest.mark.parametrize("own", [evolve(OWN, claim=False), row(State.BEGUN, claim=False)])
def test_a_doubt_of_ones_own_is_not_passed_over_for_another_token(own):
    """on_existing="create" is about tokens: what may have made one already isn't begun again unasked."""
    others = row(State.CREATED, run=2, number=2)
    policy = Policy(1, "create", retry_unknown=False)
    assert decide(own, others, policy, alive=False, late=False) == Serve(own)
    policy = evolve(policy, retry_unknown=True)
    assert decide(own, others, policy, alive=False, late=False) == Begin(retire=(others, own))


def test_a_token_that_is_gone_is_refused():
    """Nothing can be served of it, and no second one is made unasked."""
    gone = row(State.CREATED, run=2, token=None)
    assert isinstance(decide(None, gone, Policy(1, "reuse", False), alive=False, late=False), Refuse)
    assert decide(None, gone, Policy(1, "create", False), alive=False, late=False) == Begin(retire=(gone,))
